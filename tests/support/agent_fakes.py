"""Stand-ins for the agent's tests: a TPM without a TPM, a registrar that says what it is told to say, a
site's files, and a clock that doesn't wait. The component tests put the real parts in their place."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.tpm.types import Endorsement, Quote, TpmIdentity
from nodeos.agent.config import Config
from nodeos.agent.console import Console
from nodeos.agent.stop import Stop, StopRequested
from nodeos.core.access import AccessAnswer, AccessList
from nodeos.core.errors import Finding, NodeosError
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    AccessRequest,
    Challenge,
    EnrolmentState,
    Evidence,
    KeyProofs,
    NodeRecord,
    Outcome,
    Poll,
    Request,
    Statement,
    machine_id,
    poll_proof,
    qualifying_data,
    secret_proof,
)
from nodeos.core.recovery import RecoveryKey
from nodeos.core.site import SIGNATURE_DOMAIN, Network, SiteConfig
from nodeos.core.statereport import Mode, StateReport
from tests.support import evidence

OPERATOR = Principal.self_authenticating(b"operator")
SECRET = b"s" * 32


@dataclass(slots=True)
class FakeTpm:
    """Registers that extend as a TPM's do. A credential for it is its secret, in the clear."""

    pcrs: dict[int, bytes] = field(default_factory=lambda: {index: bytes(32) for index in range(24)})
    measured: list[tuple[int, bytes]] = field(default_factory=list)
    activate_error: NodeosError | None = None

    def __enter__(self) -> FakeTpm:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def endorsement(self) -> Endorsement:
        return Endorsement(public=b"ek", certificates=(b"certificate",))

    def attestation_key(self) -> bytes:
        return b"ak"

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        if self.activate_error is not None:
            raise self.activate_error
        return credential_blob

    def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Quote:
        values = {index: self.pcrs[index] for index in pcrs}
        return Quote(attest=qualifying, signature=b"signature", pcrs=values)

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        return {index: self.pcrs[index] for index in pcrs}

    def measure(self, pcr: int, data: bytes) -> None:
        self.measured.append((pcr, data))
        self.pcrs[pcr] = hashlib.sha256(self.pcrs[pcr] + hashlib.sha256(data).digest()).digest()

    def identity(self) -> TpmIdentity:
        return TpmIdentity(manufacturer="FAKE", model="none", firmware="1.2")


def finding(code: str = "a.b", message: str = "not right") -> Finding:
    return Finding(code=code, message=message)


def outcome(state: EnrolmentState, *findings: Finding) -> Outcome:
    return Outcome(state=state, findings=findings, poll_after=7, node=None)


@dataclass(slots=True)
class FakeRegistrar:
    """Takes the next of ``answers`` for each evidence and poll; an exception is raised, None inducts.

    It checks what the node must get right: the session, the proof of the secret, the growing counter.
    """

    answers: list[Outcome | Exception | None] = field(default_factory=list)
    before_challenge: list[Exception] = field(default_factory=list)
    credential: Callable[[Request], tuple[bytes, bytes, bytes]] = lambda request: (SECRET, b"", SECRET)
    data_center: str = "zh1"
    requests: list[Request] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    counter: int = 0
    access: AccessList | Exception = field(default_factory=lambda: AccessList(nodes=(), clients=()))
    have: list[bytes | None] = field(default_factory=list)
    access_counter: int = 0
    secret: bytes = b""
    nonce: bytes = b""

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        assert method == "POST"
        assert body is not None
        if path == "/v1/enrolments":
            return self._challenge(Request.parse(body)).to_bytes()
        prefix = f"/v1/enrolments/{self.requests[-1].machine}/"
        assert path.startswith(prefix)
        if path == prefix + "evidence":
            return self._evidence(Evidence.parse(body)).to_bytes()
        if path == prefix + "access":
            return self._access(AccessRequest.parse(body)).to_bytes()
        assert path == prefix + "status"
        return self._poll(Poll.parse(body)).to_bytes()

    def _challenge(self, request: Request) -> Challenge:
        if self.before_challenge:
            raise self.before_challenge.pop(0)
        self.requests.append(request)
        blob, encrypted, self.secret = self.credential(request)
        self.nonce, self.counter = hashlib.sha256(b"%d" % len(self.requests)).digest(), 0
        self.access_counter = 0
        return Challenge(
            session=f"session-{len(self.requests)}",
            credential_blob=blob,
            encrypted_secret=encrypted,
            nonce=self.nonce,
            seconds=60,
        )

    def _evidence(self, evidence: Evidence) -> Outcome:
        assert evidence.session == f"session-{len(self.requests)}"
        qualifying = qualifying_data(self.nonce, evidence.statement)
        assert evidence.key_proofs.committee
        assert hmac.compare_digest(evidence.secret_proof, secret_proof(self.secret, qualifying))
        self.evidence.append(evidence)
        return self._answer()

    def _poll(self, poll: Poll) -> Outcome:
        assert poll.counter > self.counter
        self.counter = poll.counter
        assert poll.proof == poll_proof(self.secret, poll.session, poll.counter)
        return self._answer()

    def _access(self, request: AccessRequest) -> AccessAnswer:
        poll = request.poll
        assert poll.counter > max(self.counter, self.access_counter)
        self.access_counter = poll.counter
        assert poll.proof == poll_proof(self.secret, poll.session, poll.counter)
        self.have.append(request.have)
        if isinstance(self.access, Exception):
            raise self.access
        return AccessAnswer(access=None if request.have == self.access.digest else self.access)

    def _answer(self) -> Outcome:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        return Outcome(state=EnrolmentState.INDUCTED, findings=(), poll_after=0, node=self.record())

    def record(self) -> NodeRecord:
        keys = Statement.parse(self.evidence[-1].statement).keys
        return NodeRecord(
            node_id=keys.node_id,
            machine=machine_id(self.requests[-1].ek_public),
            data_center=self.data_center,
            operator=OPERATOR,
            node_reward_type="type1",
            keys=keys,
            inducted_at=1_800_000_000,
        )


