"""What a build takes for public keys: each test gives it something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from image.publickeys import read_public_keys
from nodeos.core.errors import UsageError
from nodeos.core.release import Variant
from tests.support.publickeys import certificate, make_public_keys, pem

NAMES = ("pcr.pub.pem", "site.pub.pem", "release.pub.pem", "verity.crt")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_public_keys(tmp_path / "keys")


def test_the_four_files(keys: Path) -> None:
    read = read_public_keys(keys, Variant.RELEASE)
    assert read == {name: (keys / name).read_bytes() for name in NAMES}


def test_several_blocks_while_a_key_is_replaced(keys: Path) -> None:
    for name in NAMES:
        more = certificate() if name == "verity.crt" else pem(generate_private_key(SECP256R1()).public_key())
        (keys / name).write_bytes((keys / name).read_bytes() + more)
    assert read_public_keys(keys, Variant.RELEASE)["pcr.pub.pem"].count(b"BEGIN") == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_one(name: str, keys: Path) -> None:
    (keys / name).unlink()
    with pytest.raises(UsageError, match=f"public keys are missing in .*: {name}"):
        read_public_keys(keys, Variant.RELEASE)


@pytest.mark.parametrize("name", NAMES)
def test_a_private_key_is_never_published(name: str, keys: Path) -> None:
    private = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    before = (keys / name).read_bytes()
    for data in (private, before + private, private + before):
        (keys / name).write_bytes(data)
        with pytest.raises(UsageError, match="and nothing else"):
            read_public_keys(keys, Variant.RELEASE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [b"words\n", b"\n", b"", b"-----BEGIN X-----\nAA==\n-----END X-----\n"])
def test_other_content(name: str, extra: bytes, keys: Path) -> None:
    (keys / name).write_bytes((keys / name).read_bytes() + extra if extra else b"")
    with pytest.raises(UsageError, match="and nothing else"):
        read_public_keys(keys, Variant.RELEASE)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_one(name: str, keys: Path) -> None:
    label = b"CERTIFICATE" if name == "verity.crt" else b"PUBLIC KEY"
    (keys / name).write_bytes(b"-----BEGIN " + label + b"-----\nMAAA\n-----END " + label + b"-----\n")
    with pytest.raises(UsageError, match=name):
        read_public_keys(keys, Variant.RELEASE)


def test_a_policy_key_of_another_kind(keys: Path) -> None:
    for key in (Ed25519PrivateKey.generate().public_key(), generate_private_key(SECP384R1()).public_key()):
        (keys / "pcr.pub.pem").write_bytes(pem(key))
        with pytest.raises(UsageError, match="not an EC key on the curve P-256"):
            read_public_keys(keys, Variant.RELEASE)


def test_keys_of_another_variant(keys: Path) -> None:
    (keys / "VARIANT").write_text("release\n")
    read_public_keys(keys, Variant.RELEASE)
    with pytest.raises(UsageError, match="are for the release variant, not for debug"):
        read_public_keys(keys, Variant.DEBUG)
