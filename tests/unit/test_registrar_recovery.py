"""The escrow of recovery keys, and a locked node's way back: each refusal alone, and the whole path."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hsm.identity import FileAgreement, FileSigner, OperatorKeys
from nodeos.agent.recovery import open_answer
from nodeos.core.errors import RefusedError
from nodeos.core.protocol import EnrolmentState, poll_proof
from nodeos.core.recovery import RecoveryBlob
from nodeos.core.recovery_request import (
    LockedStatement,
    RecoveryAnswer,
    RecoveryOutcome,
    RecoveryState,
)
from nodeos.core.wire import ParseError
from provisioning.registrar.lookups import NotFoundError
from provisioning.registrar.recoveries import REQUEST_SECONDS
from tests.support import evidence as ev
from tests.support.recovery import LockedMachine, approve, operator_keys
from tests.support.registrar import Registrar, caller, poll

OTHER = ec.derive_private_key(5, ec.SECP256R1())
UUID2 = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = Registrar(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def node(registrar: Registrar) -> ev.Machine:
    """A node whose TPM was cleared after it was enrolled."""
    machine = ev.Machine()
    registrar.attest(machine)
    approve(registrar, machine)
    machine.reboot()
    registrar.attest(machine)
    machine.clear_tpm()
    return machine


def codes(outcome: RecoveryOutcome) -> list[str]:
    return [f.code for f in outcome.findings]


def refused(call: Callable[[], object]) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        call()
    return [f.code for f in caught.value.findings]


# Escrow


@pytest.mark.parametrize(
    ("code", "blob"),
    [
        ("recovery.form", b"{}"),
        ("recovery.form", b" "),
        ("machine", ev.recovery_blob("ab" * 32, ev.Machine().luks_uuid, ev.spki(ev.RECOVERY))),
        ("volume", ev.recovery_blob(ev.Machine().id, UUID2, ev.spki(ev.RECOVERY))),
        ("operator_key", ev.recovery_blob(ev.Machine().id, ev.Machine().luks_uuid, ev.spki(OTHER))),
    ],
)
def test_enrolment_without_a_fitting_recovery_key_is_refused(
    registrar: Registrar, code: str, blob: bytes
) -> None:
    outcome = registrar.attest(machine := ev.Machine(recovery=blob))
    assert outcome.state is EnrolmentState.REFUSED
    assert [f.code for f in outcome.findings] == [code if "." in code else f"recovery.{code}"]
    with registrar.store.read() as tx:
        assert tx.escrows(machine.id) == {}


def test_escrow_is_kept_once_and_for_ever(registrar: Registrar, node: ev.Machine) -> None:
    blob = ev.recovery_blob(node.id, node.luks_uuid, node.site.operator_key)
    with registrar.store.read() as tx:
        assert tx.escrows(node.id) == {node.luks_uuid: (blob,)}
    assert registrar.events(node).count("recovery-escrowed") == 1
    for sql in ("DELETE FROM escrow", "UPDATE escrow SET machine = machine"):
        with pytest.raises(sqlite3.IntegrityError, match="never"), registrar.store.write() as tx:
            tx._db.execute(sql)


def test_another_operator_key_in_the_site_is_watched_for_a_kept_blob(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    approve(registrar, machine)
    machine.recovery = machine.statement().recovery
    machine.reboot()
    machine.site = replace(machine.site, operator_key=ev.spki(OTHER))
    outcome = registrar.attest(machine)
    assert (outcome.state, [f.code for f in outcome.findings]) == (
        EnrolmentState.INDUCTED,
        ["recovery.operator_key"],
    )


def test_another_blob_for_a_node_is_kept_beside_the_first(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)
    approve(registrar, machine)
    first = machine.statement().recovery
    machine.reboot()
    machine.recovery = replace(RecoveryBlob.parse(first), keyslot=3).to_bytes()
    assert registrar.attest(machine).state is EnrolmentState.INDUCTED
    with registrar.store.read() as tx:
        assert tx.escrows(machine.id) == {machine.luks_uuid: (first, machine.recovery)}


# The whole path


def test_cleared_tpm_gets_its_state_back(registrar: Registrar, node: ev.Machine) -> None:
    with registrar.store.read() as tx:
        row = tx.node(node.id)
    assert row is not None
    locked = LockedMachine.make(registrar, node)
    outcome = locked.send()
    assert (outcome.state, codes(outcome)) == (RecoveryState.WAITING, [])
    assert locked.send() == outcome  # the same evidence again
    (listed,) = locked.service.listed(caller())["recoveries"]
    assert (listed["machine"], listed["state"], listed["node_id"]) == (node.id, "locked", row.node_id)
    assert registrar.operators.enrolment(caller(), node.id)["locked"]

    asked = locked.check()
    assert asked.same_tpm
    answer = locked.answer()
    locked.give(answer)
    locked.give(answer)  # again, after an answer that got lost
    assert locked.service.listed(caller()) == {"recoveries": []}

    secret = node.secret(locked.challenge)
    done = locked.service.poll(node.id, poll(locked.challenge.session, secret, 0))
    assert (done.state, done.answer) == (RecoveryState.ANSWERED, answer)
    assert done.answer is not None
    key = open_answer(done.answer, locked.evidence.digest, locked.fresh, node.site.operator)
    assert key == ev.RECOVERY_KEY

    node.reboot()
    again = registrar.attest(node)
    assert (again.state, again.findings) == (EnrolmentState.INDUCTED, ())
    assert again.node is not None
    assert str(again.node.node_id) == row.node_id
    assert registrar.events(node)[-4:] == [
        "recovery-requested",
        "recovery-answered",
        "recovered",
        "evidence-accepted",
    ]
    node.reboot()
    assert registrar.attest(node).findings == ()


def test_counters_that_went_back_are_refused_without_a_recovery(
    registrar: Registrar, node: ev.Machine
) -> None:
    LockedMachine.make(registrar, node).send()  # nobody answers
    node.reboot()
    outcome = registrar.attest(node)
    assert [f.code for f in outcome.findings] == ["quote.reset_count"]


def new_tpm(node: ev.Machine) -> ev.Machine:
    """The same disk in a machine with another TPM."""
    recovery = node.statement().recovery
    return replace(node, number=1, ak=ev.new_ak(), recovery=recovery)


def test_replaced_tpm_takes_the_node_with_it(registrar: Registrar, node: ev.Machine) -> None:
    machine = new_tpm(node)
    locked = LockedMachine.make(registrar, machine)
    assert locked.send().state is RecoveryState.WAITING
    (listed,) = locked.service.listed(caller())["recoveries"]
    assert [f["code"] for f in listed["findings"]] == ["recovery.new_tpm"]
    assert refused(locked.check) == ["recovery.new_tpm"]
    answer = locked.answer(new_tpm=True)
    assert refused(lambda: locked.give(signed(answer, new_tpm=False))) == [
        "recovery.new_tpm"
    ]  # the registrar asks the same
    locked.give(answer)

    machine.reboot()
    outcome = registrar.attest(machine)
    assert (outcome.state, outcome.findings) == (EnrolmentState.INDUCTED, ())
    assert outcome.node is not None
    assert outcome.node.machine == machine.id
    assert outcome.node.keys == node.keys
    assert registrar.operators.node(caller(), str(outcome.node.node_id))["machine"] == machine.id
    # The former TPM is no node any more.
    node.reboot()
    former = registrar.attest(node)
    assert former.state is EnrolmentState.REJECTED
    assert "identity.duplicate" in [f.code for f in former.findings]
    # The blob still names the former TPM, and is good for another recovery.
    machine.clear_tpm()
    second = LockedMachine.make(registrar, machine)
    assert second.send().state is RecoveryState.WAITING
    second.give(second.answer(new_tpm=True))


def test_new_tpm_without_the_nodes_keys_gets_no_node(registrar: Registrar, node: ev.Machine) -> None:
    """An answered recovery is worth nothing to who can't show what is on the volume."""
    machine = new_tpm(node)
    locked = LockedMachine.make(registrar, machine)
    locked.send()
    locked.give(locked.answer(new_tpm=True))
    machine.reboot()
    machine.keys, machine.volume = ev.node_keys(2), b"another key"
    outcome = registrar.attest(machine)
    assert outcome.state is EnrolmentState.REFUSED
    assert {f.code for f in outcome.findings} == {
        "pcr.15",
        "identity.signing",
        "identity.tls_certificate",
        "identity.committee",
    }


