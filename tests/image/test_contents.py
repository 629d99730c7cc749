"""What is in the image, and above all what isn't."""

from __future__ import annotations

import configparser
import json
import os
import stat
from pathlib import Path

import pytest

from image import cpio, pe
from image.measure import Uki, pcr11, signers
from image.unsigned import Rollback, Unsigned
from nodeos.core.release import Variant
from nodeos.core.run import find_tool, run
from tests.image.conftest import SOURCE, WORK, Image, build

pytestmark = pytest.mark.image
TOOLS = WORK / "mkosi/tools"
KEYS = ("site.pub.pem", "release.pub.pem", "verity.crt")


def test_manifest_describes_the_files(release_image: Image) -> None:
    assert release_image.built.build.variant is Variant.RELEASE
    assert Unsigned.read(release_image.built.directory) == release_image.built


def test_uki_holds_the_root_hash_and_the_policy_key_and_no_signature(release_image: Image) -> None:
    uki = Uki.read(release_image.built.uki)
    assert uki.root_hash == release_image.built.build.root_hash
    assert uki.sections[".pcrpkey"].rstrip(b"\0") == (release_image.keys / "pcr.pub.pem").read_bytes()
    assert ".pcrsig" not in uki.sections
    for path in (release_image.built.uki, release_image.built.bootloader):
        assert pe.signatures(path.read_bytes()) == []
    # Debian's signature on the kernel inside stays: its certificate is not enrolled.
    for certificate in signers(uki.sections[".linux"], ".linux"):
        assert "Debian" in certificate.issuer.rfc4514_string()


def test_hash_tree_belongs_to_the_root(release_image: Image) -> None:
    built = release_image.built
    program = find_tool("veritysetup", package="cryptsetup-bin")
    root_hash = built.build.root_hash.hex()
    run([program, "verify", built.root, built.verity, root_hash], what="verifying", timeout=300)
    # So that it starts from disks of 512-byte and of 4096-byte sectors.
    words = run([program, "dump", built.verity], what="reading the hash tree's superblock").decode().split()
    assert words.count("4096") == 2, words


def test_sizes(release_image: Image) -> None:
    """What a site downloads, and what fits into a slot, with room for what comes."""
    built = release_image.built
    assert built.root.stat().st_size + built.verity.stat().st_size + built.uki.stat().st_size < 150_000_000
    assert built.uki.stat().st_size < 40_000_000
    for path in (built.root, built.verity):
        assert path.stat().st_size % 4096 == 0


@pytest.mark.parametrize("name", KEYS)
def test_public_keys_are_the_builds_own(name: str, release_image: Image) -> None:
    assert (release_image.root / "usr/lib/nodeos" / name).read_bytes() == (
        release_image.keys / name
    ).read_bytes()


def test_security_version_is_inside(release_image: Image) -> None:
    inside = (release_image.root / "usr/lib/nodeos/release.toml").read_bytes()
    assert inside == (SOURCE / "image/release.toml").read_bytes()
    build_ = release_image.built.build
    assert Rollback.parse(inside) == Rollback(
        security_version=build_.security_version, rollback_floor=build_.rollback_floor
    )


@pytest.mark.parametrize(
    "program",
    [
        "usr/bin/python3", "usr/sbin/cryptsetup", "usr/sbin/mkfs.ext4", "usr/sbin/fsck.ext4", "usr/sbin/mkfs.vfat",
        "usr/bin/mcopy", "usr/sbin/nft", "usr/lib/systemd/systemd-sysupdate", "usr/lib/systemd/systemd-pull",
        "usr/lib/systemd/systemd-import", "usr/lib/systemd/systemd-bless-boot", "usr/bin/lsblk", "usr/sbin/blkid",
    ],
)  # fmt: skip
def test_what_the_services_run_is_there(program: str, release_image: Image) -> None:
    """With every library that it names."""
    path = release_image.root / program
    assert path.exists() or path.is_symlink(), program
    answer = run(
        [release_image.root / "usr/lib64/ld-linux-x86-64.so.2", "--inhibit-cache", "--library-path",
         f"{release_image.root}/usr/lib/x86_64-linux-gnu:{release_image.root}/usr/lib/x86_64-linux-gnu/systemd",
         "--list", path.resolve() if not path.is_symlink() else inside(release_image.root, path)],
        what="listing libraries",
    )  # fmt: skip
    assert b"not found" not in answer


