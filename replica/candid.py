"""Candid: types, and the binary form of values with their types.

Source: the Candid specification (github.com/dfinity/candid, spec/Candid.md), sections "Binary Format" and
"Deserialisation" (subtyping by coercion). Values in Python: nat, int and their fixed widths as ``int``,
bool, text as ``str``, blob and ``vec nat8`` as ``bytes``, principal as ``Principal``, opt as the value or
None (an opt of an opt keeps one level), vec as ``list``, record as ``dict`` by field name (or field number),
variant as ``(name, value)``, null and reserved as None. Functions and services are read past, not built.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from nodeos.core.errors import NodeosError
from nodeos.core.principal import Principal
from replica.hashing import leb128

MAGIC = b"DIDL"
_MAX_DEPTH = 50
# Values that a message may hold for each byte it has, and some: a vec of null costs no bytes at all.
_BASE_QUOTA = 10_000


class CandidError(NodeosError):
    """Bytes that aren't Candid, or not of the type that is expected, or a value that doesn't fit its type."""


@dataclass(frozen=True, slots=True)
class Prim:
    """A type without parts. ``opcode`` is its number in the binary form."""

    name: str
    opcode: int


NULL, BOOL, NAT, INT = Prim("null", -1), Prim("bool", -2), Prim("nat", -3), Prim("int", -4)
NAT8, NAT16, NAT32, NAT64 = (Prim(f"nat{8 << i}", -5 - i) for i in range(4))
INT8, INT16, INT32, INT64 = (Prim(f"int{8 << i}", -9 - i) for i in range(4))
FLOAT32, FLOAT64, TEXT = Prim("float32", -13), Prim("float64", -14), Prim("text", -15)
RESERVED, EMPTY, PRINCIPAL = Prim("reserved", -16), Prim("empty", -17), Prim("principal", -24)

_PRIMS = {
    p.opcode: p
    for p in (
        *(NULL, BOOL, NAT, INT, NAT8, NAT16, NAT32, NAT64, INT8, INT16, INT32, INT64),
        *(FLOAT32, FLOAT64, TEXT, RESERVED, EMPTY, PRINCIPAL),
    )
}
_FIXED = {
    **{NAT8: "<B", NAT16: "<H", NAT32: "<I", NAT64: "<Q", INT8: "<b", INT16: "<h", INT32: "<i"},
    **{INT64: "<q", FLOAT32: "<f", FLOAT64: "<d"},
}


@dataclass(frozen=True, slots=True)
class Opt:
    inner: Type


@dataclass(frozen=True, slots=True)
class Vec:
    inner: Type


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record or variant, by number; names where they are known."""

    types: tuple[tuple[int, Type], ...]
    names: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    def name(self, number: int) -> str | int:
        return dict(self.names).get(number, number)


@dataclass(frozen=True, slots=True)
class Record:
    fields: Fields


@dataclass(frozen=True, slots=True)
class Variant:
    fields: Fields


@dataclass(frozen=True, slots=True)
class Reference:
    """A function or service; ``kind`` is "func" or "service"."""

    kind: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A type of a message's own table, by its place (so that types can be recursive)."""

    index: int


Type: TypeAlias = Prim | Opt | Vec | Record | Variant | Reference | Entry
BLOB = Vec(NAT8)


def field_number(name: str) -> int:
    """The number that stands for a field's name on the wire."""
    number = 0
    for byte in name.encode():
        number = (number * 223 + byte) % 2**32
    return number


def _fields(types: dict[str, Type]) -> Fields:
    numbered = sorted((field_number(name), name, kind) for name, kind in types.items())
    return Fields(tuple((n, k) for n, _, k in numbered), tuple((n, name) for n, name, _ in numbered))


def record(**types: Type) -> Record:
    return Record(_fields(types))


def variant(**types: Type) -> Variant:
    return Variant(_fields(types))


# --- writing ---------------------------------------------------------------------------------------------


