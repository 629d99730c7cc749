"""Candid: known encodings, round trips, subtyping, and hostile messages."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError
from replica import candid
from replica.candid import (
    BLOB,
    BOOL,
    FLOAT64,
    INT,
    INT8,
    NAT,
    NAT8,
    NAT64,
    NULL,
    PRINCIPAL,
    RESERVED,
    TEXT,
    CandidError,
    Opt,
    Type,
    Vec,
    decode,
    decode_any,
    encode,
    field_number,
    record,
    variant,
)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        # From the specification's own test suite (test/prim.test.did, construct.test.did).
        (NAT, 0, "4449444c00017d00"),
        (NAT, 128, "4449444c00017d8001"),
        (INT, -1, "4449444c00017c7f"),
        (INT, 128, "4449444c00017c8001"),
        (TEXT, "☃", "4449444c00017103e29883"),
        (BOOL, True, "4449444c00017e01"),
        (NULL, None, "4449444c00017f"),
        (NAT8, 255, "4449444c00017bff"),
        (FLOAT64, -0.5, "4449444c000172000000000000e0bf"),
        (PRINCIPAL, Principal(b""), "4449444c0001680100"),
        (Opt(NULL), None, "4449444c016e7f010000"),
        (BLOB, b"\x00\x01", "4449444c016d7b0100020001"),
        (Vec(INT), [0, 1], "4449444c016d7c01000200" + "01"),
        (record(), {}, "4449444c016c000100"),
        (variant(a=NULL), ("a", None), "4449444c016b01617f010000"),
    ],
)
def test_known_encodings(kind: Type, value: object, text: str) -> None:
    assert encode((kind,), (value,)).hex() == text
    assert decode(bytes.fromhex(text), (kind,)) == (value,)


def test_field_numbers() -> None:
    assert field_number("a") == 97
    assert field_number("") == 0
    assert field_number("canister_id") == 1313628723


EVERYTHING = record(
    number=NAT,
    signed=INT,
    small=INT8,
    wide=NAT64,
    words=TEXT,
    data=BLOB,
    who=PRINCIPAL,
    maybe=Opt(record(inner=Vec(TEXT))),
    choice=variant(left=NAT, right=NULL),
    yes=BOOL,
    anything=RESERVED,
)
VALUES = st.fixed_dictionaries(
    {
        "number": st.integers(min_value=0, max_value=2**200),
        "signed": st.integers(min_value=-(2**200), max_value=2**200),
        "small": st.integers(min_value=-128, max_value=127),
        "wide": st.integers(min_value=0, max_value=2**64 - 1),
        "words": st.text(),
        "data": st.binary(),
        "who": st.binary(max_size=29).map(Principal),
        "maybe": st.none() | st.fixed_dictionaries({"inner": st.lists(st.text(), max_size=5)}),
        "choice": st.tuples(st.just("left"), st.integers(min_value=0)) | st.just(("right", None)),
        "yes": st.booleans(),
        "anything": st.none(),
    }
)


@given(VALUES)
def test_round_trip(value: dict[str, Any]) -> None:
    assert decode(encode((EVERYTHING,), (value,)), (EVERYTHING,)) == (value,)


@given(VALUES, st.data())
def test_cut_or_lengthened_messages_are_refused(value: dict[str, Any], data: st.DataObject) -> None:
    message = encode((EVERYTHING,), (value,))
    with pytest.raises(CandidError):
        decode(message[: data.draw(st.integers(0, len(message) - 1))], (EVERYTHING,))
    with pytest.raises(CandidError, match="left over"):
        decode(message + b"\x00", (EVERYTHING,))


@given(st.binary(max_size=100))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for message in (data, candid.MAGIC + data):
        with contextlib.suppress(CandidError, ParseError):
            decode_any(message)
        with contextlib.suppress(CandidError, ParseError):
            decode(message, (EVERYTHING,))


@given(VALUES, st.integers(min_value=0), st.integers(0, 255))
def test_flipped_bytes_decode_or_are_refused(value: dict[str, Any], place: int, byte: int) -> None:
    message = bytearray(encode((EVERYTHING,), (value,)))
    message[place % len(message)] = byte
    with contextlib.suppress(CandidError, ParseError):
        decode(bytes(message), (EVERYTHING,))


# --- subtyping ---


def test_more_arguments_and_fields_are_ignored() -> None:
    message = encode((record(a=NAT, b=TEXT), BOOL), ({"a": 1, "b": "x"}, True))
    assert decode(message, (record(a=NAT),)) == ({"a": 1},)


def test_missing_optional_parts_are_none() -> None:
    assert decode(encode((record(),), ({},)), (record(a=Opt(NAT)), Opt(TEXT))) == ({"a": None}, None)


def test_a_value_becomes_an_opt_and_a_nat_an_int() -> None:
    assert decode(encode((NAT,), (5,)), (Opt(NAT),)) == (5,)
    assert decode(encode((NAT,), (5,)), (INT,)) == (5,)
    assert decode(encode((Opt(TEXT),), ("x",)), (Opt(NAT),)) == (None,)


def test_opt_of_opt_keeps_its_levels() -> None:
    assert decode(bytes.fromhex("4449444c026e016e7d010001" + "00"), (Opt(NAT),)) == (None,)
    assert decode(bytes.fromhex("4449444c026e016e7d0100010105"), (Opt(Opt(NAT)),)) == (5,)


def test_empty_vec_of_anything_is_a_blob() -> None:
    assert decode(encode((Vec(TEXT),), ([],)), (BLOB,)) == (b"",)


@pytest.mark.parametrize(
    ("sent", "value", "wanted"),
    [
        (TEXT, "x", NAT),
        (INT, 1, NAT),
        (NAT8, 1, NAT),
        (record(), {}, record(a=NAT)),
        (variant(b=NULL), ("b", None), variant(a=NULL)),
        (NAT, 1, record()),
        (Vec(TEXT), ["x"], BLOB),
    ],
)
def test_other_types_are_refused(sent: Type, value: object, wanted: Type) -> None:
    with pytest.raises(CandidError, match="expected"):
        decode(encode((sent,), (value,)), (wanted,))


def test_missing_arguments_are_refused() -> None:
    with pytest.raises(CandidError, match="expected nat"):
        decode(encode((), ()), (NAT,))


def test_functions_and_services_are_read_past() -> None:
    function = decode_any(bytes.fromhex("4449444c016a000000" + "0100" + "01" + "0100" + "026869"))
    assert function == [(Principal(b""), b"hi")]
    service = decode_any(bytes.fromhex("4449444c026a000000" + "690102686900" + "0101" + "010104"))
    assert service == [Principal(b"\x04")]


# --- hostile messages ---


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("4449444d0000", id="another magic"),
        pytest.param("4449444cffffffff7f00", id="a huge table"),
        pytest.param("4449444c00ffffffff7f", id="many arguments"),
        pytest.param("4449444c016d7f0100ffffffffffff7f", id="a vec of null that unfolds"),
        pytest.param("4449444c016d000100ffffff7f", id="a vec of itself"),
        pytest.param("4449444c016c0100000100", id="a record of itself"),
        pytest.param("4449444c016e000100" + "01" * 100, id="an opt of itself"),
        pytest.param("4449444c00017d" + "80" * 5000 + "00", id="a long number"),
        pytest.param("4449444c016c02617f617f0100", id="a field twice"),
        pytest.param("4449444c016c02627f617f0100", id="fields out of order"),
        pytest.param("4449444c000105", id="a type beyond the table"),
        pytest.param("4449444c01000100", id="a constructor that is none"),
        pytest.param("4449444c00017102ffff", id="text that is not UTF-8"),
        pytest.param("4449444c00017e02", id="a bool that is two"),
        pytest.param("4449444c00016f", id="a value of empty"),
        pytest.param("4449444c00016800", id="an opaque principal"),
        pytest.param("4449444c000168011e" + "00" * 30, id="a principal of 30 bytes"),
        pytest.param("4449444c016b01617f010001", id="a variant's second case of one"),
        pytest.param("4449444c016d7b0100ff7f", id="a blob longer than the message"),
    ],
)
def test_hostile_messages_are_refused(text: str) -> None:
    with pytest.raises(CandidError):
        decode_any(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (NAT, -1),
        (NAT8, 256),
        (TEXT, 5),
        (variant(a=NULL), ("b", None)),
        (PRINCIPAL, b""),
        (record(a=NAT), {}),
    ],
)
def test_values_that_do_not_fit_are_refused(kind: Type, value: object) -> None:
    with pytest.raises(CandidError):
        encode((kind,), (value,))


def test_as_many_values_as_types() -> None:
    with pytest.raises(CandidError, match="2 types"):
        encode((NAT, NAT), (1,))