def test_an_installer_can_write_names_on_an_esp(release_image: Image) -> None:
    """mtools converts names by the C library, which looks for the conversion in the image."""
    volume, name = release_image.root / "tmp/esp", "nodeos_1.2.3-long+3.efi"
    try:
        with volume.open("wb") as file:
            file.truncate(64 << 20)
        chroot: list[str | Path] = [find_tool("chroot", package="coreutils"), release_image.root]
        commands: tuple[list[str], ...] = (
            ["mkfs.vfat", "-F", "32", "/tmp/esp"],
            ["mmd", "-i", "/tmp/esp", "::EFI"],
            ["mcopy", "-i", "/tmp/esp", "/etc/os-release", f"::EFI/{name}"],
        )
        for words in commands:
            run([*chroot, *words], what=words[0])
        listed = run([*chroot, "mdir", "-b", "-i", "/tmp/esp", "::EFI"], what="mdir")
        assert listed.decode().strip() == f"::/EFI/{name}"
    finally:
        volume.unlink()


def inside(root: Path, path: Path) -> Path:
    """Where a link inside the image points, inside the image."""
    while path.is_symlink():
        target = path.readlink()
        path = root / str(target)[1:] if target.is_absolute() else path.parent / target
    return path


@pytest.mark.parametrize(
    "name",
    [
        "usr/bin/perl", "usr/bin/dpkg", "usr/bin/apt", "usr/bin/systemd-nspawn", "usr/bin/machinectl",
        "usr/lib/systemd/systemd-machined", "usr/lib/systemd/systemd-importd", "usr/lib/systemd/systemd-portabled",
        "usr/lib/systemd/boot", "usr/lib/systemd/system-generators/systemd-bless-boot-generator",
        "vmlinuz", "usr/lib/systemd/systemd-coredump",
    ],
)  # fmt: skip
def test_what_a_node_never_runs_is_not_there(name: str, release_image: Image) -> None:
    assert not (release_image.root / name).exists()


@pytest.mark.parametrize(
    "module",
    ["nft_connlimit", "nft_limit", "nft_ct", "nft_reject_inet", "nft_reject_ipv6", "nf_tables", "dm-crypt"],
)
def test_modules_of_the_root(module: str, release_image: Image) -> None:
    assert list((release_image.root / "usr/lib/modules").rglob(f"{module}.ko*"))


@pytest.mark.parametrize("module", ["loop", "erofs", "dm-mod", "dm-verity", "dm-crypt", "nvme", "tpm_crb"])
def test_modules_of_the_initrd(module: str, release_image: Image) -> None:
    uki = Uki.read(release_image.built.uki)
    names = {Path(path).name.split(".")[0] for path in cpio.files(uki.sections[".initrd"], tools=TOOLS)}
    built_in = next((release_image.root / "usr/lib/modules").glob("*/modules.builtin")).read_text()
    assert module in names or f"/{module}.ko" in built_in


