"""The certificates of TPM manufacturers, all 26 roots and 143 intermediates, one by one: read or refused."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from functools import cache

import pytest

from nodeos.core.errors import Finding
from provisioning.registrar.admin import read_certificates
from provisioning.verify.der import Certificate
from provisioning.verify.path import (
    basic_constraints,
    check_authority,
    check_critical,
    check_dates,
    find_path,
    verify_signature,
)
from tests.support.vectors import vectors

AT = datetime(2026, 6, 1, tzinfo=UTC)
# Roots by the beginning of their SHA-256, as the manufacturers name them.
ROOTS = {
    "593a1794f9e1": "AMD Pluton Global Factory ICA",
    "14aac9fd5847": "AMDTPM",
    "67bd2472a546": "AMDTPM",
    "cfeb02fecd55": "Infineon OPTIGA(TM) ECC Root CA",
    "ee0c827555c4": "Infineon OPTIGA(TM) ECC Root CA 2",
    "899e35474c98": "Infineon OPTIGA(TM) RSA Root CA",
    "b413c71580af": "Infineon OPTIGA(TM) RSA Root CA 2",
    "beb40bb7507b": "www.intel.com",
    "32ab5fe7cb43": "Microsoft Pluton Root CA 2021",
    "870c7a35ceab": "Microsoft TPM Root Certificate Authority 2014",
    "6ccf8a8a803d": "NSING TPM ECC ROOT CA 001",
    "72ca00612395": "NSING TPM RSA ROOT CA 001",
    "083e7bd13e8f": "NPCTxxx ECC521 RootCA",
    "2782e51a95e8": "Nuvoton TPM Root CA 1110",
    "e38c280f7c0e": "Nuvoton TPM Root CA 1111",
    "cd8185ff8995": "Nuvoton TPM Root CA 2111",
    "66e3a1013d4f": "Nuvoton TPM Root CA 2112",
    "ba70a6ea7b77": "NuvotonTPMRootCA1210",
    "fc61abbc1810": "NuvotonTPMRootCA2210",
    "2bbc5db224b8": "NuvotonTPMRootCA2211",
    "5a8c7b5eb888": "GlobalSign Trusted Platform Module ECC Root CA",
    "f27bf02c6e00": "GlobalSign Trusted Platform Module Root CA",
    "c541d7e5b9e3": "STM TPM ECC Root CA 01",
    "f8e37a86b689": "STM TPM EK Root CA",
    "fd1e7b68accd": "STSAFE ECC Root CA 02",
    "c8f179943356": "STSAFE RSA Root CA 02",
}
# Pinned like the others; somebody above them has signed them, so they show no signature of their own.
SIGNED_BY_OTHERS = {
    "593a1794f9e1": "AMD Root CA R4",
    "c541d7e5b9e3": "GlobalSign Trusted Platform Module ECC Root CA",
    "f8e37a86b689": "GlobalSign Trusted Platform Module Root CA",
}
# Authorities of ST whose issuer stands in another kind of
# string than the root writes of itself.
OTHER_STRINGS = {"695ad0f0236f", "a4b489599122", "4a13dd436b11", "97a13b81a111"}


@cache
def roots() -> tuple[Certificate, ...]:
    return tuple(read_certificates(vectors("ek-roots") / "roots.pem"))


@cache
def intermediates() -> tuple[Certificate, ...]:
    return tuple(read_certificates(vectors("ek-roots") / "intermediates.pem"))


def short(certificate: Certificate) -> str:
    return hashlib.sha256(certificate.der).hexdigest()[:12]


def test_all_are_there() -> None:
    assert (len(roots()), len(intermediates())) == (26, 143)
    assert [short(c) for c in roots()] == list(ROOTS)
    assert len({short(c) for c in intermediates()}) == 143


def test_roots_have_the_fingerprints_that_the_collection_names() -> None:
    text = (vectors("ek-roots") / "roots.yaml").read_text("utf-8")
    named = {
        word.replace(":", "").lower() for word in re.findall(r'"((?:[0-9A-F]{2}:){31}[0-9A-F]{2})"', text)
    }
    ours = {hashlib.sha256(c.der).hexdigest() for c in roots()}
    assert named <= ours
    assert len(named) == 18


@pytest.mark.parametrize("digest", ROOTS)
def test_root_is_read_and_can_close_a_path(digest: str) -> None:
    """Five of them a strict parser refuses whole: Nuvoton's 1110 to 2112 (order of a SET), Intel's (data left)."""
    (root,) = (c for c in roots() if short(c) == digest)
    assert ROOTS[digest] in root.subject_text
    assert root.key().key_size >= 256
    assert check_dates(root, AT, family="ek") == []
    assert check_authority(root, 0, family="ek") == []
    assert check_critical([root], family="ek") == []
    assert basic_constraints(root)[0]
    if digest in SIGNED_BY_OTHERS:
        assert not root.self_issued
        assert SIGNED_BY_OTHERS[digest] in root.issuer_text
    else:
        verify_signature(root, root)


@pytest.mark.parametrize("number", range(143))
def test_intermediate_is_read_and_leads_to_a_pinned_root(number: int) -> None:
    certificate = intermediates()[number]
    found: list[Finding] = []
    path = find_path(certificate, intermediates(), roots(), found, family="ek")
    for below, item in enumerate(path):
        found += check_dates(item, AT, family="ek") + check_authority(item, below, family="ek")
    found += check_critical(path, family="ek")
    assert found == [], certificate.subject_text
    assert path[0] is certificate
    assert path[-1] in roots()
    if short(certificate) in OTHER_STRINGS:
        assert certificate.issuer != path[1].subject
