"""`nodeos agent run` as a process, against a real (software) TPM and the real registrar."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import Tpm
from nodeos.agent import identity
from nodeos.agent.config import Config
from nodeos.core.errors import RefusedError
from nodeos.core.protocol import NodeRecord, machine_id
from nodeos.core.wire import parse_json
from tests.support import evidence
from tests.support.agent_fakes import Site
from tests.support.agent_machine import (
    RegistrarProcess,
    make_node,
    measure_boot,
    python_path,
    set_volume,
)

pytestmark = pytest.mark.tpm


@dataclasses.dataclass
class Agent:
    """A running agent, whose words are read as they come."""

    process: subprocess.Popen[str]
    words: str = ""

    def until(self, words: str) -> str:
        """Read until a line holds ``words``; its end is a failure that shows what was said."""
        assert self.process.stderr is not None
        while True:
            line = self.process.stderr.readline()
            self.words += line
            assert line, f"the agent ended before it said {words!r}:\n{self.words}"
            if words in line:
                return line

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process.stderr is not None
        self.words += self.process.stderr.read()
        return self.process.wait(timeout=30)


@dataclasses.dataclass
class Node:
    """A machine, its files and its registrar."""

    config: Config
    site: Site
    tpm: SoftTpm
    registrar: RegistrarProcess
    tcti: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @contextmanager
    def power(self, *, first: bool = True) -> Iterator[None]:
        """Switch the machine on, until the boot is through."""
        set_volume(self.config, self.config.state.parent / "volume.luks", made=first)
        with self.tpm.serve() as tcti:
            self.tcti = tcti
            with Tpm(tcti) as tpm:
                measure_boot(tpm, self.config)
            yield

    @contextmanager
    def agent(self, *more: str) -> Iterator[Agent]:
        config = self.config
        paths = {
            "--state": config.state,
            "--esp": config.esp,
            "--site-key": config.site_key,
            "--volume-report": config.volume_report,
            "--status": config.status,
            "--console": config.console,
            "--firmware-log": config.firmware_log,
            "--userspace-log": config.userspace_log,
            "--os-release": config.os_release,
            "--attested": config.attested,
            "--ruleset": config.ruleset,
            "--network-directory": config.network_directory,
        }
        options = [str(word) for pair in paths.items() for word in pair]
        process = subprocess.Popen(
            [sys.executable, "-m", "nodeos", "agent", "run", "--tcti", self.tcti, *options, *more],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **python_path(), **self.environment},
        )
        assert process.stderr is not None
        try:
            yield Agent(process)
        finally:
            process.kill()
            process.stderr.close()
            process.wait(timeout=30)

    @property
    def status(self) -> dict[str, Any]:
        value = json.loads(self.config.status.read_bytes())
        assert isinstance(value, dict)
        return value

    @property
    def record(self) -> NodeRecord:
        return NodeRecord.parse(parse_json(self.config.node_record.read_bytes(), "node.json"))

    def approve(self) -> None:
        """The operator looks and approves what is there."""
        machine = self.status["machine"]
        seen = self.registrar.operator.enrolment(machine)
        self.registrar.operator.approve(machine, seen["evidence"])


@pytest.fixture
def node(tmp_path: Path, manufacturer_ca: ManufacturerCa, soft_tpm: SoftTpm) -> Node:
    key = tmp_path / "key.pem"
    key.write_bytes(evidence.site_key_pem())
    registrar = RegistrarProcess.make(tmp_path / "registrar", manufacturer_ca.roots, key)
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        machine = machine_id(tpm.endorsement().public)
    config, site = make_node(tmp_path, registrar.url, registrar.ca, machine)
    return Node(config, site, soft_tpm, registrar)


def test_from_nothing_to_a_node_and_the_next_boot(node: Node) -> None:
    with node.power(), node.agent() as agent:
        # The registrar is not there yet: the agent says so and goes on.
        line = agent.until("registrar can't be reached")
        assert "trying again in" in line
        with node.registrar.serve():
            agent.until("waiting for the operator of zh1")
            assert node.status["state"] == "pending"
            assert not node.config.node_record.exists()
            node.approve()
            agent.until("attested as the node")
            record = node.record
            assert node.status["state"] == "inducted"
            assert node.status["node_id"] == str(record.node_id)
            assert record.keys == identity.load(node.config.keys)
            assert agent.end() == 0
            assert "stopped" in agent.words
        # A restart of the service in the same boot, while the registrar is away.
        with node.agent() as again:
            again.until("the replica runs on the record of")
            with node.registrar.serve():
                again.until("attested as the node")
            assert again.end() == 0
    with node.power(first=False), node.registrar.serve(), node.agent("--period", "1") as booted:
        booted.until(f"inducted in an earlier boot as {record.node_id}")
        booted.until("attested as the node")
        booted.until("attested as the node")
        assert node.record == record
        assert len(node.registrar.operator.node(str(record.node_id))["attestation"]["history"]) >= 3
        assert booted.end() == 0


def test_systemd_learns_of_the_first_attestation(node: Node) -> None:
    path = node.config.state.parent / "notify"
    node.environment["NOTIFY_SOCKET"] = str(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(60)
        with node.power(), node.registrar.serve(), node.agent() as agent:
            said: list[bytes] = []
            while not said or said[-1] != b"READY=1":
                said.append(systemd.recv(4096))
            assert all(word.startswith(b"STATUS=") for word in said[:-1])
            assert b"the evidence was accepted" in said[-2]
            assert agent.end() == 0


def test_a_kill_at_any_point_leaves_one_identity(node: Node) -> None:
    with node.power(), node.registrar.serve():
        seen = set()
        for point in ("site:", "identity:", "fingerprint:", "waiting for the operator"):
            with node.agent() as agent:
                agent.until(point)
                assert agent.end(signal.SIGKILL) == -signal.SIGKILL
            if node.config.keys.exists():
                seen.add(identity.load(node.config.keys).node_id)
        with node.agent() as agent:
            agent.until("waiting for the operator")
            node.approve()
            agent.until("attested as the node")
            assert seen == {node.record.node_id}
            assert agent.end() == 0


def test_a_foreign_site_is_refused(node: Node) -> None:
    node.site.write(node.config, signer=Ed25519PrivateKey.generate())
    with node.power(), node.agent() as agent:
        assert agent.wait() == 3
        assert "✗ site.signature" in agent.words
        assert node.status["findings"][0]["code"] == "site.signature"
        with Tpm(node.tcti) as tpm:
            assert tpm.read_pcrs((12,))[12] == bytes(32)
    assert not node.config.state.joinpath("keys").exists()


def test_a_machine_that_booted_something_else_is_told_why(node: Node) -> None:
    with node.power(), node.registrar.serve():
        with Tpm(node.tcti) as tpm:
            tpm.measure(4, b"another boot loader")
        with node.agent() as agent:
            agent.until("the registrar refused this machine")
            agent.until("✗ pcr.4")
            agent.until("trying again in")
            assert node.status["state"] == "refused"
            assert agent.end() == 0


def test_a_node_that_fails_an_attestation_stays_a_node(node: Node) -> None:
    """The registry and the node agree: the record stays, the attestation is on file as failed."""
    with node.power(), node.registrar.serve():
        with node.agent() as agent:
            agent.until("waiting for the operator")
            node.approve()
            agent.until("attested as the node")
            assert agent.end() == 0
        record, machine = node.record, node.status["machine"]
        with Tpm(node.tcti) as tpm:
            tpm.measure(14, b"what should not be there")
        with node.agent() as agent:
            agent.until("the registrar refused this machine")
            agent.until("✗ pcr.14")
            agent.until(f"the replica runs on as the node {record.node_id}, which stays in the registry")
            agent.until("trying again in")
            assert node.record == record
            assert (node.status["state"], node.status["node_id"]) == ("refused", str(record.node_id))
            assert agent.end() == 0
        operator = node.registrar.operator
        seen = operator.enrolment(machine)
        assert (seen["state"], [f["code"] for f in seen["findings"]]) == ("inducted", ["pcr.14"])
        attestation = operator.node(str(record.node_id))["attestation"]
        assert attestation["state"] == "failed"
        assert [entry["state"] for entry in attestation["history"]] == ["failed", "passed"]
        with pytest.raises(RefusedError, match=r"enrolment\.state"):
            operator.reject(machine, "an operator can't take a node out of the registry")
    # The next boot is in order again, and so is the node.
    with node.power(first=False), node.registrar.serve(), node.agent() as agent:
        agent.until("attested as the node")
        assert (node.record, node.status["state"]) == (record, "inducted")
        # This host's boot id is the same in all its boots.
        assert [f["code"] for f in node.status["findings"]] == ["boot.reset"]
        assert agent.end() == 0


def test_a_site_that_changed_while_the_machine_runs_is_told(node: Node) -> None:
    with node.power():
        with node.agent() as agent:
            agent.until("registrar can't be reached")
            assert agent.end() == 0
        config = dataclasses.replace(node.site.config, data_center="zh2")
        Site(node.site.key, config).write(node.config)
        with node.agent() as agent:
            assert agent.wait() == 1
            assert "PCR 12 holds" in agent.words


def test_a_missing_tpm_is_told(node: Node) -> None:
    node.tcti = "device:/dev/no-such-tpm"
    with node.agent() as agent:
        assert agent.wait() == 1
        assert "there is no TPM: /dev/no-such-tpm does not exist" in agent.words
        assert "→" in agent.words
    assert node.status["step"] == "failed"
