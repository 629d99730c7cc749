from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeos.agent.config import Config
from nodeos.agent.site import NETWORK_FILE, apply_network, load_site, measure_site, network_unit
from nodeos.core.errors import NodeosError, RefusedError, UsageError
from nodeos.core.site import Network, SignedSite
from nodeos.core.wire import ParseError
from tests.support.agent_fakes import FakeTpm, Site, make_config, make_site


@pytest.fixture
def site() -> Site:
    return make_site("https://registrar.example", "PEM")


@pytest.fixture
def config(tmp_path: Path, site: Site) -> Config:
    config = make_config(tmp_path)
    site.write(config)
    return config


def test_a_signed_site_is_loaded(config: Config, site: Site) -> None:
    signed, settings = load_site(config.esp, config.site_key)
    assert settings == site.config
    assert signed.document == site.config.to_bytes()


def test_a_foreign_signature_is_refused(config: Config, site: Site) -> None:
    site.write(config, signer=Ed25519PrivateKey.generate())
    with pytest.raises(RefusedError) as caught:
        load_site(config.esp, config.site_key)
    assert [f.code for f in caught.value.findings] == ["site.signature"]
    assert caught.value.hint is not None


def test_a_missing_partition_is_told(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EFI system partition is not mounted") as caught:
        load_site(tmp_path / "absent", config.site_key)
    assert "nodeos media make" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["site.json", "site.sig"])
def test_a_missing_file_is_told(config: Config, name: str) -> None:
    (config.esp / name).unlink()
    with pytest.raises(UsageError, match=f"{name}: No such file") as caught:
        load_site(config.esp, config.site_key)
    assert "nodeos media make" in (caught.value.hint or "")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_told(config: Config, length: int) -> None:
    (config.esp / "site.sig").write_bytes(bytes(length))
    with pytest.raises(UsageError, match=f"{length} bytes, expected 64"):
        load_site(config.esp, config.site_key)


def test_during_a_change_of_keys_either_key_will_do(config: Config, site: Site) -> None:
    own = config.site_key.read_bytes()
    other = Ed25519PrivateKey.generate().public_key()
    next_key = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for keys in (own + next_key, next_key + own):
        config.site_key.write_bytes(keys)
        assert load_site(config.esp, config.site_key)[1] == site.config
    config.site_key.write_bytes(next_key)
    with pytest.raises(RefusedError):
        load_site(config.esp, config.site_key)


def test_a_damaged_site_key_is_told(config: Config) -> None:
    config.site_key.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="not a public key in PEM"):
        load_site(config.esp, config.site_key)
    other = generate_private_key(SECP256R1()).public_key()
    config.site_key.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        load_site(config.esp, config.site_key)


SIGNED = SignedSite(document=b"document", signature=bytes(64))


def test_the_site_is_measured_once_per_boot() -> None:
    tpm = FakeTpm()
    assert measure_site(tpm, SIGNED)
    assert not measure_site(tpm, SIGNED)
    assert tpm.measured == [(12, b"document")]
    assert tpm.pcrs[12] == hashlib.sha256(bytes(32) + hashlib.sha256(b"document").digest()).digest()


def test_a_register_with_something_else_is_refused() -> None:
    tpm = FakeTpm()
    tpm.measure(12, b"something else")
    with pytest.raises(NodeosError, match=r"PCR 12 holds .* neither zero nor") as caught:
        measure_site(tpm, SIGNED)
    assert "restart the machine" in (caught.value.hint or "")
    assert len(tpm.measured) == 1


def test_a_changed_site_is_refused_until_the_next_boot() -> None:
    tpm = FakeTpm()
    measure_site(tpm, SIGNED)
    with pytest.raises(NodeosError, match="PCR 12"):
        measure_site(tpm, SignedSite(document=b"changed", signature=bytes(64)))


def test_a_measurement_that_did_not_come_out_is_refused() -> None:
    class Racing(FakeTpm):
        def measure(self, pcr: int, data: bytes) -> None:
            super().measure(pcr, b"before")
            super().measure(pcr, data)

    with pytest.raises(NodeosError, match="after the measurement"):
        measure_site(Racing(), SIGNED)


def test_network_file(tmp_path: Path) -> None:
    network = Network(
        addresses=("192.0.2.7/24", "2001:db8::7/64"), gateways=("192.0.2.1", "fe80::1"), dns=("192.0.2.53",)
    )
    calls: list[str] = []
    apply_network(network, tmp_path / "network", lambda: calls.append("reload"))
    text = (tmp_path / "network" / NETWORK_FILE).read_text()
    assert text.splitlines() == [
        "[Match]",
        "Type=ether",
        "Kind=!*",
        "",
        "[Network]",
        "DHCP=no",
        "IPv6AcceptRA=no",
        "Address=192.0.2.7/24",
        "Address=2001:db8::7/64",
        "Gateway=192.0.2.1",
        "Gateway=fe80::1",
        "DNS=192.0.2.53",
    ]
    assert calls == ["reload"]


@pytest.mark.parametrize(
    "network",
    [
        Network(addresses=(), gateways=(), dns=()),
        Network(addresses=("192.0.2.7/24\n[Network]",), gateways=(), dns=()),
        Network(addresses=("192.0.2.7/33",), gateways=(), dns=()),
        Network(addresses=("192.0.2.7/24",), gateways=("gateway",), dns=()),
        Network(addresses=("192.0.2.7/24",), gateways=(), dns=("192.0.2.1\nDomains=~.",)),
    ],
)
def test_what_is_no_address_is_refused(network: Network) -> None:
    with pytest.raises(ParseError, match=r"site\.json\.network"):
        network_unit(network)
