"""Which keys are accepted: every rule broken alone."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.verify.keys import check_attestation_key, check_endorsement_key
from provisioning.verify.tpm import Attribute, parse_public
from tests.support import evidence as ev

AK = ev.new_ak().public_key()
EK = ev.rsa_key().public_key()


def ak_codes(raw: bytes) -> list[str]:
    return [f.code for f in check_attestation_key(parse_public(raw))]


def ek_codes(raw: bytes) -> list[str]:
    return [f.code for f in check_endorsement_key(parse_public(raw))]


def test_good_attestation_key() -> None:
    assert ak_codes(ev.ak_public(AK)) == []


@pytest.mark.parametrize(
    "bit",
    [
        Attribute.RESTRICTED,
        Attribute.SIGN,
        Attribute.FIXED_TPM,
        Attribute.FIXED_PARENT,
        Attribute.SENSITIVE_DATA_ORIGIN,
    ],
)
def test_each_missing_attribute_is_named(bit: Attribute) -> None:
    public = parse_public(ev.ak_public(AK, attributes=ev.AK_ATTRIBUTES & ~bit))
    (finding,) = check_attestation_key(public)
    assert finding.code == "ak.attributes"
    assert str(bit.name).lower().replace("_", "-") in finding.message


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("ak.decrypt", ev.ak_public(AK, attributes=ev.AK_ATTRIBUTES | Attribute.DECRYPT)),
        ("ak.scheme", ev.ak_public(AK, scheme=struct.pack(">H", 0x0010))),
        ("ak.scheme", ev.ak_public(AK, scheme=struct.pack(">HH", 0x0018, 0x000C))),
        ("ak.name_algorithm", ev.ak_public(AK, name_alg=0x000C)),
        ("ak.curve", ev.ak_public(ec.generate_private_key(ec.SECP384R1()).public_key())),
        ("ak.invalid", ev.flipped(ev.ak_public(AK))),
    ],
)
def test_each_rule_of_the_attestation_key(code: str, raw: bytes) -> None:
    assert ak_codes(raw) == [code]


def test_good_endorsement_keys() -> None:
    assert ek_codes(ev.rsa_public(EK)) == []
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        assert ek_codes(ev.ecc_ek_public(ec.generate_private_key(curve).public_key())) == []


@pytest.mark.parametrize(
    "raw",
    [
        ev.rsa_public(EK, attributes=ev.EK_ATTRIBUTES | Attribute.SIGN),
        ev.rsa_public(EK, attributes=ev.EK_ATTRIBUTES | Attribute.NO_DA),
        ev.rsa_public(EK, attributes=ev.EK_ATTRIBUTES & ~Attribute.RESTRICTED),
        ev.rsa_public(EK, attributes=ev.EK_ATTRIBUTES | Attribute.USER_WITH_AUTH),
        ev.rsa_public(EK, policy=bytes(32)),
        ev.rsa_public(EK, policy=b""),
    ],
)
def test_other_templates_would_give_one_tpm_many_names(raw: bytes) -> None:
    assert ek_codes(raw) == ["ek.template"]


def test_endorsement_key_off_its_curve() -> None:
    raw = ev.ecc_ek_public(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert ek_codes(ev.flipped(raw)) == ["ek.invalid"]
