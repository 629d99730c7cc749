"""Shows how far the writing is: a bar on a terminal, a line now and then elsewhere, JSON lines under ``--json``.

All on standard error. ``image.steps`` does this for builds; it needs a library that the node does not carry.
"""

from __future__ import annotations

import json
import sys
import time

_WORDS = {"check": "checking the image", "write": "writing", "verify": "reading back"}
_BAR = 30


class Progress:
    """A ``writer.Report``. ``seconds`` holds how long each phase took."""

    def __init__(self, *, as_json: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._as_json = as_json
        self._terminal = not as_json and sys.stderr.isatty()
        self._pause = 0.2 if self._terminal else 1.0 if as_json else 10.0
        self._phase = ""
        self._began = self._shown = 0.0

    def __call__(self, phase: str, done: int, of: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._shown = phase, now, now
        self.seconds[phase] = now - self._began
        if done < of and now - self._shown < self._pause:
            return
        self._shown = now
        speed = done / self.seconds[phase] if self.seconds[phase] > 0.05 else 0.0
        if self._as_json:
            event = {"event": "progress", "phase": phase, "bytes": done, "of": of, "per_second": round(speed)}
            print(json.dumps(event), file=sys.stderr, flush=True)  # noqa: T201 - this is the output
            return
        percent = 100 * done // of
        text = f"{percent:3} %  {size_text(done)} of {size_text(of)}, {size_text(round(speed))}/s"
        if self._terminal:
            bar = ("█" * (_BAR * done // of)).ljust(_BAR, "·")
            end = "\n" if done == of else ""
            print(f"\r{_WORDS[phase]:<18} {bar} {text}\033[K", end=end, file=sys.stderr, flush=True)  # noqa: T201
        else:
            print(f"{_WORDS[phase]:<18} {text}", file=sys.stderr, flush=True)  # noqa: T201


def size_text(size: int) -> str:
    """A size as people say it, in the units that disks are sold in."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