# Refusals of a request, each for one reason


def test_pcr_15_must_be_zero(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.evidence = node.ask(locked.challenge, locked.fresh.public_key, pcrs=node.pcrs)
    assert codes(locked.send()) == ["recovery.pcr15"]
    assert registrar.events(node)[-1] == "recovery-refused"
    assert locked.service.listed(caller()) == {"recoveries": []}


STATEMENTS: dict[str, Callable[[LockedStatement], LockedStatement]] = {
    "recovery.volume": lambda s: replace(
        s, recovery=ev.recovery_blob(ev.Machine().id, s.luks_uuid, ev.spki(OTHER))
    ),
    "recovery.fresh_key": lambda s: replace(s, fresh_key=ev.spki(ev.OPERATOR)),
    "release.unknown": lambda s: replace(s, release="9.9.9"),
    "fingerprint.form": lambda s: replace(s, fingerprint=b"\xff"),
}


@pytest.mark.parametrize("code", STATEMENTS)
def test_statement_that_does_not_fit(registrar: Registrar, node: ev.Machine, code: str) -> None:
    locked = LockedMachine.make(registrar, node)
    stated = STATEMENTS[code](node.locked_statement(locked.fresh.public_key)).to_bytes()
    locked.evidence = node.ask(locked.challenge, locked.fresh.public_key, statement=stated)
    assert codes(locked.send()) == [code]


def test_statement_of_an_enrolment_is_no_request(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    stated = node.statement().to_bytes()
    locked.evidence = node.ask(locked.challenge, locked.fresh.public_key, statement=stated)
    assert codes(locked.send()) == ["statement.form"]


def test_quote_of_an_enrolment_is_no_request(registrar: Registrar, node: ev.Machine) -> None:
    """The two protocols have their own domains."""
    locked = LockedMachine.make(registrar, node)
    stated = locked.evidence.statement
    enrolling = node.evidence(
        session=locked.challenge.session,
        nonce=locked.challenge.nonce,
        secret=node.secret(locked.challenge),
        statement=stated,
        pcrs=locked.evidence.pcrs,
    )
    locked.evidence = replace(locked.evidence, quote=enrolling.quote, signature=enrolling.signature)
    assert codes(locked.send()) == ["quote.nonce"]


@pytest.mark.parametrize(
    ("code", "pcr"), [("pcr.4", 4), ("pcr.7", 7), ("pcr.11", 11), ("pcr.12", 12), ("pcr.14", 14)]
)
def test_another_system_is_refused(registrar: Registrar, node: ev.Machine, code: str, pcr: int) -> None:
    locked = LockedMachine.make(registrar, node)
    pcrs = {**node.pcrs, 15: bytes(32), pcr: b"\x01" * 32}
    locked.evidence = node.ask(locked.challenge, locked.fresh.public_key, pcrs=pcrs)
    assert code in codes(locked.send())


def test_credential_must_be_opened(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node, secret_proof=bytes(32))
    assert codes(locked.send()) == ["credential.proof"]
    assert registrar.events(node)[-1] == "recovery-unproven"


def test_evidence_is_taken_once(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    other = FileAgreement(ec.generate_private_key(ec.SECP256R1()))
    locked.evidence = node.ask(locked.challenge, other.public_key)
    assert refused(locked.send) == ["nonce.used"]


def test_evidence_of_an_old_challenge_is_refused(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    registrar.clock.at += 601
    assert refused(locked.send) == ["nonce.expired"]


def test_volume_that_no_node_has_is_refused(registrar: Registrar) -> None:
    machine = ev.Machine()
    registrar.attest(machine)  # pending only
    assert codes(LockedMachine.make(registrar, machine).send()) == ["recovery.volume"]


def test_machine_that_is_a_node_takes_no_other_one(registrar: Registrar, node: ev.Machine) -> None:
    second = ev.Machine(number=1, keys=ev.node_keys(2), luks_uuid=UUID2)
    registrar.attest(second)
    approve(registrar, second)
    thief = new_tpm(node)
    thief.ak = second.ak
    assert codes(LockedMachine.make(registrar, thief).send()) == ["recovery.other_node"]


def test_polls_are_authenticated(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    session, secret = locked.challenge.session, node.secret(locked.challenge)
    early = poll(session, secret, 0)
    assert refused(lambda: locked.service.poll(node.id, early)) == ["poll.early"]
    locked.send()
    assert locked.service.poll(node.id, poll(session, secret, 1)).state is RecoveryState.WAITING
    assert refused(lambda: locked.service.poll(node.id, poll(session, secret, 1))) == ["poll.counter"]
    wrong = poll(session, bytes(32), 2)
    assert refused(lambda: locked.service.poll(node.id, wrong)) == ["poll.proof"]
    assert poll_proof(secret, session, 2) != poll_proof(bytes(32), session, 2)
    registrar.clock.at += REQUEST_SECONDS
    assert refused(lambda: locked.service.poll(node.id, poll(session, secret, 3))) == ["nonce.expired"]


def test_newer_request_takes_the_place_of_an_unanswered_one(registrar: Registrar, node: ev.Machine) -> None:
    first = LockedMachine.make(registrar, node)
    first.send()
    answer = first.answer()
    second = LockedMachine.make(registrar, node)
    second.send()
    assert refused(lambda: second.give(answer)) == ["recovery.evidence"]
    over = poll(first.challenge.session, node.secret(first.challenge), 0)
    assert refused(lambda: first.service.poll(node.id, over)) == ["recovery.superseded"]
    second.give(second.answer())


# Refusals of an answer


def signed(
    answer: RecoveryAnswer, key: ed25519.Ed25519PrivateKey = ev.OPERATOR, **changes: object
) -> RecoveryAnswer:
    """The answer with other contents, properly signed by ``key``."""
    changed = replace(answer, public_key=ev.spki(key), **changes)  # type: ignore[arg-type]
    return replace(changed, signature=FileSigner(key).sign(changed.signed))


def test_expired_request_is_not_answered(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    answer = locked.answer()
    registrar.clock.at += REQUEST_SECONDS
    assert refused(lambda: locked.give(answer)) == ["recovery.expired"]
    assert locked.service.listed(caller()) == {"recoveries": []}


def test_answer_of_another_signer_is_refused(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    answer = locked.answer()
    stranger = ed25519.Ed25519PrivateKey.generate()
    assert refused(lambda: locked.give(signed(answer, stranger))) == ["recovery.signer"]
    broken = replace(answer, signature=ev.flipped(answer.signature))
    assert refused(lambda: locked.give(broken)) == ["recovery.signature"]
    assert refused(lambda: locked.give(signed(answer, box=b"x"))) == ["recovery.box"]
    with pytest.raises(NotFoundError):
        locked.give(signed(answer, stranger), caller(ev.spki(stranger)))


def test_answered_once(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    first, second = locked.answer(), locked.answer()
    locked.give(first)
    with pytest.raises(NotFoundError):
        locked.give(second)


# What the operator's computer refuses, whatever the registrar says


def forged(locked: LockedMachine, **changes: object) -> list[str]:
    from provisioning import recover

    details = {**locked.service.details(caller(), locked.machine.id), **changes}
    name = locked.registrar.service.settings.registrar
    return refused(lambda: recover.check(details, registrar=name, keys=operator_keys(), new_tpm=False))


def test_operator_believes_no_registrar(registrar: Registrar, node: ev.Machine) -> None:
    from nodeos.core.wire import b64

    locked = LockedMachine.make(registrar, node)
    locked.send()
    # A key of the registrar's own, in evidence that it made up.
    thief = ev.new_ak()
    evil = replace(ev.Machine(ak=thief), boot_id=node.boot_id)
    fresh = FileAgreement(ec.generate_private_key(ec.SECP256R1()))
    other = node.locked_statement(fresh.public_key).to_bytes()
    made_up = replace(locked.evidence, statement=other)
    assert forged(locked, body=b64(made_up.to_bytes()), evidence=made_up.digest) == ["quote.nonce"]
    assert forged(locked, evidence="00" * 32) == ["recovery.evidence"]
    assert forged(locked, luks_uuid=UUID2) == ["recovery.volume"]
    assert forged(locked, nonce=b64(bytes(32))) == ["quote.nonce"]
    assert forged(locked, approval=None) == ["recovery.new_tpm"]
    assert forged(locked, ak_public=b64(evil.ak_area)) == ["quote.signature", "recovery.new_tpm"]


def test_approval_by_another_key_does_not_count(registrar: Registrar) -> None:
    """The registrar could make an approval of its own; only this operator's signature shows the TPM."""
    machine = ev.Machine()
    registrar.attest(machine)
    registrar.approve(machine)  # with a signature that is none
    machine.clear_tpm()
    locked = LockedMachine.make(registrar, machine)
    locked.send()
    assert refused(locked.check) == ["recovery.new_tpm"]


def test_operator_with_another_key_is_refused(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    keys = OperatorKeys(signer=FileSigner(ev.OPERATOR), agreement=FileAgreement(OTHER))
    assert refused(lambda: locked.check(keys=keys)) == ["recovery.operator_key"]


def test_swapped_blob_is_refused(registrar: Registrar, node: ev.Machine) -> None:
    """Another node's recovery key, passed off as this one's."""
    other = ev.Machine(number=1, keys=ev.node_keys(2), luks_uuid=UUID2)
    registrar.attest(other)
    approve(registrar, other)
    locked = LockedMachine.make(registrar, node)
    stated = replace(
        node.locked_statement(locked.fresh.public_key), recovery=other.statement().recovery
    ).to_bytes()
    locked.evidence = node.ask(locked.challenge, locked.fresh.public_key, statement=stated)
    assert codes(locked.send()) == ["recovery.volume"]


# What the node refuses


def test_node_takes_its_own_answer_only(registrar: Registrar, node: ev.Machine) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    answer, digest, operator = locked.answer(), locked.evidence.digest, node.site.operator
    assert open_answer(answer, digest, locked.fresh, operator) == ev.RECOVERY_KEY
    stranger = ed25519.Ed25519PrivateKey.generate()
    fresh = FileAgreement(OTHER)
    cases = {
        "recovery.operator": lambda: open_answer(signed(answer, stranger), digest, locked.fresh, operator),
        "recovery.signature": lambda: open_answer(
            replace(answer, box=ev.flipped(answer.box)), digest, locked.fresh, operator
        ),
        "recovery.evidence": lambda: open_answer(answer, "00" * 32, locked.fresh, operator),
        "recovery.box": lambda: open_answer(answer, digest, fresh, operator),
    }
    for code, call in cases.items():
        assert refused(call) == [code]


def test_the_secret_is_nowhere_in_the_clear(registrar: Registrar, node: ev.Machine, tmp_path: Path) -> None:
    locked = LockedMachine.make(registrar, node)
    locked.send()
    answer = locked.answer()
    locked.give(answer)
    registrar.store.close()
    secret = ev.RECOVERY_KEY.value
    forms = (secret, secret.hex().encode(), ev.RECOVERY_KEY.to_text().encode())
    for path in tmp_path.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(form in data for form in forms), path
    assert secret.hex() not in repr(ev.RECOVERY_KEY) + repr(answer)


def test_evidence_and_statement_have_one_form(node: ev.Machine, registrar: Registrar) -> None:
    locked = LockedMachine.make(registrar, node)
    data = locked.evidence.to_bytes()
    with pytest.raises(ParseError, match="canonical"):
        type(locked.evidence).parse(data.replace(b'{"', b'{ "', 1))
    with pytest.raises(ParseError, match=r"statement\.kind"):
        LockedStatement.parse(locked.evidence.statement.replace(b'"kind":"recovery"', b'"kind":"enrolment"'))
