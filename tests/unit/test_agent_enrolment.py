from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hsm.errors import TpmCredentialError, TpmError, TpmLockoutError
from nodeos.agent.config import Config
from nodeos.agent.delivery import Deliverer
from nodeos.agent.enrolment import Enrolment, Machine
from nodeos.agent.firewall import Firewall
from nodeos.agent.registrar import Registrar
from nodeos.agent.service import update_paths
from nodeos.agent.stop import StopRequested
from nodeos.core.access import AccessList
from nodeos.core.addresses import IpAddress, parse_address, parse_network
from nodeos.core.errors import NodeosError, RefusedError, UnreachableError
from nodeos.core.principal import Principal
from nodeos.core.protocol import (
    EnrolmentState,
    NodeKeys,
    NodeRecord,
    Outcome,
    Statement,
    StateVolume,
    machine_id,
)
from nodeos.core.site import SignedSite
from nodeos.core.statereport import Mode
from nodeos.core.wire import parse_json
from tests.support.agent_fakes import (
    FakeRegistrar,
    FakeStop,
    FakeTpm,
    Listener,
    finding,
    make_config,
    make_site,
    opened,
    outcome,
    prove_keys,
)

KEYS = NodeKeys(signing=b"signing", tls_certificate=b"tls", committee=bytes(96))
PENDING = outcome(EnrolmentState.PENDING)
OPEN = AccessList(nodes=(parse_address("192.0.2.7"),), clients=(parse_network("198.51.100.0/24"),))
AWAY = UnreachableError("https://registrar.example: nobody there", hint="check the network")


@dataclasses.dataclass
class Stage:
    """An enrolment with everything around it stood in for."""

    config: Config
    console: Listener
    tpm: FakeTpm
    registrar: FakeRegistrar
    stop: FakeStop
    enrolment: Enrolment

    def run(self, waits: int) -> str:
        """Run until the given number of waits; returns what was told."""
        self.stop.last = waits
        with pytest.raises(StopRequested):
            self.enrolment.keep_attested(900)
        return self.console.words.getvalue()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    config = make_config(tmp_path)
    site = make_site("https://registrar.example", "PEM")
    tpm, registrar, stop, console = FakeTpm(), FakeRegistrar(), FakeStop(), Listener(tmp_path)
    statement = Statement(
        boot_id="boot",
        release="1.2.3",
        keys=KEYS,
        volume=StateVolume(
            mode=Mode.OPEN,
            luks_uuid="u",
            made_this_boot=True,
            policy_keys=(bytes(32),),
            policy_pcrs=(7, 11, 12, 13, 15),
            floor=1,
            creation_proven=True,
        ),
        recovery=b"{}",
        memory_encryption="unknown",
        fingerprint=b"",
        addresses=(),
    )
    enrolment = Enrolment(
        config=config,
        open_tpm=lambda: opened(tpm),
        prove_keys=prove_keys,
        registrar=Registrar(registrar),
        console=console,
        stop=stop,
        settings=site.config,
        machine=Machine(
            id=machine_id(b"ek"),
            ek_public=b"ek",
            ek_certificates=(b"certificate",),
            ak_public=b"ak",
            keys=KEYS,
            site=SignedSite(document=site.config.to_bytes(), signature=bytes(64)),
        ),
        statement=statement,
        record=None,
        firewall=Firewall(config=config),
        own_addresses=lambda: (parse_address("192.0.2.7"),),
        deliverer=Deliverer(
            paths=update_paths(config),
            offer_file=config.offer,
            boot_id="boot",
            console=console,
            start=lambda: None,
        ),
    )
    return Stage(config, console, tpm, registrar, stop, enrolment)


def stored(config: Config) -> NodeRecord:
    return NodeRecord.parse(parse_json(config.node_record.read_bytes(), "node.json"))


def test_no_mark_for_the_blessing_without_an_attestation(stage: Stage) -> None:
    stage.registrar.answers = [PENDING, PENDING, PENDING]
    stage.run(3)
    assert not stage.config.attested.exists()


