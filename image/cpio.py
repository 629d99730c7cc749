"""Writes initrd archives (cpio "newc", Linux Documentation/driver-api/early-userspace/buffer-format.rst).

Deterministic: owner 0:0, one time stamp, inodes counted up. The kernel unpacks archives that follow each other
into one tree; each begins at a multiple of 4 bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

from nodeos.core.errors import UsageError

_LIMIT = 1 << 32


def archive(files: Mapping[str, bytes], *, mtime: int, mode: int = 0o400, folder_mode: int = 0o700) -> bytes:
    """An uncompressed archive of ``files``: path without a leading slash to content.

    The folders above each file are added; everything is sorted by name. ``mtime`` is in seconds since 1970.
    Raises UsageError for a path or a size that the format can't hold.
    """
    for path, data in files.items():
        parts = path.split("/")
        if not path.isascii() or "" in parts or "." in parts or ".." in parts or "\0" in path:
            raise UsageError(f"{path!r} can't be a path in an initrd")
        if len(data) >= _LIMIT:
            raise UsageError(f"{path} is too large for an initrd: {len(data)} bytes")
    folders = sorted({path[:i] for path in files for i, sign in enumerate(path) if sign == "/"})
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | folder_mode, b"") for name in folders]
    entries += [(name, stat.S_IFREG | mode, files[name]) for name in sorted(files)]
    parts_ = [part for number, entry in enumerate(entries, 1) for part in _entry(number, mtime, *entry)]
    parts_ += _entry(0, 0, "TRAILER!!!", 0, b"")
    return b"".join(parts_)


def _entry(number: int, mtime: int, name: str, mode: int, data: bytes) -> tuple[bytes, bytes, bytes]:
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, mtime & 0xFFFFFFFF, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4), data, bytes(-len(data) % 4)
