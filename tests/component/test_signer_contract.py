"""What every signer promises, held by each kind of key: in a file, and on a real PKCS#11 token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from hsm.identity import FileIdentity, TokenIdentity, open_identity, public_key_of, write_identity
from hsm.pkcs11 import open_token
from hsm.signer import Algorithm, Signer
from tests.support.softhsm import SoftToken

pytestmark = pytest.mark.hsm


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raises InvalidSignature."""
    key = load_der_public_key(public_key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, message)
        return
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


def _file(directory: Path, algorithm: Algorithm) -> Path:
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    if algorithm is Algorithm.ED25519:
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        key = ec.generate_private_key(ec.SECP256R1() if algorithm is Algorithm.ECDSA_P256 else ec.SECP256K1())
    pem = directory / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem.chmod(0o600)
    write_identity(directory / "identity.json", FileIdentity(key=Path("key.pem")))
    return directory / "identity.json"


def _on_token(directory: Path, token: SoftToken, algorithm: Algorithm) -> Path:
    with open_token(token.module, token.label, lambda: token.pin) as open_:
        key = open_.generate("operator key", algorithm)
    identity = TokenIdentity(module=token.module, token=token.label, key=key.label, public_key=key.public_key)
    write_identity(directory / "identity.json", identity)
    return directory / "identity.json"


KINDS = [
    ("file", Algorithm.ED25519),
    ("file", Algorithm.ECDSA_P256),
    ("file", Algorithm.ECDSA_SECP256K1),
    ("token", Algorithm.ECDSA_P256),
    ("token", Algorithm.ECDSA_SECP256K1),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def kind(request: pytest.FixtureRequest) -> tuple[str, Algorithm]:
    found: tuple[str, Algorithm] = request.param
    return found


@pytest.fixture
def identity(kind: tuple[str, Algorithm], tmp_path: Path, token: SoftToken) -> Path:
    where, algorithm = kind
    return _file(tmp_path, algorithm) if where == "file" else _on_token(tmp_path, token, algorithm)


@pytest.fixture
def signer(identity: Path, token: SoftToken) -> Iterator[Signer]:
    with open_identity(identity, lambda: token.pin) as opened:
        yield opened


def test_algorithm_and_public_key_belong_together(signer: Signer, kind: tuple[str, Algorithm]) -> None:
    assert signer.algorithm is kind[1]
    key = load_der_public_key(signer.public_key)
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else "ed25519"
    assert (
        curve
        in {
            Algorithm.ED25519: ("ed25519",),
            Algorithm.ECDSA_P256: ("secp256r1",),
            Algorithm.ECDSA_SECP256K1: ("secp256k1",),
        }[kind[1]]
    )


@pytest.mark.parametrize("message", [b"", b"message", bytes(100_000)], ids=len)
def test_signatures_are_64_bytes_and_verify(signer: Signer, message: bytes) -> None:
    signature = signer.sign(message)
    assert isinstance(signature, bytes)
    assert len(signature) == 64
    verify(signer.public_key, message, signature)


def test_signature_holds_for_its_message_only(signer: Signer) -> None:
    signature = signer.sign(b"message")
    with pytest.raises(InvalidSignature):
        verify(signer.public_key, b"another message", signature)


def test_many_signatures(signer: Signer) -> None:
    """r and s keep their 32 bytes when they begin with zeros (one in 128)."""
    for number in range(300):
        message = number.to_bytes(2, "big")
        signature = signer.sign(message)
        assert len(signature) == 64
        verify(signer.public_key, message, signature)


def test_key_is_the_same_when_opened_again(identity: Path, token: SoftToken) -> None:
    keys = []
    for _ in range(3):
        with open_identity(identity, lambda: token.pin) as opened:
            keys.append(opened.public_key)
    assert len(set(keys)) == 1
    assert public_key_of(identity, lambda: pytest.fail("no PIN is needed to show a key")) == keys[0]
