"""The second key of an identity: for boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.box import open_box, seal_to
from hsm.identity import (
    FileIdentity,
    RecoveryPart,
    TokenIdentity,
    load_identity,
    open_operator,
    read_recovery_key,
    recovery_key_of,
    write_identity,
)
from hsm.keys import private_pem, public_der
from nodeos.core.errors import UsageError

SIGNING, RECOVERY = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
CONTEXT = b"context"


def pin() -> str:
    raise AssertionError("no PIN is needed")


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    for name, key in (("op.key", SIGNING), ("recovery.key", RECOVERY)):
        (tmp_path / name).write_bytes(private_pem(key))
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "operator.json"
    write_identity(path, FileIdentity(key=Path("op.key"), recovery=Path("recovery.key")))
    return path


def test_one_key_signs_and_the_other_opens(identity: Path) -> None:
    public = recovery_key_of(identity, pin)
    assert public == public_der(RECOVERY.public_key())
    with open_operator(identity, pin) as keys:
        assert keys.signer.public_key == public_der(SIGNING.public_key())
        assert open_box(keys.agreement, seal_to(public, b"secret", CONTEXT), CONTEXT) == b"secret"


def test_token_identity_names_its_recovery_key(tmp_path: Path) -> None:
    public = public_der(RECOVERY.public_key())
    made = TokenIdentity(
        module=tmp_path / "module.so",
        token="token",
        key="op",
        public_key=public_der(ec.generate_private_key(ec.SECP256R1()).public_key()),
        recovery=RecoveryPart(key="op-recovery", public_key=public),
    )
    path = tmp_path / "operator.json"
    write_identity(path, made)
    assert load_identity(path) == made
    assert recovery_key_of(path, pin) == public


def test_recovery_key_that_only_signs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    part = RecoveryPart(key="k", public_key=public_der(SIGNING.public_key()))
    signing = public_der(ec.generate_private_key(ec.SECP256R1()).public_key())
    write_identity(
        path,
        TokenIdentity(module=Path("m"), token="t", key="k", public_key=signing, recovery=part),
    )
    with pytest.raises(UsageError, match=r"recovery\.public_key: an Ed25519 key can sign but not receive"):
        load_identity(path)


def test_identity_that_only_signs_has_no_recovery_key(identity: Path) -> None:
    identity.write_text(json.dumps({"kind": "file", "key": "op.key"}))
    with pytest.raises(UsageError, match="can sign but not receive secrets"):
        recovery_key_of(identity, pin)
    with pytest.raises(UsageError, match="can sign but not receive secrets"), open_operator(identity, pin):
        pass


def test_recovery_key_is_read_from_an_identity_or_a_public_key(identity: Path, tmp_path: Path) -> None:
    key = RECOVERY.public_key()
    expected = public_der(key)
    assert read_recovery_key(identity, pin) == expected
    for encoding in (Encoding.PEM, Encoding.DER):
        path = tmp_path / "public"
        path.write_bytes(key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo))
        assert read_recovery_key(path, pin) == expected
    path.write_bytes(public_der(SIGNING.public_key()))
    with pytest.raises(UsageError, match="can sign but not receive secrets"):
        read_recovery_key(path, pin)
