"""Just enough of the WebAssembly binary format to make a module's whole state reachable from outside.

Source: WebAssembly core specification 3.0, chapter "Binary Format". A canister's state is its memory and its
mutable globals, but modules rarely export the globals (a Rust module's stack pointer, for one). ``prepare``
adds exports for all of them and for the memory, and turns the start function into an export: it must run
when the code is installed, not each time an instance is made from a saved state.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeos.core.errors import NodeosError
from replica.hashing import leb128

_HEADER = b"\x00asm\x01\x00\x00\x00"
_EXPORT, _START = 7, 8
_BEFORE_EXPORT = (1, 2, 3, 4, 5, 13, 6)
_NUMBERS = (0x7F, 0x7E, 0x7D, 0x7C)  # i32, i64, f32, f64
PREFIX = "nodeos:"
MEMORY_EXPORT = PREFIX + "memory"
START_EXPORT = PREFIX + "start"
_MAX_GLOBALS = 1000
_MAX_METADATA = 16


class WasmError(NodeosError):
    """A module that can't be installed, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A module ready to compile. ``globals`` names the exports of its mutable globals; ``metadata`` holds its
    ``icp:`` custom sections as (name, is public, content)."""

    code: bytes
    globals: tuple[str, ...]
    memory: bool
    start: bool
    metadata: tuple[tuple[str, bool, bytes], ...]


class _Reader:
    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data, self.at, self.end = data, start, len(data) if end is None else end

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise WasmError("the module ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """LEB128 of at most ten bytes."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
        raise WasmError("a number that is too long")

    def name(self) -> str:
        try:
            return self.take(self.number()).decode()
        except UnicodeDecodeError as error:
            raise WasmError("a name that isn't UTF-8") from error

    def value_type(self) -> int:
        kind = self.byte()
        if kind in (0x63, 0x64):  # a reference to a heap type
            self.number()
        return kind

    def skip_expression(self) -> None:
        """Read past a constant expression."""
        while True:
            opcode = self.byte()
            match opcode:
                case 0x0B:
                    return
                case 0x41 | 0x42 | 0x23 | 0xD0 | 0xD2:
                    self.number()
                case 0x43:
                    self.take(4)
                case 0x44:
                    self.take(8)
                case 0x6A | 0x6B | 0x6C | 0x7C | 0x7D | 0x7E:
                    pass
                case 0xFD if self.number() == 12:
                    self.take(16)
                case _:
                    raise WasmError(f"a global begins with instruction 0x{opcode:02x}, which isn't supported")


@dataclass(slots=True)
class _Found:
    """What the sections say, gathered while they are read."""

    mutable: list[int]
    exports: list[bytes]
    names: set[str]
    metadata: list[tuple[str, bool, bytes]]
    globals: int = 0
    memories: int = 0
    start: int | None = None


def prepare(module: bytes) -> Prepared:
    """Rewrite a module (see above). Raises WasmError; what is not read here is left to the compiler."""
    if not module.startswith(_HEADER):
        raise WasmError("not a WebAssembly module of version 1")
    found = _Found(mutable=[], exports=[], names=set(), metadata=[])
    reader = _Reader(module, len(_HEADER))
    kept: list[tuple[int, bytes]] = []
    while reader.at < reader.end:
        kind = reader.byte()
        body = reader.take(reader.number())
        _read_section(kind, _Reader(body), found)
        if kind not in (_EXPORT, _START):
            kept.append((kind, body))
    exports = _extra_exports(found)
    body = leb128(len(exports)) + b"".join(exports)
    place = max((i + 1 for i, (kind, _) in enumerate(kept) if kind in _BEFORE_EXPORT), default=0)
    kept.insert(place, (_EXPORT, body))
    code = _HEADER + b"".join(bytes((kind,)) + leb128(len(body)) + body for kind, body in kept)
    return Prepared(
        code=code,
        globals=tuple(f"{PREFIX}global{index}" for index in found.mutable),
        memory=found.memories == 1,
        start=found.start is not None,
        metadata=tuple(found.metadata),
    )


def _extra_exports(found: _Found) -> list[bytes]:
    if any(name.startswith(PREFIX) for name in found.names):
        raise WasmError(f"exports that begin with {PREFIX!r} are reserved")
    if found.memories > 1:
        raise WasmError("more than one memory")
    if len(found.mutable) > _MAX_GLOBALS:
        raise WasmError(f"more than {_MAX_GLOBALS} mutable globals")
    exports = list(found.exports)
    exports += [_export(f"{PREFIX}global{index}", 3, index) for index in found.mutable]
    if found.memories:
        exports.append(_export(MEMORY_EXPORT, 2, 0))
    if found.start is not None:
        exports.append(_export(START_EXPORT, 0, found.start))
    return exports


def _export(name: str, kind: int, index: int) -> bytes:
    raw = name.encode()
    return leb128(len(raw)) + raw + bytes((kind,)) + leb128(index)


def _read_section(kind: int, reader: _Reader, found: _Found) -> None:
    match kind:
        case 0:
            _read_custom(reader, found)
        case 2:
            for _ in range(reader.number()):
                _read_import(reader)
        case 5:
            found.memories += reader.number()
        case 6:
            for _ in range(reader.number()):
                _read_global(reader, found)
        case 7:
            for _ in range(reader.number()):
                begin = reader.at
                found.names.add(reader.name())
                reader.byte()
                reader.number()
                found.exports.append(reader.data[begin : reader.at])
        case 8:
            found.start = reader.number()
        case _:
            pass


def _read_import(reader: _Reader) -> None:
    """Only functions may be imported: anything else would be state that lies elsewhere."""
    module, name = reader.name(), reader.name()
    if reader.byte() != 0:
        raise WasmError(f"it imports {module}.{name}, which isn't a function")
    reader.number()


def _read_global(reader: _Reader, found: _Found) -> None:
    kind = reader.value_type()
    if reader.byte():
        if kind not in _NUMBERS:
            raise WasmError(f"global {found.globals} is mutable and of a type that can't be saved")
        found.mutable.append(found.globals)
    reader.skip_expression()
    found.globals += 1


def _read_custom(reader: _Reader, found: _Found) -> None:
    """``icp:public name`` and ``icp:private name`` become the canister's metadata."""
    scope, _, name = reader.name().partition(" ")
    if scope in ("icp:public", "icp:private") and name:
        if len(found.metadata) >= _MAX_METADATA:
            raise WasmError(f"more than {_MAX_METADATA} sections of metadata")
        found.metadata.append((name, scope == "icp:public", reader.take(reader.end - reader.at)))
