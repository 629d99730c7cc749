"""The medium that an operator flashes: a copy of the image with one site's signed configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsm.keys import public_der
from image import media
from image.measure import read_esp
from nodeos.core.errors import RefusedError, ToolError, UsageError
from nodeos.core.principal import Principal
from nodeos.core.site import Network, SignedSite, SiteConfig
from tests.support.pe import make_disk

SITE = SiteConfig(
    data_center="zh1",
    registrar_url="https://registrar.example.org:8443",
    registrar_ca="-----BEGIN CERTIFICATE-----\n",
    operator=Principal.parse("2vxsx-fae"),
    operator_key=public_der(generate_private_key(SECP256R1()).public_key()),
    node_reward_type="type1",
    network=Network(addresses=("2001:db8::2/64",), gateways=("2001:db8::1",), dns=("2001:db8::53",)),
)
LOADER = b"a boot loader" * 1000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "nodeos.raw", {"EFI/BOOT/BOOTX64.EFI": LOADER})


def on_medium(medium: Path) -> SignedSite:
    return SignedSite(
        document=read_esp(medium, "nodeos/site.json"), signature=read_esp(medium, "nodeos/site.sig")
    )


def test_medium(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    key = Ed25519PrivateKey.generate()
    medium = tmp_path / "new/medium.raw"
    media.make(image, media.sign(SITE, key), medium)
    assert on_medium(medium).verify(key.public_key()) == SITE
    assert read_esp(medium, "EFI/BOOT/BOOTX64.EFI") == LOADER
    assert image.read_bytes() == before, "the image itself is not written to"
    assert medium.stat().st_size == len(before)
    assert list(medium.parent.iterdir()) == [medium]


def test_signature_of_another_key(image: Path, tmp_path: Path) -> None:
    medium = tmp_path / "medium.raw"
    media.make(image, media.sign(SITE, Ed25519PrivateKey.generate()), medium)
    with pytest.raises(RefusedError) as caught:
        on_medium(medium).verify(Ed25519PrivateKey.generate().public_key())
    assert [finding.code for finding in caught.value.findings] == ["site.signature"]


def test_target_is_never_overwritten(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "medium.raw"
    target.write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"medium\.raw is there already"):
        media.make(image, media.sign(SITE, Ed25519PrivateKey.generate()), target)
    assert target.read_bytes() == b"somebody's"


def test_medium_of_a_medium_has_the_new_site(image: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    media.make(image, media.sign(SITE, Ed25519PrivateKey.generate()), first)
    media.make(first, media.sign(SITE, key), second)
    assert on_medium(second).verify(key.public_key()) == SITE


def test_nothing_is_left_of_a_medium_that_failed(image: Path, tmp_path: Path) -> None:
    broken = make_disk(tmp_path / "broken", {})
    with broken.open("r+b") as file:
        file.seek(2 << 20)
        file.write(bytes(1 << 20))
    folder = tmp_path / "media"
    with pytest.raises(ToolError):
        media.make(broken, media.sign(SITE, Ed25519PrivateKey.generate()), folder / "medium.raw")
    assert list(folder.iterdir()) == []
    with pytest.raises(UsageError, match="no EFI system partition"):
        media.make(
            make_disk(tmp_path / "none", None),
            media.sign(SITE, Ed25519PrivateKey.generate()),
            folder / "medium.raw",
        )
    assert list(folder.iterdir()) == []


def pem(key: object) -> bytes:
    assert hasattr(key, "private_bytes")
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert isinstance(data, bytes)
    return data


def test_site_key(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "site.key"
    path.write_bytes(pem(key))
    assert media.load_site_key(path).public_key() == key.public_key()


@pytest.mark.parametrize("data", [b"", b"no key", pem(generate_private_key(SECP256R1()))])
def test_no_site_key(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"no private key in PEM|not an Ed25519 key"):
        media.load_site_key(path)
    with pytest.raises(UsageError, match="the site key"):
        media.load_site_key(tmp_path / "absent")
