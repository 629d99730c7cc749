from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError

# From the Internet Computer's interface specification and its public documents: the example of the textual
# form, the management canister, the anonymous principal, the ledger, the governance canister.
PUBLISHED = [
    ("abcd01", "em77e-bvlzu-aq"),
    ("", "aaaaa-aa"),
    ("04", "2vxsx-fae"),
    ("00000000000000020101", "ryjl3-tyaaa-aaaaa-aaaba-cai"),
    ("00000000000000010101", "rrkah-fqaaa-aaaaa-aaaaq-cai"),
]


@pytest.mark.parametrize(("raw", "text"), PUBLISHED)
def test_published_examples(raw: str, text: str) -> None:
    assert str(Principal(bytes.fromhex(raw))) == text
    assert Principal.parse(text) == Principal(bytes.fromhex(raw))


def test_self_authenticating_principal_of_the_main_network() -> None:
    # The network's root key and the principal of its root subnet (interface specification, dashboard).
    root_key = bytes.fromhex(
        "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100814c0e6ec71fab583b08bd81373c25"
        "5c3c371b2e84863c98a4f1e08b74235d14fb5d9c0cd546d9685f913a0c0b2cc5341583bf4b4392e467db96d65b9bb4cb717112f8"
        "472e0d5a4d14505ffd7484b01291091c5f87b98883463f98091a0baaae"
    )
    text = "tdb26-jop6k-aogll-7ltgs-eruif-6kk7m-qpktf-gdiqx-mxtrf-vb5e6-eqe"
    assert str(Principal.self_authenticating(root_key)) == text


def test_anonymous() -> None:
    assert str(Principal.anonymous()) == "2vxsx-fae"


@given(st.binary(max_size=29))
def test_text_round_trip(raw: bytes) -> None:
    assert Principal.parse(str(Principal(raw))).raw == raw


@given(st.text(max_size=80))
def test_parse_raises_nothing_but_parse_errors(text: str) -> None:
    try:
        principal = Principal.parse(text)
    except ParseError:
        return
    assert str(principal) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("em77e-bvlzu-ar", "checksum"),
        ("em77ebvlzuaq", "grouping"),
        ("EM77E-BVLZU-AQ", "grouping"),
        ("em77e-bvlz-uaq", "grouping"),
        ("em77e-bvlzu-aq-", "grouping"),
        ("", "too short"),
        ("aaaa", "too short"),
        ("a!aaa-aa", "not base32"),
        ("aaaaa-a", "not base32"),
    ],
)
def test_parse_refuses(text: str, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        Principal.parse(text)


def test_more_than_29_bytes_are_refused() -> None:
    with pytest.raises(ParseError, match="30 bytes"):
        Principal(bytes(30))
    long = "-".join(["aaaaa"] * 11)
    with pytest.raises(ParseError):
        Principal.parse(long)
