"""Principals: the names of nodes, operators and canisters on the Internet Computer.

Source: the Internet Computer interface specification, section "Principals".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from dataclasses import dataclass

from nodeos.core.wire import ParseError

MAX_BYTES = 29


@dataclass(frozen=True, slots=True, order=True)
class Principal:
    """An opaque name of 0 to 29 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) > MAX_BYTES:
            raise ParseError(f"principal: {len(self.raw)} bytes, at most {MAX_BYTES} are allowed")

    @classmethod
    def self_authenticating(cls, public_key_der: bytes) -> Principal:
        """The principal of a DER SubjectPublicKeyInfo: SHA-224 of it and the suffix 0x02."""
        return cls(hashlib.sha224(public_key_der).digest() + b"\x02")

    @classmethod
    def anonymous(cls) -> Principal:
        return cls(b"\x04")

    @classmethod
    def parse(cls, text: str) -> Principal:
        """Read the textual form. Raises ParseError if the checksum or the grouping is wrong."""
        compact = text.replace("-", "").upper()
        try:
            raw = base64.b32decode(compact + "=" * (-len(compact) % 8))
        except (binascii.Error, ValueError) as error:
            raise ParseError(f"principal {text!r}: not base32") from error
        if len(raw) < 4:
            raise ParseError(f"principal {text!r}: too short")
        principal = cls(raw[4:])
        if str(principal) != text:
            raise ParseError(f"principal {text!r}: wrong checksum or grouping")
        return principal

    def __str__(self) -> str:
        checked = zlib.crc32(self.raw).to_bytes(4, "big") + self.raw
        text = base64.b32encode(checked).decode().lower().rstrip("=")
        return "-".join(text[i : i + 5] for i in range(0, len(text), 5))
