"""The public keys that this project accepts from people and agents, and whether a signature holds.

Ed25519, and ECDSA over SHA-256 on P-256 and secp256k1, whose signatures are r and s as 32 bytes each (the
Internet Computer's form). Keys are DER SubjectPublicKeyInfo, in their one canonical encoding: a key has one
principal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from hsm.signer import Algorithm
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
SIGNATURE_BYTES = 64
_CURVES = {"secp256r1": Algorithm.ECDSA_P256, "secp256k1": Algorithm.ECDSA_SECP256K1}


class SignatureError(NodeosError):
    """A signature that does not hold for this message and key."""


class _Public(Protocol):
    def public_bytes(self, encoding: Encoding, format: PublicFormat) -> bytes: ...


class _Private(Protocol):
    def private_bytes(
        self, encoding: Encoding, format: PrivateFormat, encryption_algorithm: NoEncryption
    ) -> bytes: ...


def public_der(key: _Public) -> bytes:
    """Any public key as DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: _Private) -> bytes:
    """A private key as unencrypted PKCS #8 in PEM, for a file that only its owner can read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def algorithm_of(key: object, what: str) -> Algorithm:
    """How the key signs. Raises UsageError for a kind that is not accepted; ``what`` names the key."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Algorithm.ED25519
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    raise UsageError(f"{what}: neither Ed25519, P-256 nor secp256k1")


def parse_public(der: bytes, what: str) -> PublicKey:
    """A key of an accepted kind. Raises UsageError, also for an encoding that is not the canonical one."""
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what}: not a public key in DER") from error
    algorithm_of(key, what)
    if not isinstance(key, PublicKey) or public_der(key) != der:
        raise UsageError(f"{what}: not in the canonical DER form")
    return key


def read_public(path: Path, what: str, *, hint: str) -> PublicKeyTypes:
    """The public key of whatever kind in a PEM or DER file. Raises UsageError."""
    data = read_file(path, what, limit=1 << 16)
    try:
        if data.lstrip().startswith(b"-----"):
            return load_pem_public_key(data)
        return load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what} {path}: not a public key in PEM or DER", hint=hint) from error


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature of ``message`` under a DER key.

    Raises SignatureError unless it holds, and UsageError for a key that is not accepted.
    """
    key = parse_public(public_key, "the public key")
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(f"it does not hold: {len(signature)} bytes, not {SIGNATURE_BYTES}")
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise SignatureError("it does not hold for this message and key") from error
