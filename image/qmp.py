"""Enough of QEMU's machine protocol to press a virtual machine's power button (QMP, docs/interop/qmp-spec)."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

from nodeos.core.errors import ToolError


def execute(path: Path, command: str) -> None:
    """Run one command without arguments on the QMP socket at ``path``.

    Raises ToolError if QEMU refuses it or isn't there.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(20)
        try:
            link.connect(str(path))
            lines = link.makefile("rb")
            lines.readline()
            for step in ("qmp_capabilities", command):
                link.sendall(json.dumps({"execute": step}).encode() + b"\n")
                _answer(lines.readline, step)
        except (OSError, ValueError) as error:
            raise ToolError(f"the virtual machine does not answer: {error}") from error


def _answer(readline: Callable[[], bytes], step: str) -> None:
    while line := readline():
        message = json.loads(line)
        if "error" in message:
            raise ToolError(f"the virtual machine refused {step}: {message['error'].get('desc', '?')}")
        if "return" in message:
            return
    raise ToolError(f"the virtual machine closed the line at {step}")
