"""What the registrar does for operators: each sees and moves only machines of data centres that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nodeos.core import cbor
from nodeos.core.errors import RefusedError
from nodeos.core.principal import Principal
from nodeos.core.protocol import Evidence, NodeRecord, Statement
from nodeos.core.recovery import RecoveryBlob
from nodeos.core.wire import ParseError, parse_json
from provisioning import operator_auth
from provisioning.operator_auth import Asked, Caller
from provisioning.registrar.lookups import (
    ConflictError,
    NotFoundError,
    audit_row,
    key_digests,
    signed_by,
)
from provisioning.registrar.rows import Attestation, CenterRow, Enrolment, NodeRow
from provisioning.registrar.service import Service
from provisioning.registrar.states import Event, advance
from provisioning.registrar.store import Transaction
from provisioning.verify.findings import finding
from provisioning.verify.fingerprint import MAX_BYTES

PAGE = 200
HISTORY = 50


class Operators:
    """Answers operators. Every method first spends the request's nonce."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    def authenticate(self, headers: Mapping[str, str], method: str, path: str, body: bytes) -> Caller:
        """Who asks. Raises RefusedError for a bad signature, an old request, a spent nonce, a stranger."""
        at = self._service.clock()
        registrar = self._service.settings.registrar
        asked = Asked(registrar=registrar, method=method, path=path, body=body)
        caller = operator_auth.verify(headers, asked, at)
        operator = str(caller.principal)
        with self._store.write() as tx:
            if not tx.centers(operator):
                words = f"{operator} runs no data centre of this registrar"
                raise RefusedError("the request is refused", (finding("operator.unknown", words),))
            if not tx.use_nonce(operator, caller.nonce, at + 2 * operator_auth.WINDOW_SECONDS):
                words = "this signed request was sent before"
                raise RefusedError("the request is refused", (finding("operator.replay", words),))
        return caller

    def enrolments(self, caller: Caller, state: str | None, after: str) -> dict[str, Any]:
        """One page of enrolments; ``next`` is where the next page begins, or null."""
        with self._store.read() as tx:
            rows = tx.enrolments(_centers(tx, caller), state, after, PAGE)
            listed = [_summary(tx, row, self._service.clock()) for row in rows]
        return {"enrolments": listed, "next": rows[-1].machine if len(rows) == PAGE else None}

    def enrolment(self, caller: Caller, machine: str) -> dict[str, Any]:
        """All that is known of one machine, and the digest that an approval binds."""
        with self._store.read() as tx:
            row, _ = _own(tx, caller, machine)
            return _details(tx, row, self._service.clock())

    def approve(self, caller: Caller, machine: str, body: bytes) -> dict[str, Any]:
        """Induct the machine on the evidence whose digest the operator signed.

        Approving again on the same evidence gives the same record. Raises ConflictError if the evidence
        is no longer that one.
        """
        fields = parse_json(body, "approval")
        seen = fields.hexadecimal("evidence", length=32).hex()
        fields.done()
        at = self._service.clock()
        with self._store.write() as tx:
            row, center = _own(tx, caller, machine)
            node = tx.node(row.machine)
            if node is not None and node.evidence == seen:
                return _node_details(tx, node)
            state = advance(row.state, Event.APPROVED)
            if row.evidence != seen:
                words = f"you saw {seen}, the machine's evidence is now {row.evidence or 'refused'}"
                raise ConflictError(
                    "the approval is refused",
                    (finding("approval.evidence", words),),
                    hint="look again with `nodeos enroll show`, then approve what you see",
                )
            raw = tx.evidence(seen)
            if raw is None:
                raise NotFoundError("the evidence is gone", hint="reboot the machine: it attests again")
            induct(tx, row, center, Evidence.parse(raw), at)
            tx.put_enrolment(replace(row, state=state, changed_at=at))
            proof = {"evidence": seen, "signed": signed_by(caller)}
            tx.add_audit(
                audit_row(at, str(caller.principal), row.machine, Event.APPROVED, (row.state, state), **proof)
            )
            made = tx.node(row.machine)
            if made is None:
                raise NotFoundError("the node is gone")
            return _node_details(tx, made)

    def reject(self, caller: Caller, machine: str, body: bytes) -> dict[str, Any]:
        """Turn the machine away, with a reason for the record. Raises RefusedError for a node."""
        fields = parse_json(body, "rejection")
        reason = fields.text("reason", limit=500)
        fields.done()
        at = self._service.clock()
        with self._store.write() as tx:
            row, _ = _own(tx, caller, machine)
            state = advance(row.state, Event.REJECTED)
            said = finding("operator.rejected", reason or "no reason given").to_json()
            tx.put_enrolment(replace(row, state=state, findings=[said], changed_at=at))
            proof = {"reason": reason, "signed": signed_by(caller)}
            tx.add_audit(
                audit_row(at, str(caller.principal), row.machine, Event.REJECTED, (row.state, state), **proof)
            )
            return _details(tx, replace(row, state=state, findings=[said], changed_at=at), at)

    def nodes(self, caller: Caller, after: str) -> dict[str, Any]:
        """One page of the registry."""
        with self._store.read() as tx:
            rows = tx.nodes(_centers(tx, caller), after, PAGE)
            listed = [_node_summary(tx, row) for row in rows]
        return {"nodes": listed, "next": rows[-1].node_id if len(rows) == PAGE else None}

    def node(self, caller: Caller, name: str) -> dict[str, Any]:
        """A node's record and all its attestations, by node id or machine."""
        with self._store.read() as tx:
            row = tx.node(name)
            if row is None or row.data_center not in _centers(tx, caller):
                raise NotFoundError(f"there is no node {name}", hint="see `nodeos node list`")
            return _node_details(tx, row)


