"""Enrolment and attestation, which are the same three steps, and what the node does with the outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nodeos.agent import evidence
from nodeos.agent.backoff import SLOW, Backoff, jittered
from nodeos.agent.config import Config
from nodeos.agent.console import Console
from nodeos.agent.delivery import Deliverer
from nodeos.agent.device import OpenTpm, TpmDevice
from nodeos.agent.firewall import Firewall
from nodeos.agent.registrar import Registrar, RegistrarError
from nodeos.agent.stop import Stop
from nodeos.core.access import MAX_ADDRESSES
from nodeos.core.addresses import IpAddress
from nodeos.core.errors import Finding, NodeosError, RefusedError, UnreachableError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.protocol import (
    AccessRequest,
    Challenge,
    EnrolmentState,
    NodeKeys,
    NodeRecord,
    Outcome,
    Poll,
    Request,
    Statement,
    poll_proof,
)
from nodeos.core.site import SignedSite, SiteConfig

STEP = "enrolment"
FIREWALL = "firewall"
# How long a poll may be put off by the registrar, in seconds.
LONGEST_POLL = 300
OwnAddresses = Callable[[], tuple[IpAddress, ...]]
# How often a status that may change soon is looked at, in seconds.
_WATCH = 5.0
_UNDECIDED = (EnrolmentState.PENDING, EnrolmentState.CHALLENGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Who asks. ``id`` is the machine id of the endorsement key."""

    id: str
    ek_public: bytes
    ek_certificates: tuple[bytes, ...]
    ak_public: bytes
    keys: NodeKeys
    site: SignedSite

    @property
    def request(self) -> Request:
        return Request(
            ek_public=self.ek_public,
            ek_certificates=self.ek_certificates,
            ak_public=self.ak_public,
            site_document=self.site.document,
            site_signature=self.site.signature,
        )


@dataclass(slots=True, kw_only=True)
class Session:
    """A challenge that was answered; its secret authenticates the polls."""

    name: str
    secret: bytes = field(repr=False)
    counter: int = 0

    def poll(self) -> Poll:
        """A poll that was not sent before."""
        self.counter += 1
        proof = poll_proof(self.secret, self.name, self.counter)
        return Poll(session=self.name, counter=self.counter, proof=proof)


