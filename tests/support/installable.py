"""A small signed release directory that can be installed, and a signed site. Nothing in it boots."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.identity import FileSigner
from hsm.keys import private_pem, public_der
from nodeos.core.principal import Principal
from nodeos.core.release import Artefact, ReleaseSignature, signatures_to_bytes, signed_message
from nodeos.core.site import SIGNATURE_DOMAIN, SignedSite, SiteConfig
from nodeos.core.wire import canonical_json
from nodeos.install.source import Source, read_release
from tests.support import evidence

MIB = 1 << 20
ROOT_HASH = bytes(range(32))
CONTENT = {
    "boot.efi": random.Random(1).randbytes(120_000),
    "nodeos.efi": random.Random(2).randbytes(3 * MIB + 5),
    # Zeros inside, more than a chunk, and an end in the middle of a sector of 4096 bytes.
    "root.raw": random.Random(3).randbytes(5 * MIB) + bytes(9 * MIB) + random.Random(4).randbytes(MIB + 512),
    "verity.raw": random.Random(5).randbytes(200_000),
    "verity-sig.json": b'{"rootHash":"00"}',
    "PK.auth": b"PK update", "KEK.auth": b"KEK update", "db.auth": b"db update",
    "packages.json": b"[]",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Installable:
    """The folder of a release, its keys, and a site with an operator."""

    directory: Path
    release_key: Ed25519PrivateKey
    site_key: Ed25519PrivateKey
    operator: EllipticCurvePrivateKey
    site: SignedSite

    @property
    def trusted(self) -> tuple[bytes, ...]:
        return (public_der(self.release_key.public_key()),)

    def source(self) -> Source:
        return read_release(self.directory, self.trusted)

    def sign(self, **changes: Any) -> None:
        """Write the manifest of the files that are there, and its signature."""
        files = {path.name: path.read_bytes() for path in self.directory.iterdir() if path.suffix != ".sig"}
        files.pop("release.json", None)
        artefacts = {
            name: Artefact(size=len(data), sha256=hashlib.sha256(data).digest())
            for name, data in files.items()
        }
        wanted = {"version": "0.2.0", "root_hash": ROOT_HASH, "artefacts": artefacts, **changes}
        manifest = replace(evidence.release(), **wanted).to_bytes()
        signature = ReleaseSignature(
            key=hashlib.sha256(self.trusted[0]).digest(),
            algorithm="ed25519",
            signature=self.release_key.sign(signed_message(manifest)),
        )
        (self.directory / "release.json").write_bytes(manifest)
        (self.directory / "release.sig").write_bytes(signatures_to_bytes([signature]))

    def write_keys(self, folder: Path) -> None:
        """site/, site.pub.pem, release.pub.pem, and the operator's identity, for the command line."""
        for name, key in (("site", self.site_key), ("release", self.release_key)):
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (folder / f"{name}.pub.pem").write_bytes(pem)
        (folder / "site").mkdir()
        (folder / "site/site.json").write_bytes(self.site.document)
        (folder / "site/site.sig").write_bytes(self.site.signature)
        key_file = folder / "operator.key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(private_pem(self.operator))
        (folder / "operator.json").write_bytes(canonical_json({"kind": "file", "key": "operator.key"}))


def make(directory: Path) -> Installable:
    """A new release in ``directory``, which must not be there."""
    directory.mkdir()
    for name, data in CONTENT.items():
        (directory / name).write_bytes(data)
    operator, site_key = generate_private_key(SECP256R1()), Ed25519PrivateKey.generate()
    config = SiteConfig(
        data_center="zh1", registrar_url="https://registrar.example.org:8443", registrar_ca="a certificate",
        operator=Principal.self_authenticating(FileSigner(operator).public_key), node_reward_type="type1",
        operator_key=evidence.spki(evidence.RECOVERY),
    )  # fmt: skip
    document = config.to_bytes()
    made = Installable(
        directory=directory, release_key=Ed25519PrivateKey.generate(), site_key=site_key, operator=operator,
        site=SignedSite(document=document, signature=site_key.sign(SIGNATURE_DOMAIN + document)),
    )  # fmt: skip
    made.sign()
    return made
