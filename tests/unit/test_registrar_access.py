"""Who may reach a node: what the registrar knows of addresses, whom it tells, and what an administrator allows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nodeos.cli import main
from nodeos.core.access import AccessAnswer, AccessList
from nodeos.core.errors import RefusedError, UsageError
from nodeos.core.firewall import MAX_CLIENTS
from nodeos.core.protocol import AccessRequest, Challenge, EnrolmentState, Poll, poll_proof
from nodeos.core.wire import ParseError
from provisioning.registrar import admin, schema
from provisioning.registrar.lookups import ConflictError, NotFoundError
from tests.support import evidence as ev
from tests.support.registrar import Registrar, caller, center, poll


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    yield made
    made.store.close()


class Node:
    """A machine that attested, and its session."""

    def __init__(self, registrar: Registrar, machine: ev.Machine) -> None:
        self.registrar, self.machine, self.counter = registrar, machine, 0
        self.challenge = self.attest()

    def attest(self) -> Challenge:
        challenge = self.registrar.service.request(self.machine.request().to_bytes())
        self.registrar.service.evidence(self.machine.id, self.machine.answer(challenge).to_bytes())
        self.challenge, self.counter = challenge, 0
        return challenge

    def ask(self, have: bytes | None = None, **changes: object) -> AccessList | None:
        self.counter += 1
        session = self.challenge.session
        proof = poll_proof(self.machine.secret(self.challenge), session, self.counter)
        question = Poll(session=session, counter=self.counter, proof=proof)
        body = AccessRequest(poll=replace(question, **changes), have=have).to_bytes()  # type: ignore[arg-type]
        answer = self.registrar.service.access(self.machine.id, body)
        return AccessAnswer.parse(answer.to_bytes()).access


def inducted(registrar: Registrar, *addresses: IPv4Address | IPv6Address, number: int = 0) -> Node:
    machine = ev.Machine(number=number, keys=ev.node_keys(number + 1), addresses=addresses)
    node = Node(registrar, machine)
    registrar.approve(machine)
    return node


def shown(access: AccessList | None) -> tuple[list[str], list[str]]:
    assert access is not None
    return [str(address) for address in access.nodes], [str(prefix) for prefix in access.clients]


def code(error: pytest.ExceptionInfo[RefusedError]) -> list[str]:
    return [finding.code for finding in error.value.findings]


def test_each_node_is_told_all_nodes_and_the_clients_of_its_data_centre(registrar: Registrar) -> None:
    admin.add_center(registrar.store, center("dc2"))
    admin.allow_clients(registrar.store, "dc1", ["198.51.100.0/24", "2001:db8:f::/48"])
    admin.allow_clients(registrar.store, "dc2", ["203.0.113.0/24"])
    first = inducted(registrar, IPv6Address("2001:db8::1"), IPv4Address("192.0.2.1"))
    inducted(registrar, IPv6Address("2001:db8::2"), number=1)
    nodes = ["192.0.2.1", "2001:db8::1", "2001:db8::2"]
    assert shown(first.ask()) == (nodes, ["198.51.100.0/24", "2001:db8:f::/48"])
    assert registrar.operators.node(caller(), first.machine.id)["addresses"] == ["2001:db8::1", "192.0.2.1"]


def test_a_list_that_the_node_has_is_not_sent_again(registrar: Registrar) -> None:
    node = inducted(registrar, IPv6Address("2001:db8::1"))
    access = node.ask()
    assert access is not None
    assert node.ask(access.digest) is None
    assert shown(node.ask(bytes(32))) == shown(access)
    admin.allow_clients(registrar.store, "dc1", ["10.0.2.2"])
    assert shown(node.ask(access.digest)) == (["2001:db8::1"], ["10.0.2.2/32"])


def test_the_addresses_are_those_of_the_last_good_attestation(registrar: Registrar) -> None:
    node = inducted(registrar, IPv6Address("2001:db8::1"))
    node.machine.reboot()
    node.machine.addresses = (IPv6Address("2001:db8::9"),)
    node.attest()
    assert shown(node.ask())[0] == ["2001:db8::9"]
    good = node.challenge, node.counter
    node.machine.reboot()
    node.machine.addresses = (IPv6Address("2001:db8::bad"),)
    node.machine.keys = replace(node.machine.keys, committee=ev.node_keys(2).committee)
    node.attest()
    with pytest.raises(ConflictError) as error:
        node.ask()
    assert code(error) == ["access.no_node"]
    assert registrar.operators.node(caller(), node.machine.id)["addresses"] == ["2001:db8::9"]
    assert good


def test_a_machine_that_is_no_node_is_told_nothing_and_is_on_no_list(registrar: Registrar) -> None:
    waiting = Node(registrar, ev.Machine(addresses=(IPv6Address("2001:db8::5"),)))
    with pytest.raises(ConflictError) as error:
        waiting.ask()
    assert code(error) == ["access.no_node"]
    other = inducted(registrar, IPv6Address("2001:db8::1"), number=1)
    assert shown(other.ask())[0] == ["2001:db8::1"]


def test_only_the_holder_of_the_session_is_told(registrar: Registrar) -> None:
    node = inducted(registrar, IPv6Address("2001:db8::1"))
    with pytest.raises(RefusedError) as error:
        node.ask(proof=bytes(32))
    assert code(error) == ["poll.proof"]
    node.ask()
    with pytest.raises(ConflictError) as error:
        node.counter = 0
        node.ask()
    assert code(error) == ["poll.counter"]
    secret = node.machine.secret(node.challenge)
    with pytest.raises(ConflictError):  # one counter for all questions
        registrar.service.poll(node.machine.id, poll(node.challenge.session, secret, 1))
    with pytest.raises(NotFoundError):
        node.ask(session="0" * 32)
    registrar.clock.at += 8 * 86400
    node.counter = 10
    with pytest.raises(ConflictError) as error:
        node.ask()
    assert code(error) == ["nonce.expired"]


def test_before_its_evidence_a_machine_is_told_nothing(registrar: Registrar) -> None:
    node = inducted(registrar, IPv6Address("2001:db8::1"))
    node.challenge = registrar.service.request(node.machine.request().to_bytes())
    with pytest.raises(ConflictError) as error:
        node.ask()
    assert code(error) == ["poll.early"]


@pytest.mark.parametrize("text", ["::1", "ff02::1", "fe80::1", "192.0.2.1/24", "x"])
def test_a_statement_with_another_address_is_refused(registrar: Registrar, text: str) -> None:
    machine = ev.Machine()
    challenge = registrar.service.request(machine.request().to_bytes())
    stated = json.loads(machine.statement().to_bytes())
    stated["addresses"] = ["2001:db8::1", text]
    given = machine.evidence(
        session=challenge.session,
        nonce=challenge.nonce,
        secret=machine.secret(challenge),
        statement=json.dumps(stated, sort_keys=True, separators=(",", ":")).encode(),
    )
    found = registrar.service.evidence(machine.id, given.to_bytes())
    assert found.state is EnrolmentState.REFUSED
    [told] = [finding.message for finding in found.findings if finding.code == "statement.form"]
    assert "statement.addresses[1]" in told


def test_a_question_in_another_form_is_refused(registrar: Registrar) -> None:
    node = inducted(registrar, IPv6Address("2001:db8::1"))
    for body in (b"{}", b'{"poll":{},"have":null}', b"[]"):
        with pytest.raises(ParseError):
            registrar.service.access(node.machine.id, body)


def allowed(registrar: Registrar, name: str = "dc1") -> list[str]:
    with registrar.store.read() as tx:
        return tx.clients(name)


def events(registrar: Registrar) -> list[tuple[str, str]]:
    with registrar.store.read() as tx:
        rows = tx.audit(None, 100)
    found = [(row.event, row.detail["prefixes"]) for row in rows if row.event.startswith("clients-")]
    return found[::-1]


def test_what_is_allowed_and_withdrawn_is_audited(registrar: Registrar) -> None:
    admin.allow_clients(registrar.store, "dc1", ["10.0.0.0/8"])
    admin.allow_clients(registrar.store, "dc1", ["10.0.0.0/8", "2001:DB8::/32"])
    admin.allow_clients(registrar.store, "dc1", ["10.0.0.0/8"])
    assert allowed(registrar) == ["10.0.0.0/8", "2001:db8::/32"]
    left = admin.allow_clients(registrar.store, "dc1", ["10.0.0.0/8"], withdraw=True)
    assert [str(prefix) for prefix in left] == allowed(registrar) == ["2001:db8::/32"]
    assert events(registrar) == [
        ("clients-allowed", "10.0.0.0/8"),
        ("clients-allowed", "2001:db8::/32"),
        ("clients-withdrawn", "10.0.0.0/8"),
    ]


def test_what_can_not_be_allowed_changes_nothing(registrar: Registrar) -> None:
    for prefixes, words in (
        (["10.0.0.0/8", "0.0.0.0/0"], "more than unicast"),
        (["10.0.0.0/8", "10.0.0.1/8"], "no IP prefix"),
        ([f"10.{n >> 8}.{n & 255}.0/24" for n in range(MAX_CLIENTS + 1)], "at most"),
    ):
        with pytest.raises(UsageError, match=words):
            admin.allow_clients(registrar.store, "dc1", prefixes)
    with pytest.raises(UsageError, match="no data centre dc9"):
        admin.allow_clients(registrar.store, "dc9", ["10.0.0.0/8"])
    with pytest.raises(UsageError, match="not allowed at dc1"):
        admin.allow_clients(registrar.store, "dc1", ["10.0.0.0/8"], withdraw=True)
    assert allowed(registrar) == []
    assert events(registrar) == []


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["registrar", "dc", *words])
    return int(ended.value.code or 0)


def test_on_the_command_line(registrar: Registrar, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(registrar.directory.root)
    assert run("allow", "--dir", directory, "dc1", "10.0.2.2", "2001:db8::/32") == 0
    assert capsys.readouterr().out == "dc1: port 8080 is open to 10.0.2.2/32, 2001:db8::/32\n"
    assert run("list", "--dir", directory) == 0
    assert "clients from 10.0.2.2/32" in capsys.readouterr().out
    assert run("disallow", "--dir", directory, "dc1", "10.0.2.2", "2001:db8::/32") == 0
    assert capsys.readouterr().out == "dc1: no client is allowed\n"
    assert run("allow", "--dir", directory, "dc1", "10.0.2.2/8") == 2
    assert "'10.0.2.2/8' is no IP prefix" in capsys.readouterr().err
    assert run("allow", "--dir", directory, "dc1") == 2


def test_nodes_of_an_older_database_have_no_addresses_yet(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as connection:
        for number, migration in enumerate(schema.MIGRATIONS[:4], 1):
            migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(
            "INSERT INTO node VALUES ('n', 'm', 'd', 's', 't', 'c', x'', x'', '{}', 'u', 'b', 'e')"
        )
        assert schema.migrate(connection) == len(schema.MIGRATIONS) - 4
        assert connection.execute("SELECT addresses FROM node").fetchone() == ("[]",)
