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
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    NONCE_BYTES,
    Challenge,
    EnrolmentState,
    Evidence,
    NodeKeys,
    NodeRecord,
    Outcome,
    Poll,
    Request,
    poll_proof,
)
from nodeos.core.release import Release
from nodeos.core.wire import parse_finding, parse_json
from provisioning.registrar.rows import Attestation, AuditRow, CenterRow, Enrolment, NodeRow, Session
from provisioning.registrar.states import Event, advance
from provisioning.registrar.store import BusyError, Store, Transaction
from provisioning.verify.credential import make_credential
from provisioning.verify.der import Certificate, parse_certificate
from provisioning.verify.evidence import (
    Asker,
    Assessment,
    DataCenter,
    Expected,
    RefusedEvidence,
    Trust,
    claimed_site,
    verify_evidence,
    verify_request,
)
from provisioning.verify.findings import Result, finding, refusals, verdict
from provisioning.verify.policy import Enrolled
from provisioning.verify.profile import load_profile
from provisioning.verify.quote import Clock
from provisioning.verify.tpm import parse_public

POLL_DAYS = 7
MAX_OPEN_SESSIONS = 64
# Refused requests are kept so that an operator can see them; no sender can make more than these.
MAX_REFUSED = 10_000
_POLL_AFTER = {
    EnrolmentState.CHALLENGED: 5,
    EnrolmentState.PENDING: 5,
    EnrolmentState.REFUSED: 300,
    EnrolmentState.REJECTED: 300,
    EnrolmentState.INDUCTED: 3600,
}
_STATES = {Result.PASSED: "passed", Result.WATCH: "watch", Result.REFUSED: "failed"}


class NotFoundError(NodeosError):
    """There is no such thing, or it is not the asker's to see."""


class ConflictError(RefusedError):
    """What was asked for does not fit the present state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``nonce_seconds`` is how long a challenge holds; ``request_seconds`` how long a sender may take."""

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
            center = _center(tx, claimed_site(request).data_center)
            trust = _trust(tx)
        try:
            asker = verify_request(request, _data_center(center), trust, datetime.fromtimestamp(at, UTC))
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
            other = _other_name(tx, request)
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
                session = _session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                _unexpired(session, at)
                expected, center, revision = self._expected(tx, session)
            try:
                assessment = verify_evidence(evidence, expected)
            except RefusedEvidence as error:
                assessment = error.assessment
            with self.store.write() as tx:
                session = _session(tx, evidence.session, machine)
                if session.evidence is not None:
                    return self._spent(tx, session, digest)
                enrolment = tx.enrolment(machine)
                if enrolment is None or enrolment.revision != revision:
                    continue  # another session of this machine, or its operator, was faster
                return self._record(tx, session, enrolment, center, evidence, body, digest, assessment, at)
        raise BusyError("this machine's enrolment changes all the time", hint="ask again in a few seconds")

    def _spent(self, tx: Transaction, session: Session, digest: str) -> Outcome:
        if session.evidence == digest:
            return _outcome(tx, session)
        raise ConflictError(
            "the evidence is refused",
            (finding("nonce.used", "this challenge was answered before"),),
            hint="ask for a new challenge",
        )

    def _expected(self, tx: Transaction, session: Session) -> tuple[Expected, CenterRow, int]:
        request = Request.parse(session.request)
        enrolment = tx.enrolment(session.machine)
        center = _center(tx, claimed_site(request).data_center)
        latest = tx.attestations(session.machine, 1)
        node = tx.node(session.machine)
        clock = None
        if latest:
            a = latest[0]
            clock = Clock(clock=a.clock, reset_count=a.reset_count, restart_count=a.restart_count)
        releases = {
            row.version: Release.parse(row.document) for row in tx.releases() if row.withdrawn_at is None
        }
        expected = Expected(
            nonce=session.nonce,
            secret=session.secret,
            ak_public=request.ak_public,
            site_document=request.site_document,
            releases=releases,
            profile=load_profile(center.profile),
            clock=clock,
            boot_id=latest[0].boot_id if latest else None,
            enrolled=None if node is None else _enrolled(node),
        )
        return expected, center, enrolment.revision if enrolment else 0

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
        node = tx.node(old.machine)
        clashes = verdict("registry", _clashes(tx, request, node, center, assessment))
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
            return _outcome(tx, _with_result(session, digest, as_json))
        tx.end_other_sessions(old.machine, session.id)
        event = Event.EVIDENCE_REFUSED if refused else Event.EVIDENCE_ACCEPTED
        moved = old.data_center != center.name and old.state is not EnrolmentState.INDUCTED
        state = advance(EnrolmentState.CHALLENGED if moved else old.state, event)
        every = [f.to_json() for f in assessment.findings]
        tx.put_enrolment(
            replace(
                old,
                data_center=old.data_center if node is not None else center.name,
                state=state,
                ek_key=_ek_key(request),
                ak_public=old.ak_public if node is not None else request.ak_public,
                evidence=old.evidence if node is not None else (None if refused else digest),
                findings=every,
                changed_at=at,
            )
        )
        tx.add_evidence(digest, old.machine, at, body)
        tx.add_attestation(_attestation(old.machine, (evidence, digest), assessment, bool(refused), at))
        tx.add_audit(
            audit_row(at, "machine", old.machine, event, (old.state, state), evidence=digest, findings=every)
        )
        return _outcome(tx, _with_result(session, digest, as_json if refused else None))

    def poll(self, machine: str, body: bytes) -> Outcome:
        """A machine asks again. Raises RefusedError for a wrong proof or an old counter."""
        poll = Poll.parse(body)
        with self.store.write() as tx:
            session = _session(tx, poll.session, machine)
            proof = poll_proof(session.secret, session.id, poll.counter)
            if not secrets.compare_digest(proof, poll.proof):
                words = "the sender does not know the session's secret"
                raise RefusedError("the poll is refused", (finding("poll.proof", words),))
            if poll.counter <= session.counter:
                words = f"found {poll.counter}, needed more than {session.counter}"
                raise ConflictError("the poll is refused", (finding("poll.counter", words),))
            _unexpired(session, self.clock())
            if session.evidence is None:
                words = "this session has no evidence yet"
                raise ConflictError("the poll is refused", (finding("poll.early", words),))
            tx.count_poll(session.id, poll.counter)
            return _outcome(tx, session)


