"""The package lock: its one form, and what is a drift."""

from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import lock as locks
from image.lock import Candidate, Lock, Locked, Package, Role
from nodeos.core.release import Variant
from nodeos.core.wire import ParseError

SOURCE = Path(__file__).resolve().parents[2]
TIME = "20260131T120000Z"


def locked(name: str, version: str = "1.0-1", *roles: Role, content: bytes = b"") -> Locked:
    return Locked(
        package=Package(name=name, version=version, architecture="amd64"),
        suite="trixie",
        path=f"pool/main/{name[0]}/{name}/{name}_{version}_amd64.deb",
        size=1000,
        sha256=(content or name.encode())[:1] * 32,
        roles=roles or (Role.ROOT,),
    )


TREES = (
    locked("bash", "5.2-1", Role.INITRD, Role.ROOT),
    locked("gcc", "14-1", Role.BUILD),
    locked("mkosi", "25.3-7", Role.MKOSI),
    locked("qemu", "10-1", Role.TOOLS),
    locked("strace", "6-1", Role.DEBUG),
)
LOCK = Lock.make(TIME, TREES)


def as_installed(variant: Variant = Variant.RELEASE) -> dict[Role, set[Package]]:
    return {
        role: {item.package for item in packages.values()}
        for role, packages in LOCK.expected(variant).items()
    }


HASHES: dict[Package, bytes | None] = {item.package: item.sha256 for item in TREES}


def test_form() -> None:
    text = LOCK.to_bytes().decode()
    assert text.splitlines()[0] == '{"format": "nodeos-packages-lock-1", "time": "20260131T120000Z"}'
    assert text.splitlines()[1] == (
        '{"name": "bash", "version": "5.2-1", "architecture": "amd64", "suite": "trixie", '
        '"roles": ["initrd", "root"], "size": 1000, "sha256": "' + "62" * 32 + '", '
        '"path": "pool/main/b/bash/bash_5.2-1_amd64.deb"}'
    )
    assert Lock.parse(text.encode()) == LOCK
    assert Lock.make(TIME, reversed(TREES)) == LOCK


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nodeos-packages-lock-1", "nodeos-packages-lock-2", "no lock of the format"),
        ("20260131T120000Z", "today", ":1.time: 'today'"),
        ('"time"', '"hour"', ":1.time: missing"),
        ('"name": "bash"', '"name": "../bash"', ":2.name"),
        ('"version": "5.2-1"', '"version": "5.2 1"', ":2.version"),
        ('"suite": "trixie"', '"suite": "trixie/x"', ":2.suite"),
        ("pool/main/b/", "pool/main/../", ":2.path"),
        ("pool/main/b/", "/pool/main/b/", ":2.path"),
        ("pool/main/b/", "http://host/pool/main/b/", ":2.path"),
        ('"size": 1000', '"size": 0', ":2.size"),
        ('"size": 1000', '"size": "1000"', ":2.size"),
        ("62" * 32, "62" * 31, ":2.sha256: expected 32 bytes"),
        ("62" * 32, "6G" * 32, ":2.sha256: not hexadecimal"),
        ("62" * 32, "AB" * 32, "not in canonical form"),
        ('["initrd", "root"]', '["root", "initrd"]', ":2.roles: expected each role once"),
        ('["initrd", "root"]', "[]", ":2.roles: expected each role once"),
        ('["initrd", "root"]', '["kernel"]', ":2.roles: 'kernel'"),
        ('"size": 1000', '"size": 1000, "more": 1', ":2: unknown field: more"),
        ('"size": 1000, ', '"size": 1000,', "not in canonical form"),
        ('"name": "gcc"', '"name": "bash"', "not in canonical form|stands twice"),
    ],
)
def test_other_forms_are_refused(old: str, new: str, words: str) -> None:
    data = LOCK.to_bytes().decode().replace(old, new)
    assert data != LOCK.to_bytes().decode()
    with pytest.raises(ParseError, match=words):
        Lock.parse(data.encode())


