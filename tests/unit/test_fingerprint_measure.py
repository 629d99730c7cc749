from __future__ import annotations

from collections.abc import Callable

import pytest

from nodeos.core.errors import NodeosError
from nodeos.fingerprint import measure
from nodeos.fingerprint.sketch import Invalid, Sketch

MS = 1_000_000


def ticking(step: int) -> Callable[[], int]:
    """A clock that moves on by ``step`` nanoseconds at each look."""
    now = 0

    def clock() -> int:
        nonlocal now
        now += step
        return now

    return clock


def test_the_timer_step_is_the_clocks() -> None:
    found = measure.timer_step(ticking(100), MS)
    assert isinstance(found, Sketch)
    assert (found.least, found.quantiles[-1], found.unit) == (100, 100, "ns")


def test_a_clock_that_stands_still_for_a_while_is_measured_by_its_moves() -> None:
    tick = ticking(1)
    found = measure.timer_step(lambda: tick() // 50 * 50, MS)
    assert isinstance(found, Sketch)
    assert found.quantiles[16] == 50


def test_a_gap_is_found_in_its_millisecond() -> None:
    looks = 0

    def clock() -> int:
        nonlocal looks
        looks += 1
        return looks * 1000 + (40_000 if looks > 50_000 else 0)

    found = measure.scheduling_gap(clock, 100 * MS)
    assert isinstance(found, Sketch)
    assert found.least == 1000
    assert found.quantiles[-1] == 41_000
    assert found.quantiles[-2] == 1000


def test_a_machine_that_is_too_slow_gives_no_reading() -> None:
    slow = ticking(50 * MS)
    assert isinstance(measure.copy(slow, 100 * MS), Invalid)
    assert isinstance(measure.loads(slow, 100 * MS, 1 << 14), Invalid)
    assert isinstance(measure.scheduling_gap(slow, 100 * MS), Invalid)
    assert isinstance(measure.timer_step(slow, 100 * MS), Invalid)
    assert isinstance(measure.sha256(slow, 100 * MS), Invalid)


def test_loads_are_per_load() -> None:
    found = measure.loads(ticking(256_000), 1 << 62, 1 << 14)
    assert isinstance(found, Sketch)
    assert (found.least, found.n) == (1000, 2048)


def test_tpm_commands_are_timed() -> None:
    calls = []
    found = measure.tpm(ticking(MS), 1000 * MS, lambda: calls.append(1))
    assert isinstance(found, Sketch)
    assert found.n == len(calls) == 64
    assert found.least == MS


def test_a_missing_or_failing_tpm_is_a_reading_too() -> None:
    def fail() -> None:
        raise NodeosError("the TPM is gone\nmore")

    assert measure.tpm(ticking(1), MS, None) == Invalid("no TPM")
    assert measure.tpm(ticking(1), MS, fail) == Invalid("the TPM failed: the TPM is gone")


@pytest.mark.parametrize("size", [1 << 14, 1 << 20])
def test_loads_visit_the_whole_buffer(size: int) -> None:
    """The generator has a full period for a power of two: multiplier 1 modulo 4, increment odd."""
    place, seen = 1, set()
    for _ in range(size):
        place = (place * 1_664_525 + 1_013_904_222 + 1) & (size - 1)
        seen.add(place)
    assert len(seen) == size
