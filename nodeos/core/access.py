"""Who may reach a node: what the registrar tells an inducted node, and what the node's firewall is opened for.

A node asks with the digest of the list that it has (``protocol.AccessRequest``), and gets the list only if it is
another one: at 896 nodes it has some 40 KB, which nobody needs again every few minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from nodeos.core.addresses import IpAddress, IpNetwork, collapse, parse_address, parse_network
from nodeos.core.errors import UsageError
from nodeos.core.firewall import MAX_CLIENTS, MAX_NODES, render
from nodeos.core.wire import Fields, ParseError, canonical_json, parse_json, parse_text

T = TypeVar("T")
# What a node states of itself; a machine with two ports has four or six.
MAX_ADDRESSES = 16
# MAX_NODES addresses and MAX_CLIENTS prefixes in their longest form.
LIMIT = 1 << 22


def parse_item(value: object, path: str) -> IpAddress:
    """The unicast address of a node, in a list."""
    return _with_path(parse_address, value, path)


def sorted_addresses(addresses: Iterable[IpAddress]) -> tuple[IpAddress, ...]:
    """Each once, IPv4 before IPv6, in the order of their numbers."""
    return tuple(sorted(set(addresses), key=lambda address: (address.version, int(address))))


def _parse_prefix(value: object, path: str) -> IpNetwork:
    return _with_path(parse_network, value, path)


def _with_path(parse: Callable[[str], T], value: object, path: str) -> T:
    text = parse_text(value, path)
    try:
        return parse(text)
    except UsageError as error:
        raise ParseError(f"{path}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessList:
    """``nodes`` are the addresses of all nodes in the registry. ``clients`` are the prefixes from which boundary
    nodes and operators reach the replica's HTTP port: those of the node's data centre."""

    nodes: tuple[IpAddress, ...]
    clients: tuple[IpNetwork, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": [str(address) for address in sorted_addresses(self.nodes)],
            "clients": [str(prefix) for prefix in collapse(self.clients)],
        }

    def to_bytes(self) -> bytes:
        """Equal for lists that let the same in, in whatever order they stand."""
        return canonical_json(self.to_json())

    @property
    def digest(self) -> bytes:
        """SHA-256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def ruleset(self) -> str:
        """The firewall that lets these in and nobody else."""
        return render(self.nodes, clients=self.clients)

    @classmethod
    def parse(cls, fields: Fields) -> AccessList:
        """Raises ParseError with the path of the first wrong entry."""
        access = cls(
            nodes=fields.list_of("nodes", parse_item, limit=MAX_NODES),
            clients=fields.list_of("clients", _parse_prefix, limit=MAX_CLIENTS),
        )
        fields.done()
        return access


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessAnswer:
    """``access`` is None if the node has the list already."""

    access: AccessList | None

    def to_bytes(self) -> bytes:
        return canonical_json({"access": None if self.access is None else self.access.to_json()})

    @classmethod
    def parse(cls, data: bytes) -> AccessAnswer:
        fields = parse_json(data, "answer", limit=LIMIT)
        answer = cls(access=AccessList.parse(fields.nested("access")) if fields.has("access") else None)
        fields.done()
        return answer
