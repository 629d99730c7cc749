"""Shows what a long run is doing: numbered steps, how long each took, and what failed.

On a terminal a line with a spinner; elsewhere plain lines; under ``--json`` one JSON object a line. All on
standard error: standard output is for the result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.status import Status


@dataclass(slots=True, kw_only=True)
class Step:
    """One finished step: its title, whether it held, its seconds, and what is worth reading about it."""

    title: str
    held: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return {
            "title": self.title,
            "held": self.held,
            "seconds": round(self.seconds, 1),
            "notes": self.notes,
        }


class Steps:
    """The steps of one run. ``total`` is how many there will be."""

    def __init__(self, total: int, *, as_json: bool = False) -> None:
        self.total = total
        self.done: list[Step] = []
        self._as_json = as_json
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._began = time.monotonic()
        self._title = ""

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run a step; what is raised inside marks it as failed and goes on."""
        step = Step(title=title)
        self.done.append(step)
        self._began = time.monotonic()
        self._title = f"[{len(self.done)}/{self.total}] {title}"
        self._begin(step)
        try:
            yield step
            step.held = True
        finally:
            step.seconds = time.monotonic() - self._began
            self._end(step)

    def say(self, text: str) -> None:
        """What the present step is doing just now."""
        if self._as_json:
            self._emit({"event": "progress", "step": len(self.done), "text": text})
        elif self._status is not None:
            self._status.update(escape(f"{self._title} · {text}"))
        else:
            seconds = time.monotonic() - self._began
            self._console.print(f"      {seconds:5.0f} s  {text}", markup=False, soft_wrap=True)

    def _begin(self, step: Step) -> None:
        if self._as_json:
            self._emit({"event": "begin", "step": len(self.done), "of": self.total, "title": step.title})
        elif self._console.is_terminal:
            self._status = self._console.status(escape(self._title))
            self._status.start()
        else:
            self._console.print(self._title, markup=False)

    def _end(self, step: Step) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._as_json:
            self._emit({"event": "end", "step": len(self.done), **step.to_json()})
            return
        mark = "[green]✓[/green]" if step.held else "[red]✗[/red]"
        number = f"{len(self.done)}/{self.total}"
        self._console.print(
            f"{mark} {number} {escape(step.title)} [dim]({duration(step.seconds)})[/dim]", soft_wrap=True
        )
        for note in step.notes:
            self._console.print(f"      {note}", markup=False, soft_wrap=True)

    def _emit(self, value: dict[str, object]) -> None:
        self._console.out(json.dumps(value, ensure_ascii=False), highlight=False)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
