"""What `nodeos flash` refuses, and what it makes of disks that fail. No disk is touched."""

from __future__ import annotations

import errno
import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeos.core.errors import NodeosError
from nodeos.flash import writer
from nodeos.flash.disks import Device, Facts, Image, Kind, Mount, Partition, candidates
from nodeos.flash.signatures import NEEDED, signatures
from nodeos.flash.sysfs import read_facts, read_image

MIB = 1 << 20
PART = Partition(name="sda1", number="8:1", start=MIB, size=MIB)
DISK = Device(name="sda", number="8:0", size=64 * MIB, serial="S1", partitions=(PART,))
ROOT = Device(name="vda", number="254:0", size=64 * MIB)
DM = Device(name="dm-0", number="253:0", size=MIB, kind=Kind.OTHER, slaves=("sda1",))
FACTS = Facts(devices=(DISK, ROOT), mounts=(Mount(number="254:0", source="vda", point="/"),))
IMAGE = Image(path="/home/x/nodeos.raw", size=8 * MIB, number="254:0", sector=512)


def codes(facts: Facts, image: Image = IMAGE, name: str = "sda") -> list[str]:
    found = next(item for item in candidates(facts, image) if item.device.name == name)
    return [finding.code for finding in found.refusals]


def with_disk(device: Device) -> Facts:
    return replace(FACTS, devices=(device, ROOT))


def with_mount(number: str, source: str, point: str, *more: Device) -> Facts:
    mount = Mount(number=number, source=source, point=point)
    return replace(FACTS, devices=(*FACTS.devices, *more), mounts=(*FACTS.mounts, mount))


