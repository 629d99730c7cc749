from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from nodeos.agent.console import Console, screens
from nodeos.agent.stop import Stop, StopRequested
from nodeos.core.errors import NodeosError, RefusedError
from tests.support.agent_fakes import finding


@pytest.fixture
def console(tmp_path: Path) -> Console:
    (tmp_path / "console").touch()
    return Console(status=tmp_path / "status.json", device=tmp_path / "console")


def status(tmp_path: Path) -> dict[str, object]:
    value = json.loads((tmp_path / "status.json").read_bytes())
    assert isinstance(value, dict)
    return value


def test_every_step_goes_everywhere(
    console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.know(machine="m", node_id=None)
    console.tell("enrolment", "one\n  → two")
    assert capsys.readouterr() == ("", "nodeos: enrolment: one\n  → two\n")
    assert (tmp_path / "console").read_bytes() == "nodeos: enrolment: one\r\n  → two\r\n".encode()
    found = status(tmp_path)
    assert isinstance(found.pop("at"), int)
    assert found == {"version": 1, "step": "enrolment", "message": "one\n  → two", "machine": "m"}


def test_findings_stay_until_there_are_none(console: Console, tmp_path: Path) -> None:
    console.findings("enrolment", "no", (finding("a.b", "c"),), "do that")
    assert status(tmp_path)["message"] == "no\n  ✗ a.b: c\n  → do that"
    console.tell("enrolment", "more")
    assert status(tmp_path)["findings"] == [{"code": "a.b", "message": "c"}]
    console.findings("enrolment", "yes", ())
    assert "findings" not in status(tmp_path)


def test_the_end_is_told_to_the_console_but_not_twice_to_the_journal(
    console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.failed(NodeosError("it broke", hint="mend it"))
    assert capsys.readouterr().err == ""
    assert b"it broke\r\n" in (tmp_path / "console").read_bytes()
    assert status(tmp_path)["step"] == "failed"
    console.failed(RefusedError("no", (finding("a.b", "c"),)))
    assert status(tmp_path)["findings"] == [{"code": "a.b", "message": "c"}]


def test_a_console_that_is_absent_or_blocked_holds_nothing_up(tmp_path: Path) -> None:
    Console(status=tmp_path / "status.json", device=tmp_path / "absent").tell("a", "b")
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        console = Console(status=tmp_path / "status.json", device=tmp_path / "fifo")
        for _ in range(3):
            console.tell("a", "b" * 60_000)
    finally:
        os.close(reader)
    assert not (tmp_path / "absent").exists()


def test_a_slow_line_gets_the_whole_message_and_a_blocked_one_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    console = Console(status=tmp_path / "status.json", device=tmp_path / "fifo")
    told: list[bytes] = []

    def read() -> None:
        while not told or not told[-1].endswith(b"!\r\n"):
            time.sleep(0.01)
            told.append(os.read(reader, 4096))

    try:
        thread = threading.Thread(target=read)
        thread.start()
        console.tell("code", "x" * 200_000 + "!")
        thread.join(20)
        assert b"".join(told) == b"nodeos: code: " + b"x" * 200_000 + b"!\r\n"
        monkeypatch.setattr("nodeos.agent.console.PATIENCE", 0.3)
        spent = []
        for _ in range(3):
            began = time.monotonic()
            console.tell("code", "x" * 200_000)
            spent.append(time.monotonic() - began)
    finally:
        os.close(reader)
    assert spent[0] >= 0.3
    assert max(spent[1:]) < 0.3


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@nodeos-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        console.tell("enrolment", "one\ntwo")
        console.ready()
        assert listener.recv(200) == b"STATUS=enrolment: one"
        assert listener.recv(200) == b"READY=1"


def test_a_signal_ends_a_wait_at_once() -> None:
    with Stop() as stop:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        before = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGTERM))
        try:
            with pytest.raises(StopRequested):
                stop.wait(600)
        finally:
            signal.signal(signal.SIGALRM, before)


def test_a_signal_during_work_ends_the_next_wait() -> None:
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop.wait(600)
        with pytest.raises(StopRequested), stop.interruptible():
            pytest.fail("must not be reached")


def test_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_status_that_can_not_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    Console(status=tmp_path / "file" / "status.json", device=tmp_path / "absent").tell("a", "b")
    err = capsys.readouterr().err
    assert "status.json: " in err
    assert "nodeos: a: b" in err


def test_all_active_consoles_are_meant_by_dev_console(tmp_path: Path) -> None:
    active = tmp_path / "active"
    active.write_text("tty0 ttyS0\n")
    assert screens(Path("/dev/console"), active) == (Path("/dev/tty0"), Path("/dev/ttyS0"))
    assert screens(Path("/dev/tty7"), active) == (Path("/dev/tty7"),)
    assert screens(Path("/dev/console"), tmp_path / "absent") == (Path("/dev/console"),)
    active.write_text("\n")
    assert screens(Path("/dev/console"), active) == (Path("/dev/console"),)
