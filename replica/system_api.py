"""The System API: what a canister may import from ``ic0``, where each function may be called, what it does.

Source: interface specification, section "System API". ``I`` in a signature is i32 or i64, as the canister's
memory. Functions that this replica doesn't offer aren't listed, and a module that imports one is refused
when it is installed, with its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, auto

from nodeos.core.principal import MAX_BYTES, Principal
from replica.engine import I32, I64, HostFunction, Instance
from replica.errors import ErrorCode, RejectCode
from replica.state import WASM_PAGE, ZERO, Canister, CanisterStatus, Pages, Reject, Reply

MAX_REPLY = 2 << 20
MAX_CERTIFIED_DATA = 32
# Fuel for each call of a host function, and for each byte it moves: a call takes Python about 5 µs.
_CALL_COST = 1000
_LOGGED = 2048


class Mode(Flag):
    """What kind of message runs (the letters of the specification)."""

    START = auto()  # s
    INIT = auto()  # I, for canister_init and canister_post_upgrade
    PRE_UPGRADE = auto()  # G
    UPDATE = auto()  # U
    REPLICATED_QUERY = auto()  # RQ
    QUERY = auto()  # NRQ
    INSPECT = auto()  # F


_ALL = Mode.INIT | Mode.PRE_UPGRADE | Mode.UPDATE | Mode.REPLICATED_QUERY | Mode.QUERY | Mode.INSPECT
_ANSWERING = Mode.UPDATE | Mode.REPLICATED_QUERY | Mode.QUERY


class CanisterTrapError(Exception):
    """The canister called ic0.trap."""


class ContractViolationError(Exception):
    """The canister used the System API as it must not."""


class StableMemory:
    """A canister's stable memory during one message; nothing outside sees the writes until they commit."""

    def __init__(self, pages: Pages, limit: int) -> None:
        self._pages: list[bytes | bytearray] = list(pages)
        self._limit = limit

    def size(self) -> int:
        return len(self._pages)

    def grow(self, pages: int) -> int:
        """The old size in pages, or -1 if there isn't room."""
        old = len(self._pages)
        if old + pages > self._limit:
            return -1
        self._pages.extend([ZERO] * pages)
        return old

    def _parts(self, start: int, size: int) -> list[tuple[int, int, int]]:
        """(page, first, last) of a range. Raises ContractViolationError beyond the end."""
        if start + size > len(self._pages) * WASM_PAGE:
            raise ContractViolationError("stable memory out of bounds")
        parts, end = [], start + size
        while start < end:
            page, first = divmod(start, WASM_PAGE)
            count = min(WASM_PAGE - first, end - start)
            parts.append((page, first, first + count))
            start += count
        return parts

    def read(self, start: int, size: int) -> bytes:
        return b"".join(bytes(self._pages[page][a:b]) for page, a, b in self._parts(start, size))

    def write(self, start: int, data: bytes) -> None:
        done = 0
        for page, a, b in self._parts(start, len(data)):
            content = self._pages[page]
            if not isinstance(content, bytearray):
                content = self._pages[page] = bytearray(content)
            content[a:b] = data[done : done + b - a]
            done += b - a

    def pages(self) -> Pages:
        return tuple(bytes(page) if isinstance(page, bytearray) else page for page in self._pages)


@dataclass(slots=True, kw_only=True)
class Context:
    """One message while it runs. ``time`` in nanoseconds since 1970."""

    mode: Mode
    instance: Instance
    canister: Canister
    caller: Principal
    method: str
    argument: bytes
    time: int
    stable: StableMemory
    certificate: bytes | None = None
    certified_data: bytes | None = None
    accepted: bool = False
    reply: bytearray = field(default_factory=bytearray)
    outcome: Reply | Reject | None = None

    def allow(self, modes: Mode, name: str) -> None:
        if self.mode not in modes:
            raise ContractViolationError(f"{name} can't be called in this kind of message")

    def copy(self, target: int, offset: int, size: int, source: bytes) -> None:
        """What all the ``_copy`` functions do."""
        if offset + size > len(source):
            raise ContractViolationError("a copy beyond the end of the data")
        self.instance.charge(size)
        self.instance.write(target, source[offset : offset + size])

    def fetch(self, start: int, size: int) -> bytes:
        self.instance.charge(size)
        return self.instance.read(start, size)

    def answer(self, outcome: Reply | Reject) -> None:
        if self.outcome is not None:
            raise ContractViolationError("the message was answered already")
        self.outcome = outcome


# name, parameters, result, modes, function
_Row = tuple[str, str, str, Mode, Callable[..., "int | None"]]


def _data(name: str, modes: Mode, source: Callable[[Context], bytes]) -> list[_Row]:
    """The pair of ``_size`` and ``_copy`` for some bytes."""
    return [
        (f"{name}_size", "", "I", modes, lambda c: len(source(c))),
        (f"{name}_copy", "III", "", modes, lambda c, t, o, s: c.copy(t, o, s, source(c))),
    ]


def _certificate(c: Context) -> bytes:
    if c.certificate is None:
        raise ContractViolationError("there is no data certificate in this kind of message")
    return c.certificate


def _append(c: Context, start: int, size: int) -> None:
    if c.outcome is not None:
        raise ContractViolationError("the message was answered already")
    if len(c.reply) + size > MAX_REPLY:
        raise ContractViolationError(f"a reply of more than {MAX_REPLY} bytes")
    c.reply += c.fetch(start, size)


def _reject(c: Context, start: int, size: int) -> None:
    if size > MAX_REPLY:
        raise ContractViolationError(f"a reject message of more than {MAX_REPLY} bytes")
    text = _text(c.fetch(start, size))
    c.answer(Reject(code=RejectCode.CANISTER_REJECT, error_code=ErrorCode.REJECTED_MESSAGE, message=text))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ContractViolationError("text that isn't UTF-8") from error