class FakeStop(Stop):
    """Doesn't wait, but writes down for how long it should have; asks to stop at the ``last`` wait."""

    def __init__(self, last: int = 1) -> None:
        super().__init__()
        self.last = last
        self.waits: list[float] = []
        self.loads: Config | None = None
        self.then: Callable[[], None] | None = None

    def wait(self, seconds: float) -> None:
        """``loads``: the firewall is loaded meanwhile. ``then`` happens once, in the first wait."""
        self.waits.append(seconds)
        if self.loads is not None and self.loads.ruleset.exists():
            self.loads.ruleset.rename(self.loads.loaded_ruleset)
        if len(self.waits) >= self.last:
            raise StopRequested
        then, self.then = self.then, None
        if then is not None:
            then()


class Listener(Console):
    """A console whose words and status are at hand."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "status.json"
        self.words = io.StringIO()
        super().__init__(status=self.path, device=directory / "no-console")

    def tell(self, step: str, message: str) -> None:
        with redirect_stderr(self.words):
            super().tell(step, message)

    @property
    def status(self) -> dict[str, object]:
        value = json.loads(self.path.read_bytes())
        assert isinstance(value, dict)
        return value


@dataclass(frozen=True, slots=True)
class Site:
    """A site key, and a configuration that it signed."""

    key: Ed25519PrivateKey
    config: SiteConfig

    def write(self, config: Config, signer: Ed25519PrivateKey | None = None) -> None:
        document = self.config.to_bytes()
        config.esp.mkdir(parents=True, exist_ok=True)
        (config.esp / "site.json").write_bytes(document)
        (config.esp / "site.sig").write_bytes((signer or self.key).sign(SIGNATURE_DOMAIN + document))
        pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        config.site_key.write_bytes(pem)


def make_site(url: str, ca: str, network: Network | None = None, operator: Principal = OPERATOR) -> Site:
    return Site(
        Ed25519PrivateKey.generate(),
        SiteConfig(
            data_center="zh1",
            registrar_url=url,
            registrar_ca=ca,
            operator=operator,
            operator_key=evidence.spki(evidence.RECOVERY),
            node_reward_type="type1",
            network=network,
        ),
    )


UUID = "6a4e0f0e-52a5-4f0c-9e2c-111111111111"
BLOB = evidence.recovery_blob(machine_id(b"ek"), UUID, evidence.spki(evidence.RECOVERY))
METADATA = {"keyslots": {"0": {"type": "luks2"}}, "tokens": {"0": json.loads(BLOB)}}


def state_report(device: str, *, made: bool = True) -> bytes:
    """What the initial RAM disk's phase hands over for an open volume."""
    report = StateReport(
        mode=Mode.OPEN,
        made_this_boot=made,
        luks_uuid=UUID,
        device=device,
        policy_keys=(b"p" * 32,),
        policy_pcrs=(7, 11, 15),
        floor=1,
        security_version=1,
        creation_proven=True,
    )
    return report.to_bytes()


def make_config(directory: Path) -> Config:
    """All paths below ``directory``, with what the image would have put there."""
    config = Config(
        state=directory / "state",
        esp=directory / "esp" / "nodeos",
        site_key=directory / "site.pub.pem",
        volume_report=directory / "state.json",
        status=directory / "run" / "status.json",
        console=directory / "console",
        firmware_log=directory / "firmware.log",
        userspace_log=directory / "userspace.log",
        os_release=directory / "os-release",
        network_directory=directory / "network",
        attested=directory / "run" / "attested",
        ruleset=directory / "run" / "firewall.new",
        access_period=86400,
    )
    config.volume_report.write_bytes(state_report("/dev/state"))
    config.os_release.write_text('ID=debian\nIMAGE_VERSION="1.2.3"\n')
    config.firmware_log.write_bytes(b"firmware")
    config.userspace_log.write_bytes(b"userspace")
    return config


def read_header(device: str) -> tuple[str, bytes]:
    return UUID, json.dumps(METADATA).encode()


@dataclass(slots=True)
class FakeVolume:
    """A state volume that one recovery key opens."""

    key: RecoveryKey = evidence.RECOVERY_KEY
    opened: list[str] = field(default_factory=list)

    def recover(self, device: str, key: RecoveryKey) -> None:
        if key != self.key:
            raise NodeosError(f"{device}: no key slot opens with this key")
        self.opened.append(device)


@contextmanager
def opened(tpm: FakeTpm) -> Iterator[FakeTpm]:
    yield tpm


def prove_keys(qualifying: bytes) -> KeyProofs:
    """Keys that sign with something of the right length."""
    return KeyProofs(signing=qualifying * 2, tls=qualifying * 2, committee=bytes(48))
