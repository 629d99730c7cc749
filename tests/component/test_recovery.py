"""A cleared TPM and the way back: a software TPM, a real registrar over TLS, an operator's PKCS#11 token, and a
LUKS2 header that the recovery key opens. Only the mapping of the volume is not there."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hsm.softtpm import ManufacturerCa, SoftTpm
from hsm.tpm import Tpm
from nodeos.agent import cli, volume
from nodeos.agent.config import Config
from nodeos.agent.service import Parts, run_agent
from nodeos.agent.stop import Stop
from nodeos.core.errors import NodeosError
from nodeos.core.principal import Principal
from nodeos.core.protocol import machine_id
from nodeos.core.recovery import RecoveryKey
from nodeos.core.run import find_tool, run
from tests.support import evidence
from tests.support.agent_fakes import Listener
from tests.support.agent_machine import (
    UUID,
    RegistrarProcess,
    make_node,
    measure_boot,
    set_volume,
)
from tests.support.served import nodeos
from tests.support.softhsm import SoftToken
from tests.support.tpm_tools import clear

pytestmark = [pytest.mark.tpm, pytest.mark.hsm]


@dataclass
class OperatorNearby(Stop):
    """The agent's waits, in which the operator acts instead of time going by."""

    acts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def wait(self, seconds: float) -> None:
        assert self.acts, "the agent waits and nobody acts"
        self.acts.pop(0)()


@dataclass
class LuksVolume:
    """The volume of ``make_volume``: the key must open slot 1 of the real header."""

    opened: list[str] = field(default_factory=list)

    def recover(self, device: str, key: RecoveryKey) -> None:
        tool = find_tool("cryptsetup", package="cryptsetup-bin")
        command = [tool, "open", "--test-passphrase", "--key-slot", "1", "--key-file", "-", device]
        run(command, what="open the volume", stdin=key.value)
        self.opened.append(device)


@dataclass
class World:
    """A node, its registrar and its operator."""

    folder: Path
    tpm: SoftTpm
    registrar: RegistrarProcess
    config: Config
    identity: Path
    token: SoftToken
    volume: LuksVolume = field(default_factory=LuksVolume)
    reboots: int = 0

    def operator(self, noun: str, verb: str, *words: str, code: int = 0) -> Any:
        where = ("--registrar", self.registrar.url, "--ca", self.registrar.directory / "ca.pem")
        who = ("--identity", self.identity, "--pin-file", self.token.pin_file)
        return nodeos(noun, verb, *where, *who, *words, code=code)

    @contextmanager
    def power(self, *, made: bool = False, locked: bool = False) -> Iterator[str]:
        set_volume(self.config, self.folder / "volume.luks", made=made)
        if locked:
            report = json.loads(self.config.volume_report.read_bytes())
            report |= {"mode": "locked", "reason": "the TPM was cleared", "floor": 0}
            self.config.volume_report.write_text(json.dumps(report))
        with self.tpm.serve() as tcti:
            with Tpm(tcti) as tpm:
                measure_boot(tpm, self.config, locked=locked)
            yield tcti

    def boot(self, tcti: str, *acts: Any, console: Listener | None = None) -> None:
        """Run the agent until its waits are used up; each act takes the place of one."""

        def rebooted() -> None:
            self.reboots += 1

        parts = Parts(
            open_tpm=lambda: Tpm(tcti),
            read_header=volume.cryptsetup_header,
            reload_network=lambda: None,
            collect_fingerprint=cli._collect_fingerprint,
            locked_volume=self.volume,
            reboot=rebooted,
            own_addresses=lambda: (),
            start_update=lambda: None,
        )
        stop = OperatorNearby(acts=list(acts))
        run_agent(self.config, parts, console or Listener(self.folder), stop)


class Over(Exception):
    """The boot has gone far enough."""


def over() -> None:
    raise Over


@pytest.fixture
def world(tmp_path: Path, manufacturer_ca: ManufacturerCa, soft_tpm: SoftTpm, token: SoftToken) -> World:
    identity = tmp_path / "operator.json"
    words = ("--module", token.module, "--token", token.label, "--key", "op", "--pin-file", token.pin_file)
    made = nodeos("operator", "init", *words, "--out", identity)
    assert nodeos("operator", "show", "--identity", identity)["recovery_key"] == made["recovery_key"]
    key = tmp_path / "site.pub.pem"
    key.write_bytes(evidence.site_key_pem())
    registrar = RegistrarProcess.make(tmp_path / "registrar", manufacturer_ca.roots, key, identity)
    with soft_tpm.serve() as tcti, Tpm(tcti) as tpm:
        machine = machine_id(tpm.endorsement().public)
    who = replace(
        evidence.site(),
        operator=Principal.parse(made["principal"]),
        operator_key=b64decode(made["recovery_key"]),
    )
    config, _ = make_node(tmp_path, registrar.url, registrar.ca, machine, who)
    return World(tmp_path, soft_tpm, registrar, config, identity, token)


