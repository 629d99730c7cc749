"""One image and one demo for all tests that need a virtual machine; they take minutes each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image.vm import Machine, copy_sparse
from nodeos.core.gpt import Table

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What `nodeos demo run` did: its exit code and its summary. The machine is off and kept."""

    code: int
    summary: dict[str, Any]

    @property
    def machine(self) -> Machine:
        return Machine(directory=WORK / "demo/machine")


@pytest.fixture(scope="session")
def demo(capfd_disabled: None) -> Demo:
    """Run the demo as a person does, its progress on this terminal."""
    command = [sys.executable, "-m", "nodeos", "demo", "run"]
    done = subprocess.run(command, cwd=SOURCE, stdin=subprocess.DEVNULL, check=False, timeout=2400)
    summary = json.loads((WORK / "demo/summary.json").read_text())
    return Demo(code=done.returncode, summary=summary)


@pytest.fixture(scope="session")
def capfd_disabled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the output of long runs through: a person watching a test of minutes wants to see it move."""
    manager = request.config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        os.write(2, b"\n")
        yield


@pytest.fixture
def stolen(demo: Demo, tmp_path: Path) -> Machine:
    """The demo's machine in an attacker's hands: a copy with the same disk, TPM and firmware variables."""
    assert demo.code == 0, demo.summary["error"]
    return copy_machine(demo.machine, tmp_path / "stolen")


def copy_machine(machine: Machine, directory: Path) -> Machine:
    """A machine that is off, once more."""
    copy = Machine(directory=directory)
    copy.directory.mkdir()
    for source in (machine.disk, machine.variables, machine.serial):
        copy_sparse(source, copy.directory / source.name)
    machine.tpm.copy(copy.directory / "tpm")
    return copy


def table_of(disk: Path) -> Table:
    """The partition table of a disk image."""
    with disk.open("rb") as file:
        return Table.parse(lambda place, size: os.pread(file.fileno(), size, place), disk.stat().st_size, 512)
