"""Why the state volume needs both halves of its policy: each alone lets one of these systems in.

Each attacker holds the machine, its disks, its TPM and every file of the release, and boots a system of their
own on it. That our own system does open the volume is the demo's second boot.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from image.keys import KeySet
from image.measure import Uki
from image.release_dir import ReleaseDir
from image.vm import BLANK_VARIABLES, Machine, switch_on
from nodeos.core import layout
from nodeos.core.gpt import Partition
from nodeos.core.release import BootPhase
from tests.support import attack
from tests.vm.conftest import WORK, Demo
from tests.vm.lab import table_of

pytestmark = pytest.mark.vm
_SECONDS = 420


@pytest.fixture(scope="module")
def built(demo: Demo) -> ReleaseDir:
    assert demo.code == 0, demo.summary["error"]
    return ReleaseDir.read(WORK / "image/release/release")


@pytest.mark.matrix
def test_replayed_pcr_11_without_secure_boot(
    stolen: Machine, built: ReleaseDir, accelerator: str, tmp_path: Path
) -> None:
    """PCR 11 begins at zero for any system that the stub did not measure, so its value can be replayed.

    With Secure Boot off anything boots. PCR 11 is then just what the signature allows; PCR 7 is what stops it.
    """
    uki = Uki.read(built.uki)
    release = built.release
    stolen.variables.write_bytes(BLANK_VARIABLES.read_bytes())
    kernel, initrd, report = (tmp_path / name for name in ("kernel", "initrd", "report"))
    kernel.write_bytes(uki.sections[".linux"])
    initrd.write_bytes(attack.initrd(uki, extend=attack.replay_of_pcr11(uki)))
    direct = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", attack.COMMAND_LINE]
    with switch_on(stolen, accelerator=accelerator, port=report, extra=direct) as vm:
        vm.wait_for_exit(seconds=_SECONDS)
    verdict = attack.Verdict.read(report)
    assert verdict.pcr11 == release.pcr11["sha256"][BootPhase.ENTER_INITRD], "the replay itself must succeed"
    assert verdict.pcr7 != release.pcrs["sha256"][7]
    assert not verdict.opened
    assert verdict.errors, "the TPM must have refused, not the attack have failed"


def test_another_system_that_is_validly_signed(
    stolen: Machine, built: ReleaseDir, accelerator: str, tmp_path: Path
) -> None:
    """PCR 7 is the same for everything that our key signed. The signed policy for PCR 11 is what stops it."""
    uki = Uki.read(built.uki)
    release = built.release
    keys = KeySet(directory=WORK / "keys")
    other = attack.signed_uki(
        uki,
        work=WORK,
        scratch=tmp_path / "uki",
        key=keys.path("db.key"),
        certificate=keys.path("db.crt"),
    )
    attack.replace_uki(stolen.disk, other)
    report = tmp_path / "report"
    with switch_on(stolen, accelerator=accelerator, port=report) as vm:
        vm.wait_for_exit(seconds=_SECONDS)
    verdict = attack.Verdict.read(report)
    assert verdict.pcr7 == release.pcrs["sha256"][7], "the firmware must have taken it for one of ours"
    assert verdict.pcr11 != release.pcr11["sha256"][BootPhase.ENTER_INITRD]
    assert not verdict.opened
    assert verdict.errors, "the TPM must have refused, not the attack have failed"


@pytest.mark.matrix
def test_a_kernel_signed_by_itself(
    stolen: Machine, built: ReleaseDir, accelerator: str, tmp_path: Path
) -> None:
    """What the build prevents (`check_kernel_signer`).

    The firmware takes the kernel for one of ours, so PCR 7 is right; no stub measures, so PCR 11 can be replayed.
    The boot loader measures the command line that it passes on, and that is what stops this one. A firmware that
    starts such a kernel by itself measures none: only whole UKIs may ever be signed.
    """
    uki = Uki.read(built.uki)
    release = built.release
    keys = KeySet(directory=WORK / "keys")
    kernel = attack.signed_kernel(
        uki,
        work=WORK,
        scratch=tmp_path / "kernel",
        key=keys.path("db.key"),
        certificate=keys.path("db.crt"),
    )
    ramdisk = tmp_path / "initrd"
    ramdisk.write_bytes(attack.initrd(uki, extend=attack.replay_of_pcr11(uki)))
    attack.plant_entry(stolen.disk, kernel, ramdisk)
    report = tmp_path / "report"
    with switch_on(stolen, accelerator=accelerator, port=report) as vm:
        vm.wait_for_exit(seconds=_SECONDS)
    verdict = attack.Verdict.read(report)
    assert verdict.pcr7 == release.pcrs["sha256"][7]
    assert verdict.pcr11 == release.pcr11["sha256"][BootPhase.ENTER_INITRD]
    assert not verdict.opened
    assert "Different: 12 " in verdict.errors[0]


@pytest.mark.matrix
def test_foreign_data_are_left_alone(stolen: Machine, accelerator: str) -> None:
    """A state partition with somebody's file system is not made into a volume, and the node does not start."""
    part = layout.state(table_of(stolen.disk))
    attack.put_file_system(stolen.disk, part, label="BACKUP")
    before = _digest(stolen.disk, part)
    with switch_on(stolen, accelerator=accelerator) as vm:
        # The console is read only to know when the machine has come to its decision.
        words = b"holds data that are no state volume"
        vm.wait_until(lambda: words in _console(stolen), seconds=_SECONDS, what="the refusal")
    assert _digest(stolen.disk, part) == before


def _console(machine: Machine) -> bytes:
    return machine.console.read_bytes() if machine.console.exists() else b""


def _digest(disk: Path, part: Partition) -> str:
    digest = hashlib.sha256()
    with disk.open("rb") as file:
        file.seek(part.start)
        for _ in range(part.size >> 20):
            digest.update(file.read(1 << 20))
    return digest.hexdigest()
