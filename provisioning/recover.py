"""What the operator's computer does to help a locked node. It believes the registrar as little as it can.

It reads the attested statement itself, checks the quote over it, and looks whether the key that quoted is the one
whose evidence this operator approved when the node was made. What it can't see for itself is whether an
attestation key that is new belongs to a genuine TPM: that is the registrar's word, and --new-tpm takes it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from hsm.box import open_box, seal_to
from hsm.identity import OperatorKeys
from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.protocol import Evidence, Statement
from nodeos.core.recovery import RecoveryKey, recovery_context
from nodeos.core.recovery_request import (
    LockedEvidence,
    LockedStatement,
    RecoveryAnswer,
    answer_context,
    recovery_qualifying_data,
)
from nodeos.core.wire import Fields, canonical_json
from provisioning import operator_auth
from provisioning.cli_options import when
from provisioning.operator_auth import Asked
from provisioning.verify.findings import finding
from provisioning.verify.policy import VOLUME_PCR
from provisioning.verify.quote import check_quote, is_signed
from provisioning.verify.tpm import parse_public

_MARKS = {"passed": "✓", "watch": "!", "refused": "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFor:
    """A request that holds. ``same_tpm``: the attestation key is one whose evidence this operator approved."""

    evidence: str
    statement: LockedStatement
    same_tpm: bool
    details: dict[str, Any]


def full_name(waiting: list[dict[str, Any]], start: str) -> str:
    """The machine that begins so. Raises UsageError if none waits, or several."""
    found = [item["machine"] for item in waiting if item["machine"].startswith(start)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} machines that begin with {start!r} wait for a recovery key",
            hint="see `nodeos node recoveries`; a locked machine asks by itself once it reaches the registrar",
        )
    return str(found[0])


def check(details: dict[str, Any], *, registrar: str, keys: OperatorKeys, new_tpm: bool) -> AskedFor:
    """Recompute what can be recomputed here. Raises RefusedError with every finding, ParseError.

    ``details`` is the registrar's answer about one request; ``registrar`` its id.
    """
    evidence = LockedEvidence.parse(_bytes(details, "body"))
    statement = LockedStatement.parse(evidence.statement)
    ak = parse_public(_bytes(details, "ak_public"), "attestation key")
    qualifying = recovery_qualifying_data(_bytes(details, "nonce"), evidence.statement)
    wrong, _ = check_quote(evidence.quote, evidence.signature, ak, qualifying, evidence.pcrs)
    found: list[Finding] = [*wrong]
    if evidence.digest != details["evidence"]:
        found.append(finding("recovery.evidence", "the digest is not that of the evidence"))
    if evidence.pcrs[VOLUME_PCR] != bytes(32):
        found.append(finding("recovery.pcr15", "PCR 15 is not zero: a volume's key was used in this boot"))
    if statement.luks_uuid != details["luks_uuid"]:
        found.append(
            finding("recovery.volume", "the machine asks for another volume than the registrar says")
        )
    found += _check_blob(statement, details, keys)
    approved = _approved(details, registrar, keys)
    same = approved is not None and is_signed(approved.quote, approved.signature, ak)
    if not same and not new_tpm:
        words = "this is not the TPM whose evidence you approved, as far as can be seen from here"
        found.append(finding("recovery.new_tpm", words))
    if approved is not None and same and Statement.parse(approved.statement).recovery != statement.recovery:
        words = "it is not the recovery key in the evidence that you approved"
        found.append(finding("recovery.blob", words))
    if found:
        raise RefusedError(
            "the recovery is refused",
            tuple(found),
            hint="if its TPM or mainboard was replaced and you know of it, say --new-tpm"
            if any(f.code == "recovery.new_tpm" for f in found)
            else "see the machine's console, and `nodeos node recoveries`",
        )
    return AskedFor(evidence=evidence.digest, statement=statement, same_tpm=same, details=details)


def _check_blob(
    statement: LockedStatement, details: dict[str, Any], keys: OperatorKeys
) -> tuple[Finding, ...]:
    """It is for this operator, this volume, and a machine that the node is or was on."""
    blob, approval = statement.blob, details["approval"]
    machines = {details["machine"], details["enrolled_machine"], approval and approval["machine"]}
    machine = blob.machine if blob.machine in machines else str(details["enrolled_machine"])
    own = hashlib.sha256(keys.agreement.public_key).digest()
    try:
        blob.context_for(machine=machine, volume=statement.luks_uuid, operator_key=own)
    except RefusedError as error:
        return error.findings
    return ()


def _approved(details: dict[str, Any], registrar: str, keys: OperatorKeys) -> Evidence | None:
    """The evidence that this operator's own key signed for, or None if the registrar shows none of that kind."""
    if details["approval"] is None:
        return None
    given = Fields(details["approval"], "approval")
    machine, body = given.text("machine", limit=64), given.data("body")
    signed = given.nested("signed")
    headers = {
        operator_auth.KEY: signed.text("key"),
        operator_auth.TIMESTAMP: str(timestamp := signed.integer("timestamp")),
        operator_auth.NONCE: signed.text("nonce"),
        operator_auth.SIGNATURE: signed.text("signature"),
    }
    asked = Asked(
        registrar=registrar,
        method="POST",
        path=f"/v1/operator/enrolments/{machine}/approve",
        body=canonical_json({"evidence": hashlib.sha256(body).hexdigest()}),
    )
    try:
        caller = operator_auth.verify(headers, asked, timestamp)
    except RefusedError:
        return None
    return Evidence.parse(body) if caller.public_key == keys.signer.public_key else None


def answer(asked: AskedFor, keys: OperatorKeys, *, new_tpm: bool) -> RecoveryAnswer:
    """Decrypt the recovery key on the token and encrypt it to the key in the statement. Raises BoxError."""
    blob = asked.statement.blob
    context = recovery_context(machine=blob.machine, volume=blob.volume)
    key = RecoveryKey(value=open_box(keys.agreement, blob.box, context))
    box = seal_to(asked.statement.fresh_key, key.value, answer_context(asked.evidence))
    message = RecoveryAnswer.message(asked.evidence, box, new_tpm=new_tpm)
    return RecoveryAnswer(
        evidence=asked.evidence,
        box=box,
        new_tpm=new_tpm,
        public_key=keys.signer.public_key,
        signature=keys.signer.sign(message),
    )


def describe(asked: AskedFor) -> str:
    """What an operator should see before answering."""
    details = asked.details
    tpm = (
        "the one whose evidence you approved"
        if asked.same_tpm
        else f"ANOTHER one than you approved; the node was on machine {details['enrolled_machine']}"
    )
    lines = [
        f"machine   {details['machine']}",
        f"node      {details['node_id']}, enrolled {when(details['inducted_at'])}",
        f"in        {details['data_center']}",
        f"volume    {details['luks_uuid']}",
        f"locked    {asked.statement.reason}",
        f"asked     {when(details['at'])}, waits until {when(details['expires_at'])}",
        f"release   {asked.statement.release}",
        f"TPM       {tpm}",
        f"evidence  {asked.evidence}",
    ]
    for verdict in details["verdicts"]:
        lines.append(f"  {_MARKS[verdict['result']]} {verdict['check']}")
        lines += [f"      {f['code']}: {f['message']}" for f in verdict["findings"]]
    return "\n".join(lines)


def _bytes(details: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(str(details[name]), validate=True)
