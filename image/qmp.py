"""Enough of QEMU's machine protocol to press a virtual machine's power button, or to ask for its figures.

QMP: docs/interop/qmp-spec in QEMU's source.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodeos.core.errors import ToolError


def execute(path: Path, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Run one command on the QMP socket at ``path``, and return its answer.

    Raises ToolError if QEMU refuses it or isn't there.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(20)
        try:
            link.connect(str(path))
            lines = link.makefile("rb")
            lines.readline()
            for step, values in (("qmp_capabilities", {}), (command, arguments or {})):
                link.sendall(json.dumps({"execute": step, "arguments": values}).encode() + b"\n")
                answer = _answer(lines.readline, step)
            return answer
        except (OSError, ValueError) as error:
            raise ToolError(f"the virtual machine does not answer: {error}") from error


def _answer(readline: Callable[[], bytes], step: str) -> Any:
    while line := readline():
        message = json.loads(line)
        if "error" in message:
            raise ToolError(f"the virtual machine refused {step}: {message['error'].get('desc', '?')}")
        if "return" in message:
            return message["return"]
    raise ToolError(f"the virtual machine closed the line at {step}")
