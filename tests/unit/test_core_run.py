from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run, scrubbed_environment


def test_output_and_input() -> None:
    script = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    assert run([sys.executable, "-c", script], what="reverse", stdin=b"abc") == b"cba"


@pytest.mark.parametrize("log", [False, True])
def test_without_input_a_program_reads_nothing(log: bool, tmp_path: Path) -> None:
    """As a process whose standard input never ends: a program that read it would hang."""
    script = (
        "import pathlib, sys\nfrom nodeos.core.run import run\n"
        "log = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None\n"
        "run([sys.executable, '-c', 'import sys; sys.exit(len(sys.stdin.read()))'], what='read', log=log)"
    )
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-c", script, *([str(tmp_path / "log")] if log else [])]
        subprocess.run(command, stdin=reader, check=True, timeout=30)
    finally:
        os.close(reader)
        os.close(writer)


def test_failure_tells_a_line_that_can_be_run_again() -> None:
    script = "import sys; print('a reason', file=sys.stderr); sys.exit(7)"
    with pytest.raises(ToolError, match="make it: exit code 7") as caught:
        run([sys.executable, "-c", script], what="make it", hint="do that")
    assert "| a reason" in caught.value.message
    assert f"$ {sys.executable} -c 'import sys" in caught.value.message
    assert caught.value.hint == "do that"


def test_missing_program() -> None:
    with pytest.raises(ToolError, match="try: no-such-program-here is not there"):
        run(["no-such-program-here"], what="try")


def test_timeout() -> None:
    with pytest.raises(ToolError, match="wait: no end after 0 s"):
        run([sys.executable, "-c", "import signal; signal.pause()"], what="wait", timeout=0.1)


def test_log_takes_both_outputs(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    script = (
        "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(len(sys.argv) - 1)"
    )
    assert run([sys.executable, "-c", script], what="log", log=log) == b""
    assert log.read_text().splitlines()[-2:] == ["out", "err"]
    with pytest.raises(ToolError, match="exit code 1") as caught:
        run([sys.executable, "-c", script, "x"], what="log", log=log)
    assert "| err" in caught.value.message


def test_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODEOS_SECRET", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("HOME", "/home/x")
    found = scrubbed_environment({"EXTRA": "1"})
    assert found["HOME"] == "/home/x"
    assert found["LC_ALL"] == "C.UTF-8"
    assert found["EXTRA"] == "1"
    assert not {"NODEOS_SECRET", "NOTIFY_SOCKET"} & found.keys()


def test_find_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(find_tool("sh", package="dash")).name == "sh"
    with pytest.raises(ToolError, match="no-such-program") as caught:
        find_tool("no-such-program", package="the-package")
    assert "apt-get install the-package" in str(caught.value)
