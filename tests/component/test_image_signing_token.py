"""Releases signed with keys that can't be copied: on a PKCS #11 token (SoftHSM) and in a TPM (swtpm)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsm.identity import TokenIdentity, TpmKeyIdentity, write_identity
from hsm.pkcs11 import open_token
from hsm.signer import Algorithm
from hsm.softtpm import SoftTpm
from hsm.tpm.signing import generate as generate_in_tpm
from image import rotation, verify
from image.keys import KeySet, generate
from image.sign import sign
from tests.support.softhsm import SoftToken
from tests.support.unsigned_build import make_unsigned

KINDS = {
    "db": Algorithm.RSA_PKCS1_SHA256,
    "verity": Algorithm.RSA_PKCS1_SHA256,
    "KEK": Algorithm.RSA_PKCS1_SHA256,
    "pcr": Algorithm.ECDSA_P256,
    "release": Algorithm.ECDSA_P256,
}


def on_token(token: SoftToken, folder: Path, name: str, label: str) -> Path:
    with open_token(token.module, token.label, lambda: token.pin) as opened:
        made = opened.generate(label, KINDS[name])
    path = folder / f"{label}.json"
    identity = TokenIdentity(module=token.module, token=token.label, key=label, public_key=made.public_key)
    write_identity(path, identity)
    return path


def signed_and_verified(keys: KeySet, pcr_key: Path, folder: Path, pin: str) -> list[str]:
    """The names of the keys that a PIN was asked for."""
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return pin

    folder.mkdir()
    build = make_unsigned(folder / "unsigned", pcr_key.read_bytes())
    made = sign(build, keys, folder / "release", pin=ask)
    assert verify.verify(made.directory, [keys.public("release")]) == made.release
    return asked


@pytest.mark.hsm
def test_keys_on_a_token(token: SoftToken, tmp_path: Path) -> None:
    identities = {name: on_token(token, tmp_path, name, f"my-{name}") for name in KINDS}
    keys = generate(tmp_path / "keys", identities=identities, pin=lambda _: token.pin)
    assert not [name for name in KINDS if keys.path(f"{name}.key").exists()]
    asked = signed_and_verified(keys, keys.public_file("pcr"), tmp_path / "first", token.pin)
    assert set(asked) == set(KINDS)
    following = rotation.begin(
        keys, ["db"], identities={"db": on_token(token, tmp_path, "db", "next-db")}, pin=lambda _: token.pin
    )
    assert following.public("db") != keys.public("db")
    rotation.finish(keys)
    signed_and_verified(keys, keys.public_file("pcr"), tmp_path / "second", token.pin)


@pytest.mark.tpm
def test_keys_in_a_tpm(soft_tpm: SoftTpm, tmp_path: Path) -> None:
    with soft_tpm.serve() as tcti:
        identities = {}
        for handle, name in enumerate(("db", "pcr"), 0x81000100):
            public = generate_in_tpm(tcti, handle, KINDS[name], "secret")
            identities[name] = tmp_path / f"{name}.json"
            write_identity(identities[name], TpmKeyIdentity(handle=handle, public_key=public, tcti=tcti))
        keys = generate(tmp_path / "keys", identities=identities, pin=lambda _: "secret")
        asked = signed_and_verified(keys, keys.public_file("pcr"), tmp_path / "made", "secret")
        assert set(asked) == {"db", "pcr"}
