"""The installer's decisions and its recipe, with stand-ins for the machine."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeos.core.erase import Challenge, DiskIdentity, EraseToken
from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.installation import Installation, Verdict
from nodeos.core.site import Network, SignedSite, SiteConfig
from nodeos.flash.disks import Candidate, Device, Kind, Partition
from nodeos.flash.writer import Report
from nodeos.installer import boot_entry, decide, medium, program, result
from nodeos.installer.boot_entry import Esp
from nodeos.installer.target import Installed
from nodeos.preflight.checks import Check, Status
from tests.support.sites import SITE

GIB = 1 << 30
ESP = Esp(number=1, uuid=uuid.UUID(int=7), start=2048, size=2097152)
TOKEN = EraseToken(document=b"{}", public_key=b"key", signature=b"signature").to_bytes()


def disk(
    name: str, *, size: int = 100 * GIB, state: str | None = decide.BLANK, serial: str = "", bus: str = "nvme",
    removable: bool = False, refusals: tuple[Finding, ...] = (), label: str = "", kind: Kind = Kind.DISK,
) -> decide.Surveyed:  # fmt: skip
    parts = (Partition(name=f"{name}1", number="8:1", start=0, size=1, label=label),) if label else ()
    device = Device(
        name=name, number="8:0", size=size, serial=serial or name.upper(), bus=bus, removable=removable,
        partitions=parts, kind=kind,
    )  # fmt: skip
    return decide.Surveyed(candidate=Candidate(device=device, refusals=refusals), state=state)


BUSY = (Finding(code="disk.mounted", message="it is mounted (/x)"),)


# Which disk.


def test_largest_blank_disk() -> None:
    disks = [disk("a"), disk("b", size=200 * GIB), disk("c", size=300 * GIB, state=decide.DATA)]
    assert decide.choose(disks, None).path == "/dev/b"
    assert decide.choose(disks[:1] + disks[2:], None).path == "/dev/a"


def test_equal_disks_by_name() -> None:
    assert decide.choose([disk("b"), disk("a")], None).path == "/dev/a"


def test_unfinished_installation_goes_on() -> None:
    disks = [
        disk("a", size=200 * GIB),
        disk("b", state=decide.UNFINISHED),
        disk("c", state=decide.DATA, label="nodeos-state"),
    ]
    assert decide.choose(disks, None).path == "/dev/b"


def test_installed_system_is_replaced_and_not_joined() -> None:
    """A second system on another disk would leave it to the firmware which of them is started."""
    disks = [disk("a", size=200 * GIB), disk("b", state=decide.DATA, label="nodeos-state")]
    assert decide.choose(disks, None).path == "/dev/b"


def test_disk_with_data_only_where_there_is_no_other() -> None:
    assert decide.choose([disk("a", state=decide.DATA)], None).path == "/dev/a"


@pytest.mark.parametrize(
    "unfit",
    [
        disk("a", removable=True), disk("a", bus="usb"), disk("a", refusals=BUSY), disk("a", kind=Kind.LOOP),
        disk("a", state=None),
    ],
)  # fmt: skip
def test_unfit_disks_are_never_chosen(unfit: decide.Surveyed) -> None:
    assert decide.choose([unfit, disk("z", size=GIB)], None).path == "/dev/z"
    with pytest.raises(RefusedError) as caught:
        decide.choose([unfit], None)
    assert [item.code for item in caught.value.findings] == ["disk.unfit"]


def test_no_disk() -> None:
    with pytest.raises(RefusedError) as caught:
        decide.choose([], None)
    assert [item.code for item in caught.value.findings] == ["disk.none"]


def test_named_disk() -> None:
    disks = [disk("a", size=200 * GIB), disk("b", serial="S1", bus="usb", removable=True)]
    assert decide.choose(disks, "S1").path == "/dev/b"


@pytest.mark.parametrize("disks", [[], [disk("a")], [disk("a", serial="S1"), disk("b", serial="S1")]])
def test_named_disk_that_is_not_there(disks: list[decide.Surveyed]) -> None:
    with pytest.raises(RefusedError) as caught:
        decide.choose(disks, "S1")
    assert [item.code for item in caught.value.findings] == ["disk.serial"]


def test_named_disk_with_something_against_it() -> None:
    with pytest.raises(RefusedError) as caught:
        decide.choose([disk("a", serial="S1", refusals=BUSY), disk("b")], "S1")
    assert [item.code for item in caught.value.findings] == ["disk.mounted"]


# Which profile.


def test_profiles() -> None:
    assert decide.profile_for("type1.1") == "gen1"
    assert decide.profile_for("type3.1") == "gen2"
    with pytest.raises(RefusedError) as caught:
        decide.profile_for("type99")
    assert [item.code for item in caught.value.findings] == ["profile.unknown"]


def check(code: str, status: Status) -> Check:
    advice = None if status is Status.PASS else "mend it"
    return Check(code=code, status=status, found="f", needed="n", advice=advice)


def test_every_failed_check_is_told() -> None:
    checks = (check("tpm", Status.FAIL), check("cpu.model", Status.PASS), check("memory", Status.FAIL))
    with pytest.raises(RefusedError) as caught:
        decide.check_preflight("gen1", checks)
    assert [item.code for item in caught.value.findings] == ["preflight.tpm", "preflight.memory"]
    decide.check_preflight("gen1", (check("smart", Status.WARN), check("tpm", Status.PASS)))


# The boot entry.


def test_load_option() -> None:
    option = boot_entry.load_option(ESP)
    attributes, length = struct.unpack_from("<IH", option)
    name = "nodeos".encode("utf-16-le") + b"\0\0"
    assert attributes == 1
    assert option[6 : 6 + len(name)] == name
    path = option[6 + len(name) :]
    assert len(path) == length
    drive = b"\x04\x01\x2a\x00" + struct.pack("<IQQ", 1, 2048, 2097152) + ESP.uuid.bytes_le + b"\x02\x02"
    assert path.startswith(drive)
    file = "\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le") + b"\0\0"
    assert path[len(drive) :] == b"\x04\x04" + struct.pack("<H", 4 + len(file)) + file + b"\x7f\xff\x04\x00"


def test_place() -> None:
    assert boot_entry.place(b"new", {0: b"a", 1: b"b", 3: b"c"}, (1, 0)) == (2, (2, 1, 0))
    assert boot_entry.place(b"b", {0: b"a", 1: b"b"}, (0, 1)) == (1, (1, 0))
    assert boot_entry.place(b"x", {}, ()) == (0, (0,))


def test_variables_are_written_once(tmp_path: Path) -> None:
    firmware = boot_entry.Firmware(tmp_path)
    other = tmp_path / f"Boot0000-{boot_entry.GLOBAL}"
    other.write_bytes(b"\7\0\0\0somebody's")
    assert firmware.start_next(ESP) == "Boot0001"
    written = {path.name.partition("-")[0]: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {
        "Boot0000": b"\7\0\0\0somebody's",
        "Boot0001": b"\7\0\0\0" + boot_entry.load_option(ESP),
        "BootOrder": b"\7\0\0\0\1\0",
        "BootNext": b"\7\0\0\0\1\0",
    }
    assert firmware.start_next(ESP) == "Boot0001"


def test_firmware_without_variables(tmp_path: Path) -> None:
    with pytest.raises(NodeosError, match="no boot entry"):
        boot_entry.Firmware(tmp_path / "absent").start_next(ESP)


# The recipe.


@dataclass
class FakeMedium:
    source: str = "disk"
    removable: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: {"site.json": b"{}", "site.sig": b"s"})
    failures: list[NodeosError] = field(default_factory=list)

    def read(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        if self.failures:
            raise self.failures.pop(0)
        return {name: self.files[name] for name in names if name in self.files}


@dataclass
class FakeDisks:
    found: tuple[decide.Surveyed, ...] = (disk("a"),)
    tokens: list[EraseToken | None] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def survey(self) -> tuple[decide.Surveyed, ...]:
        return self.found

    def challenge(self, path: str) -> tuple[Challenge, tuple[str, ...]]:
        identity = DiskIdentity(serial="S1", model="m", size=1)
        return Challenge(nonce=b"\xaa" * 16, disk=identity), ("ext4",)

    def install(self, path: str, token: EraseToken | None, progress: Report) -> Installed:
        self.tokens.append(token)
        if self.failures:
            raise self.failures.pop(0)
        progress("write", 0, 100)
        progress("write", 5, 100)
        progress("write", 100, 100)
        return Installed(document={}, serial="A", esp=ESP)


@dataclass
class World:
    """A machine in the installer, and what came of it."""

    directory: Path
    medium: FakeMedium = field(default_factory=FakeMedium)
    disks: FakeDisks = field(default_factory=FakeDisks)
    site: SiteConfig = field(default_factory=lambda: replace(SITE, network=None))
    checks: tuple[Check, ...] = (check("tpm", Status.PASS),)
    site_error: NodeosError | None = None
    firmware_error: NodeosError | None = None
    told: list[tuple[str, str]] = field(default_factory=list)
    reported: list[Installation] = field(default_factory=list)
    pauses: int = 0
    on_pause: dict[int, bytes] = field(default_factory=dict)

    def tell(self, step: str, message: str) -> None:
        self.told.append((step, message))

    def steps(self) -> list[str]:
        return [step for step, _ in self.told]

    def read_site(self, directory: Path) -> tuple[SignedSite, SiteConfig]:
        assert (directory / "site.json").read_bytes() == b"{}"
        if self.site_error is not None:
            raise self.site_error
        return SignedSite(document=b"{}", signature=b"s"), self.site

    def start_next(self, esp: Esp) -> str:
        if self.firmware_error is not None:
            raise self.firmware_error
        return "Boot0001"

    def report(self, site: SiteConfig, installation: Installation) -> bool:
        self.reported.append(installation)
        return True

    def sleep(self, _: float) -> None:
        self.pauses += 1
        assert self.pauses < 20, "it waits for ever"
        if self.pauses in self.on_pause:
            self.medium.files["erase.json"] = self.on_pause[self.pauses]

    def run(self) -> bool:
        networks: list[Network] = []
        parts = program.Parts(
            release=program.Release(version="0.1.0", root_hash=b"\xab" * 32),
            find_medium=lambda: self.medium,
            read_site=self.read_site,
            site_directory=self.directory / "site",
            apply_network=networks.append,
            preflight=lambda _: self.checks,
            open_disks=lambda _, __: self.disks,
            start_next=self.start_next,
            machine=lambda: "cd" * 32,
            report=self.report,
            picture=lambda item: item.code,
            sleep=self.sleep,
            clock=lambda: 0.0,
        )
        taken_out = program.run_installer(parts, self)
        assert networks == ([] if self.site.network is None else [self.site.network])
        return taken_out


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(directory=tmp_path)


def test_installed(world: World) -> None:
    assert world.run() is True
    assert world.disks.tokens == [None]
    (told,) = world.reported
    assert (told.verdict, told.disk, told.machine, told.source) == (Verdict.INSTALLED, "A", "cd" * 32, "disk")
    assert told.root_hash == b"\xab" * 32
    assert [message for step, message in world.told if step == "write"] == [
        "writing: 0 % of 0 MiB", "writing: 100 % of 0 MiB",
    ]  # fmt: skip
    assert "NODEOS-INSTALL/1/INSTALLED/0.1.0/" in dict(world.told)["code"]


def test_over_http_nothing_is_taken_out(world: World) -> None:
    world.medium = FakeMedium(source="http://192.0.2.7/", removable=False)
    assert world.run() is False


def test_static_network(world: World) -> None:
    world.site = SITE
    world.run()
    assert "network" in world.steps()


def test_waits_for_the_network(world: World) -> None:
    world.medium.failures = [UnreachableError("no route"), UnreachableError("no route")]
    world.run()
    assert world.pauses == 2
    assert world.steps().count("medium") == 1, "told once"


def refused(world: World, code: str) -> Installation | None:
    """The refusal came before anything was written."""
    with pytest.raises(RefusedError) as caught:
        world.run()
    assert code in [item.code for item in caught.value.findings]
    assert world.disks.tokens == []
    assert "refused" in world.steps()
    return world.reported[0] if world.reported else None


def test_unsigned_site_is_refused_and_nobody_told(world: World) -> None:
    world.site_error = RefusedError("refused", (Finding(code="site.signature", message="not ours"),))
    assert refused(world, "site.signature") is None


def test_medium_without_site(world: World) -> None:
    del world.medium.files["site.sig"]
    with pytest.raises(UsageError, match=r"no site\.sig"):
        world.run()
    assert world.disks.tokens == []
    assert world.reported == []


def test_failed_preflight_stops_it(world: World) -> None:
    world.checks = (check("tpm", Status.FAIL),)
    told = refused(world, "preflight.tpm")
    assert told is not None
    assert (told.verdict, [item.code for item in told.findings]) == (Verdict.REFUSED, ["preflight.tpm"])


def test_unknown_reward_type_stops_it(world: World) -> None:
    world.site = replace(world.site, node_reward_type="type99")
    refused(world, "profile.unknown")


def test_no_disk_stops_it(world: World) -> None:
    world.disks.found = (disk("a", removable=True),)
    refused(world, "disk.unfit")


def test_failure_is_reported_as_one(world: World) -> None:
    world.disks.failures = [NodeosError("writing failed at byte 7")]
    with pytest.raises(NodeosError, match="byte 7"):
        world.run()
    assert world.reported[0].verdict is Verdict.FAILED


def test_fault_of_the_program_is_told(world: World) -> None:
    world.disks.failures = [ZeroDivisionError("secret")]
    with pytest.raises(ZeroDivisionError):
        world.run()
    assert (world.reported[0].verdict, world.reported[0].message) == (Verdict.FAILED, "ZeroDivisionError")


def test_firmware_without_entries_is_no_failure(world: World) -> None:
    world.firmware_error = NodeosError("the firmware took no boot entry")
    world.run()
    assert world.reported[0].verdict is Verdict.INSTALLED


def test_data_waits_for_the_token(world: World) -> None:
    world.disks.found = (disk("a", state=decide.DATA),)
    world.on_pause = {3: TOKEN}
    world.run()
    assert [token is not None for token in world.disks.tokens] == [True], "never without a token"
    (words,) = [message for step, message in world.told if step == "erase"]
    assert "aa" * 16 in words
    assert "ext4" in words


def test_bad_tokens_are_told_and_waited_past(world: World) -> None:
    world.disks.found = (disk("a", state=decide.DATA),)
    other = EraseToken(document=b"{2}", public_key=b"key", signature=b"signature").to_bytes()
    world.on_pause = {1: b"no token", 3: TOKEN, 5: other}
    world.disks.failures = [RefusedError("refused", (Finding(code="erase.nonce", message="another"),))]
    world.run()
    assert len(world.disks.tokens) == 2
    erase = [message for step, message in world.told if step == "erase"]
    assert len(erase) == 3, "each bad one is told once"


def test_other_refusals_end_the_waiting(world: World) -> None:
    world.disks.found = (disk("a", state=decide.DATA),)
    world.on_pause = {1: TOKEN}
    world.disks.failures = [RefusedError("refused", (Finding(code="release.sha256", message="damaged"),))]
    with pytest.raises(RefusedError):
        world.run()


def test_stick_that_is_out_is_waited_for(world: World) -> None:
    world.disks.found = (disk("a", state=decide.DATA),)
    world.on_pause = {2: TOKEN}
    medium_read = world.medium.read

    def read(names: tuple[str, ...]) -> Mapping[str, bytes]:
        if names == ("erase.json",) and world.pauses == 1:
            raise UnreachableError("the stick is out")
        return medium_read(names)

    world.medium.read = read  # type: ignore[method-assign]
    world.run()
    assert len(world.disks.tokens) == 1


# What the machine was started from.


def test_loader_partition(tmp_path: Path) -> None:
    variable = tmp_path / "LoaderDevicePartUUID"
    name = "6B1C7F3E-0D5A-4C39-9F2E-5A1F0C9D7E11"
    variable.write_bytes(b"\6\0\0\0" + name.encode("utf-16-le") + b"\0\0")
    (tmp_path / "sr0").touch()
    found = medium.find_medium(tmp_path / "none", variable, tmp_path)
    assert isinstance(found, medium.BlockMedium)
    assert found._devices == (tmp_path / "disk/by-partuuid" / name.lower(),)
    for wrong in (b"", b"\6\0\0\0" + "../../sda1".encode("utf-16-le")):
        variable.write_bytes(wrong)
        found = medium.find_medium(tmp_path / "none", variable, tmp_path)
        assert isinstance(found, medium.BlockMedium)
        assert (found.source, found._devices) == ("disc", (tmp_path / "sr0",))
    (tmp_path / "sr0").unlink()
    with pytest.raises(NodeosError, match="can't be told"):
        medium.find_medium(tmp_path / "none", variable, tmp_path)


def test_picture() -> None:
    told = Installation(
        verdict=Verdict.INSTALLED, data_center="zh1", machine="cd" * 32, release="0.1.0", root_hash=bytes(32),
        source="disk", disk="S4YPNF0R123456", message="done",
    )  # fmt: skip
    lines = result.picture(told).splitlines()
    assert len(lines) <= 25, "a text screen has 25 lines"
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 80
