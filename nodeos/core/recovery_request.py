"""The recovery protocol of a node whose state is locked: its TPM was cleared or replaced. Version 1.

    node                                              registrar                        operator
    POST /v1/enrolments             Request      →    as for an enrolment
                                    Challenge    ←
    POST /v1/enrolments/M/recovery  LockedEvidence →  checks secret, quote, PCRs, blob
                                    RecoveryOutcome ←
                                                      ← lists, fetches, and answers: RecoveryAnswer
    POST /v1/enrolments/M/recovery/status  Poll  →    (until the operator has answered)
                                    RecoveryOutcome ←

The node can't read its keys, so its statement names none. It names a P-256 key that was made for this one
request and lives in memory only; the quote's qualifying data binds it, under another domain than an
enrolment's, so that neither can stand for the other. The operator decrypts the escrowed recovery key and
encrypts it to that key. The box's context and the operator's signature name the evidence that it answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from nodeos.core.errors import Finding
from nodeos.core.protocol import QUOTED_PCRS
from nodeos.core.recovery import RecoveryBlob
from nodeos.core.wire import Fields, ParseError, b64, canonical_json, parse_finding, parse_json

_STATEMENT_DOMAIN = b"nodeos-recovery-request-v1\x00"
_ANSWER_DOMAIN = b"nodeos-recovery-answer-v1\x00"
_BOX_DOMAIN = b"nodeos-recovery-box-v1\x00"
# What the registrar and its keeper see of a blob: less than the 8 KiB that it may have in a header.
_BLOB_LIMIT = 1 << 13


class RecoveryState(StrEnum):
    """WAITING: for the operator. REFUSED: the evidence does not hold. ANSWERED: the answer is there."""

    WAITING = "waiting"
    REFUSED = "refused"
    ANSWERED = "answered"


def recovery_qualifying_data(nonce: bytes, statement: bytes) -> bytes:
    """What the quote signs beside the PCRs: 32 bytes that bind the nonce and the whole statement."""
    return hashlib.sha256(_STATEMENT_DOMAIN + nonce + hashlib.sha256(statement).digest()).digest()


def answer_context(evidence: str) -> bytes:
    """What the box of an answer is bound to. ``evidence`` is the hex SHA-256 of the evidence's bytes."""
    return _BOX_DOMAIN + bytes.fromhex(evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedStatement:
    """What a locked node states. ``luks_uuid`` and ``recovery`` (a RecoveryBlob's bytes) are of the header of its
    state volume, ``fresh_key`` is the DER of a P-256 key for this request alone, ``reason`` says why the volume
    stayed locked, ``fingerprint`` is the canonical CBOR of the report."""

    boot_id: str
    release: str
    luks_uuid: str
    recovery: bytes
    fresh_key: bytes
    reason: str
    memory_encryption: str
    fingerprint: bytes

    @property
    def blob(self) -> RecoveryBlob:
        return RecoveryBlob.parse(self.recovery, "statement.recovery")

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": 1,
                "kind": "recovery",
                "boot_id": self.boot_id,
                "release": self.release,
                "luks_uuid": self.luks_uuid,
                "recovery": b64(self.recovery),
                "fresh_key": b64(self.fresh_key),
                "reason": self.reason,
                "memory_encryption": self.memory_encryption,
                "fingerprint": b64(self.fingerprint),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> LockedStatement:
        """Raises ParseError, also for a recovery blob that is not in its canonical bytes."""
        fields = parse_json(data, "statement")
        fields.integer("version", low=1, high=1)
        if fields.text("kind", limit=16) != "recovery":
            raise ParseError("statement.kind: not recovery")
        statement = cls(
            boot_id=fields.text("boot_id", limit=64),
            release=fields.text("release", limit=64),
            luks_uuid=fields.text("luks_uuid", limit=36),
            recovery=fields.data("recovery", limit=_BLOB_LIMIT),
            fresh_key=fields.data("fresh_key", limit=256),
            reason=fields.text("reason", limit=500),
            memory_encryption=fields.text("memory_encryption", limit=16),
            fingerprint=fields.data("fingerprint", limit=8192),
        )
        fields.done()
        if statement.blob.to_bytes() != statement.recovery:
            raise ParseError("statement.recovery: not in the canonical form")
        return statement


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedEvidence:
    """The proof; the fields are those of ``nodeos.core.protocol.Evidence``, without the node's keys."""

    session: str
    statement: bytes
    secret_proof: bytes
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    firmware_log: bytes
    userspace_log: bytes

    @property
    def digest(self) -> str:
        """What the operator signs: hex of SHA-256 over all of it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "session": self.session,
                "statement": b64(self.statement),
                "secret_proof": b64(self.secret_proof),
                "quote": b64(self.quote),
                "signature": b64(self.signature),
                "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
                "firmware_log": b64(self.firmware_log),
                "userspace_log": b64(self.userspace_log),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> LockedEvidence:
        """Raises ParseError, also for bytes that are not canonical: the digest is over one form."""
        fields = parse_json(data, "evidence")
        pcrs = fields.nested("pcrs")
        evidence = cls(
            session=fields.text("session", limit=64),
            statement=fields.data("statement", limit=1 << 16),
            secret_proof=fields.data("secret_proof", length=32),
            quote=fields.data("quote", limit=4096),
            signature=fields.data("signature", limit=1024),
            pcrs={index: pcrs.hexadecimal(str(index), length=32) for index in QUOTED_PCRS},
            firmware_log=fields.data("firmware_log", limit=1 << 18),
            userspace_log=fields.data("userspace_log", limit=1 << 18),
        )
        pcrs.done()
        fields.done()
        if evidence.to_bytes() != data:
            raise ParseError("evidence: not in the canonical form")
        return evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryAnswer:
    """The recovery key, encrypted to the fresh key of one request (``box``, see hsm/box.py), and the operator's
    signature. ``public_key`` is the DER key whose principal is the operator. ``evidence`` is the request's digest.
    ``new_tpm``: the operator says that the machine has another TPM than it was enrolled with."""

    evidence: str
    box: bytes
    new_tpm: bool
    public_key: bytes
    signature: bytes

    @staticmethod
    def message(evidence: str, box: bytes, *, new_tpm: bool) -> bytes:
        """What the operator signs."""
        return _ANSWER_DOMAIN + bytes.fromhex(evidence) + bytes((new_tpm,)) + hashlib.sha256(box).digest()

    @property
    def signed(self) -> bytes:
        return self.message(self.evidence, self.box, new_tpm=self.new_tpm)

    def to_json(self) -> dict[str, object]:
        return {
            "evidence": self.evidence,
            "box": b64(self.box),
            "new_tpm": self.new_tpm,
            "public_key": b64(self.public_key),
            "signature": b64(self.signature),
        }

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())

    @classmethod
    def parse(cls, fields: Fields) -> RecoveryAnswer:
        answer = cls(
            evidence=fields.hexadecimal("evidence", length=32).hex(),
            box=fields.data("box", limit=1024),
            new_tpm=fields.flag("new_tpm"),
            public_key=fields.data("public_key", limit=256),
            signature=fields.data("signature", length=64),
        )
        fields.done()
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryOutcome:
    """Where the request stands, and when to ask again (seconds). ``answer`` is there once answered."""

    state: RecoveryState
    findings: tuple[Finding, ...]
    poll_after: int
    answer: RecoveryAnswer | None = None

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "state": str(self.state),
                "findings": [f.to_json() for f in self.findings],
                "poll_after": self.poll_after,
                "answer": None if self.answer is None else self.answer.to_json(),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> RecoveryOutcome:
        fields = parse_json(data, "outcome")
        try:
            state = RecoveryState(fields.text("state"))
        except ValueError as error:
            raise ParseError(f"outcome.state: {error}") from error
        outcome = cls(
            state=state,
            findings=fields.list_of("findings", parse_finding),
            poll_after=fields.integer("poll_after", high=86400),
            answer=RecoveryAnswer.parse(fields.nested("answer")) if fields.has("answer") else None,
        )
        fields.done()
        if (outcome.answer is not None) != (outcome.state is RecoveryState.ANSWERED):
            raise ParseError("outcome.answer: must be there when answered, and only then")
        return outcome
