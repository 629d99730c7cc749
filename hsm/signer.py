"""One way to sign, whatever holds the key."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Algorithm(StrEnum):
    """ECDSA is over SHA-256 of the message; its signatures are r and s, 32 bytes each, big-endian.

    RSA is RSASSA-PKCS1-v1_5 over SHA-256 (RFC 8017, section 8.2), with a signature as long as the modulus. It
    signs releases, since firmware checks nothing else; nobody authenticates with it (``hsm.keys.PEOPLE``).
    """

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"
    ECDSA_SECP256K1 = "ecdsa-secp256k1"
    RSA_PKCS1_SHA256 = "rsa-pkcs1-sha256"


class Signer(Protocol):
    """A key that signs. ``public_key`` is a DER SubjectPublicKeyInfo; signatures are 64 bytes, but RSA's."""

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def public_key(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes:
        """Sign ``message`` (not its digest)."""
        ...
