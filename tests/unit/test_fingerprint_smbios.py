from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from nodeos.fingerprint.smbios import GIB, parse, parse_entry_point, parse_structures
from tests.support.smbios_tables import (
    END,
    entry_point_2,
    entry_point_3,
    machine,
    memory_array,
    memory_device,
    processor,
    structure,
    system,
)


@pytest.mark.parametrize("entry_point", [entry_point_2, entry_point_3])
def test_a_whole_machine(entry_point: object) -> None:
    table = machine()
    assert callable(entry_point)
    found = parse(entry_point(len(table)), table)
    assert found.version == (3, 3)
    assert found.system is not None
    assert (found.system.manufacturer, found.system.product) == ("Dell Inc.", "PowerEdge R7525")
    assert found.system.serial == "ABC1234"
    assert found.board is not None
    assert found.board.serial == ".ABC1234.CN0000."
    assert [(p.socket, p.cores, p.threads, p.populated) for p in found.processors] == [
        ("CPU1", 16, 32, True),
        ("CPU2", 16, 32, True),
    ]
    assert [(a.slots, a.capacity) for a in found.arrays] == [(32, 4096 * GIB)]
    assert [d.size for d in found.memory] == [32 * GIB] * 16 + [0] * 16
    assert (found.memory[0].part, found.memory[0].manufacturer) == ("36ASF4G72PZ-3G2E7", "002C0632002C")
    assert found.memory[0].speed == 3200


def test_counts_beyond_255() -> None:
    found = parse(entry_point_3(999), processor("P", cores=300, threads=600) + END).processors[0]
    assert (found.cores, found.threads) == (300, 600)


def test_an_empty_socket() -> None:
    assert not parse(entry_point_3(999), processor("P", populated=False) + END).processors[0].populated


def test_only_central_processors_count() -> None:
    assert parse(entry_point_3(999), processor("P", kind=6) + END).processors == ()


@pytest.mark.parametrize(
    ("code", "extended", "size"),
    [
        (0, 0, 0),
        (0xFFFF, 0, None),
        (0x4000, 0, 16 * GIB),
        (0x8000 | 512, 0, 512 << 10),
        (0x7FFF, 128 << 10, 128 * GIB),
        (0x7FFF, 0x8000_0000 | 64, 64 << 20),
    ],
)
def test_sizes_of_memory(code: int, extended: int, size: int | None) -> None:
    table = memory_device(code, extended) + END
    assert parse(entry_point_3(len(table)), table).memory[0].size == size


def test_an_old_memory_device_has_no_extended_size() -> None:
    table = memory_device(0x7FFF, 0, length=0x1B) + END
    assert parse(entry_point_3(len(table)), table).memory[0].size is None


def test_capacity_beyond_two_terabytes() -> None:
    table = memory_array(8, 8 * 1024 * GIB) + END
    assert parse(entry_point_3(len(table)), table).arrays[0].capacity == 8 * 1024 * GIB


def test_a_string_that_is_not_there_is_none() -> None:
    table = structure(1, bytes([1, 9, 0, 2]) + bytes(19), "Maker") + END
    found = parse(entry_point_3(len(table)), table).system
    assert found is not None
    assert (found.manufacturer, found.product, found.serial) == ("Maker", None, None)


def test_firmware_text_is_made_printable() -> None:
    table = structure(1, bytes([1, 2, 0, 0]) + bytes(19), " M\x1b[2Jk\xe9r ", "   ") + END
    found = parse(entry_point_3(len(table)), table).system
    assert found is not None
    assert (found.manufacturer, found.product) == ("M?[2Jk?r", None)


def test_nothing_is_read_behind_the_end() -> None:
    assert len(parse_structures(END + b"\xff" * 100)) == 1


def test_an_end_that_is_cut_off_is_an_end() -> None:
    assert len(parse_structures(system() + END[:4])) == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"\x01", "ends within the header at 0"),
        (b"\x01\x03\x00\x00\x00\x00", "has the length 3"),
        (b"\x01\x08\x00\x00\x00\x00", "has the length 8"),
        (b"\x01\x04\x00\x00abc", "have no end"),
        (b"\x01\x04\x00\x00\x00", "have no end"),
        (b"\x01\x04\x00\x00\x00\x00" * 4097, "more than 4096 structures"),
    ],
)
def test_what_is_cut_off_or_endless_is_refused(table: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_structures(table)


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither"),
        (b"_SM", "neither"),
        (b"_SM_", "too short"),
        (b"_SM3_", "too short"),
        (entry_point_3(9)[:-1], "too short"),
        (entry_point_2(9)[:-1], "too short"),
        (damaged(entry_point_3(9), 8), "wrong checksum"),
        (damaged(entry_point_2(9), 6), "wrong checksum"),
        (damaged(entry_point_2(9), 0x16), "checksum|malformed"),
    ],
)
def test_a_damaged_entry_point_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_entry_point(data)


def test_a_table_larger_than_declared_is_refused() -> None:
    with pytest.raises(ParseError, match="the entry point declares 5"):
        parse(entry_point_3(5), machine())


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(entry_point: bytes, table: bytes) -> None:
    with contextlib.suppress(ParseError):
        parse(entry_point, table)
    with contextlib.suppress(ParseError):
        parse(entry_point_3(1 << 20), table)


@given(st.data())
def test_a_damaged_table_is_parsed_or_refused(data: st.DataObject) -> None:
    table = bytearray(machine())
    for _ in range(data.draw(st.integers(1, 8))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(table)))
    with contextlib.suppress(ParseError):
        parse(entry_point_3(1 << 20), bytes(table[:cut]))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 4, 16, 17, 200]),
            st.binary(max_size=60),
            st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=255), min_size=1), max_size=4),
        ),
        max_size=6,
    )
)
def test_structures_survive_a_round_trip(parts: list[tuple[int, bytes, list[str]]]) -> None:
    table = b"".join(structure(kind, data, *strings) for kind, data, strings in parts) + END
    found = parse_structures(table)
    assert [(s.type, s.data[4:], len(s.strings)) for s in found[:-1]] == [
        (kind, data, len(strings)) for kind, data, strings in parts
    ]
    parse(entry_point_3(len(table)), table)
