"""A node after its recovery: what its machine is held to, and how the registry takes the machine's new TPM."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nodeos.core.protocol import NodeRecord, Request
from nodeos.core.recovery_request import LockedEvidence
from nodeos.core.wire import parse_json
from provisioning.registrar.lookups import NotFoundError, audit_row, ek_key_digest, enrolled_as
from provisioning.registrar.rows import Enrolment, NodeRow, RecoveryRow
from provisioning.registrar.states import Event, advance
from provisioning.registrar.store import Transaction
from provisioning.verify.findings import finding
from provisioning.verify.policy import FIRMWARE_PCRS, Enrolled


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Which node a machine is, or may become: ``recovery`` is one that an operator answered for this very machine,
    and that it has not yet shown the fruit of."""

    node: NodeRow | None
    recovery: RecoveryRow | None

    @property
    def enrolled(self) -> Enrolled | None:
        """What the machine is held to. An answered recovery names the TPM's key and the firmware that the
        operator saw; node keys, volume and PCR 15 stay those of the enrolment."""
        if self.node is None:
            return None
        before = enrolled_as(self.node)
        if self.recovery is None:
            return before
        seen = {int(index): bytes.fromhex(value) for index, value in enrolled_pcrs(self.recovery).items()}
        return replace(before, ak_public=self.recovery.ak_public, pcrs={**before.pcrs, **seen})


def find_standing(tx: Transaction, machine: str) -> Standing:
    node, recovery = tx.node(machine), tx.latest_recovery(machine, answered=True)
    if recovery is None or recovery.used_at is not None:
        return Standing(node=node, recovery=None)
    target = tx.node(recovery.node_id)
    if target is None or (node is not None and node.node_id != target.node_id):
        return Standing(node=node, recovery=None)
    return Standing(node=target, recovery=recovery)


def complete(  # noqa: PLR0917
    tx: Transaction, old: Enrolment, request: Request, row: RecoveryRow, evidence: str, at: int
) -> Enrolment:
    """The recovered machine attested with its state: from now on its TPM is the node's. The node id stays.

    ``old`` is the enrolment of the machine that attested; gives it as it is now.
    """
    node = tx.node(row.node_id)
    if node is None:
        raise NotFoundError("the node is gone")
    state = advance(old.state, Event.RECOVERED)
    made = replace(
        old,
        data_center=node.data_center,
        state=state,
        ek_key=ek_key_digest(request),
        ak_public=request.ak_public,
        changed_at=at,
    )
    tx.put_enrolment(made)
    record = NodeRecord.parse(parse_json(node.record, "node record"))
    tx.move_node(
        replace(
            node,
            machine=old.machine,
            record=replace(record, machine=old.machine).to_bytes(),
            ak_public=request.ak_public,
            pcrs=node.pcrs | enrolled_pcrs(row),
        )
    )
    detail = {"node_id": node.node_id, "evidence": evidence, "recovery": row.evidence}
    if node.machine != old.machine:
        for uuid, blobs in tx.escrows(node.machine).items():
            for blob in blobs:
                tx.add_escrow(old.machine, uuid, blob, evidence, at)
        former = tx.enrolment(node.machine)
        if former is None:
            raise NotFoundError("the node's former enrolment is gone")
        left = advance(former.state, Event.MOVED_AWAY)
        said = finding("recovery.moved", f"its node {node.node_id} is on machine {old.machine} now").to_json()
        tx.put_enrolment(replace(former, state=left, findings=[said], changed_at=at))
        states = (str(former.state), str(left))
        tx.add_audit(audit_row(at, "machine", node.machine, Event.MOVED_AWAY, states, **detail))
    tx.use_recoveries(old.machine, at)
    tx.add_audit(audit_row(at, "machine", old.machine, Event.RECOVERED, (old.state, state), **detail))
    return made


def enrolled_pcrs(row: RecoveryRow) -> dict[str, str]:
    """The firmware's registers as the operator saw them in a recovery: what later boots are held to."""
    pcrs = LockedEvidence.parse(row.body).pcrs
    return {str(index): pcrs[index].hex() for index in FIRMWARE_PCRS}
