"""BLS signatures on BLS12-381 as the Internet Computer uses them: signatures in G1, public keys in G2.

Sources: the interface specification, section "Certificate"; draft-irtf-cfrg-bls-signature, the
minimal-signature-size variant without augmentation. The native library is imported when it is first
needed. It isn't constant-time: whoever can measure this process's cache is out of scope here, since the
node runs nothing of anybody else's outside WebAssembly.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file, write_new

DOMAIN = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
SECRET_BYTES = 32
PUBLIC_BYTES = 96
SIGNATURE_BYTES = 48
# The order of the groups; a secret is a scalar from 1 to this less 1.
_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
# SubjectPublicKeyInfo with the algorithm 1.3.6.1.4.1.44668.5.3.1.2.1 and curve 1.3.6.1.4.1.44668.5.3.2.1.
_DER_PREFIX = bytes.fromhex("308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100")


class BlsError(NodeosError):
    """A BLS key or signature that isn't one, or a signature that doesn't hold."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret scalar, 32 bytes, big-endian. Its text form never shows it."""

    scalar: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.scalar) != SECRET_BYTES or not 0 < int.from_bytes(self.scalar, "big") < _ORDER:
            raise BlsError("a BLS secret key must be a 32-byte number below the order of the group")

    @classmethod
    def generate(cls) -> SecretKey:
        return cls((secrets.randbelow(_ORDER - 1) + 1).to_bytes(SECRET_BYTES, "big"))

    @classmethod
    def load(cls, path: Path) -> SecretKey:
        """Read a key file: the scalar as 64 hexadecimal digits. Raises UsageError."""
        text = read_file(path, "committee key", limit=256)
        try:
            return cls(bytes.fromhex(text.decode("ascii").strip()))
        except (ValueError, BlsError) as error:
            # The content stays out of the message: it may be nearly right.
            raise UsageError(
                f"committee key {path}: not a 32-byte scalar in hexadecimal", hint="restore the file"
            ) from error

    def save(self, path: Path) -> None:
        """Write a new key file that only its owner can read; refuses to overwrite."""
        write_new(path, self.scalar.hex().encode() + b"\n", mode=0o600)

    @property
    def public_key(self) -> bytes:
        """The public key, a compressed G2 point of 96 bytes."""
        from py_arkworks_bls12381 import G2Point, Scalar

        return bytes((G2Point() * Scalar.from_be_bytes(self.scalar)).to_compressed_bytes())

    def sign(self, message: bytes) -> bytes:
        """The signature, a compressed G1 point of 48 bytes."""
        from py_arkworks_bls12381 import G1Point, Scalar

        point = G1Point.hash_to_curve(message, DOMAIN) * Scalar.from_be_bytes(self.scalar)
        return bytes(point.to_compressed_bytes())


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature (48 bytes) under a public key (96 bytes). Raises BlsError unless it holds."""
    from py_arkworks_bls12381 import GT, G1Point, G2Point

    if len(public_key) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        raise BlsError("a BLS public key has 96 bytes and a signature 48")
    try:
        # Both check that the point is on the curve and in the subgroup.
        key = G2Point.from_compressed_bytes(public_key)
        point = G1Point.from_compressed_bytes(signature)
    except ValueError as error:
        raise BlsError("not a point of BLS12-381") from error
    # The identity would make every message, or every key, verify.
    if key == G2Point.identity() or point == G1Point.identity():
        raise BlsError("the identity is neither a key nor a signature")
    if not GT.pairing_check([G1Point.hash_to_curve(message, DOMAIN), -point], [key, G2Point()]):
        raise BlsError("the BLS signature does not hold")


def public_key_to_der(public_key: bytes) -> bytes:
    """The 133-byte SubjectPublicKeyInfo that agents call the root key."""
    if len(public_key) != PUBLIC_BYTES:
        raise BlsError("a BLS public key has 96 bytes")
    return _DER_PREFIX + public_key


def public_key_from_der(der: bytes) -> bytes:
    """The 96 bytes in a SubjectPublicKeyInfo made by ``public_key_to_der``."""
    if len(der) != len(_DER_PREFIX) + PUBLIC_BYTES or not der.startswith(_DER_PREFIX):
        raise BlsError("not the DER form of a BLS12-381 public key")
    return der[len(_DER_PREFIX) :]
