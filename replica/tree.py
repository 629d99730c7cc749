"""Hash trees: a map of labels to subtrees with one hash, of which any part can be shown and proven.

Source: interface specification, section "Certification" (labeled, fork, leaf, pruned and empty nodes).
A reader who asks for a path that isn't there is shown both neighbours of it, which proves its absence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from nodeos.core.errors import NodeosError

Path = tuple[bytes, ...]
_MAX_DEPTH = 128


class TreeError(NodeosError):
    """A hash tree that is malformed, or that doesn't hold what was looked up."""


def _digest(domain: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(len(domain).to_bytes(1, "big") + domain + b"".join(parts)).digest()


_EMPTY = _digest(b"ic-hashtree-empty")


@dataclass(frozen=True, slots=True)
class Empty:
    digest: bytes = _EMPTY


@dataclass(frozen=True, slots=True)
class Leaf:
    value: bytes
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(b"ic-hashtree-leaf", self.value))


@dataclass(frozen=True, slots=True)
class Labeled:
    label: bytes
    tree: Tree
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(b"ic-hashtree-labeled", self.label, self.tree.digest))


@dataclass(frozen=True, slots=True)
class Fork:
    """``split`` is the first label on the right, where it is known: it isn't part of the hash."""

    left: Tree
    right: Tree
    split: bytes = field(default=b"", compare=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(b"ic-hashtree-fork", self.left.digest, self.right.digest))


@dataclass(frozen=True, slots=True)
class Pruned:
    digest: bytes


Tree: TypeAlias = Empty | Leaf | Labeled | Fork | Pruned


def build(children: Mapping[bytes, Tree]) -> Tree:
    """The tree of a map, balanced. Labels are sorted as bytes."""
    return join([(label, Labeled(label, children[label])) for label in sorted(children)])


def join(parts: Sequence[tuple[bytes, Tree]]) -> Tree:
    """One map of several, each with its first label, in ascending order and not overlapping."""
    if not parts:
        return Empty()
    if len(parts) == 1:
        return parts[0][1]
    middle = (len(parts) + 1) // 2
    return Fork(join(parts[:middle]), join(parts[middle:]), parts[middle][0])


def witness(tree: Tree, paths: Iterable[Path]) -> Tree:
    """The tree with everything pruned that isn't needed to show ``paths``, or to prove them absent.

    ``tree`` must have been made by ``build`` and ``join``.
    """
    wanted = set(paths)
    if () in wanted:
        return tree
    shown: dict[bytes, set[Path]] = {}
    for path in wanted:
        found = _neighbours(tree, path[0])
        for label in found:
            rest = shown.setdefault(label, set())
            if label == path[0]:
                rest.add(path[1:])
    if isinstance(tree, Leaf | Empty) and wanted:
        return tree
    return _cut(tree, shown)


def _neighbours(tree: Tree, label: bytes) -> tuple[bytes, ...]:
    """The label itself if it is there, else the one before and the one behind its place."""
    before: Tree | None = None
    behind: tuple[bytes, ...] = ()
    while isinstance(tree, Fork):
        if label < tree.split:
            behind, tree = (tree.split,), tree.left
        else:
            before, tree = tree.left, tree.right
    if not isinstance(tree, Labeled):
        return ()
    if tree.label == label:
        return (label,)
    if tree.label < label:
        return (tree.label, *behind)
    while isinstance(before, Fork):
        before = before.right
    return (before.label, tree.label) if isinstance(before, Labeled) else (tree.label,)


def _cut(tree: Tree, shown: Mapping[bytes, set[Path]]) -> Tree:
    if not shown:
        return Pruned(tree.digest)
    match tree:
        case Fork():
            left = {label: rest for label, rest in shown.items() if label < tree.split}
            right = {label: rest for label, rest in shown.items() if label >= tree.split}
            return Fork(_cut(tree.left, left), _cut(tree.right, right), tree.split)
        case Labeled():
            return Labeled(tree.label, witness(tree.tree, shown[tree.label]))
        case _:
            return tree


def to_cbor(tree: Tree) -> list[object]:
    """Nested lists, as certificates carry them."""
    match tree:
        case Empty():
            return [0]
        case Fork():
            return [1, to_cbor(tree.left), to_cbor(tree.right)]
        case Labeled():
            return [2, tree.label, to_cbor(tree.tree)]
        case Leaf():
            return [3, tree.value]
        case Pruned():
            return [4, tree.digest]


def from_cbor(value: object, depth: int = 0) -> Tree:
    """Read nested lists. Raises TreeError."""
    if depth > _MAX_DEPTH:
        raise TreeError("hash tree: too deep")
    match value:
        case [0]:
            return Empty()
        case [1, left, right]:
            return Fork(from_cbor(left, depth + 1), from_cbor(right, depth + 1))
        case [2, bytes() as label, subtree]:
            return Labeled(label, from_cbor(subtree, depth + 1))
        case [3, bytes() as data]:
            return Leaf(data)
        case [4, bytes() as digest] if len(digest) == 32:
            return Pruned(digest)
        case _:
            raise TreeError("hash tree: a node that isn't one")


def find(tree: Tree, path: Path) -> Tree | None:
    """The subtree at ``path``; None if the tree proves that there is none.

    Raises TreeError if the tree doesn't tell, because that part is pruned.
    """
    for depth, label in enumerate(path):
        found = _child(tree, label)
        if found is None:
            return None
        if isinstance(found, Pruned):
            where = "/".join(part.decode(errors="backslashreplace") for part in path[: depth + 1])
            raise TreeError(f"hash tree: {where} is pruned: neither there nor proven absent")
        tree = found
    return tree


def lookup(tree: Tree, path: Path) -> bytes | None:
    """The value of the leaf at ``path``; None if it is proven absent. Raises TreeError otherwise."""
    found = find(tree, path)
    if found is None:
        return None
    if not isinstance(found, Leaf):
        raise TreeError("hash tree: no leaf at that path")
    return found.value


def labels(tree: Tree) -> list[tuple[bytes, Tree]]:
    """The labels that a map shows, in order, with their subtrees."""
    return [(node.label, node.tree) for node in _flatten(tree) if isinstance(node, Labeled)]


def _child(tree: Tree, label: bytes) -> Tree | None:
    """The subtree of a label in a map, Pruned if unknown, None if surely absent."""
    gap_before = False
    for node in _flatten(tree):
        match node:
            case Labeled() if node.label == label:
                return node.tree
            case Labeled() if node.label > label:
                return Pruned(node.digest) if gap_before else None
            case Labeled():
                gap_before = False
            case Leaf():
                raise TreeError("hash tree: a leaf where a map was expected")
            case Pruned():
                gap_before = True
            case _:
                pass
    return Pruned(_EMPTY) if gap_before else None


def _flatten(tree: Tree) -> list[Tree]:
    return _flatten(tree.left) + _flatten(tree.right) if isinstance(tree, Fork) else [tree]
