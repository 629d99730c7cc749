"""Debian packages made here, pools and locks of them, and the trees that a build leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from image.lock import Lock, Locked, Package, Role
from nodeos.core.release import Variant
from nodeos.core.run import find_tool, run

TIME = "20260131T120000Z"
VERSION = "1:1.0+deb13u1"
_TREE = "debian~trixie~x86-64"


def file_name(name: str, version: str = VERSION) -> str:
    """The name of a package's file in an archive: without the epoch."""
    return f"{name}_{version.rpartition(':')[2]}_all.deb"


def make_deb(directory: Path, name: str, version: str = VERSION, *, payload: bytes = b"") -> Path:
    """A real package that holds one file."""
    root = directory / f".{name}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share" / name).write_bytes(payload or name.encode())
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: test <test@example.org>\nDescription: test\n of two lines\n"
    )
    path = directory / file_name(name, version)
    run(
        [find_tool("dpkg-deb", package="dpkg"), "-Znone", "--root-owner-group", "-b", root, path],
        what="packing",
    )
    return path


def make_archive(directory: Path, names: Sequence[str], *, suite: str = "trixie") -> tuple[Locked, ...]:
    """An archive's pool below ``directory`` with a package of each name, and how a lock names them."""
    made = []
    for name in names:
        folder = directory / "pool/main" / name[0] / name
        folder.mkdir(parents=True)
        path = make_deb(folder, name, payload=hashlib.sha512(name.encode()).digest() * 2000)
        made.append(
            Locked(
                package=Package(name=name, version=VERSION, architecture="all"),
                suite=suite,
                path=str(path.relative_to(directory)),
                size=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).digest(),
                roles=(Role.ROOT,),
            )
        )
    return tuple(made)


def status(names: Sequence[str], version: str = VERSION) -> str:
    """dpkg's status file of a tree with these packages."""
    return "\n".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n"
        for name in names
    )


def make_trees(work: Path, variant: Variant, trees: Mapping[Role, Sequence[str]]) -> None:
    """What mkosi leaves in ``work``: a tree for each role, and the manifests of root and initrd."""
    image = work / f"cache/image-{variant}"
    root = list(trees.get(Role.ROOT, ()))
    places = {
        image / f"{_TREE}.cache": root,
        image / f"{_TREE}.build.cache": [*root, *trees.get(Role.BUILD, ())],
        work / f"cache/initrd/{_TREE}.cache": list(trees.get(Role.INITRD, ())),
        work / "mkosi/tools": list(trees.get(Role.TOOLS, ())),
    }
    for place, names in places.items():
        (place / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
        (place / "var/lib/dpkg/status").write_text(status(names))
    for name, role in (("nodeos", Role.ROOT), ("initrd", Role.INITRD)):
        items = [
            {"type": "deb", "name": item, "version": VERSION, "architecture": "all"}
            for item in trees.get(role, ())
        ]
        (work / "mkosi" / f"{name}.manifest").write_text(json.dumps({"packages": items}))


def make_lock(packages: Sequence[Locked]) -> Lock:
    return Lock.make(TIME, packages)
