"""A node whose TPM does not know it any more gets its state back from its operator."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import pytest

from hsm.softtpm import ManufacturerCa
from image.demo import free_port
from image.vm import Machine, switch_on
from nodeos.core.errors import ToolError
from nodeos.core.run import run
from tests.support.tpm_tools import clear
from tests.vm.counter import REPLICA, read_counter
from tests.vm.lab import SECONDS, Lab

pytestmark = pytest.mark.vm

# Where the demo left its counter.
COUNTER = 2


def test_cleared_tpm_and_recovery(lab: Lab) -> None:
    """The firmware's set-up cleared the TPM: storage root, rollback floor and the owner's password are gone."""
    machine = lab.machine()
    before = lab.attestation()
    clear(machine.tpm)
    after = recover(lab, machine)
    assert after["state"] in ("passed", "watch")
    for name in ("luks_uuid", "policy_keys", "policy_pcrs", "floor"):
        assert after["volume"][name] == before["volume"][name]
    # PCR 15 tells the volume by its key. How it was sealed the running system could not prove.
    assert after["pcrs"]["15"] == before["pcrs"]["15"]
    assert not after["volume"]["creation_proven"]
    # Nobody's help is needed from here on.
    assert lab.boot(machine).words in ("passed", "watch")


@pytest.mark.matrix
def test_replaced_tpm_and_recovery(lab: Lab) -> None:
    """Another TPM, by another maker that the registrar has come to trust: the operator must know of it."""
    machine = lab.machine()
    before = lab.attestation()
    maker = ManufacturerCa.create(lab.directory / "maker")
    run(
        [sys.executable, "-m", "nodeos", "registrar", "trust", "add", "--dir", lab.registrar, maker.roots],
        what="trusting the maker",
    )
    shutil.rmtree(machine.tpm.directory)
    machine.tpm.provision(maker)
    after = recover(lab, machine, "--new-tpm")
    assert after["state"] in ("passed", "watch")
    assert after["volume"]["luks_uuid"] == before["volume"]["luks_uuid"]
    assert after["pcrs"]["15"] == before["pcrs"]["15"]


def recover(lab: Lab, machine: Machine, *words: str) -> dict[str, Any]:
    """Switch on, answer as the operator, wait until the node is itself again, switch off. What the registrar made
    of the node's evidence then."""
    port, began = free_port(), time.monotonic()
    before = lab.attestation()["evidence"]
    waiting: list[dict[str, Any]] = []
    attested: list[dict[str, Any]] = []

    def asks() -> bool:
        waiting.extend(lab.operator("node", "recoveries"))
        return bool(waiting)

    def is_back() -> bool:
        found = lab.attestation()
        attested.extend([found] if found["evidence"] != before else [])
        return bool(attested)

    with switch_on(machine, accelerator=lab.accelerator, forward={port: REPLICA}) as vm:
        vm.wait_until(asks, seconds=SECONDS, what="waiting for the locked machine's request")
        locked = time.monotonic() - began
        (item,) = waiting
        assert item["node_id"] == lab.node
        assert lab.attestation()["evidence"] == before
        if words:
            with pytest.raises(ToolError, match=r"recovery\.new_tpm"):
                lab.operator("node", "recover", item["machine"], "--yes")
        done = lab.operator("node", "recover", item["machine"], "--yes", *words)
        assert done["node_id"] == lab.node
        # The machine restarts by itself.
        vm.wait_until(is_back, seconds=SECONDS, what="waiting for the node after its recovery")
        assert read_counter(lab, vm, port) == COUNTER
        vm.power_button(seconds=240)
    told = f"locked after {locked:.0f} s; recovered, {attested[0]['state']}, the counter is still {COUNTER}"
    lab.tell(told, time.monotonic() - began)
    assert lab.operator("node", "recoveries") == []
    return attested[0]
