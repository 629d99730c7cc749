"""Systems of an attacker who holds the machine, its disks and every file of the release, and wants the state.

Each boots the release's own kernel and initrd with a service that does what an attacker would: bring PCR 11 to
the value that the release's signature allows, then ask the TPM for the key of the state volume. What came of it is
one JSON object on a virtio port.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from image.measure import MEASURED_SECTIONS, Uki, esp_of
from image.mkosi import command as mkosi_command
from nodeos.core.gpt import Partition
from nodeos.core.release import BootPhase
from nodeos.core.run import find_tool, run
from nodeos.install.esp import write_files
from tests.support.cpio import archive

_SERVICE = """[Unit]
DefaultDependencies=no
Wants=systemd-udevd.service systemd-udev-trigger.service dev-tpmrm0.device
Requires=target.mount
After=systemd-udevd.service systemd-udev-trigger.service dev-tpmrm0.device target.mount
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
RootDirectory=/target
MountAPIVFS=no
BindPaths=/dev /run /sys /proc
BindReadOnlyPaths=/attack:/run/attack
ExecStart=/usr/bin/python3 -IS /run/attack/run.py
StandardOutput=journal+console
StandardError=journal+console
"""
_MOUNT = """[Unit]
DefaultDependencies=no
[Mount]
What=/dev/disk/by-partuuid/{root}
Where=/target
Type=erofs
Options=ro
"""
_TARGET = """[Unit]
DefaultDependencies=no
Requires=attack.service
After=attack.service
"""
_SCRIPT = Path(__file__).with_name("attack_run.py")


def pcr_extend_command(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend with an empty password, SHA-256 bank (TPM 2.0 Part 3, section 22.2)."""
    authorisation = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", pcr, len(authorisation)) + authorisation
    body += struct.pack(">IH", 1, 0x000B) + digest
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x00000182) + body


def replay_of_pcr11(uki: Uki) -> list[bytes]:
    """The digests that a measured boot of ``uki`` extends into PCR 11 until the end of ``enter-initrd``."""
    digests = []
    for name in MEASURED_SECTIONS:
        if name in uki.sections:
            digests.append(hashlib.sha256(name.encode() + b"\0").digest())
            digests.append(hashlib.sha256(uki.sections[name]).digest())
    digests.append(hashlib.sha256(BootPhase.ENTER_INITRD.encode()).digest())
    return digests


def initrd(uki: Uki, *, extend: list[bytes]) -> bytes:
    """The release's initrd with the attack laid over it."""
    files = {
        "attack/run.py": (0o644, _SCRIPT.read_bytes()),
        "attack/signature.json": (0o644, uki.sections[".pcrsig"].rstrip(b"\0")),
        "usr/lib/systemd/system/attack.service": (0o644, _SERVICE.encode()),
        "usr/lib/systemd/system/target.mount": (0o644, _MOUNT.format(root=_root(uki)).encode()),
        "usr/lib/systemd/system/attack.target": (0o644, _TARGET.encode()),
    }
    for number, digest in enumerate(extend):
        files[f"attack/extend.{number:03}"] = (0o644, pcr_extend_command(11, digest))
    original = uki.sections[".initrd"]
    return original + bytes(-len(original) % 4) + archive(files)


def _root(uki: Uki) -> uuid.UUID:
    """The root partition's UUID: the first half of the root hash."""
    return uuid.UUID(bytes=uki.root_hash[:16])


COMMAND_LINE = "console=ttyS0,115200 quiet rd.systemd.unit=attack.target panic=10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the attacker's system reported."""

    device: str
    opened: bool
    errors: tuple[str, ...]
    pcr7: bytes
    pcr11: bytes

    @classmethod
    def read(cls, path: Path) -> Verdict:
        """Raises ValueError if the system reported nothing: then nothing was tried."""
        value = json.loads(path.read_text())
        return cls(
            device=value["device"],
            opened=value["opened"],
            errors=tuple(value["errors"]),
            pcr7=bytes.fromhex(value["pcr7"]),
            pcr11=bytes.fromhex(value["pcr11"]),
        )