def _ek_key(request: Request) -> str:
    """Names the endorsement key itself, whatever public area it is shown with."""
    return hashlib.sha256(parse_public(request.ek_public).spki()).hexdigest()


def _other_name(tx: Transaction, request: Request) -> Finding | None:
    """One TPM is one machine. A name is bound to a key only by evidence, which a request is not."""
    other = tx.machine_of_key(_ek_key(request))
    if other in (None, request.machine):
        return None
    return finding("ek.other_name", f"this endorsement key is known as machine {other}")


def _clashes(
    tx: Transaction, request: Request, node: NodeRow | None, center: CenterRow, assessment: Assessment
) -> list[Finding]:
    """What speaks against this evidence in the light of other machines and of the registry."""
    found = []
    other_name = _other_name(tx, request)
    if other_name:
        found.append(other_name)
    if assessment.statement is not None:
        other = tx.holder_of_keys(*key_digests(assessment.statement.keys))
        if other not in (None, request.machine):
            found.append(finding("identity.duplicate", f"machine {other} has one of these node keys"))
    if node is not None and node.data_center != center.name:
        words = f"the machine is a node of {node.data_center}, its site is now {center.name}"
        found.append(finding("identity.data_center", words))
    return found


def _with_result(session: Session, digest: str, refused: list[dict[str, str]] | None) -> Session:
    """The session as it stands after its evidence."""
    return replace(session, evidence=digest, refused=refused)


