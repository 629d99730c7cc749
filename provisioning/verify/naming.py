"""Names of the events behind a register, for findings. Pure.

What an event is called in the log is not hashed into any register (see ``eventlog``): the names help a person to
find what was added, and decide nothing.

Sources: TCG "PC Client Platform Firmware Profile", 1.06, section 10.2.3 (UEFI_IMAGE_LOAD_EVENT); UEFI 2.10,
section 10.3 (device paths); systemd 257, src/boot/measure.c (EV_IPL and EV_EVENT_TAG with a description in UTF-16)
and ``tpm2_userspace_log`` (JSON with "content").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable

from nodeos.core.wire import ParseError
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.eventlog import EV_SEPARATOR, Event, parse_event_log

_EV_EVENT_TAG, _EV_IPL, _EV_APPLICATION = 0x00000006, 0x0000000D, 0x80000003
_TOLD, _LENGTH = 6, 80


def events_of(firmware_log: bytes, userspace_log: bytes) -> tuple[Event, ...]:
    """The events of both logs. Of a log that can't be read there are none: ``check_logs`` says why."""
    found: list[Event] = []
    for data, parse in (
        (firmware_log, lambda data: parse_event_log(data).events),
        (userspace_log, parse_measure_log),
    ):
        try:
            found += parse(data)
        except ParseError:
            continue
    return tuple(found)


def named(events: Iterable[Event], pcr: int) -> str:
    """What the logs say was measured into ``pcr``: the end of a finding's message, empty if they say nothing."""
    mine = [event for event in events if event.pcr == pcr and event.extends and event.kind != EV_SEPARATOR]
    if not mine:
        return ""
    more = f" and {len(mine) - _TOLD} more" if len(mine) > _TOLD else ""
    return f"; the log names {', '.join(map(_words, mine[:_TOLD]))}{more}"


def _words(event: Event) -> str:
    text = _description(event)
    return f'{event.words} "{text}"' if text else event.words


def _description(event: Event) -> str:
    if event.kind == _EV_APPLICATION:
        return _printable(_image_path(event.data))
    if event.kind == _EV_EVENT_TAG:
        return _printable(_text(event.data[8:]))
    return _printable(_text(event.data)) if event.kind == _EV_IPL else ""


def _text(data: bytes) -> str:
    """systemd's own record, UTF-16 as the stub writes it, or the bytes as they are."""
    if data.startswith(b"{"):
        try:
            content = json.loads(data).get("content")
            return str(content.get("string", "")) if isinstance(content, dict) else ""
        except (ValueError, RecursionError):
            return ""
    if len(data) % 2 == 0 and data[1::2].count(0) * 4 > len(data):
        return data.decode("utf-16-le", errors="replace")
    return data.decode(errors="replace")


def _image_path(data: bytes) -> str:
    """The file in the device path of an image that the firmware started."""
    if len(data) < 32:
        return ""
    (length,) = struct.unpack_from("<Q", data, 24)
    path, names = data[32 : 32 + length], []
    while len(path) >= 4:
        kind, subtype, size = struct.unpack_from("<BBH", path)
        if not 4 <= size <= len(path):
            break
        if (kind, subtype) == (4, 4):
            names.append(path[4:size].decode("utf-16-le", errors="replace").rstrip("\0"))
        path = path[size:]
    return "".join(names)


def _printable(text: str) -> str:
    """One short line: a log may hold anything."""
    line = "".join(char if char.isprintable() and char != '"' else " " for char in text.rstrip("\0")).strip()
    return line if len(line) <= _LENGTH else line[: _LENGTH - 1] + "…"
