"""A machine made of files: first as a Gen-1 machine must be, then with one thing wrong in each test."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

import pytest

from nodeos import cli
from nodeos.core.efilists import X509
from nodeos.core.errors import UsageError
from nodeos.core.wire import ParseError
from nodeos.fingerprint.inventory import Sources
from nodeos.fingerprint.smbios import GIB, MIB
from nodeos.preflight import devices, machine
from nodeos.preflight.checks import Check, Status, check, passed
from nodeos.preflight.devices import fastest, parse_health
from nodeos.preflight.facts import Health
from nodeos.preflight.profile import NAMES, load_profile, parse_profile
from tests.support.smbios_tables import END, entry_point_3, memory_device, system
from tests.support.vectors import vectors

OURS, THEIRS = b"our certificate", b"a maker's certificate"
GOOD = Health(critical_warning=0, spare=100, spare_threshold=10, used=3, media_errors=0)
DISK_SECTORS = 6_400_000_000_000 // 512


def signature_list(*certificates: bytes) -> bytes:
    """EFI_SIGNATURE_LISTs with a certificate each, as firmware keeps them."""
    return b"".join(
        X509.bytes_le
        + b"".join(n.to_bytes(4, "little") for n in (28 + 16 + len(der), 0, 16 + len(der)))
        + bytes(16)
        + der
        for der in certificates
    )


@dataclass
class FakeDevices:
    """Answers for devices that are not there."""

    speeds: dict[str, int] = field(default_factory=lambda: {"eth0": 25_000, "eth1": 25_000})
    health: dict[str, Health] = field(default_factory=lambda: {f"nvme{n}": GOOD for n in range(5)})

    def port_speed(self, name: str) -> int | None:
        return self.speeds.get(name)

    def disk_health(self, controller: str) -> Health | None:
        return self.health.get(controller)


@dataclass
class Tree:
    """A made-up /proc and /sys."""

    root: Path
    devices: FakeDevices = field(default_factory=FakeDevices)

    def put(self, path: str, data: str | bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def link(self, path: str, target: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(self.root / target)

    def cpu(self, *, model: str = "AMD EPYC 7302 16-Core Processor", sockets: int = 2, threads: int = 64,
            flags: str = "fpu svm sev sev_snp") -> None:  # fmt: skip
        self.put("proc/cpuinfo", "".join(
            f"processor\t: {n}\nmodel name\t: {model}\nphysical id\t: {n % sockets}\n"
            f"core id\t\t: {n % (threads // 2 or 1)}\nflags\t\t: {flags}\n\n" for n in range(threads)
        ))  # fmt: skip

    def memory(self, dimms: int = 16, managed_kib: int = 527_983_616) -> None:
        table = system() + memory_device(0x7FFF, 32 * GIB // MIB) * dimms + END
        self.put("sys/firmware/dmi/tables/smbios_entry_point", entry_point_3(len(table)))
        self.put("sys/firmware/dmi/tables/DMI", table)
        self.put("proc/meminfo", f"MemTotal:  {managed_kib} kB\nMemFree:  1 kB\n")

    def pci(self, address: str, code: str, below: str = "") -> str:
        """A PCI function; its folder."""
        folder = f"sys/devices/pci0000:00/{below}{address}"
        self.put(f"{folder}/class", f"{code}\n")
        self.link(f"sys/bus/pci/devices/{address}", folder)
        return folder

    def disk(self, name: str, folder: str, sectors: int = DISK_SECTORS, removable: bool = False) -> None:
        self.put(f"{folder}/block/{name}/size", f"{sectors}\n")
        self.put(f"{folder}/block/{name}/removable", f"{int(removable)}\n")
        self.put(f"{folder}/block/{name}/device/model", "MICRON 9300  \n")
        self.link(f"sys/block/{name}", f"{folder}/block/{name}")

    def variable(self, name: str, data: bytes) -> None:
        path = f"sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        self.put(path, b"\x06\0\0\0" + data)

    def user_mode(self, *keys: bytes, enforced: bool = True) -> None:
        self.variable("SetupMode", b"\0")
        self.variable("SecureBoot", b"\1" if enforced else b"\0")
        self.variable("PK", signature_list(*keys))

    def check(self, profile: str = "gen1", own: tuple[bytes, ...] = ()) -> tuple[Check, ...]:
        where = Sources(proc=self.root / "proc", sys=self.root / "sys")
        return check(load_profile(profile), machine.read_facts(where, self.devices), own)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.cpu()
    made.memory()
    for n in range(5):
        made.disk(f"nvme{n}n1", made.pci(f"0000:0{n}:00.0", "0x010802"))
    for n in range(2):
        folder = made.pci(f"0000:a{n}:00.0", "0x020000")
        made.put(f"{folder}/net/eth{n}/speed", "-1\n")
        made.link(f"{folder}/net/eth{n}/device", folder)
        made.link(f"sys/class/net/eth{n}", f"{folder}/net/eth{n}")
    made.put("sys/devices/drivers/mlx5_core/bind", "")
    made.link("sys/devices/pci0000:00/0000:a0:00.0/driver", "sys/devices/drivers/mlx5_core")
    made.put("sys/class/net/lo/speed", "")
    made.put("sys/block/loop0/size", "99999999999\n")
    made.put("sys/class/tpm/tpm0/tpm_version_major", "2\n")
    made.variable("SetupMode", b"\1")
    made.variable("SecureBoot", b"\0")
    return made


def broken(made: tuple[Check, ...]) -> dict[str, Check]:
    """What did not pass; each says what to do."""
    found = {item.code: item for item in made if item.status is not Status.PASS}
    assert all(item.advice for item in found.values())
    return found


def only(made: tuple[Check, ...], code: str, words: str, status: Status = Status.FAIL) -> None:
    found = broken(made)
    assert list(found) == [code]
    assert found[code].status is status
    assert words in found[code].found
    assert passed(made) == (status is Status.WARN)


def test_a_gen_1_machine_is_fit(tree: Tree) -> None:
    made = tree.check()
    assert broken(made) == {}
    assert passed(made)
    assert [item.code for item in made] == [
        "cpu.model", "cpu.sockets", "cpu.threads", "cpu.flags", "memory", "storage", "raid", "smart", "tpm",
        "uefi", "secure_boot", "network",
    ]  # fmt: skip
    found = {item.code: item.found for item in made}
    assert found["memory"] == "549,755,813,888 bytes fitted, 540,655,222,784 bytes usable"
    assert found["storage"] == "32,000,000,000,000 bytes on 5 disks"
    assert found["network"] == "eth0 25000 (mlx5_core), eth1 25000"


@pytest.mark.parametrize(
    "model", ["AMD EPYC 7302P 16-Core Processor", "AMD EPYC 7313 16-Core Processor", "Intel(R) Xeon(R)"]
)
def test_another_processor(tree: Tree, model: str) -> None:
    tree.cpu(model=model)
    only(tree.check(), "cpu.model", model)


def test_one_socket(tree: Tree) -> None:
    tree.cpu(sockets=1)
    only(tree.check(), "cpu.sockets", "1")


def test_threads_off(tree: Tree) -> None:
    tree.cpu(threads=63)
    only(tree.check(), "cpu.threads", "63")


@pytest.mark.parametrize("flag", ["svm", "sev"])
def test_a_flag_is_off(tree: Tree, flag: str) -> None:
    tree.cpu(flags=" ".join({"svm", "sev"} - {flag}))
    only(tree.check(), "cpu.flags", f"missing {flag}")


def test_a_module_is_missing(tree: Tree) -> None:
    tree.memory(dimms=15)
    only(tree.check(), "memory", "515,396,075,520 bytes fitted")


def test_memory_that_the_kernel_does_not_have(tree: Tree) -> None:
    tree.memory(managed_kib=494_000_000)
    only(tree.check(), "memory", "505,856,000,000 bytes usable")


def test_memory_without_tables_is_what_the_kernel_has(tree: Tree) -> None:
    tree.remove("sys/firmware/dmi/tables/DMI")
    only(tree.check(), "memory", "unknown fitted")
    tree.put("proc/meminfo", f"MemTotal: {547_608_330_240 // 1024} kB\n")
    assert broken(tree.check()) == {}
    tree.put("proc/meminfo", "")
    only(tree.check(), "memory", "unknown fitted, unknown usable")


def test_a_disk_is_too_small(tree: Tree) -> None:
    tree.put("sys/block/nvme4n1/size", f"{DISK_SECTORS - 1}\n")
    only(tree.check(), "storage", "31,999,999,999,488 bytes on 5 disks")


def test_disks_of_another_kind_do_not_count(tree: Tree) -> None:
    tree.remove("sys/block/nvme4n1")
    tree.disk("sda", tree.pci("0000:40:00.0", "0x010601"))
    tree.disk("nvme9n1", tree.pci("0000:41:00.0", "0x010802"), removable=True)
    only(tree.check(), "storage", "on 4 disks; 1 of another kind don't count")


def test_disks_behind_a_raid_controller(tree: Tree) -> None:
    tree.pci("0000:40:00.0", "0x010400")
    tree.disk("sda", tree.pci("0000:41:00.0", "0x010700", below="0000:40:00.0/"))
    only(tree.check(), "raid", "0000:40:00.0 with sda behind it")


def test_a_raid_controller_that_may_hide_disks(tree: Tree) -> None:
    tree.pci("0000:40:00.0", "0x010400")
    only(tree.check(), "raid", "no disk behind it", Status.WARN)
    tree.remove("sys/block/nvme4n1")
    assert {code: item.status for code, item in broken(tree.check()).items()} == {
        "storage": Status.FAIL, "raid": Status.FAIL,
    }  # fmt: skip


def test_pci_devices_that_can_not_be_read(tree: Tree) -> None:
    tree.put("sys/bus/pci/devices/0000:00:00.0/class", "nonsense")
    only(tree.check(), "raid", "can't be read")


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (None, "unknown"),
        (Health(critical_warning=4, spare=100, spare_threshold=10, used=3, media_errors=0), "0x04"),
        (Health(critical_warning=0, spare=9, spare_threshold=10, used=3, media_errors=0), "9 % spare"),
        (Health(critical_warning=0, spare=100, spare_threshold=10, used=100, media_errors=0), "100 %"),
        (Health(critical_warning=0, spare=100, spare_threshold=10, used=3, media_errors=7), "7 media errors"),
    ],
)
def test_a_disk_that_is_ill_or_silent_is_a_warning(tree: Tree, health: Health | None, words: str) -> None:
    tree.devices.health.pop("nvme2")
    if health is not None:
        tree.devices.health["nvme2"] = health
    only(tree.check(), "smart", words, Status.WARN)


def test_no_tpm_or_another_version(tree: Tree) -> None:
    tree.put("sys/class/tpm/tpm0/tpm_version_major", "1\n")
    only(tree.check(), "tpm", "TPM 1")
    tree.remove("sys/class/tpm/tpm0/tpm_version_major")
    only(tree.check(), "tpm", "unknown version")
    (tree.root / "sys/class/tpm/tpm0").rmdir()
    only(tree.check(), "tpm", "none")


def test_legacy_boot(tree: Tree) -> None:
    (tree.root / "sys/firmware/efi").rename(tree.root / "elsewhere")
    found = broken(tree.check())
    assert list(found) == ["uefi", "secure_boot"]  # without UEFI there is no Secure Boot either
    assert not passed(tree.check())


@pytest.mark.parametrize("name", ["SetupMode", "SecureBoot"])
@pytest.mark.parametrize("value", [None, b"", b"\2", b"\1\0"])
def test_a_variable_that_says_nothing(tree: Tree, name: str, value: bytes | None) -> None:
    tree.variable(name, value or b"")
    if value is None:
        tree.remove(f"sys/firmware/efi/efivars/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    only(tree.check(), "secure_boot", "unknown")


def test_secure_boot_with_our_keys(tree: Tree) -> None:
    tree.user_mode(OURS)
    assert broken(tree.check(own=(THEIRS, OURS))) == {}


def test_secure_boot_with_keys_that_nobody_named(tree: Tree) -> None:
    tree.user_mode(OURS)
    only(tree.check(), "secure_boot", "may not be ours")
    assert "--secure-boot-certificate" in (broken(tree.check())["secure_boot"].advice or "")


@pytest.mark.parametrize("keys", [(), (THEIRS,), (OURS, THEIRS)])
def test_secure_boot_with_keys_of_others(tree: Tree, keys: tuple[bytes, ...]) -> None:
    tree.user_mode(*keys)
    only(tree.check(own=(OURS,)), "secure_boot", "keys of others")


def test_secure_boot_with_a_key_that_can_not_be_read(tree: Tree) -> None:
    tree.user_mode(OURS)
    tree.variable("PK", signature_list(OURS)[:-1])
    only(tree.check(own=(OURS,)), "secure_boot", "PK can't be read")


def test_secure_boot_with_our_keys_and_switched_off(tree: Tree) -> None:
    tree.user_mode(OURS, enforced=False)
    only(tree.check(own=(OURS,)), "secure_boot", "switched off")


@pytest.mark.parametrize("speed", [None, 1000])
def test_a_port_is_slow_or_silent(tree: Tree, speed: int | None) -> None:
    tree.devices.speeds.pop("eth1")
    tree.put("sys/class/net/eth1/speed", f"{speed or -1}\n")
    only(tree.check(), "network", f"eth1 {speed or '?'}")
    tree.put("sys/class/net/eth1/speed", "10000\n")  # the link's own speed will do
    assert broken(tree.check()) == {}
    tree.put("sys/class/net/eth1/speed", "4294967295\n")  # an older kernel's "unknown"
    only(tree.check(), "network", "eth1 ?")


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        *((f"AMD EPYC {name} 64-Core Processor", True) for name in (
            "7203P", "7303", "7313", "7343", "7373X", "73F3", "7713P", "7773X", "8324P", "8534PN", "9124",
            "9354P", "9474F", "9654", "9684X", "9754S", "9965", "9575F")),
        *((f"AMD EPYC {name} 64-Core Processor", False) for name in ("7302", "7702P", "7F72", "7551", "7H12")),
        ("Intel(R) Xeon(R) Platinum 9004 AMD EPYC 7313 x", False),
    ],
)  # fmt: skip
def test_the_models_of_gen_2(tree: Tree, model: str, fits: bool) -> None:
    tree.cpu(model=model, sockets=1)
    assert list(broken(tree.check("gen2"))) == ([] if fits else ["cpu.model"])


def test_gen_2_without_sev_snp(tree: Tree) -> None:
    tree.cpu(model="AMD EPYC 7313 16-Core Processor", flags="svm sev")
    only(tree.check("gen2"), "cpu.flags", "missing sev_snp")


def test_a_virtual_machine_is_fit_for_development(tree: Tree) -> None:
    for n in range(5):
        tree.remove(f"sys/block/nvme{n}n1")
    tree.remove("sys/class/net/eth1")
    tree.devices = FakeDevices(speeds={}, health={})
    tree.cpu(model="QEMU Virtual CPU version 2.5+", sockets=1, threads=1, flags="")
    tree.memory(dimms=0, managed_kib=1_000_000)
    tree.disk("vda", tree.pci("0000:40:00.0", "0x010000"), sectors=1 << 22)
    assert broken(tree.check("dev")) == {}


def test_nothing_at_all_is_fit_for_nothing(tmp_path: Path) -> None:
    made = Tree(tmp_path, FakeDevices(speeds={}, health={})).check()
    assert {item.code for item in made if item.status is Status.PASS} == set()


def test_the_real_machine_of_the_kind() -> None:
    """A Dell R7525 with two EPYC 7302, as its firmware describes it: it must fit gen1's figures."""
    profile = load_profile("gen1")
    for path in vectors("dmi").iterdir():
        text = path.read_text(errors="replace")
        if "PowerEdge R7525" in text:
            sizes = [int(size) for size in re.findall(r"^\s+Size: (\d+) GB$", text, re.M)]
            models = re.findall(r"Version: (AMD EPYC .*)", text)
            break
    else:
        pytest.fail("no PowerEdge R7525 among the tables")
    assert sum(sizes) * GIB >= profile.memory_bytes
    assert len(models) == profile.cpu_sockets
    assert all(fnmatchcase(f"{model} ", profile.cpu_models[0]) for model in models)


