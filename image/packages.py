"""Which Debian packages a build gets, and what it got in the end.

``select`` runs before mkosi: it fills the pool with the locked packages, or tells why it can't. ``check`` and
``manifest`` run after it, on what dpkg says in each tree.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from image import apt, mkosi, pool
from image.lock import (
    Candidate,
    Drift,
    Lock,
    Package,
    Role,
    assemble,
    changes,
    drift,
    parse_index,
    parse_status,
)
from nodeos.core.errors import Finding, NodeosError, RefusedError, ToolError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.release import Variant
from nodeos.core.wire import canonical_json

LOCK = Path("image/packages.lock")
# mkosi binds the folder of fetched packages into each sandbox in which apt runs: a pool there is seen by all.
_ARCHIVES = Path("cache/packages/cache/apt/archives")
_SEEN = "/var/cache/apt/archives/pool"
_TREE = "debian~trixie~x86-64"


class Policy(StrEnum):
    """What to do about packages that are not as locked."""

    LOCKED = "locked"  # end the build
    ALLOW_DRIFT = "allow-drift"  # build with the mirror's where the locked can't be had; the manifest says so
    MIRROR = "mirror"  # don't look at the lock: what `image lock` builds with


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Where this build's packages come from. ``sources`` is apt's sources file inside mkosi's sandbox."""

    lock: Lock | None
    variant: Variant
    locked: bool
    reasons: tuple[str, ...]
    sources: bytes
    mkosi: Path | None


def read_lock(source: Path) -> Lock:
    """The lock of a source tree."""
    return Lock.parse(read_file(source / LOCK, "package lock"), str(LOCK))


def select(
    source: Path,
    work: Path,
    variant: Variant,
    *,
    policy: Policy = Policy.LOCKED,
    pool_: Path | None = None,
    snapshot: str | None = None,
    progress: pool.Progress,
) -> Selection:
    """Choose the packages of a build and bring them to where mkosi's sandbox sees them.

    With ``pool_`` nothing but that folder is used. Raises RefusedError with the packages that drifted, unless the
    policy allows it.
    """
    if pool_ is not None and policy is not Policy.LOCKED:
        raise UsageError("--pool and --allow-drift exclude each other", hint="a pool has the locked packages")
    lock = None if policy is Policy.MIRROR else read_lock(source)
    archives = work / _ARCHIVES
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    reasons: tuple[str, ...] = ()
    if lock is not None:
        try:
            pool.fetch(lock, archives / "pool", _origins(lock, archives, pool_, snapshot), progress)
        except RefusedError as error:
            if policy is not Policy.ALLOW_DRIFT:
                raise explain(error, work) if pool_ is None else error from error
            reasons = tuple(finding.message for finding in error.findings)
            progress(f"packages: {len(reasons)} can't be had as locked; using the mirror's")
    locked = lock is not None and not reasons
    _drop_stale_trees(work, lock.digest if lock is not None and locked else "mirror")
    # Found before the pool is named: a build from a pool needs no mirror at all.
    sources = pool.sources(_SEEN) if locked else apt.sources(apt.host_archives())
    package = (
        next((archives / "pool" / item.file_name for item in lock.of(Role.MKOSI)), None) if lock else None
    )
    return Selection(
        lock=lock,
        variant=variant,
        locked=locked,
        reasons=reasons,
        sources=sources.encode(),
        mkosi=package if locked else None,
    )


def _origins(lock: Lock, archives: Path, folder: Path | None, snapshot: str | None) -> list[pool.Origin]:
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="make a pool with `nodeos image pool fetch`")
        return [pool.Folder(directory=folder, name=f"the pool {folder}")]
    return [pool.Folder(directory=archives, name="what was fetched before"), *network(lock, snapshot)]


def network(lock: Lock, snapshot: str | None) -> list[pool.Origin]:
    """The places outside this machine that may have locked packages."""
    return [pool.mirror(), *([pool.snapshot(snapshot, lock.time)] if snapshot else [])]


def explain(error: RefusedError, work: Path) -> NodeosError:
    """Tell a mirror that has moved on from one that can't be reached: what it has instead of each package."""
    try:
        apt.update(work / "tools/apt")
    except ToolError:
        return ToolError(f"no network to the package mirror, and {error.message}", hint=error.hint)
    there: dict[str, set[str]] = {}
    for item in candidates(work / "tools/apt/lists"):
        there.setdefault(item.package.name, set()).add(item.package.version)
    findings = tuple(
        Finding(
            code=finding.code,
            message=f"{finding.message}: the mirror has {', '.join(sorted(found))} now"
            if (found := there.get(finding.message.split()[0])) and finding.code == "pool.missing"
            else finding.message,
        )
        for finding in error.findings
    )
    message = str(error.args[0]).partition("\n")[0]
    return RefusedError(message, findings, hint=error.hint)


