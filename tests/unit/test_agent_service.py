from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nodeos.agent.config import Config
from nodeos.agent.device import TpmDevice
from nodeos.agent.enrolment import Enrolment
from nodeos.agent.service import Parts, only_agent, prepare, run_agent
from nodeos.core.access import AccessList
from nodeos.core.addresses import parse_address
from nodeos.core.errors import NodeosError, RefusedError
from nodeos.core.protocol import NodeRecord, machine_id
from nodeos.core.site import Network
from tests.support import evidence
from tests.support.agent_fakes import (
    OPERATOR,
    FakeStop,
    FakeTpm,
    FakeVolume,
    Listener,
    Site,
    make_config,
    make_site,
    opened,
    read_header,
)
from tests.support.certificates import make_authority


@dataclasses.dataclass
class Scene:
    """A machine before the registrar is asked."""

    config: Config
    site: Site
    tpm: FakeTpm
    console: Listener
    reloads: list[str]
    volume: FakeVolume = dataclasses.field(default_factory=FakeVolume)

    @property
    def parts(self) -> Parts:
        def fingerprint(tpm: TpmDevice, machine: str) -> bytes:
            assert machine == machine_id(b"ek")
            return b"fingerprint"

        return Parts(
            open_tpm=lambda: opened(self.tpm),
            read_header=read_header,
            reload_network=lambda: self.reloads.append("reload"),
            collect_fingerprint=fingerprint,
            locked_volume=self.volume,
            reboot=lambda: self.reloads.append("reboot"),
            own_addresses=lambda: (),
        )

    def prepare(self) -> Enrolment:
        return prepare(self.config, self.parts, self.console, FakeStop())


@pytest.fixture(scope="module")
def ca() -> str:
    return make_authority().pem


@pytest.fixture
def scene(tmp_path: Path, ca: str) -> Scene:
    config = make_config(tmp_path)
    site = make_site("https://registrar.example:8443", ca)
    site.write(config)
    return Scene(config, site, FakeTpm(), Listener(tmp_path), [])


def record_of(enrolment: Enrolment) -> NodeRecord:
    return NodeRecord(
        node_id=enrolment.machine.keys.node_id,
        machine=enrolment.machine.id,
        data_center="zh1",
        operator=OPERATOR,
        node_reward_type="type1",
        keys=enrolment.machine.keys,
        inducted_at=1,
    )


def test_the_recipe(scene: Scene) -> None:
    enrolment = scene.prepare()
    statement = enrolment.statement
    assert statement.release == "1.2.3"
    assert statement.fingerprint == b"fingerprint"
    assert statement.volume.policy_pcrs == (7, 11, 15)
    assert statement.keys == enrolment.machine.keys
    assert scene.tpm.measured == [(12, scene.site.config.to_bytes())]
    assert enrolment.record is None
    assert scene.reloads == []
    assert scene.console.status["machine"] == enrolment.machine.id
    steps = [line.split(": ")[1] for line in scene.console.words.getvalue().splitlines()]
    assert steps == ["site", "site", "identity", "volume", "fingerprint"]


def test_a_restart_in_the_same_boot_changes_nothing(scene: Scene) -> None:
    first, second = scene.prepare(), scene.prepare()
    assert first.machine == second.machine
    assert len(scene.tpm.measured) == 1


def test_the_next_boot_keeps_the_identity(scene: Scene) -> None:
    first = scene.prepare()
    scene.config.node_record.write_bytes(record_of(first).to_bytes())
    scene.tpm = FakeTpm()
    second = scene.prepare()
    assert second.machine.keys == first.machine.keys
    assert second.record == record_of(first)
    assert len(scene.tpm.measured) == 1


def test_a_static_network_is_applied_after_the_measurement(scene: Scene) -> None:
    network = Network(addresses=("192.0.2.7/24",), gateways=(), dns=())
    scene.site = dataclasses.replace(
        scene.site, config=dataclasses.replace(scene.site.config, network=network)
    )
    scene.site.write(scene.config)
    scene.prepare()
    assert scene.reloads == ["reload"]
    assert list(scene.config.network_directory.iterdir())