def test_the_registrar_asks_for_the_same_figures() -> None:
    text = resources.files("provisioning").joinpath("profiles/gen1.toml").read_text("utf-8")
    theirs, ours = tomllib.loads(text), load_profile("gen1")
    assert [theirs["cpu"][key] for key in ("min_sockets", "min_threads", "flags")] == [
        ours.cpu_sockets, ours.cpu_threads, list(ours.cpu_flags),
    ]  # fmt: skip
    assert [item.rstrip(" *") for item in ours.cpu_models] == theirs["cpu"]["models"]
    assert (theirs["memory"]["min_bytes"], theirs["disks"]["min_total_bytes"]) == (
        ours.memory_bytes, ours.storage_bytes,
    )  # fmt: skip


def packaged(name: str) -> str:
    return resources.files("nodeos.preflight").joinpath(f"profiles/{name}.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("min_ports = 2", "min_ports = 2\nmore = 1", r"x\.network: unknown field: more"),
        ('name = "gen1"', 'name = "gen1"\nmore = 1', "x: unknown field: more"),
        ("min_ports = 2", "", r"x\.network\.min_ports: missing"),
        ("min_sockets = 2", 'min_sockets = "2"', r"x\.cpu\.min_sockets: expected a whole number"),
        ("min_bytes = 547608330240", "min_bytes = -1", r"x\.memory\.min_bytes: -1 is not between"),
        ('"sev"]', '"sve"]', r"x\.cpu\.flags\[1\]: 'sve' is none of"),
        ('["nvme"]', '["nvm"]', r"x\.storage\.transports\[0\]: 'nvm' is none of"),
        ("tpm_major = 2", "tpm_major = 1", r"x\.firmware\.tpm_major: 1 is not between"),
        ("[cpu]", "[cpu", "x: not TOML"),
    ],
)
def test_a_wrong_profile(old: str, new: str, words: str) -> None:
    text = packaged("gen1")
    assert old in text
    with pytest.raises(ParseError, match=words):
        parse_profile(text.replace(old, new), "x")