def test_from_nothing_to_a_node(stage: Stage) -> None:
    stage.registrar.answers = [PENDING, PENDING, None]
    words = stage.run(3)
    assert "waiting for the operator of zh1 to approve" in words
    assert words.count("waiting for the operator") == 1
    assert f"attested as the node {KEYS.node_id}; again in 900 s" in words
    assert stage.stop.waits == [7, 7, 900]
    assert stored(stage.config) == stage.registrar.record()
    assert stage.console.status["state"] == "inducted"
    assert stage.config.attested.exists(), "what starts the blessing of this boot"
    assert json.loads(stage.config.enrolment.read_bytes())["state"] == "inducted"
    request = stage.registrar.requests[0]
    assert (request.ek_public, request.ek_certificates, request.ak_public) == (
        b"ek",
        (b"certificate",),
        b"ak",
    )
    assert stage.registrar.evidence[0].statement == stage.enrolment.statement.to_bytes()


def test_attestation_is_repeated(stage: Stage) -> None:
    stage.registrar.answers = [None, None, None]
    stage.run(3)
    assert stage.stop.waits == [900, 900, 900]
    assert len({e.quote for e in stage.registrar.evidence}) == 3


def test_the_record_is_written_only_when_it_changes(stage: Stage) -> None:
    stage.registrar.answers = [None]
    stage.run(1)
    before = stage.config.node_record.stat().st_ino
    stage.stop.waits.clear()
    stage.registrar.answers = [None]
    stage.run(1)
    assert stage.config.node_record.stat().st_ino == before


def test_back_off_grows_with_jitter_and_starts_anew_after_an_answer(stage: Stage) -> None:
    stage.registrar.before_challenge = [AWAY] * 9
    stage.registrar.answers = [None, AWAY, None]
    words = stage.run(11)
    ceilings = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    delays = stage.stop.waits[:9]
    assert all(c / 2 <= d <= c for c, d in zip(ceilings, delays, strict=True))
    assert stage.stop.waits[9] == 900
    assert 0.5 <= stage.stop.waits[10] <= 1
    assert "registrar can't be reached (https://registrar.example: nobody there); trying again in" in words


def test_the_replica_runs_on_without_the_registrar(stage: Stage) -> None:
    stage.registrar.answers = [None]
    stage.run(1)
    record = stored(stage.config)
    stage.stop.waits.clear()
    stage.enrolment.record = record
    stage.registrar.before_challenge = [AWAY]
    words = stage.run(1)
    assert f"inducted in an earlier boot as {KEYS.node_id}" in words
    assert f"the replica runs on the record of {KEYS.node_id}" in words
    assert stored(stage.config) == record


def test_polls_survive_a_registrar_that_is_away_for_a_while(stage: Stage) -> None:
    stage.registrar.answers = [PENDING, AWAY, AWAY, PENDING, None]
    words = stage.run(5)
    assert len(stage.registrar.requests) == 1
    assert stage.registrar.counter == 4
    assert stage.stop.waits[0] == stage.stop.waits[3] == 7
    assert 0.5 <= stage.stop.waits[1] <= 1 <= stage.stop.waits[2] <= 2
    assert stage.stop.waits[-1] == 900
    assert words.count("waiting for the operator") == 2


def test_a_forgotten_session_starts_over(stage: Stage) -> None:
    stage.registrar.answers = [PENDING, NodeosError("unknown session"), None]
    words = stage.run(3)
    assert len(stage.registrar.requests) == 2
    assert "unknown session" in words
    assert stage.stop.waits[0] == 7
    assert stage.stop.waits[1] <= 1
    assert stage.stop.waits[2] == 900


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (EnrolmentState.REFUSED, "the registrar refused this machine"),
        (EnrolmentState.REJECTED, "the operator rejected this machine"),
    ],
)
def test_a_refusal_is_told_whole_and_tried_again_slowly(
    stage: Stage, state: EnrolmentState, message: str
) -> None:
    findings = (finding("pcr.7", "Secure Boot is off"), finding("fingerprint.nics", "found 0"))
    stage.registrar.answers = [outcome(state, *findings), None]
    words = stage.run(2)
    assert f"{message}\n  ✗ pcr.7: Secure Boot is off\n  ✗ fingerprint.nics: found 0\n  → put right" in words
    assert 150 <= stage.stop.waits[0] <= 300
    assert stage.stop.waits[1] == 900
    assert "findings" not in stage.console.status


def test_a_refusal_by_status_code_is_told_whole(stage: Stage) -> None:
    refusal = RefusedError(
        "https://r: not known", (finding("ek.chain", "unknown maker"),), hint="add the root"
    )
    stage.registrar.before_challenge = [refusal]
    words = stage.run(1)
    assert words.count("ek.chain") == 1
    assert "→ add the root" in words
    assert stage.console.status["state"] == "refused"
    assert stage.console.status["findings"] == [{"code": "ek.chain", "message": "unknown maker"}]
    assert json.loads(stage.config.enrolment.read_bytes())["findings"] == stage.console.status["findings"]
    assert 150 <= stage.stop.waits[0] <= 300


