"""The predictions of a release where the demo doesn't reach: with Secure Boot off."""

from __future__ import annotations

import re

import pytest

from image.release_dir import ReleaseDir
from image.vm import BLANK_VARIABLES
from nodeos.core.release import BootPhase
from tests.vm.conftest import WORK
from tests.vm.lab import Lab, put_on_esp

pytestmark = pytest.mark.vm


@pytest.mark.matrix
def test_secure_boot_off(lab: Lab) -> None:
    """The state stays shut, and what the TPM measured is what was predicted for such a boot."""
    release = ReleaseDir.read(WORK / "image/release/release").release
    machine = lab.machine()
    machine.variables.write_bytes(BLANK_VARIABLES.read_bytes())
    put_on_esp(machine.disk, "loader/loader.conf", b"timeout 0\nsecure-boot-enroll off\n")
    outcome = lab.boot(machine)
    assert outcome.kind == "state"
    said = re.findall(rb"PCR ([0-9]+) is ([0-9a-f]{64})", machine.console.read_bytes())
    measured = {int(pcr): bytes.fromhex(value.decode()) for pcr, value in said}
    expected = dict(release.secure_boot_off["sha256"])
    expected[11] = release.pcr11["sha256"][BootPhase.ENTER_INITRD]
    expected |= {pcr: release.pcrs["sha256"][pcr] for pcr in (12, 13)}
    assert measured == expected
