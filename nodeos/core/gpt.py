"""GUID partition tables (UEFI 2.10, section 5.3): read and checked, and made. Pure.

Offsets and sizes are in bytes everywhere; only the tables themselves count in sectors. A table is on the disk
twice. If one copy is broken the other is used, and ``Table.word`` says so.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from nodeos.core.errors import UsageError

SECTORS = (512, 2048, 4096)
MIB = 1 << 20
LABEL_UNITS = 36
ENTRY_COUNT = 128
# Discoverable Partitions Specification: the state of these flags is what systemd looks at.
READ_ONLY = 1 << 60

_ENTRY = 128
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_MAGIC = b"EFI PART"
_REVISION = 0x00010000
_ENTRIES_LIMIT = 1024

ReadAt = Callable[[int, int], bytes]
"""Called with offset and length; gives fewer bytes at the end of what is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One entry. ``number`` counts from 1 and is the entry's place; ``attributes`` are the flags as a number."""

    number: int
    type: UUID
    uuid: UUID
    start: int
    size: int
    label: str = ""
    attributes: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A partition table for ``size`` bytes in sectors of ``sector`` bytes: ``uuid`` is the disk's.

    ``word`` is None unless a copy that was read is broken: then it says which one and why. Raises UsageError for
    partitions that overlap, don't fit, or aren't whole sectors.
    """

    size: int
    sector: int
    uuid: UUID
    partitions: tuple[Partition, ...]
    entry_count: int = ENTRY_COUNT
    word: str | None = None

    def __post_init__(self) -> None:
        if self.sector not in SECTORS or self.size % self.sector:
            raise UsageError(f"a disk of {self.size} bytes in sectors of {self.sector} can't be partitioned")
        if sorted({part.number for part in self.partitions}) != [part.number for part in self.partitions]:
            raise UsageError("partition table: the numbers don't rise, or one stands twice")
        end = self.first_usable
        for part in sorted(self.partitions, key=lambda part: part.start):
            what = f"partition {part.number} ({part.label!r})"
            if not 1 <= part.number <= self.entry_count:
                raise UsageError(f"{what}: the table has {self.entry_count} entries")
            if part.start % self.sector or part.size % self.sector or part.size <= 0:
                raise UsageError(f"{what}: not in whole sectors of {self.sector} bytes")
            if part.start < end:
                raise UsageError(f"{what}: begins at {part.start}, which is not free before {end}")
            end = part.end
        if end > self.backup_offset:
            raise UsageError(f"the partitions end at {end}, the disk has room until {self.backup_offset}")

    @classmethod
    def parse(cls, read_at: ReadAt, size: int, sector: int) -> Table:
        """Read the table of a disk of ``size`` bytes. Raises UsageError if neither copy is whole.

        The table's ``size`` ends with its backup: an image on a larger disk has it at its own end.
        """
        last = size // sector - 1
        primary, first_error = _try(read_at, 1, size, sector)
        if primary is not None:
            table, alternate = primary
            backup, error = _try(read_at, alternate, size, sector)
            if backup is None:
                return _with(table, f"the backup partition table is broken: {error}")
            if (backup[0].uuid, backup[0].partitions) != (table.uuid, table.partitions):
                return _with(table, "the backup partition table is another than the primary one")
            return table
        backup, error = _try(read_at, last, size, sector)
        if backup is None:
            raise UsageError(f"no partition table (GPT): {first_error}; backup: {error}")
        return _with(backup[0], f"the primary partition table is broken: {first_error}")

    @property
    def first_usable(self) -> int:
        return 2 * self.sector + self._entries_size

    @property
    def backup_offset(self) -> int:
        """Where ``backup()`` is written to; partitions end here at the latest."""
        return self.size - self.sector - self._entries_size

    @property
    def _entries_size(self) -> int:
        return -(-self.entry_count * _ENTRY // self.sector) * self.sector

    def primary(self) -> bytes:
        """What the disk begins with: protective MBR, header, entries."""
        entries = self._entries()
        return (
            self._mbr()
            + self._header(entries, mine=1, other=self.size // self.sector - 1, entries_at=2)
            + entries
        )

    def backup(self) -> bytes:
        """What the disk ends with, from ``backup_offset`` on: entries and header."""
        entries = self._entries()
        place = self.backup_offset // self.sector
        return entries + self._header(entries, mine=self.size // self.sector - 1, other=1, entries_at=place)

    def find(self, kind: UUID, what: str) -> Partition:
        """The first partition of a type. Raises UsageError if there is none; ``what`` names it there."""
        for part in self.partitions:
            if part.type == kind:
                return part
        raise UsageError(f"the partition table has no {what}")

    def _mbr(self) -> bytes:
        """Section 5.2.3: one partition of type 0xEE over the whole disk."""
        sectors = min(self.size // self.sector - 1, 0xFFFFFFFF)
        record = bytes((0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF)) + struct.pack("<II", 1, sectors)
        return (bytes(446) + record + bytes(48) + b"\x55\xaa").ljust(self.sector, b"\0")

    def _entries(self) -> bytes:
        data = bytearray(self._entries_size)
        for part in self.partitions:
            first, last = part.start // self.sector, part.end // self.sector - 1
            entry = (
                part.type.bytes_le + part.uuid.bytes_le + struct.pack("<QQQ", first, last, part.attributes)
            )
            at = (part.number - 1) * _ENTRY
            data[at : at + _ENTRY] = (entry + _encoded(part.label)).ljust(_ENTRY, b"\0")
        return bytes(data)

    def _header(self, entries: bytes, *, mine: int, other: int, entries_at: int) -> bytes:
        crc = zlib.crc32(entries[: self.entry_count * _ENTRY])

        def packed(own: int) -> bytes:
            return _HEADER.pack(
                _MAGIC, _REVISION, _HEADER.size, own, 0, mine, other, self.first_usable // self.sector,
                self.backup_offset // self.sector - 1, self.uuid.bytes_le, entries_at, self.entry_count, _ENTRY,
                crc,
            )  # fmt: skip

        return packed(zlib.crc32(packed(0))).ljust(self.sector, b"\0")


def _with(table: Table, word: str) -> Table:
    return Table(
        size=table.size, sector=table.sector, uuid=table.uuid, partitions=table.partitions,
        entry_count=table.entry_count, word=word,
    )  # fmt: skip


def _encoded(label: str) -> bytes:
    data = label.encode("utf-16-le")
    if len(data) > 2 * LABEL_UNITS:
        raise UsageError(f"the partition label {label!r} is longer than {LABEL_UNITS} characters")
    return data


def _try(read_at: ReadAt, place: int, size: int, sector: int) -> tuple[tuple[Table, int] | None, str]:
    """The table whose header is in this sector and the other header's sector; or None and what is wrong."""
    try:
        return _read(read_at, place, size, sector), ""
    except UsageError as error:
        return None, error.message