def test_findings_to_watch_are_shown_while_the_operator_decides(stage: Stage) -> None:
    watched = outcome(EnrolmentState.PENDING, finding("fingerprint.invalid", "no reading"))
    stage.registrar.answers = [watched, watched, None]
    words = stage.run(3)
    assert words.count("fingerprint.invalid") == 1


def test_an_answer_of_no_use_does_not_end_the_agent(stage: Stage) -> None:
    class Garbling:
        def __init__(self) -> None:
            self.calls = 0

        def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
            self.calls += 1
            if self.calls == 1:
                return b"<html>"
            return stage.registrar.request(method, path, body)

    stage.enrolment.registrar = Registrar(Garbling())
    stage.registrar.answers = [None]
    words = stage.run(2)
    assert "challenge: not JSON" in words
    assert stage.stop.waits[1] == 900


def test_a_challenge_for_another_tpm_does_not_end_the_agent(stage: Stage) -> None:
    stage.tpm.activate_error = TpmCredentialError("integrity check failed", response_code=0x1DF)
    words = stage.run(1)
    assert "the registrar's challenge is not for this TPM: integrity check failed" in words


def test_a_locked_tpm_ends_the_agent(stage: Stage) -> None:
    stage.tpm.activate_error = TpmLockoutError("locked out", response_code=0x921)
    with pytest.raises(TpmLockoutError):
        stage.enrolment.keep_attested(900)


def test_a_failing_tpm_ends_the_agent(stage: Stage) -> None:
    class Broken(FakeTpm):
        def quote(self, qualifying: bytes, pcrs: Sequence[int]) -> Any:
            raise TpmError("failure mode", response_code=0x101)

    stage.enrolment.open_tpm = lambda: opened(Broken())
    with pytest.raises(TpmError, match="failure mode"):
        stage.enrolment.keep_attested(900)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"machine": "other"}, "record.machine"),
        ({"data_center": "other"}, "record.data_center"),
        ({"operator": Principal(b"other")}, "record.operator"),
        ({"keys": dataclasses.replace(KEYS, committee=b"c" * 96)}, "record.keys"),
    ],
)
def test_a_record_of_another_node_is_refused(stage: Stage, change: dict[str, Any], code: str) -> None:
    class Lying:
        def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
            data = stage.registrar.request(method, path, body)
            if not path.endswith("/evidence"):
                return data
            node = dataclasses.replace(stage.registrar.record(), **change)
            return Outcome(
                state=EnrolmentState.INDUCTED,
                findings=(),
                poll_after=0,
                node=dataclasses.replace(node, node_id=node.keys.node_id),
            ).to_bytes()

    stage.registrar.answers = [None]
    stage.enrolment.registrar = Registrar(Lying())
    words = stage.run(1)
    assert f"✗ {code}:" in words
    assert not stage.config.node_record.exists()
    assert 150 <= stage.stop.waits[0] <= 300


def test_an_incomplete_log_is_told(stage: Stage) -> None:
    stage.config.userspace_log.chmod(0o1600)
    stage.registrar.answers = [None]
    assert "marked as incomplete" in stage.run(1)


def test_a_poll_is_put_off_for_five_minutes_at_most(stage: Stage) -> None:
    late = Outcome(state=EnrolmentState.PENDING, findings=(), poll_after=86400, node=None)
    soon = Outcome(state=EnrolmentState.PENDING, findings=(), poll_after=0, node=None)
    stage.registrar.answers = [late, soon, None]
    stage.run(3)
    assert stage.stop.waits == [300, 1, 900]


def test_an_inducted_node_opens_for_those_on_the_list(stage: Stage) -> None:
    stage.registrar.answers, stage.registrar.access = [PENDING, None], OPEN
    words = stage.run(2)
    assert stage.config.ruleset.read_text() == OPEN.ruleset()
    assert stage.config.access.read_bytes() == OPEN.to_bytes()
    assert "firewall: open for 1 addresses of nodes and 1 prefixes of clients" in words
    assert words.index("firewall: open") < words.index("running: attested"), "the last word is the standing"
    assert stage.registrar.have == [None]


def test_nobody_is_let_in_before_the_induction(stage: Stage) -> None:
    stage.registrar.answers, stage.registrar.access = [PENDING, PENDING], OPEN
    stage.run(2)
    assert not stage.config.ruleset.exists()
    assert stage.registrar.have == []


