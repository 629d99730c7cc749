"""RSA signs releases, and nothing else: nobody authenticates with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm import keys
from hsm.identity import FileSigner, TpmKeyIdentity, load_identity, open_identity, public_key_of
from hsm.signer import Algorithm
from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.wire import b64
from provisioning import operator_auth
from provisioning.operator_auth import Asked
from provisioning.registrar.admin import read_operator_key
from replica import authentication
from replica.errors import HttpError

KEY = rsa.generate_private_key(65537, 2048)
SIGNER = FileSigner(KEY, accepted=keys.RELEASE)
DER = SIGNER.public_key
NEITHER = "neither Ed25519, P-256 nor secp256k1"


def test_a_release_signature_holds_for_its_message_alone() -> None:
    signature = SIGNER.sign(b"message")
    assert SIGNER.algorithm is Algorithm.RSA_PKCS1_SHA256
    assert len(signature) == keys.signature_bytes(DER) == 256
    keys.verify_release(DER, b"message", signature)
    wrong = bytes([signature[0] ^ 1]) + signature[1:]
    for other in (wrong, bytes(256), b"\xff" * 256, signature[:-1], signature + b"\0", bytes(64), b""):
        with pytest.raises(keys.SignatureError, match="does not hold"):
            keys.verify_release(DER, b"message", other)
    with pytest.raises(keys.SignatureError):
        keys.verify_release(DER, b"another", signature)


@pytest.mark.parametrize(("bits", "exponent"), [(1024, 65537), (2052, 65537), (4104, 65537), (2048, 3)])
def test_sizes_and_exponents(bits: int, exponent: int) -> None:
    # A number of that size: making real keys of 4104 bits takes seconds, and only the public half counts.
    key = rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) + 1).public_key()
    with pytest.raises(UsageError, match="an RSA key"):
        keys.parse_release_public(keys.public_der(key), "key")


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_accepted_sizes(bits: int) -> None:
    key = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()
    assert keys.signature_bytes(keys.public_der(key)) == bits // 8


def test_secp256k1_signs_no_release() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    signer = FileSigner(ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(UsageError, match="neither Ed25519, P-256 nor RSA"):
        keys.verify_release(signer.public_key, b"message", signer.sign(b"message"))


def test_rsa_is_not_in_the_set_of_people() -> None:
    assert Algorithm.RSA_PKCS1_SHA256 not in keys.PEOPLE
    with pytest.raises(UsageError, match=NEITHER):
        keys.parse_public(DER, "key")
    with pytest.raises(UsageError, match=NEITHER):
        keys.verify(DER, b"message", SIGNER.sign(b"message"))
    with pytest.raises(UsageError, match=NEITHER):
        keys.algorithm_of(KEY.public_key(), "key")
    with pytest.raises(UsageError, match=NEITHER):
        FileSigner(KEY)


def test_operator_request_signed_with_rsa_is_refused() -> None:
    asked = Asked(registrar="0" * 64, method="GET", path="/v1/enrolments", body=b"")
    with pytest.raises(RefusedError, match="does not fit"):
        operator_auth.verify(operator_auth.sign(SIGNER, asked, 1_800_000_000), asked, 1_800_000_000)


def test_request_to_the_replica_signed_with_rsa_is_refused() -> None:
    with pytest.raises(HttpError, match=NEITHER):
        authentication._verify(DER, SIGNER.sign(b"message"), b"message")


def _pem(directory: Path) -> Path:
    (directory / "key.pem").write_bytes(keys.private_pem(KEY))
    (directory / "key.pem").chmod(0o600)
    path = directory / "identity.json"
    path.write_text(json.dumps({"kind": "file", "key": "key.pem"}))
    return path


def test_registrar_takes_no_rsa_key_for_an_operator(tmp_path: Path) -> None:
    (tmp_path / "key.der").write_bytes(DER)
    for path in (tmp_path / "key.der", _pem(tmp_path)):
        with pytest.raises(UsageError, match=NEITHER):
            read_operator_key(path)


def test_identity_with_rsa_opens_for_releases_only(tmp_path: Path) -> None:
    path = _pem(tmp_path)
    with pytest.raises(UsageError, match=NEITHER), open_identity(path, lambda: ""):
        pass
    with open_identity(path, lambda: "", accepted=keys.RELEASE) as signer:
        assert signer.public_key == DER
    assert public_key_of(path, lambda: "", accepted=keys.RELEASE) == DER


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "tpm", "handle": "0x81000100"},
        {"kind": "pkcs11", "module": "/driver.so", "token": "t", "key": "k"},
    ],
    ids=lambda document: document["kind"],
)
def test_identity_that_states_an_rsa_key(tmp_path: Path, document: dict[str, str]) -> None:
    path = tmp_path / "identity.json"
    path.write_text(json.dumps({**document, "public_key": b64(DER)}))
    with pytest.raises(UsageError, match=NEITHER):
        load_identity(path)
    assert public_key_of(path, lambda: "", accepted=keys.RELEASE) == DER


def test_tpm_identity_round_trip(tmp_path: Path) -> None:
    for tcti in (None, "swtpm:path=/run/tpm"):
        identity = TpmKeyIdentity(handle=0x81000100, public_key=DER, tcti=tcti)
        path = tmp_path / "identity.json"
        path.write_text(json.dumps(identity.to_json()))
        assert load_identity(path, accepted=keys.RELEASE) == identity


@pytest.mark.parametrize("handle", ["0x81000001", "0x81010001", "81000100", "0x8100010", "0x81000100 "])
def test_tpm_identity_with_another_handle(tmp_path: Path, handle: str) -> None:
    path = tmp_path / "identity.json"
    path.write_text(json.dumps({"kind": "tpm", "handle": handle, "public_key": b64(DER)}))
    with pytest.raises(NodeosError, match="no place for a signing key"):
        load_identity(path, accepted=keys.RELEASE)
