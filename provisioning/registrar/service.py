"""What the registrar does for machines. Synchronous: the application runs it in threads.

A message is verified outside any transaction; the transaction that stores the result checks first that
nothing that the verification stood on has changed since.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from nodeos.core.access import AccessAnswer, AccessList
from nodeos.core.addresses import parse_address, parse_network
from nodeos.core.errors import Finding, RefusedError
from nodeos.core.protocol import (
    NONCE_BYTES,
    AccessRequest,
    Challenge,
    EnrolmentState,
    Evidence,
    Outcome,
    Poll,
    Request,
    Statement,
    poll_proof,
)
from provisioning.registrar.lookups import (
    ConflictError,
    accepted_releases,
    as_data_center,
    audit_row,
    check_unexpired,
    ek_key_digest,
    find_center,
    find_clashes,
    find_other_name,
    find_session,
    last_seen,
    load_trust,
    make_attestation,
    outcome_of,
    with_result,
)
from provisioning.registrar.recovered import Standing, complete, find_standing
from provisioning.registrar.rows import CenterRow, Enrolment, Session
from provisioning.registrar.states import Event, advance
from provisioning.registrar.store import BusyError, Store, Transaction
from provisioning.verify.credential import make_credential
from provisioning.verify.evidence import (
    Asker,
    Assessment,
    Expected,
    RefusedEvidence,
    claimed_site,
    verify_evidence,
    verify_request,
)
from provisioning.verify.findings import finding, refusals, verdict
from provisioning.verify.profile import load_profile

POLL_DAYS = 7
MAX_OPEN_SESSIONS = 64
# Refused requests are kept so that an operator can see them; no sender can make more than these.
MAX_REFUSED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``registrar`` is the registrar's id (see ``operator_auth``); ``nonce_seconds`` is how long a challenge
    holds, ``request_seconds`` how long a sender may take."""

    registrar: str
    nonce_seconds: int = 600
    request_seconds: int = 30


def now() -> int:
    return int(time.time())