def test_a_cleared_tpm_gets_its_node_back(world: World) -> None:
    def approve() -> None:
        (pending,) = world.operator("enroll", "list")
        world.operator("enroll", "approve", pending["machine"], "--yes")

    with world.registrar.serve():
        with world.power(made=True) as tcti, pytest.raises(Over):
            world.boot(tcti, approve, over)
        record = json.loads(world.config.node_record.read_bytes())
        machine = record["machine"]

        clear(world.tpm)
        # /var is empty in a locked boot.
        kept = world.config.state.rename(world.folder / "kept")

        def recover() -> None:
            (waiting,) = world.operator("node", "recoveries")
            assert (waiting["machine"], waiting["node_id"]) == (machine, record["node_id"])
            assert waiting["luks_uuid"] == UUID
            (listed,) = world.operator("enroll", "list")
            assert listed["locked"]
            refused = world.operator("node", "recover", machine[:12], code=2)
            assert "nobody can be asked" in refused["error"]["message"]
            wrong = world.operator("node", "recover", machine, "--evidence", "00" * 32, code=2)
            assert "request is now" in wrong["error"]["message"]
            done = world.operator("node", "recover", machine, "--evidence", waiting["evidence"])
            assert done["node_id"] == record["node_id"]

        console = Listener(world.folder)
        with world.power(locked=True) as tcti, pytest.raises(Over):
            world.boot(tcti, recover, over, console=console)
        assert world.volume.opened == [str(world.folder / "volume.luks")]
        assert world.reboots == 1
        assert "restarts" in console.words.getvalue()
        assert f"nodeos node recover {machine}" in console.words.getvalue()
        # No second identity was made beside the one that nobody could read.
        assert not world.config.keys.exists()
        assert evidence.RECOVERY_KEY.value.hex() not in console.words.getvalue() + str(console.status)

        for path in world.config.state.iterdir():
            path.unlink()
        world.config.state.rmdir()
        kept.rename(world.config.state)
        with world.power() as tcti, pytest.raises(Over):
            world.boot(tcti, over)
        assert json.loads(world.config.node_record.read_bytes()) == record
        (shown,) = world.operator("enroll", "list")
        assert (shown["state"], shown["locked"]) == ("inducted", False)
        trail = json.loads(world.registrar.command("audit", "--json"))
        assert [row["event"] for row in trail[:4]] == [
            "evidence-accepted",
            "recovered",
            "recovery-answered",
            "recovery-requested",
        ]


def test_an_operator_without_the_recovery_key_is_refused(world: World) -> None:
    """The same signing key, and another second key: the token can't decrypt what was sealed to the first one."""

    def approve() -> None:
        (pending,) = world.operator("enroll", "list")
        world.operator("enroll", "approve", pending["machine"], "--yes")

    other = world.folder / "other.json"
    token = world.token
    words = ("--module", token.module, "--token", token.label, "--key", "op", "--pin-file", token.pin_file)
    nodeos("operator", "init", *words, "--recovery-key", "another", "--out", other)

    def recover() -> None:
        (waiting,) = world.operator("node", "recoveries")
        world.identity = other
        refused = world.operator("node", "recover", waiting["machine"], "--yes", code=3)
        assert [f["code"] for f in refused["error"]["findings"]] == ["recovery.operator_key"]
        over()

    with world.registrar.serve():
        with world.power(made=True) as tcti, pytest.raises(Over):
            world.boot(tcti, approve, over)
        clear(world.tpm)
        world.config.state.rename(world.folder / "kept")
        with world.power(locked=True) as tcti, pytest.raises(Over):
            world.boot(tcti, recover)
    assert world.volume.opened == []


def test_a_wrong_recovery_key_opens_nothing(world: World) -> None:
    device = str(world.folder / "volume.luks")
    with pytest.raises(NodeosError):
        world.volume.recover(device, RecoveryKey(value=bytes(32)))
    world.volume.recover(device, evidence.RECOVERY_KEY)
