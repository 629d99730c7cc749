"""Installation media on a machine with nothing on it, and on machines that must be left alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hsm.softtpm import ManufacturerCa
from image import media
from image.release_dir import ReleaseDir
from image.vm import Machine, switch_on
from nodeos.core import layout
from tests.vm.conftest import WORK, Demo
from tests.vm.lab import Lab, table_of

pytestmark = pytest.mark.vm
MEMORY = 3072  # MiB: the installer has the whole release in memory


@pytest.fixture(scope="module")
def built(demo: Demo) -> ReleaseDir:
    assert demo.code == 0, demo.summary["error"]
    return ReleaseDir.read(WORK / "image/release/release")


@pytest.fixture(scope="module")
def content(built: ReleaseDir) -> media.Content:
    """What goes on a medium of the demo's site."""
    return media.Content.read(built.directory, media.read_site(WORK / "demo/site"))


def new_machine(lab: Lab) -> Machine:
    """Never used: an empty disk, and firmware in setup mode."""
    return Machine.make(lab.directory / "new", ca=ManufacturerCa.create(WORK / "demo/manufacturer"))


def make_medium(lab: Lab, content: media.Content, kind: media.Kind = media.Kind.USB) -> Path:
    medium = lab.directory / f"medium.{'iso' if kind is media.Kind.ISO else 'raw'}"
    media.write(kind, content, medium)
    return medium


def test_usb_stick(lab: Lab, content: media.Content, built: ReleaseDir) -> None:
    """A new machine: keys enrolled, installed, off by itself; the disk starts, and the machine asks to be enrolled."""
    machine, medium = new_machine(lab), make_medium(lab, content)
    began = time.monotonic()
    with switch_on(machine, accelerator=lab.accelerator, medium=medium, memory_mib=MEMORY) as vm:
        vm.wait_for_exit(seconds=560)
    print("installed", time.monotonic() - began)
