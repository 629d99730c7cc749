"""Endorsement certificates as manufacturers store them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import TpmError
from hsm.tpm.nv import PLACES, chain_certificates, leaf_certificate


def _sequence(length: int, fill: int = 0x05) -> bytes:
    return b"\x30\x82" + length.to_bytes(2, "big") + bytes([fill]) * length


LEAF = _sequence(600)


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"\x10\x01\x00",
        b"\x10\x01\x00" + (604).to_bytes(2, "big"),
        b"\x10\x01\x00" + (606).to_bytes(2, "big") + b"\x10\x02",
    ],
    ids=["plain", "short", "sized", "full"],
)
@pytest.mark.parametrize("padding", [b"", b"\xff" * 300, b"\0" * 300], ids=["none", "ff", "00"])
def test_leaf_is_found(prefix: bytes, padding: bytes) -> None:
    assert leaf_certificate(prefix + LEAF + padding) == LEAF


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 800,
        LEAF[:-1],
        b"\x10\x01\x00",
        b"\x30\x03\x02\x01\x00",
        _sequence(200),
        b"\x31" + LEAF[1:],
    ],
    ids=["empty", "blank", "cut", "prefix", "short-form", "too-short", "no-sequence"],
)
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(TpmError, match="can't be read"):
        leaf_certificate(data)


def test_other_data_behind_the_leaf_is_refused() -> None:
    with pytest.raises(TpmError, match="followed by other data"):
        leaf_certificate(LEAF + b"\xff\x01")


@given(st.binary(max_size=700))
def test_leaf_raises_nothing_else(data: bytes) -> None:
    try:
        found = leaf_certificate(data)
    except TpmError:
        return
    assert found in data


@given(
    st.lists(st.integers(min_value=252, max_value=900), max_size=4),
    st.lists(st.sampled_from([b"", b"\0\0", b"\xff" * 9]), min_size=5, max_size=5),
)
def test_chain_with_padding(lengths: list[int], padding: list[bytes]) -> None:
    certificates = tuple(_sequence(length, fill) for fill, length in enumerate(lengths, 1))
    data = b"".join(
        pad + certificate for pad, certificate in zip(padding, (*certificates, b""), strict=False)
    )
    assert chain_certificates(data) == certificates


@given(st.binary(max_size=700))
def test_chain_raises_nothing(data: bytes) -> None:
    for found in chain_certificates(LEAF + data):
        assert found in LEAF + data


def test_chain_ends_at_what_cannot_be_read() -> None:
    assert chain_certificates(LEAF + b"\x42" + LEAF) == (LEAF,)
    assert chain_certificates(LEAF + LEAF[:-1]) == (LEAF,)


def test_places_are_distinct_and_rsa_comes_first() -> None:
    assert len({place.certificate for place in PLACES}) == len(PLACES)
    assert len({place.handle for place in PLACES}) == len(PLACES)
    assert (PLACES[0].certificate, PLACES[0].handle) == (0x01C00002, 0x81010001)