def test_nothing_is_done_with_a_foreign_site(scene: Scene) -> None:
    scene.site.write(scene.config, signer=Ed25519PrivateKey.generate())
    with pytest.raises(RefusedError, match="site configuration is refused"):
        run_agent(scene.config, scene.parts, scene.console, FakeStop())
    assert scene.tpm.measured == []
    assert not scene.config.keys.exists()
    assert scene.console.status["step"] == "failed"
    assert scene.console.status["findings"] == [
        {"code": "site.signature", "message": "the site key of this image did not sign it"}
    ]


def test_a_record_of_another_node_is_refused(scene: Scene) -> None:
    record = record_of(scene.prepare())
    keys = evidence.node_keys(2)
    other = dataclasses.replace(record, keys=keys, node_id=keys.node_id, machine="other")
    scene.config.node_record.write_bytes(other.to_bytes())
    with pytest.raises(NodeosError, match=r"belongs to the node .* on the machine other"):
        scene.prepare()


def test_a_record_of_the_former_tpm_is_fetched_anew(scene: Scene) -> None:
    """The keys are ours and the machine is another: the state was recovered on another TPM."""
    record = record_of(scene.prepare())
    scene.config.node_record.write_bytes(dataclasses.replace(record, machine="other").to_bytes())
    assert scene.prepare().record is None


def test_a_damaged_record_is_told(scene: Scene) -> None:
    scene.config.state.mkdir()
    scene.config.node_record.write_text("{")
    with pytest.raises(NodeosError, match="not JSON") as caught:
        scene.prepare()
    assert "the registrar sends it again" in (caught.value.hint or "")


def test_a_missing_volume_report_ends_it(scene: Scene) -> None:
    scene.config.volume_report.unlink()
    with pytest.raises(NodeosError, match="state volume report"):
        run_agent(scene.config, scene.parts, scene.console, FakeStop())
    assert "state volume report" in str(scene.console.status["message"])


def test_two_agents_can_not_work_on_one_state(scene: Scene) -> None:
    with only_agent(scene.config.state), pytest.raises(NodeosError, match="another agent works on"):
        run_agent(scene.config, scene.parts, scene.console, FakeStop())
    with only_agent(scene.config.state):
        pass


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "the partition is full"), (errno.EROFS, "journal of the kernel")]
)
def test_a_partition_that_takes_nothing_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def refuse(directory: Path) -> None:
        raise OSError(number, os.strerror(number), str(directory))

    monkeypatch.setattr("nodeos.agent.identity.load_or_make", refuse)
    with pytest.raises(NodeosError, match=os.strerror(number)) as caught:
        run_agent(scene.config, scene.parts, scene.console, FakeStop())
    assert hint in (caught.value.hint or "")
    assert scene.console.status["step"] == "failed"


def test_a_fault_of_the_program_is_on_the_console(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr("nodeos.agent.identity.load_or_make", fail)
    with pytest.raises(KeyError):
        run_agent(scene.config, scene.parts, scene.console, FakeStop())
    assert scene.console.status["step"] == "failed"
    assert str(scene.console.status["message"]).startswith("a fault of this program: KeyError\n")


def test_the_volume_report_is_passed_on(scene: Scene) -> None:
    report = json.loads(scene.config.volume_report.read_bytes())
    scene.config.volume_report.write_text(json.dumps({**report, "made_this_boot": False}))
    assert scene.prepare().statement.volume.made_this_boot is False


def test_the_firewall_opens_for_the_list_that_was_kept(scene: Scene) -> None:
    kept = AccessList(nodes=(parse_address("2001:db8::1"),), clients=())
    scene.config.access.parent.mkdir()
    scene.config.access.write_bytes(kept.to_bytes())
    enrolment = scene.prepare()
    assert scene.config.ruleset.read_text() == kept.ruleset()
    assert enrolment.firewall.access is not None
    assert (
        "firewall: open for the nodes and clients of the list that was kept" in scene.console.words.getvalue()
    )


def test_a_damaged_list_is_told_and_does_not_end_the_agent(scene: Scene) -> None:
    scene.config.access.parent.mkdir()
    scene.config.access.write_bytes(b'{"nodes":["ff02::1"],"clients":[]}')
    enrolment = scene.prepare()
    assert "firewall: closed: " in scene.console.words.getvalue()
    assert "access.json.nodes[0]: 'ff02::1' is no unicast" in scene.console.words.getvalue()
    assert enrolment.firewall.access is None
    assert not scene.config.ruleset.exists()
