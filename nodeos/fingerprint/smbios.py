"""SMBIOS tables (DMTF DSP0134 3.x), as the kernel gives them in /sys/firmware/dmi/tables.

The tables come from firmware and may hold anything: every read is bounds-checked, and whatever is malformed
raises ParseError and nothing else. Offsets are the specification's.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeos.core.wire import ParseError

MIB = 1 << 20
GIB = 1 << 30
_END_OF_TABLE = 127
# More structures than any machine has; keeps a hostile table from costing much.
_MOST_STRUCTURES = 4096
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Structure:
    """One structure: its formatted part (with the 4-byte header) and its strings."""

    type: int
    handle: int
    data: bytes
    strings: tuple[str, ...]

    def number(self, offset: int, size: int) -> int | None:
        """A little-endian number, or None if this version of the structure doesn't reach that far."""
        if offset + size > len(self.data):
            return None
        return int.from_bytes(self.data[offset : offset + size], "little")

    def text(self, offset: int) -> str | None:
        """The string that the byte at ``offset`` numbers; None if there is none. Many boards number strings
        that they don't have, so that is no error either."""
        index = self.number(offset, 1)
        if not index or index > len(self.strings):
            return None
        return self.strings[index - 1] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Type 1."""

    manufacturer: str | None
    product: str | None
    serial: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Type 2."""

    manufacturer: str | None
    product: str | None
    serial: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """Type 4. ``populated`` is false for an empty socket; counts are None where the firmware knows none."""

    socket: str | None
    manufacturer: str | None
    version: str | None
    populated: bool
    cores: int | None
    threads: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryArray:
    """Type 16: ``slots`` places for memory devices, ``capacity`` bytes at most (None if unknown)."""

    slots: int
    capacity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDevice:
    """Type 17: a slot. ``size`` in bytes is 0 for an empty one and None if the firmware doesn't know."""

    locator: str | None
    size: int | None
    manufacturer: str | None
    serial: str | None
    part: str | None
    speed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What this project reads of a machine's tables. ``version`` is (major, minor)."""

    version: tuple[int, int]
    system: System | None
    board: Board | None
    processors: tuple[Processor, ...]
    arrays: tuple[MemoryArray, ...]
    memory: tuple[MemoryDevice, ...]


def parse(entry_point: bytes, table: bytes) -> Tables:
    """Parse both files of the kernel. Raises ParseError."""
    version, declared = parse_entry_point(entry_point)
    if len(table) > min(declared, _MOST_BYTES):
        raise ParseError(f"SMBIOS table: {len(table)} bytes, the entry point declares {declared}")
    structures = parse_structures(table)
    by_type: dict[int, list[Structure]] = {}
    for structure in structures:
        by_type.setdefault(structure.type, []).append(structure)
    systems = [_system(s) for s in by_type.get(1, [])]
    boards = [_board(s) for s in by_type.get(2, [])]
    return Tables(
        version=version,
        system=systems[0] if systems else None,
        board=boards[0] if boards else None,
        processors=tuple(p for s in by_type.get(4, []) if (p := _processor(s)) is not None),
        arrays=tuple(_array(s) for s in by_type.get(16, [])),
        memory=tuple(_memory(s) for s in by_type.get(17, [])),
    )


def parse_entry_point(data: bytes) -> tuple[tuple[int, int], int]:
    """The version and the greatest table size in bytes, from a 2.1 or a 3.0 entry point (5.2)."""
    if data.startswith(b"_SM3_"):
        _checked(data, 6, low=0x18)
        return (data[7], data[8]), int.from_bytes(data[0x0C:0x10], "little")
    if data.startswith(b"_SM_"):
        _checked(data, 5, low=0x1E)
        if data[0x10:0x15] != b"_DMI_" or sum(data[0x10:0x1F]) & 0xFF:
            raise ParseError("SMBIOS entry point: the _DMI_ part is malformed")
        return (data[6], data[7]), int.from_bytes(data[0x16:0x18], "little")
    raise ParseError("SMBIOS entry point: neither _SM_ nor _SM3_")


