"""Which disks may be erased. Pure: facts go in, candidates with every reason against them come out.

Whatever the system uses is refused, straight or through device mapper, md and loop devices. Nothing here can be
switched off by an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodeos.core.errors import Finding

# Where a running system or a live medium has its own files.
_SYSTEM = (
    "/",
    "/usr",
    "/etc",
    "/var",
    "/boot",
    "/boot/efi",
    "/efi",
    "/run/live/medium",
    "/run/initramfs/live",
)


class Kind(StrEnum):
    """What a block device is. Only disks and loop devices with a file behind them can be written to."""

    DISK = "disk"
    LOOP = "loop"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition: ``number`` is "major:minor"; ``start`` and ``size`` are in bytes."""

    name: str
    number: str
    start: int
    size: int
    label: str = ""
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A whole block device. ``size`` in bytes, ``sector`` its logical block size; ``holders`` are the devices
    built on it and ``slaves`` those that it is built on; ``backing`` is the file behind a loop device."""

    name: str
    number: str
    size: int
    kind: Kind = Kind.DISK
    model: str = ""
    serial: str = ""
    bus: str = ""
    removable: bool = False
    read_only: bool = False
    busy: bool = False
    sector: int = 512
    partitions: tuple[Partition, ...] = ()
    holders: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    backing: str = ""

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount: the "major:minor" of its file system, the kernel's name of its source ("" if that is no device),
    and where it is. Some file systems (btrfs) have a number of their own, so both are looked at."""

    number: str
    source: str
    point: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the kernel says. ``swaps`` are kernel names of devices."""

    devices: tuple[Device, ...]
    mounts: tuple[Mount, ...] = ()
    swaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image to write: its real path, size in bytes, the "major:minor" of the file system that it is on, and
    the sector size that its GPT was made for (None if it has no GPT)."""

    path: str
    size: int
    number: str = ""
    sector: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device and all that speaks against writing to it."""

    device: Device
    refusals: tuple[Finding, ...]


def candidates(facts: Facts, image: Image) -> tuple[Candidate, ...]:
    """Every block device with its refusals, in the kernel's order of names."""
    below = _Below(facts)
    return tuple(
        Candidate(device=device, refusals=_refusals(device, facts, image, below)) for device in facts.devices
    )


class _Below:
    """Finds the whole devices that a device, a mount or a file rests on."""

    def __init__(self, facts: Facts) -> None:
        self._mounts = facts.mounts
        self._devices = {device.name: device for device in facts.devices}
        self._parents = {part.name: device.name for device in facts.devices for part in device.partitions}
        self._names = {device.number: device.name for device in facts.devices} | {
            part.number: part.name for device in facts.devices for part in device.partitions
        }

    def name(self, name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        whole = self._parents.get(name, name)
        device = self._devices.get(whole)
        if device is None or whole in seen:
            return frozenset()
        seen |= {whole}
        found = frozenset({whole}).union(*(self.name(slave, seen) for slave in device.slaves))
        return found | self.file(device.backing, seen) if device.backing else found

    def mount(self, mount: Mount, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        return self.number(mount.number, seen) | self.name(mount.source, seen)

    def number(self, number: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        return self.name(self._names.get(number, ""), seen)

    def file(self, path: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        """By the longest mount point above the path; of two on one point the later one covers the other."""
        best: Mount | None = None
        for mount in self._mounts:
            inside = mount.point in ("/", path) or path.startswith(mount.point + "/")
            if inside and (best is None or len(mount.point) >= len(best.point)):
                best = mount
        return self.mount(best, seen) if best is not None else frozenset()


def _refusals(device: Device, facts: Facts, image: Image, below: _Below) -> tuple[Finding, ...]:
    found: list[Finding] = []

    def refuse(code: str, message: str) -> None:
        found.append(Finding(code=f"disk.{code}", message=message))

    if device.kind is Kind.OTHER:
        refuse("kind", "it is no disk")
    points = [mount.point for mount in facts.mounts if device.name in below.mount(mount)]
    system = [point for point in points if point in _SYSTEM]
    others = [point for point in points if point not in _SYSTEM]
    if system:
        refuse("system", f"it carries the running system ({', '.join(dict.fromkeys(system))})")
    if others:
        refuse("mounted", f"it is mounted ({', '.join(dict.fromkeys(others))})")
    swaps = [swap for swap in facts.swaps if device.name in below.name(swap)]
    if swaps:
        refuse("swap", f"it is used for swap ({', '.join(swaps)})")
    holders = [*device.holders, *(holder for part in device.partitions for holder in part.holders)]
    if holders:
        refuse(
            "held", f"another device is built on it ({', '.join(dict.fromkeys(holders))}: LVM, LUKS, RAID)"
        )
    if device.name in below.file(image.path) | below.number(image.number) or device.backing == image.path:
        refuse("image", "the image itself is on it")
    if device.read_only:
        refuse("read_only", "it is read-only")
    if device.size < image.size:
        refuse("too_small", f"it has {device.size} bytes, the image needs {image.size}")
    if image.sector not in (None, device.sector):
        refuse(
            "sector",
            f"its sectors have {device.sector} bytes, the image's partition table is for {image.sector}",
        )
    if device.busy and not found:
        refuse("busy", "some other program holds it")
    return tuple(found)