@dataclass(slots=True, kw_only=True)
class Enrolment:
    """One boot's dealings with the registrar. ``statement`` holds for the whole boot, but for the addresses and
    what it says of updates: those are stated as they are at each attestation. ``session`` is that of the
    attestation that passed last."""

    config: Config
    open_tpm: OpenTpm
    prove_keys: evidence.ProveKeys
    registrar: Registrar
    console: Console
    stop: Stop
    settings: SiteConfig
    machine: Machine
    statement: Statement
    record: NodeRecord | None
    firewall: Firewall
    own_addresses: OwnAddresses
    deliverer: Deliverer
    session: Session | None = None
    backoff: Backoff = field(default_factory=Backoff)

    def keep_attested(self, period: int) -> None:
        """Attest, and again every ``period`` seconds, until StopRequested or an error of this machine."""
        if self.record is not None:
            self.console.tell(STEP, f"inducted in an earlier boot as {self.record.node_id}; attesting anew")
        while True:
            self._wait(self.once(period))

    def _wait(self, seconds: float) -> None:
        """Until the next attestation; meanwhile keep up with who may reach the node. An own address that others
        don't know yet ends the waiting, and so does news of a boot on trial, or of an update."""
        told, left = self.deliverer.status(), seconds
        until_access = seconds if self.session is None else float(self.config.access_period)
        while True:
            watched = self.deliverer.unsettled()
            step = min(left, until_access, _WATCH if watched else left)
            self.stop.wait(step)
            left, until_access = left - step, until_access - step
            if left <= 0 or (watched and self.deliverer.status() != told):
                return
            if until_access <= 0:
                until_access = float(self.config.access_period)
                if self.session is not None:
                    self._update_access(self.session)
                    if self._addresses() != self.statement.addresses:
                        return

    def _addresses(self) -> tuple[IpAddress, ...]:
        return self.own_addresses()[:MAX_ADDRESSES]

    def once(self, period: int) -> float:
        """Attest once, and wait for the operator if need be. Returns the seconds until the next time."""
        self.session = None
        try:
            outcome = self.attest()
            if outcome.state is EnrolmentState.INDUCTED and outcome.node is not None:
                delay = self._inducted(outcome.node, outcome.findings, period)
                self.deliverer.consider(outcome.offer)
                return delay
        except UnreachableError as error:
            return self._unreachable(error)
        except RegistrarError as error:
            return self._useless(error)
        except RefusedError as error:
            # Its message lists the findings below its first line; the console does that itself.
            message = error.message.splitlines()[0]
            return self._refused(EnrolmentState.REFUSED, message, error.findings, error.hint)
        rejected = outcome.state is EnrolmentState.REJECTED
        message = "the operator rejected this machine" if rejected else "the registrar refused this machine"
        return self._refused(outcome.state, message, outcome.findings, None)

    def attest(self) -> Outcome:
        """The protocol up to a decision: an outcome that is neither challenged nor pending."""
        with self.stop.interruptible():
            challenge = self.registrar.challenge(self.machine.request)
        with self.open_tpm() as tpm:
            session = Session(name=challenge.session, secret=activate(tpm, challenge))
            if evidence.is_incomplete(self.config.userspace_log):
                self.console.tell(STEP, "systemd's measurement log is marked as incomplete")
            self.statement = replace(self.statement, addresses=self._addresses())
            proof = evidence.gather(
                self.config,
                tpm,
                self.prove_keys,
                challenge,
                secret=session.secret,
                statement=replace(self.statement, update=self.deliverer.status()).to_bytes(),
            )
        with self.stop.interruptible():
            outcome = self.registrar.evidence(self.machine.id, proof)
        self.backoff.reset()
        outcome = self._wait_for_operator(session, outcome)
        self.session = session
        return outcome

    def _wait_for_operator(self, session: Session, outcome: Outcome) -> Outcome:
        """Poll until the outcome is a decision. Raises RegistrarError if the session is no longer known."""
        told: tuple[Finding, ...] | None = None
        while outcome.state in _UNDECIDED:
            self._remember(outcome.state, outcome.findings)
            if outcome.findings != told:
                told = outcome.findings
                self._pending(outcome.findings)
            self.stop.wait(min(max(outcome.poll_after, 1), LONGEST_POLL))
            answer = self._poll(session)
            while answer is None:
                told = None  # say again that we wait, once the registrar is back
                answer = self._poll(session)
            outcome = answer
        return outcome

    def _poll(self, session: Session) -> Outcome | None:
        """Ask once. None if nobody answered, after telling that and waiting."""
        try:
            with self.stop.interruptible():
                outcome = self.registrar.poll(self.machine.id, session.poll())
        except UnreachableError as error:
            self.stop.wait(self._unreachable(error))
            return None
        self.backoff.reset()
        return outcome

    def _pending(self, findings: tuple[Finding, ...]) -> None:
        self.console.know(state=str(EnrolmentState.PENDING), attested_at=int(time.time()))
        words = (
            f"the evidence was accepted; waiting for the operator of {self.settings.data_center} "
            f"to approve this machine\n  → nodeos enroll approve {self.machine.id}"
        )
        self.console.findings(STEP, words, findings)
        self.console.ready()

    def _inducted(self, node: NodeRecord, findings: tuple[Finding, ...], period: int) -> float:
        self._check_record(node)
        data = node.to_bytes()
        if self.record is None or self.record != node:
            write_atomic(self.config.node_record, data)
            self.record = node
        self._remember(EnrolmentState.INDUCTED, findings)
        if not self.config.attested.exists():
            write_atomic(self.config.attested, b"")
        if self.session is not None:
            self._update_access(self.session)
        self.console.know(state=str(EnrolmentState.INDUCTED), attested_at=int(time.time()))
        words = f"attested as the node {node.node_id}; again in {period} s"
        self.console.findings("running", words, findings)
        self.console.ready()
        return float(period)

    def _update_access(self, session: Session) -> None:
        """Open the firewall for those who may reach the node now. What fails is told, and changes nothing."""
        firewall = self.firewall
        if not firewall.is_loaded():
            self.console.tell(
                FIREWALL,
                "the ruleset is not loaded; trying again\n  → see the journal of nodeos-firewall-load",
            )
            firewall.load_again()
        have = None if firewall.access is None else firewall.access.digest
        try:
            with self.stop.interruptible():
                answer = self.registrar.access(self.machine.id, AccessRequest(poll=session.poll(), have=have))
        except NodeosError as error:
            kept = "stays as it is" if have else "stays closed"
            self.console.tell(FIREWALL, f"{kept}: {error.message.splitlines()[0]}")
            return
        if answer.access is not None:
            firewall.open_for(answer.access)
            nodes, clients = len(answer.access.nodes), len(answer.access.clients)
            self.console.tell(
                FIREWALL, f"open for {nodes} addresses of nodes and {clients} prefixes of clients"
            )

    def _check_record(self, node: NodeRecord) -> None:
        """The registrar's record must be this node's, on this machine, for this site."""
        expected = {
            "machine": (node.machine, self.machine.id),
            "keys": (node.keys, self.machine.keys),
            "data_center": (node.data_center, self.settings.data_center),
            "operator": (node.operator, self.settings.operator),
        }
        wrong = tuple(
            Finding(
                code=f"record.{name}", message="the registrar's record says something else than this node"
            )
            for name, (found, ours) in expected.items()
            if found != ours
        )
        if wrong:
            raise RefusedError(
                "the node record that the registrar sent is refused",
                wrong,
                hint="tell the registrar's keeper",
            )

    def _unreachable(self, error: UnreachableError) -> float:
        delay = self.backoff.delay()
        words = f"registrar can't be reached ({error.message}); trying again in {delay:.0f} s"
        if self.record is not None:
            words += f"; the replica runs on the record of {self.record.node_id}"
        self.console.tell(STEP, words)
        return delay

    def _useless(self, error: RegistrarError) -> float:
        delay = self.backoff.delay()
        hint = f"\n  → {error.hint}" if error.hint else ""
        self.console.tell(STEP, f"{error.message}{hint}\n  trying again in {delay:.0f} s")
        return delay

    def _refused(
        self, state: EnrolmentState, message: str, findings: tuple[Finding, ...], hint: str | None
    ) -> float:
        delay = jittered(SLOW)
        self.session = None
        self._remember(state, findings)
        self.console.know(state=str(state))
        todo = hint or (
            f"put right what is listed, or ask the operator of {self.settings.data_center}; "
            f"`nodeos enroll show {self.machine.id}` tells more"
        )
        if self.record is not None:
            # What a node may do is the network's to decide; it sees the failed attestation in the registry.
            todo += f"\n  the replica runs on as the node {self.record.node_id}, which stays in the registry"
        todo += f"\n  trying again in {delay:.0f} s"
        self.console.findings(STEP, message, findings, todo)
        return delay

    def _remember(self, state: EnrolmentState, findings: tuple[Finding, ...]) -> None:
        """Keep the last outcome on the state partition: {"version", "machine", "state", "findings"}."""
        value = {
            "version": 1,
            "machine": self.machine.id,
            "state": str(state),
            "findings": [f.to_json() for f in findings],
        }
        data = json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
        path = self.config.enrolment
        if not path.exists() or read_file(path, "last outcome") != data:
            write_atomic(path, data)


def activate(tpm: TpmDevice, challenge: Challenge) -> bytes:
    """The secret in the challenge. If it is for another TPM, that is the registrar's mistake, not ours."""
    from hsm.errors import TpmCredentialError

    try:
        return tpm.activate(challenge.credential_blob, challenge.encrypted_secret)
    except TpmCredentialError as error:
        raise RegistrarError(f"the registrar's challenge is not for this TPM: {error.message}") from error
