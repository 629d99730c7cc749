"""Where a PIN comes from: a file that only its owner can read, or a person at a terminal. Never argv."""

from __future__ import annotations

import sys
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file


def read_pin(pin_file: Path | None) -> str:
    """The PIN from ``pin_file`` (its first and only line), or asked for on the terminal if there is none.

    Raises UsageError for an empty file, one that others can read, or when there is no terminal to ask on.
    """
    if pin_file is not None:
        return _from_file(pin_file)
    if not sys.stdin.isatty():
        raise UsageError("a PIN is needed and there is no terminal to ask on", hint="give it with --pin-file")
    import click

    return str(click.prompt("PIN", hide_input=True, err=True))


def _from_file(path: Path) -> str:
    data = read_file(path, "PIN file", limit=1024)
    refuse_readable(path, "PIN file")
    try:
        pin = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"PIN file {path}: not text") from error
    if not pin or "\n" in pin:
        raise UsageError(f"PIN file {path}: must hold the PIN on one line, and nothing else")
    return pin


def refuse_readable(path: Path, what: str) -> None:
    """Raise UsageError if others than its owner may read the secret in ``path``."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UsageError(
            f"{what} {path}: others can read it (mode {mode:04o})", hint=f"run: chmod 600 {path}"
        )
