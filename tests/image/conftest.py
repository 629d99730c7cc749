"""The image that all tests here look into, built once."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from image import builder
from image.builder import Built
from image.keys import keys_of
from image.measure import find_partition
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
    config = builder.Config(source=SOURCE, work=WORK, keys=keys_of(WORK, variant), variant=variant)
    return builder.build(config, lambda text: print(f"  {variant}: {text}", file=sys.stderr))  # noqa: T201


def unpack_root(disk: Path, target: Path) -> Path:
    """Unpack the root partition (erofs) with the tools tree's own program."""
    begin, size = find_partition(disk, _ROOT_TYPE, "root partition")
    image = target / "root.erofs"
    with disk.open("rb") as source, image.open("wb") as copy:
        source.seek(begin)
        copy.write(source.read(size))
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


@pytest.fixture(scope="session")
def release_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The release variant."""
    built = build(Variant.RELEASE)
    root = unpack_root(built.disk, tmp_path_factory.mktemp("release"))
    return Image(built=built, release=Release.parse(built.release.read_bytes()), root=root)
