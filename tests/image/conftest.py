"""The image that all tests here look into, built once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from image import builder
from image.keys import keys_of
from image.packages import Policy
from image.reproduce import unpack_root
from image.unsigned import Unsigned
from nodeos.core.release import Variant

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An unsigned build and its root file system, unpacked."""

    built: Unsigned
    keys: Path
    root: Path


def build(variant: Variant) -> Unsigned:
    """Build a variant with the keys in build/, made if there are none."""
    # The tests must run on any day; that a locked build is just that has tests of its own.
    config = builder.Config(
        source=SOURCE,
        work=WORK,
        keys=keys_of(WORK, variant).directory,
        variant=variant,
        packages=Policy.ALLOW_DRIFT,
    )
    return builder.build(config, lambda text: print(f"  {variant}: {text}", file=sys.stderr))  # noqa: T201


@pytest.fixture(scope="session")
def release_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The release variant."""
    built = build(Variant.RELEASE)
    target = tmp_path_factory.mktemp("release") / "root"
    return Image(
        built=built,
        keys=keys_of(WORK, Variant.RELEASE).directory,
        root=unpack_root(built.root, target, tools=WORK / "mkosi/tools"),
    )
