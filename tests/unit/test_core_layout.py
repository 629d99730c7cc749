"""The layout of an installed disk."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from nodeos.core import layout
from nodeos.core.errors import UsageError
from nodeos.core.gpt import MIB, READ_ONLY, Table
from nodeos.core.layout import SlotName, clear, fill, plan, slots

DISK = UUID(int=7)
HASH = bytes(range(32))
GIB = 1 << 30


def fresh(size: int = 8 * GIB, sector: int = 512) -> Table:
    return plan(size, sector, version="0.2.0", root_hash=HASH, disk_uuid=DISK)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("size", [layout.MINIMUM, layout.MINIMUM + 4096 * 7, 8 * GIB, 2 << 40])
def test_plan(size: int, sector: int) -> None:
    table = fresh(size, sector)
    assert [part.number for part in table.partitions] == list(range(1, 9))
    assert all(part.start % MIB == 0 and part.size % MIB == 0 for part in table.partitions)
    ends = [part.end for part in table.partitions]
    assert [part.start for part in table.partitions] == [MIB, *ends[:-1]]
    assert size - 2 * MIB < layout.state(table).end <= size - MIB
    assert layout.state(table).size >= GIB
    assert len({part.uuid for part in table.partitions}) == 8
    assert fresh(size, sector) == table


def test_too_small() -> None:
    with pytest.raises(UsageError, match="an installation needs"):
        fresh(layout.MINIMUM - 512)


def test_systemd_finds_the_slot_by_the_root_hash() -> None:
    a, b = slots(fresh())
    assert (a.root.uuid, a.verity.uuid) == (UUID(HASH[:16].hex()), UUID(HASH[16:].hex()))
    assert a.signature.uuid == layout.signature_uuid(HASH)
    assert [part.label for part in a.partitions] == [
        "nodeos_0.2.0",
        "nodeos_0.2.0_verity",
        "nodeos_0.2.0_sig",
    ]
    assert all(part.attributes & READ_ONLY for part in (*a.partitions, *b.partitions))
    assert (a.version, a.empty, a.torn) == ("0.2.0", False, False)
    assert (b.version, b.empty, b.torn) == (None, True, False)


def test_fill_and_clear() -> None:
    both = fill(fresh(), SlotName.B, version="0.3.0", root_hash=bytes(32)[:-1] + b"x")
    assert [slot.version for slot in slots(both)] == ["0.2.0", "0.3.0"]
    assert clear(both, SlotName.B) == fresh()
    assert [slot.version for slot in slots(clear(both, SlotName.A))] == [None, "0.3.0"]


def test_a_slot_whose_labels_disagree_is_torn() -> None:
    table = fill(fresh(), SlotName.B, version="0.3.0", root_hash=bytes(32))
    for number in (5, 6, 7):
        for label in ("_empty", "nodeos_0.2.0", "x" * 3):
            parts = tuple(
                replace(part, label=label) if part.number == number else part for part in table.partitions
            )
            assert slots(replace(table, partitions=parts))[1].torn


def test_another_layout_is_refused() -> None:
    table = fresh()
    for number in range(2, 8):
        parts = tuple(part for part in table.partitions if part.number != number)
        with pytest.raises(UsageError, match=f"partition {number} is missing"):
            slots(replace(table, partitions=parts))


@pytest.mark.parametrize("version", ["", "1_2", "a/b", "1" * 23, "é", ".1", "1\n"])
def test_versions_that_cannot_be_labels(version: str) -> None:
    with pytest.raises(UsageError, match="can't be a partition's label"):
        plan(8 * GIB, 512, version=version, root_hash=HASH, disk_uuid=DISK)


def test_a_root_hash_of_another_length() -> None:
    with pytest.raises(UsageError, match="31 bytes"):
        plan(8 * GIB, 512, version="1", root_hash=HASH[1:], disk_uuid=DISK)