def _checked(data: bytes, at: int, *, low: int) -> None:
    length = data[at] if len(data) > at else 0
    # 2.1 gives 0x1E by a mistake of the specification, meaning 0x1F.
    if length < low or len(data) < max(length, 0x1F if low == 0x1E else low):
        raise ParseError("SMBIOS entry point: too short")
    if sum(data[: 0x1F if length == 0x1E else length]) & 0xFF:
        raise ParseError("SMBIOS entry point: wrong checksum")


def parse_structures(table: bytes) -> tuple[Structure, ...]:
    """Split a table into its structures, up to the end-of-table mark or the end of the data (6.1)."""
    structures: list[Structure] = []
    at = 0
    while at < len(table):
        if len(structures) >= _MOST_STRUCTURES:
            raise ParseError(f"SMBIOS table: more than {_MOST_STRUCTURES} structures")
        if at + 4 > len(table):
            raise ParseError(f"SMBIOS table: ends within the header at {at}")
        length = table[at + 1]
        strings_at = at + length
        if length < 4 or strings_at > len(table):
            raise ParseError(f"SMBIOS table: the structure at {at} has the length {length}")
        end = table.find(b"\0\0", strings_at)
        if end < 0 and table[at] == _END_OF_TABLE:  # some tables are cut off right behind it
            end = len(table)
        if end < 0:
            raise ParseError(f"SMBIOS table: the strings of the structure at {at} have no end")
        raw = table[strings_at:end]
        structure = Structure(
            type=table[at],
            handle=int.from_bytes(table[at + 2 : at + 4], "little"),
            data=table[at:strings_at],
            strings=tuple(_printable(item) for item in raw.split(b"\0")) if raw else (),
        )
        structures.append(structure)
        if structure.type == _END_OF_TABLE:
            break
        at = end + 2
    return tuple(structures)


def _printable(raw: bytes) -> str:
    """Firmware text: printable ASCII stays, anything else becomes '?', outer white space goes."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in raw).strip()


def _system(s: Structure) -> System:
    return System(manufacturer=s.text(4), product=s.text(5), serial=s.text(7))


def _board(s: Structure) -> Board:
    return Board(manufacturer=s.text(4), product=s.text(5), serial=s.text(7))


def _processor(s: Structure) -> Processor | None:
    if s.number(5, 1) != 3:  # 7.5.1: 3 is a central processor; others are not for us
        return None
    status = s.number(0x18, 1)
    return Processor(
        socket=s.text(4),
        manufacturer=s.text(7),
        version=s.text(0x10),
        populated=bool(status and status & 0x40),
        cores=_count(s, 0x23, 0x2A),
        threads=_count(s, 0x25, 0x2E),
    )


def _count(s: Structure, small: int, large: int) -> int | None:
    """A count of one byte, where 0xFF sends to a word further on and 0 means unknown (7.5.6, 7.5.8)."""
    count = s.number(small, 1)
    if count == 0xFF:
        count = s.number(large, 2)
    return count or None


def _array(s: Structure) -> MemoryArray:
    capacity = s.number(7, 4)
    if capacity == 0x8000_0000:
        capacity = s.number(0x0F, 8)
    elif capacity is not None:
        capacity *= 1024
    return MemoryArray(slots=s.number(0x0D, 2) or 0, capacity=capacity or None)


def _memory(s: Structure) -> MemoryDevice:
    return MemoryDevice(
        locator=s.text(0x10),
        size=_memory_size(s),
        manufacturer=s.text(0x17),
        serial=s.text(0x18),
        part=s.text(0x1A),
        speed=s.number(0x15, 2) or None,
    )


def _memory_size(s: Structure) -> int | None:
    """7.18.5: 0 empty, 0xFFFF unknown, 0x7FFF see the extended size, bit 15 for KiB instead of MiB."""
    size = s.number(0x0C, 2)
    if size is None or size == 0xFFFF:
        return None
    if size == 0x7FFF:
        extended = s.number(0x1C, 4)
        return None if extended is None else (extended & 0x7FFF_FFFF) * MIB
    return (size & 0x7FFF) * 1024 if size & 0x8000 else size * MIB
