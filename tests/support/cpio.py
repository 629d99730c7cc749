"""A small writer of initrd archives (cpio "newc", Linux Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat
from collections.abc import Mapping


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive of ``files``: path without a leading slash to (permission bits, content).

    The folders above each file are added. The kernel unpacks archives one after another, so that a later one
    replaces files of an earlier one.
    """
    folders = sorted({path[:i] for path in files for i, sign in enumerate(path) if sign == "/"})
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [(name, stat.S_IFREG | mode, data) for name, (mode, data) in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    parts = [_entry(number, *entry) for number, entry in enumerate(entries, 1)]
    return b"".join(parts)


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