@pytest.mark.parametrize("cut", [1, 30])
def test_cut_lock_is_refused(cut: int) -> None:
    with pytest.raises(ParseError):
        Lock.parse(LOCK.to_bytes()[:-cut])


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(locked("bash", "5.3-1"), path="pool/main/b/bash/other.deb"),
        dataclasses.replace(locked("dash"), path="pool/main/d/dash/bash_5.2-1_amd64.deb"),
    ],
    ids=["one name in two versions", "two packages in files of one name"],
)
def test_what_would_be_ambiguous_is_refused(other: Locked) -> None:
    with pytest.raises(ParseError, match="stands twice"):
        Lock.make(TIME, [*TREES, other])


@given(st.binary(max_size=200))
def test_parse_refuses_or_gives_the_same_bytes(data: bytes) -> None:
    try:
        parsed = Lock.parse(data)
    except ParseError:
        return
    assert parsed.to_bytes() == data


@pytest.mark.parametrize("variant", list(Variant))
def test_no_drift(variant: Variant) -> None:
    assert locks.drift(LOCK, variant, as_installed(variant), HASHES) == ()


def test_other_version() -> None:
    trees = as_installed()
    newer = Package(name="bash", version="5.2-2", architecture="amd64")
    for role in (Role.ROOT, Role.INITRD):
        trees[role] = {newer}
    found = locks.drift(LOCK, Variant.RELEASE, trees, {**HASHES, newer: bytes(32)})
    assert [item.words for item in found] == ["bash: locked 5.2-1, found 5.2-2 (initrd, root)"]
    assert found[0].finding().code == "packages.drift"


@pytest.mark.parametrize("role", [Role.ROOT, Role.INITRD, Role.BUILD, Role.TOOLS])
def test_package_that_is_not_locked(role: Role) -> None:
    trees = as_installed()
    trees[role] = trees[role] | {Package(name="nc", version="1-1", architecture="amd64")}
    (found,) = locks.drift(LOCK, Variant.RELEASE, trees, HASHES)
    assert found.words == f"nc: not locked, found 1-1 ({role})"


@pytest.mark.parametrize("role", [Role.ROOT, Role.INITRD, Role.BUILD, Role.TOOLS])
def test_package_that_is_missing(role: Role) -> None:
    trees = as_installed()
    del trees[role]
    (found,) = locks.drift(LOCK, Variant.RELEASE, trees, HASHES)
    assert re.fullmatch(rf"\w+: locked \S+, not found \({role}\)", found.words)


def test_package_in_another_tree_than_locked() -> None:
    trees = as_installed()
    trees[Role.INITRD] = trees[Role.INITRD] | {TREES[3].package}
    (found,) = locks.drift(LOCK, Variant.RELEASE, trees, HASHES)
    assert found.words == "qemu: not locked, found 10-1 (initrd)"


def test_debug_packages_are_a_drift_in_a_release() -> None:
    found = locks.drift(LOCK, Variant.RELEASE, as_installed(Variant.DEBUG), HASHES)
    assert [item.words for item in found] == ["strace: not locked, found 6-1 (root)"]


@pytest.mark.parametrize(("digest", "words"), [(bytes(32), "00" * 32), (None, "unknown: it is gone")])
def test_file_with_another_hash(digest: bytes | None, words: str) -> None:
    (found,) = locks.drift(LOCK, Variant.RELEASE, as_installed(), {**HASHES, TREES[0].package: digest})
    assert found.words == f"bash 5.2-1: the file has SHA-256 {words}, not the locked one (initrd, root)"
    assert found.finding().code == "packages.file"


def test_changes_of_a_lock() -> None:
    new = Lock.make(
        TIME,
        [*TREES[1:4], locked("bash", "5.3-1", Role.ROOT), locked("zsh", "5-1"),
         ],
    )  # fmt: skip
    assert [item.words for item in locks.changes(LOCK, new)] == [
        "bash: locked 5.2-1, found 5.3-1 (root)",
        "strace: locked 6-1, not found (debug)",
        "zsh: not locked, found 5-1 (root)",
    ]
    same = Lock.make(TIME, [*TREES[1:], locked("bash", "5.2-1", Role.INITRD, Role.ROOT, content=b"x")])
    (change,) = locks.changes(LOCK, same)
    assert "the file has SHA-256 7878" in change.words
    assert locks.changes(LOCK, LOCK) == ()


