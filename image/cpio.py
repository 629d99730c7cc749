"""Reads and writes initrds: cpio archives in the "newc" form, one after another, each plain or zstd-compressed.

What is written is deterministic: owner 0:0, one time stamp, inodes counted up. The kernel unpacks archives that
follow each other into one tree; each begins at a multiple of 4 bytes.

Sources: Linux' Documentation/driver-api/early-userspace/buffer-format.rst (archives, padding between them),
RFC 8878 section 3.1.1 (where a zstd frame ends). What is neither is a UsageError.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.run import run

_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = (b"070701", b"070702")
_HEADER = 110
_LIMIT = 1 << 32
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One entry: mode with its kind, owner and group, time stamp in seconds, and the SHA-256 of its content.

    The content of a link is its target, that of a device "MAJOR:MINOR".
    """

    mode: int
    owner: tuple[int, int]
    modified: int
    content: bytes


def files(data: bytes, *, tools: Path) -> dict[str, File]:
    """Every entry by its path, with a slash before it. ``tools`` is mkosi's tools tree, whose zstd is used.

    Of two entries with one path the later counts, as for the kernel.
    """
    found: dict[str, File] = {}
    for archive in archives(data):
        plain = _decompress(archive, tools) if archive.startswith(_ZSTD) else archive
        found.update(entries(plain))
    return found


def archives(data: bytes) -> Iterator[bytes]:
    """The parts of an initrd: zstd frames, and plain archives. Zeroes between them are padding."""
    offset = 0
    while offset < len(data):
        if data[offset] == 0:
            offset += 1
            continue
        if data.startswith(_ZSTD, offset):
            end = _end_of_frame(data, offset)
        elif data[offset : offset + 6] in _MAGIC:
            end = _end_of_archive(data, offset)
        else:
            raise UsageError(f"initrd: neither cpio nor zstd at byte {offset}")
        yield data[offset:end]
        offset = end


def _end_of_frame(data: bytes, offset: int) -> int:
    """Where the zstd frame at ``offset`` ends: header, blocks up to the last one, checksum if there is one."""
    descriptor = _byte(data, offset + 4)
    single = bool(descriptor & 0x20)
    content_size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    position = offset + 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + content_size
    while True:
        header = int.from_bytes(data[position : position + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
        if kind == 3 or position > len(data):
            raise UsageError(f"initrd: the zstd frame at byte {offset} is damaged")
        if header & 1:
            return position + (4 if descriptor & 4 else 0)


def _byte(data: bytes, offset: int) -> int:
    if offset >= len(data):
        raise UsageError("initrd: it ends within a header")
    return data[offset]


def _end_of_archive(data: bytes, offset: int) -> int:
    while True:
        name, _, offset = _entry(data, offset)
        if name == _TRAILER:
            return offset


def entries(archive: bytes) -> Iterator[tuple[str, File]]:
    """The entries of plain archives: path and file."""
    offset = 0
    while offset < len(archive):
        if archive[offset] == 0:
            offset += 1
            continue
        name, file, offset = _entry(archive, offset)
        if name not in (_TRAILER, "."):
            yield "/" + name.removeprefix("./").lstrip("/"), file


def _entry(data: bytes, offset: int) -> tuple[str, File, int]:
    """Name and file of the entry at ``offset``, and where the next one begins."""
    header = data[offset : offset + _HEADER]
    if len(header) < _HEADER or header[:6] not in _MAGIC:
        raise UsageError(f"initrd: no cpio header at byte {offset}")
    try:
        numbers = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    except ValueError as error:
        raise UsageError(f"initrd: a damaged cpio header at byte {offset}") from error
    _, mode, user, group, _, modified, size, _, _, major, minor, name_size, _ = numbers
    start = offset + _HEADER
    begin = start + name_size + -(_HEADER + name_size) % 4
    end = begin + size
    if name_size < 1 or end > len(data):
        raise UsageError(f"initrd: the entry at byte {offset} goes beyond the end")
    name = data[start : start + name_size - 1].decode("utf-8", "backslashreplace")
    content = data[begin:end] if size else f"{major}:{minor}".encode() if major or minor else b""
    file = File(mode=mode, owner=(user, group), modified=modified, content=hashlib.sha256(content).digest())
    return name, file, end + -size % 4


def _decompress(frame: bytes, tools: Path) -> bytes:
    loader, libraries = tools / "usr/lib64/ld-linux-x86-64.so.2", tools / "usr/lib/x86_64-linux-gnu"
    command: list[str | Path] = [loader, "--library-path", libraries, tools / "usr/bin/zstd", "-dcq"]
    return run(command, what="unpacking the initrd", stdin=frame, timeout=120)


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
    parts_ = [part for number, entry in enumerate(entries, 1) for part in _written(number, mtime, *entry)]
    parts_ += _written(0, 0, _TRAILER, 0, b"")
    return b"".join(parts_)


def _written(number: int, mtime: int, name: str, mode: int, data: bytes) -> tuple[bytes, bytes, bytes]:
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, mtime & 0xFFFFFFFF, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4), data, bytes(-len(data) % 4)
