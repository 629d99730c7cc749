"""One way to agree on a secret (elliptic-curve Diffie-Hellman), whatever holds the key."""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.keys import parse_public
from nodeos.core.errors import UsageError

POINT_BYTES = 65
SECRET_BYTES = 32


class KeyAgreement(Protocol):
    """A key on P-256 or secp256k1 that agrees on secrets. ``public_key`` is DER SubjectPublicKeyInfo."""

    @property
    def public_key(self) -> bytes: ...

    def exchange(self, point: bytes) -> bytes:
        """The raw shared secret: the x-coordinate, 32 bytes big-endian (SEC 1, section 3.3.1).

        ``point`` is the other side's key, uncompressed (65 bytes). Raises UsageError for one that is not a
        point of this key's curve; it is checked here, before the key is used. The secret is not uniform: it
        goes through a key derivation function before anything else.
        """
        ...


def parse_agreement_key(der: bytes, what: str) -> ec.EllipticCurvePublicKey:
    """A key that a secret can be agreed with: P-256 or secp256k1, canonical DER. Raises UsageError."""
    key = parse_public(der, what)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(
            f"{what}: an Ed25519 key can sign but not receive secrets", hint="use a P-256 or secp256k1 key"
        )
    return key


def parse_point(curve: ec.EllipticCurve, point: bytes) -> ec.EllipticCurvePublicKey:
    """A point of ``curve``, uncompressed. Raises UsageError.

    Full validation by SP 800-56A, section 5.6.2.3.3: coordinates in range, on the curve, not infinity. The
    cofactor of both curves is 1, so there is no small subgroup.
    """
    # The library takes compressed points too (33 bytes); here a key has one encoding.
    if len(point) == POINT_BYTES:
        try:
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        except ValueError:
            pass
    raise UsageError(f"the ephemeral key: not an uncompressed point of {curve.name}")


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Uncompressed, 65 bytes (SEC 1, section 2.3.3)."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
