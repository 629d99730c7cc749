"""The state tree: what of the replica's state is certified, and under which paths.

Source: interface specification, section "The system state tree". Parts that didn't change keep their trees:
canisters by identity, request statuses in 256 buckets by their first byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hsm.bls import public_key_to_der
from nodeos.core.principal import Principal
from replica import cbor
from replica.hashing import leb128
from replica.state import Canister, Reply, RequestStatus, canister_id
from replica.tree import Labeled, Leaf, Tree, build, join

# The numbers that this subnet may give to canisters.
FIRST_CANISTER, LAST_CANISTER = 0, (1 << 20) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """Who certifies: a subnet of one node that is its own root. ``public_key`` is the 96-byte BLS key,
    ``node_key`` the node's Ed25519 SubjectPublicKeyInfo."""

    public_key: bytes
    node_key: bytes

    @property
    def root_key(self) -> bytes:
        """The 133-byte form that agents pin."""
        return public_key_to_der(self.public_key)

    @property
    def id(self) -> Principal:
        return Principal.self_authenticating(self.root_key)

    @property
    def node_id(self) -> Principal:
        return Principal.self_authenticating(self.node_key)


class StateTree:
    """Builds the tree of a state. Not safe to use from several threads at once."""

    def __init__(self, subnet: Subnet) -> None:
        first, last = canister_id(FIRST_CANISTER).raw, canister_id(LAST_CANISTER).raw
        ranges = Leaf(cbor.encode([[first, last]]))
        node = build({b"public_key": Leaf(subnet.node_key)})
        self._fixed: dict[bytes, Tree] = {
            b"canister_ranges": build({subnet.id.raw: build({first: ranges})}),
            b"subnet": build(
                {
                    subnet.id.raw: build(
                        {
                            b"canister_ranges": ranges,
                            b"node": build({subnet.node_id.raw: node}),
                            b"public_key": Leaf(subnet.root_key),
                            b"type": Leaf(b"application"),
                        }
                    )
                }
            ),
        }
        self._canisters: dict[bytes, tuple[Canister, Tree]] = {}
        self._buckets: list[dict[bytes, Tree]] = [{} for _ in range(256)]
        self._bucket_trees: list[Tree | None] = [None] * 256

    def add_request(self, request: RequestStatus) -> None:
        bucket = request.id[0]
        self._buckets[bucket][request.id] = Labeled(request.id, _request_tree(request))
        self._bucket_trees[bucket] = None

    def remove_request(self, raw: bytes) -> None:
        self._buckets[raw[0]].pop(raw, None)
        self._bucket_trees[raw[0]] = None

    def root(self, time: int, canisters: Mapping[Principal, Canister]) -> Tree:
        """The whole tree at a ``time`` in nanoseconds since 1970."""
        return build(
            {
                **self._fixed,
                b"time": Leaf(leb128(time)),
                b"canister": self._canister_tree(canisters),
                b"request_status": self._requests(),
            }
        )

    def _requests(self) -> Tree:
        parts: list[tuple[bytes, Tree]] = []
        for number, bucket in enumerate(self._buckets):
            if not bucket:
                continue
            tree = self._bucket_trees[number]
            if tree is None:
                tree = self._bucket_trees[number] = join([(key, bucket[key]) for key in sorted(bucket)])
            # Any label between the buckets will do; the first that may be in this one is sure to be.
            parts.append((min(bucket), tree))
        return join(parts)

    def _canister_tree(self, canisters: Mapping[Principal, Canister]) -> Tree:
        trees: dict[bytes, Tree] = {}
        for principal, canister in canisters.items():
            known = self._canisters.get(principal.raw)
            if known is None or known[0] is not canister:
                known = self._canisters[principal.raw] = canister, _canister(canister)
            trees[principal.raw] = known[1]
        return build(trees)


def _canister(canister: Canister) -> Tree:
    parts: dict[bytes, Tree] = {
        b"controllers": Leaf(cbor.encode([p.raw for p in canister.controllers])),
        b"certified_data": Leaf(canister.certified_data),
    }
    if canister.code is not None:
        parts[b"module_hash"] = Leaf(canister.code.module_hash)
        sections = {name.encode(): Leaf(content) for name, _, content in canister.code.metadata}
        if sections:
            parts[b"metadata"] = build(sections)
    return build(parts)


def _request_tree(request: RequestStatus) -> Tree:
    outcome = request.outcome
    if isinstance(outcome, Reply):
        return build({b"status": Leaf(b"replied"), b"reply": Leaf(outcome.data)})
    return build(
        {
            b"status": Leaf(b"rejected"),
            b"reject_code": Leaf(leb128(outcome.code)),
            b"reject_message": Leaf(outcome.message.encode()),
            b"error_code": Leaf(str(outcome.error_code).encode()),
        }
    )
