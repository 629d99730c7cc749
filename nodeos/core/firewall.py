"""The firewall of a node: an nftables ruleset that is closed but for the nodes in the registry.

Only text is made here; nothing is loaded. The ruleset replaces the table ``inet nodeos`` in one transaction and
touches no other table. What no rule accepts is dropped: without nodes and clients every service is closed.
Rules of limits accept what is inside the limit, and don't drop what is over it: should the kernel be unable to
count (its set is full), the packet is dropped too.

Nodes and clients are counted in sets of their own: clients, of which a prefix may hold any number, can't take the
room that nodes need. Loading it anew starts the counts per source anew.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from nodeos.core.addresses import (
    IpAddress,
    IpNetwork,
    collapse,
    parse_address,
    require_unicast,
    require_unicast_network,
)
from nodeos.core.errors import UsageError

# The kernel keeps a count for each node that connects; every node of the list must have room.
MAX_NODES = 1 << 16
# Prefixes; of their addresses so many are counted at once as there may be nodes.
MAX_CLIENTS = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What registry nodes may reach, and how often. The defaults are the network's.

    ``client_port`` is the one TCP port that clients reach: the replica's HTTP. ``connections``: at the same time
    from one source address, over all services. ``new_per_minute``: connections begun from one source address, of
    which ``burst`` may come at once.
    """

    tcp_ports: tuple[int, ...] = (22, 2497, 4100, 8080)
    udp_ports: tuple[int, ...] = (4100,)
    client_port: int = 8080
    connections: int = 1000
    new_per_minute: int = 1000
    burst: int = 500

    def __post_init__(self) -> None:
        for port in (*self.tcp_ports, *self.udp_ports, self.client_port):
            if not 1 <= port <= 65535:
                raise UsageError(f"{port} is no port", hint="ports are 1 to 65535")
        if not self.tcp_ports and not self.udp_ports:
            raise UsageError("no port is given", hint="to close all, give no node")
        for name in ("connections", "new_per_minute", "burst"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise UsageError(
                    f"{name}: {getattr(self, name)} is no limit", hint="give at least 1, less than 2^31"
                )


def parse_nodes(text: str, what: str) -> tuple[IpAddress, ...]:
    """Addresses, one on a line with comments after ``#``, or as a JSON list. ``what`` names it in errors."""
    if text.lstrip().startswith("["):
        return _nodes_of_json(text, what)
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        word = line.partition("#")[0].strip()
        if word:
            found.append(_parse(word, f"{what}: line {number}"))
    return tuple(found)


def _nodes_of_json(text: str, what: str) -> tuple[IpAddress, ...]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{what}: line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what}: not JSON: {error}") from error
    found = []
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise UsageError(f"{what}[{index}]: not a text", hint='write ["2001:db8::1", "192.0.2.1"]')
        found.append(_parse(item, f"{what}[{index}]"))
    return tuple(found)


def _parse(word: str, where: str) -> IpAddress:
    try:
        return parse_address(word)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error


def render(
    nodes: Iterable[IpAddress], settings: Settings | None = None, *, clients: Iterable[IpNetwork] = ()
) -> str:
    """The ruleset for ``nft --file``. Equal nodes, clients and settings give equal text, whatever their order.

    Raises UsageError for what is no unicast address, and for more than MAX_NODES addresses or MAX_CLIENTS
    prefixes.
    """
    settings = settings or Settings()
    distinct = set(nodes)
    for address in distinct:
        require_unicast(address)
    if len(distinct) > MAX_NODES:
        raise UsageError(f"{len(distinct)} addresses of nodes, at most {MAX_NODES} can be counted")
    nodes4 = sorted(address for address in distinct if isinstance(address, ipaddress.IPv4Address))
    nodes6 = sorted(address for address in distinct if isinstance(address, ipaddress.IPv6Address))
    prefixes = set(clients)
    for prefix in prefixes:
        require_unicast_network(prefix)
    if len(prefixes) > MAX_CLIENTS:
        raise UsageError(f"{len(prefixes)} prefixes of clients, at most {MAX_CLIENTS} are allowed")
    # nftables refuses a set in which one prefix holds another.
    collapsed = collapse(prefixes)
    services = [f"tcp . {port}" for port in sorted(set(settings.tcp_ports))]
    services += [f"udp . {port}" for port in sorted(set(settings.udp_ports))]
    return _TEMPLATE.format(
        services=_elements(services),
        nodes4=_elements(nodes4),
        nodes6=_elements(nodes6),
        clients4=_elements(prefix for prefix in collapsed if prefix.version == 4),
        clients6=_elements(prefix for prefix in collapsed if prefix.version == 6),
        size=MAX_NODES,
        accept4=_accept("ip", "nodes4", "meta l4proto . th dport @services", settings),
        accept6=_accept("ip6", "nodes6", "meta l4proto . th dport @services", settings),
        accept_clients4=_accept("ip", "clients4", f"tcp dport {settings.client_port}", settings),
        accept_clients6=_accept("ip6", "clients6", f"tcp dport {settings.client_port}", settings),
    )


