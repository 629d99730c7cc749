"""The dm-verity hash tree of the root file system, and the signature of its root hash.

Format: as ``veritysetup format`` writes it (cryptsetup, "DM-Verity on-disk specification", version 1): a
superblock of 512 bytes in the first 4096, then the tree, its top level first. Hash type 1 (SHA-256 of salt and
block), 4096 bytes a block. The signature file is that of systemd's verity signature partitions (Discoverable
Partitions Specification): JSON with a detached PKCS #7 signature over the root hash in hex. Every refusal is a
UsageError.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from image import pkcs7
from image.pkcs7 import RsaSigner
from nodeos.core.errors import UsageError
from nodeos.core.wire import b64, canonical_json, parse_json

BLOCK = 4096
_DIGESTS = BLOCK // 32
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6s256s168s")
_MAGIC = b"verity\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What the tree says of itself. ``blocks`` is how many data blocks there are."""

    uuid: bytes
    blocks: int
    salt: bytes

    def to_bytes(self) -> bytes:
        """A whole block."""
        return _SUPERBLOCK.pack(
            _MAGIC, 1, 1, self.uuid, b"sha256", BLOCK, BLOCK, self.blocks, len(self.salt), bytes(6),
            self.salt, bytes(168),
        ).ljust(BLOCK, b"\0")  # fmt: skip

    @classmethod
    def parse(cls, block: bytes, what: str = "verity.raw") -> Superblock:
        """Refuses every form but the one that ``to_bytes`` writes."""
        if len(block) != BLOCK or block[:8] != _MAGIC:
            raise UsageError(f"{what}: no verity superblock")
        _, _, _, uuid, _, _, _, blocks, salt_size, _, salt, _ = _SUPERBLOCK.unpack_from(block)
        found = cls(uuid=uuid, blocks=blocks, salt=salt[: min(salt_size, 256)])
        if found.to_bytes() != block:
            raise UsageError(
                f"{what}: not of the one form that is used (version 1, sha256, 4096 bytes a block)"
            )
        return found


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _level(salt: bytes, blocks: Iterator[bytes]) -> bytes:
    """The digests of blocks, padded to whole blocks."""
    start = hashlib.sha256(salt)
    digests = bytearray()
    for block in blocks:
        digest = start.copy()
        digest.update(block)
        digests += digest.digest()
    return bytes(digests.ljust(-(-len(digests) // BLOCK) * BLOCK, b"\0"))


def hash_tree(root: Path, salt: bytes) -> tuple[bytes, bytes]:
    """The root hash of a file system, and the tree without its superblock. Raises UsageError unless the file
    holds whole blocks."""
    size = root.stat().st_size
    if size == 0 or size % BLOCK:
        raise UsageError(f"{root}: not a number of whole blocks of {BLOCK} bytes")
    levels: list[bytes] = []
    blocks, count = _blocks(root), size // BLOCK
    while count > 1:
        level = _level(salt, blocks)
        levels.insert(0, level)
        count = len(level) // BLOCK
        blocks = iter([level[start : start + BLOCK] for start in range(0, len(level), BLOCK)])
    return hashlib.sha256(salt + next(blocks)).digest(), b"".join(levels)


def check(root: Path, verity: Path, root_hash: bytes) -> None:
    """Compute the tree of ``root`` and hold it to ``verity`` and the root hash. Raises UsageError."""
    data = verity.read_bytes()
    superblock = Superblock.parse(data[:BLOCK], verity.name)
    if superblock.blocks * BLOCK != root.stat().st_size:
        raise UsageError(
            f"{verity.name} is for {superblock.blocks} blocks of {BLOCK} bytes, not for {root.name}"
        )
    found, tree = hash_tree(root, superblock.salt)
    if found != root_hash:
        raise UsageError(f"{root.name} has the root hash {found.hex()}, expected {root_hash.hex()}")
    rest = data[BLOCK:]
    if rest[: len(tree)] != tree or any(rest[len(tree) :]):
        raise UsageError(f"{verity.name} is not the hash tree of {root.name}")


def sign(root_hash: bytes, signer: RsaSigner, certificate: x509.Certificate) -> bytes:
    """The detached signature of a root hash, DER PKCS #7: the same bytes each time."""
    return pkcs7.sign(signer, certificate, message=root_hash.hex().encode())


def check_signature(signature: bytes, root_hash: bytes, certificate: x509.Certificate) -> None:
    """Raises UsageError unless the certificate's key has signed the root hash."""
    pkcs7.verify(signature, certificate, message=root_hash.hex().encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class RootHashSignature:
    """The content of a verity signature partition; ``fingerprint`` is SHA-256 of the DER certificate."""

    root_hash: bytes
    fingerprint: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "rootHash": self.root_hash.hex(),
                "certificateFingerprint": self.fingerprint.hex(),
                "signature": b64(self.signature),
            }
        )

    @classmethod
    def parse(cls, data: bytes, what: str = "verity-sig.json") -> RootHashSignature:
        fields = parse_json(data, what, limit=1 << 20)
        parsed = cls(
            root_hash=fields.hexadecimal("rootHash", length=32),
            fingerprint=fields.hexadecimal("certificateFingerprint", length=32),
            signature=fields.data("signature", limit=1 << 16),
        )
        fields.done()
        return parsed


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER certificate."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
