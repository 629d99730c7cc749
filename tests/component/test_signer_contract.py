"""What every signer promises, held by each kind of key: in a file, on a PKCS#11 token, in a TPM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from hsm import keys
from hsm.identity import (
    FileIdentity,
    TokenIdentity,
    TpmKeyIdentity,
    open_identity,
    public_key_of,
    write_identity,
)
from hsm.pkcs11 import open_token
from hsm.signer import Algorithm, Signer
from hsm.softtpm import SoftTpm
from hsm.tpm import signing
from nodeos.core.errors import UsageError
from tests.support.softhsm import SoftToken

pytestmark = [pytest.mark.hsm, pytest.mark.tpm]
HANDLE = 0x81000100


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raises InvalidSignature."""
    key = load_der_public_key(public_key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, message)
        return
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        return
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


def _file(directory: Path, algorithm: Algorithm) -> Path:
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if algorithm is Algorithm.RSA_PKCS1_SHA256:
        key = rsa.generate_private_key(65537, 3072)
    elif algorithm is Algorithm.ED25519:
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


def _in_tpm(directory: Path, tcti: str, algorithm: Algorithm, password: str | None) -> Path:
    public_key = signing.generate(tcti, HANDLE, algorithm, password)
    write_identity(
        directory / "identity.json", TpmKeyIdentity(tcti=tcti, handle=HANDLE, public_key=public_key)
    )
    return directory / "identity.json"


KINDS = [
    ("file", Algorithm.ED25519),
    ("file", Algorithm.ECDSA_P256),
    ("file", Algorithm.ECDSA_SECP256K1),
    ("token", Algorithm.ECDSA_P256),
    ("token", Algorithm.ECDSA_SECP256K1),
    ("file", Algorithm.RSA_PKCS1_SHA256),
    ("token", Algorithm.RSA_PKCS1_SHA256),
    ("tpm", Algorithm.ECDSA_P256),
    ("tpm", Algorithm.RSA_PKCS1_SHA256),
    ("tpm-password", Algorithm.ECDSA_P256),
    ("tpm-password", Algorithm.RSA_PKCS1_SHA256),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def kind(request: pytest.FixtureRequest) -> tuple[str, Algorithm]:
    found: tuple[str, Algorithm] = request.param
    return found


@pytest.fixture
def accepted(kind: tuple[str, Algorithm]) -> frozenset[Algorithm]:
    return keys.PEOPLE if kind[1] in keys.PEOPLE else keys.RELEASE


@pytest.fixture
def identity(
    kind: tuple[str, Algorithm],
    tmp_path: Path,
    token: SoftToken,
    request: pytest.FixtureRequest,
) -> Iterator[Path]:
    where, algorithm = kind
    if where == "file":
        yield _file(tmp_path, algorithm)
    elif where == "token":
        yield _on_token(tmp_path, token, algorithm)
    else:
        tpm: SoftTpm = request.getfixturevalue("soft_tpm")
        with tpm.serve() as tcti:
            yield _in_tpm(tmp_path, tcti, algorithm, token.pin if where == "tpm-password" else None)


@pytest.fixture
def signer(identity: Path, token: SoftToken, accepted: frozenset[Algorithm]) -> Iterator[Signer]:
    with open_identity(identity, lambda: token.pin, accepted=accepted) as opened:
        yield opened


@pytest.fixture
def length(kind: tuple[str, Algorithm]) -> int:
    """Of a signature: the RSA key in a file has 3072 bits, the others 2048."""
    if kind[1] is not Algorithm.RSA_PKCS1_SHA256:
        return 64
    return 384 if kind[0] == "file" else 256


def test_algorithm_and_public_key_belong_together(signer: Signer, kind: tuple[str, Algorithm]) -> None:
    assert signer.algorithm is kind[1]
    key = load_der_public_key(signer.public_key)
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    assert (
        curve
        in {
            Algorithm.ED25519: ("Ed25519PublicKey",),
            Algorithm.ECDSA_P256: ("secp256r1",),
            Algorithm.ECDSA_SECP256K1: ("secp256k1",),
            Algorithm.RSA_PKCS1_SHA256: ("RSAPublicKey",),
        }[kind[1]]
    )


@pytest.mark.parametrize("message", [b"", b"message", bytes(100_000)], ids=len)
def test_signatures_have_their_length_and_verify(signer: Signer, message: bytes, length: int) -> None:
    signature = signer.sign(message)
    assert isinstance(signature, bytes)
    assert len(signature) == length
    verify(signer.public_key, message, signature)


def test_signature_holds_for_its_message_only(signer: Signer) -> None:
    signature = signer.sign(b"message")
    with pytest.raises(InvalidSignature):
        verify(signer.public_key, b"another message", signature)


def test_rsa_and_ed25519_signatures_are_the_same_each_time(
    signer: Signer, kind: tuple[str, Algorithm]
) -> None:
    same = signer.sign(b"message") == signer.sign(b"message")
    assert same == (kind[1] in {Algorithm.ED25519, Algorithm.RSA_PKCS1_SHA256})


def test_the_projects_own_check_agrees(signer: Signer) -> None:
    verify = keys.verify_release if signer.algorithm in keys.RELEASE else keys.verify
    verify(signer.public_key, b"message", signer.sign(b"message"))


def test_rsa_opens_only_for_who_asks_for_it(
    identity: Path, token: SoftToken, kind: tuple[str, Algorithm]
) -> None:
    if kind[1] is not Algorithm.RSA_PKCS1_SHA256:
        with open_identity(identity, lambda: token.pin) as opened:
            assert opened.algorithm is kind[1]
        return
    with pytest.raises(UsageError, match="neither Ed25519"), open_identity(identity, lambda: token.pin):
        pass


def test_many_signatures(signer: Signer, length: int) -> None:
    """r and s keep their 32 bytes when they begin with zeros (one in 128)."""
    for number in range(300):
        message = number.to_bytes(2, "big")
        signature = signer.sign(message)
        assert len(signature) == length
        verify(signer.public_key, message, signature)


def test_key_is_the_same_when_opened_again(
    identity: Path, token: SoftToken, accepted: frozenset[Algorithm]
) -> None:
    found = []
    for _ in range(3):
        with open_identity(identity, lambda: token.pin, accepted=accepted) as opened:
            found.append(opened.public_key)
    assert len(set(found)) == 1
    shown = public_key_of(identity, lambda: pytest.fail("no PIN is needed to show a key"), accepted=accepted)
    assert shown == found[0]
