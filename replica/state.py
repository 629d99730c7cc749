"""What a replica knows: canisters and the fate of requests, as values that never change in place.

A canister's memory is a tuple of WebAssembly pages, so that two states share the pages that are equal. What
has changed is found by comparing, in pages of 4096 bytes, and only that is written to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from nodeos.core.principal import Principal
from replica.errors import ErrorCode, RejectCode

WASM_PAGE = 1 << 16
PAGE = 1 << 12
ZERO = bytes(WASM_PAGE)
_ZERO_PAGE = bytes(PAGE)

Pages = tuple[bytes, ...]


class Space(IntEnum):
    """The two memories of a canister."""

    HEAP = 0
    STABLE = 1


class CanisterStatus(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Installed code. ``compiled`` is a wasmtime module; ``methods`` the names of its exported functions;
    ``certified`` tells whether it asks for data certificates; ``metadata`` is (name, is public, content)."""

    module_hash: bytes
    compiled: Any
    wide: bool
    globals: tuple[str, ...]
    memory: bool
    start: bool
    certified: bool
    methods: frozenset[str]
    metadata: tuple[tuple[str, bool, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Canister:
    """A canister between two messages. ``version`` grows with every change, ``globals`` are raw bits."""

    id: Principal
    controllers: tuple[Principal, ...]
    status: CanisterStatus = CanisterStatus.RUNNING
    cycles: int = 0
    version: int = 0
    certified_data: bytes = b""
    code: Code | None = None
    heap: Pages = ()
    globals: tuple[int, ...] = ()
    stable: Pages = ()

    @property
    def memory_bytes(self) -> int:
        return (len(self.heap) + len(self.stable)) * WASM_PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A method's answer."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Why there is no answer."""

    code: RejectCode
    error_code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStatus:
    """What became of an update call. ``expires`` (nanoseconds since 1970): until then it is kept."""

    id: bytes
    sender: Principal
    canister: Principal
    expires: int
    outcome: Reply | Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One canister after a message. ``module`` is the code that was installed, if any was; ``fresh`` names
    the memories that begin anew."""

    before: Canister | None
    after: Canister
    module: bytes | None = None
    fresh: frozenset[Space] = field(default_factory=frozenset)

    def dirty(self, space: Space) -> Iterator[tuple[int, bytes]]:
        """(number, content) of every 4096-byte page that differs from what is on disk."""
        new = self.after.heap if space is Space.HEAP else self.after.stable
        old: Pages = ()
        if self.before is not None and space not in self.fresh:
            old = self.before.heap if space is Space.HEAP else self.before.stable
        for index, page in enumerate(new):
            known = old[index] if index < len(old) else ZERO
            if page is known or page == known:
                continue
            for start in range(0, WASM_PAGE, PAGE):
                part = page[start : start + PAGE]
                if part != known[start : start + PAGE]:
                    yield (index * WASM_PAGE + start) // PAGE, part


def pages_from(count: int, parts: Iterator[tuple[int, bytes]]) -> Pages:
    """Put 4096-byte pages together again; what isn't given is zero."""
    pages: list[bytes | bytearray] = [ZERO] * count
    for number, part in parts:
        index, start = divmod(number * PAGE, WASM_PAGE)
        page = pages[index]
        if not isinstance(page, bytearray):
            page = pages[index] = bytearray(page)
        page[start : start + PAGE] = part
    return tuple(bytes(page) if isinstance(page, bytearray) else page for page in pages)


def canister_id(index: int) -> Principal:
    """The principal of the canister with this number: 8 bytes big-endian, 0x01, 0x01."""
    return Principal(index.to_bytes(8, "big") + b"\x01\x01")
