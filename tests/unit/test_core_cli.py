from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nodeos import __version__, cli
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError


@click.group()
def nouns() -> None:
    """A noun for these tests."""


@nouns.command()
@click.argument("kind")
@click.pass_context
def fail(ctx: click.Context, kind: str) -> None:
    """Fail in the given way."""
    if kind == "not":
        cli.emit(ctx, {"answer": 42, "json": cli.wants_json(ctx)}, "it is 42")
        return
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "abort":
        raise click.Abort
    raise {
        "fault": KeyError("a secret"),
        "file": PermissionError(errno.EACCES, "Permission denied", "/a/file"),
        "full": OSError(errno.ENOSPC, "No space left on device", "/a/file"),
        "failed": NodeosError("it broke", hint="mend it"),
        "usage": UsageError("wrong"),
        "refused": RefusedError("no", (Finding(code="a.b", message="c"),)),
    }[kind]


@pytest.fixture(autouse=True)
def noun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.NOUNS, "test", (__name__, "for tests"))
    monkeypatch.setattr(sys.modules[__name__], "commands", nouns, raising=False)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("kind", "code"),
    [("not", 0), ("failed", 1), ("usage", 2), ("refused", 3), ("interrupt", 130), ("abort", 130)],
)
def test_exit_codes(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", "fail", kind) == code
    out, err = capsys.readouterr()
    assert out == ("it is 42\n" if kind == "not" else "")
    assert bool(err) == (kind != "not")


def test_errors_go_to_standard_error_with_the_hint(capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "fail", "failed")
    assert capsys.readouterr() == ("", "error: it broke\n  → mend it\n")


@pytest.mark.parametrize("words", [("--json", "test", "fail"), ("test", "--json", "fail"), ("test", "fail")])
def test_json_may_stand_anywhere(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    rest = ("not",) if "--json" in words else ("not", "--json")
    assert run(*words, *rest) == 0
    assert json.loads(capsys.readouterr().out) == {"answer": 42, "json": True}


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "test", "fail", "refused") == 3
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["findings"] == [{"code": "a.b", "message": "c"}]
    assert error["hint"] is None
    assert err == ""


@pytest.mark.parametrize("words", [("nonsense",), ("test", "nonsense"), ("test", "fail"), ("--nonsense",)])
def test_wrong_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert "Error" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert run("-h") == 0
    out = capsys.readouterr().out
    assert all(noun in out for noun in cli.NOUNS)


def test_the_overview_imports_no_noun() -> None:
    script = (
        "import sys\nfrom nodeos import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = [m for m, _ in cli.NOUNS.values() if m in sys.modules]\n"
        "sys.exit(len(loaded))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_json_behind_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", "fail", "--", "--json") == 1
    assert "KeyError" in capsys.readouterr().err


def test_a_fault_is_one_line_without_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert run("test", "fail", "fault") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: a fault of this program: KeyError ({__name__}, line ")
    assert f"{cli.DEBUG}=1" in err
    assert "Traceback" not in err
    assert "a secret" not in err


@pytest.mark.parametrize("way", ["flag", "environment", "journal"])
def test_the_traceback_of_a_fault_can_be_had(
    way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "environment":
        monkeypatch.setenv(cli.DEBUG, "1")
    if way == "journal":
        stream = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{stream.st_dev}:{stream.st_ino}")
    assert run("test", "fail", "fault", *(("--debug",) if way == "flag" else ())) == 1
    assert "Traceback" in capfd.readouterr().err
    # An error that was foreseen is enough said for a journal.
    assert run("test", "fail", "failed") == 1
    assert ("Traceback" in capfd.readouterr().err) == (way == "environment")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("file", "/a/file: Permission denied"), ("full", "/a/file: the disk is full\n  → make room")],
)
def test_what_the_system_refuses_is_said(kind: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", "fail", kind) == 1
    assert capsys.readouterr().err.startswith(f"error: {words}")


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_an_output_that_breaks_is_said_once(flag: tuple[str, ...]) -> None:
    """As a process: the interpreter must not fail over it again at its end."""
    command = [sys.executable, "-m", "nodeos", "completion", "bash", *flag]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == "error: the disk is full\n  → make room (see `df -h`) and run this again\n"
    # A reader that has seen enough (head) is no error to tell of; click sees to that.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_wrong_usage_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", "fail", "--nonsense", "--json") == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert "--nonsense" in error["message"]
    assert error["hint"] == "see `nodeos test fail --help`"
    assert err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert f"_NODEOS_COMPLETE={shell}_complete" in script
    assert run("completion", shell, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script.removesuffix("\n")}


def complete(*words: str) -> tuple[list[str], str]:
    """What a bash is offered for the last word, and the nouns that were imported for it."""
    script = "import atexit, sys\nfrom nodeos import cli\n" + (
        "atexit.register(lambda: print(*[n for n, (m, _) in cli.NOUNS.items() if m in sys.modules],"
        " file=sys.stderr))\ncli.main([])"
    )
    environment = {
        **os.environ,
        "_NODEOS_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("nodeos", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()], done.stderr.strip()


def test_completion_completes_and_imports_what_it_must() -> None:
    assert complete("re") == (["registrar", "replica"], "")
    assert complete("--v") == (["--version"], "")
    assert complete("enroll", "a") == (["approve"], "enroll")
    assert complete("--json", "enroll", "approve", "--ev") == (["--evidence"], "enroll")


def test_the_bash_script_works_in_a_bash() -> None:
    script = 'source <("$0" -m nodeos completion bash) && complete -p nodeos'
    done = subprocess.run(
        ["bash", "--norc", "-c", script, sys.executable], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_nodeos_completion nodeos" in done.stdout