LOOP = Device(name="loop0", number="7:0", size=MIB, kind=Kind.LOOP, backing="/data/x.squashfs")
ON_MEDIUM = replace(with_mount("8:1", "sda1", "/data"), devices=(DISK, LOOP))
CASES: dict[str, tuple[Facts, list[str]]] = {
    "free": (FACTS, []),
    "no disk": (with_disk(replace(DISK, kind=Kind.OTHER)), ["disk.kind"]),
    "mounted whole": (with_mount("8:0", "", "/data"), ["disk.mounted"]),
    "mounted partition": (with_mount("8:1", "", "/data"), ["disk.mounted"]),
    "mounted, number of its own": (with_mount("0:40", "sda1", "/data"), ["disk.mounted"]),
    "mounted through dm": (with_mount("253:0", "", "/data", DM), ["disk.mounted"]),
    "system": (with_mount("8:1", "", "/boot"), ["disk.system"]),
    "system through dm": (with_mount("253:0", "", "/usr", DM), ["disk.system"]),
    "system through a loop device": (
        replace(ON_MEDIUM, mounts=(*ON_MEDIUM.mounts, Mount(number="7:0", source="loop0", point="/"))),
        ["disk.system", "disk.mounted", "disk.image"],
    ),
    "swap": (replace(FACTS, swaps=("sda1",)), ["disk.swap"]),
    "swap through dm": (replace(FACTS, devices=(DISK, ROOT, DM), swaps=("dm-0",)), ["disk.swap"]),
    "held whole": (with_disk(replace(DISK, holders=("md0",))), ["disk.held"]),
    "held partition": (
        with_disk(replace(DISK, partitions=(replace(PART, holders=("dm-0",)),))),
        ["disk.held"],
    ),
    "read-only": (with_disk(replace(DISK, read_only=True)), ["disk.read_only"]),
    "too small": (with_disk(replace(DISK, size=IMAGE.size - 1)), ["disk.too_small"]),
    "other sectors": (with_disk(replace(DISK, sector=4096)), ["disk.sector"]),
    "busy": (with_disk(replace(DISK, busy=True)), ["disk.busy"]),
    "just large enough": (with_disk(replace(DISK, size=IMAGE.size)), []),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_one_by_one(case: str) -> None:
    facts, expected = CASES[case]
    assert codes(facts) == expected


def test_the_disk_with_the_image_is_refused() -> None:
    assert codes(FACTS, name="vda") == ["disk.system", "disk.image"]
    # By its file system's number alone, and as the very file behind a loop device.
    assert codes(FACTS, replace(IMAGE, number="8:1")) == ["disk.image"]
    loop = replace(DISK, kind=Kind.LOOP, backing=IMAGE.path)
    assert codes(with_disk(loop)) == ["disk.image"]


def test_devices_in_a_ring_end() -> None:
    ring = replace(DM, name="dm-1", number="253:1", slaves=("dm-1",))
    assert codes(replace(FACTS, devices=(DISK, ring))) == []


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_facts_of_a_made_up_machine(tmp_path: Path) -> None:
    usb = "sys/devices/usb1/1-1/block/sda"
    put(tmp_path, {
        f"{usb}/dev": "8:0\n", f"{usb}/size": "2048\n", f"{usb}/removable": "1\n", f"{usb}/ro": "1\n",
        f"{usb}/device/model": "Stick   \n", f"{usb}/queue/logical_block_size": "4096\n",
        f"{usb}/sda1/partition": "1\n", f"{usb}/sda1/dev": "8:1\n", f"{usb}/sda1/start": "8\n",
        f"{usb}/sda1/size": "16\n", f"{usb}/sda1/uevent": "DEVNAME=sda1\nPARTNAME=esp\n",
        f"{usb}/sda1/holders/dm-0/x": "",
        "sys/block/dm-0/dev": "253:0\n", "sys/block/dm-0/size": "16\n", "sys/block/dm-0/slaves/sda1/x": "",
        "sys/block/nvme0c0n1/hidden": "1\n",
        "run/udev/data/b8:0": "S:disk/x\nE:ID_SERIAL_SHORT=0815\n",
        "dev/dm-0": "",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/mapper/s partition 1 0 -2\n",
        "proc/self/mountinfo": "1 0 8:1 / /a\\040b rw shared:1 - vfat /dev/sda1 rw\n"
        "2 0 0:5 / /x rw - tmpfs t rw\n",
    })  # fmt: skip
    (tmp_path / "sys/block/sda").symlink_to(tmp_path / usb)
    (tmp_path / "dev/mapper").mkdir()
    (tmp_path / "dev/mapper/s").symlink_to("../dm-0")
    facts = read_facts(tmp_path)
    dm, sda = facts.devices
    part = Partition(name="sda1", number="8:1", start=4096, size=8192, label="esp", holders=("dm-0",))
    assert sda == Device(
        name="sda", number="8:0", size=MIB, model="Stick", serial="0815", bus="usb", removable=True,
        read_only=True, sector=4096, partitions=(part,),
    )  # fmt: skip
    assert (dm.kind, dm.slaves) == (Kind.OTHER, ("sda1",))
    assert facts.swaps == ("dm-0",)
    assert facts.mounts[0] == Mount(number="8:1", source="sda1", point="/a b")
    assert facts.mounts[1].source == ""


def test_an_image_tells_its_sectors(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for sector in (512, 4096):
        path.write_bytes(bytes(sector) + b"EFI PART" + bytes(8192))
        assert read_image(path).sector == sector
    path.write_bytes(b"x")
    assert read_image(path).sector is None


@pytest.mark.parametrize("name", ["absent", "empty", "."])
def test_what_is_no_image(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(NodeosError, match="the image"):
        read_image(tmp_path / name)


def test_signatures() -> None:
    def head(*parts: tuple[int, bytes]) -> bytes:
        data = bytearray(NEEDED)
        for offset, magic in parts:
            data[offset : offset + len(magic)] = magic
        return bytes(data)

    assert signatures(head()) == ()
    assert signatures(head((510, b"\x55\xaa"), (512, b"EFI PART"))) == ("GPT",)
    assert signatures(head((510, b"\x55\xaa"))) == ("MBR",)
    assert signatures(head((0, b"LUKS\xba\xbe"))) == ("LUKS",)
    assert signatures(head((0x10040, b"_BHRfS_M"))) == ("btrfs",)
    assert signatures(head((99, b"x"))) == ("data of an unknown kind",)


class Memory:
    """A ``writer.Target`` that can lose power, fail and lie."""

    sector = 512

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = bytearray(random.Random(1).randbytes(size))
        self.writes_left = 1 << 30
        self.lie: Callable[[int, memoryview], None] = lambda offset, into: None

    def write(self, offset: int, data: memoryview) -> None:
        if self.writes_left == 0:
            raise OSError(errno.EIO, "Input/output error")
        self.writes_left -= 1
        assert offset % self.sector == len(data) % self.sector == 0
        assert offset + len(data) <= self.size
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, memoryview(bytes(length)))

    def sync(self) -> None: ...

    def forget(self) -> None: ...

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = self.content[offset : offset + len(into)]
        self.lie(offset, into)


SIZE = 3 * writer.CHUNK + 700
DATA = (
    random.Random(2).randbytes(writer.CHUNK)
    + bytes(writer.CHUNK)
    + random.Random(3).randbytes(writer.CHUNK + 700)
)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[io.FileIO]:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    with path.open("rb", buffering=0) as file:
        yield file


def quiet(phase: str, done: int, of: int) -> None:
    assert 0 <= done <= of, phase


def test_all_is_written_zeros_included_and_the_end_is_erased(image: io.FileIO) -> None:
    target = Memory(32 * MIB)
    old = bytes(target.content)
    plan = writer.write(image, SIZE, target, quiet)
    assert plan.sha256 == hashlib.sha256(DATA).digest() == writer.digest(image, SIZE, quiet)
    covered = 3 * writer.CHUNK + 1024
    assert target.content[:covered] == DATA.ljust(covered, b"\0")
    assert target.content[covered:-MIB] == old[covered:-MIB]
    assert target.content[-MIB:] == bytes(MIB)
    writer.verify(image, plan, target, quiet)


@pytest.mark.parametrize("room", [0, 512, MIB, MIB + 512])
def test_the_erased_end_never_reaches_into_the_image(room: int, image: io.FileIO) -> None:
    target = Memory(3 * writer.CHUNK + 1024 + room)
    writer.verify(image, writer.write(image, SIZE, target, quiet), target, quiet)
    assert target.content[:SIZE] == DATA
    assert not target.content[SIZE:][-MIB:].strip(b"\0")


@pytest.mark.parametrize("at", [0, writer.CHUNK - 1, writer.CHUNK + 5, SIZE - 1, 32 * MIB - 1])
def test_a_disk_that_lies_is_found(at: int, image: io.FileIO) -> None:
    target = Memory(32 * MIB)
    plan = writer.write(image, SIZE, target, quiet)

    def lie(offset: int, into: memoryview) -> None:
        if offset <= at < offset + len(into):
            into[at - offset] ^= 1

    target.lie = lie
    with pytest.raises(NodeosError, match=f"first difference is at byte {at}$|at byte {at}\n"):
        writer.verify(image, plan, target, quiet)


@pytest.mark.parametrize("after", range(6))
def test_a_power_cut_leaves_no_bootable_disk_and_can_be_run_again(after: int, image: io.FileIO) -> None:
    target = Memory(32 * MIB)
    target.writes_left = after
    with pytest.raises(NodeosError, match="writing failed at byte"):
        writer.write(image, SIZE, target, quiet)
    if after:
        assert target.content[: writer.CHUNK] == bytes(writer.CHUNK)
    target.writes_left = 1 << 30
    writer.verify(image, writer.write(image, SIZE, target, quiet), target, quiet)
    assert target.content[:SIZE] == DATA


def test_a_disk_that_can_not_be_read_back(image: io.FileIO) -> None:
    target = Memory(32 * MIB)
    plan = writer.write(image, SIZE, target, quiet)

    def fail(offset: int, into: memoryview) -> None:
        raise OSError(errno.EIO, "Input/output error")

    target.lie = fail
    with pytest.raises(NodeosError, match="reading back failed at byte 0"):
        writer.verify(image, plan, target, quiet)


def test_an_image_that_shrinks(image: io.FileIO) -> None:
    with pytest.raises(NodeosError, match="became shorter"):
        writer.write(image, SIZE + 1, Memory(32 * MIB), quiet)


def test_an_old_backup_partition_table_goes_first(image: io.FileIO) -> None:
    target = Memory(3 * writer.CHUNK + 1024)
    target.writes_left = 2
    with pytest.raises(NodeosError, match="writing failed"):
        writer.write(image, SIZE, target, quiet)
    assert target.content[-MIB:] == bytes(MIB)
