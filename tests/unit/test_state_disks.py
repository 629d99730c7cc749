"""Which partition the state is on, and what is on that partition."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import NodeosError
from nodeos.state.contents import MAKING, MIB, Contents, contents
from nodeos.state.disks import STATE_TYPE, NotThereYetError, Places, find, parse_boot_partition
from tests.support.state_machine import BOOT_PARTITION, row

BOOT = row("/dev/sda1", "part", "/dev/sda", BOOT_PARTITION)
STATE = row("/dev/sda8", "part", "/dev/sda", "aa", STATE_TYPE)
ROWS = [row("/dev/sda", "disk"), row("/dev/sdb", "disk"), BOOT, STATE]


def listing(*rows: dict[str, str]) -> bytes:
    return json.dumps({"blockdevices": rows}).encode()


def test_state_partition_of_the_boot_disk() -> None:
    assert find(listing(*ROWS), BOOT_PARTITION) == Places(
        disk="/dev/sda", boot="/dev/sda1", state="/dev/sda8"
    )
    upper = {**BOOT, "partuuid": BOOT_PARTITION.upper()}
    assert find(listing(*ROWS[:2], upper, STATE), BOOT_PARTITION).boot == "/dev/sda1"


def test_state_partitions_elsewhere_are_not_looked_at() -> None:
    other = row("/dev/sdb1", "part", "/dev/sdb", "bb", STATE_TYPE)
    assert find(listing(*ROWS, other), BOOT_PARTITION).state == "/dev/sda8"
    with pytest.raises(NotThereYetError, match="no state partition on /dev/sda"):
        find(listing(*ROWS[:3], other), BOOT_PARTITION)


def test_copy_of_the_boot_disk() -> None:
    copy = row("/dev/sdb1", "part", "/dev/sdb", BOOT_PARTITION)
    with pytest.raises(NodeosError, match="two disks carry") as caught:
        find(listing(*ROWS, copy), BOOT_PARTITION)
    assert not isinstance(caught.value, NotThereYetError)


def test_two_state_partitions_on_the_boot_disk() -> None:
    second = row("/dev/sda9", "part", "/dev/sda", "cc", STATE_TYPE)
    with pytest.raises(NodeosError, match="more than one state partition"):
        find(listing(*ROWS, second), BOOT_PARTITION)


@pytest.mark.parametrize(
    "boot",
    [
        row("/dev/mapper/x", "dm", "/dev/sda", BOOT_PARTITION),
        row("/dev/mapper/x", "part", "/dev/mapper/y", BOOT_PARTITION),
        row("/dev/sda1", "part", "/dev/sda", "other"),
    ],
)
def test_boot_partition_that_lies_on_no_disk(boot: dict[str, str]) -> None:
    with pytest.raises(NotThereYetError, match="does not show"):
        find(listing(*ROWS[:2], boot, STATE), BOOT_PARTITION)


@given(
    st.binary(max_size=40) | st.sampled_from([b"{}", b'{"blockdevices":1}', b'{"blockdevices":[1]}', b"[]"])
)
def test_any_listing_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(NodeosError):
        find(data, BOOT_PARTITION)


@pytest.mark.parametrize(
    "variable",
    [
        None,
        b"",
        b"\x06\0\0\0",
        b"\x06\0\0\0x",
        b"\x06\0\0\0" + "no UUID\0".encode("utf-16-le"),
        b"\x06\0\0\0" + f"{BOOT_PARTITION}0\0".encode("utf-16-le"),
        b"\x06\0\0\0" + b"\x00\xd8",
    ],
)
def test_unknown_boot_disk_ends_it(variable: bytes | None) -> None:
    with pytest.raises(NodeosError, match="can't be told"):
        parse_boot_partition(variable)


def test_boot_variable() -> None:
    data = b"\x06\0\0\0" + (BOOT_PARTITION.upper() + "\0").encode("utf-16-le")
    assert parse_boot_partition(data) == BOOT_PARTITION


def test_contents() -> None:
    zero = bytes(MIB)
    assert contents(zero, zero) is Contents.BLANK
    assert contents(MAKING + zero[512:], zero) is Contents.MAKING
    # Whatever else there is: the mark stands until all is written.
    assert contents(MAKING + b"x" * (MIB - 512), b"x" * MIB) is Contents.MAKING
    assert contents(b"LUKS\xba\xbe\x00\x02" + zero[8:], zero) is Contents.LUKS2
    for first, last in (
        (b"LUKS\xba\xbe\x00\x01" + zero[8:], zero),
        (zero[1:] + b"x", zero),
        (zero, b"x" + zero[1:]),
        (zero[1:], zero),
        (zero, zero[1:]),
        (b"", b""),
        (MAKING[:40].ljust(511, b"\0") + b"x" + zero[512:], zero),
    ):
        assert contents(first, last) is Contents.FOREIGN