def test_profiles_by_name_and_by_file(tmp_path: Path) -> None:
    assert [load_profile(name).name for name in NAMES] == list(NAMES)
    own = tmp_path / "own.toml"
    own.write_text(packaged("gen1").replace("min_ports = 2", "min_ports = 4"))
    assert load_profile(str(own)).ports == 4
    with pytest.raises(UsageError, match="no profile or file 'gen9'"):
        load_profile("gen9")
    own.write_bytes(b"\xff")
    with pytest.raises(ParseError, match=r"own\.toml: not UTF-8"):
        load_profile(str(own))


def test_the_fastest_link_mode() -> None:
    assert fastest(0) is None
    assert fastest(1 << 13 | 1 << 6) is None  # pause and autonegotiation are no speeds
    assert fastest(0b101111) == 1000
    assert fastest(1 << 12 | 0b101111) == 10_000
    assert fastest(1 << 31 | 1 << 12) == 25_000
    assert fastest(1 << 66) == 200_000


def test_the_health_log() -> None:
    log = bytearray(512)
    assert parse_health(bytes(log)) is None
    assert parse_health(b"\1" * 511) is None
    log[0], log[3], log[4], log[5], log[160], log[161] = 1, 90, 10, 7, 2, 1
    assert parse_health(bytes(log)) == Health(
        critical_warning=1, spare=90, spare_threshold=10, used=7, media_errors=258
    )


