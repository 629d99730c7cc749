"""A locked node's side: what it asks, what it waits for, and what it makes of each answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hsm.box import seal_to
from hsm.identity import FileSigner
from nodeos.agent import recovery
from nodeos.agent.recovery import Locked, Recovery
from nodeos.agent.registrar import Registrar
from nodeos.agent.stop import StopRequested
from nodeos.core.errors import NodeosError, RefusedError, UnreachableError
from nodeos.core.principal import Principal
from nodeos.core.protocol import Challenge, Poll, Request, poll_proof, secret_proof
from nodeos.core.recovery import RecoveryKey
from nodeos.core.recovery_request import (
    LockedEvidence,
    LockedStatement,
    RecoveryAnswer,
    RecoveryOutcome,
    RecoveryState,
    answer_context,
    recovery_qualifying_data,
)
from nodeos.core.statereport import Mode, StateReport
from nodeos.core.wire import ParseError
from tests.support import evidence as ev
from tests.support.agent_fakes import (
    BLOB,
    SECRET,
    UUID,
    FakeStop,
    FakeTpm,
    FakeVolume,
    Listener,
    finding,
    make_config,
    make_site,
    opened,
    state_report,
)

WAITING = RecoveryOutcome(state=RecoveryState.WAITING, findings=(), poll_after=5)
OPERATOR = Principal.self_authenticating(ev.spki(ev.OPERATOR))


@dataclass
class FakeRecoveries:
    """Takes the next of ``answers`` for each question; None is the operator's answer."""

    answers: list[RecoveryOutcome | Exception | None]
    key: RecoveryKey = ev.RECOVERY_KEY
    change: Callable[[RecoveryAnswer], RecoveryAnswer] = lambda answer: answer
    evidence: list[LockedEvidence] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        assert (method, body is not None) == ("POST", True)
        assert body is not None
        self.paths.append(path)
        if path == "/v1/enrolments":
            Request.parse(body)
            return Challenge(
                session="s", credential_blob=SECRET, encrypted_secret=b"", nonce=bytes(32), seconds=60
            ).to_bytes()
        if path.endswith("/status"):
            poll = Poll.parse(body)
            assert poll.proof == poll_proof(SECRET, "s", poll.counter)
        else:
            evidence = LockedEvidence.parse(body)
            qualifying = recovery_qualifying_data(bytes(32), evidence.statement)
            assert evidence.secret_proof == secret_proof(SECRET, qualifying)
            assert evidence.quote == qualifying
            self.evidence.append(evidence)
        return self._answer().to_bytes()

    def _answer(self) -> RecoveryOutcome:
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        if given is not None:
            return given
        evidence = self.evidence[-1]
        fresh = LockedStatement.parse(evidence.statement).fresh_key
        box = seal_to(fresh, self.key.value, answer_context(evidence.digest))
        message = RecoveryAnswer.message(evidence.digest, box, new_tpm=False)
        answer = RecoveryAnswer(
            evidence=evidence.digest,
            box=box,
            new_tpm=False,
            public_key=ev.spki(ev.OPERATOR),
            signature=FileSigner(ev.OPERATOR).sign(message),
        )
        return RecoveryOutcome(
            state=RecoveryState.ANSWERED, findings=(), poll_after=5, answer=self.change(answer)
        )


@dataclass
class Stage:
    """A locked node with everything around it stood in for."""

    recovery: Recovery
    registrar: FakeRecoveries
    volume: FakeVolume
    console: Listener
    stop: FakeStop
    reboots: list[str]

    def run(self, *answers: RecoveryOutcome | Exception | None, waits: int = 1) -> str:
        self.registrar.answers = list(answers)
        self.stop.last = waits
        with pytest.raises(StopRequested):
            self.recovery.keep_asking()
        return self.console.words.getvalue()


def locked_report(device: str = "/dev/state") -> StateReport:
    return replace(
        StateReport.parse(state_report(device)), mode=Mode.LOCKED, reason="the TPM was cleared", floor=0
    )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    config = make_config(tmp_path)
    site = make_site("https://registrar.example", "PEM", operator=OPERATOR)
    site.write(config)
    registrar, volume, console = FakeRecoveries([]), FakeVolume(), Listener(tmp_path)
    stop, reboots = FakeStop(), list[str]()
    from nodeos.agent.site import load_site

    signed, _ = load_site(config.esp, config.site_key)
    blob = recovery.read_blob("/dev/state", lambda _: (UUID, header(BLOB)))
    made = Recovery(
        config=config,
        open_tpm=lambda: opened(FakeTpm()),
        registrar=Registrar(registrar),
        console=console,
        stop=stop,
        settings=site.config,
        locked=Locked(
            request=recovery.prepare_request(FakeTpm(), signed),
            report=locked_report(),
            blob=blob,
            fingerprint=b"fingerprint",
        ),
        volume=volume,
        reboot=lambda: reboots.append("reboot"),
    )
    return Stage(made, registrar, volume, console, stop, reboots)


