from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.errors import RefusedError
from nodeos.core.principal import Principal
from nodeos.core.site import SIGNATURE_DOMAIN, Network, SignedSite, SiteConfig
from nodeos.core.wire import ParseError, b64
from tests.support.evidence import RECOVERY, spki

SITE = SiteConfig(
    data_center="zh1",
    registrar_url="https://registrar.example:8443",
    registrar_ca="-----BEGIN CERTIFICATE-----\n",
    operator=Principal(b"\x01\x02"),
    operator_key=spki(RECOVERY),
    node_reward_type="type1",
    network=Network(addresses=("192.0.2.7/24",), gateways=("192.0.2.1",), dns=()),
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def signed(document: bytes, domain: bytes = SIGNATURE_DOMAIN) -> SignedSite:
    return SignedSite(document=document, signature=KEY.sign(domain + document))


@given(
    st.builds(
        SiteConfig,
        data_center=st.text(max_size=64),
        registrar_url=st.text(max_size=200).map("https://".__add__),
        registrar_ca=st.text(max_size=100),
        operator=st.binary(max_size=29).map(Principal),
        operator_key=st.integers(1, 1 << 200).map(lambda n: spki(ec.derive_private_key(n, ec.SECP256K1()))),
        node_reward_type=st.text(max_size=16),
        network=st.none()
        | st.builds(
            Network,
            addresses=st.lists(st.text(), max_size=3).map(tuple),
            gateways=st.lists(st.text(), max_size=3).map(tuple),
            dns=st.lists(st.text(), max_size=3).map(tuple),
        ),
    )
)
def test_round_trip(site: SiteConfig) -> None:
    assert SiteConfig.parse(site.to_bytes()) == site


@given(st.binary(max_size=200))
def test_parse_raises_nothing_but_parse_errors(data: bytes) -> None:
    with pytest.raises(ParseError):
        SiteConfig.parse(data)


def test_a_signed_configuration_is_taken() -> None:
    site = signed(SITE.to_bytes())
    assert site.verify(KEY.public_key()) == SITE
    assert site.digest == hashlib.sha256(SITE.to_bytes()).digest()


def refused(site: SignedSite) -> None:
    with pytest.raises(RefusedError) as caught:
        site.verify(KEY.public_key())
    assert [f.code for f in caught.value.findings] == ["site.signature"]


def test_another_key_is_refused() -> None:
    other = Ed25519PrivateKey.generate().sign(SIGNATURE_DOMAIN + SITE.to_bytes())
    refused(SignedSite(document=SITE.to_bytes(), signature=other))


def test_a_changed_document_is_refused() -> None:
    site = signed(SITE.to_bytes())
    refused(SignedSite(document=site.document.replace(b"zh1", b"zh2"), signature=site.signature))


def test_a_signature_for_another_purpose_is_refused() -> None:
    refused(signed(SITE.to_bytes(), domain=b""))


def test_the_signature_is_checked_before_the_content() -> None:
    refused(SignedSite(document=b"not JSON", signature=bytes(64)))
    with pytest.raises(ParseError, match="not JSON"):
        signed(b"not JSON").verify(KEY.public_key())


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            document = document[name]
        if value is ...:
            del document[last]
        else:
            document[last] = value

    return apply


@pytest.mark.parametrize(
    ("mutate", "words"),
    [
        (change("version", 2), r"site\.json\.version: 2 is not between 1 and 1"),
        (change("data_center", ...), r"site\.json\.data_center: missing"),
        (change("data_center", "x" * 65), "longer than 64"),
        (change("registrar.url", "http://r"), "must begin with https://"),
        (change("registrar.more", 1), r"site\.json\.registrar: unknown field: more"),
        (change("operator", "em77e"), "principal"),
        (change("network.dns", [1]), r"site\.json\.network\.dns\[0\]: expected text"),
        (change("network.mtu", 1500), "unknown field: mtu"),
        (change("ssh_keys", []), "unknown field: ssh_keys"),
    ],
)
def test_each_wrong_field_is_named(mutate: Callable[[dict[str, Any]], None], words: str) -> None:
    document = json.loads(SITE.to_bytes())
    mutate(document)
    with pytest.raises(ParseError, match=words):
        SiteConfig.parse(json.dumps(document).encode())


def with_operator_key(value: object) -> bytes:
    document = json.loads(SITE.to_bytes())
    if value is None:
        del document["operator_key"]
    else:
        document["operator_key"] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "operator_key: missing"),
        (b64(b"no key"), "not a public key in DER"),
        (b64(spki(Ed25519PrivateKey.generate())), "neither a P-256 nor a secp256k1 key"),
        (b64(spki(ec.generate_private_key(ec.SECP384R1()))), "neither a P-256 nor a secp256k1 key"),
        (b64(spki(RECOVERY) + b"\0"), "operator_key: "),
    ],
)
def test_a_site_needs_a_key_that_recovery_keys_can_be_encrypted_to(key: str | None, words: str) -> None:
    with pytest.raises(ParseError, match=words) as caught:
        SiteConfig.parse(with_operator_key(key))
    assert key is not None or "nodeos media site --operator-key" in (caught.value.hint or "")
