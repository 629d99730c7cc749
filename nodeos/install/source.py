"""A release directory, checked before anything of it is used: the manifest's signature, then every file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeos.core import layout
from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Artefact, Release, check_signature

_CHUNK = 4 << 20
# What an installation needs of a release, and the room that the layout has for it.
NEEDED: dict[str, int] = {
    "boot.efi": 16 << 20, "nodeos.efi": 256 << 20, "PK.auth": 1 << 20, "KEK.auth": 1 << 20, "db.auth": 1 << 20,
    "root.raw": layout.ROOT_SIZE, "verity.raw": layout.VERITY_SIZE, "verity-sig.json": layout.SIGNATURE_SIZE,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A release whose manifest is signed by a trusted key. ``digest`` is the manifest's SHA-256."""

    directory: Path
    release: Release
    digest: bytes

    @property
    def version(self) -> str:
        return self.release.version

    @property
    def root_hash(self) -> bytes:
        return self.release.root_hash

    @property
    def artefacts(self) -> Mapping[str, Artefact]:
        return self.release.artefacts

    def read(self, name: str) -> bytes:
        """A file of the release, checked. Raises RefusedError if it isn't what the manifest says."""
        wanted = self.artefacts.get(name)
        if wanted is None:
            raise UsageError(f"{self.directory / 'release.json'} does not know {name}")
        data = read_file(self.directory / name, "the release's file", limit=NEEDED.get(name, 1 << 24))
        if len(data) != wanted.size or hashlib.sha256(data).digest() != wanted.sha256:
            raise _refused(self.directory, [_differs(name)])
        return data

    def check_files(self, report: Callable[[str, int, int], None]) -> None:
        """Every file that is installed, held against the manifest. Raises RefusedError with all that differ."""
        names = [*NEEDED, *(["dbx.auth"] if "dbx.auth" in self.artefacts else [])]
        found, done, total = [], 0, sum(self.artefacts[name].size for name in names)
        report("check", 0, total)
        for name in names:
            path, wanted = self.directory / name, self.artefacts[name]
            digest = hashlib.sha256()
            for data in _chunks(path, wanted.size):
                digest.update(data)
                done += len(data)
                report("check", done, total)
            if digest.digest() != wanted.sha256 or path.stat().st_size != wanted.size:
                found.append(_differs(name))
        if found:
            raise _refused(self.directory, found)


def read_release(directory: Path, trusted: Sequence[bytes]) -> Source:
    """The release in ``directory``; ``trusted`` are release keys (DER). Only the manifest is read and checked.

    Raises RefusedError if none of the keys signed it, UsageError for what is missing, misshapen or too large.
    """
    path = directory / "release.json"
    manifest = read_file(path, "the release manifest", limit=1 << 20)
    signature = read_file(directory / "release.sig", "the release's signature", limit=1 << 16)
    release = check_signature(manifest, signature, trusted)
    layout.check_version(release.version)
    for name, room in NEEDED.items():
        if name not in release.artefacts:
            raise UsageError(f"{path} does not know {name}", hint="name the folder of a signed release")
        size = release.artefacts[name].size
        if size > room:
            raise UsageError(f"{path}.artefacts.{name}: {size} bytes, there is room for {room}")
    return Source(directory=directory, release=release, digest=hashlib.sha256(manifest).digest())


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while size > 0 and (data := file.read(min(_CHUNK, size))):
                size -= len(data)
                yield data
    except OSError as error:
        raise UsageError(
            f"the release's file {path}: {error.strerror}", hint="get the release again"
        ) from error


def _differs(name: str) -> Finding:
    return Finding(code="release.file", message=f"{name} is not what the manifest says")


def _refused(directory: Path, found: list[Finding]) -> RefusedError:
    return RefusedError(
        f"{directory} is damaged; nothing was written",
        tuple(found),
        hint="get the release again, and use no disk that was written with it",
    )
