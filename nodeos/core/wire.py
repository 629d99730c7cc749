"""Reading and writing what crosses a boundary: canonical JSON, base64, typed fields with paths.

Parsing is strict: unknown keys, wrong types and bad base64 are refused with the path of the field.
Canonical JSON: UTF-8, keys sorted, no white space, no NaN (a subset of RFC 8785 without floats).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from nodeos.core.errors import Finding, UsageError

T = TypeVar("T")


class ParseError(UsageError):
    """Input that does not have the form it must have. The message begins with its path."""


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` so that equal values give equal bytes. Floats are refused (they have no one form)."""
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError("canonical JSON holds no floats")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)


def b64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode()


def parse_json(data: bytes, what: str, *, limit: int = 1 << 20) -> Fields:
    """Parse a JSON object of at most ``limit`` bytes. ``what`` names it in errors."""
    if len(data) > limit:
        raise ParseError(f"{what}: {len(data)} bytes, at most {limit} are allowed")
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{what}: not JSON: {error}") from error
    return Fields(value, what)


def parse_toml(data: bytes, what: str, *, limit: int = 1 << 16) -> Fields:
    """Parse a TOML document of at most ``limit`` bytes. ``what`` names it in errors."""
    import tomllib

    if len(data) > limit:
        raise ParseError(f"{what}: {len(data)} bytes, at most {limit} are allowed")
    try:
        return Fields(tomllib.loads(data.decode()), what)
    except UnicodeDecodeError as error:
        raise ParseError(f"{what}: not UTF-8: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ParseError(f"{what}: not TOML: {error}") from error


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} stands twice")
        result[key] = value
    return result


class Fields:
    """A JSON object that is taken apart field by field; ``done()`` refuses what is left over."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise ParseError(f"{path}: expected an object, found {_kind(value)}")
        self._left: dict[str, object] = dict(value)
        self.path = path

    def _take(self, key: str) -> object:
        if key not in self._left:
            raise ParseError(f"{self.path}.{key}: missing")
        return self._left.pop(key)

    def _typed(self, key: str, kind: type[T], name: str) -> T:
        value = self._take(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ParseError(f"{self.path}.{key}: expected {name}, found {_kind(value)}")
        return value

    def has(self, key: str) -> bool:
        """True if the key is there and not null. A null is dropped: it means the same as absence."""
        if self._left.get(key, None) is None:
            self._left.pop(key, None)
            return False
        return True

    def text(self, key: str, *, limit: int = 4096) -> str:
        value = self._typed(key, str, "text")
        if len(value) > limit:
            raise ParseError(f"{self.path}.{key}: longer than {limit} characters")
        return _encodable(value, f"{self.path}.{key}")

    def integer(self, key: str, *, low: int = 0, high: int = 2**63 - 1) -> int:
        value = self._typed(key, int, "a whole number")
        if not low <= value <= high:
            raise ParseError(f"{self.path}.{key}: {value} is not between {low} and {high}")
        return value

    def flag(self, key: str) -> bool:
        return self._typed(key, bool, "true or false")

    def data(self, key: str, *, length: int | None = None, limit: int = 1 << 20) -> bytes:
        """Base64-coded bytes, of exactly ``length`` or at most ``limit`` bytes."""
        return _decode(self.text(key, limit=limit * 2), f"{self.path}.{key}", length, limit)

    def hexadecimal(self, key: str, *, length: int | None = None) -> bytes:
        value = self.text(key)
        try:
            raw = bytes.fromhex(value)
        except ValueError as error:
            raise ParseError(f"{self.path}.{key}: not hexadecimal") from error
        if length is not None and len(raw) != length:
            raise ParseError(f"{self.path}.{key}: expected {length} bytes, found {len(raw)}")
        return raw

    def nested(self, key: str) -> Fields:
        return Fields(self._take(key), f"{self.path}.{key}")

    def list_of(self, key: str, parse: Callable[[object, str], T], *, limit: int = 256) -> tuple[T, ...]:
        """A list whose items go through ``parse(item, path)``."""
        value = self._typed(key, list, "a list")
        if len(value) > limit:
            raise ParseError(f"{self.path}.{key}: more than {limit} items")
        return tuple(parse(item, f"{self.path}.{key}[{i}]") for i, item in enumerate(value))

    def items(self) -> tuple[tuple[str, object], ...]:
        """Everything that is left, taken as a map with free keys."""
        left = tuple(self._left.items())
        self._left.clear()
        return left

    def done(self) -> None:
        if self._left:
            names = ", ".join(sorted(self._left))
            raise ParseError(f"{self.path}: unknown field: {names}")


def parse_data(value: object, path: str, *, limit: int = 1 << 16) -> bytes:
    """A base64 item of a list."""
    if not isinstance(value, str):
        raise ParseError(f"{path}: expected base64 text, found {_kind(value)}")
    return _decode(value, path, None, limit)


def parse_int(value: object, path: str) -> int:
    """A whole number in a list."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParseError(f"{path}: expected a whole number, found {_kind(value)}")
    return value


def parse_text(value: object, path: str) -> str:
    """A text in a list."""
    if not isinstance(value, str):
        raise ParseError(f"{path}: expected text, found {_kind(value)}")
    return _encodable(value, path)


def parse_finding(value: object, path: str) -> Finding:
    """A finding in a list."""
    fields = Fields(value, path)
    finding = Finding(code=fields.text("code", limit=64), message=fields.text("message", limit=1024))
    fields.done()
    return finding


def _encodable(value: str, path: str) -> str:
    """JSON can escape half a surrogate pair, which no file, database or answer can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ParseError(f"{path}: not Unicode text") from error
    return value


def _decode(value: str, path: str, length: int | None, limit: int) -> bytes:
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParseError(f"{path}: not base64") from error
    if length is not None and len(raw) != length:
        raise ParseError(f"{path}: expected {length} bytes, found {len(raw)}")
    if len(raw) > limit:
        raise ParseError(f"{path}: {len(raw)} bytes, at most {limit} are allowed")
    return raw


def _kind(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