def _sleb(number: int) -> bytes:
    out = bytearray()
    while not -0x40 <= number < 0x40:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number & 0x7F))


def encode(types: tuple[Type, ...], values: tuple[object, ...]) -> bytes:
    """Write a message. Raises CandidError if a value doesn't fit its type."""
    if len(types) != len(values):
        raise CandidError(f"{len(types)} types, but {len(values)} values")
    table: dict[Type, int] = {}
    rows: list[bytes] = []
    heads = b"".join(_write_type(kind, table, rows) for kind in types)
    body = b"".join(_write(kind, value) for kind, value in zip(types, values, strict=True))
    return MAGIC + leb128(len(rows)) + b"".join(rows) + leb128(len(types)) + heads + body


def _write_type(kind: Type, table: dict[Type, int], rows: list[bytes]) -> bytes:
    if isinstance(kind, Prim):
        return _sleb(kind.opcode)
    if kind not in table:
        match kind:
            case Opt() | Vec():
                row = _sleb(-18 if isinstance(kind, Opt) else -19) + _write_type(kind.inner, table, rows)
            case Record() | Variant():
                row = _sleb(-20 if isinstance(kind, Record) else -21) + leb128(len(kind.fields.types))
                for number, inner in kind.fields.types:
                    row += leb128(number) + _write_type(inner, table, rows)
            case _:
                raise CandidError("references can't be written")
        table[kind] = len(rows)
        rows.append(row)
    return _sleb(table[kind])


def _write(kind: Type, value: object) -> bytes:  # noqa: PLR0911, PLR0912 — one case for each type
    match kind, value:
        case Prim(name="null" | "reserved"), _:
            return b""
        case Prim(name="bool"), bool():
            return bytes((value,))
        case Prim(name="nat"), int() if value >= 0:
            return leb128(value)
        case Prim(name="int"), int():
            return _sleb(value)
        case Prim(name="text"), str():
            raw = value.encode()
            return leb128(len(raw)) + raw
        case Prim(name="principal"), Principal():
            return b"\x01" + leb128(len(value.raw)) + value.raw
        case Prim(), int() | float() if kind in _FIXED:
            try:
                return struct.pack(_FIXED[kind], value)
            except struct.error as error:
                raise CandidError(f"{value} is not a {kind.name}") from error
        case Opt(), _:
            return b"\x00" if value is None else b"\x01" + _write(kind.inner, value)
        case Vec(inner=Prim(name="nat8")), bytes():
            return leb128(len(value)) + value
        case Vec(), list() | tuple():
            return leb128(len(value)) + b"".join(_write(kind.inner, item) for item in value)
        case Record(), dict():
            return b"".join(_write(t, value.get(kind.fields.name(n))) for n, t in kind.fields.types)
        case Variant(), (name, inner):
            for index, (number, inner_kind) in enumerate(kind.fields.types):
                if kind.fields.name(number) == name:
                    return leb128(index) + _write(inner_kind, inner)
    raise CandidError(f"{type(value).__name__} doesn't fit the type {describe(kind)}")


def describe(kind: Type) -> str:
    """A type in words, for messages."""
    match kind:
        case Prim():
            return kind.name
        case Opt() | Vec():
            return f"{type(kind).__name__.lower()} {describe(kind.inner)}"
        case Reference():
            return kind.kind
        case _:
            return type(kind).__name__.lower()


# --- reading ---------------------------------------------------------------------------------------------


