"""Builds the image a second time under other conditions, and tells where the two differ.

The second build has its own clone of the source at another path, another umask, time zone and host name, and cold
caches. Both are unsigned, so every file of them must be equal byte for byte. Where one isn't, a look into it says
what in it differs: the package, the section, the file in the root or in the initrd.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from image import cpio
from image.builder import source_commit, unsigned_directory
from image.measure import Uki
from image.unsigned import PACKAGES, ROOT, UKI, VERITY, BuildManifest, Unsigned
from nodeos.core.errors import Finding, ToolError, UsageError
from nodeos.core.run import find_tool, run

TIME_ZONE = "Pacific/Kiritimati"
UMASK = 0o077
HOST_NAME = "another-host"
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


def compare_trees(
    first: Mapping[str, Entry], second: Mapping[str, Entry], *, code: str = "root.file"
) -> tuple[Finding, ...]:
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
            findings.append(Finding(code=code, message=f"{path}: {message}"))
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


def compare_ukis(first: Uki, second: Uki, *, tools: Path) -> tuple[Finding, ...]:
    """The sections that differ, and of an initrd the files."""
    findings: list[Finding] = []
    for name in {**first.sections, **second.sections}:
        contents = [uki.sections.get(name) for uki in (first, second)]
        if contents[0] == contents[1]:
            continue
        message = f"{name}: {_length(first, name)} and {_length(second, name)}"
        findings.append(Finding(code="uki.section", message=message))
        if name == ".initrd" and contents[0] is not None and contents[1] is not None:
            findings += compare_initrds(contents[0], contents[1], tools=tools)
    return tuple(findings) or (Finding(code="uki.layout", message=f"{UKI} differs, no section of it does"),)


def compare_initrds(first: bytes, second: bytes, *, tools: Path) -> tuple[Finding, ...]:
    """The files that differ in two initrds."""
    trees = []
    for data in (first, second):
        try:
            trees.append({
                path: Entry(mode=file.mode, owner=file.owner, modified=file.modified, content=file.content)
                for path, file in cpio.files(data, tools=tools).items()
            })  # fmt: skip
        except UsageError as error:
            return (Finding(code="initrd.unreadable", message=f"no look into it: {error.message}"),)
    return compare_trees(trees[0], trees[1], code="initrd.file") or (
        Finding(code="initrd.layout", message="the archive differs, no file in it does"),
    )


def _length(uki: Uki, name: str) -> str:
    return f"{len(uki.sections[name])} bytes" if name in uki.sections else "absent"


def compare_manifests(first: BuildManifest, second: BuildManifest) -> tuple[Finding, ...]:
    """The fields of the build manifests that differ, and the artefacts by name."""
    values = [json.loads(manifest.to_bytes()) for manifest in (first, second)]
    artefacts = [value.pop("artefacts") for value in values]
    pairs = [(f"{name}: {values[0][name]} or {values[1][name]}", values[0][name], values[1][name])
             for name in values[0]]  # fmt: skip
    pairs += [
        (f"{name}: {_artefact(artefacts[0], name)} or {_artefact(artefacts[1], name)}", artefacts[0].get(name),
         artefacts[1].get(name)) for name in sorted({**artefacts[0], **artefacts[1]})
    ]  # fmt: skip
    return tuple(Finding(code="manifest", message=message) for message, one, other in pairs if one != other)


def _artefact(artefacts: Mapping[str, Mapping[str, object]], name: str) -> str:
    if name not in artefacts:
        return "absent"
    return f"{artefacts[name]['size']} bytes, {str(artefacts[name]['sha256'])[:12]}…"


def compare(first: Unsigned, second: Unsigned, *, tools: Path, scratch: Path) -> tuple[Finding, ...]:
    """Every difference between two builds. ``tools`` is mkosi's tools tree, for a look into file systems."""
    findings = list(compare_manifests(first.build, second.build))
    # The manifests' hashes are taken at the build; what lies there now is what counts.
    differ = {
        name for name in {**first.build.artefacts, **second.build.artefacts}
        if not _equal(first.directory / name, second.directory / name)
    }  # fmt: skip
    if PACKAGES in differ:
        findings += compare_packages(first.packages.read_bytes(), second.packages.read_bytes())
    if UKI in differ:
        findings += compare_ukis(Uki.read(first.uki), Uki.read(second.uki), tools=tools)
    if ROOT in differ:
        trees = [
            tree(unpack_root(build.root, scratch / name, tools=tools))
            for name, build in (("first", first), ("second", second))
        ]
        findings += compare_trees(trees[0], trees[1]) or (
            Finding(code="root.layout", message="the file system differs, no file in it does"),
        )
    elif VERITY in differ:
        findings.append(Finding(code="verity", message="the hash trees over equal roots differ"))
    findings += [
        Finding(code="file", message=name) for name in sorted(differ - {PACKAGES, UKI, ROOT, VERITY})
    ]
    return tuple(findings)


def _equal(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


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
    target.parent.mkdir(parents=True, exist_ok=True)
    run(command, what="unpacking the root file system", timeout=300)
    return target


def check_source(source: Path) -> str:
    """The commit to build twice. Raises UsageError if the source differs from it: no clone would hold that."""
    commit = source_commit(source)
    if not commit.isalnum() or commit == "unknown":
        raise UsageError(
            f"{source}: {commit} can't be built again elsewhere", hint="commit the changes and run this again"
        )
    return commit


def check_unchanged(first: Unsigned, commit: str) -> None:
    """Raises UsageError if the source was changed while the first build ran: then it isn't that of ``commit``."""
    if first.build.source_commit != commit:
        raise UsageError(
            f"the source was {commit} and became {first.build.source_commit} during the first build",
            hint="leave it alone while this runs, and run it again",
        )


def second_build(source: Path, first: Unsigned, *, work: Path, keys: Path, log: Path) -> Unsigned:
    """Build the commit that ``first`` was built from once more, below ``work``, under the other conditions."""
    build = first.build
    commit = build.source_commit
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
        "--variant", str(build.variant), "--version", build.release,
    ]  # fmt: skip
    run(command, what="the second build", cwd=clone, env=environment, timeout=3600, log=log)
    made = Unsigned.read(unsigned_directory(work / "build", build.variant))
    if made.build.source_commit != commit:
        raise ToolError("the second build was not made from the clone", hint=f"see {log}")
    return made


def shorten(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """At most so many findings as a person reads, and how many were left out."""
    if len(findings) <= _SHOWN:
        return findings
    left = len(findings) - _SHOWN
    return (*findings[:_SHOWN], Finding(code="more", message=f"{left} more differences: see --json"))
