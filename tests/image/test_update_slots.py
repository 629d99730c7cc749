"""The transfer definitions of the image, in the hands of its own systemd-sysupdate, on a disk of the one layout.

systemd-sysupdate is the tools tree's, of the same Debian release as the image's. What differs from a node: the
disk is a loop device, and the ESP a directory.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeos.core import layout
from nodeos.core.errors import ToolError
from nodeos.core.gpt import Table
from nodeos.core.layout import SlotName
from nodeos.core.run import find_tool, run
from tests.support.update_machine import root_hash

pytestmark = pytest.mark.image

SOURCE = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("NODEOS_WORK", SOURCE / "build")) / "mkosi/tools"
SECTOR = 512
SCRIPT = r"""
set -e
mount --bind "$TOOLS" "$DIR/root"
mount -o remount,bind,ro "$DIR/root"
mount --rbind /dev "$DIR/root/dev"
mount --rbind /sys "$DIR/root/sys"
mount -t proc proc "$DIR/root/proc"
for name in run tmp var/tmp; do mount -t tmpfs tmpfs "$DIR/root/$name"; done
mount --bind "$DIR/os-release" "$DIR/root/usr/lib/os-release"
mount --bind "$DIR" "$DIR/root/media"
exec chroot "$DIR/root" \
    /usr/lib/systemd/systemd-sysupdate --definitions=/media/definitions --verify=no update "$VERSION"
"""


@dataclass
class Disk:
    """A disk with the version 1.0 in slot A, and its ESP."""

    directory: Path
    loop: str

    @property
    def file(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def linux(self) -> Path:
        return self.directory / "esp/EFI/Linux"

    def write(self, table: Table) -> None:
        with self.file.open("r+b") as file:
            file.write(table.primary())
            file.seek(table.backup_offset)
            file.write(table.backup())
            os.fsync(file.fileno())
        run(["blockdev", "--flushbufs", self.loop], what="forgetting what was cached of the disk")

    def at(self, offset: int, size: int) -> bytes:
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    @property
    def table(self) -> Table:
        return Table.parse(self.at, layout.MINIMUM, SECTOR)

    @property
    def versions(self) -> tuple[str | None, str | None]:
        a, b = layout.slots(self.table)
        return a.version, b.version

    @property
    def ukis(self) -> list[str]:
        return sorted(path.name for path in self.linux.iterdir())

    def runs(self, version: str) -> None:
        (self.directory / "os-release").write_text(f"ID=nodeos\nIMAGE_ID=nodeos\nIMAGE_VERSION={version}\n")

    def update(self, version: str) -> None:
        """As ``nodeos.update.apply`` offers the files."""
        incoming, number = self.directory / "incoming", root_hash(version)
        for path in incoming.iterdir():
            path.unlink()
        root, verity = uuid.UUID(bytes=number[:16]), uuid.UUID(bytes=number[16:])
        signature = layout.signature_uuid(number)
        text = version.encode()
        (incoming / f"nodeos_{version}_{root}.root.raw").write_bytes(b"root of " + text.ljust(8192, b"r"))
        (incoming / f"nodeos_{version}_{verity}.verity.raw").write_bytes(b"tree of " + text.ljust(8192, b"v"))
        padded = (b'{"version":"' + text + b'"}').ljust(layout.SIGNATURE_SIZE, b"\0")
        (incoming / f"nodeos_{version}_{signature}.verity-sig.raw").write_bytes(padded)
        (incoming / f"nodeos_{version}.efi").write_bytes(b"UKI of " + text.ljust(8192, b"u"))
        env = {"TOOLS": str(TOOLS), "DIR": str(self.directory), "VERSION": version}
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT]
        run(command, what="systemd-sysupdate", env=env)

    def check_slot(self, name: SlotName, version: str) -> None:
        """All of it is this version's, under the identities that the initrd looks for."""
        number = root_hash(version)
        slot = layout.slots(self.table)[list(SlotName).index(name)]
        filled = layout.slots(layout.fill(self.table, name, version=version, root_hash=number))
        assert slot == filled[list(SlotName).index(name)]
        text = version.encode()
        assert self.at(slot.root.start, 20).startswith(b"root of " + text + b"r")
        assert self.at(slot.verity.start, 20).startswith(b"tree of " + text + b"v")
        signature = self.at(slot.signature.start, layout.SIGNATURE_SIZE)
        assert signature.rstrip(b"\0") == b'{"version":"' + text + b'"}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    if not (TOOLS / "usr/lib/systemd/systemd-sysupdate").exists():
        raise ToolError("no tools tree", hint="build the image first: `make image`")
    find_tool("losetup", package="mount")
    backing = tmp_path / "disk.raw"
    with backing.open("wb") as file:
        file.truncate(layout.MINIMUM)
    loop = run(["losetup", "--find", "--show", backing], what="making a loop device").decode().strip()
    try:
        found = Disk(tmp_path, loop)
        for name in ("incoming", "esp/EFI/Linux", "definitions", "root"):
            (tmp_path / name).mkdir(parents=True)
        for path in sorted((SOURCE / "image/extra/usr/lib/sysupdate.d").iterdir()):
            text = path.read_text().replace("Path=auto", f"Path={loop}")
            text = text.replace("/var/lib/nodeos/update/incoming", "/media/incoming")
            text = text.replace("Path=/EFI/Linux\nPathRelativeTo=esp", "Path=/media/esp/EFI/Linux")
            (tmp_path / "definitions" / path.name).write_text(text)
        made = layout.plan(
            layout.MINIMUM, SECTOR, version="1.0", root_hash=root_hash("1.0"), disk_uuid=uuid.UUID(int=5)
        )
        found.write(made)
        found.runs("1.0")
        (found.linux / "nodeos_1.0.efi").write_bytes(b"UKI of 1.0")
        yield found
    finally:
        run(["losetup", "--detach", loop], what="removing the loop device")


