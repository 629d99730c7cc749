"""Builds the image a second time under other conditions, and tells where the two differ.

The second build has its own clone of the source at another path, another umask, time zone and host name, and cold
caches. What must be equal: the package manifest, the root file system, the hash tree (by its root hash), the
sections of the unified kernel image, and the measurements. Signatures are left out: the digest that they are over
(Authenticode, in PCR 4) is compared instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image.builder import Built
from image.measure import Uki, find_partition
from nodeos.core.errors import Finding, ToolError, UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Release
from nodeos.core.run import find_tool, run

ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
TIME_ZONE = "Pacific/Kiritimati"
UMASK = 0o077
HOST_NAME = "another-host"
# Signed anew in every build, and never measured.
_SIGNATURES = (".pcrsig",)
_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a file of the image is: kind and permissions, owner, time stamp, and the SHA-256 of its content."""

    mode: int
    owner: tuple[int, int]
    modified: int
    content: bytes

    def differs(self, other: Entry) -> str:
        """In which ways, in words; empty if in none."""
        words = []
        if self.mode != other.mode:
            words.append(f"mode {stat.filemode(self.mode)} or {stat.filemode(other.mode)}")
        if self.owner != other.owner:
            words.append(f"owner {self.owner} or {other.owner}")
        if self.modified != other.modified:
            words.append(f"time stamp {self.modified} or {other.modified}")
        if self.content != other.content:
            words.append("content")
        return ", ".join(words)


def tree(root: Path) -> dict[str, Entry]:
    """Every file, folder and link below ``root``, by its path in the image."""
    found = {}
    for directory, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                content = hashlib.sha256(os.fsencode(path.readlink())).digest()
            elif stat.S_ISREG(status.st_mode):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            else:
                content = str(status.st_rdev).encode()
            found["/" + str(path.relative_to(root))] = Entry(
                mode=status.st_mode,
                owner=(status.st_uid, status.st_gid),
                modified=int(status.st_mtime),
                content=content,
            )
    return found


