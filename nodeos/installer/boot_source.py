"""Where this machine was started from, by the firmware's own measurement log. Pure.

Firmware that starts an image measures it into PCR 4 with the image's device path; after HTTP boot that has a URI
node. Sources: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.2.3 (UEFI_IMAGE_LOAD_EVENT).
Every length is checked before it is used.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from nodeos.core.devicepath import uri
from nodeos.core.wire import ParseError

BOOT_APPLICATION = 0x80000003  # EV_EFI_BOOT_SERVICES_APPLICATION
_PCR = 4
_NO_ACTION = 3
_SPEC_ID = b"Spec ID Event03\0"
_LIMIT = 1 << 20  # bytes of one event


class _Reader:
    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        if count > _LIMIT or self._at + count > len(self._data):
            raise ParseError(f"{self._what}: it ends within an entry, at byte {self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def image_paths(log: bytes) -> tuple[bytes, ...]:
    """The device paths of the images that were started, in their order. Raises ParseError for what is no log."""
    return tuple(_path(data) for pcr, kind, data in _events(log) if (pcr, kind) == (_PCR, BOOT_APPLICATION))


def booted_url(log: bytes) -> str | None:
    """The URL of the image that the firmware started first, or None if it came from somewhere else.

    Only the first counts: what that image starts in turn was its choice.
    """
    paths = image_paths(log)
    return uri(paths[0]) if paths else None


def folder_url(url: str) -> str:
    """The folder that a boot image was fetched from. Raises ParseError unless it is a plain http:// address."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() != "http" or not parts.hostname or "@" in parts.netloc:
        raise ParseError(
            f"this machine was started from {url}, which is no http:// address",
            hint="serve the folder over http; what is fetched is signed, so nothing is lost",
        )
    return urllib.parse.urlunsplit(("http", parts.netloc, parts.path.rpartition("/")[0] + "/", "", ""))


def _events(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """PCR, type and data of each event. The first has the old form, and says how long the digests are."""
    reader = _Reader(log, "the firmware's log")
    _, kind, _ = reader.number(4), reader.number(4), reader.take(20)
    head = _Reader(reader.take(reader.number(4)), "the firmware's log, its head")
    if kind != _NO_ACTION or head.take(16) != _SPEC_ID:
        raise ParseError("the firmware's log: not in the form of TPM 2.0")
    head.take(8)
    sizes = {}
    for _ in range(head.number(4)):
        algorithm = head.number(2)
        sizes[algorithm] = head.number(2)
    while reader.left:
        pcr, kind = reader.number(4), reader.number(4)
        for _ in range(reader.number(4)):
            algorithm = reader.number(2)
            if algorithm not in sizes:
                raise ParseError(f"the firmware's log: a digest of the unknown kind {algorithm:#06x}")
            reader.take(sizes[algorithm])
        yield pcr, kind, reader.take(reader.number(4))


def _path(event: bytes) -> bytes:
    reader = _Reader(event, "an event of a started image")
    reader.take(24)  # where it lay in memory
    return reader.take(reader.number(8))
