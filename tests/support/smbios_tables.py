"""SMBIOS tables made for tests, after the specification's layouts. The example is of the kind of a Gen-1
machine: two processors of 16 cores, 16 of 32 slots with 32 GiB each."""

from __future__ import annotations

import itertools

from nodeos.fingerprint.smbios import GIB, MIB

_handles = itertools.count()


def structure(kind: int, data: bytes, *strings: str) -> bytes:
    """A structure; ``data`` is the formatted part behind the header."""
    header = bytes([kind, 4 + len(data)]) + (next(_handles) & 0xFFFF).to_bytes(2, "little")
    text = b"".join(item.encode("latin-1") + b"\0" for item in strings)
    return header + data + (text or b"\0") + b"\0"


END = structure(127, b"")


def _placed(length: int, *fields: tuple[int, int, int]) -> bytes:
    """A formatted part of ``length`` bytes (with the header) with numbers at (offset, size, value)."""
    data = bytearray(length)
    for offset, size, value in fields:
        if offset + size <= length:
            data[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(data[4:])


def system() -> bytes:
    data = _placed(27, (4, 1, 1), (5, 1, 2), (7, 1, 3))
    return structure(1, data, "Dell Inc.", "PowerEdge R7525", "ABC1234")


def board() -> bytes:
    data = _placed(15, (4, 1, 1), (5, 1, 2), (7, 1, 3))
    return structure(2, data, "Dell Inc.", "0590KW", ".ABC1234.CN0000.")


def processor(
    socket: str, *, cores: int = 16, threads: int = 32, populated: bool = True, kind: int = 3
) -> bytes:
    data = _placed(
        0x30,
        (4, 1, 1),
        (5, 1, kind),
        (7, 1, 2),
        (0x10, 1, 3),
        (0x18, 1, 0x41 if populated else 0),
        (0x23, 1, min(cores, 255)),
        (0x25, 1, min(threads, 255)),
        (0x2A, 2, cores),
        (0x2E, 2, threads),
    )
    return structure(4, data, socket, "AMD", "AMD EPYC 7302 16-Core Processor")


def memory_array(slots: int, capacity: int) -> bytes:
    kib = capacity // 1024
    small = 0x8000_0000 if kib >= 0x8000_0000 else kib
    return structure(16, _placed(0x17, (7, 4, small), (0x0D, 2, slots), (0x0F, 8, capacity)))


def memory_device(code: int, extended: int = 0, length: int = 0x54) -> bytes:
    """A slot whose size field is ``code`` and whose extended size is ``extended``."""
    data = _placed(
        length,
        (0x0C, 2, code),
        (0x10, 1, 1),
        (0x15, 2, 3200),
        (0x17, 1, 2),
        (0x18, 1, 3),
        (0x1A, 1, 4),
        (0x1C, 4, extended),
    )
    return structure(17, data, "A1", "002C0632002C", "2B5D11F0", "36ASF4G72PZ-3G2E7")


def machine() -> bytes:
    fitted = memory_device(0x7FFF, 32 * GIB // MIB)
    return (
        system()
        + board()
        + processor("CPU1")
        + processor("CPU2")
        + memory_array(32, 4096 * GIB)
        + fitted * 16
        + memory_device(0) * 16
        + END
    )


def entry_point_3(size: int) -> bytes:
    data = bytearray(b"_SM3_\x00\x18\x03\x03\x00\x01\x00" + size.to_bytes(4, "little") + bytes(8))
    data[5] = -sum(data) & 0xFF
    return bytes(data)


def entry_point_2(size: int) -> bytes:
    data = bytearray(0x1F)
    data[:4] = b"_SM_"
    data[5:8] = b"\x1f\x03\x03"
    data[0x10:0x15] = b"_DMI_"
    data[0x16:0x18] = size.to_bytes(2, "little")
    data[0x15] = -sum(data[0x10:]) & 0xFF
    data[4] = -sum(data) & 0xFF
    return bytes(data)
