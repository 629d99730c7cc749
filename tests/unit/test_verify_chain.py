"""Endorsement certificates: every check broken alone, and the manufacturers' real certificates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.wire import ParseError
from provisioning.verify import chain
from provisioning.verify.chain import TpmModel, check_chain
from provisioning.verify.der import parse_certificate, parse_certificates
from tests.support import evidence as ev

AT = ev.later(100)
EK = ev.spki(ev.rsa_key())


def check(
    leaf: bytes, *others: bytes, root: bytes | None = None, spki: bytes = EK, at: datetime = AT
) -> tuple[list[str], TpmModel | None]:
    findings, model = check_chain(
        parse_certificate(leaf),
        [parse_certificate(der) for der in others],
        [parse_certificate(root or ev.root().der)],
        spki,
        at,
    )
    return [f.code for f in findings], model


def issue(**changes: object) -> bytes:
    return ev.issuing().issue(ev.rsa_key().public_key(), **changes)  # type: ignore[arg-type]


def test_good_chain_gives_the_model() -> None:
    codes, model = check(issue(), ev.issuing().der)
    assert codes == []
    assert model == TpmModel(manufacturer="id:54455354", model="synthetic", version="id:00010002")


@pytest.mark.parametrize("padding", [b"\xff" * 40, b"\x00" * 7])
def test_padding_after_the_certificate_is_cut_off(padding: bytes) -> None:
    assert check(issue() + padding, ev.issuing().der)[0] == []


def test_other_bytes_after_the_certificate_are_refused() -> None:
    with pytest.raises(ParseError, match="something other than padding"):
        parse_certificate(issue() + b"\x01")


def _with_ca(**changes: object) -> tuple[bytes, bytes, bytes]:
    """A chain whose issuing authority is changed: leaf, intermediate, root."""
    ca = ev.Authority.make("Odd", ev.root(), **changes)  # type: ignore[arg-type]
    return ca.issue(ev.rsa_key().public_key()), ca.der, ev.root().der


def _long() -> tuple[bytes, bytes, bytes, bytes]:
    """The first authority allows none below it, but there is one."""
    upper = ev.Authority.make("Upper", ev.root(), path_length=0)
    lower = ev.Authority.make("Lower", upper)
    return lower.issue(ev.rsa_key().public_key()), lower.der, upper.der, ev.root().der


CASES: dict[str, Callable[[], tuple[list[str], object]]] = {
    "ek.untrusted": lambda: check(issue()),
    "ek.signature": lambda: check(ev.flipped(issue()), ev.issuing().der),
    "ek.expired": lambda: check(issue(end=ev.later(50)), ev.issuing().der),
    "ek.not_yet_valid": lambda: check(issue(start=ev.later(150)), ev.issuing().der),
    "ek.not_a_ca": lambda: check(*_with_ca(ca=False)[:2]),
    "ek.key_usage": lambda: check(*_with_ca(sign_usage=False)[:2]),
    "ek.path_length": lambda: check(*_long()[:3]),
    "ek.critical_extension": lambda: check(issue(critical=True), ev.issuing().der),
    "ek.is_a_ca": lambda: check(issue(ca=True), ev.issuing().der),
    "ek.usage": lambda: check(issue(usage="1.3.6.1.5.5.7.3.1"), ev.issuing().der),
    "ek.san": lambda: check(issue(san=False), ev.issuing().der),
    "ek.key": lambda: check(issue(), ev.issuing().der, spki=ev.spki(ev.rsa_key(1))),
}


@pytest.mark.parametrize("code", CASES)
def test_each_check_refuses_alone(code: str) -> None:
    assert CASES[code]()[0] == [code]


def test_expired_intermediate_and_root_are_refused() -> None:
    assert check(*_with_ca(end=ev.later(50))[:2])[0] == ["ek.expired"]
    old = ev.Authority.make("Old", end=ev.later(50))
    leaf = old.issue(ev.rsa_key().public_key())
    assert check(leaf, root=old.der)[0] == ["ek.expired"]


def test_certificate_without_usage_is_accepted() -> None:
    assert check(issue(usage=None), ev.issuing().der)[0] == []


def test_intermediate_is_not_a_root() -> None:
    """Whoever sends a certificate can't make it trusted by sending its issuer."""
    stranger = ev.Authority.make("Synthetic TPM Root")
    leaf = stranger.issue(ev.rsa_key().public_key())
    assert check(leaf, stranger.der)[0] == ["ek.signature"]


def test_maze_of_intermediates_ends() -> None:
    """Many authorities of one name, all signed by one key: the search is bounded."""
    first = ev.Authority.make("Maze")
    maze = [ev.Authority.make("Maze", first).der for _ in range(12)]
    leaf = first.issue(ev.rsa_key().public_key())
    codes, _ = check(leaf, first.der, *maze)
    assert len(codes) == 1


@pytest.mark.parametrize(
    ("bits", "codes"),
    [("2000", []), ("0800", []), ("2800", []), ("8000", ["ek.leaf_key_usage"]), ("", ["ek.leaf_key_usage"])],
)
def test_key_that_may_not_receive_secrets_is_refused(bits: str, codes: list[str]) -> None:
    usage = bytes.fromhex(bits)
    extension = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("2.5.29.15"), bytes([3, len(usage) + 1, 0]) + usage
    )
    assert check(issue(more=extension), ev.issuing().der)[0] == codes


def test_issuer_in_another_kind_of_string_is_found() -> None:
    """RFC 5280, 7.1: UTF8String, PrintableString, case and spaces make no other name."""
    odd = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "synthetic  TPM Issuing", _ASN1Type.PrintableString)]
    )
    leaf = issue(issuer=odd)
    assert parse_certificate(leaf).issuer != parse_certificate(ev.issuing().der).subject
    assert check(leaf, ev.issuing().der)[0] == []


@pytest.mark.parametrize("wrap", [
    lambda der: b"\x10\x01\x00" + (len(der) + 2).to_bytes(2, "big") + b"\x10\x02" + der + b"\xff" * 30,
    lambda der: b"\x10\x01\x00" + len(der).to_bytes(2, "big") + der,
    lambda der: der,
])  # fmt: skip
def test_header_of_nv_memory_is_cut_off(wrap: Callable[[bytes], bytes]) -> None:
    leaf = issue()
    assert [c.der for c in parse_certificates(wrap(leaf), "NV")] == [leaf]


@pytest.mark.parametrize("step", [
    "find_path", "check_dates", "check_authority", "check_critical", "check_revocation", "_leaf", "_usages",
    "_model", "key_usage", "basic_constraints", "check_certificate",
])  # fmt: skip
def test_fault_at_any_step_ends_in_no_trust(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object, **more: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(chain, step, broken)
    with pytest.raises(RuntimeError, match="broken"):
        check(issue(), ev.issuing().der)


def test_all_findings_are_told() -> None:
    leaf = issue(usage="1.2.3.4", san=False, end=ev.later(50))
    assert set(check(leaf, ev.issuing().der)[0]) == {"ek.usage", "ek.san", "ek.expired"}


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_parser_raises_nothing_but_parse_errors(data: bytes) -> None:
    for candidate in (data, b"\x30\x82" + len(data).to_bytes(2, "big") + data):
        try:
            parse_certificate(candidate).key()
        except ParseError:
            continue


_LEAF = issue()


@given(st.integers(0, len(_LEAF) - 1), st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_damaged_certificate_never_passes(at: int, change: int) -> None:
    damaged = bytearray(_LEAF)
    damaged[at] ^= change
    try:
        codes, _ = check(bytes(damaged), ev.issuing().der)
    except ParseError:
        return
    assert codes
