"""A pool: a folder with exactly the locked packages, which is a flat apt repository too.

A locked build reads its packages from a pool and from nowhere else, so it needs no network and can't get a version
that is not locked. The repository is not signed (``Trusted: yes``), and need not be: each file is pinned by the
SHA-256 in the lock, which is compared when the pool is filled, before each build, and again with what mkosi
installed from. A signature of Debian on an index would say less: it holds for every version that there ever was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from image import apt
from image.lock import Lock, Locked, stanzas
from nodeos.core.errors import Finding, RefusedError, ToolError
from nodeos.core.files import write_atomic
from nodeos.core.run import find_tool, run

HELPER = Path("/usr/lib/apt/apt-helper")
_BATCH = 24
# Between two words of progress.
_SECONDS = 2.0

Progress = Callable[[str], None]


class Origin(Protocol):
    """Where package files come from. What it brings need not be right: the pool checks it."""

    @property
    def name(self) -> str:
        """How people call it, within a sentence."""

    def bring(self, wanted: Sequence[Locked], directory: Path) -> None:
        """Put what it has of ``wanted`` into ``directory`` under ``file_name``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Files on this machine: another pool, or what apt has fetched before."""

    directory: Path
    name: str

    def bring(self, wanted: Sequence[Locked], directory: Path) -> None:
        for item in wanted:
            package = item.package
            # apt's cache names files by the whole version, with the epoch's colon escaped.
            cached = f"{package.name}_{package.version.replace(':', '%3a')}_{package.architecture}.deb"
            for name in (item.file_name, cached):
                source = self.directory / name
                # A cut file would be gone on with by the next origin, and that would write into this one's.
                if source.is_file() and source.stat().st_size == item.size:
                    target = directory / item.file_name
                    target.unlink(missing_ok=True)
                    try:
                        os.link(source, target)
                    except OSError:
                        shutil.copyfile(source, target)
                    break


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Files below an address, fetched by apt with the host's own settings (proxies, certificates).

    ``main`` and ``security`` are the bases of the two archives. A download that was cut is gone on with.
    """

    name: str
    main: str
    security: str | None

    def bring(self, wanted: Sequence[Locked], directory: Path) -> None:
        if not HELPER.is_file():
            raise ToolError(f"{HELPER} is not there", hint="it is part of the package apt")
        files: list[str | Path] = []
        for item in wanted:
            base = self.security if item.security else self.main
            if base is not None:
                files += [f"{base}/{item.path}", directory / item.file_name]
        if not files:
            return
        command = [HELPER, "-oAPT::Sandbox::User=root", "-oAcquire::Retries=2", "download-file", *files]
        try:
            run(command, what=f"fetching packages from {self.name}", timeout=1800)
        except ToolError:
            # One file that is not there fails the whole batch; the pool looks at what came.
            return


def mirror(archives: Sequence[apt.Archive] | None = None) -> Network:
    """The mirror that this host's apt uses."""
    archives = apt.host_archives() if archives is None else archives
    return Network(
        name="the package mirror",
        main=next(item.uri for item in archives if not item.security),
        security=next((item.uri for item in archives if item.security), None),
    )


