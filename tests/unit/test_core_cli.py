from __future__ import annotations

import json
import subprocess
import sys

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
    with pytest.raises(KeyError, match="--json"):
        cli.main(["test", "fail", "--", "--json"])
