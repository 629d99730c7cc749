"""systemd takes credentials from places that no PCR of the state policy covers: none may reach our system."""

from __future__ import annotations

import base64

import pytest

from tests.vm.lab import Lab

pytestmark = pytest.mark.vm
_WORDS = "a credential took effect"


@pytest.mark.matrix
def test_credential_in_the_firmwares_tables(lab: Lab) -> None:
    """The OEM strings of SMBIOS are a text in the firmware's set-up. A credential there that changes a unit of the
    initrd would run as root where the state can be unsealed."""
    machine = lab.machine()
    dropin = f"[Service]\nExecStartPre=/bin/echo {_WORDS}\n".encode()
    name = "io.systemd.credential.binary:systemd.unit-dropin.nodeos-state.service"
    value = f"{name}={base64.b64encode(dropin).decode()}"
    outcome = lab.boot(machine, extra=["-smbios", f"type=11,value={value}"])
    assert outcome.kind == "attested"
    assert _WORDS.encode() not in machine.console.read_bytes()
