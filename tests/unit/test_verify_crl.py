"""Revocation lists: who is named is refused, and a list that can't be believed refuses too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify.chain import check_certificate
from provisioning.verify.crl import parse_crl, parse_crls
from provisioning.verify.der import Certificate, parse_certificate
from provisioning.verify.snp import RefusedReport, SnpPolicy, verify_report
from provisioning.verify.snp_report import Generation, parse_report
from tests.support import amd
from tests.support import evidence as ev

BEGIN, AT, END = ev.later(50), ev.later(100), ev.later(150)
LEAF = parse_certificate(ev.issuing().issue(ev.rsa_key().public_key()))
OTHER = 4242


def make(
    issuer: str | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    revoked: tuple[int, ...] = (OTHER,),
    *,
    start: datetime = BEGIN,
    end: datetime = END,
    extension: tuple[x509.ExtensionType, bool] | None = None,
    entry: tuple[x509.ExtensionType, bool] | None = None,
) -> bytes:
    """A list of the issuing authority, in DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ev.name(ev.issuing().subject if issuer is None else issuer))
        .last_update(start)
        .next_update(end)
    )
    for serial in revoked:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
        if entry:
            item = item.add_extension(entry[0], critical=entry[1])
        builder = builder.add_revoked_certificate(item.build())
    if extension:
        builder = builder.add_extension(extension[0], critical=extension[1])
    signed = builder.sign(ev.issuing().key if key is None else key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


def check(
    *lists: bytes, at: datetime = AT, leaf: Certificate = LEAF, above: bytes | None = None
) -> tuple[list[str], int]:
    """The codes, and how many certificates of the path a list spoke of; ``above`` issued the leaf."""
    others = [parse_certificate(above or ev.issuing().der)]
    crls = [parse_crl(der) for der in lists]
    done = check_certificate(leaf, others, [parse_certificate(ev.root().der)], at, crls=crls)
    return [f.code for f in done.findings], len(done.listed)


def test_no_lists_check_nothing() -> None:
    assert check() == ([], 0)


def test_good_list_covers_the_leaf() -> None:
    assert check(make()) == ([], 1)
    assert check(make(revoked=())) == ([], 1)


def test_lists_of_both_authorities_cover_the_whole_path() -> None:
    upper = make(ev.root().subject, ev.root().key)
    # The root is self-issued: its own list speaks of it too.
    assert check(make(), upper) == ([], 3)


def test_older_list_beside_a_newer_one_is_no_fault() -> None:
    old = make(start=ev.later(10), end=ev.later(20))
    assert check(old, make()) == ([], 1)
    assert check(make(), old) == ([], 1)


def test_what_an_older_list_revoked_stays_revoked() -> None:
    old = make(revoked=(LEAF.serial,), start=ev.later(10), end=ev.later(20))
    assert check(old, make())[0] == ["ek.revoked"]


def _mute() -> tuple[list[str], int]:
    """An authority whose key may not sign lists."""
    mute = ev.Authority.make("Mute", ev.root(), list_usage=False)
    leaf = parse_certificate(mute.issue(ev.rsa_key().public_key()))
    return check(make("Mute", mute.key), leaf=leaf, above=mute.der)


POINT = x509.IssuingDistributionPoint(
    full_name=None, relative_name=None, only_contains_user_certs=True, only_contains_ca_certs=False,
    only_some_reasons=None, indirect_crl=False, only_contains_attribute_certs=False,
)  # fmt: skip
ODD = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
CASES: dict[str, tuple[str, Callable[[], tuple[list[str], int]]]] = {
    "leaf revoked": ("ek.revoked", lambda: check(make(revoked=(OTHER, LEAF.serial)))),
    "authority revoked": (
        "ek.revoked",
        lambda: check(
            make(
                ev.root().subject, ev.root().key, (parse_certificate(ev.issuing().der).serial,)
            )
        ),
    ),
    "signed by another key": ("ek.crl_signature", lambda: check(make(key=ev.root().key))),
    "altered": ("ek.crl_signature", lambda: check(ev.flipped(make()))),
    "ended": ("ek.crl_expired", lambda: check(make(), at=ev.later(151))),
    "not begun": ("ek.crl_not_yet_valid", lambda: check(make(), at=ev.later(49))),
    "partial": ("ek.crl_extension", lambda: check(make(extension=(POINT, True)))),
    "partial, not marked critical": ("ek.crl_extension", lambda: check(make(extension=(POINT, False)))),
    "delta": ("ek.crl_extension", lambda: check(make(extension=(x509.DeltaCRLIndicator(1), True)))),
    "critical extension": ("ek.crl_extension", lambda: check(make(extension=(ODD, True)))),
    "critical extension of an entry": ("ek.crl_extension", lambda: check(make(entry=(ODD, True)))),
    "indirect": (
        "ek.crl_extension",
        lambda: check(
            make(entry=(x509.CertificateIssuer([x509.DirectoryName(ev.name("Somebody"))]), False))
        ),
    ),
    "of somebody else": ("ek.crl_unrelated", lambda: check(make("Somebody"))),
    "by a key that may not": ("ek.crl_key_usage", _mute),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_check_refuses_alone(case: str) -> None:
    code, run = CASES[case]
    assert run()[0] == [code]


def test_reasons_of_entries_do_no_harm() -> None:
    reason = (x509.CRLReason(x509.ReasonFlags.key_compromise), False)
    assert check(make(entry=reason)) == ([], 1)


def test_list_that_names_another_key_of_that_name_is_not_its_issuers() -> None:
    """AMD's two TPM roots have one name and two keys."""
    key = ev.root().key.public_key()
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    # The synthetic authority has no key identifier of its own: then the name decides, and the signature holds.
    assert check(make(extension=(identifier, False))) == ([], 1)
    both = ev.Authority.make("Named", ev.root(), key_id=True)
    leaf = parse_certificate(both.issue(ev.rsa_key().public_key()))
    codes, _ = check(
        make("Named", both.key, extension=(identifier, False)),
        leaf=leaf,
        above=both.der,
    )
    assert codes == ["ek.crl_unrelated"]


# --- AMD's lists, signed by the ARK with RSA-PSS


def amd_list(*serials: int, signer: amd.Authority | None = None, end: datetime = amd.END) -> bytes:
    root = amd.ark(Generation.MILAN)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(amd.name(root.common))
        .last_update(amd.START)
        .next_update(end)
    )
    for serial in serials:
        item = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(amd.START).build()
        builder = builder.add_revoked_certificate(item)
    signed = builder.sign((signer or root).key, amd.HASH, rsa_padding=amd.PSS)
    return signed.public_bytes(Encoding.DER)


def judge(*lists: bytes) -> tuple[list[str], int]:
    chip = amd.chip()
    ask, ark = amd.ask(Generation.MILAN), amd.ark(Generation.MILAN)
    try:
        done = verify_report(
            parse_report(amd.report(chip)),
            parse_certificate(chip.der),
            [parse_certificate(ask.der), parse_certificate(ark.der)],
            report_data=amd.REPORT_DATA,
            at=amd.AT,
            policy=SnpPolicy(),
            crls=[parse_crl(der) for der in lists],
            roots={ark.digest: Generation.MILAN},
        )
    except RefusedReport as error:
        return [f.code for f in error.findings], len(error.assessment.listed)
    return [], len(done.listed)


def test_amd_list_covers_authority_and_root() -> None:
    assert judge(amd_list(OTHER)) == ([], 2)


def test_serial_of_a_chip_on_the_roots_list_is_of_another_certificate() -> None:
    """Serial numbers of VCEKs are all alike (0, here 1): only a list of their own issuer can mean them."""
    assert judge(amd_list(1)) == ([], 2)


def test_authority_or_root_that_amd_revoked_is_refused() -> None:
    assert judge(amd_list(amd.ask(Generation.MILAN).serial))[0] == ["snp.revoked"]
    assert judge(amd_list(amd.ark(Generation.MILAN).serial))[0] == ["snp.revoked"]


def test_amd_list_that_is_old_forged_or_of_another_generation_is_refused() -> None:
    assert judge(amd_list(end=amd.BEFORE))[0] == ["snp.crl_expired"]
    assert judge(amd_list(signer=amd.ask(Generation.MILAN)))[0] == ["snp.crl_signature"]
    genoa = make("ARK-Genoa")
    assert judge(genoa)[0] == ["snp.crl_unrelated"]


# --- the parser


def test_pem_and_der_are_read() -> None:
    der = make()
    pem = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
    assert [c.tbs for c in parse_crls(pem + pem, "file")] == [parse_crl(der).tbs] * 2
    assert parse_crls(der, "file")[0].revoked.keys() == {OTHER}


@pytest.mark.parametrize("data", [b"", b"\x30\x00", LEAF.der, make() + b"\0", make()[:-1]])
def test_other_data_is_no_list(data: bytes) -> None:
    with pytest.raises(ParseError):
        parse_crl(data)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_parser_raises_nothing_but_parse_errors(data: bytes) -> None:
    for candidate in (
        data,
        b"\x30\x82" + len(data).to_bytes(2, "big") + data,
        b"-----BEGIN X509 CRL-----" + data,
    ):
        with suppress(ParseError):
            parse_crls(candidate, "file")


_LIST = make(revoked=(OTHER, LEAF.serial))


@given(st.integers(0, len(_LIST) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_damaged_list_never_clears_a_revoked_certificate(at: int, change: int) -> None:
    damaged = _LIST[:at] + bytes([_LIST[at] ^ change]) + _LIST[at + 1 :]
    try:
        codes, _ = check(damaged)
    except ParseError:
        return
    assert codes


def test_list_without_an_end_is_refused() -> None:
    """RFC 5280, 5.1.2.5 asks for one; without it nobody knows whether it is current."""
    listed = parse_crl(make())
    endless = type(listed)(**{f: getattr(listed, f) for f in listed.__slots__} | {"next_update": None})
    done = check_certificate(
        LEAF, [parse_certificate(ev.issuing().der)], [parse_certificate(ev.root().der)], AT, crls=[endless]
    )
    assert [f.code for f in done.findings] == ["ek.crl_expired"]
