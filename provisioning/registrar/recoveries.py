"""What the registrar does for a node whose state is locked, and for the operator who helps it.

The registrar keeps every escrowed recovery key, encrypted to the operator; it can read none. It passes on the
operator's answer, encrypted to a key that the locked node made for this one request.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import Any

from hsm import keys
from hsm.box import Box
from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.protocol import NodeRecord, Poll, Request, poll_proof
from nodeos.core.recovery_request import (
    LockedEvidence,
    LockedStatement,
    RecoveryAnswer,
    RecoveryOutcome,
    RecoveryState,
)
from nodeos.core.wire import b64, parse_finding, parse_json
from provisioning.operator_auth import Caller
from provisioning.registrar.lookups import (
    ConflictError,
    NotFoundError,
    accepted_releases,
    audit_row,
    check_unexpired,
    ek_key_digest,
    enrolled_as,
    find_center,
    find_other_name,
    find_session,
    last_seen,
    signed_by,
)
from provisioning.registrar.rows import NodeRow, RecoveryRow, Session
from provisioning.registrar.service import Service
from provisioning.registrar.store import BusyError, Transaction
from provisioning.verify.evidence import claimed_site
from provisioning.verify.findings import finding, verdict
from provisioning.verify.profile import load_profile
from provisioning.verify.recovery import LockedAssessment, LockedExpected, assess_locked

# How long a request waits for its operator: the fresh key is in the memory of a machine that stands still.
REQUEST_SECONDS = 86400
_POLL_SECONDS = 5


class Recoveries:
    """Answers locked machines, and operators about them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    def evidence(self, machine: str, body: bytes) -> RecoveryOutcome:
        """A locked machine proves what it is and asks for its recovery key. The outcome may be a refusal.

        Raises RefusedError for a nonce that is spent or expired, NotFoundError, ParseError, BusyError.
        """
        evidence = LockedEvidence.parse(body)
        digest = evidence.digest
        for _ in range(3):
            at = self._service.clock()
            with self._store.read() as tx:
                session = find_session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                check_unexpired(session, at)
                node = _node_asked_for(tx, evidence)
                expected = self._expected(tx, session, node)
            assessment = assess_locked(evidence, expected)
            with self._store.write() as tx:
                session = find_session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                if _node_asked_for(tx, evidence) != node:
                    continue  # the node went on to another TPM meanwhile
                return self._record(tx, session, evidence, assessment, node, at)
        raise BusyError("this node changes all the time", hint="ask again in a few seconds")

    def _spent(self, tx: Transaction, session: Session, digest: str) -> RecoveryOutcome:
        if session.evidence == digest:
            return _outcome(tx, session)
        words = "this challenge was answered before"
        raise ConflictError("the request is refused", (finding("nonce.used", words),))

    def _expected(self, tx: Transaction, session: Session, node: NodeRow | None) -> LockedExpected:
        request = Request.parse(session.request)
        center = find_center(tx, claimed_site(request).data_center)
        seen = None if node is None else last_seen(tx, node.machine)
        return LockedExpected(
            nonce=session.nonce,
            secret=session.secret,
            ak_public=request.ak_public,
            machine=session.machine,
            site_document=request.site_document,
            releases=accepted_releases(tx),
            profile=load_profile(center.profile),
            enrolled=None if node is None else enrolled_as(node),
            enrolled_machine=None if node is None else node.machine,
            escrowed=() if node is None else tx.escrows(node.machine).get(node.luks_uuid, ()),
            clock=None if seen is None else seen.clock,
        )

    def _record(  # noqa: PLR0917
        self,
        tx: Transaction,
        session: Session,
        evidence: LockedEvidence,
        assessment: LockedAssessment,
        node: NodeRow | None,
        at: int,
    ) -> RecoveryOutcome:
        request, digest = Request.parse(session.request), evidence.digest
        clashes = verdict("registry", _clashes(tx, request, node))
        assessment = replace(assessment, verdicts=(*assessment.verdicts, clashes))
        refused = [f.to_json() for f in assessment.refused]
        quote = assessment.quote
        if refused or node is None or quote is None:
            event = "recovery-refused" if assessment.authentic else "recovery-unproven"
            tx.use_session(session.id, digest, refused, at + REQUEST_SECONDS)
            detail = {"evidence": digest, "findings": refused}
            tx.add_audit(audit_row(at, "machine", session.machine, event, (None, None), **detail))
            return _refused(refused)
        tx.use_session(session.id, digest, None, at + REQUEST_SECONDS)
        tx.put_recovery(
            RecoveryRow(
                session=session.id,
                machine=session.machine,
                node_id=node.node_id,
                evidence=digest,
                body=evidence.to_bytes(),
                nonce=session.nonce,
                ak_public=request.ak_public,
                ek_key=ek_key_digest(request),
                clock=quote.clock,
                reset_count=quote.reset_count,
                restart_count=quote.restart_count,
                verdicts=[v.to_json() for v in assessment.verdicts],
                at=at,
                expires_at=at + REQUEST_SECONDS,
            )
        )
        detail2 = {"evidence": digest, "node_id": node.node_id, "luks_uuid": node.luks_uuid}
        tx.add_audit(audit_row(at, "machine", session.machine, "recovery-requested", (None, None), **detail2))
        return _waiting()

    def poll(self, machine: str, body: bytes) -> RecoveryOutcome:
        """A locked machine asks again. Raises RefusedError for a wrong proof or an old counter."""
        poll = Poll.parse(body)
        with self._store.write() as tx:
            session = find_session(tx, poll.session, machine)
            proof = poll_proof(session.secret, session.id, poll.counter)
            if not secrets.compare_digest(proof, poll.proof):
                words = "the sender does not know the session's secret"
                raise RefusedError("the poll is refused", (finding("poll.proof", words),))
            if poll.counter <= session.counter:
                words = f"found {poll.counter}, needed more than {session.counter}"
                raise ConflictError("the poll is refused", (finding("poll.counter", words),))
            check_unexpired(session, self._service.clock())
            if session.evidence is None:
                words = "this session has no evidence yet"
                raise ConflictError("the poll is refused", (finding("poll.early", words),))
            tx.count_poll(session.id, poll.counter)
            return _outcome(tx, session)

    # The operator's side.

    def listed(self, caller: Caller) -> dict[str, Any]:
        """Every request that waits for this operator."""
        with self._store.read() as tx:
            rows = tx.waiting_recoveries(_centers(tx, caller), self._service.clock())
            return {"recoveries": [_summary(tx, row) for row in rows]}

    def details(self, caller: Caller, machine: str) -> dict[str, Any]:
        """All that an operator needs to judge and answer one request, found by its machine.

        ``approval`` is what this operator once signed for the node, so that the client can see for itself
        whether the same TPM asks, whatever the registrar says.
        """
        with self._store.read() as tx:
            row, node = self._own(tx, caller, machine)
            return {
                **_summary(tx, row),
                "body": b64(row.body),
                "nonce": b64(row.nonce),
                "ak_public": b64(row.ak_public),
                "verdicts": row.verdicts,
                "approval": _approval(tx, node),
            }

    def answer(self, caller: Caller, machine: str, body: bytes) -> dict[str, Any]:
        """Keep the operator's answer for the machine. Giving the same answer again changes nothing.

        Raises ConflictError if the request is not the one that was answered, is over, or has an answer;
        RefusedError for another signer, or another TPM that the operator did not say is right.
        """
        answer = RecoveryAnswer.parse(parse_json(body, "answer"))
        at = self._service.clock()
        with self._store.write() as tx:
            last = tx.latest_recovery(machine, answered=True)
            if last is not None and last.answer == answer.to_bytes():
                return _summary(tx, self._of(tx, caller, last)[0])
            row, node = self._own(tx, caller, machine)
            wrong = [*_check_answer(answer, caller), *_check_tpm(answer, row, node)]
            if row.evidence != answer.evidence:
                words = f"you answered {answer.evidence}, the machine's request is now {row.evidence}"
                wrong.append(finding("recovery.evidence", words))
            if row.expires_at <= at:
                words = f"the request ended {at - row.expires_at} s ago; the machine asks again by itself"
                wrong.append(finding("recovery.expired", words))
            if wrong:
                raise ConflictError(
                    "the answer is refused", tuple(wrong), hint="look again with `nodeos node recoveries`"
                )
            tx.answer_recovery(row.session, answer.to_bytes(), at)
            detail = {
                "evidence": row.evidence,
                "node_id": node.node_id,
                "new_tpm": answer.new_tpm,
                "answer": hashlib.sha256(answer.to_bytes()).hexdigest(),
                "signed": signed_by(caller),
            }
            operator = str(caller.principal)
            tx.add_audit(audit_row(at, operator, row.machine, "recovery-answered", (None, None), **detail))
            return _summary(tx, row)

    def _own(self, tx: Transaction, caller: Caller, machine: str) -> tuple[RecoveryRow, NodeRow]:
        """The machine's unanswered request. One of another operator is as good as absent."""
        row = tx.latest_recovery(machine, answered=False)
        if row is None:
            raise _no_request(machine)
        return self._of(tx, caller, row)

    def _of(self, tx: Transaction, caller: Caller, row: RecoveryRow) -> tuple[RecoveryRow, NodeRow]:
        node = tx.node(row.node_id)
        if node is None or node.data_center not in _centers(tx, caller):
            raise _no_request(row.machine)
        return row, node


