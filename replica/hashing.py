"""Representation-independent hashes of structured data, and the domains that keep signatures apart.

Source: interface specification, sections "Representation-independent hashing of structured data",
"Authentication" and "Certificate".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

REQUEST_DOMAIN = b"\x0aic-request"
RESPONSE_DOMAIN = b"\x0bic-response"
STATE_ROOT_DOMAIN = b"\x0dic-state-root"


def leb128(number: int) -> bytes:
    """Unsigned LEB128, shortest form."""
    if number < 0:
        raise ValueError("naturals only")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_leb128(data: bytes) -> int:
    """The natural that all of ``data`` encodes. Raises ValueError."""
    number = 0
    for position, byte in enumerate(data):
        number |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            if position != len(data) - 1:
                break
            return number
    raise ValueError("not one LEB128 number")


def hash_value(value: object) -> bytes:
    """SHA-256 of a blob, text, natural, list or map, as the specification defines it."""
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, str):
        data = value.encode()
    elif isinstance(value, int) and not isinstance(value, bool):
        data = leb128(value)
    elif isinstance(value, list | tuple):
        data = b"".join(hash_value(item) for item in value)
    elif isinstance(value, dict):
        return hash_of_map(value)
    else:
        raise TypeError(f"{type(value).__name__} has no representation-independent hash")
    return hashlib.sha256(data).digest()


def hash_of_map(fields: Mapping[str, object]) -> bytes:
    """The hash of a map: over its sorted pairs of hashed key and hashed value."""
    pairs = sorted(hash_value(key) + hash_value(value) for key, value in fields.items())
    return hashlib.sha256(b"".join(pairs)).digest()
