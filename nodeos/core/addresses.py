"""Addresses of a node as the Internet Computer's network expects them: each follows from what is known anyway.

MAC address of a system: one byte for the IP version (6a: IPv6, 4a: IPv4), one for the system (00 host, 0f setup,
01 guest, 02 boundary), then the first four bytes of SHA-256 over the text of the management controller's MAC
address, the deployment's name and a newline. IPv6 address: the site's /64 and the modified EUI-64 of that MAC
address (RFC 4291, appendix A).

Parsers raise UsageError.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NewType

from nodeos.core.errors import UsageError

IpVersion = Literal[4, 6]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Deployment = NewType("Deployment", str)

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}|[0-9a-f]{2}(?:-[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_DEPLOYMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_VERSION_BYTE: dict[IpVersion, int] = {4: 0x4A, 6: 0x6A}
# RFC 4291 (2.4) and RFC 4193: what another machine can have as its address beyond its own link.
_UNICAST6 = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("fc00::/7"))
# RFC 6890: this network, loopback, link-local. RFC 1112: multicast, reserved and broadcast.
_NOT_UNICAST4 = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)


class System(StrEnum):
    """The systems of one machine, each with network addresses of its own."""

    HOST = "host"
    SETUP = "setup"
    GUEST = "guest"
    BOUNDARY = "boundary"


_SYSTEM_BYTE = {System.HOST: 0x00, System.SETUP: 0x0F, System.GUEST: 0x01, System.BOUNDARY: 0x02}


@dataclass(frozen=True, slots=True, kw_only=True)
class MacAddress:
    """An EUI-48 of 6 bytes. As text: lower case with colons, the form that the network hashes."""

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != 6:
            raise ValueError("a MAC address has 6 bytes")

    def __str__(self) -> str:
        return self.data.hex(":")


def parse_mac(text: str) -> MacAddress:
    """The MAC address of one interface, written with colons or dashes, in lower or upper case."""
    if not _MAC.fullmatch(text):
        raise UsageError(f"{text!r} is no MAC address", hint="write it like 3c:ec:ef:6b:37:99")
    mac = MacAddress(data=bytes.fromhex(text.replace(text[2], "")))
    if mac.data[0] & 1 or not any(mac.data):
        raise UsageError(
            f"{mac} is the MAC address of no single interface",
            hint="take the one that the management controller (BMC) shows as its own",
        )
    return mac


def parse_deployment(text: str) -> Deployment:
    """The name of a network of nodes. It is hashed, so two spellings would be two networks: lower case only."""
    if not _DEPLOYMENT.fullmatch(text):
        raise UsageError(
            f"{text!r} is no deployment name",
            hint="such as mainnet: lower-case letters, digits and . _ -, at most 63, a letter or digit first",
        )
    return Deployment(text)


def parse_prefix(text: str) -> ipaddress.IPv6Network:
    """The site's IPv6 prefix, a /64 of unicast addresses."""
    hint = "write the site's prefix like 2001:db8:1:2::/64"
    try:
        prefix = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no IPv6 prefix: {error}", hint=hint) from error
    if prefix.prefixlen != 64 or "/" not in text or "%" in text:
        raise UsageError(f"{text!r} is no /64", hint=hint)
    require_unicast(prefix.network_address)
    return prefix


def parse_address(text: str) -> IpAddress:
    """The unicast IPv4 or IPv6 address of a machine that isn't on this link only."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no IP address",
            hint="write 2001:db8::1 or 192.0.2.1, without a prefix length or port",
        ) from error
    require_unicast(address)
    return address


def parse_network(text: str) -> IpNetwork:
    """An IPv4 or IPv6 prefix of unicast addresses alone; a single address stands for itself."""
    hint = "write 2001:db8::/48 or 192.0.2.0/24, without bits behind the prefix"
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no IP prefix: {error}", hint=hint) from error
    require_unicast_network(network)
    return network


def collapse(networks: Iterable[IpNetwork]) -> tuple[IpNetwork, ...]:
    """The fewest prefixes with the same addresses, IPv4 before IPv6, in the order of their numbers."""
    known = tuple(networks)
    return (
        *ipaddress.collapse_addresses(n for n in known if isinstance(n, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(n for n in known if isinstance(n, ipaddress.IPv6Network)),
    )


def require_unicast_network(network: IpNetwork) -> None:
    """Refuse a prefix that holds any address which ``require_unicast`` would refuse."""
    if isinstance(network, ipaddress.IPv6Network):
        good = any(network.subnet_of(whole) for whole in _UNICAST6)
        good = good and network.network_address.scope_id is None
    else:
        good = not any(network.overlaps(part) for part in _NOT_UNICAST4)
    if not good:
        raise UsageError(
            f"{str(network)!r} holds more than unicast addresses of machines in the network",
            hint="take a longer prefix of global or private addresses",
        )


def require_unicast(address: IpAddress) -> None:
    """Refuse addresses that no other machine can have: multicast, loopback, link-local, reserved and mapped.

    A zone ("%eth0") is refused too: it is free text that would go wherever the address is written.
    """
    if isinstance(address, ipaddress.IPv6Address):
        good = address.scope_id is None and any(address in network for network in _UNICAST6)
    else:
        good = not any(address in network for network in _NOT_UNICAST4)
    if not good:
        raise UsageError(
            f"{str(address)!r} is no unicast address of a machine in the network",
            hint="take a global or private address; IPv4 as plain IPv4, IPv6 without a zone",
        )


def system_mac(
    management: MacAddress, deployment: Deployment, system: System, *, version: IpVersion = 6
) -> MacAddress:
    """The MAC address of ``system`` on the machine whose management controller has ``management``."""
    digest = hashlib.sha256(f"{management}{deployment}\n".encode()).digest()
    return MacAddress(data=bytes((_VERSION_BYTE[version], _SYSTEM_BYTE[system])) + digest[:4])


def interface_id(mac: MacAddress) -> bytes:
    """The modified EUI-64, 8 bytes: ff:fe in the middle, the universal/local bit inverted."""
    data = mac.data
    return bytes((data[0] ^ 0x02,)) + data[1:3] + b"\xff\xfe" + data[3:]


def ipv6_address(prefix: ipaddress.IPv6Network, mac: MacAddress) -> ipaddress.IPv6Address:
    """The address that the interface with ``mac`` has under ``prefix`` (a /64)."""
    if prefix.prefixlen != 64:
        raise ValueError("an EUI-64 needs a /64")
    return prefix[int.from_bytes(interface_id(mac))]
