"""What the service looks up and words: sessions, data centres, trust, outcomes, clashes between machines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hsm.keys import public_der
from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    EnrolmentState,
    Evidence,
    NodeKeys,
    NodeRecord,
    Offer,
    Outcome,
    Request,
)
from nodeos.core.recovery_request import LockedEvidence, LockedStatement
from nodeos.core.release import Release
from nodeos.core.wire import b64, parse_finding, parse_json
from provisioning.operator_auth import Caller
from provisioning.registrar.rows import Attestation, AuditRow, CenterRow, NodeRow, RecoveryRow, Session
from provisioning.registrar.store import Transaction
from provisioning.verify.crl import Crl, parse_crl
from provisioning.verify.der import Certificate, parse_certificate
from provisioning.verify.evidence import (
    Assessment,
    DataCenter,
    Trust,
)
from provisioning.verify.findings import Result, finding
from provisioning.verify.policy import Enrolled
from provisioning.verify.quote import Clock
from provisioning.verify.tpm import parse_public

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


def ek_key_digest(request: Request) -> str:
    """Names the endorsement key itself, whatever public area it is shown with."""
    return hashlib.sha256(parse_public(request.ek_public).spki()).hexdigest()


def find_other_name(tx: Transaction, request: Request) -> Finding | None:
    """One TPM is one machine. A name is bound to a key only by evidence, which a request is not."""
    other = tx.machine_of_key(ek_key_digest(request))
    if other in (None, request.machine):
        return None
    return finding("ek.other_name", f"this endorsement key is known as machine {other}")


def find_clashes(
    tx: Transaction, request: Request, node: NodeRow | None, center: CenterRow, assessment: Assessment
) -> list[Finding]:
    """What speaks against this evidence in the light of other machines and of the registry."""
    found = []
    other_name = find_other_name(tx, request)
    if other_name:
        found.append(other_name)
    if assessment.statement is not None:
        other = tx.holder_of_keys(*key_digests(assessment.statement.keys))
        if other not in (None, request.machine, node and node.machine):
            found.append(finding("identity.duplicate", f"machine {other} has one of these node keys"))
    if node is not None and node.data_center != center.name:
        words = f"the machine is a node of {node.data_center}, its site is now {center.name}"
        found.append(finding("identity.data_center", words))
    return found


def with_result(session: Session, digest: str, refused: list[dict[str, str]] | None) -> Session:
    """The session as it stands after its evidence."""
    return replace(session, evidence=digest, refused=refused)


def outcome_of(tx: Transaction, session: Session) -> Outcome:
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
        offer=None if node is None else find_offer(tx, node.data_center),
    )


def find_offer(tx: Transaction, data_center: str) -> Offer | None:
    """The release that the nodes of a data centre shall install."""
    row = tx.offer(data_center)
    release = None if row is None else tx.release(row.version)
    if row is None or release is None:
        return None
    return Offer(
        number=row.number,
        version=row.version,
        manifest=hashlib.sha256(release.document).digest(),
        url=row.url,
        rollback=row.rollback,
    )


def find_session(tx: Transaction, session: str, machine: str) -> Session:
    found = tx.session(session)
    if found is None or found.machine != machine:
        raise NotFoundError("there is no such session of this machine", hint="ask for a new challenge")
    return found


def check_unexpired(session: Session, at: int) -> None:
    if session.expires_at <= at:
        raise ConflictError(
            "the session is over",
            (finding("nonce.expired", f"it ended {at - session.expires_at} s ago"),),
            hint="ask for a new challenge",
        )


def find_center(tx: Transaction, name: str) -> CenterRow:
    center = tx.center(name)
    if center is None:
        raise RefusedError(
            "the request is refused",
            (finding("site.unknown", f"the data centre {name!r} is not known to this registrar"),),
            hint="add it with `nodeos registrar dc add`, or make the medium again for a known one",
        )
    return center


def as_data_center(row: CenterRow) -> DataCenter:
    return DataCenter(
        name=row.name,
        operator=Principal.parse(row.operator),
        site_key=Ed25519PublicKey.from_public_bytes(row.site_key),
        node_reward_type=row.node_reward_type,
    )


def load_trust(tx: Transaction) -> Trust:
    rows = tx.trust()
    return Trust(
        roots=tuple(_parsed(row.der) for row in rows if row.kind == "root"),
        intermediates=tuple(_parsed(row.der) for row in rows if row.kind == "intermediate"),
        crls=tuple(_parsed_list(row.der) for row in tx.revocation_lists()),
    )


@lru_cache(maxsize=1024)
def _parsed(der: bytes) -> Certificate:
    """Manufacturers have some 170 certificates; they are parsed once."""
    return parse_certificate(der)


@lru_cache(maxsize=256)
def _parsed_list(der: bytes) -> Crl:
    return parse_crl(der)


def enrolled_as(node: NodeRow) -> Enrolled:
    record = NodeRecord.parse(parse_json(node.record, "node record"))
    return Enrolled(
        ak_public=node.ak_public,
        keys=record.keys,
        pcrs={int(index): bytes.fromhex(value) for index, value in node.pcrs.items()},
        luks_uuid=node.luks_uuid,
        boot_id=node.boot_id,
    )


def accepted_releases(tx: Transaction) -> dict[str, Release]:
    """By version; those that were withdrawn are not among them."""
    return {row.version: Release.parse(row.document) for row in tx.releases() if row.withdrawn_at is None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A TPM's counters, and the boot in which it showed them."""

    clock: Clock
    boot_id: str | None


def last_seen(tx: Transaction, machine: str) -> Seen | None:
    """What the machine's TPM showed last. A recovery that an operator answered begins a new count: clearing a TPM
    sets its counters back (TPM 2.0 Part 3, TPM2_Clear), and another TPM has its own."""
    latest, recovery = tx.attestations(machine, 1), tx.latest_recovery(machine, answered=True)
    row: Attestation | RecoveryRow | None = latest[0] if latest else None
    boot_id = latest[0].boot_id if latest else None
    answered = None if recovery is None else recovery.answered_at
    if recovery is not None and answered is not None and (row is None or answered >= row.at):
        row = recovery
        boot_id = LockedStatement.parse(LockedEvidence.parse(recovery.body).statement).boot_id
    if row is None:
        return None
    clock = Clock(clock=row.clock, reset_count=row.reset_count, restart_count=row.restart_count)
    return Seen(clock=clock, boot_id=boot_id)


def signed_by(caller: Caller) -> dict[str, Any]:
    """What shows later that this operator signed this decision."""
    return {
        "key": b64(caller.public_key),
        "timestamp": caller.timestamp,
        "nonce": caller.nonce,
        "signature": b64(caller.signature),
    }


def key_digests(keys: NodeKeys) -> tuple[str, str, str]:
    """Digests of the three keys; of the TLS certificate its key, which another certificate could carry."""
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(keys.tls_certificate)
        tls = public_der(certificate.public_key())
    except ValueError:
        tls = keys.tls_certificate
    digests = [hashlib.sha256(data).hexdigest() for data in (keys.signing, tls, keys.committee)]
    return digests[0], digests[1], digests[2]


def make_attestation(
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