def _read(read_at: ReadAt, place: int, size: int, sector: int) -> tuple[Table, int]:
    # A header can name any place: nothing outside of the disk is asked for.
    data = read_at(place * sector, sector) if 0 < place < size // sector else b""
    if len(data) < sector or data[:8] != _MAGIC:
        raise UsageError("there is none")
    (_, revision, length, crc, _, mine, other, first, last, disk, entries_at, count, each, entries_crc) = (
        _HEADER.unpack_from(data)
    )
    if revision != _REVISION or not _HEADER.size <= length <= sector:
        raise UsageError("its header has another form")
    if zlib.crc32(data[:16] + bytes(4) + data[20:length]) != crc:
        raise UsageError("its header's checksum is wrong")
    if mine != place:
        raise UsageError("its header is for another place")
    if not 0 < count <= _ENTRIES_LIMIT or each != _ENTRY:
        raise UsageError(f"it has {count} entries of {each} bytes")
    top = max(mine, other)
    if (top + 1) * sector > size or not 1 <= first <= last < top:
        raise UsageError("it is for a larger disk")
    entries = read_at(entries_at * sector, count * each) if entries_at < top else b""
    if len(entries) < count * each or zlib.crc32(entries) != entries_crc:
        raise UsageError("its entries' checksum is wrong")
    partitions = tuple(_partitions(entries, sector))
    if any(part.start < first * sector or part.end > (last + 1) * sector for part in partitions):
        raise UsageError("a partition lies outside of what it may use")
    table = Table(
        size=(top + 1) * sector, sector=sector, uuid=UUID(bytes_le=disk), partitions=partitions,
        entry_count=count,
    )  # fmt: skip
    return table, other


def _partitions(entries: bytes, sector: int) -> Iterator[Partition]:
    for number, at in enumerate(range(0, len(entries), _ENTRY), 1):
        entry = entries[at : at + _ENTRY]
        kind = UUID(bytes_le=entry[:16])
        if kind.int == 0:
            continue
        first, last, attributes = struct.unpack_from("<QQQ", entry, 32)
        label = entry[56:].decode("utf-16-le", errors="replace").partition("\0")[0]
        yield Partition(
            number=number, type=kind, uuid=UUID(bytes_le=entry[16:32]), start=first * sector,
            size=(last - first + 1) * sector, label=label, attributes=attributes,
        )  # fmt: skip
