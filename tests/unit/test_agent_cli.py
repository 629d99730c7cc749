from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nodeos import cli
from nodeos.agent.cli import commands
from nodeos.agent.config import Config
from nodeos.agent.console import Console


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["agent", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_defaults_are_the_images_paths(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = {parameter.name: parameter.default for parameter in commands.commands["run"].params}
    assert defaults == dataclasses.asdict(Config())
    assert Config().state == Path("/var/lib/nodeos")
    assert run("run", "--help") == 0
    assert "/var/lib/nodeos" in capsys.readouterr().out


def test_the_status_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "status.json"
    assert run("status", "--status", str(path)) == 2
    assert "No such file" in capsys.readouterr().err
    Console(status=path, device=tmp_path / "absent").tell("enrolment", "waiting")
    capsys.readouterr()
    assert run("status", "--status", str(path)) == 0
    assert capsys.readouterr().out == "enrolment: waiting\n"
    assert run("status", "--status", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == "enrolment"


def test_a_missing_site_ends_with_the_code_of_its_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = tmp_path / "status.json"
    report = tmp_path / "state.json"
    report.write_text('{"made_this_boot":true,"luks_uuid":"u","device":"d"}')
    words = ("--state", str(tmp_path / "state"), "--esp", str(tmp_path / "esp"), "--status", str(status))
    assert run("run", "--volume-report", str(report), *words, "--console", str(tmp_path / "console")) == 2
    err = capsys.readouterr().err
    assert "EFI system partition is not mounted" in err
    assert err.count("error: ") == 1
    assert json.loads(status.read_bytes())["step"] == "failed"


def test_nonsense_is_refused() -> None:
    assert run("run", "--period", "0") == 2
    assert run("run", "--nonsense") == 2
