"""Tells the firmware to start the installed disk: a boot entry, first in its order and next in turn.

Sources: UEFI 2.10, sections 3.1.3 (EFI_LOAD_OPTION), 3.3 (BootOrder, BootNext), 10.3.5.1 (hard drive node),
10.3.5.4 (file node); Linux Documentation/filesystems/efivarfs.rst. Building is pure; ``Firmware`` is the edge.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import NodeosError

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
DESCRIPTION = "nodeos"
LOADER = "\\EFI\\BOOT\\BOOTX64.EFI"
EFIVARS = Path("/sys/firmware/efi/efivars")
_ACTIVE = 1
_ATTRIBUTES = 7  # non-volatile, boot services, run time
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_IMMUTABLE = 0x80086601, 0x40086602, 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class Esp:
    """The EFI system partition: its number from 1, its UUID, and in sectors where it begins and how long it is."""

    number: int
    uuid: uuid.UUID
    start: int
    size: int


def load_option(esp: Esp, *, description: str = DESCRIPTION, loader: str = LOADER) -> bytes:
    """EFI_LOAD_OPTION that starts ``loader`` from the partition, on whatever bus the disk is."""
    drive = struct.pack("<IQQ", esp.number, esp.start, esp.size) + esp.uuid.bytes_le + b"\x02\x02"
    file = loader.encode("utf-16-le") + b"\0\0"
    path = _node(4, 1, drive) + _node(4, 4, file) + _node(0x7F, 0xFF, b"")
    return struct.pack("<IH", _ACTIVE, len(path)) + description.encode("utf-16-le") + b"\0\0" + path


def _node(kind: int, subtype: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


def place(option: bytes, entries: dict[int, bytes], order: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The number for the entry and the new order. The same entry keeps its number, so that nothing piles up."""
    same = [number for number, data in sorted(entries.items()) if data == option]
    number = same[0] if same else next(item for item in range(1 << 16) if item not in entries)
    return number, (number, *(item for item in order if item != number))


class Firmware:
    """Boot variables in efivarfs."""

    def __init__(self, directory: Path = EFIVARS) -> None:
        self._directory = directory

    def start_next(self, esp: Esp) -> str:
        """Add the entry, put it first, and make it the next. Returns its name. Raises NodeosError."""
        try:
            option = load_option(esp)
            number, order = place(option, self._entries(), self._order())
            name = f"Boot{number:04X}"
            self._write(name, option)
            self._write("BootOrder", struct.pack(f"<{len(order)}H", *order))
            self._write("BootNext", struct.pack("<H", number))
        except (OSError, StopIteration) as error:
            raise NodeosError(
                f"the firmware took no boot entry: {error}",
                hint="choose the disk in the firmware's boot menu; it starts without an entry too",
            ) from error
        return name

    def _entries(self) -> dict[int, bytes]:
        found = {}
        for path in self._directory.glob(f"Boot????-{GLOBAL}"):
            if match := re.fullmatch(r"Boot([0-9A-F]{4})-.*", path.name):
                found[int(match[1], 16)] = path.read_bytes()[4:]
        return found

    def _order(self) -> tuple[int, ...]:
        path = self._directory / f"BootOrder-{GLOBAL}"
        data = path.read_bytes()[4:] if path.exists() else b""
        return struct.unpack(f"<{len(data) // 2}H", data[: len(data) & ~1])

    def _write(self, name: str, value: bytes) -> None:
        """In one write, as efivarfs wants it; the kernel protects most variables with the immutable flag."""
        path = self._directory / f"{name}-{GLOBAL}"
        if path.exists():
            if path.read_bytes()[4:] == value:
                return
            _unprotect(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, struct.pack("<I", _ATTRIBUTES) + value)
        finally:
            os.close(descriptor)


def _unprotect(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = struct.unpack("i", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(4)))[0]
        if flags & _FS_IMMUTABLE:
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("i", flags & ~_FS_IMMUTABLE))
    finally:
        os.close(descriptor)