def header(*tokens: bytes) -> bytes:
    return json.dumps({"tokens": {str(i): json.loads(token) for i, token in enumerate(tokens)}}).encode()


def test_answer_opens_the_volume_and_restarts(stage: Stage) -> None:
    words = stage.run(WAITING, WAITING, None, waits=3)
    assert (stage.volume.opened, stage.reboots) == (["/dev/state"], ["reboot"])
    assert "the state is locked (the TPM was cleared); waiting for the operator of zh1" in words
    statement = LockedStatement.parse(stage.registrar.evidence[0].statement)
    assert (statement.luks_uuid, statement.recovery) == (UUID, BLOB)
    assert ev.RECOVERY_KEY.value.hex() not in words
    assert [path.rpartition("/")[2] for path in stage.registrar.paths[2:]] == ["status", "status"]


def test_registrar_that_goes_away_is_asked_again_for_the_same_key(stage: Stage) -> None:
    gone = UnreachableError("nobody there")
    words = stage.run(WAITING, gone, gone, None, waits=4)
    assert "registrar can't be reached" in words
    assert len(stage.registrar.evidence) == 1
    assert stage.reboots == ["reboot"]


@pytest.mark.parametrize(
    "answer", [UnreachableError("nobody there"), NodeosError("it failed"), RefusedError("no", (finding(),))]
)
def test_each_new_request_has_a_fresh_key(stage: Stage, answer: Exception) -> None:
    stage.run(answer, WAITING, None, waits=3)
    keys = [LockedStatement.parse(e.statement).fresh_key for e in stage.registrar.evidence]
    assert len(set(keys)) == 2
    assert stage.reboots == ["reboot"]


def test_refusal_is_told_with_its_findings(stage: Stage) -> None:
    refused = RecoveryOutcome(
        state=RecoveryState.REFUSED, findings=(finding("recovery.pcr15"),), poll_after=300
    )
    words = stage.run(refused)
    assert "the registrar refused this machine's recovery\n  ✗ recovery.pcr15" in words
    assert (stage.volume.opened, stage.reboots) == ([], [])


def test_answer_for_another_request_is_refused(stage: Stage) -> None:
    stage.registrar.change = lambda answer: replace(answer, evidence="00" * 32)
    assert "✗ recovery.signature" in stage.run(WAITING, None, waits=2)
    assert (stage.volume.opened, stage.reboots) == ([], [])


def test_key_of_another_volume_opens_nothing(stage: Stage) -> None:
    stage.registrar.key = RecoveryKey(value=b"\x07" * 32)
    words = stage.run(WAITING, None, waits=2)
    assert "the recovery key came, and the volume did not open" in words
    assert ("07" * 32) not in words
    assert stage.reboots == []


@pytest.mark.parametrize("tokens", [(), (BLOB, BLOB)])
def test_header_has_exactly_one_recovery_key(tokens: tuple[bytes, ...]) -> None:
    with pytest.raises(NodeosError, match=f"has {len(tokens)} recovery keys, expected one"):
        recovery.read_blob("/dev/state", lambda _: (UUID, header(*tokens)))


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"tokens": {"0": {}}}'])
def test_broken_header_is_told(metadata: bytes) -> None:
    with pytest.raises(ParseError, match="LUKS2 header of /dev/state"):
        recovery.read_blob("/dev/state", lambda _: (UUID, metadata))


def test_recovery_key_of_another_volume_is_noticed_before_anybody_is_asked(stage: Stage) -> None:
    report = replace(stage.recovery.locked.report, luks_uuid="9" * 8 + UUID[8:])
    with pytest.raises(RefusedError, match=r"recovery\.volume"):
        recovery.check_own(report, stage.recovery.locked.blob)
    recovery.check_own(stage.recovery.locked.report, stage.recovery.locked.blob)
