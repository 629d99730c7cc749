"""What an event's digest proves of its data, and an event in words.

An event's data is only a note of the firmware's unless it, or a part of it that its type fixes, is what was
hashed.
Who decides on data asks ``measured`` for it. Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.2
(structures) and 10.4 (what is hashed, by type); for Linux's own events drivers/firmware/efi/libstub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from nodeos.core.devicepath import path_words
from nodeos.core.wire import ParseError
from provisioning.verify.eventlog import (
    EV_EFI_ACTION,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_NO_ACTION,
    EV_SEPARATOR,
    Event,
    bank_name,
    hasher,
)
from provisioning.verify.reader import Reader

EV_IPL, EV_EVENT_TAG, EV_S_CRTM_VERSION = 0x0000000D, 0x00000006, 0x00000008
EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2, EV_EFI_VARIABLE_AUTHORITY = 0x80000002, 0x8000000C, 0x800000E0
VARIABLES = (
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_VARIABLE_BOOT2,
    EV_EFI_VARIABLE_AUTHORITY,
)
_IMAGES = (0x80000003, 0x80000004, 0x80000005)
_PARTITIONS = (0x80000006, 0x8000000D)
_LOAD_OPTION = re.compile("Boot[0-9A-F]{4}")
_BLOBS = (0x00000001, 0x80000008)
_TEXTS = (EV_EFI_ACTION, 0x00000005, EV_IPL, 0x0000000C, 0x00000012)
# Their data is what was hashed, by the standard; a digest of something else means that the log was changed.
DATA_IS_MEASURED = (EV_SEPARATOR, EV_EFI_ACTION, EV_EFI_VARIABLE_DRIVER_CONFIG)
# The digest of an error separator is of this, and its data says more of the error (10.4.1, EV_SEPARATOR).
ERROR = (1).to_bytes(4, "little")
_WIDTH = 100


def measured(event: Event) -> bytes | None:
    """What the event's digests prove to have been hashed, in every bank that can be computed; None if nothing.

    It is the whole data, or what the type makes of it: a variable's content, a tag's content, a text without its
    zero at the end, without the boot loader's word before it, or in the other encoding.
    """
    if not event.extends:
        return None
    known = [(hashed, value) for alg, value in event.digests.items() if (hashed := hasher(alg)) is not None]
    if not known:
        return None
    for part in _parts(event):
        if all(hashed(part) == value for hashed, value in known):
            return part
    return None


def is_error(event: Event) -> bool:
    """True for the separator of a firmware that failed. Its digest tells, so that another type doesn't hide it.

    A boot variable of just these four bytes is none.
    """
    if not event.extends or event.pcr > 7 or not event.digests:
        return False
    if not any(_error_digest(alg) == value for alg, value in event.digests.items()):
        return False
    variable = event.kind in (EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2)
    return not (variable and event.pcr == 1 and measured(event) == ERROR)


@cache
def _error_digest(alg: int) -> bytes | None:
    hashed = hasher(alg)
    return None if hashed is None else hashed(ERROR)


def _parts(event: Event) -> Iterator[bytes]:
    data = event.data
    yield data
    try:
        if event.kind in VARIABLES:
            yield _variable(data)[1]
        elif event.kind == EV_EVENT_TAG:
            yield _tag(data)[1]
    except ParseError:
        return
    if event.kind in (*_TEXTS, EV_S_CRTM_VERSION) and data.endswith(b"\0"):
        yield data.rstrip(b"\0")
    if event.kind == EV_IPL:
        # GRUB notes "grub_cmd: " before what it hashes; systemd's stub notes in UTF-16 the names that it hashes in
        # ASCII.
        yield data.partition(b": ")[2].rstrip(b"\0")
        with suppress(UnicodeDecodeError):
            yield data.decode("utf-16-le").encode(errors="replace")


def _variable(data: bytes) -> tuple[str, bytes]:
    """UEFI_VARIABLE_DATA: name and content."""
    reader = Reader(data, "variable", order="little")
    reader.take(16)
    count, size = reader.u64(), reader.u64()
    name = reader.take(count * 2).decode("utf-16-le", errors="replace")
    return name, reader.take(size)


def _tag(data: bytes) -> tuple[int, bytes]:
    """TCG_PCClientTaggedEvent: id and content."""
    reader = Reader(data, "tagged event", order="little")
    number = reader.u32()
    return number, reader.take(reader.u32())


def describe(event: Event) -> str:
    """The event's data in a few words, on one line. It says what the log says, checked or not."""
    try:
        words = _words(event)
    except ParseError:
        words = f"{len(event.data)} bytes that are not of this type's form"
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= _WIDTH else words[: _WIDTH - 3] + "..."


def _words(event: Event) -> str:
    data, kind = event.data, event.kind
    words = text(data) or (f"{len(data)} bytes: {data[:16].hex()}" if data else "")
    if not event.firmware:
        pass
    elif kind == EV_NO_ACTION:
        words = _no_action(data)
    elif kind == EV_SEPARATOR:
        words = {bytes(4): "0", b"\xff" * 4: "0xffffffff"}.get(data, data[:16].hex())
    elif kind in VARIABLES:
        words = _variable_words(data)
    elif kind in _IMAGES:
        reader = Reader(data, "image", order="little")
        reader.take(24)
        words = path_words(reader.take(reader.u64()))
    elif kind == EV_EVENT_TAG:
        number, content = _tag(data)
        words = f"{number:#010x} {text(content) or content[:16].hex()}"
    elif kind in _PARTITIONS:
        reader = Reader(data, "partition table", order="little")
        reader.take(92)
        words = f"partition table of {reader.u64()} partitions"
    elif kind in _BLOBS and len(data) == 16:
        start, size = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
        words = f"{size} bytes at {start:#x}"
    return words


def _no_action(data: bytes) -> str:
    name = data[:16].rstrip(b"\0").decode("ascii", errors="replace")
    if name == "StartupLocality" and len(data) == 17:
        return f"{name} {data[16]}"
    if name == "Spec ID Event03" and len(data) >= 28:
        reader = Reader(data[28:], name, order="little")
        count = min(int.from_bytes(data[24:28], "little"), 16)
        banks = [bank_name(alg) for alg, _ in [(reader.u16(), reader.u16()) for _ in range(count)]]
        return f"{name}, {', '.join(banks)}"
    return name


def _variable_words(data: bytes) -> str:
    name, content = _variable(data)
    if name == "BootOrder" and len(content) % 2 == 0:
        order = (int.from_bytes(content[at : at + 2], "little") for at in range(0, len(content), 2))
        return f"{name} " + ", ".join(f"{one:04X}" for one in order)
    if len(content) == 1:
        return f"{name} {content[0]}"
    if _LOAD_OPTION.fullmatch(name) and len(content) > 6:
        # EFI_LOAD_OPTION: attributes, length of the paths, then the description up to a zero.
        described = content[6 : len(content) // 2 * 2].decode("utf-16-le", errors="replace")
        return f"{name} {described.partition(chr(0))[0]!r}"
    return f"{name}, {len(content)} bytes"


def text(data: bytes) -> str:
    """The data as text, if it is one: ASCII or UTF-8, or UTF-16 as UEFI writes it; else an empty text."""
    for encoding in ("utf-8", "utf-16-le"):
        try:
            found = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        if found and all(letter.isprintable() or letter in "\t\n" for letter in found):
            return found
    return ""
