"""Fetches the files of an offered release. Nothing is trusted for where it comes from.

The manifest must be the offered one (SHA-256) and be signed by a release key of the running image; only then are
files fetched, each no longer than the manifest says. What is there already counts: a file with its right hash is
not fetched again, and a part of one is gone on with. ``nodeos.update.apply`` verifies everything once more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError
from nodeos.core.files import write_atomic
from nodeos.core.protocol import Offer
from nodeos.core.release import Artefact, Release, check_signature
from nodeos.update.candidate import RELEASE, RELEASE_SIGNATURE, files_of

# What must stay free on the state volume once the files are there, in bytes.
MARGIN = 256 << 20
# How often nobody may answer, or the connection end, before the next attestation tries again.
TRIES = 5
_PAUSE = 5.0
# A power cut costs at most so many bytes of what was fetched.
_SYNCED = 8 << 20
_CHUNK = 1 << 18
_MANIFEST_LIMIT, _SIGNATURE_LIMIT = 1 << 20, 1 << 16

T = TypeVar("T")
Tell = Callable[[str], None]
Wait = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A file from ``start`` on, which is 0 where the server can't begin in the middle."""

    start: int
    parts: Iterator[bytes]


class Source(Protocol):
    """The folder that the offer names. Raises UnreachableError, or NodeosError for an answer of no use."""

    def open(self, name: str, start: int) -> AbstractContextManager[Answer]: ...


@dataclass(slots=True, kw_only=True)
class Progress:
    """Says so at every tenth of ``total`` bytes."""

    total: int
    tell: Tell
    done: int = 0
    told: int = 0

    def add(self, size: int) -> None:
        self.done += size
        tenth = 10 * self.done // max(self.total, 1)
        if tenth > self.told:
            self.told = tenth
            self.tell(f"fetched {10 * tenth} % of {self.total >> 20} MiB")


def fetch(
    offer: Offer, source: Source, directory: Path, trusted: Sequence[bytes], *, tell: Tell, wait: Wait
) -> Path:
    """The release in ``directory``. Can be interrupted and called again.

    Raises RefusedError for what no further try would mend; UnreachableError and NodeosError for the rest.
    """
    release = _manifest(offer, source, directory, trusted, wait)
    names = files_of(release)
    if missing := [name for name in names if name not in release.artefacts]:
        finding = Finding(code="artefact.missing", message=f"the manifest doesn't name {', '.join(missing)}")
        raise _refusal(offer, finding)
    total = sum(release.artefacts[name].size for name in names)
    _check_room(offer, directory, total)
    progress = Progress(total=total, tell=tell)
    tell(f"fetching {release.version}: {total >> 20} MiB from {offer.url}")
    for name in names:
        _file(source, directory / name, release.artefacts[name], progress, wait)
    return directory


def _manifest(offer: Offer, source: Source, directory: Path, trusted: Sequence[bytes], wait: Wait) -> Release:
    document = _small(source, RELEASE, _MANIFEST_LIMIT, wait)
    if hashlib.sha256(document).digest() != offer.manifest:
        words = f"the manifest at {offer.url} is not the one that the registrar offers"
        raise _refusal(offer, Finding(code="offer.manifest", message=words))
    signature = _small(source, RELEASE_SIGNATURE, _SIGNATURE_LIMIT, wait)
    release = check_signature(document, signature, trusted)
    if release.version != offer.version:
        words = f"the manifest is for {release.version}"
        raise _refusal(offer, Finding(code="offer.version", message=words))
    kept = directory / RELEASE
    if directory.exists() and not (kept.exists() and kept.read_bytes() == document):
        # Of another release.
        shutil.rmtree(directory)
    directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    write_atomic(kept, document)
    write_atomic(directory / RELEASE_SIGNATURE, signature)
    return release


def _check_room(offer: Offer, directory: Path, total: int) -> None:
    there = sum(path.stat().st_size for path in directory.iterdir())
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize + there
    if free < total + MARGIN:
        words = f"{free >> 20} MiB are free on the state volume, {(total + MARGIN) >> 20} MiB are needed"
        raise _refusal(offer, Finding(code="state.space", message=words))


def _refusal(offer: Offer, finding: Finding) -> RefusedError:
    return RefusedError(f"the offered release {offer.version} is refused", (finding,), hint="offer it anew")


def _small(source: Source, name: str, limit: int, wait: Wait) -> bytes:
    def get() -> bytes:
        data = b""
        with source.open(name, 0) as answer:
            for part in answer.parts:
                data += part
                if len(data) > limit:
                    raise NodeosError(f"{name}: larger than {limit} bytes")
        return data

    return _tried(get, wait, lambda: 0)


def _file(source: Source, path: Path, artefact: Artefact, progress: Progress, wait: Wait) -> None:
    """One file, whole and with its right hash."""
    if path.exists() and _digest(path) == artefact.sha256:
        progress.add(artefact.size)
        return
    path.unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.part")
    size = part.stat().st_size if part.exists() else 0
    if size > artefact.size:
        part.unlink()
        size = 0
    progress.add(size)

    def get() -> None:
        _append(source, path.name, part, artefact.size, progress)

    _tried(get, wait, lambda: part.stat().st_size if part.exists() else 0)
    if _digest(part) != artefact.sha256:
        # The next try begins at the beginning.
        part.unlink()
        progress.done -= artefact.size
        raise NodeosError(
            f"{path.name}: its SHA-256 is not the manifest's", hint="see what lies at the offered address"
        )
    part.replace(path)


def _append(source: Source, name: str, part: Path, size: int, progress: Progress) -> None:
    start = part.stat().st_size if part.exists() else 0
    if start == size and part.exists():
        return
    with source.open(name, start) as answer, part.open("r+b" if part.exists() else "wb") as file:
        if answer.start not in (0, start):
            raise NodeosError(f"{name}: the server began at byte {answer.start}, asked for {start}")
        progress.done -= start - answer.start
        place = answer.start
        file.seek(place)
        file.truncate()
        for data in answer.parts:
            place += len(data)
            if place > size:
                raise NodeosError(f"{name}: longer than the {size} bytes of the manifest")
            file.write(data)
            if place // _SYNCED > (place - len(data)) // _SYNCED:
                file.flush()
                os.fsync(file.fileno())
            progress.add(len(data))
        file.flush()
        os.fsync(file.fileno())
    if place < size:
        raise UnreachableError(f"{name}: the connection ended after {place} of {size} bytes")


def _tried(get: Callable[[], T], wait: Wait, reached: Callable[[], int]) -> T:
    """The tries begin anew when one of them got further."""
    left, before = TRIES, reached()
    while True:
        try:
            return get()
        except UnreachableError:
            now = reached()
            left = TRIES if now > before else left - 1
            before = max(before, now)
            if left <= 0:
                raise
            wait(_PAUSE)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