def _outcome(tx: Transaction, session: Session) -> Outcome:
    enrolment = tx.enrolment(session.machine)
    if enrolment is None:
        raise NotFoundError("the enrolment is gone", hint="ask for a new challenge")
    state, node = enrolment.state, None
    findings = session.refused
    if findings is not None:
        state = EnrolmentState.REJECTED if state is EnrolmentState.REJECTED else EnrolmentState.REFUSED
    else:
        findings = enrolment.findings
    if state is EnrolmentState.INDUCTED:
        row = tx.node(session.machine)
        if row is None:
            raise NodeosError(f"machine {session.machine} is inducted and has no node record")
        node = NodeRecord.parse(parse_json(row.record, "node record"))
    return Outcome(
        state=state,
        findings=tuple(parse_finding(f, "finding") for f in findings),
        poll_after=_POLL_AFTER[state],
        node=node,
    )


def _session(tx: Transaction, session: str, machine: str) -> Session:
    found = tx.session(session)
    if found is None or found.machine != machine:
        raise NotFoundError("there is no such session of this machine", hint="ask for a new challenge")
    return found


def _unexpired(session: Session, at: int) -> None:
    if session.expires_at <= at:
        raise ConflictError(
            "the session is over",
            (finding("nonce.expired", f"it ended {at - session.expires_at} s ago"),),
            hint="ask for a new challenge",
        )


def _center(tx: Transaction, name: str) -> CenterRow:
    center = tx.center(name)
    if center is None:
        raise RefusedError(
            "the request is refused",
            (finding("site.unknown", f"the data centre {name!r} is not known to this registrar"),),
            hint="add it with `nodeos registrar dc add`, or make the medium again for a known one",
        )
    return center


def _data_center(row: CenterRow) -> DataCenter:
    return DataCenter(
        name=row.name,
        operator=Principal.parse(row.operator),
        site_key=Ed25519PublicKey.from_public_bytes(row.site_key),
        node_reward_type=row.node_reward_type,
    )


def _trust(tx: Transaction) -> Trust:
    rows = tx.trust()
    return Trust(
        roots=tuple(_parsed(row.der) for row in rows if row.kind == "root"),
        intermediates=tuple(_parsed(row.der) for row in rows if row.kind == "intermediate"),
    )


@lru_cache(maxsize=1024)
def _parsed(der: bytes) -> Certificate:
    """Manufacturers have some 170 certificates; they are parsed once."""
    return parse_certificate(der)


def _enrolled(node: NodeRow) -> Enrolled:
    record = NodeRecord.parse(parse_json(node.record, "node record"))
    return Enrolled(
        ak_public=node.ak_public,
        keys=record.keys,
        pcrs={int(index): bytes.fromhex(value) for index, value in node.pcrs.items()},
        luks_uuid=node.luks_uuid,
        boot_id=node.boot_id,
    )


def key_digests(keys: NodeKeys) -> tuple[str, str, str]:
    """Digests of the three keys; of the TLS certificate its key, which another certificate could carry."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        certificate = x509.load_der_x509_certificate(keys.tls_certificate)
        tls = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        tls = keys.tls_certificate
    digests = [hashlib.sha256(data).hexdigest() for data in (keys.signing, tls, keys.committee)]
    return digests[0], digests[1], digests[2]


def _attestation(
    machine: str, evidence: tuple[Evidence, str], assessment: Assessment, refused: bool, at: int
) -> Attestation:
    given, digest = evidence
    statement, quote = assessment.statement, assessment.quote
    if quote is None:
        raise ValueError("an attestation needs a quote")
    return Attestation(
        machine=machine,
        at=at,
        state="failed" if refused else _STATES[assessment.result],
        evidence=digest,
        boot_id=statement.boot_id if statement else None,
        release=statement.release if statement else None,
        clock=quote.clock,
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        firmware_version=f"{quote.firmware_version:016x}",
        pcrs={str(index): value.hex() for index, value in given.pcrs.items()},
        volume=statement.volume.to_json() if statement else None,
        verdicts=[v.to_json() for v in assessment.verdicts],
    )


def audit_row(
    at: int, actor: str, machine: str, event: str, states: tuple[str | None, str | None], **detail: object
) -> AuditRow:
    """A line of the audit trail; ``states`` are those before and after."""
    before, after = (None if state is None else str(state) for state in states)
    return AuditRow(
        at=at,
        actor=actor,
        machine=machine,
        event=str(event),
        before=before,
        after=after,
        detail=dict(detail),
    )