def snapshot(base: str, moment: str) -> Network:
    """A snapshot service at ``base``, in the layout of Debian's: BASE/debian/TIME/pool/…"""
    base = base.rstrip("/")
    return Network(
        name="the snapshot service",
        main=f"{base}/debian/{moment}",
        security=f"{base}/debian-security/{moment}",
    )


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def fetch(lock: Lock, directory: Path, origins: Sequence[Origin], progress: Progress) -> None:
    """Fill ``directory`` with the packages of ``lock`` and write the repository's index.

    What is there already and right is kept, so that an interrupted run goes on where it was. Raises RefusedError
    with every package that no origin has with the locked hash; the others are there then.
    """
    partial = directory / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    missing = list(_not_right(lock.packages, directory))
    wrong: dict[str, str] = {}
    said = 0.0
    for origin in origins:
        left: list[Locked] = []
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            if time.monotonic() - said >= _SECONDS:
                said = time.monotonic()
                progress(f"packages: {start} of {len(missing)} from {origin.name}")
            origin.bring(batch, partial)
            for item in batch:
                if not _accept(item, partial, directory, origin, wrong):
                    left.append(item)
        missing = left
    if missing:
        raise RefusedError(
            f"{len(missing)} of {len(lock.packages)} locked packages can't be had",
            tuple(
                Finding(code="pool.file", message=wrong[item.file_name])
                if item.file_name in wrong
                else Finding(code="pool.missing", message=f"{item.package.name} {item.package.version}")
                for item in missing
            ),
            hint="name a snapshot service in NODEOS_SNAPSHOT or a pool with --pool, or update the lock with "
            "`nodeos image lock`",
        )
    partial.rmdir()
    write_index(lock, directory)


def _not_right(packages: Sequence[Locked], directory: Path) -> Iterator[Locked]:
    for item in packages:
        path = directory / item.file_name
        if not (path.is_file() and path.stat().st_size == item.size and digest_of(path) == item.sha256):
            yield item


def _accept(item: Locked, partial: Path, directory: Path, origin: Origin, wrong: dict[str, str]) -> bool:
    """Move what an origin brought to its place if it is the locked file. True if it is."""
    path = partial / item.file_name
    if not path.is_file():
        return False
    size = path.stat().st_size
    if size < item.size:
        # Cut: what is there may be gone on with.
        return False
    digest = digest_of(path)
    if digest != item.sha256:
        path.unlink()
        wrong[item.file_name] = (
            f"{item.package.name} {item.package.version}: {origin.name} has a file with SHA-256 "
            f"{digest.hex()}, locked is {item.sha256.hex()}"
        )
        return False
    path.replace(directory / item.file_name)
    return True


def write_index(lock: Lock, directory: Path) -> None:
    """Write ``Packages`` and ``Release``, from the packages' own control files. Equal locks give equal bytes.

    Raises RefusedError if a file says that it is another package than the locked one.
    """
    stamp = directory / ".lock"
    if stamp.is_file() and stamp.read_text() == lock.digest and (directory / "Packages").is_file():
        return
    tool = find_tool("dpkg-deb", package="dpkg")

    def control(item: Locked) -> str:
        return run([tool, "-f", directory / item.file_name], what=f"reading {item.file_name}").decode()

    with ThreadPoolExecutor(2) as threads:
        texts = list(threads.map(control, lock.packages))
    index, findings = [], []
    for item, text in zip(lock.packages, texts, strict=True):
        fields = next(stanzas(text), {})
        said = [fields.get(name, "") for name in ("Package", "Version", "Architecture")]
        if said != [item.package.name, item.package.version, item.package.architecture]:
            findings.append(Finding(code="pool.other", message=f"{item.file_name} holds {' '.join(said)}"))
        index.append(
            f"{text.rstrip()}\nFilename: ./{item.file_name}\nSize: {item.size}\nSHA256: {item.sha256.hex()}\n"
        )
    if findings:
        raise RefusedError("the lock's names don't fit its files", tuple(findings))
    data = "\n".join(index).encode()
    write_atomic(directory / "Packages", data)
    release = (
        "Origin: nodeos\nLabel: nodeos\nSuite: trixie\nCodename: trixie\nDate: Thu, 01 Jan 1970 00:00:00 UTC\n"
        "Architectures: amd64 all\nSHA256:\n"
        f" {hashlib.sha256(data).hexdigest()} {len(data)} Packages\n"
    )
    write_atomic(directory / "Release", release.encode())
    write_atomic(stamp, lock.digest.encode())


def sources(place: str) -> str:
    """The sources file for a pool that is at ``place`` where apt runs."""
    return f"Types: deb\nURIs: file:{place}\nSuites: ./\nTrusted: yes\n"