STATUS = """\
Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2-1
Description: a shell
 Version: 7 is not its version

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


def test_status() -> None:
    assert locks.parse_status(STATUS) == {TREES[0].package}
    assert locks.parse_status("") == frozenset()


@pytest.mark.parametrize("state", ["install ok half-configured", "install reinstreq installed", ""])
def test_status_of_a_broken_tree(state: str) -> None:
    with pytest.raises(ParseError, match="bash is"):
        locks.parse_status(STATUS.replace("install ok installed", state))


INDEX = f"""\
Package: bash
Version: 5.2-1
Architecture: amd64
Filename: pool/main/b/bash/bash_5.2-1_amd64.deb
Size: 1000
SHA256: {"62" * 32}
"""


def test_index() -> None:
    (found,) = locks.parse_index(INDEX, "trixie")
    assert found == Candidate(
        package=TREES[0].package, suite="trixie", path=TREES[0].path, size=1000, sha256=b"b" * 32
    )


@pytest.mark.parametrize("line", ["Filename: .*", "Size: 1000", "SHA256: .*", "Version: .*"])
def test_index_without_a_field(line: str) -> None:
    with pytest.raises(ParseError, match="trixie"):
        list(locks.parse_index(re.sub(f"{line}\n", "", INDEX), "trixie"))


def candidate(item: Locked, suite: str = "trixie") -> Candidate:
    return Candidate(package=item.package, suite=suite, path=item.path, size=item.size, sha256=item.sha256)


def test_lock_of_what_was_installed() -> None:
    roles = {item.package: set(item.roles) for item in TREES}
    index = [*(candidate(item, "trixie-updates") for item in TREES), *(candidate(item) for item in TREES)]
    assert locks.assemble(TIME, roles, HASHES, index) == LOCK


@pytest.mark.parametrize("case", ["not in the index", "other hash in the index", "file is gone"])
def test_what_no_signed_index_has_is_not_locked(case: str) -> None:
    index = [candidate(item) for item in TREES]
    hashes = dict(HASHES)
    if case == "not in the index":
        del index[0]
    elif case == "other hash in the index":
        index[0] = dataclasses.replace(index[0], sha256=bytes(32))
    else:
        hashes[TREES[0].package] = None
    with pytest.raises(ParseError, match=r"bash 5\.2-1"):
        locks.assemble(TIME, {item.package: set(item.roles) for item in TREES}, hashes, index)


@pytest.mark.parametrize(
    ("file", "key", "role"),
    [
        ("mkosi.conf", "Packages", Role.ROOT),
        ("mkosi.conf", "BuildPackages", Role.BUILD),
        ("mkosi.conf", "ToolsTreePackages", Role.TOOLS),
        ("image/initrd/mkosi.conf", "Packages", Role.INITRD),
        ("image/debug/mkosi.conf", "Packages", Role.DEBUG),
    ],
)
def test_the_lock_has_what_the_configuration_names(file: str, key: str, role: Role) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(SOURCE / file)
    section = "Build" if key == "ToolsTreePackages" else "Content"
    names = set(parser[section][key].split())
    lock = Lock.parse((SOURCE / "image/packages.lock").read_bytes())
    # What the root has already is not installed again in the layers over it.
    there = {item.package.name for item in lock.packages if {role, Role.ROOT} & set(item.roles)}
    if role in (Role.INITRD, Role.TOOLS):
        there = {item.package.name for item in lock.of(role)}
    assert names <= there, "make the lock anew: nodeos image lock"


def test_the_lock_names_no_mirror() -> None:
    assert "//" not in (SOURCE / "image/packages.lock").read_text()
