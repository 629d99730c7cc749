"""Finds the facts of a machine in what the kernel shows of it, under any root: tests bring a tree of their own.

The inventory of a report asks udev for disks and ports; here sysfs is read itself, since an installer's root or
another Linux may have no udev, and since PCI's part of a path tells what stands before a disk.
"""

from __future__ import annotations

import re
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.fingerprint.inventory import Sources, clean, read_cpu, read_tables
from nodeos.preflight.devices import Devices
from nodeos.preflight.facts import Cpu, Disk, Facts, Health, Memory, Port
from nodeos.preflight.firmware import read_firmware

_SECTOR = 512  # what the kernel counts in, whatever the disk's own sectors are
_RAID = 0x0104  # PCI Code and ID Assignment Specification: mass storage, RAID
_NOT_DISKS = ("loop", "zram", "ram", "dm-", "md", "sr", "fd", "nbd")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def read_facts(where: Sources, devices: Devices) -> Facts:
    """Read everything. What can't be read is None, 0 or absent in the facts, and no error."""
    cpu = read_cpu(where.proc / "cpuinfo")
    return Facts(
        cpu=Cpu(
            model=cpu["model"], sockets=cpu["sockets"], threads=cpu["threads"], flags=tuple(cpu["flags"])
        ),
        memory=Memory(fitted=_fitted(where), managed=_managed(where.proc / "meminfo")),
        disks=_disks(where.sys / "block", devices),
        raid_controllers=_raid_controllers(where.sys / "bus/pci/devices"),
        tpm_major=_tpm(where.sys / "class/tpm"),
        firmware=read_firmware(where.sys / "firmware/efi"),
        ports=_ports(where.sys / "class/net", devices),
    )


def _fitted(where: Sources) -> int | None:
    """The sum of all memory modules (SMBIOS type 17); None if the tables name none."""
    tables = read_tables(where.dmi)
    return None if isinstance(tables, str) else sum(item.size or 0 for item in tables.memory) or None


def _managed(meminfo: Path) -> int | None:
    for line in (_text(meminfo) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "MemTotal:" and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _disks(block: Path, devices: Devices) -> tuple[Disk, ...]:
    """Whole disks with a device below them that can't be pulled out: an installer's stick does not count."""
    found = []
    for entry in _entries(block):
        name = entry.name
        if name.startswith(_NOT_DISKS) or not (entry / "device").exists():
            continue
        if _text(entry / "removable") == "1" or _text(entry / "hidden") == "1":
            continue
        real = str(entry.resolve())
        sectors = _text(entry / "size") or ""
        found.append(
            Disk(
                name=name,
                model=clean(_text(entry / "device/model")),
                size=int(sectors) * _SECTOR if sectors.isdecimal() else 0,
                transport=_transport(name, real),
                pci=tuple(_PCI_ADDRESS.findall(real)),
                health=_health(name, devices),
            )
        )
    return tuple(found)


def _transport(name: str, real: str) -> str:
    if "/usb" in real:
        return "usb"
    for start, transport in (("nvme", "nvme"), ("vd", "virtio"), ("sd", "scsi")):
        if name.startswith(start):
            return transport
    return "other"


def _health(name: str, devices: Devices) -> Health | None:
    controller = re.match(r"nvme\d+", name)
    return devices.disk_health(controller[0]) if controller else None


def _raid_controllers(pci: Path) -> tuple[str, ...] | None:
    """PCI functions of the class; None if a function or all of them don't tell theirs: that is not "no RAID"."""
    if not pci.is_dir():
        return None
    classes = {entry.name: _hexadecimal(entry / "class") for entry in _entries(pci)}
    if None in classes.values():
        return None
    return tuple(name for name, value in classes.items() if value is not None and value >> 8 == _RAID)


def _tpm(directory: Path) -> int | None:
    """The major version of the first TPM, 0 without one, None if it doesn't say."""
    entries = [entry for entry in _entries(directory) if re.fullmatch(r"tpm\d+", entry.name)]
    if not entries:
        return 0
    text = _text(entries[0] / "tpm_version_major") or ""
    return int(text) if text.isdecimal() else None


def _ports(net: Path, devices: Devices) -> tuple[Port, ...]:
    found = []
    for entry in _entries(net):
        if not (entry / "device").exists():
            continue
        known = [speed for speed in (_link_speed(entry / "speed"), devices.port_speed(entry.name)) if speed]
        found.append(
            Port(name=entry.name, driver=_driver(entry / "device"), speed_mbit=max(known, default=None))
        )
    return tuple(found)


def _link_speed(path: Path) -> int | None:
    """The speed of the link; without one the kernel says -1 (older ones as an unsigned number) or nothing."""
    text = _text(path) or ""
    return int(text) if text.isdecimal() and int(text) != 0xFFFFFFFF else None


def _driver(device: Path) -> str | None:
    link = device / "driver"
    return link.resolve().name if link.exists() else None


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _hexadecimal(path: Path) -> int | None:
    try:
        return int(_text(path) or "", 16)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return read_file(path, path.name, limit=1 << 16).decode(errors="replace").strip()
    except UsageError:
        return None
