"""What a person, and what a program, reads of a long run."""

from __future__ import annotations

import json

import pytest

from image.steps import Steps, duration


def test_plain(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(2)
    with steps.step("Build [the] image") as step:
        steps.say("packages [1/3]")
        step.notes.append("release [1]: 10 MiB")
    with pytest.raises(ValueError, match="no"), steps.step("Boot"):
        raise ValueError("no")
    out, err = capsys.readouterr()
    assert out == "", "standard output is for the result"
    lines = [line.strip() for line in err.splitlines()]
    assert lines[0] == "[1/2] Build [the] image"
    assert lines[1].endswith("packages [1/3]")
    assert lines[2].startswith("✓ 1/2 Build [the] image (")
    assert lines[3] == "release [1]: 10 MiB"
    assert lines[4] == "[2/2] Boot"
    assert lines[5].startswith("✗ 2/2 Boot (")
    assert [(step.title, step.held) for step in steps.done] == [("Build [the] image", True), ("Boot", False)]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(1, as_json=True)
    with steps.step("A step") as step:
        steps.say("word " * 60 + "[bold]→[/bold]")
        step.notes.append("a note")
    out, err = capsys.readouterr()
    assert out == ""
    begin, progress, end = (json.loads(line) for line in err.splitlines())
    assert begin == {"event": "begin", "step": 1, "of": 1, "title": "A step"}
    assert progress == {"event": "progress", "step": 1, "text": "word " * 60 + "[bold]→[/bold]"}
    assert end == {
        "event": "end",
        "step": 1,
        "title": "A step",
        "held": True,
        "seconds": 0.0,
        "notes": ["a note"],
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (60, "1 min 00 s"), (3725, "62 min 05 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
