from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import Finding
from nodeos.core.wire import (
    Fields,
    ParseError,
    b64,
    canonical_json,
    parse_data,
    parse_finding,
    parse_int,
    parse_json,
    parse_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, None], "a": {"é": True}}) == '{"a":{"é":true},"b":[1,null]}'.encode()


@pytest.mark.parametrize("value", [1.5, {"a": 1.0}, [float("nan")], ({"a": [2.0]},)])
def test_canonical_json_refuses_floats(value: Any) -> None:
    with pytest.raises(TypeError, match="floats"):
        canonical_json(value)


@given(JSON)
def test_canonical_json_survives_a_round_trip(value: Any) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


@given(st.binary(max_size=64))
def test_parse_json_raises_nothing_but_parse_errors(data: bytes) -> None:
    with contextlib.suppress(ParseError):
        parse_json(data, "input")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b"[1]", "input: expected an object, found a list"),
        (b"{", "input: not JSON"),
        (b"\xff", "input: not JSON"),
        (b"[" * 100_000, "input: not JSON"),
        (b'{"a": "' + b"x" * 100 + b'"}', "at most 99 are allowed"),
    ],
)
def test_parse_json_refuses(data: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_json(data, "input", limit=99 if len(data) < 1000 else 1 << 20)


@pytest.mark.parametrize(
    ("value", "take", "words"),
    [
        ({}, lambda f: f.text("x"), r"in\.x: missing"),
        ({"x": 1}, lambda f: f.text("x"), r"in\.x: expected text, found a whole number"),
        ({"x": "long"}, lambda f: f.text("x", limit=3), "longer than 3"),
        ({"x": True}, lambda f: f.integer("x"), "expected a whole number, found true or false"),
        ({"x": 1.0}, lambda f: f.integer("x"), "found a number"),
        ({"x": -1}, lambda f: f.integer("x"), "not between 0"),
        ({"x": 9}, lambda f: f.integer("x", high=8), "not between 0 and 8"),
        ({"x": 1}, lambda f: f.flag("x"), "expected true or false"),
        ({"x": "AA"}, lambda f: f.data("x"), "not base64"),
        ({"x": "AA==\n"}, lambda f: f.data("x"), "not base64"),
        ({"x": "é"}, lambda f: f.data("x"), "not base64"),
        ({"x": "AAAA"}, lambda f: f.data("x", length=4), "expected 4 bytes, found 3"),
        ({"x": "AAAA"}, lambda f: f.data("x", limit=2), "at most 2 are allowed"),
        ({"x": "zz"}, lambda f: f.hexadecimal("x"), "not hexadecimal"),
        ({"x": "00"}, lambda f: f.hexadecimal("x", length=2), "expected 2 bytes, found 1"),
        ({"x": []}, lambda f: f.nested("x"), "expected an object, found a list"),
        ({"x": {}}, lambda f: f.list_of("x", parse_int), "expected a list, found an object"),
        ({"x": [1, 2]}, lambda f: f.list_of("x", parse_int, limit=1), "more than 1 items"),
        ({"x": [1, True]}, lambda f: f.list_of("x", parse_int), r"in\.x\[1\]: expected a whole number"),
        ({"x": [None]}, lambda f: f.list_of("x", parse_text), r"in\.x\[0\]: expected text, found null"),
        ({"x": [7]}, lambda f: f.list_of("x", parse_data), r"in\.x\[0\]: expected base64 text"),
        ({"x": [{"code": "a"}]}, lambda f: f.list_of("x", parse_finding), r"in\.x\[0\]\.message: missing"),
    ],
)
def test_fields_refuse_with_the_path(value: dict[str, Any], take: Any, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        take(Fields(value, "in"))


def test_fields_take_what_is_right() -> None:
    fields = Fields(
        {
            "t": "a",
            "i": 3,
            "f": False,
            "d": b64(b"\x00\xff"),
            "h": "00ff",
            "n": {"z": 1},
            "l": [{"code": "c", "message": "m"}],
            "null": None,
        },
        "in",
    )
    assert fields.text("t") == "a"
    assert fields.integer("i") == 3
    assert fields.flag("f") is False
    assert fields.data("d", length=2) == b"\x00\xff"
    assert fields.hexadecimal("h") == b"\x00\xff"
    assert fields.nested("n").items() == (("z", 1),)
    assert fields.list_of("l", parse_finding) == (Finding(code="c", message="m"),)
    assert not fields.has("null")
    assert not fields.has("absent")
    fields.done()


def test_fields_refuse_what_is_left_over() -> None:
    fields = Fields({"a": 1, "c": 1, "b": 2}, "in")
    assert fields.has("a")
    fields.integer("a")
    with pytest.raises(ParseError, match="in: unknown field: b, c"):
        fields.done()


def test_fields_leave_the_callers_object_alone() -> None:
    value = {"a": 1}
    Fields(value, "in").integer("a")
    assert value == {"a": 1}
