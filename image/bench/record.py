"""What was measured, when, of which commit, and on what machine. Parts can be measured in runs of their own."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeos.core.errors import UsageError
from nodeos.core.files import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One part's figures. ``load`` is the load average of the last minute as the part began: other work shows."""

    at: str
    commit: str
    machine: str
    load: float
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "commit": self.commit,
            "machine": self.machine,
            "load": self.load,
            "figures": self.figures,
        }


def read(path: Path) -> dict[str, Record]:
    """The records of earlier runs by part; none without a file. Raises UsageError for a file of another kind."""
    if not path.exists():
        return {}
    try:
        return {part: Record(**value) for part, value in json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no figures: {error}", hint="remove it, and measure again") from error


def write(path: Path, records: dict[str, Record]) -> None:
    value = {part: record.to_json() for part, record in records.items()}
    write_atomic(path, json.dumps(value, indent=2).encode() + b"\n")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def load() -> float:
    return round(os.getloadavg()[0], 1)


def machine() -> str:
    """Processor, processors that this process may use, memory, kernel, system."""
    return (
        f"{processor()}, {len(os.sched_getaffinity(0))} threads,"
        f" {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB,"
        f" Linux {platform.release().partition('-')[0]}, {platform.freedesktop_os_release()['PRETTY_NAME']}"
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
