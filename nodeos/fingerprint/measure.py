"""The quick suite: what plain Python can honestly time, each within a budget of its own, in nanoseconds.

Every reading includes the interpreter's own cost. For the copies and the hashing that is small (the work is
done in C, over megabytes). The two ``loads_*`` readings are dominated by it: only their difference says
something of the memory, and a native probe of its latency is not there yet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from nodeos.fingerprint.sketch import Invalid, Reading, sketch

MIB = 1 << 20
_MS = 1_000_000
# Loads of one sample; the sample's time is divided by it.
_LOADS = 256

Clock = Callable[[], int]


def quick_suite(
    tpm_command: Callable[[], object] | None, clock: Clock = time.perf_counter_ns
) -> dict[str, Reading]:
    """All readings; below 5 s on a machine of today. ``tpm_command`` runs one cheap command of the TPM."""
    return {
        "timer_step": timer_step(clock, 60 * _MS),
        "scheduling_gap": scheduling_gap(clock, 600 * _MS),
        "copy_16mib": copy(clock, 1000 * _MS),
        "sha256_256kib": sha256(clock, 500 * _MS),
        "loads_16kib": loads(clock, 300 * _MS, 16 << 10),
        "loads_64mib": loads(clock, 500 * _MS, 64 << 20),
        "tpm_command": tpm(clock, 1000 * _MS, tpm_command),
    }


def repeat(clock: Clock, budget: int, most: int, work: Callable[[], object]) -> list[int]:
    """Times of ``work``, until there are ``most`` or ``budget`` nanoseconds have passed."""
    times: list[int] = []
    end = clock() + budget
    while len(times) < most:
        before = clock()
        work()
        after = clock()
        times.append(after - before)
        if after >= end:
            break
    return times


def timer_step(clock: Clock, budget: int) -> Reading:
    """By how much the clock moves, each time that it moves."""
    steps: list[int] = []
    last = clock()
    end = last + budget
    while len(steps) < 20_000:
        now = clock()
        if now != last:
            steps.append(now - last)
            last = now
        if now >= end:
            break
    return sketch(steps, "ns", least_n=256)


def scheduling_gap(clock: Clock, budget: int) -> Reading:
    """The longest pause in each millisecond of a loop that does nothing but read the clock."""
    gaps: list[int] = []
    last = clock()
    end = last + budget
    window_end, longest = last + _MS, 0
    while last < end:
        now = clock()
        longest = max(longest, now - last)
        last = now
        if now >= window_end:
            gaps.append(longest)
            window_end, longest = now + _MS, 0
    return sketch(gaps, "ns", least_n=64)


def copy(clock: Clock, budget: int) -> Reading:
    """Copying 16 MiB from one buffer to another."""
    source = bytearray(b"\xa5") * (16 * MIB)
    target = memoryview(bytearray(b"\x5a") * (16 * MIB))

    def work() -> None:
        target[:] = source

    work()  # the first touches of a page are the kernel's time, not the memory's
    return sketch(repeat(clock, budget, 256, work), "ns", least_n=16)


def sha256(clock: Clock, budget: int) -> Reading:
    """Hashing 256 KiB."""
    data = bytes(range(256)) * 1024
    return sketch(repeat(clock, budget, 1024, lambda: hashlib.sha256(data).digest()), "ns", least_n=33)


def loads(clock: Clock, budget: int, size: int) -> Reading:
    """One interpreted load whose place depends on the load before, over ``size`` bytes (a power of two)."""
    # Multiplied from one byte, so that every page is written: untouched ones would share a page of zeros.
    buffer = bytearray(b"\x01") * size
    mask = size - 1
    place = 1

    def work() -> None:
        nonlocal place
        at = place
        # A full-period congruential generator (multiplier 1 modulo 4), moved on by what was loaded.
        for _ in range(_LOADS):
            at = (at * 1_664_525 + 1_013_904_222 + buffer[at]) & mask
        place = at

    times = repeat(clock, budget, 2048, work)
    return sketch([time // _LOADS for time in times], "ns", least_n=64)


def tpm(clock: Clock, budget: int, command: Callable[[], object] | None) -> Reading:
    """One cheap command of the TPM, with the way there and back."""
    if command is None:
        return Invalid("no TPM")
    from nodeos.core.errors import NodeosError

    try:
        return sketch(repeat(clock, budget, 64, command), "ns", least_n=8)
    except NodeosError as error:
        return Invalid(f"the TPM failed: {error.message.splitlines()[0][:80]}")