def _node_asked_for(tx: Transaction, evidence: LockedEvidence) -> NodeRow | None:
    try:
        statement = LockedStatement.parse(evidence.statement)
    except UsageError:
        return None
    return tx.node_of_volume(statement.luks_uuid, statement.recovery)


def _clashes(tx: Transaction, request: Request, node: NodeRow | None) -> list[Finding]:
    found = []
    other_name = find_other_name(tx, request)
    if other_name:
        found.append(other_name)
    if node is None:
        return found
    center = claimed_site(request).data_center
    if node.data_center != center:
        words = f"the volume is of a node of {node.data_center}, the machine's site is {center}"
        found.append(finding("identity.data_center", words))
    present = tx.node(request.machine)
    if present is not None and present.node_id != node.node_id:
        words = f"the machine is the node {present.node_id}, the volume is of {node.node_id}"
        found.append(finding("recovery.other_node", words))
    return found


def _check_answer(answer: RecoveryAnswer, caller: Caller) -> list[Finding]:
    found = []
    if answer.public_key != caller.public_key:
        found.append(finding("recovery.signer", "the answer is signed by another key than the request"))
    try:
        keys.verify(answer.public_key, answer.signed, answer.signature)
    except (keys.SignatureError, UsageError):
        found.append(finding("recovery.signature", "the signature does not fit the answer"))
    try:
        Box.parse(answer.box)
    except UsageError as error:
        found.append(finding("recovery.box", f"not an encrypted recovery key: {error.message}"))
    return found