def candidates(lists: Path) -> list[Candidate]:
    """Every package in the indexes that apt has fetched into ``lists``."""
    return [item for suite, path in apt.lists(lists) for item in parse_index(path.read_text(), suite)]


def _drop_stale_trees(work: Path, key: str) -> None:
    """Remove mkosi's cached trees if they were made from other packages: mkosi itself doesn't look."""
    stamp = work / "cache/packages.stamp"
    if stamp.is_file() and stamp.read_text() == key:
        return
    drop_trees(work)
    write_atomic(stamp, key.encode())


def drop_trees(work: Path) -> None:
    """Remove mkosi's cached trees and package lists, so that the next build installs everything anew."""
    (work / "cache/packages.stamp").unlink(missing_ok=True)
    stale = [
        *(work / "cache").glob("image-*"),
        work / "cache/initrd",
        work / "mkosi/tools",
        work / "mkosi.build",
    ]
    # Lists of another source would be read again: apt keeps what it doesn't know to be old.
    stale.append(work / "cache/packages/lib")
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


def installed(work: Path, variant: Variant) -> dict[Role, frozenset[Package]]:
    """What dpkg says is in each tree of the last build in ``work``. Raises ToolError if a tree is missing."""
    image = work / f"cache/image-{variant}"
    trees = {
        Role.ROOT: image / f"{_TREE}.cache",
        Role.BUILD: image / f"{_TREE}.build.cache",
        Role.INITRD: work / f"cache/initrd/{_TREE}.cache",
        Role.TOOLS: work / "mkosi/tools",
    }
    found: dict[Role, frozenset[Package]] = {}
    for role, tree in trees.items():
        path = tree / "var/lib/dpkg/status"
        if not path.is_file():
            raise ToolError(f"{path} is not there", hint="the build's caches are incomplete: remove them")
        found[role] = parse_status(path.read_text())
    # The build's overlay holds all of the root too.
    found[Role.BUILD] = found[Role.BUILD] - found[Role.ROOT]
    return found


def hashes(
    work: Path, trees: Mapping[Role, frozenset[Package]], lock: Lock | None
) -> dict[Package, bytes | None]:
    """SHA-256 of the file that each package was installed from; None if it is gone.

    With a ``lock`` that was the pool's, without one what apt fetched.
    """
    archives = work / _ARCHIVES
    pooled = {item.package: archives / "pool" / item.file_name for item in lock.packages} if lock else {}
    found: dict[Package, bytes | None] = {}
    for item in {package for packages in trees.values() for package in packages}:
        fetched = archives / f"{item.name}_{item.version.replace(':', '%3a')}_{item.architecture}.deb"
        path = pooled.get(item) if lock else fetched
        found[item] = pool.digest_of(path) if path is not None and path.is_file() else None
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a build installed, and where that differs from the lock."""

    trees: dict[Role, frozenset[Package]]
    hashes: dict[Package, bytes | None]
    drift: tuple[Drift, ...]


def check(selection: Selection, work: Path) -> Outcome:
    """Compare what was installed with the lock. Raises RefusedError naming every difference in a locked build."""
    trees = installed(work, selection.variant)
    files = hashes(work, trees, selection.lock if selection.locked else None)
    found = drift(selection.lock, selection.variant, trees, files) if selection.lock else ()
    if found and selection.locked:
        raise RefusedError(
            "the packages that were installed are not those of the lock",
            tuple(item.finding() for item in found),
            hint="if the list of packages in mkosi.conf was changed on purpose: `nodeos image lock`",
        )
    return Outcome(trees=trees, hashes=files, drift=found)


def manifest(selection: Selection, work: Path, outcome: Outcome) -> bytes:
    """``packages.json``: what is in the root and in the initrd, with the hash of each package file.

    {"version": 1, "locked": bool, "lock": SHA-256 of the lock or null, "drift": words, "packages": [{"name",
    "version", "architecture", "sha256" (or null), "images": ["initrd", "root"]}]}, canonical JSON.
    """
    images: dict[Package, list[str]] = {}
    made = work / "mkosi"
    # An initrd that is kept for each variant has the variant in its name.
    own = made / f"initrd-{selection.variant}.manifest"
    initrd = own if own.exists() else made / "initrd.manifest"
    for name, path in (("initrd", initrd), ("root", made / "nodeos.manifest")):
        for package in _in_image(path):
            images.setdefault(package, []).append(name)
    value: dict[str, Any] = {
        "version": 1,
        "locked": selection.locked,
        "lock": selection.lock.digest if selection.lock else None,
        "drift": sorted({*selection.reasons, *(item.words for item in outcome.drift)}),
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "architecture": package.architecture,
                "sha256": digest.hex() if (digest := outcome.hashes.get(package)) else None,
                "images": images[package],
            }
            for package in sorted(images)
        ],
    }
    return canonical_json(value)


def report(selection: Selection, work: Path) -> bytes:
    """Check what the last build in ``work`` installed, and make its ``packages.json``."""
    return manifest(selection, work, check(selection, work))


def _in_image(path: Path) -> list[Package]:
    if not path.exists():
        raise ToolError(f"mkosi made no {path.name}", hint="ManifestFormat= must be json for both images")
    return [
        Package(name=item["name"], version=item["version"], architecture=item["architecture"])
        for item in json.loads(path.read_text())["packages"]
    ]


def require_locked(manifest_: bytes) -> None:
    """Refuse a build whose packages are not the locked ones: what signing a release asks first."""
    value = json.loads(manifest_)
    if value.get("version") != 1 or value.get("locked") is not True or value.get("drift"):
        words = tuple(value.get("drift") or ()) or ("the build did not look at the lock",)
        raise RefusedError(
            "packages.json: built with packages that are not the locked ones",
            tuple(Finding(code="packages.drift", message=str(word)) for word in words),
            hint="update the lock with `nodeos image lock`, or build from a pool with `--pool`",
        )


def drift_of(directory: Path) -> tuple[str, ...]:
    """How the packages of the build in ``directory`` differ from the lock, in words; nothing if they don't."""
    value = json.loads((directory / "packages.json").read_bytes())
    return tuple(value["drift"]) or (() if value["locked"] else ("the build did not look at the lock",))