def induct(
    tx: Transaction, enrolment: Enrolment, center: CenterRow, evidence: Evidence, at: int
) -> NodeRecord:
    """Make the node of an approved enrolment. Raises ConflictError if another node has one of its keys."""
    statement = Statement.parse(evidence.statement)
    record = NodeRecord(
        node_id=statement.keys.node_id,
        machine=enrolment.machine,
        data_center=center.name,
        operator=Principal.parse(center.operator),
        node_reward_type=center.node_reward_type,
        keys=statement.keys,
        inducted_at=at,
    )
    signing, tls, committee = key_digests(statement.keys)
    other = tx.holder_of_keys(signing, tls, committee)
    if other is not None:
        words = f"machine {other} has one of these node keys"
        raise ConflictError("the machine can't be inducted", (finding("identity.duplicate", words),))
    tx.add_node(
        NodeRow(
            node_id=str(record.node_id),
            machine=enrolment.machine,
            data_center=center.name,
            signing=signing,
            tls=tls,
            committee=committee,
            record=record.to_bytes(),
            ak_public=enrolment.ak_public or b"",
            pcrs={str(index): value.hex() for index, value in evidence.pcrs.items()},
            luks_uuid=statement.volume.luks_uuid,
            boot_id=statement.boot_id,
            evidence=enrolment.evidence or "",
            addresses=tuple(str(address) for address in statement.addresses),
        )
    )
    return record


def _centers(tx: Transaction, caller: Caller) -> list[str]:
    return [center.name for center in tx.centers(str(caller.principal))]


def _own(tx: Transaction, caller: Caller, machine: str) -> tuple[Enrolment, CenterRow]:
    """A machine that the caller may see. Others are as good as absent."""
    row = tx.enrolment(machine)
    center = tx.center(row.data_center) if row else None
    if row is None or center is None or center.operator != str(caller.principal):
        raise NotFoundError(f"there is no machine {machine}", hint="see `nodeos enroll list`")
    return row, center


def _summary(tx: Transaction, row: Enrolment, at: int) -> dict[str, Any]:
    latest = tx.attestations(row.machine, 1)
    return {
        "machine": row.machine,
        "state": str(row.state),
        "data_center": row.data_center,
        "findings": row.findings,
        "evidence": row.evidence,
        "tpm": row.tpm,
        "release": latest[0].release if latest else None,
        "locked": tx.is_locked(row.machine, at),
        "first_at": row.first_at,
        "changed_at": row.changed_at,
    }


def _details(tx: Transaction, row: Enrolment, at: int) -> dict[str, Any]:
    latest = tx.attestations(row.machine, 1)
    details: dict[str, Any] = {
        **_summary(tx, row, at),
        "attestation": _attestation(latest[0]) if latest else None,
        "node_id": None,
        "keys": None,
        "recovery": None,
        "fingerprint": None,
        "memory_encryption": None,
        "audit": [
            {"at": a.at, "actor": a.actor, "event": a.event, "before": a.before, "after": a.after}
            for a in tx.audit(row.machine, HISTORY)
        ],
    }
    raw = tx.evidence(latest[0].evidence) if latest else None
    if raw is not None:
        # What was stored was authentic, but may have been refused for its form.
        try:
            statement = Statement.parse(Evidence.parse(raw).statement)
            details["node_id"] = str(statement.keys.node_id)
            details["keys"] = statement.keys.to_json()
            blob = RecoveryBlob.parse(statement.recovery)
            details["recovery"] = {
                "operator_key": blob.operator_key.hex(),
                "machine": blob.machine,
                "volume": blob.volume,
            }
            details["memory_encryption"] = statement.memory_encryption
            details["fingerprint"] = cbor.as_json(
                cbor.decode(statement.fingerprint, "fingerprint", limit=MAX_BYTES)
            )
        except ParseError as error:
            details["unreadable"] = error.message
    return details


def _attestation(row: Attestation) -> dict[str, Any]:
    return {
        "state": row.state,
        "at": row.at,
        "boot_id": row.boot_id,
        "release": row.release,
        "reset_count": row.reset_count,
        "restart_count": row.restart_count,
        "clock": row.clock,
        "firmware_version": row.firmware_version,
        "pcrs": row.pcrs,
        "volume": row.volume,
        "verdicts": row.verdicts,
        "evidence": row.evidence,
    }


def _record(row: NodeRow) -> dict[str, Any]:
    return NodeRecord.parse(parse_json(row.record, "node record")).to_json()


def _node_summary(tx: Transaction, row: NodeRow) -> dict[str, Any]:
    latest = tx.attestations(row.machine, 1)
    short = {name: value for name, value in _attestation(latest[0]).items() if name != "verdicts"}
    return {**_record(row), "addresses": list(row.addresses), "attestation": short}


def _node_details(tx: Transaction, row: NodeRow) -> dict[str, Any]:
    history = [_attestation(a) for a in tx.attestations(row.machine, HISTORY)]
    latest = {**history[0], "update": _update(tx, history[0]["evidence"]), "history": history}
    return {**_record(row), "addresses": list(row.addresses), "attestation": latest}


def _update(tx: Transaction, evidence: str) -> dict[str, Any] | None:
    """How the node came to run its version, and what it made of the last offer: its words, not measured."""
    raw = tx.evidence(evidence)
    try:
        status = None if raw is None else Statement.parse(Evidence.parse(raw).statement).update
    except ParseError:
        return None
    return None if status is None else status.to_json()
