"""Partition tables: made and read back, every broken copy noticed."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import UsageError
from nodeos.core.gpt import MIB, Partition, Table

SIZE = 16 * MIB
KIND = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def table(sector: int = 512) -> Table:
    parts = (
        Partition(number=1, type=KIND, uuid=UUID(int=1), start=MIB, size=MIB, label="eins"),
        Partition(
            number=3, type=KIND, uuid=UUID(int=3), start=4 * MIB, size=2 * MIB, label="ü" * 36,
            attributes=1 << 60,
        ),
    )  # fmt: skip
    return Table(size=SIZE, sector=sector, uuid=UUID(int=9), partitions=parts)


def disk(made: Table) -> bytearray:
    data = bytearray(made.size)
    primary, backup = made.primary(), made.backup()
    data[: len(primary)] = primary
    data[made.backup_offset :] = backup
    return data


def parse(data: bytes | bytearray, sector: int = 512) -> Table:
    return Table.parse(lambda offset, length: bytes(data[offset : offset + length]), len(data), sector)


@pytest.mark.parametrize("sector", [512, 2048, 4096])
def test_round_trip(sector: int) -> None:
    made = table(sector)
    assert parse(disk(made), sector) == made
    # What the specification says of each copy's place.
    data = disk(made)
    assert data[510:512] == b"\x55\xaa"
    assert data[450] == 0xEE
    assert struct.unpack_from("<QQ", data, sector + 24) == (1, SIZE // sector - 1)
    assert struct.unpack_from("<QQ", data, SIZE - sector + 24) == (SIZE // sector - 1, 1)


def test_known_header() -> None:
    """The checksums, computed here by hand."""
    data = disk(table())
    header = data[512:604]
    assert struct.unpack_from("<I", header, 88)[0] == zlib.crc32(data[1024 : 1024 + 128 * 128])
    crc = struct.unpack_from("<I", header, 16)[0]
    header[16:20] = bytes(4)
    assert crc == zlib.crc32(header)


@pytest.mark.parametrize(
    ("at", "word"),
    [
        (512, "primary partition table is broken: there is none"),
        (512 + 8, "primary partition table is broken: its header has another form"),
        (512 + 56, "primary partition table is broken: its header's checksum"),
        (1024 + 40, "primary partition table is broken: its entries' checksum"),
        (SIZE - 512, "backup partition table is broken: there is none"),
        (SIZE - 512 - 100, None),
        (SIZE - 512 - 128 * 128 + 40, "backup partition table is broken: its entries' checksum"),
    ],
)
def test_one_broken_copy(at: int, word: str | None) -> None:
    data = disk(table())
    data[at] ^= 1
    found = parse(data)
    assert found.partitions == table().partitions
    if word is None:
        assert "entries' checksum" in (found.word or "")
    else:
        assert word in (found.word or "")


def test_a_header_in_another_place() -> None:
    data = disk(table())
    data[512:1024] = data[-512:]
    assert "for another place" in (parse(data).word or "")


def test_copies_that_differ() -> None:
    """An update that was cut off between the two: the primary counts."""
    other = replace(table(), partitions=table().partitions[:1])
    data = disk(table())
    data[other.backup_offset :] = other.backup()
    found = parse(data)
    assert found.partitions == table().partitions
    assert "another than the primary" in (found.word or "")


@pytest.mark.parametrize(("field", "value"), [(32, 2**64 - 1), (72, 2**64 - 1), (72, SIZE // 512)])
def test_places_outside_of_the_disk(field: int, value: int) -> None:
    """AlternateLBA and PartitionEntryLBA, with a checksum that holds."""
    data = disk(table())
    struct.pack_into("<Q", data, 512 + field, value)
    data[528:532] = bytes(4)
    struct.pack_into("<I", data, 528, zlib.crc32(data[512:604]))

    def read_at(offset: int, length: int) -> bytes:
        assert 0 <= offset < SIZE
        return bytes(data[offset : offset + length])

    found = Table.parse(read_at, SIZE, 512)
    assert found.partitions == table().partitions
    assert found.word is not None


def test_both_broken() -> None:
    data = disk(table())
    data[512] ^= 1
    data[-512] ^= 1
    with pytest.raises(UsageError, match="no partition table"):
        parse(data)
    for size in (0, 100, 512, 4096):
        with pytest.raises(UsageError, match="no partition table"):
            parse(bytes(size))


def test_an_image_on_a_larger_disk_ends_where_its_header_says() -> None:
    assert parse(disk(table()) + bytes(MIB)) == table()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": 0}, "not free"),
        ({"start": 4 * MIB}, "not free"),
        ({"start": MIB + 1}, "whole sectors"),
        ({"size": 0}, "whole sectors"),
        ({"size": 15 * MIB}, "has room until|not free"),
        ({"number": 0}, "entries"),
        ({"number": 3}, "stands twice"),
        ({"number": 200}, "don't rise"),
    ],
)
def test_partitions_that_cannot_be(changes: dict[str, int], words: str) -> None:
    first, last = table().partitions
    with pytest.raises(UsageError, match=words):
        replace(table(), partitions=(replace(first, **changes), last))  # type: ignore[arg-type]


def test_what_does_not_fit() -> None:
    first, last = table().partitions
    with pytest.raises(UsageError, match="has room until"):
        replace(table(), partitions=(first, replace(last, size=12 * MIB)))
    with pytest.raises(UsageError, match="longer than 36"):
        replace(table(), partitions=(replace(first, label="x" * 37),)).primary()
    with pytest.raises(UsageError, match="can't be partitioned"):
        replace(table(), sector=1024)


@given(st.binary(max_size=200), st.integers(0, 33 * 512))
def test_any_bytes_give_a_table_or_an_error(junk: bytes, at: int) -> None:
    data = disk(table())
    data[at : at + len(junk)] = junk
    data[-512:] = bytes(512)
    with suppress(UsageError):
        assert parse(data).partitions == table().partitions
