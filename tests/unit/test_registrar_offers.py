"""Offers of a release: who gets them, what they stand on, and what ends them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeos.cli import root
from nodeos.core.errors import Finding, UsageError
from nodeos.core.protocol import Delivery, DeliveryState, EnrolmentState, Offer, Outcome, UpdateStatus
from nodeos.core.wire import Fields, ParseError, canonical_json
from provisioning.registrar import admin
from provisioning.registrar.rows import AuditRow
from tests.support import evidence as ev
from tests.support.registrar import Registrar, caller, center

URL = "http://192.0.2.7/releases/1.2.3"


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def machine(registrar: Registrar) -> ev.Machine:
    """A node."""
    found = ev.Machine()
    registrar.attest(found)
    registrar.approve(found)
    found.reboot()
    return found


def version() -> str:
    return ev.release().version


def offer(registrar: Registrar, *, rollback: bool = False) -> int:
    return admin.offer_release(registrar.store, version(), "dc1", URL, rollback=rollback).number


def test_a_node_of_the_data_centre_is_offered_the_release(registrar: Registrar, machine: ev.Machine) -> None:
    number = offer(registrar, rollback=True)
    found = registrar.attest(machine)
    with registrar.store.read() as tx:
        document = tx.releases()[0].document
    manifest = hashlib.sha256(document).digest()
    wanted = Offer(number=number, version=version(), manifest=manifest, url=URL, rollback=True)
    assert found.offer == wanted
    assert Outcome.parse(found.to_bytes()) == found


def test_nobody_else_is(registrar: Registrar, machine: ev.Machine) -> None:
    admin.add_center(registrar.store, center("dc2"))
    admin.offer_release(registrar.store, version(), "dc2", URL, rollback=False)
    assert registrar.attest(machine).offer is None
    offer(registrar)
    machine.release = "9.9.9"
    refused = registrar.attest(machine)
    assert (refused.state, refused.offer) == (EnrolmentState.REFUSED, None)


def test_a_machine_that_waits_is_offered_nothing(registrar: Registrar) -> None:
    offer(registrar)
    outcome = registrar.attest(ev.Machine())
    assert outcome.state is EnrolmentState.PENDING
    assert outcome.offer is None


def test_an_offer_is_for_an_accepted_release_and_a_known_data_centre(registrar: Registrar) -> None:
    with pytest.raises(UsageError, match="no release 9"):
        admin.offer_release(registrar.store, "9", "dc1", URL, rollback=False)
    with pytest.raises(UsageError, match="data centre dc9"):
        admin.offer_release(registrar.store, version(), "dc9", URL, rollback=False)
    with pytest.raises(UsageError, match="not the address of a folder"):
        admin.offer_release(registrar.store, version(), "dc1", "file:///releases", rollback=False)
    admin.withdraw_release(registrar.store, version())
    with pytest.raises(UsageError, match="no release"):
        offer(registrar)


def test_a_new_offer_takes_the_place_of_the_one_before(registrar: Registrar, machine: ev.Machine) -> None:
    first, second = offer(registrar), offer(registrar)
    assert second > first
    found = registrar.attest(machine).offer
    assert found is not None
    assert found.number == second
    admin.withdraw_offer(registrar.store, version(), "dc1")
    assert registrar.attest(machine).offer is None
    with pytest.raises(UsageError, match="is not offered to dc1, but nothing"):
        admin.withdraw_offer(registrar.store, version(), "dc1")
    events = [row.event for row in _audit(registrar)]
    assert events[:3] == ["offer-withdrawn", "release-offered", "release-offered"]


def test_a_withdrawn_release_is_not_offered(registrar: Registrar) -> None:
    offer(registrar)
    with registrar.store.read() as tx:
        assert tx.offer("dc1") is not None
    admin.withdraw_release(registrar.store, version())
    with registrar.store.read() as tx:
        assert tx.offer("dc1") is None


def _audit(registrar: Registrar) -> list[AuditRow]:
    with registrar.store.read() as tx:
        return [row for row in tx.audit(None, 20) if "offer" in row.event]


def test_what_the_node_made_of_it_is_shown(registrar: Registrar, machine: ev.Machine) -> None:
    offer(registrar)
    registrar.attest(machine)
    shown = registrar.operators.node(caller(), machine.id)
    assert shown["attestation"]["update"] is None, "this machine says nothing of updates"
    told = Finding(code="esp.space", message="full")
    delivery = Delivery(number=1, version="2.0", state=DeliveryState.REFUSED, boot_id="b", findings=(told,))
    status = UpdateStatus(running=machine.release, blessed=True, delivery=delivery)
    challenge = registrar.service.request(machine.request().to_bytes())
    given = machine.evidence(
        session=challenge.session, nonce=challenge.nonce, secret=machine.secret(challenge),
        statement=replace(machine.statement(), update=status).to_bytes(),
    )  # fmt: skip
    outcome = registrar.service.evidence(machine.id, given.to_bytes())
    assert outcome.state is EnrolmentState.INDUCTED
    assert outcome.findings == (Finding(code="update.refused", message="2.0: esp.space: full"),)
    shown = registrar.operators.node(caller(), machine.id)
    assert shown["attestation"]["update"] == status.to_json()
    assert UpdateStatus.parse(Fields(status.to_json(), "update")) == status


def test_an_offer_is_only_for_nodes() -> None:
    value = {
        "state": "pending", "findings": [], "poll_after": 1, "node": None,
        "offer": Offer(number=1, version="1", manifest=bytes(32), url=URL).to_json(),
    }  # fmt: skip
    with pytest.raises(ParseError, match=r"outcome\.offer: only a node"):
        Outcome.parse(canonical_json(value))


def test_a_status_with_an_unknown_state_is_refused() -> None:
    delivery = {"number": 1, "version": "1", "state": "bored", "boot_id": "b", "findings": []}
    status = {"running": "1", "blessed": True, "failed": None, "delivery": delivery}
    with pytest.raises(ParseError, match=r"delivery\.state: 'bored' is not one of"):
        UpdateStatus.parse(Fields(status, "update"))


def test_the_command(registrar: Registrar) -> None:
    directory = str(registrar.directory.root)

    def nodeos(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(root, ["--json", "registrar", "release", *words, "--dir", directory])
        return done.exit_code, done.stdout

    assert nodeos("offer", version(), "--dc", "dc1")[0] == 2
    assert nodeos("offer", version(), "--dc", "dc1", "--withdraw", "--rollback")[0] == 2
    code, words = nodeos("offer", version(), "--dc", "dc1", "--url", URL)
    assert (code, json.loads(words)["number"]) == (0, 1)
    assert json.loads(nodeos("list")[1])[0]["offered_to"] == ["dc1"]
    code, words = nodeos("offer", version(), "--dc", "dc1", "--withdraw")
    assert (code, json.loads(words)["withdrawn"]) == (0, True)