def _trap(c: Context, start: int, size: int) -> None:
    raise CanisterTrapError(c.fetch(start, min(size, 1 << 15)).decode(errors="replace"))


def _debug_print(c: Context, start: int, size: int) -> None:
    text = c.fetch(start, min(size, _LOGGED)).decode(errors="backslashreplace")
    print(f"[canister {c.canister.id}] {text}", file=sys.stderr)  # noqa: T201 — the daemon's log


def _certified_data_set(c: Context, start: int, size: int) -> None:
    if size > MAX_CERTIFIED_DATA:
        raise ContractViolationError(f"certified data of more than {MAX_CERTIFIED_DATA} bytes")
    c.certified_data = c.fetch(start, size)


def _is_controller(c: Context, start: int, size: int) -> int:
    if size > MAX_BYTES:
        raise ContractViolationError("a principal of more than 29 bytes")
    return int(Principal(c.fetch(start, size)) in c.canister.controllers)


def _accept(c: Context) -> None:
    if c.accepted:
        raise ContractViolationError("the message was accepted already")
    c.accepted = True


def _stable_read(c: Context, target: int, start: int, size: int) -> None:
    c.instance.charge(size)
    c.instance.write(target, c.stable.read(start, size))


def _stable_write(c: Context, start: int, source: int, size: int) -> None:
    c.stable.write(start, c.fetch(source, size))


def _timer(c: Context, _time: int) -> int:
    raise ContractViolationError("ic0.global_timer_set: this replica has no timers yet")


def _no_cycles(c: Context, *arguments: int) -> None:
    """No message here carries cycles: zero, as a 128-bit number."""
    c.instance.write(arguments[-1], bytes(16))


def _performance(c: Context, kind: int) -> int:
    if kind > 1:
        raise ContractViolationError(f"there is no performance counter {kind}")
    return c.instance.used


_STABLE = _ALL | Mode.START
_ROWS: tuple[_Row, ...] = (
    *_data("msg_arg_data", Mode.INIT | _ANSWERING | Mode.INSPECT, lambda c: c.argument),
    *_data("msg_caller", _ALL, lambda c: c.caller.raw),
    *_data("msg_method_name", Mode.INSPECT, lambda c: c.method.encode()),
    *_data("canister_self", _ALL, lambda c: c.canister.id.raw),
    *_data("data_certificate", Mode.QUERY, _certificate),
    ("data_certificate_present", "", I32, _ALL, lambda c: int(c.certificate is not None)),
    ("accept_message", "", "", Mode.INSPECT, _accept),
    ("msg_reply_data_append", "II", "", _ANSWERING, _append),
    ("msg_reply", "", "", _ANSWERING, lambda c: c.answer(Reply(data=bytes(c.reply)))),
    ("msg_reject", "II", "", _ANSWERING, _reject),
    ("msg_cycles_available128", "I", "", Mode.UPDATE, _no_cycles),
    (
        "msg_cycles_accept128",
        f"{I64} {I64} I",
        "",
        Mode.UPDATE,
        _no_cycles,
    ),
    (
        "canister_cycle_balance128",
        "I",
        "",
        _ALL,
        lambda c, target: c.instance.write(target, c.canister.cycles.to_bytes(16, "little")),
    ),
    ("canister_version", "", I64, _ALL, lambda c: c.canister.version),
    (
        "canister_status",
        "",
        I32,
        _ALL,
        lambda c: 1 if c.canister.status is CanisterStatus.RUNNING else 3,
    ),
    ("certified_data_set", "II", "", Mode.INIT | Mode.PRE_UPGRADE | Mode.UPDATE, _certified_data_set),
    ("is_controller", "II", I32, _ALL, _is_controller),
    (
        "in_replicated_execution",
        "",
        I32,
        _ALL | Mode.START,
        lambda c: int(c.mode not in Mode.QUERY | Mode.INSPECT),
    ),
    ("global_timer_set", I64, I64, _ALL, _timer),
    ("performance_counter", I32, I64, _ALL | Mode.START, _performance),
    ("time", "", I64, _ALL, lambda c: c.time),
    ("debug_print", "II", "", _ALL | Mode.START, _debug_print),
    ("trap", "II", "", _ALL | Mode.START, _trap),
    ("stable64_size", "", I64, _STABLE, lambda c: c.stable.size()),
    ("stable64_grow", I64, I64, _STABLE, lambda c, pages: c.stable.grow(pages)),
    ("stable64_read", f"{I64} {I64} {I64}", "", _STABLE, _stable_read),
    ("stable64_write", f"{I64} {I64} {I64}", "", _STABLE, _stable_write),
)


def _types(text: str, wide: bool) -> tuple[str, ...]:
    words = text.split() if " " in text or text in (I32, I64) else list(text)
    return tuple((I64 if wide else I32) if word == "I" else word for word in words)


def _host_function(row: _Row, wide: bool) -> HostFunction:
    name, parameters, result, modes, function = row

    def call(context: Context, *arguments: int) -> int | None:
        context.allow(modes, f"ic0.{name}")
        context.instance.charge(_CALL_COST)
        return function(context, *arguments)

    results = _types(result, wide)
    return HostFunction(
        name=name, parameters=_types(parameters, wide), result=results[0] if results else None, call=call
    )


def host_functions(wide: bool) -> tuple[HostFunction, ...]:
    """All of them, for canisters with 64-bit memory or with 32-bit memory."""
    return tuple(_host_function(row, wide) for row in _ROWS)
