"""A node whose state is locked, because its TPM was cleared or replaced: it asks for its recovery key, opens the
volume, seals it to the TPM anew and restarts. Nothing of this boot is kept; /var lies in memory.

The node makes no keys of its own here: it has some already, on the volume that it can't read. The fresh key that
the answer is encrypted to is made for one request and lives in this process alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hsm import keys as hsm_keys
from hsm.box import BoxError, open_box
from hsm.identity import FileAgreement
from nodeos.agent import evidence, memory
from nodeos.agent.backoff import SLOW, Backoff, jittered
from nodeos.agent.config import Config
from nodeos.agent.console import Console
from nodeos.agent.device import OpenTpm, TpmDevice
from nodeos.agent.enrolment import LONGEST_POLL, Session, activate
from nodeos.agent.registrar import Registrar, RegistrarError
from nodeos.agent.stop import Stop
from nodeos.agent.volume import ReadHeader
from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.principal import Principal
from nodeos.core.protocol import QUOTED_PCRS, Poll, Request, poll_proof, secret_proof
from nodeos.core.recovery import TOKEN_TYPE, RecoveryBlob, RecoveryKey
from nodeos.core.recovery_request import (
    LockedEvidence,
    LockedStatement,
    RecoveryAnswer,
    RecoveryOutcome,
    RecoveryState,
    answer_context,
    recovery_qualifying_data,
)
from nodeos.core.site import SignedSite, SiteConfig
from nodeos.core.statereport import StateReport
from nodeos.core.wire import ParseError, canonical_json

STEP = "recovery"


class Volume(Protocol):
    """The locked state volume."""

    def recover(self, device: str, key: RecoveryKey) -> None:
        """Seal it to this TPM anew, if the recovery key opens it. Raises NodeosError; then it is as before."""
        ...


def read_blob(device: str, read_header: ReadHeader) -> RecoveryBlob:
    """The encrypted recovery key in the volume's header. Raises NodeosError unless there is exactly one."""
    _, metadata = read_header(device)
    try:
        tokens = json.loads(metadata)["tokens"]
        found = [token for token in tokens.values() if token["type"] == TOKEN_TYPE]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParseError(f"LUKS2 header of {device}: not the JSON that it must be") from error
    if len(found) != 1:
        raise NodeosError(
            f"the state volume on {device} has {len(found)} recovery keys, expected one",
            hint="it was made by an earlier image, or its key slots were changed: erase the disk, enrol anew",
        )
    return RecoveryBlob.parse(canonical_json(found[0]), f"LUKS2 header of {device}: {TOKEN_TYPE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What stays the same while this boot asks."""

    request: Request
    report: StateReport
    blob: RecoveryBlob
    fingerprint: bytes

    @property
    def machine(self) -> str:
        return self.request.machine


@dataclass(slots=True, kw_only=True)
class Recovery:
    """One locked boot's dealings with the registrar."""

    config: Config
    open_tpm: OpenTpm
    registrar: Registrar
    console: Console
    stop: Stop
    settings: SiteConfig
    locked: Locked
    volume: Volume
    reboot: Callable[[], None]
    backoff: Backoff = field(default_factory=Backoff)

    def keep_asking(self) -> None:
        """Until StopRequested, which comes with the restart too."""
        while True:
            self.stop.wait(self.once())

    def once(self) -> float:
        """Ask once and wait for the operator; with the answer the machine restarts. Returns the seconds until the
        next time."""
        try:
            fresh = _fresh_key()
            session, digest, outcome = self._ask(fresh.public_key)
            while outcome.state is RecoveryState.WAITING:
                outcome = self._poll(session)
            if outcome.answer is None:
                return self._refused("the registrar refused this machine's recovery", outcome.findings)
            key = open_answer(outcome.answer, digest, fresh, self.settings.operator)
        except UnreachableError as error:
            delay = self.backoff.delay()
            words = f"registrar can't be reached ({error.message}); trying again in {delay:.0f} s"
            self.console.tell(STEP, words)
            return delay
        except RegistrarError as error:
            delay = self.backoff.delay()
            self.console.tell(STEP, f"{error.message}; trying again in {delay:.0f} s")
            return delay
        except RefusedError as error:
            return self._refused(error.message.splitlines()[0], error.findings)
        return self._open(key)

    def _ask(self, fresh_key: bytes) -> tuple[Session, str, RecoveryOutcome]:
        """Challenge, statement, quote. Gives the evidence's digest too, which the answer must name."""
        locked, config = self.locked, self.config
        with self.stop.interruptible():
            challenge = self.registrar.challenge(locked.request)
        statement = LockedStatement(
            boot_id=evidence.boot_id(),
            release=evidence.read_release(config.os_release),
            luks_uuid=locked.report.luks_uuid,
            recovery=locked.blob.to_bytes(),
            fresh_key=fresh_key,
            reason=locked.report.reason,
            memory_encryption=memory.memory_encryption(),
            fingerprint=locked.fingerprint,
        ).to_bytes()
        qualifying = recovery_qualifying_data(challenge.nonce, statement)
        with self.open_tpm() as tpm:
            secret = activate(tpm, challenge)
            quote, firmware, userspace = evidence.quote_with_logs(config, tpm, qualifying)
        proof = LockedEvidence(
            session=challenge.session,
            statement=statement,
            secret_proof=secret_proof(secret, qualifying),
            quote=quote.attest,
            signature=quote.signature,
            pcrs={index: quote.pcrs[index] for index in QUOTED_PCRS},
            firmware_log=firmware,
            userspace_log=userspace,
        )
        with self.stop.interruptible():
            outcome = self.registrar.recovery(locked.machine, proof)
        self.backoff.reset()
        if outcome.state is RecoveryState.WAITING:
            self.console.tell(
                STEP,
                f"the state is locked ({locked.report.reason}); waiting for the operator of "
                f"{self.settings.data_center}\n  → nodeos node recover {locked.machine}",
            )
            self.console.ready()
        return Session(name=challenge.session, secret=secret), proof.digest, outcome

    def _poll(self, session: Session) -> RecoveryOutcome:
        """Wait and ask. A registrar that can't be reached is asked again: the answer will be for this key."""
        delay: float = min(_POLL_SECONDS, LONGEST_POLL)
        while True:
            self.stop.wait(delay)
            session.counter += 1
            proof = poll_proof(session.secret, session.name, session.counter)
            poll = Poll(session=session.name, counter=session.counter, proof=proof)
            try:
                with self.stop.interruptible():
                    outcome = self.registrar.recovery_poll(self.locked.machine, poll)
            except UnreachableError as error:
                delay = self.backoff.delay()
                words = f"registrar can't be reached ({error.message}); trying again in {delay:.0f} s"
                self.console.tell(STEP, words)
                continue
            self.backoff.reset()
            return outcome

    def _open(self, key: RecoveryKey) -> float:
        try:
            self.volume.recover(self.locked.report.device, key)
        except NodeosError as error:
            self.console.tell(STEP, f"the recovery key came, and the volume did not open: {error.message}")
            return jittered(SLOW)
        # The boot that comes is an ordinary one.
        self.console.tell(STEP, "the state is sealed to this TPM again; the machine restarts")
        self.reboot()
        return SLOW

    def _refused(self, message: str, findings: tuple[Finding, ...]) -> float:
        delay = jittered(SLOW)
        self.console.findings(STEP, message, findings, f"trying again in {delay:.0f} s")
        return delay


_POLL_SECONDS = 5


def prepare_request(tpm: TpmDevice, signed: SignedSite) -> Request:
    endorsement = tpm.endorsement()
    return Request(
        ek_public=endorsement.public,
        ek_certificates=tuple(endorsement.certificates),
        ak_public=tpm.attestation_key(),
        site_document=signed.document,
        site_signature=signed.signature,
    )


def check_own(report: StateReport, blob: RecoveryBlob) -> None:
    """Raises RefusedError if the header's recovery key is for another volume: nobody needs to be asked then.

    It may name the machine's former TPM and the operator's former key: that is for those to judge who know them.
    """
    blob.context_for(machine=blob.machine, volume=report.luks_uuid, operator_key=blob.operator_key)


def open_answer(
    answer: RecoveryAnswer, evidence_digest: str, fresh: FileAgreement, operator: Principal
) -> RecoveryKey:
    """The recovery key, if the site's own operator answered this very request. Raises RefusedError."""

    def refused(code: str, words: str) -> RefusedError:
        return RefusedError("the answer is refused", (Finding(code=code, message=words),))

    if Principal.self_authenticating(answer.public_key) != operator:
        raise refused("recovery.operator", "another than this site's operator gave the answer")
    try:
        hsm_keys.verify(answer.public_key, answer.signed, answer.signature)
    except (hsm_keys.SignatureError, UsageError) as error:
        raise refused("recovery.signature", "the operator's signature does not fit") from error
    if answer.evidence != evidence_digest:
        raise refused("recovery.evidence", "it answers another request")
    try:
        value = open_box(fresh, answer.box, answer_context(evidence_digest))
        return RecoveryKey(value=value)
    except (BoxError, UsageError, ValueError):
        # Nothing of what was in it may reach a log.
        raise refused("recovery.box", "it is not encrypted to the key of this request") from None


def _fresh_key() -> FileAgreement:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    return FileAgreement(generate_private_key(SECP256R1()))
