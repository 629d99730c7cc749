"""UEFI device paths: their nodes, and the words for people. Pure; every length is checked before it is used.

Source: UEFI 2.10, sections 10.3.1 (nodes), 10.3.4.23 (URI) and 10.3.5.4 (file path).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nodeos.core.wire import ParseError

_MESSAGING, _URI = 3, 24
_MEDIA, _FILE, _FIRMWARE_FILE = 4, 4, 6
_END, _WHOLE = 0x7F, 0xFF


def nodes(path: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, subtype and data of each node, up to the end of the whole path. Raises ParseError."""
    at = 0
    while True:
        if at + 4 > len(path):
            raise ParseError(f"device path: it ends within an entry, at byte {at}")
        kind, subtype, length = struct.unpack_from("<BBH", path, at)
        if length < 4:
            raise ParseError("device path: a node shorter than its head")
        if at + length > len(path):
            raise ParseError(f"device path: it ends within an entry, at byte {at + 4}")
        if kind == _END and subtype == _WHOLE:
            return
        yield kind, subtype, path[at + 4 : at + length]
        at += length


def uri(path: bytes) -> str | None:
    """The URI of a device path, None if it has none. Raises ParseError for what is no device path."""
    found = None
    for kind, subtype, data in nodes(path):
        if (kind, subtype) == (_MESSAGING, _URI):
            try:
                found = data.rstrip(b"\0").decode("ascii")
            except UnicodeDecodeError as error:
                raise ParseError("device path: its URI is no ASCII") from error
    return found


def path_words(path: bytes) -> str:
    """Where an image came from, in a few words. Raises ParseError for what is no device path."""
    parts = []
    for kind, subtype, data in nodes(path) if path else ():
        if (kind, subtype) == (_MEDIA, _FILE):
            parts.append(data.decode("utf-16-le", errors="replace").rstrip("\0"))
        elif (kind, subtype) == (_MESSAGING, _URI):
            parts.append(data.decode("ascii", errors="replace").rstrip("\0"))
        elif (kind, subtype) == (_MEDIA, _FIRMWARE_FILE):
            parts.append(f"firmware file {data.hex()}")
    return " ".join(part for part in parts if part) or f"device path of {len(path)} bytes"
