"""The image that all tests here look into, built once."""

from __future__ import annotations

import struct
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from image import builder
from image.builder import Built
from image.keys import BuildKeys, generate
from nodeos.core.release import Release, Variant
from nodeos.core.run import run

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build"
_ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A build and its root file system, unpacked."""

    built: Built
    release: Release
    root: Path


def build(variant: Variant) -> Built:
    """Build a variant with the keys in build/, made if there are none."""
    directory = WORK / ("keys" if variant is Variant.RELEASE else f"keys-{variant}")
    keys = BuildKeys(directory=directory) if directory.exists() else generate(directory, variant)
    config = builder.Config(source=SOURCE, work=WORK, keys=keys, variant=variant)
    return builder.build(config, lambda text: print(f"  {variant}: {text}", file=sys.stderr))  # noqa: T201


def unpack_root(disk: Path, target: Path) -> Path:
    """Unpack the root partition (erofs) with the tools tree's own program."""
    first, last = root_partition(disk)
    image = target / "root.erofs"
    with disk.open("rb") as source, image.open("wb") as copy:
        source.seek(first * 512)
        copy.write(source.read((last - first + 1) * 512))
    root = target / "root"
    tools = WORK / "mkosi/tools/usr"
    loader, libraries = tools / "lib64/ld-linux-x86-64.so.2", tools / "lib/x86_64-linux-gnu"
    run(
        [
            loader,
            "--library-path",
            libraries,
            tools / "bin/fsck.erofs",
            f"--extract={root}",
            "--no-preserve",
            image,
        ],
        what="unpacking the root file system",
    )
    image.unlink()
    return root


def root_partition(disk: Path) -> tuple[int, int]:
    """First and last sector of the root partition."""
    with disk.open("rb") as file:
        file.seek(512 + 72)
        table, count, size = struct.unpack("<QII", file.read(16))
        file.seek(table * 512)
        entries = file.read(count * size)
    for start in range(0, len(entries), size):
        if entries[start : start + 16] == _ROOT_TYPE.bytes_le:
            first, last = struct.unpack_from("<QQ", entries, start + 32)
            return first, last
    raise AssertionError("the image has no root partition")


@pytest.fixture(scope="session")
def release_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The release variant."""
    built = build(Variant.RELEASE)
    root = unpack_root(built.disk, tmp_path_factory.mktemp("release"))
    return Image(built=built, release=Release.parse(built.release.read_bytes()), root=root)
