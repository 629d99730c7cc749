"""Ending on SIGTERM: at once while the agent waits or talks, after the step while it writes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopRequested(BaseException):
    """SIGTERM or SIGINT came. Not an Exception: nothing that handles failures may swallow it."""


class Stop:
    """Holds the signal handlers while it is entered. Only the main thread may use it."""

    def __init__(self) -> None:
        self._requested = False
        self._armed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if self._armed:
            raise StopRequested

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, the signal raises StopRequested wherever the code is; also if it came before."""
        outer = self._armed
        self._armed = True
        try:
            if self._requested:
                raise StopRequested
            yield
        finally:
            self._armed = outer

    def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or raise StopRequested earlier."""
        with self.interruptible():
            time.sleep(seconds)


Wait = Callable[[float], None]