def test_an_unchanged_list_is_not_sent_or_loaded_again(stage: Stage) -> None:
    stage.enrolment.config = stage.config = dataclasses.replace(stage.config, access_period=300)
    stage.registrar.answers, stage.registrar.access = [None], OPEN
    stage.stop.loads = stage.config
    words = stage.run(3)
    assert stage.stop.waits == [300, 300, 300]
    assert stage.registrar.have == [None, OPEN.digest, OPEN.digest]
    assert words.count("firewall:") == 1
    assert not stage.config.ruleset.exists()


def test_a_changed_list_is_opened_between_attestations(stage: Stage) -> None:
    stage.enrolment.config = stage.config = dataclasses.replace(stage.config, access_period=300)
    stage.registrar.answers, stage.registrar.access = [None], AccessList(nodes=(), clients=())
    stage.stop.loads = stage.config
    stage.stop.then = lambda: setattr(stage.registrar, "access", OPEN)
    stage.run(3)
    assert stage.config.loaded_ruleset.read_text() == OPEN.ruleset()
    assert stage.registrar.have[1:] == [AccessList(nodes=(), clients=()).digest, OPEN.digest]


@pytest.mark.parametrize("error", [AWAY, NodeosError("answer.access.nodes[3]: 'x' is no IP address")])
def test_what_fails_changes_nothing_and_is_told(stage: Stage, error: NodeosError) -> None:
    stage.enrolment.firewall.open_for(OPEN)
    stage.config.ruleset.rename(stage.config.loaded_ruleset)
    stage.registrar.answers, stage.registrar.access = [None], error
    words = stage.run(1)
    assert f"firewall: stays as it is: {error.message}" in words
    assert "attested as the node" in words
    assert stage.config.access.read_bytes() == OPEN.to_bytes()
    assert not stage.config.ruleset.exists()


def test_a_fresh_node_without_a_list_stays_closed(stage: Stage) -> None:
    stage.registrar.answers, stage.registrar.access = [None], AWAY
    assert "firewall: stays closed" in stage.run(1)
    assert not stage.config.ruleset.exists()


def test_a_ruleset_that_did_not_get_loaded_is_told_and_tried_again(stage: Stage) -> None:
    stage.enrolment.firewall.open_for(OPEN)
    stage.config.ruleset.unlink()
    stage.registrar.answers, stage.registrar.access = [None], OPEN
    assert "the ruleset is not loaded; trying again" in stage.run(1)
    assert stage.config.ruleset.read_text() == OPEN.ruleset()


def test_a_refused_node_does_not_ask(stage: Stage) -> None:
    stage.enrolment.config = stage.config = dataclasses.replace(stage.config, access_period=10)
    stage.registrar.answers = [None, outcome(EnrolmentState.REFUSED, finding()), None]
    stage.enrolment.once(900)
    stage.enrolment.once(900)
    stage.stop.last = 1
    with pytest.raises(StopRequested):
        stage.enrolment._wait(200.0)
    assert stage.stop.waits == [200.0]
    assert len(stage.registrar.have) == 1


def test_the_addresses_of_the_moment_are_stated(stage: Stage) -> None:
    own: list[IpAddress] = []
    stage.enrolment.own_addresses = lambda: tuple(own)
    stage.registrar.answers = [None, None]
    stage.enrolment.once(900)
    own += [ipaddress.IPv4Address(f"192.0.2.{number}") for number in range(1, 21)]
    stage.enrolment.once(900)
    first, second = (Statement.parse(evidence.statement) for evidence in stage.registrar.evidence)
    assert first.addresses == ()
    assert second.addresses == tuple(own[:16]), "what the protocol lets through"
    assert second == dataclasses.replace(first, addresses=second.addresses)


def test_a_new_address_is_attested_at_once(stage: Stage) -> None:
    stage.enrolment.config = stage.config = dataclasses.replace(stage.config, access_period=300)
    own = [parse_address("192.0.2.7")]
    stage.enrolment.own_addresses = lambda: tuple(own)
    stage.stop.then = lambda: own.append(parse_address("2001:db8::7"))
    stage.registrar.answers = [None, None]
    stage.run(3)
    assert stage.stop.waits == [300, 300, 300]
    stated = [Statement.parse(evidence.statement).addresses for evidence in stage.registrar.evidence]
    assert [len(addresses) for addresses in stated] == [1, 2]
