"""New keys for Secure Boot and for the state policy over two updates, and a dbx that grows: nobody is locked out.

The updates are put on the disk from outside; everything after that is the node's own doing: it starts the new
version on trial, is attested, blesses the boot, and writes the release's variables to its firmware.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image import forbidden, rotation
from image.demo import free_port
from image.efivars import Update
from image.keys import KeySet
from image.release_dir import ReleaseDir
from image.sign import sign
from image.unsigned import Unsigned
from image.vm import BLANK_VARIABLES, Machine, switch_on
from nodeos.core.run import run
from nodeos.update.entries import BootEntry
from tests.support.derived_build import derive
from tests.support.firmware_variables import read_variables
from tests.vm.conftest import WORK, Demo
from tests.vm.counter import REPLICA, read_counter
from tests.vm.lab import SECONDS, Lab, copy_machine, put_on_esp
from tests.vm.offline_update import put_uki, put_update, remove_uki, uki_names

pytestmark = [pytest.mark.vm, pytest.mark.matrix]

_ROTATED = ("KEK", "db", "pcr")
_FIRST, _SECOND = "0.1.1", "0.1.2"
# After the variables the blessing has only to forget keys and to clean up.
_SETTLED = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """Two releases: one signed while the rotation was under way, one after its end. ``kept`` is the machine after
    the first, once there is one."""

    first: ReleaseDir
    second: ReleaseDir
    old: ReleaseDir
    directory: Path

    @property
    def kept(self) -> Machine:
        return Machine(directory=self.directory / "kept")


def no_pin(name: str) -> str:
    raise AssertionError(f"the key {name} is in a file")


@pytest.fixture(scope="module")
def updates(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Updates:
    """Made of the demo's build, by a copy of its keys."""
    assert demo.code == 0, demo.summary["error"]
    directory = tmp_path_factory.mktemp("updates")
    shutil.copytree(WORK / "keys", directory / "keys")
    keys, built = KeySet(directory=directory / "keys"), Unsigned.read(WORK / "image/release/unsigned")

    def release(name: str, version: str, later: int, pcr: KeySet) -> ReleaseDir:
        pem = pcr.public_pem("pcr")
        made = derive(built, directory / f"unsigned-{name}", version=version, later=later, policy_key=pem)
        return sign(made, keys, directory / name, pin=no_pin, allow_drift=True)

    following = rotation.begin(keys, _ROTATED)
    first = release("first", _FIRST, 60, following)
    rotation.finish(keys)
    second = release("second", _SECOND, 120, keys)
    old = ReleaseDir.read(WORK / "image/release/release")
    return Updates(first=first, second=second, old=old, directory=directory)


