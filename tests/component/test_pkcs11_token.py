"""PKCS#11 tokens: what goes wrong with them, on a real SoftHSM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import TokenError, TokenKeyError, TokenMissingError, TokenPinError
from hsm.identity import TokenIdentity, open_identity, write_identity
from hsm.keys import RELEASE, verify_release
from hsm.pkcs11 import open_token
from hsm.signer import Algorithm
from nodeos.core.errors import UsageError
from nodeos.core.run import find_tool, run
from tests.support.softhsm import SoftToken, make_token

pytestmark = pytest.mark.hsm


def test_keys_are_listed_and_stay(token: SoftToken) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        assert opened.keys() == ()
        second = opened.generate("second", Algorithm.ECDSA_SECP256K1)
        first = opened.generate("first")
    assert first.algorithm is Algorithm.ECDSA_P256
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        assert opened.keys() == (first, second)


def test_private_keys_cannot_leave(token: SoftToken) -> None:
    import pkcs11

    with open_token(token.module, token.label, lambda: token.pin) as opened:
        opened.generate("key")
        (private,) = opened._objects(pkcs11.ObjectClass.PRIVATE_KEY, "key")
        assert private[pkcs11.Attribute.SENSITIVE] is True
        assert private[pkcs11.Attribute.EXTRACTABLE] is False
        with pytest.raises(pkcs11.AttributeSensitive):
            private[pkcs11.Attribute.VALUE]


def test_wrong_pin(token: SoftToken) -> None:
    with (
        pytest.raises(TokenPinError, match="the PIN is wrong") as caught,
        open_token(token.module, token.label, lambda: "999999"),
    ):
        pass
    # SoftHSM tells with CKF_USER_PIN_COUNT_LOW that a wrong one was tried.
    assert "at least one try is used up" in (caught.value.hint or "")
    assert "999999" not in str(caught.value)
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        assert opened.keys() == ()


def test_absent_token_is_told_before_the_pin_is_asked(token: SoftToken) -> None:
    with (
        pytest.raises(TokenMissingError, match="no token 'absent'") as caught,
        open_token(token.module, "absent", lambda: pytest.fail("asked for the PIN")),
    ):
        pass
    assert "'operator'" in (caught.value.hint or "")


def test_token_that_comes_later_is_seen(token: SoftToken, tmp_path: Path) -> None:
    with open_token(token.module, token.label, lambda: token.pin):
        pass
    tool = find_tool("softhsm2-util", package="softhsm2")
    run(
        [tool, "--init-token", "--free", "--label", "late", "--pin", "123456", "--so-pin", "87654321"],
        what="making a token",
        env={"SOFTHSM2_CONF": str(token.configuration)},
    )
    with open_token(token.module, "late", lambda: "123456") as opened:
        assert opened.keys() == ()


def test_two_tokens_of_one_name(token: SoftToken) -> None:
    tool = find_tool("softhsm2-util", package="softhsm2")
    run(
        [tool, "--init-token", "--free", "--label", token.label, "--pin", "123456", "--so-pin", "87654321"],
        what="making a token",
        env={"SOFTHSM2_CONF": str(token.configuration)},
    )
    with (
        pytest.raises(TokenMissingError, match="several tokens"),
        open_token(token.module, token.label, lambda: token.pin),
    ):
        pass


def test_missing_module(tmp_path: Path) -> None:
    with (
        pytest.raises(TokenMissingError, match="no PKCS#11 module"),
        open_token(tmp_path / "driver.so", "operator", lambda: pytest.fail("asked for the PIN")),
    ):
        pass


def test_module_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "driver.so").write_text("not a library")
    with (
        pytest.raises(TokenMissingError, match="can't be loaded"),
        open_token(tmp_path / "driver.so", "operator", lambda: pytest.fail("asked for the PIN")),
    ):
        pass


def test_missing_key(token: SoftToken) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        opened.generate("mine")
        with pytest.raises(TokenKeyError, match="no key 'absent'") as caught:
            opened.signer("absent")
    assert "'mine'" in (caught.value.hint or "")


def test_existing_key_is_not_made_again(token: SoftToken) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        before = opened.generate("mine")
        with pytest.raises(TokenKeyError, match="already"):
            opened.generate("mine")
        assert opened.keys() == (before,)


def test_several_keys_of_one_label(token: SoftToken) -> None:
    tool = find_tool("pkcs11-tool", package="opensc")
    for number in ("01", "02"):
        subprocess.run(
            [
                *(tool, "--module", token.module, "--token-label", token.label, "--login"),
                *("--pin", token.pin, "--keypairgen", "--key-type", "EC:prime256v1"),
                *("--label", "twin", "--id", number),
            ],
            env={**os.environ},
            check=True,
            capture_output=True,
            timeout=60,
        )
    with (
        open_token(token.module, token.label, lambda: token.pin) as opened,
        pytest.raises(TokenKeyError, match="several keys"),
    ):
        opened.signer("twin")


def test_key_on_another_curve(token: SoftToken) -> None:
    tool = find_tool("pkcs11-tool", package="opensc")
    subprocess.run(
        [
            *(tool, "--module", token.module, "--token-label", token.label, "--login", "--pin", token.pin),
            *("--keypairgen", "--key-type", "EC:secp384r1", "--label", "large", "--id", "03"),
        ],
        env={**os.environ},
        check=True,
        capture_output=True,
        timeout=60,
    )
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        assert opened.keys() == ()
        with pytest.raises(TokenKeyError, match="neither Ed25519"):
            opened.signer("large")


def test_rsa_key_is_seen_only_by_who_asks_for_it(token: SoftToken) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        made = opened.generate("release", Algorithm.RSA_PKCS1_SHA256, bits=3072)
        assert opened.keys() == ()
        assert opened.keys(RELEASE) == (made,)
        with pytest.raises(TokenKeyError, match="neither Ed25519, P-256 nor secp256k1"):
            opened.signer("release")
        # What `nodeos operator init` does with the label of such a key.
        with pytest.raises(TokenKeyError, match="already"):
            opened.generate("release")
        signature = opened.signer("release", accepted=RELEASE).sign(b"message")
    assert len(signature) == 384
    verify_release(made.public_key, b"message", signature)


@pytest.mark.parametrize("bits", [1024, 2052, 8192])
def test_rsa_keys_of_other_sizes_are_not_made(token: SoftToken, bits: int) -> None:
    with (
        open_token(token.module, token.label, lambda: token.pin) as opened,
        pytest.raises(UsageError, match="2048 to 4096"),
    ):
        opened.generate("release", Algorithm.RSA_PKCS1_SHA256, bits=bits)


def test_ed25519_is_not_made_on_tokens(token: SoftToken) -> None:
    with (
        open_token(token.module, token.label, lambda: token.pin) as opened,
        pytest.raises(TokenKeyError, match="ed25519"),
    ):
        opened.generate("key", Algorithm.ED25519)


def test_identity_of_another_key_is_refused(token: SoftToken, tmp_path: Path) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        opened.generate("mine")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    identity = TokenIdentity(
        module=token.module,
        token=token.label,
        key="mine",
        public_key=other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
    write_identity(tmp_path / "identity.json", identity)
    with (
        pytest.raises(TokenKeyError, match="not the one of this identity"),
        open_identity(tmp_path / "identity.json", lambda: token.pin),
    ):
        pass


def test_signing_after_the_token_was_closed(token: SoftToken) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        opened.generate("mine")
        signer = opened.signer("mine")
    with pytest.raises(TokenError):
        signer.sign(b"late")


def test_another_token_in_its_place(
    token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        opened.generate("mine")
    other = make_token(tmp_path / "other", pin="654321")
    monkeypatch.setenv("SOFTHSM2_CONF", str(other.configuration))
    with open_token(other.module, other.label, lambda: other.pin) as opened:
        assert opened.keys() == ()
