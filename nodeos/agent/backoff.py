"""How long to wait before trying again."""

from __future__ import annotations

import random

FIRST = 1.0
LONGEST = 60.0
# After a refusal only a person can change the outcome.
SLOW = 300.0

_random = random.SystemRandom()


class Backoff:
    """Delays in seconds that double from 1 to 60, each shortened by up to a half at random, so that the
    machines of a data centre that lost their registrar together don't come back together."""

    def __init__(self) -> None:
        self._next = FIRST

    def delay(self) -> float:
        ceiling = self._next
        self._next = min(LONGEST, self._next * 2)
        return jittered(ceiling)

    def reset(self) -> None:
        self._next = FIRST


def jittered(seconds: float) -> float:
    """Between half of ``seconds`` and all of it."""
    return _random.uniform(seconds / 2, seconds)
