"""How the agent tells people and machines what it does.

Every step goes to standard error (the journal), to the machine's console, to systemd (``STATUS=``) and into
a status file, which is replaced as a whole: {"version": 1, "step", "message", "at" (Unix seconds), and the
facts known so far: "boot_id", "machine", "node_id", "state", "findings", "attested_at"}.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from nodeos.core.daemon import notify
from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.files import write_atomic

# A QR code is more than a serial line's buffer holds, and takes it most of a second.
PATIENCE = 2.0


class Console:
    """One per process. ``device`` is the machine's console, ``status`` the status file."""

    def __init__(self, *, status: Path, device: Path) -> None:
        self._status = status
        self._devices = screens(device)
        self._stuck: set[Path] = set()
        self._facts: dict[str, Any] = {}

    def know(self, **facts: Any) -> None:
        """Facts for the status file from the next step on; None removes one."""
        for name, value in facts.items():
            if value is None:
                self._facts.pop(name, None)
            else:
                self._facts[name] = value

    def tell(self, step: str, message: str) -> None:
        """Say where we are. ``message`` may have more lines, for findings and what to do."""
        self._record(step, message)
        print(f"nodeos: {step}: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def findings(self, step: str, message: str, findings: tuple[Finding, ...], todo: str = "") -> None:
        """Say an outcome with every finding, and what to do. No findings forget those of before."""
        self.know(findings=[f.to_json() for f in findings] or None)
        lines = "".join(f"\n  ✗ {f.code}: {f.message}" for f in findings)
        self.tell(step, message + lines + (f"\n  → {todo}" if todo else ""))

    def failed(self, error: NodeosError) -> None:
        """Say why the agent ends. Standard error is left to the command line, which says it too."""
        if isinstance(error, RefusedError):
            self.know(findings=[f.to_json() for f in error.findings])
        self._record("failed", str(error))

    def ready(self) -> None:
        """Tell systemd that the node is attested."""
        notify("READY=1")

    def _record(self, step: str, message: str) -> None:
        # The file comes first: whoever follows the words finds it up to date.
        status = {**self._facts, "version": 1, "step": step, "message": message, "at": int(time.time())}
        try:
            write_atomic(self._status, json.dumps(status, indent=2, sort_keys=True).encode() + b"\n")
        except OSError as error:  # a status that can't be shown must not end what it tells of
            print(f"nodeos: {self._status}: {error.strerror}", file=sys.stderr)  # noqa: T201
        notify(f"STATUS={step}: {message.splitlines()[0]}")
        for device in self._devices:
            self._write_device(device, f"nodeos: {step}: {message}\n")

    def _write_device(self, device: Path, text: str) -> None:
        # A console that is absent, or a serial line that nobody reads, must not hold up the node: one that took
        # too long is not waited for again until it has taken a message.
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(device, flags)
        except OSError:
            return
        try:
            patience = 0.0 if device in self._stuck else PATIENCE
            if _write(descriptor, text.replace("\n", "\r\n").encode(), patience):
                self._stuck.discard(device)
            else:
                self._stuck.add(device)
        except OSError:
            return
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes, seconds: float) -> bool:
    """Write as much as is taken within this time. True if that is all."""
    deadline = time.monotonic() + seconds
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    while data and ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
        data = data[os.write(descriptor, data) :]
    return not data


def screens(device: Path, active: Path = Path("/sys/class/tty/console/active")) -> tuple[Path, ...]:
    """Where ``device`` is seen. /dev/console is only the last console of the kernel's command line, and an
    operator may stand before a screen or sit at a serial line: then all active ones are meant.
    """
    if device != Path("/dev/console"):
        return (device,)
    try:
        names = active.read_text().split()
    except OSError:
        return (device,)
    return tuple(Path("/dev") / name for name in names) or (device,)
