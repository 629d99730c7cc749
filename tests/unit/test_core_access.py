"""The list of those who may reach a node, as it travels."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.access import LIMIT, AccessAnswer, AccessList
from nodeos.core.addresses import parse_address, parse_network
from nodeos.core.firewall import MAX_CLIENTS, MAX_NODES, render
from nodeos.core.wire import ParseError, canonical_json, parse_json

LIST = AccessList(
    nodes=(parse_address("2001:db8::2"), parse_address("192.0.2.1"), parse_address("2001:db8::1")),
    clients=(parse_network("198.51.100.0/24"), parse_network("2001:db8:f::/48")),
)
ADDRESS = st.integers(0x20010DB8 << 96, (0x20010DB9 << 96) - 1).map(ipaddress.IPv6Address)


def parse(value: object) -> AccessList | None:
    return AccessAnswer.parse(json.dumps(value).encode()).access


def test_the_form() -> None:
    assert json.loads(LIST.to_bytes()) == {
        "nodes": ["192.0.2.1", "2001:db8::1", "2001:db8::2"],
        "clients": ["198.51.100.0/24", "2001:db8:f::/48"],
    }


@given(st.lists(ADDRESS, max_size=8))
def test_there_and_back(nodes: list[ipaddress.IPv6Address]) -> None:
    given_list = AccessList(nodes=tuple(nodes), clients=LIST.clients)
    found = AccessAnswer.parse(AccessAnswer(access=given_list).to_bytes()).access
    assert found is not None
    assert found.digest == given_list.digest
    assert found.ruleset() == given_list.ruleset()


def test_the_digest_is_of_what_is_let_in_and_not_of_the_order() -> None:
    turned = AccessList(nodes=LIST.nodes[::-1] * 2, clients=LIST.clients[::-1])
    assert turned.digest == LIST.digest
    assert AccessList(nodes=LIST.nodes[1:], clients=LIST.clients).digest != LIST.digest
    assert AccessList(nodes=LIST.nodes, clients=()).digest != LIST.digest


def test_unchanged() -> None:
    assert AccessAnswer.parse(AccessAnswer(access=None).to_bytes()).access is None


def test_the_ruleset_is_the_firewalls() -> None:
    assert LIST.ruleset() == render(LIST.nodes, clients=LIST.clients)
    assert AccessList(nodes=(), clients=()).ruleset() == render(())


@pytest.mark.parametrize(
    ("nodes", "clients", "words"),
    [
        (["192.0.2.1", "ff02::1"], [], r"answer\.access\.nodes\[1\]: 'ff02::1' is no unicast"),
        (["192.0.2.1/32"], [], r"answer\.access\.nodes\[0\]: '192\.0\.2\.1/32' is no IP address"),
        (["2001:db8::1 } accept"], [], r"answer\.access\.nodes\[0\]: "),
        ([7], [], r"answer\.access\.nodes\[0\]: expected text"),
        ([], ["10.0.0.0/8", "::/0"], r"answer\.access\.clients\[1\]: '::/0' holds more than"),
        ([], ["10.0.0.1/8"], r"answer\.access\.clients\[0\]: '10\.0\.0\.1/8' is no IP prefix"),
        ([], ["10.0.0.0/8 } accept"], r"answer\.access\.clients\[0\]: "),
        ([], [None], r"answer\.access\.clients\[0\]: expected text"),
        (["192.0.2.1"] * (MAX_NODES + 1), [], r"answer\.access\.nodes: more than"),
        ([], ["10.0.0.0/8"] * (MAX_CLIENTS + 1), r"answer\.access\.clients: more than"),
    ],
)
def test_wrong_entries_are_named(nodes: list[object], clients: list[object], words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse({"access": {"nodes": nodes, "clients": clients}})


@pytest.mark.parametrize(
    "value", [{"access": {"nodes": []}}, {"access": None, "more": 1}, {"access": []}, []]
)
def test_another_form_is_refused(value: object) -> None:
    with pytest.raises(ParseError, match="answer"):
        parse(value)


def test_the_longest_list_fits() -> None:
    longest = "ffff:" * 7 + "ffff"
    value = {"access": {"nodes": [longest] * MAX_NODES, "clients": [longest + "/128"] * MAX_CLIENTS}}
    data = canonical_json(value)
    assert len(data) < LIMIT
    parse_json(data, "answer", limit=LIMIT)