def _elements(values: Iterable[object]) -> str:
    """The line of a set that lists its elements; nftables wants none for an empty set."""
    text = ",\n\t\t\t".join(str(value) for value in values)
    return f"\n\t\telements = {{\n\t\t\t{text}\n\t\t}}" if text else ""


def _accept(family: str, sources: str, service: str, settings: Settings) -> str:
    """The rule that lets ``sources`` in: each part that does not match ends it, and then the policy drops."""
    limit = f"limit rate {settings.new_per_minute}/minute burst {settings.burst} packets"
    return (
        f"ct state new {family} saddr @{sources} {service}"
        f" update @{sources}_new {{ {family} saddr {limit} }}"
        f" add @{sources}_connections {{ {family} saddr ct count {settings.connections} }} accept"
    )


# ICMP errors count only when they belong to a connection of ours (RFC 4890, 4.3; conntrack says "related").
# Neighbour discovery must come from this link: its hop limit is 255 then (RFC 4861), and MLD's source is local.
# "table, delete table, table": the first makes the second succeed when there is no such table yet.
_TEMPLATE = """\
table inet nodeos
delete table inet nodeos
table inet nodeos {{
	set services {{
		type inet_proto . inet_service{services}
	}}
	set nodes4 {{
		type ipv4_addr{nodes4}
	}}
	set nodes6 {{
		type ipv6_addr{nodes6}
	}}
	set clients4 {{
		type ipv4_addr
		flags interval{clients4}
	}}
	set clients6 {{
		type ipv6_addr
		flags interval{clients6}
	}}
	set nodes4_new {{
		type ipv4_addr
		size {size}
		flags dynamic,timeout
		timeout 1m
	}}
	set nodes4_connections {{
		type ipv4_addr
		size {size}
		flags dynamic
	}}
	set nodes6_new {{
		type ipv6_addr
		size {size}
		flags dynamic,timeout
		timeout 1m
	}}
	set nodes6_connections {{
		type ipv6_addr
		size {size}
		flags dynamic
	}}
	set clients4_new {{
		type ipv4_addr
		size {size}
		flags dynamic,timeout
		timeout 1m
	}}
	set clients4_connections {{
		type ipv4_addr
		size {size}
		flags dynamic
	}}
	set clients6_new {{
		type ipv6_addr
		size {size}
		flags dynamic,timeout
		timeout 1m
	}}
	set clients6_connections {{
		type ipv6_addr
		size {size}
		flags dynamic
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state invalid drop
		ct state established accept
		ct state related icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
		ct state related icmpv6 type {{ destination-unreachable, packet-too-big }} accept
		ct state related icmpv6 type {{ time-exceeded, parameter-problem }} accept
		icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
		icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept
		icmp type echo-request limit rate 100/second burst 100 packets accept
		icmpv6 type echo-request limit rate 100/second burst 100 packets accept
		meta nfproto ipv4 udp sport 67 udp dport 68 accept
		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
		{accept4}
		{accept6}
		{accept_clients4}
		{accept_clients6}
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
	}}
}}
"""
