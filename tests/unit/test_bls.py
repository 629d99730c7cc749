"""BLS keys and signatures: a vector of another implementation, and every way in which one can be wrong."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hsm import bls
from hsm.bls import BlsError, SecretKey
from nodeos.core.errors import UsageError

# From the tests of DFINITY's JavaScript agent (bls.test.ts): made by the Internet Computer's own library.
PUBLIC = bytes.fromhex(
    "a7623a93cdb56c4d23d99c14216afaab3dfd6d4f9eb3db23d038280b6d5cb2caaee2a19dd92c9df7001dede23bf036bc"
    "0f33982dfb41e8fa9b8e96b5dc3e83d55ca4dd146c7eb2e8b6859cb5a5db815db86810b8d12cee1588b5dbf34a4dc9a5"
)
SIGNATURE = bytes.fromhex(
    "b89e13a212c830586eaa9ad53946cd968718ebecc27eda849d9232673dcd4f440e8b5df39bf14a88048c15e16cbcaabe"
)


def test_vector_of_the_internet_computer() -> None:
    bls.verify(PUBLIC, b"hello", SIGNATURE)


def test_sign_and_verify() -> None:
    key = SecretKey.generate()
    signature = key.sign(b"message")
    assert (len(key.public_key), len(signature)) == (96, 48)
    bls.verify(key.public_key, b"message", signature)


def test_another_message_is_refused() -> None:
    with pytest.raises(BlsError, match="does not hold"):
        bls.verify(PUBLIC, b"hallo", SIGNATURE)


def test_another_key_is_refused() -> None:
    with pytest.raises(BlsError, match="does not hold"):
        bls.verify(SecretKey.generate().public_key, b"hello", SIGNATURE)


def test_points_off_the_curve_are_refused() -> None:
    with pytest.raises(BlsError, match="not a point"):
        bls.verify(PUBLIC, b"hello", bytes([SIGNATURE[0]]) + bytes(47))
    with pytest.raises(BlsError, match="not a point"):
        bls.verify(bytes(96), b"hello", SIGNATURE)


def test_the_identity_is_refused() -> None:
    with pytest.raises(BlsError, match="identity"):
        bls.verify(b"\xc0" + bytes(95), b"hello", SIGNATURE)
    with pytest.raises(BlsError, match="identity"):
        bls.verify(PUBLIC, b"hello", b"\xc0" + bytes(47))


@pytest.mark.parametrize(("key", "signature"), [(PUBLIC[:-1], SIGNATURE), (PUBLIC, SIGNATURE + b"\x00")])
def test_wrong_lengths_are_refused(key: bytes, signature: bytes) -> None:
    with pytest.raises(BlsError, match="96 bytes"):
        bls.verify(key, b"hello", signature)


def test_der_form() -> None:
    der = bls.public_key_to_der(PUBLIC)
    assert len(der) == 133
    assert bls.public_key_from_der(der) == PUBLIC
    for wrong in (der[:-1], b"\x31" + der[1:], der + b"\x00"):
        with pytest.raises(BlsError):
            bls.public_key_from_der(wrong)


def test_key_file(tmp_path: Path) -> None:
    key, path = SecretKey.generate(), tmp_path / "committee.hex"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretKey.load(path) == key
    with pytest.raises(UsageError, match="already"):
        key.save(path)


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 32, "ff" * 32, "01" * 31])
def test_bad_key_files_are_refused_without_showing_them(tmp_path: Path, content: str) -> None:
    path = tmp_path / "committee.hex"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        SecretKey.load(path)
    assert not content or content not in str(caught.value)


def test_text_form_hides_the_secret() -> None:
    key = SecretKey.generate()
    assert key.scalar.hex() not in repr(key)
    assert repr(key.scalar) not in repr(key)
