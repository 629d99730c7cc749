"""Writes a release to the other slot. Cut off at any point, the machine starts the running version, and the same
command finishes the work.

In this order:

1. copy the release into a directory that only root can write; everything is verified on that copy, so nobody
   can exchange a file between the check and the use of it
2. verify and preflight; a refusal leaves nothing behind
3. keep what the next boot needs after its blessing (boot loader, KEK.auth, db.auth, dbx.auth)
4. if the boot loader's content changed: the new one, since PCR 4 must be the new release's; the running version
   still starts under it
5. systemd-sysupdate: root, hash tree and signature into the other slot, the UKI last. Until the UKI is there
   under its own name, systemd-boot knows nothing of the new version
6. a version that is there already, tried and given up: it gets its tries again
7. on a declared rollback, the running version is set aside: it is newer, and would be started first

systemd-sysupdate runs with ``Verify=no``: what it would check is a list of hashes signed with OpenPGP, and the
node has no OpenPGP key. Step 2 checked the same files, by the release key.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.layout import SIGNATURE_SIZE, signature_uuid
from nodeos.core.release import Release
from nodeos.core.run import run
from nodeos.update.candidate import (
    LOADER,
    RELEASE,
    RELEASE_SIGNATURE,
    ROOT,
    SIGNATURE,
    UKI,
    VARIABLES,
    VERITY,
    Candidate,
    files_of,
    read_candidate,
    read_release,
)
from nodeos.update.entries import DIRECTORY, TRIES, BootEntry, of_version, read_entries, rollback_renames
from nodeos.update.machine import LOADERS, Paths, trusted_release_keys, verity_certificates
from nodeos.update.preflight import Facts, preflight

SYSUPDATE = Path("/usr/lib/systemd/systemd-sysupdate")
_CHUNK = 1 << 20

Tell = Callable[[str], None]
Install = Callable[[Paths, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was written. ``started_next``: the version that the next boot tries."""

    version: str
    started_next: str
    rollback: bool


def check(
    paths: Paths, directory: Path, gather: Callable[[], Facts], *, rollback: bool = False
) -> tuple[Candidate, Release]:
    """Everything that ``apply`` would refuse; writes nothing. Raises RefusedError with every reason."""
    candidate, release = read_candidate(directory, trusted_release_keys(paths), verity_certificates(paths))
    problems = preflight(gather(), candidate, rollback=rollback)
    if problems:
        raise RefusedError(
            f"the release {candidate.version} can't be installed here",
            tuple(problem.finding for problem in problems),
            hint="nothing was changed",
        )
    return candidate, release


def apply(
    paths: Paths,
    directory: Path,
    gather: Callable[[], Facts],
    tell: Tell,
    *,
    rollback: bool = False,
    install: Install | None = None,
    ours: bool = False,
) -> Applied:
    """Install the release in ``directory``; the next boot starts it. Can be run again after an interruption.

    ``ours``: nobody but root can write there, and it lies on the state volume; large files need no copy then.
    """
    _make_empty(paths.staging)
    try:
        if not ours:
            tell("copying the release")
        _copy(paths, directory, link=ours)
        tell("verifying it, and this machine's way to it")
        facts: list[Facts] = []

        def gather_once() -> Facts:
            facts.append(gather())
            return facts[-1]

        candidate, release = check(paths, paths.staging, gather_once, rollback=rollback)
        _check_installed(paths, candidate, release)
        _keep_pending(paths, release)
        if facts[-1].loader.digest != candidate.loader.digest:
            tell("writing the boot loader")
            write_loader(paths.esp, read_file(paths.pending / LOADER, "boot loader", limit=1 << 26))
        tell("writing the other slot")
        _offer(paths, candidate)
        (install or run_sysupdate)(paths, candidate.version)
        _activate(paths, facts[-1].version, candidate.version, rollback=rollback)
    finally:
        shutil.rmtree(paths.staging, ignore_errors=True)
        shutil.rmtree(paths.incoming, ignore_errors=True)
    return Applied(version=candidate.version, started_next=candidate.version, rollback=rollback)


def run_sysupdate(paths: Paths, version: str) -> None:
    """Does nothing if this version is in the other slot already."""
    run(
        [SYSUPDATE, f"--definitions={paths.definitions}", "--verify=no", "update", version],
        what=f"write the version {version} to the other slot",
        timeout=1800,
        hint="the running version is untouched; run the update again",
    )