def make_lock(work: Path) -> Lock:
    """The lock of what the builds in ``work``, made with ``Policy.MIRROR``, installed: release and debug."""
    roles: dict[Package, set[Role]] = {}
    release = installed(work, Variant.RELEASE)
    debug = installed(work, Variant.DEBUG)
    release[Role.DEBUG] = debug[Role.ROOT] - release[Role.ROOT]
    for role, packages in release.items():
        for package in packages:
            roles.setdefault(package, set()).add(role)
    lists = work / "cache/packages/lib/apt/lists"
    files = hashes(work, release, None)
    known = candidates(lists)
    builder = Package(name="mkosi", version=mkosi.PACKAGE_VERSION, architecture="all")
    roles.setdefault(builder, set()).add(Role.MKOSI)
    files[builder] = bytes.fromhex(mkosi.PACKAGE_SHA256)
    dates = apt.list_dates(lists)
    if not dates:
        raise ToolError(f"no lists in {lists}", hint="make the lock from a fresh build")
    # The snapshot service takes what a mirror had a few hours later, and a mirror keeps the replaced for days.
    time = (max(dates) + timedelta(days=1)).strftime("%Y%m%dT%H%M%SZ")
    return assemble(time, roles, files, known)


def compare_mirror(lock: Lock, scratch: Path) -> tuple[Drift, ...]:
    """What the mirror has instead of locked packages today. Fetches its lists."""
    apt.update(scratch)
    known: dict[tuple[str, str], list[Candidate]] = {}
    for item in candidates(scratch / "lists"):
        known.setdefault(item.package.key, []).append(item)
    result = []
    for locked in lock.packages:
        there = known.get(locked.package.key, [])
        newest = apt.newest({item.package.version for item in there})
        same = next((item for item in there if item.package == locked.package), None)
        if newest == locked.package.version and same and same.sha256 == locked.sha256:
            continue
        result.append(
            Drift(
                package=locked.package.name,
                trees=tuple(str(role) for role in locked.roles),
                locked=locked.package.version,
                found=newest,
                file=same.sha256.hex() if same and newest == locked.package.version else None,
            )
        )
    return tuple(result)


def write_lock(source: Path, lock: Lock) -> tuple[Drift, ...]:
    """Write the lock into a source tree and return what changed. An unchanged lock keeps its time."""
    path = source / LOCK
    old = Lock.parse(path.read_bytes()) if path.is_file() else Lock.make(lock.time, ())
    if old.packages != lock.packages:
        write_atomic(path, lock.to_bytes())
    return changes(old, lock)
