from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from nodeos.fingerprint.sketch import QUANTILES, Invalid, Sketch, parse_reading, sketch


@given(st.lists(st.integers(0, 2**62), min_size=1))
def test_a_sketch_holds_values_that_were_seen(samples: list[int]) -> None:
    found = sketch(samples, "ns", least_n=1)
    assert isinstance(found, Sketch)
    assert found.n == len(samples)
    assert found.least == found.quantiles[0] == min(samples)
    assert found.quantiles[-1] == max(samples)
    assert list(found.quantiles) == sorted(found.quantiles)
    assert set(found.quantiles) <= set(samples)
    assert parse_reading(found.to_map(), "x") == found


def test_quantiles_are_where_they_should_be() -> None:
    found = sketch(list(range(3200, -1, -1)), "ns", least_n=33)
    assert isinstance(found, Sketch)
    assert found.quantiles == tuple(range(0, 3201, 100))


def test_too_few_samples_are_not_valid() -> None:
    found = sketch([1, 2], "ns", least_n=3)
    assert found == Invalid("only 2 samples in the time allowed, 3 are needed")
    assert parse_reading(found.to_map(), "x") == found


def test_a_clock_that_went_backwards_is_not_valid() -> None:
    assert sketch([5, -1, 7], "ns", least_n=1) == Invalid("the clock went backwards")


GOOD: dict[str, Any] = {"unit": "ns", "n": 40, "min": 0, "quantiles": list(range(QUANTILES))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, r"x\.n"),
        ({"unit": 1}, r"x\.unit"),
        ({"min": 1}, r"x\.min"),
        ({"quantiles": list(range(32))}, r"x\.quantiles"),
        ({"quantiles": list(range(34))}, r"x\.quantiles"),
        ({"quantiles": [*range(32), 0]}, r"x\.quantiles"),
        ({"quantiles": [-1, *range(32)], "min": -1}, r"x\.min"),
        ({"more": 1}, "unknown field: more"),
        ({"invalid": "why"}, "unknown field"),
    ],
)
def test_each_wrong_field_is_named(change: dict[str, Any], words: str) -> None:
    assert isinstance(parse_reading(GOOD, "x"), Sketch)
    with pytest.raises(ParseError, match=words):
        parse_reading({**GOOD, **change}, "x")
