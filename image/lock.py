"""The package lock: every Debian package that ends up in the image or makes it, by version and SHA-256.

``image/packages.lock`` is JSON lines: a header, then one package a line, sorted, so that a change of one package
is a change of one line. Everything here is pure: files and mirrors are in ``image.pool`` and ``image.packages``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nodeos.core.errors import Finding
from nodeos.core.release import Variant
from nodeos.core.wire import Fields, ParseError, parse_json, parse_text

FORMAT = "nodeos-packages-lock-1"
# deb-version(7), deb-control(5): what may stand in a name, a version and an architecture.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"[A-Za-z0-9.+~:-]+")
_PATH = re.compile(r"pool/[A-Za-z0-9][A-Za-z0-9.+~_/-]*\.deb")
_SUITE = re.compile(r"[a-z]+(-[a-z]+)?")
_TIME = re.compile(r"\d{8}T\d{6}Z")


class Role(StrEnum):
    """What a package is for. One package may have several roles."""

    ROOT = "root"
    DEBUG = "debug"  # in the root of the debug variant only
    INITRD = "initrd"
    BUILD = "build"  # laid over the root while Python packages are compiled
    TOOLS = "tools"  # mkosi's tools tree
    MKOSI = "mkosi"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Package:
    """A Debian package as dpkg names it."""

    name: str
    version: str
    architecture: str

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A package in the lock. ``path`` is the file's in its archive, ``size`` is in bytes."""

    package: Package
    suite: str
    path: str
    size: int
    sha256: bytes
    roles: tuple[Role, ...]

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def security(self) -> bool:
        return self.suite.endswith("-security")

    def to_line(self) -> str:
        # The order of the keys is for people who read a diff.
        value = {
            "name": self.package.name,
            "version": self.package.version,
            "architecture": self.package.architecture,
            "suite": self.suite,
            "roles": [str(role) for role in self.roles],
            "size": self.size,
            "sha256": self.sha256.hex(),
            "path": self.path,
        }
        return json.dumps(value, separators=(", ", ": "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The lock. ``time`` is one at which a snapshot of the archive has every package (``20260131T120000Z``)."""

    time: str
    packages: tuple[Locked, ...]

    def to_bytes(self) -> bytes:
        """Equal locks give equal bytes."""
        header = json.dumps({"format": FORMAT, "time": self.time}, separators=(", ", ": "))
        return "".join(f"{line}\n" for line in [header, *(item.to_line() for item in self.packages)]).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the lock's bytes, in hex: what a build says that it was made from."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def make(cls, time: str, packages: Iterable[Locked]) -> Lock:
        """A lock in canonical order. Raises ParseError if a package stands twice."""
        ordered = sorted(packages, key=lambda item: item.package)
        seen: set[tuple[str, str]] = set()
        files: set[str] = set()
        for item in ordered:
            if item.package.key in seen or item.file_name in files:
                raise ParseError(f"the lock: {item.package.name} ({item.package.architecture}) stands twice")
            seen.add(item.package.key)
            files.add(item.file_name)
        return cls(time=time, packages=tuple(ordered))

    @classmethod
    def parse(cls, data: bytes, what: str = "packages.lock") -> Lock:
        """Raises ParseError with the line and field that are wrong, and for any form but the canonical one."""
        lines = data.split(b"\n")
        header = parse_json(lines[0], f"{what}:1")
        if header.text("format", limit=64) != FORMAT:
            raise ParseError(f"{what}:1: this is no lock of the format {FORMAT}")
        time = _matching(header, "time", _TIME)
        header.done()
        packages = [_parse_line(line, f"{what}:{number}") for number, line in enumerate(lines[1:-1], 2)]
        lock = cls.make(time, packages)
        if lock.to_bytes() != data:
            raise ParseError(f"{what}: not in canonical form", hint="write it with `nodeos image lock`")
        return lock

    def expected(self, variant: Variant) -> dict[Role, dict[tuple[str, str], Locked]]:
        """What a build of ``variant`` must install: for each tree its packages."""
        roles = {Role.ROOT: {Role.ROOT}, Role.INITRD: {Role.INITRD}, Role.BUILD: {Role.BUILD}}
        roles[Role.TOOLS] = {Role.TOOLS}
        if variant is Variant.DEBUG:
            roles[Role.ROOT] = {Role.ROOT, Role.DEBUG}
        return {
            tree: {item.package.key: item for item in self.packages if wanted & set(item.roles)}
            for tree, wanted in roles.items()
        }

    def of(self, role: Role) -> tuple[Locked, ...]:
        return tuple(item for item in self.packages if role in item.roles)


def _parse_line(line: bytes, what: str) -> Locked:
    fields = parse_json(line, what)
    roles = fields.list_of("roles", parse_text)
    try:
        known = tuple(Role(role) for role in roles)
    except ValueError as error:
        raise ParseError(f"{what}.roles: {error}") from error
    if not known or known != tuple(sorted(set(known))):
        raise ParseError(f"{what}.roles: expected each role once, in order")
    locked = Locked(
        package=Package(
            name=_matching(fields, "name", _NAME),
            version=_matching(fields, "version", _VERSION),
            architecture=_matching(fields, "architecture", _NAME),
        ),
        suite=_matching(fields, "suite", _SUITE),
        path=_matching(fields, "path", _PATH),
        size=fields.integer("size", low=1, high=1 << 32),
        sha256=fields.hexadecimal("sha256", length=32),
        roles=known,
    )
    fields.done()
    if ".." in locked.path:
        raise ParseError(f"{what}.path: {locked.path}")
    return locked


def _matching(fields: Fields, key: str, form: re.Pattern[str]) -> str:
    value = fields.text(key, limit=512)
    if not form.fullmatch(value):
        raise ParseError(f"{fields.path}.{key}: {value!r} does not have the form of one")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A package that is not as locked. ``found`` and ``locked`` are versions; None: not there."""

    package: str
    trees: tuple[str, ...]
    locked: str | None
    found: str | None
    # Set if the versions agree and the package file does not: its SHA-256 in hex.
    file: str | None = None

    @property
    def words(self) -> str:
        trees = ", ".join(self.trees)
        if self.file is not None:
            return f"{self.package} {self.locked}: the file has SHA-256 {self.file}, not the locked one ({trees})"
        if self.locked is None:
            return f"{self.package}: not locked, found {self.found} ({trees})"
        if self.found is None:
            return f"{self.package}: locked {self.locked}, not found ({trees})"
        return f"{self.package}: locked {self.locked}, found {self.found} ({trees})"

    def finding(self) -> Finding:
        return Finding(
            code="packages.file" if self.file is not None else "packages.drift", message=self.words
        )


def drift(
    lock: Lock,
    variant: Variant,
    installed: Mapping[Role, Collection[Package]],
    hashes: Mapping[Package, bytes | None],
) -> tuple[Drift, ...]:
    """Where the trees of a build differ from the lock.

    ``installed`` holds what dpkg knows in each tree, ``hashes`` the SHA-256 of the package files that they came
    from: None where there is no such file, which is a difference too.
    """
    trees: dict[tuple[str, str | None, str | None, str | None], set[str]] = {}

    def note(name: str, locked: str | None, found: str | None, tree: Role, file: str | None = None) -> None:
        trees.setdefault((name, locked, found, file), set()).add(str(tree))

    for tree, wanted in lock.expected(variant).items():
        there = {package.key: package for package in installed.get(tree, ())}
        for key, item in wanted.items():
            found = there.get(key)
            if found is None or found != item.package:
                note(item.package.name, item.package.version, found.version if found else None, tree)
                continue
            digest = hashes.get(found)
            if digest != item.sha256:
                file = digest.hex() if digest else "unknown: it is gone"
                note(found.name, found.version, found.version, tree, file)
        for key, package in there.items():
            if key not in wanted:
                note(package.name, None, package.version, tree)
    return tuple(
        Drift(package=name, locked=locked, found=found, file=file, trees=tuple(sorted(names)))
        for (name, locked, found, file), names in sorted(trees.items(), key=lambda item: str(item[0]))
    )


def changes(old: Lock, new: Lock) -> tuple[Drift, ...]:
    """What differs between two locks, for people: ``locked`` is the old one's version, ``found`` the new one's."""
    before = {item.package.key: item for item in old.packages}
    after = {item.package.key: item for item in new.packages}
    result = []
    for key in sorted({*before, *after}):
        one, two = before.get(key), after.get(key)
        if one == two:
            continue
        same = one is not None and two is not None and one.package == two.package and one.sha256 != two.sha256
        result.append(
            Drift(
                package=key[0],
                trees=tuple(str(role) for role in (two or one).roles),  # type: ignore[union-attr]
                locked=one.package.version if one else None,
                found=two.package.version if two else None,
                file=two.sha256.hex() if same and two else None,
            )
        )
    return tuple(result)


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file (deb-control(5)); of a field with several lines only the first."""
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
        fields = {}
        for line in paragraph.split("\n"):
            if line[:1] not in (" ", "\t", "#", ""):
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def parse_status(text: str) -> frozenset[Package]:
    """The packages that are installed, by dpkg's status file. Raises ParseError for a half-installed one."""
    packages = set()
    for fields in stanzas(text):
        state = fields.get("Status", "").split()
        if state[-1:] in (["not-installed"], ["config-files"]):
            continue
        if state not in (["install", "ok", "installed"], ["hold", "ok", "installed"]):
            raise ParseError(f"dpkg's status: {fields.get('Package')} is {' '.join(state) or 'in no state'}")
        packages.add(_package(fields, "dpkg's status"))
    return frozenset(packages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A package as an archive's index names it."""

    package: Package
    suite: str
    path: str
    size: int
    sha256: bytes


def parse_index(text: str, suite: str) -> Iterator[Candidate]:
    """The packages of an archive's index (``Packages``)."""
    what = f"the package index of {suite}"
    for fields in stanzas(text):
        try:
            yield Candidate(
                package=_package(fields, what),
                suite=suite,
                path=fields["Filename"].removeprefix("./"),
                size=int(fields["Size"]),
                sha256=bytes.fromhex(fields["SHA256"]),
            )
        except (KeyError, ValueError) as error:
            raise ParseError(f"{what}: {fields.get('Package')}: {error}") from error


def _package(fields: Mapping[str, str], what: str) -> Package:
    try:
        return Package(name=fields["Package"], version=fields["Version"], architecture=fields["Architecture"])
    except KeyError as error:
        raise ParseError(f"{what}: a package without {error}") from error


def assemble(
    time: str,
    roles: Mapping[Package, Collection[Role]],
    hashes: Mapping[Package, bytes | None],
    candidates: Sequence[Candidate],
) -> Lock:
    """The lock of what was installed. Every package must stand in a signed index with the hash of its file.

    Raises ParseError naming those that do not: trees from a cache may be older than the mirror's lists.
    """
    known: dict[Package, list[Candidate]] = {}
    for candidate in candidates:
        known.setdefault(candidate.package, []).append(candidate)
    locked, unknown = [], []
    for package in sorted(roles):
        fitting = [item for item in known.get(package, []) if item.sha256 == hashes.get(package)]
        if not fitting:
            unknown.append(f"{package.name} {package.version}")
            continue
        # The shortest name is the release itself; a package may stand in its updates as well.
        found = min(fitting, key=lambda item: (len(item.suite), item.suite))
        locked.append(
            Locked(
                package=package,
                suite=found.suite,
                path=found.path,
                size=found.size,
                sha256=found.sha256,
                roles=tuple(sorted(set(roles[package]))),
            )
        )
    if unknown:
        raise ParseError(
            f"not in the mirror's lists, or there with another SHA-256: {', '.join(unknown)}",
            hint="the trees are older than the lists: make the lock from a fresh build",
        )
    return Lock.make(time, locked)