class Service:
    """Answers machines. ``clock`` gives seconds since 1970."""

    def __init__(self, store: Store, settings: Settings, clock: Callable[[], int] = now) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock

    def request(self, body: bytes) -> Challenge:
        """A machine asks. Raises RefusedError with every finding, ParseError, BusyError."""
        request = Request.parse(body)
        at = self.clock()
        with self.store.read() as tx:
            center = find_center(tx, claimed_site(request).data_center)
            trust = load_trust(tx)
        try:
            asker = verify_request(request, as_data_center(center), trust, datetime.fromtimestamp(at, UTC))
        except RefusedError as error:
            self._note_refused(request, center, error.findings, at)
            raise
        return self._challenge(request, body, asker, center, at)

    def _challenge(
        self, request: Request, body: bytes, asker: Asker, center: CenterRow, at: int
    ) -> Challenge:
        secret, nonce = secrets.token_bytes(32), secrets.token_bytes(NONCE_BYTES)
        credential = make_credential(asker.ek, asker.ak.name, secret)
        session = Session(
            id=secrets.token_hex(16),
            machine=request.machine,
            secret=secret,
            nonce=nonce,
            request=body,
            expires_at=at + self.settings.nonce_seconds,
        )
        model = asker.model
        with self.store.write() as tx:
            tx.drop_expired(at)
            other = find_other_name(tx, request)
            if other:
                raise ConflictError("the request is refused", (other,))
            if tx.count_open_sessions(request.machine, at) >= MAX_OPEN_SESSIONS:
                raise BusyError("this machine has too many open challenges", hint="ask again in ten minutes")
            old = tx.enrolment(request.machine)
            before = old.state if old else None
            if old is None or (before is EnrolmentState.REFUSED and not old.tpm):
                # Where a row is there, its requests were refused until now: it binds nothing.
                fresh = Enrolment(
                    machine=request.machine,
                    data_center=center.name,
                    state=advance(None, Event.REQUESTED),
                    ek_key=None,
                    tpm={"manufacturer": model.manufacturer, "model": model.model, "version": model.version},
                    ak_public=None,
                    evidence=None,
                    findings=[],
                    first_at=at if old is None else old.first_at,
                    changed_at=at,
                )
                tx.put_enrolment(fresh)
                tx.add_audit(
                    audit_row(at, "machine", request.machine, Event.REQUESTED, (before, fresh.state))
                )
            tx.add_session(session)
        return Challenge(
            session=session.id,
            credential_blob=credential.blob,
            encrypted_secret=credential.encrypted_secret,
            nonce=nonce,
            seconds=self.settings.nonce_seconds,
        )

    def _note_refused(
        self, request: Request, center: CenterRow, findings: tuple[Finding, ...], at: int
    ) -> None:
        """Lets the operator see a machine that can't even ask; never touches one that once could."""
        if any(f.code.startswith("site.") for f in findings):
            return
        with self.store.write() as tx:
            old = tx.enrolment(request.machine)
            if old is not None and (old.tpm or old.data_center != center.name):
                return
            if old is None and tx.count_enrolments(center.name, EnrolmentState.REFUSED) >= MAX_REFUSED:
                return
            state = advance(old.state if old else None, Event.REQUEST_REFUSED)
            tx.put_enrolment(
                Enrolment(
                    machine=request.machine,
                    data_center=center.name,
                    state=state,
                    ek_key=None,
                    tpm={},
                    ak_public=None,
                    evidence=None,
                    findings=[f.to_json() for f in findings],
                    first_at=old.first_at if old else at,
                    changed_at=at,
                )
            )
            if old is None:
                tx.add_audit(
                    audit_row(
                        at,
                        "machine",
                        request.machine,
                        Event.REQUEST_REFUSED,
                        (None, state),
                        findings=[f.to_json() for f in findings],
                    )
                )

    def evidence(self, machine: str, body: bytes) -> Outcome:
        """A machine proves. The outcome may be a refusal; nothing of it is lost once it is returned.

        Sending the same evidence again gives the outcome again. Raises RefusedError for a nonce that is
        spent or expired, NotFoundError for an unknown session, ParseError, BusyError.
        """
        evidence = Evidence.parse(body)
        digest = hashlib.sha256(body).hexdigest()
        for _ in range(3):
            at = self.clock()
            with self.store.read() as tx:
                session = find_session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                check_unexpired(session, at)
                expected, center, revision, standing = self._expected(tx, session)
            try:
                assessment = verify_evidence(evidence, expected)
            except RefusedEvidence as error:
                assessment = error.assessment
            with self.store.write() as tx:
                session = find_session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                enrolment = tx.enrolment(machine)
                if enrolment is None or enrolment.revision != revision:
                    continue  # another session of this machine, or its operator, was faster
                if find_standing(tx, machine) != standing:
                    continue  # a recovery was answered: the evidence was held to something else
                return self._record(tx, session, enrolment, center, evidence, body, digest, assessment, at)
        raise BusyError("this machine's enrolment changes all the time", hint="ask again in a few seconds")

    def _spent(self, tx: Transaction, session: Session, digest: str) -> Outcome:
        if session.evidence == digest:
            return outcome_of(tx, session)
        raise ConflictError(
            "the evidence is refused",
            (finding("nonce.used", "this challenge was answered before"),),
            hint="ask for a new challenge",
        )

    def _expected(self, tx: Transaction, session: Session) -> tuple[Expected, CenterRow, int, Standing]:
        request = Request.parse(session.request)
        enrolment = tx.enrolment(session.machine)
        center = find_center(tx, claimed_site(request).data_center)
        seen, standing = last_seen(tx, session.machine), find_standing(tx, session.machine)
        escrowed = tx.escrows(session.machine)
        if standing.node is not None:
            escrowed = {**escrowed, **tx.escrows(standing.node.machine)}
        expected = Expected(
            nonce=session.nonce,
            secret=session.secret,
            machine=session.machine,
            ak_public=request.ak_public,
            site_document=request.site_document,
            escrowed=escrowed,
            releases=accepted_releases(tx),
            profile=load_profile(center.profile),
            clock=None if seen is None else seen.clock,
            boot_id=None if seen is None else seen.boot_id,
            enrolled=standing.enrolled,
        )
        return expected, center, enrolment.revision if enrolment else 0, standing

    def _record(  # noqa: PLR0917
        self,
        tx: Transaction,
        session: Session,
        old: Enrolment,
        center: CenterRow,
        evidence: Evidence,
        body: bytes,
        digest: str,
        assessment: Assessment,
        at: int,
    ) -> Outcome:
        request = Request.parse(session.request)
        standing = find_standing(tx, old.machine)
        node = standing.node
        clashes = verdict("registry", find_clashes(tx, request, node, center, assessment))
        assessment = replace(assessment, verdicts=(*assessment.verdicts, clashes))
        refused = refusals(assessment.verdicts)
        as_json = [f.to_json() for f in refused]
        tx.use_session(session.id, digest, as_json if refused else None, at + POLL_DAYS * 86400)
        stranger = any(f.code == "ek.other_name" for f in refused)
        if not assessment.authentic or assessment.quote is None or stranger:
            # Someone else may have sent this: the machine's own standing is not touched.
            words = {"findings": as_json, "evidence": digest}
            tx.add_audit(
                audit_row(at, "machine", old.machine, "evidence-unproven", (old.state, old.state), **words)
            )
            return outcome_of(tx, with_result(session, digest, as_json))
        tx.end_other_sessions(old.machine, session.id)
        if standing.recovery is not None and not refused:
            old = complete(tx, old, request, standing.recovery, digest, at)
        event = Event.EVIDENCE_REFUSED if refused else Event.EVIDENCE_ACCEPTED
        moved = old.data_center != center.name and old.state is not EnrolmentState.INDUCTED
        state = advance(EnrolmentState.CHALLENGED if moved else old.state, event)
        every = [f.to_json() for f in assessment.findings]
        tx.put_enrolment(
            replace(
                old,
                data_center=old.data_center if node is not None else center.name,
                state=state,
                ek_key=ek_key_digest(request),
                ak_public=old.ak_public if node is not None else request.ak_public,
                evidence=old.evidence if node is not None else (None if refused else digest),
                findings=every,
                changed_at=at,
            )
        )
        tx.add_evidence(digest, old.machine, at, body)
        if assessment.statement is not None and not refused:
            self._escrow(tx, old.machine, assessment.statement, digest, at)
            if node is not None:
                stated = tuple(str(address) for address in assessment.statement.addresses)
                tx.put_addresses(node.node_id, stated)
        tx.add_attestation(make_attestation(old.machine, (evidence, digest), assessment, bool(refused), at))
        tx.add_audit(
            audit_row(at, "machine", old.machine, event, (old.state, state), evidence=digest, findings=every)
        )
        return outcome_of(tx, with_result(session, digest, as_json if refused else None))

    def _escrow(self, tx: Transaction, machine: str, statement: Statement, digest: str, at: int) -> None:
        """Keep the recovery key beside all earlier ones."""
        uuid = statement.volume.luks_uuid
        if tx.add_escrow(machine, uuid, statement.recovery, digest, at):
            kept = hashlib.sha256(statement.recovery).hexdigest()
            detail = {"luks_uuid": uuid, "recovery": kept, "evidence": digest}
            tx.add_audit(audit_row(at, "machine", machine, "recovery-escrowed", (None, None), **detail))

    def poll(self, machine: str, body: bytes) -> Outcome:
        """A machine asks again. Raises RefusedError for a wrong proof or an old counter."""
        poll = Poll.parse(body)
        with self.store.write() as tx:
            return outcome_of(tx, self._polled(tx, machine, poll))

    def access(self, machine: str, body: bytes) -> AccessAnswer:
        """A node asks who may reach it. Raises RefusedError as ``poll`` does, and for what is no attested node."""
        request = AccessRequest.parse(body)
        with self.store.write() as tx:
            session = self._polled(tx, machine, request.poll)
            node = tx.node(machine)
            if node is None or session.refused is not None:
                words = "only an inducted machine whose last evidence passed is told who may reach it"
                raise ConflictError("the question is refused", (finding("access.no_node", words),))
        # Making the list takes longer than writing the counter does: not while others wait to write.
        with self.store.read() as tx:
            known = AccessList(
                nodes=tuple(parse_address(text) for text in tx.addresses()),
                clients=tuple(parse_network(text) for text in tx.clients(node.data_center)),
            )
        return AccessAnswer(access=None if known.digest == request.have else known)

    def _polled(self, tx: Transaction, machine: str, poll: Poll) -> Session:
        """The session that a poll is for, once its sender is proven and its counter spent."""
        session = find_session(tx, poll.session, machine)
        proof = poll_proof(session.secret, session.id, poll.counter)
        if not secrets.compare_digest(proof, poll.proof):
            words = "the sender does not know the session's secret"
            raise RefusedError("the poll is refused", (finding("poll.proof", words),))
        if poll.counter <= session.counter:
            words = f"found {poll.counter}, needed more than {session.counter}"
            raise ConflictError("the poll is refused", (finding("poll.counter", words),))
        check_unexpired(session, self.clock())
        if session.evidence is None:
            words = "this session has no evidence yet"
            raise ConflictError("the poll is refused", (finding("poll.early", words),))
        tx.count_poll(session.id, poll.counter)
        return session