class _Reader:
    """Reads within bounds; ``quota`` bounds how many values a message may make."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.quota = _BASE_QUOTA + len(data)

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise CandidError("the message ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def uleb(self, limit: int | None = None) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 7 * 4096:
                raise CandidError("a number of more than 4096 bytes")
        if limit is not None and number > limit:
            raise CandidError(f"{number} is more than {limit}")
        return number

    def sleb(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return number - (1 << shift) if byte & 0x40 else number
            if shift > 7 * 4096:
                raise CandidError("a number of more than 4096 bytes")

    def spend(self) -> None:
        self.quota -= 1
        if self.quota < 0:
            raise CandidError("the message unfolds to too many values")


class _Message:
    """A message's type table and the reader behind it."""

    def __init__(self, data: bytes) -> None:
        self.reader = _Reader(data)
        if self.reader.take(4) != MAGIC:
            raise CandidError("it does not begin with DIDL")
        count = self.reader.uleb(limit=len(data))
        self.table: list[Type] = []
        for _ in range(count):
            self.table.append(self._row(count))
        self.types = [self._head(count) for _ in range(self.reader.uleb(limit=len(data)))]

    def _head(self, count: int) -> Type:
        opcode = self.reader.sleb()
        if opcode in _PRIMS:
            return _PRIMS[opcode]
        if not 0 <= opcode < count:
            raise CandidError(f"there is no type {opcode}")
        return Entry(opcode)

    def _row(self, count: int) -> Type:
        opcode = self.reader.sleb()
        match opcode:
            case -18:
                return Opt(self._head(count))
            case -19:
                return Vec(self._head(count))
            case -20 | -21:
                fields: list[tuple[int, Type]] = []
                for _ in range(self.reader.uleb(limit=len(self.reader.data))):
                    number = self.reader.uleb(limit=2**32 - 1)
                    if fields and number <= fields[-1][0]:
                        raise CandidError("fields that aren't in order, or stand twice")
                    fields.append((number, self._head(count)))
                return Record(Fields(tuple(fields))) if opcode == -20 else Variant(Fields(tuple(fields)))
            case -22:
                for _ in range(2):
                    for _ in range(self.reader.uleb(limit=len(self.reader.data))):
                        self._head(count)
                self.reader.take(self.reader.uleb(limit=8))
                return Reference("func")
            case -23:
                for _ in range(self.reader.uleb(limit=len(self.reader.data))):
                    self.reader.take(self.reader.uleb())
                    self._head(count)
                return Reference("service")
        raise CandidError(f"an unknown type constructor {opcode}")

    def resolve(self, kind: Type) -> Type:
        return self.table[kind.index] if isinstance(kind, Entry) else kind

    def read(self, kind: Type, depth: int = 0) -> object:  # noqa: PLR0911 — one case for each type
        """Read the next value, which is of ``kind``."""
        self.reader.spend()
        if depth > _MAX_DEPTH:
            raise CandidError("values nested too deeply")
        kind = self.resolve(kind)
        match kind:
            case Prim():
                return self._prim(kind)
            case Opt():
                # An opt of an opt must keep "none inside some" apart from "none".
                if not self._flag():
                    return None
                inner = self.read(kind.inner, depth + 1)
                return _Some(inner) if inner is None or isinstance(inner, _Some) else inner
            case Vec():
                count = self.reader.uleb()
                if self.resolve(kind.inner) == NAT8:
                    return self.reader.take(count)
                return [self.read(kind.inner, depth + 1) for _ in range(count)]
            case Record():
                return {number: self.read(inner, depth + 1) for number, inner in kind.fields.types}
            case Variant():
                index = self.reader.uleb()
                if index >= len(kind.fields.types):
                    raise CandidError("a variant without that case")
                number, inner_kind = kind.fields.types[index]
                return number, self.read(inner_kind, depth + 1)
            case _:
                return self._reference(kind)

    def _flag(self) -> bool:
        byte = self.reader.take(1)[0]
        if byte > 1:
            raise CandidError(f"{byte} where 0 or 1 belongs")
        return byte == 1

    def _prim(self, kind: Prim) -> object:  # noqa: PLR0911 — one case for each type
        match kind.name:
            case "null" | "reserved":
                return None
            case "bool":
                return self._flag()
            case "nat":
                return self.reader.uleb()
            case "int":
                return self.reader.sleb()
            case "text":
                try:
                    return self.reader.take(self.reader.uleb()).decode()
                except UnicodeDecodeError as error:
                    raise CandidError("text that isn't UTF-8") from error
            case "principal":
                return self._principal()
            case "empty":
                raise CandidError("a value of the type empty, which has none")
            case _:
                layout = _FIXED[kind]
                value: object = struct.unpack(layout, self.reader.take(struct.calcsize(layout)))[0]
                return value

    def _principal(self) -> Principal:
        if not self._flag():
            raise CandidError("an opaque reference")
        return Principal(self.reader.take(self.reader.uleb(limit=29)))

    def _reference(self, kind: Type) -> object:
        if not isinstance(kind, Reference):
            raise CandidError("a type that can't be read")
        if kind.kind == "service":
            return self._principal()
        if not self._flag():
            raise CandidError("an opaque reference")
        service = self._principal()
        return service, self.reader.take(self.reader.uleb())


