"""The linters, as tests: what they find fails the build, and so does a linter that isn't there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nodeos.core.run import find_tool, scrubbed_environment

ROOT = Path(__file__).resolve().parents[2]


def shell_scripts() -> list[Path]:
    """The project's files that begin as a shell script, whatever their names."""
    folders = [ROOT / "image", ROOT / ".ci"]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    shells = (b"#!/bin/sh\n", b"#!/bin/bash\n", b"#!/usr/bin/env bash\n")
    return [path for path in files if path.read_bytes()[:32].startswith(shells)]


def lint(program: str | Path, *arguments: str | Path) -> None:
    """Run a linter on the whole tree; its findings are the failure."""
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, env=scrubbed_environment(), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{program}:\n{done.stdout}{done.stderr}", pytrace=False)


def beside_python(program: str) -> Path:
    """A linter of the virtual environment that runs the tests."""
    path = Path(sys.executable).parent / program
    if not path.is_file():
        pytest.fail(f"{program} is not beside {sys.executable}: run `make setup`", pytrace=False)
    return path


def test_ruff_check() -> None:
    lint(beside_python("ruff"), "check", "--no-fix", "--output-format=concise", ".")


def test_ruff_format() -> None:
    lint(beside_python("ruff"), "format", "--check", ".")


def test_mypy() -> None:
    lint(beside_python("mypy"))


def test_layers() -> None:
    lint(beside_python("lint-imports"))


def test_shellcheck() -> None:
    scripts = shell_scripts()
    names = {path.name for path in scripts}
    assert {"setup-host", "postinst", "finalize", "build.chroot", "no-shell", "run"} <= names
    lint(find_tool("shellcheck", package="shellcheck"), *scripts)