def test_the_kernel_answers_for_what_is_not_there_with_nothing() -> None:
    kernel = devices.KernelDevices()
    assert kernel.port_speed("nothing0") is None
    assert kernel.port_speed("lo") is None
    assert kernel.disk_health("nvme999") is None


@pytest.mark.parametrize(("own", "code"), [(True, 0), (False, 3)])
def test_the_command(  # noqa: PLR0917 - fixtures
    tree: Tree,
    own: bool,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    from image.keys import generate

    pem = generate(tmp_path / "keys").public_file("PK")
    tree.user_mode(load_pem_x509_certificate(pem.read_bytes()).public_bytes(Encoding.DER))
    where = Sources(proc=tree.root / "proc", sys=tree.root / "sys")
    found = machine.read_facts(where, tree.devices)
    monkeypatch.setattr(machine, "read_facts", lambda *_: found)
    words = ["preflight", "--profile", "gen1", *(("--secure-boot-certificate", str(pem)) if own else ())]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--json"])
    assert done.value.code == code
    value = json.loads(capsys.readouterr().out)
    assert (value["profile"], value["passed"]) == ("gen1", own)
    assert [item["code"] for item in value["checks"] if item["status"] == "fail"] == (
        [] if own else ["secure_boot"]
    )
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == code
    out = capsys.readouterr().out
    assert out.endswith("this machine is fit\n" if own else "this machine is not fit: secure_boot\n")


def test_the_command_refuses_what_is_no_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("nothing")
    with pytest.raises(SystemExit) as done:
        cli.main(["preflight", "--profile", "gen1", "--secure-boot-certificate", str(tmp_path / "x")])
    assert done.value.code == 2
    assert "no certificate in PEM" in capsys.readouterr().err