def compare_trees(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> tuple[Finding, ...]:
    """One finding for each path that is in one tree only or that differs, in the order of the paths."""
    findings = []
    for path in sorted(first.keys() | second.keys()):
        if path not in second:
            message = "only in the first build"
        elif path not in first:
            message = "only in the second build"
        else:
            message = first[path].differs(second[path])
        if message:
            findings.append(Finding(code="root.file", message=f"{path}: {message}"))
    return tuple(findings)


def compare_packages(first: bytes, second: bytes) -> tuple[Finding, ...]:
    """The packages whose versions differ between two manifests of mkosi; one finding if only their form does."""
    if first == second:
        return ()
    versions = [
        {item["name"]: item["version"] for item in json.loads(data)["packages"]} for data in (first, second)
    ]
    findings = [
        Finding(
            code="packages.version",
            message=f"{name}: {versions[0].get(name, 'absent')} or {versions[1].get(name, 'absent')}",
        )
        for name in sorted(versions[0].keys() | versions[1].keys())
        if versions[0].get(name) != versions[1].get(name)
    ]
    return tuple(findings) or (
        Finding(code="packages.form", message="packages.json differs, no version does"),
    )


def compare_ukis(first: Uki, second: Uki) -> tuple[Finding, ...]:
    """The sections that differ."""
    names = [name for name in {**first.sections, **second.sections} if name not in _SIGNATURES]
    return tuple(
        Finding(code="uki.section", message=f"{name}: {_length(first, name)} and {_length(second, name)}")
        for name in names
        if first.sections.get(name) != second.sections.get(name)
    )


def _length(uki: Uki, name: str) -> str:
    return f"{len(uki.sections[name])} bytes" if name in uki.sections else "absent"


def compare_measurements(first: Release, second: Release) -> tuple[Finding, ...]:
    """The root hash, command line and PCR values that differ."""
    values = [
        {
            "root hash": release.root_hash.hex(),
            "kernel command line": release.kernel_command_line,
            **{f"PCR {index}": value.hex() for index, value in release.pcrs["sha256"].items()},
            **{f"PCR 11 after {phase}": value.hex() for phase, value in release.pcr11["sha256"].items()},
        }
        for release in (first, second)
    ]
    return tuple(
        Finding(code="measurement", message=f"{name}: {values[0][name]} or {values[1][name]}")
        for name in values[0]
        if values[0][name] != values[1][name]
    )


def compare(first: Built, second: Built, *, tools: Path, scratch: Path) -> tuple[Finding, ...]:
    """Every difference between two builds. ``tools`` is mkosi's tools tree, for a look into root file systems."""
    releases = [Release.parse(read_file(built.release, "release manifest")) for built in (first, second)]
    packages = [read_file(built.directory / "packages.json", "package manifest") for built in (first, second)]
    findings = [
        *compare_packages(packages[0], packages[1]),
        *compare_ukis(Uki.read(first.uki), Uki.read(second.uki)),
        *compare_measurements(releases[0], releases[1]),
    ]
    roots = [extract_root(built.disk, scratch / f"{name}.erofs") for name, built in
             (("first", first), ("second", second))]  # fmt: skip
    if roots[0].read_bytes() != roots[1].read_bytes():
        trees = [tree(unpack_root(path, path.with_suffix(""), tools=tools)) for path in roots]
        found = compare_trees(trees[0], trees[1])
        findings += found or (
            Finding(code="root.layout", message="the file system differs, no file in it does"),
        )
    return tuple(findings)


def extract_root(disk: Path, target: Path) -> Path:
    """Copy the root partition (erofs) out of a disk image."""
    begin, size = find_partition(disk, ROOT_TYPE, "root partition")
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("rb") as source, target.open("wb") as copy:
        source.seek(begin)
        copy.write(source.read(size))
    return target


def unpack_root(image: Path, target: Path, *, tools: Path) -> Path:
    """Unpack an erofs image with the tools tree's own program: the host's may not know the compression."""
    loader, libraries = tools / "usr/lib64/ld-linux-x86-64.so.2", tools / "usr/lib/x86_64-linux-gnu"
    program = tools / "usr/bin/fsck.erofs"
    command: list[str | Path] = [
        loader,
        "--library-path",
        libraries,
        program,
        f"--extract={target}",
        "--preserve",
        image,
    ]
    run(command, what="unpacking the root file system", timeout=300)
    return target


def second_build(source: Path, first: Built, *, work: Path, keys: Path, log: Path) -> Built:
    """Build the commit that ``first`` was built from once more, below ``work``, under the other conditions.

    Raises UsageError if the source had changes that are not committed: a clone would not hold them.
    """
    release = Release.parse(read_file(first.release, "release manifest"))
    commit = release.source_commit
    if not commit.isalnum() or commit == "unknown":
        raise UsageError(
            f"{first.release}: built from {commit}, which can't be built again elsewhere",
            hint="commit the changes and run this again",
        )
    clone = work / "source at another path"
    work.mkdir(parents=True)
    environment = {"TZ": TIME_ZONE, "PYTHONPATH": str(clone)}
    shell: list[str | Path] = [
        find_tool("unshare", package="util-linux"), "--uts", "/bin/sh", "-c",
        f'umask {UMASK:04o} && hostname {HOST_NAME} && exec "$0" "$@"',
    ]  # fmt: skip
    git: list[str | Path] = [*shell, "git", "-c", "safe.directory=*"]
    run([*git, "clone", "--quiet", "--no-hardlinks", source, clone], what="cloning the source", timeout=300)
    run([*git, "-C", clone, "checkout", "--quiet", "--detach", commit], what=f"checking out {commit[:12]}")
    command: list[str | Path] = [
        *shell, sys.executable, "-m", "nodeos", "--json", "image", "build",
        "--work", work / "build", "--keys", keys,
        "--variant", str(release.variant), "--version", release.version,
    ]  # fmt: skip
    run(command, what="the second build", cwd=clone, env=environment, timeout=3600, log=log)
    made = Built.at(work / "build/image" / release.variant)
    if Release.parse(made.release.read_bytes()).source_commit != commit:
        raise ToolError("the second build was not made from the clone", hint=f"see {log}")
    return made


def shorten(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """At most so many findings as a person reads, and how many were left out."""
    if len(findings) <= _SHOWN:
        return findings
    left = len(findings) - _SHOWN
    return (*findings[:_SHOWN], Finding(code="more", message=f"{left} more differences: see --json"))
