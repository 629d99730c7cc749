"""Reads variables of the firmware from efivarfs (Linux, Documentation/filesystems/efivarfs.rst)."""

from __future__ import annotations

import os
from pathlib import Path


def read_variable(directory: Path, name: str, vendor: str, *, limit: int = 1 << 18) -> bytes | None:
    """A variable's value without the 4 bytes of attributes before it; None if it isn't there. Raises OSError.

    Read with plain calls: files of efivarfs can't be seeked. Reading ends once it is beyond ``limit`` bytes.
    """
    try:
        descriptor = os.open(directory / f"{name}-{vendor}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = b""
        while len(data) <= limit and (part := os.read(descriptor, limit)):
            data += part
    finally:
        os.close(descriptor)
    # An emptied variable may be left as a file without content.
    return data[4:] if len(data) >= 4 else None