def test_memory_is_never_written_to_a_disk(release_image: Image) -> None:
    """No swap, no core dumps, no hibernation, no other kernel by kexec."""
    words = release_image.built.build.kernel_command_line.split()
    assert {"systemd.swap=no", "systemd.import_credentials=no", "nohibernate"} <= set(words)
    library = release_image.root / "usr/lib"
    settings = dict(
        line.split("=", 1)
        for path in sorted((library / "sysctl.d").glob("*.conf"))
        for line in path.read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    settings = {name.strip(): value.strip() for name, value in settings.items()}
    assert settings["kernel.core_pattern"] == "|/bin/false"
    assert settings["kernel.kexec_load_disabled"] == "1"
    assert settings["fs.suid_dumpable"] == "0"
    manager = configparser.ConfigParser()
    manager.read(library / "systemd/system.conf.d/60-nodeos.conf")
    assert manager["Manager"]["DefaultLimitCORE"] == "0"
    for unit in ("systemd-hibernate.service", "systemd-suspend-then-hibernate.service", "swap.target"):
        assert str((release_image.root / "etc/systemd/system" / unit).readlink()) == "/dev/null"


@pytest.mark.parametrize("unit", ["systemd-sysext.service", "systemd-confext.service"])
def test_nothing_is_laid_over_the_verified_root(unit: str, release_image: Image) -> None:
    assert str((release_image.root / "etc/systemd/system" / unit).readlink()) == "/dev/null"


def test_no_unit_names_a_program_that_was_removed(release_image: Image) -> None:
    """A unit that starts at boot and fails hides what really fails."""
    root, missing = release_image.root, []
    for path in (root / "usr/lib/systemd/system").glob("*.service"):
        masked = root / "etc/systemd/system" / path.name
        if masked.is_symlink() and str(masked.readlink()) == "/dev/null":
            continue
        if path.is_symlink() or not path.is_file():
            continue
        for line in path.read_text().splitlines():
            words = line.removeprefix("ExecStart=").lstrip("-+!@:|").split()
            if line.startswith("ExecStart=/") and words and not os.path.lexists(f"{root}{words[0]}"):
                missing.append(path.name)
    # Debian's own, each with a condition on that program.
    assert set(missing) <= {"quotaon@.service", "quotaon-root.service", "systemd-quotacheck@.service",
                            "systemd-quotacheck-root.service", "rc-local.service"}  # fmt: skip


@pytest.mark.parametrize(
    "unit",
    [
        "getty@.service",
        "serial-getty@.service",
        "console-getty.service",
        "debug-shell.service",
        "getty.target",
    ],
)
def test_no_login_on_any_console(release_image: Image, unit: str) -> None:
    link = release_image.root / "etc/systemd/system" / unit
    assert str(link.readlink()) == "/dev/null"


def test_no_unit_is_made_of_what_the_command_line_or_a_file_says(release_image: Image) -> None:
    """Generators make units before anything is checked; these four find the root, the ESP and the TPM."""
    found = {path.name for path in (release_image.root / "usr/lib/systemd/system-generators").iterdir()}
    assert found == {f"systemd-{name}-generator" for name in ("fstab", "gpt-auto", "tpm2", "veritysetup")}


@pytest.mark.parametrize("unit", ["emergency.service", "rescue.service"])
def test_no_shell_where_the_system_cannot_start(release_image: Image, unit: str) -> None:
    text = (release_image.root / f"etc/systemd/system/{unit}.d/no-shell.conf").read_text()
    assert "ExecStart=\nExecStart=/usr/lib/nodeos/no-shell\n" in text
    assert (release_image.root / "usr/lib/nodeos/no-shell").stat().st_mode & stat.S_IXUSR


def test_nobody_can_log_in(release_image: Image) -> None:
    for line in (release_image.root / "etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        assert password[:1] in ("*", "!"), name


def test_no_remote_shell_compiler_or_package_manager(release_image: Image) -> None:
    names = {item["name"] for item in _packages(release_image.built)}
    unwanted = {"openssh-server", "dropbear-bin", "login", "gcc", "gcc-14", "python3-pip", "telnetd", "sudo"}
    assert names & unwanted == set()
    assert {"linux-image-amd64", "systemd", "systemd-cryptsetup", "python3-minimal"} <= names


def _packages(built: Unsigned) -> list[dict[str, str]]:
    packages: list[dict[str, str]] = json.loads(built.packages.read_text())["packages"]
    return packages


def test_the_projects_own_packages_are_inside_and_compiled(release_image: Image) -> None:
    library = release_image.root / "usr/lib/nodeos/python"
    for package in ("nodeos", "hsm", "replica"):
        assert (library / package / "__init__.py").is_file()
        assert list((library / package / "__pycache__").glob("__init__.cpython-313.pyc"))
    for dependency in ("cryptography", "tpm2_pytss", "wasmtime", "psutil"):
        assert (library / dependency).is_dir()
    # The builder and the registrar are not for a node.
    assert not (library / "image").exists()
    assert not (library / "provisioning").exists()


def test_os_release_names_the_release(release_image: Image) -> None:
    lines = (release_image.root / "usr/lib/os-release").read_text().splitlines()
    assert f"IMAGE_VERSION={release_image.built.build.release}" in [line.replace('"', "") for line in lines]


def test_no_private_key_is_inside(release_image: Image) -> None:
    for folder, _, names in os.walk(release_image.root):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink() and path.suffix in (".key", ".pem"):
                assert b"PRIVATE KEY" not in path.read_bytes(), path


def test_debug_variant_measures_differently(release_image: Image) -> None:
    debug = build(Variant.DEBUG)
    assert debug.build.variant is Variant.DEBUG
    assert debug.build.root_hash != release_image.built.build.root_hash
    values = [set(pcr11(Uki.read(built.uki)).values()) for built in (debug, release_image.built)]
    assert not values[0] & values[1]
