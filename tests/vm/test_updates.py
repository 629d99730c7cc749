"""Updates of an enrolled node: offered by the registrar, tried three times, blessed, and the ways back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsm.tpm import Tpm
from image.measure import esp_of
from image.release_dir import ReleaseDir
from image.vm import Machine, switch_on
from nodeos.core import layout
from nodeos.core.layout import ESP_SIZE
from nodeos.core.release import BootPhase
from nodeos.core.run import find_tool, run
from tests.support.webfolder import Folder, serve
from tests.vm import updates
from tests.vm.conftest import Demo
from tests.vm.lab import Lab, copy_machine, copy_registrar, flip, list_esp, table_of
from tests.vm.lab import serve as serve_registrar
from tests.vm.updates import WORK, Signer, codes, wait_for, wait_for_words

pytestmark = pytest.mark.vm
_FIRST, _SECOND, _THIRD = "0.1.0", "0.1.1", "0.1.2"
# The node finishes an update after it was blessed: floor, boot loader, variables.
_FINISHED = 20.0


@pytest.fixture(scope="session")
def signer(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Signer:
    assert demo.code == 0, demo.summary["error"]
    return Signer(build=updates.second_build(), scratch=tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
def newer(signer: Signer) -> ReleaseDir:
    """0.1.1 in the window of 0.1.0: either may be started."""
    return signer.make("newer")


@pytest.fixture(scope="session")
def safer(signer: Signer) -> ReleaseDir:
    """0.1.1 that closes a hole: once it is blessed, 0.1.0 opens no state any more."""
    return signer.make("safer", security_version=2, rollback_floor=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """The machine after an update to ``safer`` by an offer, off; and how the node and its TPM told of it."""

    machine: Machine
    registrar: Path
    installed: updates.Judgement
    blessed: updates.Judgement
    floor: int
    seconds: float
    console: str


@pytest.fixture(scope="session")
def updated(
    demo: Demo, accelerator: str, safer: ReleaseDir, tmp_path_factory: pytest.TempPathFactory
) -> Updated:
    """One update by an offer, for the cases that begin after it."""
    directory = tmp_path_factory.mktemp("updated")
    registrar = copy_registrar(WORK / "demo/registrar", directory / "registrar")
    lab = Lab(demo=WORK / "demo", directory=directory, accelerator=accelerator, registrar=registrar, verdicts=[],
              case="update")  # fmt: skip
    machine, began = lab.machine(), time.monotonic()
    with serve_registrar(registrar, lab.port, directory / "registrar.log"), serve(safer.directory) as folder:
        updates.register(lab, safer)
        updates.offer(lab, safer, folder.port)
        with switch_on(machine, accelerator=accelerator) as vm:
            installed = wait_for(lab, vm, lambda found: _state(found) in ("installed", "refused", "failed"),
                                 what="waiting for the installation")  # fmt: skip
            assert _state(installed) == "installed", updates.summary(installed)
            blessed = wait_for(lab, vm, lambda found: found["release"] == _SECOND and found["update"]["blessed"],
                               what="waiting for the blessing")  # fmt: skip
            seconds = time.monotonic() - began
            time.sleep(_FINISHED)
            vm.power_button(seconds=240)
    with machine.tpm.serve() as tcti, Tpm(tcti) as tpm:
        floor = tpm.read_floor()
    return Updated(machine=machine, registrar=registrar, installed=installed, blessed=blessed, floor=floor,
                   seconds=seconds, console=updates.console(machine))  # fmt: skip


def _state(judgement: updates.Judgement) -> str:
    delivery = (judgement["update"] or {}).get("delivery")
    return "" if delivery is None else str(delivery["state"])


@contextmanager
def offered(lab: Lab, release: ReleaseDir, *options: str) -> Iterator[Folder]:
    with serve(release.directory) as folder:
        updates.register(lab, release)
        updates.offer(lab, release, folder.port, *options)
        yield folder


@pytest.mark.matrix
def test_update_by_offer(lab: Lab, updated: Updated, safer: ReleaseDir) -> None:
    """The registrar offers, the node fetches over plain http, installs, restarts, is attested, and blessed."""
    lab.tell(updates.summary(updated.blessed), updated.seconds)
    assert updated.installed["release"] == _FIRST
    assert updated.blessed["state"] == "passed"
    assert updated.blessed["pcrs"]["11"] == safer.release.pcr11["sha256"][BootPhase.READY].hex()
    assert updated.blessed["volume"]["made_this_boot"] is False
    assert updated.floor == 2
    names = list_esp(updated.machine.disk, "/EFI/Linux")
    assert sorted(name.rpartition("/")[2] for name in names) == ["nodeos_0.1.0.efi", "nodeos_0.1.1.efi"]


def test_rollback_is_refused(lab: Lab, updated: Updated) -> None:
    """An attacker takes the new kernel image off the ESP: the old one, validly signed, starts, and gets no key."""
    machine = copy_machine(updated.machine, lab.directory / "machine")
    run([find_tool("mdel", package="mtools"), "-i", esp_of(machine.disk), "::/EFI/Linux/nodeos_0.1.1.efi"],
        what="removing the new version")  # fmt: skip
    outcome = lab.boot(machine)
    assert outcome.kind == "state"
    assert "floor" in updates.console(machine)


def test_fallback_to_the_version_before(lab: Lab, signer: Signer) -> None:
    """0.1.2 can't start: after three tries the old kernel image starts with the old root, and its state opens."""
    words = {"systemd.firstboot=no": "rdinit=/nowhere", "panic=30": "panic=1"}
    broken = signer.make("broken", version=_THIRD, words=words)
    machine, began = lab.machine(), time.monotonic()
    updates.write_release(machine.disk, broken, entry=f"nodeos_{_THIRD}+3.efi")
    updates.register(lab, broken)
    with switch_on(machine, accelerator=lab.accelerator) as vm:
        found = wait_for(lab, vm, lambda found: True, what="waiting for the version before")
        vm.power_button(seconds=240)
    lab.tell(updates.summary(found), time.monotonic() - began)
    assert updates.console(machine).count("Kernel panic") == 3
    assert found["release"] == _FIRST
    assert codes(found) == {"update.fell_back"}
    assert found["update"] == {"running": _FIRST, "blessed": True, "failed": _THIRD}
    assert found["volume"]["made_this_boot"] is False
    names = [name.rpartition("/")[2] for name in list_esp(machine.disk, "/EFI/Linux")]
    assert sorted(names) == ["nodeos_0.1.0.efi", f"nodeos_{_THIRD}+0-3.efi"]


