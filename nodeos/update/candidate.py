"""A release that may be installed: its files, verified against the release key that this system trusts.

``read_candidate`` checks everything that the files alone can tell: the signature of release.json, size and SHA-256
of each file, and that UKI, root hash and verity signature belong together. What it returns is data; ``preflight``
holds it against the machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.pe import authenticode, section_contents, signatures
from nodeos.core.release import BootPhase, Release, Variant, check_signature
from nodeos.core.signed_data import check_authenticode
from nodeos.core.statepolicy import PolicySignature, PolicySignatures
from nodeos.core.verity import root_hash_problem, verity_problem

UKI, LOADER, ROOT, VERITY, SIGNATURE = "nodeos.efi", "boot.efi", "root.raw", "verity.raw", "verity-sig.json"
RELEASE, RELEASE_SIGNATURE = "release.json", "release.sig"
NEEDED = (UKI, LOADER, ROOT, VERITY, SIGNATURE)
# In the order in which they are applied: a new signer is known before an old one is revoked.
VARIABLES = ("KEK", "db", "dbx")
_LIMIT = 1 << 30
_CHUNK = 1 << 20

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A signed PE image: its Authenticode digest, and its signer's certificate (DER)."""

    digest: bytes
    signer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the preflight needs of a release. ``updates`` are its .auth files of KEK, db and dbx, by variable;
    ``root_hash_problem`` and ``verity_problem`` say why the parts don't belong together, None if they do."""

    version: str
    variant: Variant
    root_hash: bytes
    security_version: int
    rollback_floor: int
    sizes: Mapping[str, int]
    uki: Image
    loader: Image
    policies: tuple[PolicySignature, ...]
    pcr11: bytes
    updates: Mapping[str, bytes]
    root_hash_problem: str | None
    verity_problem: str | None


def files_of(release: Release) -> tuple[str, ...]:
    """The artefacts that a node needs."""
    optional = [f"{name}.auth" for name in VARIABLES if f"{name}.auth" in release.artefacts]
    return (*NEEDED, *optional)


def read_release(directory: Path, trusted: Sequence[bytes]) -> Release:
    """The signed manifest. Raises RefusedError if no trusted key signed it."""
    data = read_file(directory / RELEASE, "release manifest", limit=1 << 20)
    return check_signature(
        data, read_file(directory / RELEASE_SIGNATURE, "release signature", limit=1 << 16), trusted
    )


def read_candidate(
    directory: Path,
    trusted: Sequence[bytes],
    verity: Sequence[x509.Certificate],
    advance: Advance | None = None,
) -> tuple[Candidate, Release]:
    """``advance`` is told of each lot of bytes that was hashed. Raises RefusedError with every wrong file."""
    release = read_release(directory, trusted)
    problems = [p for name in files_of(release) if (p := _check_file(directory, name, release, advance))]
    if problems:
        raise RefusedError(
            f"the release {release.version} in {directory} is damaged",
            tuple(problems),
            hint="fetch it again",
        )
    return _candidate(directory, release, verity), release


def _candidate(directory: Path, release: Release, verity: Sequence[x509.Certificate]) -> Candidate:
    uki = read_file(directory / UKI, "UKI", limit=_LIMIT)
    loader = read_file(directory / LOADER, "boot loader", limit=_LIMIT)
    sections = section_contents(uki, UKI)
    policies = PolicySignatures.parse(sections.get(".pcrsig", b""), f"{UKI}: .pcrsig")
    signature = read_file(directory / SIGNATURE, "verity signature", limit=1 << 16)
    updates = {name: directory / f"{name}.auth" for name in VARIABLES}
    return Candidate(
        version=release.version,
        variant=release.variant,
        root_hash=release.root_hash,
        security_version=release.security_version,
        rollback_floor=release.rollback_floor,
        sizes={name: release.artefacts[name].size for name in files_of(release)},
        uki=read_image(uki, UKI),
        loader=read_image(loader, LOADER),
        policies=policies.signatures,
        pcr11=release.pcr11["sha256"][BootPhase.ENTER_INITRD],
        updates={
            name: read_file(path, path.name, limit=1 << 16)
            for name, path in updates.items()
            if path.name in release.artefacts
        },
        root_hash_problem=root_hash_problem(sections.get(".cmdline", b""), release.root_hash),
        verity_problem=verity_problem(signature, release.root_hash, verity),
    )


def read_image(data: bytes, what: str) -> Image:
    """Raises UsageError for an image that doesn't have exactly one signature that holds."""
    digest = authenticode(data, what)
    found = signatures(data, what)
    if len(found) != 1:
        raise UsageError(f"{what}: {len(found)} signatures, expected one")
    try:
        certificates = pkcs7.load_der_pkcs7_certificates(found[0])
    except ValueError as error:
        raise UsageError(f"{what}: a signature that can't be read: {error}") from error
    if len(certificates) != 1:
        raise UsageError(
            f"{what}: its signature carries {len(certificates)} certificates, expected the signer's"
        )
    check_authenticode(found[0], certificates[0], digest)
    return Image(digest=digest, signer=certificates[0].public_bytes(Encoding.DER))


def _check_file(directory: Path, name: str, release: Release, advance: Advance | None) -> Finding | None:
    artefact = release.artefacts.get(name)
    if artefact is None:
        return Finding(code="artefact.missing", message=f"{name}: the manifest doesn't name it")
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        return Finding(code="artefact.missing", message=f"{name}: {error.strerror}")
    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as file:
        while size <= artefact.size and (part := file.read(_CHUNK)):
            digest.update(part)
            size += len(part)
            if advance is not None:
                advance(len(part))
    if size != artefact.size:
        return Finding(code="artefact.size", message=f"{name}: not the {artefact.size} bytes of the manifest")
    if digest.digest() != artefact.sha256:
        return Finding(code="artefact.hash", message=f"{name}: its SHA-256 is not the manifest's")
    return None