@pytest.fixture(autouse=True)
def token(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's token, for this process."""
    for name, value in lab.token_environment.items():
        monkeypatch.setenv(name, value)


def test_key_rotation_over_two_updates(lab: Lab, updates: Updates, tmp_path: Path) -> None:
    machine = after_first(lab, updates, tmp_path)
    put_update(lab, machine, updates.second, _FIRST, tmp_path / "second")
    trial = run_trial(lab, machine, updates.second)
    # The way back was open until the blessing: the boot loader on the ESP was still the one by the old key.
    assert "boot loader by the retired key" in state_of(trial, updates.second)
    lists = read_variables(machine.variables)
    assert [lists[name] for name in ("KEK", "db", "dbx")] == list(values(updates.second).values())
    port = free_port()
    with switch_on(machine, accelerator=lab.accelerator, forward={port: REPLICA}) as vm:
        found = lab.wait(vm)
        assert found.kind == "attested"
        assert read_counter(lab, vm, port) == 2
        vm.power_button(seconds=240)
    judged = found.judgement
    assert judged["pcrs"]["7"] == updates.second.release.pcrs["sha256"][7].hex()
    (new,) = updates.second.release.keys.pcr
    assert judged["volume"]["policy_keys"] == [new.hex()]
    # The keys that were retired start nothing more.
    for name in uki_names(machine):
        remove_uki(machine, name)
    put_uki(machine, "nodeos_0.1.0.efi", updates.old.uki.read_bytes())
    assert lab.boot(machine).kind == "firmware"


def test_power_cut_between_the_variables(lab: Lab, updates: Updates, tmp_path: Path) -> None:
    """The second update's db is written, its dbx is not yet: the node starts, and finishes."""
    machine = after_first(lab, updates, tmp_path)
    release = updates.second
    put_update(lab, machine, release, _FIRST, tmp_path / "second")
    for name in uki_names(machine):
        remove_uki(machine, name)
    # The firmware forgets its keys, and the boot loader enrols what was written before the cut.
    put_uki(machine, f"nodeos_{_SECOND}.efi", release.uki.read_bytes())
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        put_on_esp(machine.disk, name, release.bootloader.read_bytes())
    for name in ("PK", "KEK", "db"):
        put_on_esp(machine.disk, f"loader/keys/auto/{name}.auth", release.path(f"{name}.auth").read_bytes())
    machine.variables.write_bytes(BLANK_VARIABLES.read_bytes())
    trial = run_trial(lab, machine, release)
    assert state_of(trial, release) == "db current; KEK current; dbx empty"


def test_dbx_update(lab: Lab, demo: Demo, tmp_path: Path) -> None:
    """A release forbids the one before it by its hash: the same keys, another dbx."""
    assert demo.code == 0, demo.summary["error"]
    shutil.copytree(WORK / "keys", tmp_path / "keys")
    keys, old = KeySet(directory=tmp_path / "keys"), ReleaseDir.read(WORK / "image/release/release")
    forbidden.forbid(keys, [old.uki])
    built = Unsigned.read(WORK / "image/release/unsigned")
    made = derive(built, tmp_path / "unsigned", version=_FIRST, later=60)
    release = sign(made, keys, tmp_path / "release", pin=no_pin, allow_drift=True)
    add_release(lab, release)
    machine = lab.machine()
    put_update(lab, machine, release, "0.1.0", tmp_path / "update")
    trial = run_trial(lab, machine, release)
    assert state_of(trial, release) == "db current; KEK current; dbx empty, no forbidden images"
    outcome = lab.boot(machine)
    assert outcome.kind == "attested"
    words = "db current; KEK current; dbx empty, all forbidden images"
    assert state_of(outcome.judgement, release) == words
    for name in uki_names(machine):
        remove_uki(machine, name)
    put_uki(machine, "nodeos_0.1.0.efi", old.uki.read_bytes())
    assert lab.boot(machine).kind == "firmware"


def after_first(lab: Lab, updates: Updates, scratch: Path) -> Machine:
    """The demo's machine once the first update is blessed."""
    for release in (updates.first, updates.second):
        add_release(lab, release)
    if not updates.kept.directory.exists():
        machine = lab.machine("first")
        put_update(lab, machine, updates.first, "0.1.0", scratch / "first-update")
        trial = run_trial(lab, machine, updates.first)
        # Before the blessing all variables are as they were. The volume has a second key already.
        assert trial["pcrs"]["7"] == updates.old.release.pcrs["sha256"][7].hex()
        both = {key.hex() for key in updates.first.release.keys.pcr}
        assert len(both) == 2
        assert set(trial["volume"]["policy_keys"]) == both
        copy_machine(machine, updates.kept.directory)
    return copy_machine(updates.kept, lab.directory / "machine")


def run_trial(lab: Lab, machine: Machine, release: ReleaseDir) -> dict[str, Any]:
    """Start an update, wait until the node is attested and has written the release's variables, switch off. What
    the registrar made of its evidence."""
    began = time.monotonic()
    wanted = values(release)
    with switch_on(machine, accelerator=lab.accelerator) as vm:
        found = lab.wait(vm)
        assert found.kind == "attested", found.words
        attested = time.monotonic() - began

        def written() -> bool:
            lists = read_variables(machine.variables)
            return all(lists.get(name) == value for name, value in wanted.items())

        vm.wait_until(written, seconds=SECONDS, what="waiting for the release's variables in the firmware")
        done = time.monotonic()
        vm.wait_until(lambda: time.monotonic() - done > _SETTLED, seconds=SECONDS, what="waiting")
        vm.power_button(seconds=240)
    version = release.release.version
    told = f"{version} on trial: {found.words} after {attested:.0f} s; blessed, {', '.join(wanted)} written"
    lab.tell(told, time.monotonic() - began)
    assert found.words in ("passed", "watch")
    assert BootEntry(version=version).name in uki_names(machine)
    return found.judgement


def values(release: ReleaseDir) -> dict[str, bytes]:
    """What the release makes of KEK, db and dbx."""
    enrolled = release.enrolled()
    return {name: Update.parse(enrolled[name]).data for name in ("KEK", "db", "dbx") if name in enrolled}


def state_of(judgement: Mapping[str, Any], release: ReleaseDir) -> str:
    """The name of the state of the variables, by the PCR 7 that the node quoted."""
    names = {item.sha256.hex(): item.name for item in release.release.accepted_pcr7}
    return names[judgement["pcrs"]["7"]]


def add_release(lab: Lab, release: ReleaseDir) -> None:
    run(
        [sys.executable, "-m", "nodeos", "registrar", "release", "add", "--dir", lab.registrar,
         "--release-key", WORK / "keys/release.pub.pem", release.manifest],
        what="adding a release to the registrar",
    )  # fmt: skip
