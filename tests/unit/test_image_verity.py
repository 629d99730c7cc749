"""The hash tree is veritysetup's and openssl takes its signature; each refusal breaks just one check."""

from __future__ import annotations

import hashlib
import random
import re
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from image import assemble, verity
from image.keys import KeySet, make_keys
from image.verity import BLOCK, RootHashSignature, Superblock
from nodeos.core.errors import UsageError
from nodeos.core.run import find_tool, run

SALT = bytes(range(32))


def made(directory: Path, blocks: int) -> tuple[Path, Path, bytes]:
    """A file of random blocks, its tree, and its root hash."""
    root, tree = directory / "root.raw", directory / "verity.raw"
    root.write_bytes(random.Random(blocks).randbytes(blocks * BLOCK))
    root_hash, hashes = verity.hash_tree(root, SALT)
    tree.write_bytes(Superblock(uuid=bytes(range(16)), blocks=blocks, salt=SALT).to_bytes() + hashes)
    return root, tree, root_hash


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 300, 128 * 128 + 1])
def test_veritysetup_makes_the_same(blocks: int, tmp_path: Path) -> None:
    root, tree, root_hash = made(tmp_path, blocks)
    other = tmp_path / "other"
    words = run(
        [find_tool("veritysetup", package="cryptsetup-bin"), "format", "--salt", SALT.hex(),
         "--uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f", root, other],
        what="veritysetup",
    ).decode()  # fmt: skip
    found = re.search(r"Root hash:\s*([0-9a-f]{64})", words)
    assert found is not None
    assert found[1] == root_hash.hex()
    assert other.read_bytes() == tree.read_bytes()
    verity.check(root, tree, root_hash)
    tree.write_bytes(tree.read_bytes() + bytes(BLOCK))
    verity.check(root, tree, root_hash)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def test_each_difference_is_refused(tmp_path: Path) -> None:
    def refused(words: str, root_hash: bytes | None = None) -> None:
        with pytest.raises(UsageError, match=words):
            verity.check(root, tree, root_hash or good)
        made(tmp_path, 300)

    root, tree, good = made(tmp_path, 300)
    refused("has the root hash", bytes(32))
    flip(root, 299 * BLOCK + 7)
    refused("has the root hash")
    for offset in (BLOCK, BLOCK + 3 * 32, 2 * BLOCK, 2 * BLOCK + 300 * 32, tree.stat().st_size - 1):
        flip(tree, offset)
        refused("is not the hash tree")
    tree.write_bytes(tree.read_bytes()[:-BLOCK])
    refused("is not the hash tree")
    tree.write_bytes(tree.read_bytes() + bytes(BLOCK - 1) + b"\1")
    refused("is not the hash tree")
    root.write_bytes(root.read_bytes() + bytes(BLOCK))
    refused("is for 300 blocks")
    flip(tree, 88)
    refused("has the root hash")
    for offset in (0, 8, 12, 32, 64, 68, 82, 88 + 40, 400, 600):
        flip(tree, offset)
        refused("superblock|not of the one form")
    tree.write_bytes(b"")
    refused("no verity superblock")
    root.write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="whole blocks"):
        verity.hash_tree(root, SALT)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    keys = KeySet(directory=tmp_path_factory.mktemp("keys"))
    make_keys(keys, ["verity", "db"], identities={}, pin=None)
    return keys


def signed(keys: KeySet, root_hash: bytes) -> bytes:
    with keys.signer("verity", lambda _: "") as signer:
        return verity.sign(root_hash, signer, keys.certificate("verity"))


def test_openssl_accepts_the_signature(keys: KeySet, tmp_path: Path) -> None:
    signature, content = tmp_path / "p7", tmp_path / "content"
    root_hash = hashlib.sha256(b"root").digest()
    signature.write_bytes(signed(keys, root_hash))
    assert signature.read_bytes() == signed(keys, root_hash)
    for value, code in ((root_hash, 0), (bytes(32), 4)):
        content.write_bytes(value.hex().encode())
        done = subprocess.run(
            ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", signature, "-content", content,
             "-CAfile", keys.public_file("verity"), "-purpose", "any", "-out", "/dev/null"],
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr


def test_signatures(keys: KeySet) -> None:
    root_hash = bytes(32)
    signature, certificate = signed(keys, root_hash), keys.certificate("verity")
    verity.check_signature(signature, root_hash, certificate)
    with pytest.raises(UsageError, match="isn't by the key"):
        verity.check_signature(signature, b"\1" * 32, certificate)
    with pytest.raises(UsageError, match="another certificate"):
        verity.check_signature(signature, root_hash, keys.certificate("db"))
    document = RootHashSignature(
        root_hash=root_hash, fingerprint=verity.fingerprint(certificate), signature=signature
    )
    assert RootHashSignature.parse(document.to_bytes()) == document
    assert document.fingerprint == hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    with pytest.raises(UsageError, match="unknown field"):
        RootHashSignature.parse(document.to_bytes()[:-1] + b',"more":1}')


def test_superblock_is_512_bytes() -> None:
    assert struct.calcsize("<8sII16s32sIIQH6s256s168s") == 512


@given(st.binary(max_size=200), st.integers(0, BLOCK - 1), st.binary(min_size=1, max_size=40))
def test_parsers_refuse_and_nothing_else(data: bytes, offset: int, patch: bytes) -> None:
    with pytest.raises(UsageError):
        RootHashSignature.parse(data)
    with pytest.raises(UsageError):
        assemble.parse_accepted_list(data)
    good = Superblock(uuid=bytes(16), blocks=7, salt=SALT).to_bytes()
    changed = (good[:offset] + patch + good[offset + len(patch) :])[:BLOCK]
    try:
        assert Superblock.parse(changed).to_bytes() == changed
    except UsageError:
        assert changed != good
