"""Canonical CBOR (RFC 8949, 4.2.1) of plain values, for reports that are hashed and compared.

Maps with text keys, lists, text, bytes, whole numbers, booleans and null; no floats, no tags. The library is
imported when it is first needed.
"""

from __future__ import annotations

import io
from typing import Any

from nodeos.core.wire import ParseError

_MAX_DEPTH = 8


def encode(value: Any) -> bytes:
    """Equal values give equal bytes."""
    import cbor2

    return bytes(cbor2.dumps(value, canonical=True))


def decode(data: bytes, what: str, *, limit: int) -> Any:
    """Decode one value of at most ``limit`` bytes in canonical form. Raises ParseError with its path."""
    import cbor2

    if len(data) > limit:
        raise ParseError(f"{what}: {len(data)} bytes, at most {limit} are allowed")
    try:
        value = cbor2.CBORDecoder(io.BytesIO(data)).decode()
        _check_types(value, what, 0)
        # No second key, no float, no byte behind the end passes: encoding again would give other bytes.
        canonical = encode(value)
    except ParseError:
        raise
    except Exception as error:  # the decoder passes on whatever its parts raise; all of it means the same
        raise ParseError(f"{what}: not CBOR: {type(error).__name__}") from error
    if canonical != data:
        raise ParseError(f"{what}: not in canonical form, or bytes follow it")
    return value


def _check_types(value: object, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ParseError(f"{path}: nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ParseError(f"{path}: a key is not text")
            _check_types(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_types(item, f"{path}[{index}]", depth + 1)
    elif value is not None and type(value) not in (str, bytes, int, bool):
        raise ParseError(f"{path}: {type(value).__name__} is not allowed")


def as_json(value: Any) -> Any:
    """The same value with byte strings as hexadecimal, fit for JSON."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