@pytest.mark.matrix
def test_fallback_from_a_damaged_root(lab: Lab, signer: Signer) -> None:
    """The last try of a version whose root is damaged ends in the initial RAM disk, which nobody stands before."""
    damaged = signer.make("damaged", version=_THIRD)
    machine, began = lab.machine(), time.monotonic()
    updates.write_release(machine.disk, damaged, entry=f"nodeos_{_THIRD}+1-2.efi")
    # The superblock of erofs, which every mount reads.
    flip(machine.disk, layout.slots(table_of(machine.disk))[1].root, 1024)
    with switch_on(machine, accelerator=lab.accelerator) as vm:
        found = wait_for(lab, vm, lambda found: True, what="waiting for the version before")
        vm.power_button(seconds=240)
    lab.tell(updates.summary(found), time.monotonic() - began)
    assert "this version is on trial: restarting in 30 seconds" in updates.console(machine)
    assert found["release"] == _FIRST
    assert codes(found) == {"update.fell_back"}


@pytest.mark.matrix
def test_declared_rollback(lab: Lab, newer: ReleaseDir) -> None:
    """Inside the window, and declared: 0.1.0 is started again, and blessed as the newer one was."""
    machine, began = lab.machine(), time.monotonic()
    updates.write_release(machine.disk, newer, entry=f"nodeos_{_SECOND}.efi")
    updates.register(lab, newer)
    first = ReleaseDir.read(WORK / "image/release/release")
    with offered(lab, first, "--rollback"), switch_on(machine, accelerator=lab.accelerator) as vm:
        before = wait_for(lab, vm, lambda found: True, what="waiting for the newer version")
        assert before["release"] == _SECOND
        found = wait_for(lab, vm, lambda found: found["release"] == _FIRST and found["update"]["blessed"],
                         what="waiting for the older version")  # fmt: skip
        vm.power_button(seconds=240)
    lab.tell(updates.summary(found), time.monotonic() - began)
    assert found["state"] == "passed"
    names = [name.rpartition("/")[2] for name in list_esp(machine.disk, "/EFI/Linux")]
    assert "nodeos_0.1.0.efi" in names