def partition_uuids(root_hash: bytes) -> dict[str, uuid.UUID]:
    """The UUIDs by which the initrd finds a slot (systemd-veritysetup-generator(8), nodeos.core.layout)."""
    return {
        ROOT: uuid.UUID(bytes=root_hash[:16]),
        VERITY: uuid.UUID(bytes=root_hash[16:]),
        SIGNATURE: signature_uuid(root_hash),
    }


def write_loader(esp: Path, data: bytes) -> tuple[str, ...]:
    """Replace the boot loader where it differs; returns the paths that were written."""
    written = []
    for name in LOADERS:
        path = esp / name
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)
            written.append(str(name))
    return tuple(written)


def _copy(paths: Paths, directory: Path, *, link: bool) -> None:
    for name in (RELEASE, RELEASE_SIGNATURE):
        _copy_file(directory / name, paths.staging / name)
    # Its names decide what else is copied: no other file of a stranger's directory is touched.
    release = read_release(paths.staging, trusted_release_keys(paths))
    for name in files_of(release):
        # One that the manifest leaves out is told by the check that follows.
        if name in release.artefacts and link and name in (ROOT, VERITY, UKI):
            _link_file(directory / name, paths.staging / name)
        elif name in release.artefacts:
            _copy_file(directory / name, paths.staging / name, limit=release.artefacts[name].size + 1)


def _copy_file(source: Path, target: Path, limit: int = 1 << 20) -> None:
    """At most ``limit`` bytes: a wrong size is told by the check that follows."""
    try:
        with source.open("rb") as file, target.open("xb") as copy:
            while limit > 0 and (part := file.read(min(_CHUNK, limit))):
                copy.write(part)
                limit -= len(part)
    except FileNotFoundError as error:
        raise UsageError(f"the release lacks {source.name}", hint=f"see {source.parent}") from error


def _link_file(source: Path, target: Path) -> None:
    """The same file once more. None of those that are linked is changed later."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError as error:
        raise UsageError(f"the release lacks {source.name}", hint=f"see {source.parent}") from error


def _check_installed(paths: Paths, candidate: Candidate, release: Release) -> None:
    """A version that is on the ESP already must be this very release: sysupdate goes by the version alone."""
    entry = of_version(read_entries(paths.esp), candidate.version)
    if entry is None:
        return
    import hashlib

    found = hashlib.sha256((paths.esp / DIRECTORY / entry.name).read_bytes()).digest()
    if found != release.artefacts[UKI].sha256:
        words = (
            f"another release that calls itself {candidate.version} is installed; give each its own version"
        )
        raise RefusedError(
            f"the release {candidate.version} can't be installed here",
            (Finding(code="version.taken", message=words),),
            hint="nothing was changed",
        )


def _keep_pending(paths: Paths, release: Release) -> None:
    _make_empty(paths.pending)
    names = [LOADER, RELEASE_SIGNATURE, *(f"{name}.auth" for name in VARIABLES)]
    # The manifest comes last: with it, the directory is whole.
    for name in (*(n for n in names if (paths.staging / n).exists()), RELEASE):
        write_atomic(paths.pending / name, (paths.staging / name).read_bytes())


def _offer(paths: Paths, candidate: Candidate) -> None:
    """The files under the names that the transfer definitions look for."""
    _make_empty(paths.incoming)
    # systemd reads the whole partition and takes nothing but zeros after the JSON: none of an older one may stay.
    signature = paths.staging / SIGNATURE
    os.truncate(signature, SIGNATURE_SIZE)
    kinds = {ROOT: "root.raw", VERITY: "verity.raw", SIGNATURE: "verity-sig.raw"}
    for name, number in partition_uuids(candidate.root_hash).items():
        (paths.staging / name).rename(paths.incoming / f"nodeos_{candidate.version}_{number}.{kinds[name]}")
    (paths.staging / UKI).rename(paths.incoming / f"nodeos_{candidate.version}.efi")


def _activate(paths: Paths, running: str, target: str, *, rollback: bool) -> None:
    """See to it that the next boot tries ``target``."""
    entries = read_entries(paths.esp)
    entry = of_version(entries, target)
    if entry is None:
        raise NodeosError(f"the UKI of {target} is not on the ESP", hint="run the update again")
    if rollback:
        renames = rollback_renames(entries, running, target)
    elif entry.startable:
        renames = ()
    else:
        renames = ((entry.name, BootEntry(version=target, left=TRIES).name),)
    directory = paths.esp / DIRECTORY
    for old, new in renames:
        (directory / old).rename(directory / new)
        _sync(directory)


def _make_empty(directory: Path) -> None:
    if directory.is_symlink() or directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, mode=0o700)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
