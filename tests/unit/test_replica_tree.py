"""Hash trees and certificates: the specification's example, witnesses, and each check broken alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.bls import SecretKey
from replica import cbor
from replica.certificate import (
    MAX_AGE,
    Certificate,
    CertificateError,
    encode,
    open_certificate,
    sign_root,
)
from replica.hashing import leb128
from replica.tree import (
    Empty,
    Fork,
    Labeled,
    Leaf,
    Path,
    Pruned,
    Tree,
    TreeError,
    build,
    find,
    from_cbor,
    join,
    labels,
    lookup,
    to_cbor,
    witness,
)

# Interface specification, section "Certification": example and its pruned form.
ROOT = "eb5c5b2195e62d996b84c9bcc8259d19a83786a2f59e0878cec84c811f669aa0"
FULL = (
    "8301830183024161830183018302417882034568656c6c6f810083024179820345776f726c6483024162820344676f6f64"
    "8301830241638100830241648203476d6f726e696e67"
)
PRUNED = (
    "83018301830241618301820458201b4feff9bef8131788b0c9dc6dbad6e81e524249c879e9f10f71ce3749f5a638"
    "83024179820345776f726c6483024162820458207b32ac0c6ba8ce35ac82c255fc7906f7fc130dab2a090f80fe12f9c2"
    "cae83ba6830182045820ec8324b8a1f1ac16bd2e806edba78006479c9877fed4eb464a25485465af601d830241648203"
    "476d6f726e696e67"
)


def read(text: str) -> Tree:
    return from_cbor(cbor.decode(bytes.fromhex(text)))


def test_example() -> None:
    assert read(FULL).digest.hex() == ROOT
    assert cbor.encode(to_cbor(read(FULL))).hex() == "d9d9f7" + FULL


def test_lookups_in_the_pruned_example() -> None:
    tree = read(PRUNED)
    assert tree.digest.hex() == ROOT
    assert lookup(tree, (b"a", b"y")) == b"world"
    assert lookup(tree, (b"d",)) == b"morning"
    assert find(tree, (b"aa",)) is None
    assert find(tree, (b"a", b"z")) is None
    assert find(tree, (b"e",)) is None
    for path in ((b"a", b"x"), (b"b",), (b"c",)):
        with pytest.raises(TreeError, match="pruned"):
            find(tree, path)


@pytest.mark.parametrize(
    "value",
    [[], [0, 1], [1, [0]], [2, "label", [0]], [3, "text"], [4, bytes(31)], [5, [0]], {}, None, [2, b"x"]],
)
def test_nodes_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(TreeError):
        from_cbor(value)


def test_depth_is_bounded() -> None:
    value: list[object] = [0]
    for _ in range(200):
        value = [2, b"x", value]
    with pytest.raises(TreeError, match="too deep"):
        from_cbor(value)


def test_a_leaf_is_not_a_map() -> None:
    with pytest.raises(TreeError, match="leaf"):
        find(build({b"a": Leaf(b"1")}), (b"a", b"b"))
    with pytest.raises(TreeError, match="no leaf"):
        lookup(build({b"a": Empty()}), (b"a",))


names = st.binary(min_size=1, max_size=2)


@given(st.dictionaries(names, st.dictionaries(names, st.binary(max_size=4)), max_size=20), st.data())
def test_witnesses_show_what_is_asked_and_prove_what_is_absent(
    content: dict[bytes, dict[bytes, bytes]], data: st.DataObject
) -> None:
    tree = build({k: build({i: Leaf(v) for i, v in inner.items()}) for k, inner in content.items()})
    present = [(k, i) for k, inner in content.items() for i in inner]
    paths = data.draw(
        st.lists(
            (st.sampled_from(present) if present else st.nothing()) | st.tuples(names, names), max_size=5
        )
    )
    shown = from_cbor(to_cbor(witness(tree, paths)))
    assert shown.digest == tree.digest
    for outer, inner in paths:
        assert lookup(shown, (outer, inner)) == content.get(outer, {}).get(inner)


@given(st.sets(st.binary(min_size=1, max_size=3), min_size=1), st.binary(min_size=1, max_size=3))
def test_witnesses_show_no_more_than_two_neighbours(keys: set[bytes], asked: bytes) -> None:
    shown = witness(build({key: Leaf(key) for key in keys}), [(asked,)])
    seen = [label for label, _ in labels(shown)]
    if asked in keys:
        assert seen == [asked]
        return
    below, above = [k for k in keys if k < asked], [k for k in keys if k > asked]
    assert seen == [*([max(below)] if below else []), *([min(above)] if above else [])]
    assert all(isinstance(tree, Pruned) for _, tree in labels(shown))


def test_nothing_asked_nothing_shown() -> None:
    tree = build({b"a": Leaf(b"1")})
    assert witness(tree, []) == Pruned(tree.digest)


def test_joined_parts_are_one_map() -> None:
    parts = [(bytes([n, 0]), build({bytes([n, m]): Leaf(b"x") for m in range(3)})) for n in range(5)]
    tree = join(parts)
    assert len(labels(tree)) == 15
    assert find(witness(tree, [(b"\x02\x01",)]), (b"\x02\x01",)) == Leaf(b"x")
    assert find(witness(tree, [(b"\x02\x09",)]), (b"\x02\x09",)) is None


# --- certificates ---

NOW = 1_700_000_000_000_000_000
KEY = SecretKey(b"\x01" * 32)


def signed(tree: Tree, paths: list[Path], *, key: SecretKey = KEY) -> bytes:
    return encode(witness(tree, paths), sign_root(key, tree.digest))


def state(time: int = NOW) -> Tree:
    return build({b"time": Leaf(leb128(time)), b"a": Leaf(b"1"), b"b": Leaf(b"2")})


def opened(data: bytes) -> Certificate:
    return open_certificate(data, root_key=KEY.public_key, now=NOW)


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(CertificateError) as caught:
        yield
    assert caught.value.code == code


def test_certificate() -> None:
    certificate = opened(signed(state(), [(b"a",), (b"time",)]))
    assert certificate.lookup(b"a") == b"1"
    with refused("certificate.path"):
        certificate.lookup(b"b")


def test_another_root_key_is_refused() -> None:
    with refused("certificate.signature"):
        opened(signed(state(), [()], key=SecretKey(b"\x02" * 32)))


def test_a_changed_value_is_refused() -> None:
    signature = sign_root(KEY, state().digest)
    other = build({b"time": Leaf(leb128(NOW)), b"a": Leaf(b"9"), b"b": Leaf(b"2")})
    with refused("certificate.signature"):
        opened(encode(other, signature))


@pytest.mark.parametrize("time", [NOW - MAX_AGE - 1, NOW + MAX_AGE + 1])
def test_an_old_or_future_certificate_is_refused(time: int) -> None:
    with refused("certificate.time"):
        opened(signed(state(time), [()]))


def test_a_certificate_without_time_is_refused() -> None:
    with refused("certificate.time"):
        opened(signed(build({b"a": Leaf(b"1")}), [()]))


def test_a_delegation_is_refused() -> None:
    fields = cbor.decode(signed(state(), [()]))
    assert isinstance(fields, dict)
    with refused("certificate.delegation"):
        opened(cbor.encode({**fields, "delegation": {"subnet_id": b"", "certificate": b""}}))


def test_what_is_no_certificate_is_refused() -> None:
    fields = cbor.decode(signed(state(), [()]))
    assert isinstance(fields, dict)
    wrongs: tuple[object, ...] = (
        [],
        {},
        {**fields, "signature": 1},
        {**fields, "tree": [9]},
        {**fields, "more": 1},
    )
    for wrong in wrongs:
        with refused("certificate.form"):
            opened(cbor.encode(wrong))


def test_forks_hash_without_their_split() -> None:
    one, two = Labeled(b"a", Empty()), Labeled(b"b", Empty())
    assert Fork(one, two, b"b") == Fork(one, two)
    assert Fork(one, two, b"b").digest == Fork(one, two).digest