def _check_tpm(answer: RecoveryAnswer, row: RecoveryRow, node: NodeRow) -> list[Finding]:
    same = row.machine == node.machine and row.ak_public == node.ak_public
    if same or answer.new_tpm:
        return []
    words = f"another TPM asks than the node was enrolled with (machine {node.machine})"
    return [finding("recovery.new_tpm", words)]


def _outcome(tx: Transaction, session: Session) -> RecoveryOutcome:
    if session.refused is not None:
        return _refused(session.refused)
    row = tx.recovery(session.id)
    if row is None:
        words = "the machine made another request since"
        raise ConflictError("the request is over", (finding("recovery.superseded", words),))
    if row.answer is None:
        return _waiting()
    answer = RecoveryAnswer.parse(parse_json(row.answer, "answer"))
    return RecoveryOutcome(state=RecoveryState.ANSWERED, findings=(), poll_after=_POLL_SECONDS, answer=answer)


def _waiting() -> RecoveryOutcome:
    return RecoveryOutcome(state=RecoveryState.WAITING, findings=(), poll_after=_POLL_SECONDS)


def _refused(findings: list[dict[str, str]]) -> RecoveryOutcome:
    parsed = tuple(parse_finding(f, "finding") for f in findings)
    return RecoveryOutcome(state=RecoveryState.REFUSED, findings=parsed, poll_after=300)


def _centers(tx: Transaction, caller: Caller) -> list[str]:
    return [center.name for center in tx.centers(str(caller.principal))]


def _no_request(machine: str) -> NotFoundError:
    return NotFoundError(
        f"no recovery request of machine {machine} waits", hint="see `nodeos node recoveries`"
    )


def _summary(tx: Transaction, row: RecoveryRow) -> dict[str, Any]:
    node = tx.node(row.node_id)
    if node is None:
        raise NotFoundError("the node is gone")
    statement = LockedStatement.parse(LockedEvidence.parse(row.body).statement)
    record = NodeRecord.parse(parse_json(node.record, "node record"))
    return {
        "machine": row.machine,
        "state": "locked",
        "node_id": row.node_id,
        "enrolled_machine": node.machine,
        "data_center": node.data_center,
        "luks_uuid": node.luks_uuid,
        "inducted_at": record.inducted_at,
        "reason": statement.reason,
        "release": statement.release,
        "evidence": row.evidence,
        "at": row.at,
        "expires_at": row.expires_at,
        "findings": [f for v in row.verdicts for f in v["findings"]],
    }


def _approval(tx: Transaction, node: NodeRow) -> dict[str, Any] | None:
    """The evidence on which the operator once made the node, and what shows the operator's signature."""
    body, attestation = tx.evidence(node.evidence), tx.attestation_of(node.evidence)
    if body is None or attestation is None:
        return None
    signed = tx.approval(attestation.machine, node.evidence)
    if signed is None:
        return None
    return {"machine": attestation.machine, "body": b64(body), "signed": signed}
