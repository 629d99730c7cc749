"""The linters, as tests: what they find fails the build, and so does a linter that isn't there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run

ROOT = Path(__file__).resolve().parents[2]


def shell_scripts() -> list[Path]:
    """The project's files that begin as a shell script, whatever their names."""
    folders = [ROOT / "image", ROOT / ".ci"]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    shells = (b"#!/bin/sh\n", b"#!/bin/bash\n", b"#!/usr/bin/env bash\n")
    return [path for path in files if path.read_bytes()[:32].startswith(shells)]


def lint(program: str, *arguments: str | Path) -> None:
    """Run a linter of the virtual environment on the whole tree; its findings are the failure."""
    path = Path(sys.executable).parent / program
    if not path.is_file():
        pytest.fail(f"{program} is not beside {sys.executable}: run `make setup`")
    try:
        run([path, *arguments], what=program, cwd=ROOT, timeout=240)
    except ToolError as error:
        pytest.fail(str(error), pytrace=False)


def test_ruff_check() -> None:
    lint("ruff", "check", "--no-fix", ".")


def test_ruff_format() -> None:
    lint("ruff", "format", "--check", ".")


def test_mypy() -> None:
    lint("mypy")


def test_layers() -> None:
    lint("lint-imports")


def test_shellcheck() -> None:
    scripts = shell_scripts()
    names = {path.name for path in scripts}
    assert {"state", "setup-host", "postinst", "finalize", "build.chroot", "no-shell", "run"} <= names
    try:
        run([find_tool("shellcheck", package="shellcheck"), *scripts], what="shellcheck", cwd=ROOT)
    except ToolError as error:
        pytest.fail(str(error), pytrace=False)
