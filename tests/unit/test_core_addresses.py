from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.addresses import (
    Deployment,
    IpVersion,
    MacAddress,
    System,
    collapse,
    interface_id,
    ipv6_address,
    parse_address,
    parse_deployment,
    parse_mac,
    parse_network,
    parse_prefix,
    require_unicast,
    system_mac,
)
from nodeos.core.errors import UsageError

MANAGEMENT = parse_mac("00:11:22:33:44:55")
TESTNET = parse_deployment("testnet")
macs = st.binary(min_size=6, max_size=6).map(lambda data: MacAddress(data=data))
prefixes = st.integers(0x2000 << 48, (0x4000 << 48) - 1).map(lambda n: ipaddress.IPv6Network((n << 64, 64)))


def test_the_networks_vectors() -> None:
    guest = system_mac(MANAGEMENT, TESTNET, System.GUEST)
    assert str(guest) == "6a:01:ae:1a:09:bb"
    assert interface_id(guest).hex(":", 2) == "6801:aeff:fe1a:09bb"
    assert str(ipv6_address(parse_prefix("2001:db8:1:2::/64"), guest)) == "2001:db8:1:2:6801:aeff:fe1a:9bb"
    mainnet = system_mac(parse_mac("3c:ec:ef:6b:37:99"), parse_deployment("mainnet"), System.HOST)
    assert mainnet.data[2:].hex() == "f409d72a"


@pytest.mark.parametrize(
    ("system", "version", "start"),
    [
        (System.HOST, 6, "6a:00"),
        (System.SETUP, 6, "6a:0f"),
        (System.GUEST, 6, "6a:01"),
        (System.BOUNDARY, 6, "6a:02"),
        (System.HOST, 4, "4a:00"),
        (System.GUEST, 4, "4a:01"),
    ],
)
def test_the_first_bytes(system: System, version: IpVersion, start: str) -> None:
    assert str(system_mac(MANAGEMENT, TESTNET, system, version=version)) == f"{start}:ae:1a:09:bb"


@given(macs.filter(lambda mac: not mac.data[0] & 1 and any(mac.data)))
def test_every_spelling_is_one_mac_address(mac: MacAddress) -> None:
    text = str(mac)
    for spelling in (text, text.upper(), text.replace(":", "-"), text.replace(":", "-").upper()):
        assert parse_mac(spelling) == mac
        assert system_mac(parse_mac(spelling), TESTNET, System.HOST) == system_mac(mac, TESTNET, System.HOST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00:11:22:33:44",
        "00:11:22:33:44:55:66",
        "00:11:22-33:44:55",
        "001122334455",
        "0:11:22:33:44:55",
        "00:11:22:33:44:5g",
        " 00:11:22:33:44:55",
        "00:11:22:33:44:55\n",
        "00:11:22:33:44:٥٥",  # other digits than ASCII's
        "01:11:22:33:44:55",  # a group
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ],
)
def test_no_mac_address(text: str) -> None:
    with pytest.raises(UsageError, match="MAC address") as caught:
        parse_mac(text)
    assert caught.value.hint


@given(st.text())
def test_parsers_raise_nothing_but_usage_errors(text: str) -> None:
    for parse in (parse_mac, parse_deployment, parse_prefix, parse_address):
        try:
            parse(text)
        except UsageError as error:
            assert error.hint


@pytest.mark.parametrize("text", ["mainnet", "testnet", "small-01", "a.b_c", "9", "a" * 63])
def test_deployments(text: str) -> None:
    assert parse_deployment(text) == Deployment(text)


@pytest.mark.parametrize("text", ["", "Mainnet", "main net", "mainnet\n", "-a", ".a", "a" * 64, "ä"])
def test_no_deployment(text: str) -> None:
    with pytest.raises(UsageError, match="no deployment name"):
        parse_deployment(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2001:db8::/63", "no /64"),
        ("2001:db8::/65", "no IPv6 prefix|no /64"),
        ("2001:db8::", "no /64"),
        ("2001:db8::1/64", "host bits"),
        ("2001:db8:1:2", "no IPv6 prefix"),
        ("192.0.2.0/24", "no IPv6 prefix"),
        ("2001:db8::%eth0/64", "no IPv6 prefix|no /64|no unicast"),
        ("fe80::/64", "no unicast"),
        ("ff02::/64", "no unicast"),
        ("::/64", "no unicast"),
    ],
)
def test_no_prefix(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_prefix(text)
    assert caught.value.hint


@given(prefixes, macs)
def test_the_address_is_prefix_and_eui64(prefix: ipaddress.IPv6Network, mac: MacAddress) -> None:
    address = ipv6_address(prefix, mac)
    assert address in prefix
    low = address.packed[8:]
    assert low == interface_id(mac)
    assert low[3:5] == b"\xff\xfe"
    assert bytes((low[0] ^ 2,)) + low[1:3] + low[5:] == mac.data


@given(macs, macs)
def test_two_mac_addresses_have_two_interface_ids(one: MacAddress, other: MacAddress) -> None:
    assert (interface_id(one) == interface_id(other)) == (one == other)


def test_shapes_that_only_code_can_get_wrong() -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        MacAddress(data=bytes(5))
    with pytest.raises(ValueError, match="/64"):
        ipv6_address(ipaddress.IPv6Network("2001:db8::/56"), MANAGEMENT)


@pytest.mark.parametrize("text", ["2001:db8::1", "fd00::1", "192.0.2.1", "10.0.0.1", "223.255.255.255"])
def test_unicast(text: str) -> None:
    assert parse_address(text) == ipaddress.ip_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "::ffff:192.0.2.1",
        "4000::1",
        "2001:db8::1%eth0",
        "2001:db8::1%x } accept",
        "0.0.0.0",  # noqa: S104 - refused
        "0.1.2.3",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_not_unicast(text: str) -> None:
    with pytest.raises(UsageError, match="no unicast address"):
        parse_address(text)
    with pytest.raises(UsageError, match="no unicast address"):
        require_unicast(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text", ["", "example.org", "2001:db8::/64", "192.0.2.1:22", "192.0.2", "[2001:db8::1]"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="no IP address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("2001:db8::/48", "2001:db8::/48"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("10.0.2.2", "10.0.2.2/32"),
        ("fd00::1", "fd00::1/128"),
        ("2000::/3", "2000::/3"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0/0", "more than unicast"),
        ("128.0.0.0/1", "more than unicast"),
        ("::/0", "more than unicast"),
        ("fe80::/10", "more than unicast"),
        ("127.0.0.0/8", "more than unicast"),
        ("ff02::1", "more than unicast"),
        ("2001:db8::1/48", "no IP prefix"),
        ("192.0.2.0/33", "no IP prefix"),
        ("fd00::1%eth0", "no IP prefix|more than unicast"),
        ("example.org", "no IP prefix"),
        ("", "no IP prefix"),
    ],
)
def test_no_network(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_network(text)


@given(st.text())
def test_the_parser_of_networks_raises_nothing_but_usage_errors(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_network(text)


def test_collapsed_networks_have_the_same_addresses_in_one_order() -> None:
    texts = ("2001:db8::/32", "10.0.0.0/9", "10.128.0.0/9", "2001:db8:1::/48", "10.1.0.0/16")
    expected = ("10.0.0.0/8", "2001:db8::/32")
    assert tuple(str(n) for n in collapse(parse_network(text) for text in texts)) == expected
    assert tuple(str(n) for n in collapse(parse_network(text) for text in reversed(texts))) == expected