@pytest.mark.matrix
def test_full_esp(lab: Lab, newer: ReleaseDir) -> None:
    """Refused with the reason, which the registrar shows; the node stays as it is."""
    machine, began = lab.machine(), time.monotonic()
    filler = lab.directory / "filler"
    with filler.open("wb") as file:
        file.truncate(ESP_SIZE - newer.uki.stat().st_size - (32 << 20))
    run(
        [find_tool("mcopy", package="mtools"), "-i", esp_of(machine.disk), filler, "::filler"],
        what="filling the ESP",
    )
    before = list_esp(machine.disk, "/EFI/Linux")
    with offered(lab, newer), switch_on(machine, accelerator=lab.accelerator) as vm:
        found = wait_for(lab, vm, lambda found: _state(found) not in ("", "fetching"),
                         what="waiting for the refusal")  # fmt: skip
        vm.power_button(seconds=240)
    lab.tell(updates.summary(found), time.monotonic() - began)
    assert _state(found) == "refused"
    assert [item["code"] for item in found["update"]["delivery"]["findings"]] == ["esp.space"]
    assert codes(found) == {"update.refused"}
    assert found["release"] == _FIRST
    assert list_esp(machine.disk, "/EFI/Linux") == before


@pytest.mark.matrix
def test_power_cut_while_fetching(lab: Lab, newer: ReleaseDir) -> None:
    """Cut off twice before anything is written; what was fetched is kept, and the third run completes."""
    _cut(lab, newer, ["fetched 60 %", "verifying it"], until="is installed; restarting")


@pytest.mark.matrix
def test_power_cut_while_writing(lab: Lab, newer: ReleaseDir) -> None:
    """Cut off three times while the other slot is written and named; the node comes back, and then runs 0.1.1."""
    _cut(
        lab,
        newer,
        ["writing the other slot", "writing the other slot+3", "is installed; restarting"],
        until="",
    )


def _cut(lab: Lab, release: ReleaseDir, points: list[str], *, until: str) -> None:
    """Switch off at each point (the seconds behind it later), then let it end: at ``until``, or in 0.1.1."""
    machine, began = lab.machine(), time.monotonic()
    with offered(lab, release) as folder:
        for point in points:
            words, _, later = point.partition("+")
            with switch_on(machine, accelerator=lab.accelerator) as vm:
                wait_for_words(lab, vm, words)
                time.sleep(float(later or 0))
        with switch_on(machine, accelerator=lab.accelerator) as vm:
            if until:
                wait_for_words(lab, vm, until)
            else:
                found = wait_for(
                    lab, vm, lambda found: found["release"] == _SECOND, what="waiting for the update"
                )
                assert found["state"] == "passed"
            vm.power_button(seconds=240)
    lab.tell(f"cut off at {len(points)} points, then whole", time.monotonic() - began)
    resumed = [start for name, start in folder.asked if name == "root.raw" and start]
    assert resumed or not until, folder.asked
