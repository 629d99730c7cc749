"""Signature lists are parsed whole or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.efilists import SHA256, X509, certificates, parse_lists, to_lists
from nodeos.core.wire import ParseError
from tests.support.pe import signature_list

OWNER = bytes(16)


def test_certificates_among_other_entries() -> None:
    data = signature_list(OWNER + b"one", OWNER + b"two")
    hashes = to_lists([parse_lists(data)[0]]).replace(X509.bytes_le, SHA256.bytes_le)
    entries = parse_lists(data + hashes)
    assert certificates(entries) == (b"one", b"two")
    assert [entry.kind for entry in entries] == [X509, X509, SHA256]
    assert parse_lists(b"") == []


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=64).map(lambda rest: X509.bytes_le + rest)))
def test_any_signature_list_is_parsed_or_refused(data: bytes) -> None:
    try:
        found = parse_lists(data)
    except ParseError:
        return
    assert sum(len(entry.data) for entry in found) <= len(data)


@pytest.mark.parametrize("cut", [1, 20, 27, 40])
def test_a_cut_list_is_refused(cut: int) -> None:
    with pytest.raises(ParseError, match="signature list"):
        parse_lists(signature_list(OWNER + b"one")[:cut])
