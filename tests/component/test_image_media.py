"""A site's signed configuration as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsm.keys import public_der
from image import media
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.principal import Principal
from nodeos.core.site import Network, SiteConfig

SITE = SiteConfig(
    data_center="zh1",
    registrar_url="https://registrar.example.org:8443",
    registrar_ca="-----BEGIN CERTIFICATE-----\n",
    operator=Principal.parse("2vxsx-fae"),
    operator_key=public_der(generate_private_key(SECP256R1()).public_key()),
    node_reward_type="type1",
    network=Network(addresses=("2001:db8::2/64",), gateways=("2001:db8::1",), dns=("2001:db8::53",)),
)


def test_site_files(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    media.write_site(media.sign(SITE, key), tmp_path / "site")
    assert media.read_site(tmp_path / "site").verify(key.public_key()) == SITE
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["site.json", "site.sig"]


def test_signature_of_another_key(tmp_path: Path) -> None:
    media.write_site(media.sign(SITE, Ed25519PrivateKey.generate()), tmp_path)
    with pytest.raises(RefusedError) as caught:
        media.read_site(tmp_path).verify(Ed25519PrivateKey.generate().public_key())
    assert [finding.code for finding in caught.value.findings] == ["site.signature"]


@pytest.mark.parametrize("name", ["site.json", "site.sig"])
def test_site_is_never_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=rf"{name} is there already"):
        media.write_site(media.sign(SITE, Ed25519PrivateKey.generate()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"somebody's"


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