def test_the_other_slot_is_written_and_the_next_update_takes_the_old_one(disk: Disk) -> None:
    disk.update("1.1")
    assert disk.versions == ("1.0", "1.1")
    disk.check_slot(SlotName.B, "1.1")
    assert disk.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3-0.efi"]
    (disk.linux / "nodeos_1.1+3-0.efi").rename(disk.linux / "nodeos_1.1.efi")
    disk.runs("1.1")
    disk.update("1.2")
    assert disk.versions == ("1.2", "1.1")
    disk.check_slot(SlotName.A, "1.2")
    assert disk.ukis == ["nodeos_1.1.efi", "nodeos_1.2+3-0.efi"]


def test_a_version_that_failed_gives_way_and_not_the_running_one(disk: Disk) -> None:
    disk.update("1.1")
    (disk.linux / "nodeos_1.1+3-0.efi").rename(disk.linux / "nodeos_1.1+0-3.efi")
    disk.update("1.2")
    assert disk.versions == ("1.0", "1.2")
    disk.check_slot(SlotName.B, "1.2")
    assert disk.ukis == ["nodeos_1.0.efi", "nodeos_1.2+3-0.efi"]


def test_an_older_version_that_is_asked_for(disk: Disk) -> None:
    disk.update("0.9")
    assert disk.versions == ("1.0", "0.9")
    disk.check_slot(SlotName.B, "0.9")
    assert disk.ukis == ["nodeos_0.9+3-0.efi", "nodeos_1.0.efi"]


@pytest.mark.parametrize("installed", [1, 2, 3])
def test_an_update_that_was_cut_off_between_its_parts_is_finished(disk: Disk, installed: int) -> None:
    """systemd-sysupdate names the partitions one after the other, the UKI last."""
    disk.update("1.1")
    torn = disk.table
    empty = layout.slots(layout.clear(torn, SlotName.B))[1].partitions
    kept = {part.number: part for part in empty[installed:]}
    disk.write(
        Table(
            size=torn.size, sector=torn.sector, uuid=torn.uuid,
            partitions=tuple(kept.get(part.number, part) for part in torn.partitions),
        )
    )  # fmt: skip
    (disk.linux / "nodeos_1.1+3-0.efi").unlink()
    disk.update("1.1")
    assert disk.versions == ("1.0", "1.1")
    disk.check_slot(SlotName.B, "1.1")
    assert disk.ukis == ["nodeos_1.0.efi", "nodeos_1.1+3-0.efi"]
