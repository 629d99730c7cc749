"""QEMU's machine protocol, against a server that answers as QEMU does, and worse."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from image import qmp
from nodeos.core.errors import ToolError

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'
DONE = b'{"return": {}}\r\n'
EVENT = b'{"event": "POWERDOWN", "timestamp": {"seconds": 1, "microseconds": 0}}\r\n'


@contextmanager
def served(path: Path, greeting: bytes, *answers: bytes) -> Iterator[list[object]]:
    """A QMP server for one client: a greeting, then an answer for each command. Yields the commands."""
    commands: list[object] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            link, _ = server.accept()
            with link, link.makefile("rb") as lines:
                link.sendall(greeting)
                for answer in answers:
                    commands.append(json.loads(lines.readline()))
                    link.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        yield commands
        thread.join(10)
        assert not thread.is_alive()


def test_command(tmp_path: Path) -> None:
    with served(tmp_path / "qmp", GREETING, DONE, EVENT + DONE) as commands:
        qmp.execute(tmp_path / "qmp", "system_powerdown")
    assert commands == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "system_powerdown", "arguments": {}},
    ]


def test_arguments_and_answer(tmp_path: Path) -> None:
    answer = b'{"return": {"free": 7}}\r\n'
    with served(tmp_path / "qmp", GREETING, DONE, answer) as commands:
        assert qmp.execute(tmp_path / "qmp", "qom-get", {"path": "/machine"}) == {"free": 7}
    assert commands[1] == {"execute": "qom-get", "arguments": {"path": "/machine"}}


def test_refusal(tmp_path: Path) -> None:
    refusal = b'{"error": {"class": "CommandNotFound", "desc": "The command is unknown"}}\r\n'
    with (
        served(tmp_path / "qmp", GREETING, DONE, EVENT + refusal),
        pytest.raises(ToolError, match="refused nonsense: The command is unknown"),
    ):
        qmp.execute(tmp_path / "qmp", "nonsense")


@pytest.mark.parametrize("answers", [(), (DONE,), (DONE, EVENT)])
def test_line_closed(answers: tuple[bytes, ...], tmp_path: Path) -> None:
    with (
        served(tmp_path / "qmp", GREETING, *answers),
        pytest.raises(ToolError, match=r"closed the line|does not answer"),
    ):
        qmp.execute(tmp_path / "qmp", "system_powerdown")


def test_garbage(tmp_path: Path) -> None:
    with served(tmp_path / "qmp", GREETING, b"not JSON\n"), pytest.raises(ToolError, match="does not answer"):
        qmp.execute(tmp_path / "qmp", "system_powerdown")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="the virtual machine does not answer"):
        qmp.execute(tmp_path / "qmp", "system_powerdown")
