"""Reads the facts about block devices from the kernel: /sys/block, mountinfo(5), /proc/swaps, udev's database.

Everything is read below a root path, so that a made-up tree can stand in for the machine.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.flash.disks import Device, Facts, Image, Kind, Mount, Partition

_UNIT = 512  # sysfs counts in these, whatever the disk's sectors are
_VIRTUAL = re.compile(r"(dm-|md|zram|ram|sr|fd|nbd|zd|mtdblock)\d")


def read_facts(root: Path = Path("/")) -> Facts:
    """All block devices of the machine, and what uses them."""
    names = sorted(path.name for path in (root / "sys/block").iterdir())
    devices = tuple(
        _device(root, name) for name in names if _text(root / "sys/block" / name / "hidden") in ("", "0")
    )
    return Facts(devices=devices, mounts=_mounts(root), swaps=_swaps(root))


def read_image(path: Path) -> Image:
    """What there is to know of an image. Raises UsageError if it can't be one."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.read(8192)
    except OSError as error:
        raise UsageError(f"the image {path}: {error.strerror}", hint="check the path") from error
    if not path.is_file() or not head:
        raise UsageError(f"the image {path} is no file, or is empty", hint="name a disk image (nodeos.raw)")
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    sector = next((size for size in (512, 4096) if head[size : size + 8] == b"EFI PART"), None)
    return Image(path=os.path.realpath(path), size=status.st_size, number=number, sector=sector)


def _device(root: Path, name: str) -> Device:
    base = root / "sys/block" / name
    number = _text(base / "dev")
    udev = _udev(root, number)
    backing = _text(base / "loop/backing_file")
    if backing:
        kind = Kind.LOOP
    elif (base / "device").exists() and not _VIRTUAL.match(name):
        kind = Kind.DISK
    else:
        kind = Kind.OTHER
    serials = (udev.get("ID_SERIAL_SHORT", ""), _text(base / "serial"), _text(base / "device/serial"))
    return Device(
        name=name,
        number=number,
        size=_number(base / "size") * _UNIT,
        kind=kind,
        model=_text(base / "device/model") or udev.get("ID_MODEL", "") or backing,
        serial=next((serial for serial in serials if serial), ""),
        bus="loop" if backing else _bus(base, name),
        removable=_text(base / "removable") == "1",
        read_only=_text(base / "ro") == "1",
        busy=_busy(root / "dev" / name),
        sector=_number(base / "queue/logical_block_size") or 512,
        partitions=tuple(_partition(path.parent) for path in sorted(base.glob("*/partition"), key=_number)),
        holders=_names(base / "holders"),
        slaves=_names(base / "slaves"),
        backing=backing,
    )


def _partition(base: Path) -> Partition:
    label = re.search(r"^PARTNAME=(.*)$", _text(base / "uevent"), re.M)
    return Partition(
        name=base.name,
        number=_text(base / "dev"),
        start=_number(base / "start") * _UNIT,
        size=_number(base / "size") * _UNIT,
        label=label[1] if label else "",
        holders=_names(base / "holders"),
    )


def _bus(base: Path, name: str) -> str:
    """By the device's place among the buses."""
    place = os.path.realpath(base)
    for sign, bus in (("/usb", "usb"), ("/ata", "sata"), ("/virtio", "virtio"), ("/nvme/", "nvme")):
        if sign in place:
            return bus
    return next((bus for bus in ("nvme", "mmc") if name.startswith(bus)), "scsi" if name[:2] == "sd" else "")


def _busy(path: Path) -> bool:
    """True if someone holds the device (open(2), O_EXCL on a block device). Whoever may not open it is told so
    when it comes to writing."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _mounts(root: Path) -> tuple[Mount, ...]:
    found = []
    # Not /proc/mounts: that says /dev/root for the one that matters most, and has no device numbers.
    for line in (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        words, source = fields.split(" "), rest.split(" ")[1]
        found.append(Mount(number=words[2], source=_kernel_name(root, source), point=_plain(words[4])))
    return tuple(found)


def _swaps(root: Path) -> tuple[str, ...]:
    lines = _text(root / "proc/swaps").splitlines()[1:]
    return tuple(name for line in lines if (name := _kernel_name(root, line.split()[0])))


def _kernel_name(root: Path, source: str) -> str:
    """/dev/mapper/x and /dev/disk/by-uuid/y are links to what the kernel knows."""
    path = _plain(source)
    return Path(os.path.realpath(root / path[1:])).name if path.startswith("/dev/") else ""


def _plain(text: str) -> str:
    """Without the octal escapes of mountinfo(5)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _udev(root: Path, number: str) -> dict[str, str]:
    pairs = (line[2:].partition("=") for line in _text(root / f"run/udev/data/b{number}").splitlines()
             if line.startswith("E:"))  # fmt: skip
    return {key: value for key, _, value in pairs}


def _names(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in directory.iterdir())) if directory.is_dir() else ()


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    """The content without blanks around it; "" if there is none (not every device has every file)."""
    try:
        return path.read_text(errors="replace").strip(" \t\n\0")
    except OSError:
        return ""
