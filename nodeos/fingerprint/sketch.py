"""Sketches: what is kept of a measurement. 33 quantiles as whole numbers, the least value, and the count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nodeos.core.wire import Fields, ParseError, parse_int

QUANTILES = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """``quantiles[k]`` is the k/32 quantile by nearest rank, so that each one is a value that was seen."""

    unit: str
    n: int
    least: int
    quantiles: tuple[int, ...]

    def to_map(self) -> dict[str, Any]:
        return {"unit": self.unit, "n": self.n, "min": self.least, "quantiles": list(self.quantiles)}


@dataclass(frozen=True, slots=True)
class Invalid:
    """A reading that must not be used, and why."""

    reason: str

    def to_map(self) -> dict[str, Any]:
        return {"invalid": self.reason}


Reading = Sketch | Invalid


def sketch(samples: Sequence[int], unit: str, *, least_n: int) -> Reading:
    """Sketch ``samples``. Invalid with fewer than ``least_n`` of them, or if the clock went backwards."""
    if len(samples) < least_n:
        return Invalid(f"only {len(samples)} samples in the time allowed, {least_n} are needed")
    ordered = sorted(samples)
    if ordered[0] < 0:
        return Invalid("the clock went backwards")
    last = len(ordered) - 1
    quantiles = tuple(ordered[(k * last + (QUANTILES - 1) // 2) // (QUANTILES - 1)] for k in range(QUANTILES))
    return Sketch(unit=unit, n=len(ordered), least=ordered[0], quantiles=quantiles)


def parse_reading(value: object, path: str) -> Reading:
    """Read one measurement back. Raises ParseError."""
    fields = Fields(value, path)
    if fields.has("invalid"):
        reading: Reading = Invalid(fields.text("invalid", limit=128))
        fields.done()
        return reading
    reading = Sketch(
        unit=fields.text("unit", limit=16),
        n=fields.integer("n", low=1),
        least=fields.integer("min"),
        quantiles=fields.list_of("quantiles", parse_int, limit=QUANTILES),
    )
    fields.done()
    if len(reading.quantiles) != QUANTILES or list(reading.quantiles) != sorted(reading.quantiles):
        raise ParseError(f"{path}.quantiles: expected {QUANTILES} numbers that don't fall")
    if reading.least != reading.quantiles[0] or reading.least < 0:
        raise ParseError(f"{path}.min: expected the first quantile, not below zero")
    return reading
