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

from image.vm import Machine, choose_accelerator
from tests.vm.lab import Lab, copy_machine, copy_registrar, serve

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
    """Run the demo as a person does, its progress on this terminal.

    With NODEOS_KEEP_DEMO=1 the one that ran last is taken: for work on single cases.
    """
    if os.environ.get("NODEOS_KEEP_DEMO") == "1":
        summary = json.loads((WORK / "demo/summary.json").read_text())
        return Demo(code=0 if summary["held"] else 1, summary=summary)
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


@pytest.fixture(scope="session")
def accelerator() -> str:
    return choose_accelerator(WORK / "probe")


_VERDICTS: list[tuple[str, str, float]] = []


@pytest.fixture
def lab(demo: Demo, accelerator: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One case of the boot matrix: a registrar of its own, with what the demo's knows."""
    assert demo.code == 0, demo.summary["error"]
    made = Lab(
        demo=WORK / "demo",
        directory=tmp_path,
        accelerator=accelerator,
        registrar=copy_registrar(WORK / "demo/registrar", tmp_path / "registrar"),
        verdicts=_VERDICTS,
        case=request.node.name.removeprefix("test_"),
    )
    with serve(made.registrar, made.port, tmp_path / "registrar.log"):
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the boot matrix, and what was left out."""
    if _VERDICTS:
        terminalreporter.section("boot matrix")
        width = max(len(case) for case, _, _ in _VERDICTS)
        for case, words, seconds in _VERDICTS:
            terminalreporter.write_line(f"{case:<{width}}  {seconds:5.0f} s  {words[:110]}")
    left = [item.name for item in terminalreporter.stats.get("deselected", ()) if "vm" in item.keywords]
    if left:
        names = ", ".join(sorted(name.removeprefix("test_") for name in left))
        terminalreporter.write_line(
            f"left to `make test-boot`, {len(left)} cases of the boot matrix: {names}"
        )
