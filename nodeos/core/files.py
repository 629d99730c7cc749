"""Files that are whole or absent, and secrets that only their owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from nodeos.core.errors import UsageError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` with ``data``; after a power cut the old or the new content is there, never a mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_new(path: Path, data: bytes, *, mode: int = 0o600, hint: str | None = None) -> None:
    """Like ``write_atomic``, but refuses a file that is there already: a person may have made it."""
    if path.exists():
        raise UsageError(f"{path} is there already", hint=hint or "move it away, or name another file")
    write_atomic(path, data, mode=mode)


def read_file(path: Path, what: str, *, limit: int = 1 << 24) -> bytes:
    """Read a file that a person named. ``what`` tells them what it should have been."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}", hint="check the path") from error
    if len(data) > limit:
        raise UsageError(f"{what} {path}: larger than {limit} bytes")
    return data