def signed_uki(uki: Uki, *, work: Path, scratch: Path, key: Path, certificate: Path) -> Path:
    """A UKI with the attack in its initrd, signed with ``key``: another system that the firmware lets boot."""
    scratch.mkdir(parents=True, exist_ok=True)
    for name, data in {
        "linux": uki.sections[".linux"],
        "initrd": initrd(uki, extend=[]),
        "osrel": uki.sections[".osrel"],
    }.items():
        (scratch / name).write_bytes(data)
    for name, source in (("key", key), ("certificate", certificate)):
        shutil.copyfile(source, scratch / name)
    ukify = [
        "/usr/bin/python3", "-I", "/usr/bin/ukify", "build", f"--linux={scratch}/linux",
        f"--initrd={scratch}/initrd", f"--os-release=@{scratch}/osrel", f"--cmdline={COMMAND_LINE}",
        "--efi-arch=x64", "--stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "--no-sign-kernel",
        f"--output={scratch}/attack.efi", "--signtool=systemd-sbsign",
        f"--secureboot-private-key={scratch}/key", f"--secureboot-certificate={scratch}/certificate",
    ]  # fmt: skip
    _in_tools(work, ukify, what="making the attacker's UKI")
    return scratch / "attack.efi"


def signed_kernel(uki: Uki, *, work: Path, scratch: Path, key: Path, certificate: Path) -> Path:
    """The release's inner kernel signed by itself, as our build never does."""
    scratch.mkdir(parents=True, exist_ok=True)
    for name, source in (("key", key), ("certificate", certificate)):
        shutil.copyfile(source, scratch / name)
    (scratch / "linux").write_bytes(uki.sections[".linux"])
    sign = [
        "/usr/lib/systemd/systemd-sbsign", "sign", "--private-key", f"{scratch}/key",
        "--certificate", f"{scratch}/certificate", f"{scratch}/linux", "--output", f"{scratch}/linux.efi",
    ]  # fmt: skip
    _in_tools(work, sign, what="signing the inner kernel")
    return scratch / "linux.efi"


def _in_tools(work: Path, command: Sequence[str], *, what: str) -> None:
    """Run a program of the tools tree in mkosi's sandbox."""
    tools = work / "mkosi/tools"
    # As one word: mkosi takes a "build" among its arguments for its own verb.
    sandbox = ["--directory=", f"--tools-tree={tools}", "sandbox", "/bin/sh", "-c", shlex.join(command)]
    run([*mkosi_command(work / "tools"), *sandbox], what=what, timeout=300)


def plant_entry(disk: Path, kernel: Path, ramdisk: Path) -> None:
    """Let the boot loader start a kernel and an initrd of the attacker's choice instead of the UKI."""
    remove_uki(disk)
    entry = f"title attack\nlinux /kernel.efi\ninitrd /initrd\noptions {COMMAND_LINE}\n"
    planted = {
        "kernel.efi": kernel.read_bytes(),
        "initrd": ramdisk.read_bytes(),
        "loader/entries/attack.conf": entry.encode(),
    }
    write_files(esp_of(disk), planted)


def replace_uki(disk: Path, attack: Path) -> None:
    """Put the attacker's UKI in the place of the release's."""
    remove_uki(disk)
    mcopy = find_tool("mcopy", package="mtools")
    esp = esp_of(disk)
    run([mcopy, "-i", esp, attack, "::EFI/Linux/attack.efi"], what="planting the attacker's UKI")


def remove_uki(disk: Path) -> None:
    """Take the release's UKI off the EFI system partition."""
    esp = esp_of(disk)
    mdir, mdel = (find_tool(name, package="mtools") for name in ("mdir", "mdel"))
    listed = run([mdir, "-b", "-i", esp, "::EFI/Linux"], what="listing the UKIs").decode()
    for name in listed.split("\n"):
        if name.strip().endswith(".efi"):
            run([mdel, "-i", esp, name.strip()], what="removing the release's UKI")


def put_file_system(disk: Path, partition: Partition, *, label: str) -> None:
    """A file system on a partition, as on a disk that somebody used before."""
    mformat = find_tool("mformat", package="mtools")
    run([mformat, "-i", f"{disk}@@{partition.start}", "-F", "-v", label, "-T", str(partition.size // 512),
         "-h", "255", "-s", "63", "::"], what="making a file system")  # fmt: skip
