"""The public keys that this project accepts, and whether a signature holds. There are two sets.

``PEOPLE``, for people and agents who authenticate (``parse_public``, ``verify``): Ed25519, and ECDSA over
SHA-256 on P-256 and secp256k1, whose signatures are r and s as 32 bytes each (the Internet Computer's form).
``RELEASE``, for what signs releases (``parse_release_public``, ``verify_release``): Ed25519, P-256, and RSA
with 2048 to 4096 bits. Whoever does not ask for RELEASE gets PEOPLE.

Keys are DER SubjectPublicKeyInfo, in their one canonical encoding: a key has one principal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
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
ReleasePublicKey = PublicKey | rsa.RSAPublicKey
PEOPLE = frozenset({Algorithm.ED25519, Algorithm.ECDSA_P256, Algorithm.ECDSA_SECP256K1})
RELEASE = frozenset({Algorithm.ED25519, Algorithm.ECDSA_P256, Algorithm.RSA_PKCS1_SHA256})
SIGNATURE_BYTES = 64
RSA_BITS = range(2048, 4097, 8)
RSA_EXPONENT = 65537
_NAMES = {
    Algorithm.ED25519: "Ed25519",
    Algorithm.ECDSA_P256: "P-256",
    Algorithm.ECDSA_SECP256K1: "secp256k1",
    Algorithm.RSA_PKCS1_SHA256: "RSA",
}
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


def algorithm_of(key: object, what: str, *, accepted: frozenset[Algorithm] = PEOPLE) -> Algorithm:
    """How the key signs. Raises UsageError for a kind that is not in ``accepted``; ``what`` names the key."""
    found = None
    if isinstance(key, ed25519.Ed25519PublicKey):
        found = Algorithm.ED25519
    elif isinstance(key, ec.EllipticCurvePublicKey):
        found = _CURVES.get(key.curve.name)
    elif isinstance(key, rsa.RSAPublicKey):
        found = Algorithm.RSA_PKCS1_SHA256
    if found is None or found not in accepted:
        raise UsageError(f"{what}: neither {kinds(accepted)}")
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key, what)
    return found


def kinds(accepted: frozenset[Algorithm]) -> str:
    """The kinds of keys, in words that follow "neither"."""
    names = [name for algorithm, name in _NAMES.items() if algorithm in accepted]
    return " nor ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _check_rsa(key: rsa.RSAPublicKey, what: str) -> None:
    if key.key_size not in RSA_BITS:
        raise UsageError(
            f"{what}: an RSA key of {key.key_size} bits; from {RSA_BITS[0]} to {RSA_BITS[-1]} are accepted, "
            "in whole bytes",
            hint="make one of 2048 bits",
        )
    if key.public_numbers().e != RSA_EXPONENT:
        raise UsageError(f"{what}: an RSA key whose exponent is not {RSA_EXPONENT}", hint="make another key")


def parse_public(der: bytes, what: str) -> PublicKey:
    """A key of PEOPLE. Raises UsageError, also for an encoding that is not the canonical one."""
    key = _parse(der, what, PEOPLE)
    if isinstance(key, rsa.RSAPublicKey):
        raise UsageError(f"{what}: neither {kinds(PEOPLE)}")
    return key


def parse_release_public(der: bytes, what: str) -> ReleasePublicKey:
    """A key of RELEASE. Raises UsageError, also for an encoding that is not the canonical one."""
    return _parse(der, what, RELEASE)


def _parse(der: bytes, what: str, accepted: frozenset[Algorithm]) -> ReleasePublicKey:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what}: not a public key in DER") from error
    algorithm_of(key, what, accepted=accepted)
    if not isinstance(key, ReleasePublicKey) or public_der(key) != der:
        raise UsageError(f"{what}: not in the canonical DER form")
    return key


def check_public(der: bytes, what: str, accepted: frozenset[Algorithm]) -> Algorithm:
    """How a key in DER signs. Raises UsageError unless it is of a kind in ``accepted`` and canonical."""
    return algorithm_of(_parse(der, what, accepted), what, accepted=accepted)


def read_public(path: Path, what: str, *, hint: str) -> PublicKeyTypes:
    """The public key of whatever kind in a PEM or DER file. Raises UsageError."""
    data = read_file(path, what, limit=1 << 16)
    try:
        if data.lstrip().startswith(b"-----"):
            return load_pem_public_key(data)
        return load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what} {path}: not a public key in PEM or DER", hint=hint) from error


def parse_publics(data: bytes, what: str, *, hint: str) -> list[bytes]:
    """Every public key of a file as DER, of whatever kind: PEM blocks one after the other, or one key in DER.

    Raises UsageError if there is none.
    """
    end = b"-----END PUBLIC KEY-----"
    blocks = [part + end for part in data.split(end)[:-1]] or [data]
    try:
        keys = [
            load_pem_public_key(block) if block.lstrip().startswith(b"-----") else load_der_public_key(block)
            for block in blocks
        ]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what}: not public keys in PEM or DER", hint=hint) from error
    return [public_der(key) for key in keys]


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature of ``message`` under a DER key of PEOPLE.

    Raises SignatureError unless it holds, and UsageError for a key that is not accepted.
    """
    _verify(parse_public(public_key, "the public key"), message, signature)


def verify_release(public_key: bytes, message: bytes, signature: bytes) -> None:
    """As ``verify``, with a key of RELEASE. For what is signed with a release's keys, and nothing else."""
    _verify(parse_release_public(public_key, "the public key"), message, signature)


def signature_bytes(public_key: bytes) -> int:
    """How long the signatures of a DER key of RELEASE are: as the modulus for RSA, else 64 bytes."""
    return _length(parse_release_public(public_key, "the public key"))


def _length(key: ReleasePublicKey) -> int:
    return key.key_size // 8 if isinstance(key, rsa.RSAPublicKey) else SIGNATURE_BYTES


def _verify(key: ReleasePublicKey, message: bytes, signature: bytes) -> None:
    length = _length(key)
    if len(signature) != length:
        raise SignatureError(f"it does not hold: {len(signature)} bytes, not {length}")
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), SHA256())
        else:
            r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise SignatureError("it does not hold for this message and key") from error
