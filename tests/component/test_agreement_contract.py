"""What every key agreement promises, held by each kind of key: in a file, and on a real PKCS#11 token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)

from hsm.agreement import KeyAgreement, parse_agreement_key, point_of
from hsm.box import BoxError, open_box, seal_to
from hsm.errors import TokenError, TokenKeyError
from hsm.identity import FileIdentity, TokenIdentity, open_agreement, open_identity, write_identity
from hsm.keys import private_pem, public_der, verify
from hsm.pkcs11 import open_token
from hsm.signer import Algorithm
from nodeos.core.errors import UsageError
from nodeos.core.recovery import RecoveryBlob, RecoveryKey, recovery_context
from tests.support.softhsm import SoftToken

pytestmark = pytest.mark.hsm

CURVES: dict[Algorithm, ec.EllipticCurve] = {
    Algorithm.ECDSA_P256: ec.SECP256R1(),
    Algorithm.ECDSA_SECP256K1: ec.SECP256K1(),
}
KINDS = [(where, algorithm) for where in ("file", "token") for algorithm in CURVES]


def _key_file(directory: Path, pem: bytes) -> Path:
    (directory / "key.pem").write_bytes(pem)
    (directory / "key.pem").chmod(0o600)
    write_identity(directory / "identity.json", FileIdentity(key=Path("key.pem")))
    return directory / "identity.json"


def _on_token(directory: Path, token: SoftToken, algorithm: Algorithm, *, derive: bool = True) -> Path:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        key = opened.generate("operator key", algorithm, derive=derive)
    identity = TokenIdentity(module=token.module, token=token.label, key=key.label, public_key=key.public_key)
    write_identity(directory / "identity.json", identity)
    return directory / "identity.json"


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def identity(request: pytest.FixtureRequest, tmp_path: Path, token: SoftToken) -> Path:
    where, algorithm = request.param
    if where == "token":
        return _on_token(tmp_path, token, algorithm)
    return _key_file(tmp_path, private_pem(ec.generate_private_key(CURVES[algorithm])))


@pytest.fixture
def agreement(identity: Path, token: SoftToken) -> Iterator[KeyAgreement]:
    with open_agreement(identity, lambda: token.pin) as opened:
        yield opened


def test_both_sides_agree(agreement: KeyAgreement) -> None:
    public = parse_agreement_key(agreement.public_key, "key")
    for _ in range(20):
        mine = ec.generate_private_key(public.curve)
        secret = agreement.exchange(point_of(mine.public_key()))
        assert isinstance(secret, bytes)
        assert secret == mine.exchange(ec.ECDH(), public)


def test_secret_that_begins_with_zero_keeps_its_length(agreement: KeyAgreement) -> None:
    public = parse_agreement_key(agreement.public_key, "key")
    while True:  # one in 256
        mine = ec.generate_private_key(public.curve)
        expected = mine.exchange(ec.ECDH(), public)
        if expected[0] == 0:
            break
    assert len(expected) == 32
    assert agreement.exchange(point_of(mine.public_key())) == expected


def test_points_that_are_none_are_refused(agreement: KeyAgreement) -> None:
    curve = parse_agreement_key(agreement.public_key, "key").curve
    good = ec.generate_private_key(curve).public_key()
    point = point_of(good)
    other = next(other for other in CURVES.values() if other.name != curve.name)
    refused = {
        "off the curve": point[:-1] + bytes((point[-1] ^ 1,)),
        "of the other curve": point_of(ec.generate_private_key(other).public_key()),
        "compressed": good.public_bytes(Encoding.X962, PublicFormat.CompressedPoint),
        "hybrid": bytes((6 + (point[-1] & 1),)) + point[1:],
        "infinity": b"\0",
        "zeros": b"\x04" + bytes(64),
        "too large": b"\x04" + b"\xff" * 64,
        "cut": point[:-1],
        "longer": point + b"\0",
        "wrapped": b"\x04\x41" + point,
        "empty": b"",
    }
    for what, bad in refused.items():
        with pytest.raises(UsageError, match="not an uncompressed point"):
            pytest.fail(f"took a point {what}: {len(agreement.exchange(bad))}")
    assert len(agreement.exchange(point)) == 32


def test_boxes_open(agreement: KeyAgreement) -> None:
    blob = seal_to(agreement.public_key, b"secret", b"context")
    assert open_box(agreement, blob, b"context") == b"secret"
    with pytest.raises(BoxError):
        open_box(agreement, blob, b"another context")
    for at in (67, -1):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(BoxError):
            open_box(agreement, bytes(changed), b"context")
    stranger = ec.generate_private_key(parse_agreement_key(agreement.public_key, "key").curve)
    with pytest.raises(BoxError):
        open_box(agreement, seal_to(public_der(stranger.public_key()), b"secret", b"context"), b"context")


def test_recovery_key_comes_back(agreement: KeyAgreement) -> None:
    machine, volume = "ab" * 32, "0b5f9c9e-5f0e-4c8e-9d4e-0a1b2c3d4e5f"
    key, operator = RecoveryKey.generate(), hashlib.sha256(agreement.public_key).digest()
    box = seal_to(agreement.public_key, key.value, recovery_context(machine=machine, volume=volume))
    made = RecoveryBlob(keyslot=1, operator_key=operator, machine=machine, volume=volume, box=box)
    blob = RecoveryBlob.parse(made.to_bytes())
    context = blob.context_for(machine=machine, volume=volume, operator_key=operator)
    assert RecoveryKey(value=open_box(agreement, blob.box, context)) == key
    for other in (("ac" * 32, volume), (machine, volume[:-1] + "0")):
        with pytest.raises(BoxError):
            open_box(agreement, blob.box, recovery_context(machine=other[0], volume=other[1]))


def test_same_key_signs(identity: Path, token: SoftToken) -> None:
    with open_identity(identity, lambda: token.pin) as signer:
        signature, public = signer.sign(b"message"), signer.public_key
    verify(public, b"message", signature)
    with open_agreement(identity, lambda: token.pin) as agreement:
        assert agreement.public_key == public


def test_token_keeps_no_secret(tmp_path: Path, token: SoftToken) -> None:
    """The derived secret is an object for a moment only, and never one that stays on the token."""
    import pkcs11

    path = _on_token(tmp_path, token, Algorithm.ECDSA_P256)
    with open_agreement(path, lambda: token.pin) as agreement:
        agreement.exchange(point_of(ec.generate_private_key(ec.SECP256R1()).public_key()))
        session = agreement._token._session  # type: ignore[attr-defined]
        kind = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY}
        assert list(session.get_objects(kind)) == []


def test_key_that_was_made_to_sign_only(tmp_path: Path, token: SoftToken) -> None:
    path = _on_token(tmp_path, token, Algorithm.ECDSA_P256, derive=False)
    with (
        pytest.raises(TokenKeyError, match="made to sign only") as caught,
        open_agreement(path, lambda: token.pin),
    ):
        pass
    assert "make another key" in (caught.value.hint or "")
    with open_identity(path, lambda: token.pin) as signer:
        assert len(signer.sign(b"message")) == 64


def test_missing_key_and_another_key(tmp_path: Path, token: SoftToken) -> None:
    _on_token(tmp_path, token, Algorithm.ECDSA_P256)
    other = public_der(ec.generate_private_key(ec.SECP256R1()).public_key())
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        with pytest.raises(TokenKeyError, match="no key 'absent'"):
            opened.agreement("absent")
        with pytest.raises(TokenKeyError, match="not the one of this identity"):
            opened.agreement("operator key", public_key=other)


def test_after_the_token_was_closed(tmp_path: Path, token: SoftToken) -> None:
    with open_agreement(_on_token(tmp_path, token, Algorithm.ECDSA_P256), lambda: token.pin) as agreement:
        pass
    with pytest.raises(TokenError):
        agreement.exchange(point_of(ec.generate_private_key(ec.SECP256R1()).public_key()))


def test_ed25519_receives_nothing(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    with (
        pytest.raises(UsageError, match="can sign but not receive"),
        open_agreement(_key_file(tmp_path, private_pem(key)), lambda: pytest.fail("asked for the PIN")),
    ):
        pass
    identity = TokenIdentity(
        module=tmp_path / "driver.so", token="operator", key="mine", public_key=public_der(key.public_key())
    )
    write_identity(tmp_path / "token.json", identity)
    with (
        pytest.raises(UsageError, match="can sign but not receive"),
        open_agreement(tmp_path / "token.json", lambda: pytest.fail("asked for the PIN")),
    ):
        pass


def test_encrypted_key_file(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = _key_file(
        tmp_path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    with open_agreement(path, lambda: "password") as agreement:
        assert open_box(agreement, seal_to(agreement.public_key, b"secret", b""), b"") == b"secret"
    with pytest.raises(UsageError, match="wrong password"), open_agreement(path, lambda: "guess"):
        pass
