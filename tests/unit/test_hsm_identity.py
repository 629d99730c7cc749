"""Identity files, key files and PINs: every check refuses on its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hsm.identity import FileIdentity, TokenIdentity, load_identity, open_identity, write_identity
from hsm.pin import read_pin
from nodeos.core.errors import UsageError
from nodeos.core.wire import b64


def _public(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def _token_document() -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    return {
        "kind": "pkcs11",
        "module": "/usr/lib/driver.so",
        "token": "operator",
        "key": "mine",
        "public_key": b64(_public(key)),
    }


def _write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_token_identity_round_trip(tmp_path: Path) -> None:
    path = _write(tmp_path / "identity.json", _token_document())
    identity = load_identity(path)
    assert isinstance(identity, TokenIdentity)
    write_identity(tmp_path / "copy.json", identity)
    assert load_identity(tmp_path / "copy.json") == identity
    assert identity.module == Path("/usr/lib/driver.so")


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    identity = load_identity(_write(tmp_path / "identity.json", {"kind": "file", "key": "keys/a.pem"}))
    assert identity == FileIdentity(key=tmp_path / "keys/a.pem")


def test_identity_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_text("precious")
    with pytest.raises(UsageError, match="there already"):
        write_identity(path, FileIdentity(key=Path("a.pem")))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "cloud"}, "neither pkcs11, tpm nor file"),
        ({"module": None}, "module"),
        ({"token": 5}, "expected text"),
        ({"key": None}, "key"),
        ({"public_key": "AAAA"}, "not a public key in DER"),
        ({"public_key": "*"}, "not base64"),
        ({"pin": "123456"}, "unknown field: pin"),
    ],
)
def test_each_field_is_checked(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    document: dict[str, Any] = {**_token_document(), **change}
    document = {key: value for key, value in document.items() if value is not None}
    with pytest.raises(UsageError, match=words):
        load_identity(_write(tmp_path / "identity.json", document))


def test_public_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    document = {**_token_document(), "public_key": b64(_public(ec.generate_private_key(ec.SECP384R1())))}
    with pytest.raises(UsageError, match="neither Ed25519"):
        load_identity(_write(tmp_path / "identity.json", document))


def test_no_identity(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="identity"):
        load_identity(tmp_path / "absent.json")


def _key_file(
    path: Path, key: Any = None, encryption: KeySerializationEncryption | None = None, mode: int = 0o600
) -> Path:
    key = key or ed25519.Ed25519PrivateKey.generate()
    pem = path / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    pem.chmod(mode)
    return _write(path / "identity.json", {"kind": "file", "key": "key.pem"})


def _no_pin() -> str:
    raise AssertionError("asked for the PIN")


def _open(path: Path, pin: str | None = None) -> bytes:
    with open_identity(path, _no_pin if pin is None else lambda: pin) as signer:
        return signer.sign(b"message")


def test_key_file(tmp_path: Path) -> None:
    assert len(_open(_key_file(tmp_path))) == 64


def test_key_file_that_others_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="others can read it") as caught:
        _open(_key_file(tmp_path, mode=0o640))
    assert "chmod 600" in (caught.value.hint or "")


def test_encrypted_key_file(tmp_path: Path) -> None:
    path = _key_file(tmp_path, encryption=BestAvailableEncryption(b"password"))
    assert len(_open(path, "password")) == 64
    with pytest.raises(UsageError, match="wrong password") as caught:
        _open(path, "guess")
    assert "guess" not in str(caught.value)


@pytest.mark.parametrize("key", ["p384", "rsa"])
def test_key_file_of_another_kind(tmp_path: Path, key: str) -> None:
    made: Any = (
        ec.generate_private_key(ec.SECP384R1())
        if key == "p384"
        else rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    with pytest.raises(UsageError, match="neither Ed25519"):
        _open(_key_file(tmp_path, made))


def test_key_file_that_is_none(tmp_path: Path) -> None:
    path = _key_file(tmp_path)
    (tmp_path / "key.pem").write_text("nothing")
    with pytest.raises(UsageError, match="not a readable PEM"):
        _open(path)


@pytest.mark.parametrize("content", ["123456", "123456\n", "123456\r\n"])
def test_pin_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pin"
    path.write_bytes(content.encode())
    path.chmod(0o600)
    assert read_pin(path) == "123456"


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"", 0o600, "one line"),
        (b"\n", 0o600, "one line"),
        (b"1234\n5678\n", 0o600, "one line"),
        (b"\xff\xfe", 0o600, "not text"),
        (b"1234", 0o644, "others can read it"),
        (b"1234", 0o620, "others can read it"),
        (b"1" * 2000, 0o600, "larger"),
    ],
)
def test_pin_file_refused(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    path = tmp_path / "pin"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=words) as caught:
        read_pin(path)
    assert "1234" not in caught.value.message.replace(str(tmp_path), "")


def test_missing_pin_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PIN file"):
        read_pin(tmp_path / "absent")


def test_no_terminal_to_ask_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("123456\n"))
    with pytest.raises(UsageError, match="no terminal") as caught:
        read_pin(None)
    assert "--pin-file" in (caught.value.hint or "")
