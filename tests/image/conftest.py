"""The image that all tests here look into, built once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from image import builder
from image.builder import Built
from image.keys import keys_of
from image.packages import Policy
from image.reproduce import extract_root, unpack_root
from nodeos.core.release import Release, Variant

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A build and its root file system, unpacked."""

    built: Built
    release: Release
    root: Path


def build(variant: Variant) -> Built:
    """Build a variant with the keys in build/, made if there are none."""
    # The tests must run on any day; that a locked build is just that has tests of its own.
    config = builder.Config(
        source=SOURCE, work=WORK, keys=keys_of(WORK, variant), variant=variant, packages=Policy.ALLOW_DRIFT
    )
    return builder.build(config, lambda text: print(f"  {variant}: {text}", file=sys.stderr))  # noqa: T201


def unpacked(disk: Path, target: Path) -> Path:
    """The root file system of a disk image, unpacked."""
    image = extract_root(disk, target / "root.erofs")
    return unpack_root(image, target / "root", tools=WORK / "mkosi/tools")


@pytest.fixture(scope="session")
def release_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The release variant."""
    built = build(Variant.RELEASE)
    root = unpacked(built.disk, tmp_path_factory.mktemp("release"))
    return Image(built=built, release=Release.parse(built.release.read_bytes()), root=root)
