from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hsm.identity import FileSigner
from hsm.keys import SignatureError, parse_public, parse_publics, public_der, read_public, verify
from nodeos.core.errors import UsageError

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
KEYS: dict[str, PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
}
P256 = FileSigner(KEYS["p256"])


@pytest.mark.parametrize("kind", KEYS)
def test_a_signature_holds_for_its_message_and_key_alone(kind: str) -> None:
    signer = FileSigner(KEYS[kind])
    signature = signer.sign(b"message")
    verify(signer.public_key, b"message", signature)
    wrong = bytes([signature[0] ^ 1]) + signature[1:]
    for other in (wrong, bytes(64), b"\xff" * 64, signature[:63], signature + b"\0", b""):
        with pytest.raises(SignatureError, match="does not hold"):
            verify(signer.public_key, b"message", other)
    with pytest.raises(SignatureError):
        verify(signer.public_key, b"another", signature)
    with pytest.raises(SignatureError):
        verify(FileSigner(_another(kind)).public_key, b"message", signature)


def _another(kind: str) -> PrivateKey:
    curves = {"p256": ec.SECP256R1(), "secp256k1": ec.SECP256K1()}
    return ec.generate_private_key(curves[kind]) if kind in curves else ed25519.Ed25519PrivateKey.generate()


def test_other_kinds_of_keys_are_refused() -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(UsageError, match="neither Ed25519, P-256 nor secp256k1"):
            verify(public_der(key.public_key()), b"message", bytes(64))


def test_another_encoding_of_a_key_is_refused() -> None:
    point = KEYS["p256"].public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    with pytest.raises(UsageError, match="canonical"):
        verify(der, b"message", P256.sign(b"message"))


@given(st.binary(max_size=120))
def test_any_bytes_are_a_key_or_refused(der: bytes) -> None:
    for data in (der, P256.public_key[: len(der)] + der):
        try:
            assert public_der(parse_public(data, "key")) == data
        except UsageError:
            continue


def test_files(tmp_path: Path) -> None:
    public = KEYS["ed25519"].public_key()
    path = tmp_path / "key"
    for data in (
        public_der(public),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ):
        path.write_bytes(data)
        assert public_der(read_public(path, "key", hint="h")) == public_der(public)
    for data in (b"", b"-----", b"\x30\x00"):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="not a public key in PEM or DER") as caught:
            read_public(path, "key", hint="do that")
        assert caught.value.hint == "do that"


def test_several_public_keys_in_one_file() -> None:
    public = [key.public_key() for key in KEYS.values()]
    pems = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in public]
    ders = [public_der(key) for key in public]
    assert parse_publics(b"".join(pems), "keys", hint="x") == ders
    assert parse_publics(b"\n\n".join(pems) + b"\n", "keys", hint="x") == ders
    assert parse_publics(ders[0], "keys", hint="x") == ders[:1]
    for wrong in (b"", b"text", pems[0][:-20], pems[0] + b"text\n" + pems[1]):
        with pytest.raises(UsageError, match="keys: not public keys"):
            parse_publics(wrong, "keys", hint="x")
    # What follows the last block is left out, as every reader of PEM does.
    assert parse_publics(pems[0] + b"words", "keys", hint="x") == ders[:1]