@dataclass(frozen=True, slots=True)
class _Some:
    """An opt whose content is an empty opt or null."""

    inner: object


def decode_any(data: bytes) -> list[object]:
    """Read a message as it describes itself; records have field numbers for keys. Raises CandidError."""
    message = _Message(data)
    values = [message.read(kind) for kind in message.types]
    _finish(message)
    return values


def decode(data: bytes, types: tuple[Type, ...]) -> tuple[object, ...]:
    """Read a message as values of ``types``, by the rules of subtyping. Raises CandidError."""
    message = _Message(data)
    found = [(kind, message.read(kind)) for kind in message.types]
    _finish(message)
    result: list[object] = []
    for index, wanted in enumerate(types):
        kind, value = found[index] if index < len(found) else (NULL, None)
        result.append(_coerce(message, kind, value, wanted))
    return tuple(result)


def _finish(message: _Message) -> None:
    if message.reader.at != len(message.reader.data):
        raise CandidError("bytes are left over behind the values")


class _Mismatch(CandidError):
    """Coercion failed; an opt around it turns it into none."""


def _coerce(  # noqa: PLR0911, PLR0912 — one case for each rule
    message: _Message, kind: Type, value: object, wanted: Type
) -> object:
    kind = message.resolve(kind)
    match wanted:
        case Prim(name="reserved"):
            return None
        case Prim():
            if kind == wanted or (kind == NAT and wanted == INT):
                return value
        case Opt():
            return _coerce_opt(message, kind, value, wanted)
        case Vec() if isinstance(kind, Vec):
            if isinstance(value, bytes):
                if wanted.inner == NAT8:
                    return value
                return [_coerce(message, kind.inner, item, wanted.inner) for item in value]
            if isinstance(value, list):
                items = [_coerce(message, kind.inner, item, wanted.inner) for item in value]
                return items if wanted.inner != NAT8 else b""  # only an empty vec comes here
        case Record() if isinstance(kind, Record) and isinstance(value, dict):
            have = dict(kind.fields.types)
            return {
                wanted.fields.name(n): _coerce(message, have.get(n, NULL), value.get(n), inner)
                for n, inner in wanted.fields.types
            }
        case Variant() if isinstance(kind, Variant) and isinstance(value, tuple):
            number, inner_value = value
            for wanted_number, inner in wanted.fields.types:
                if wanted_number == number:
                    inner_kind = dict(kind.fields.types)[number]
                    return wanted.fields.name(number), _coerce(message, inner_kind, inner_value, inner)
        case _:
            pass
    raise _Mismatch(f"expected {describe(wanted)}, found {describe(kind)}")


def _coerce_opt(message: _Message, kind: Type, value: object, wanted: Opt) -> object:
    if kind in (NULL, RESERVED) or value is None:
        return None
    if isinstance(kind, Opt):
        kind = kind.inner
        value = value.inner if isinstance(value, _Some) else value
    try:
        return _coerce(message, kind, value, wanted.inner)
    except _Mismatch:
        return None
