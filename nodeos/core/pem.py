"""Files of public keys in PEM: the key in use, and during a change of keys the next one after it."""

from __future__ import annotations

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from nodeos.core.errors import UsageError

_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n?", re.DOTALL)


def parse_public_keys(data: bytes, what: str, *, hint: str | None = None) -> tuple[PublicKeyTypes, ...]:
    """Every key of a file, at least one. Raises UsageError."""
    try:
        keys = tuple(load_pem_public_key(block) for block in _BLOCK.findall(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what}: not a public key in PEM", hint=hint) from error
    if not keys:
        raise UsageError(f"{what}: not a public key in PEM", hint=hint)
    return keys
