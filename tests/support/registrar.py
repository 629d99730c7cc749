"""A registrar in a directory, ready for the machines of ``tests.support.evidence``."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from hsm.keys import private_pem
from nodeos.core.principal import Principal
from nodeos.core.protocol import Outcome, Poll, poll_proof
from provisioning.operator_auth import Caller
from provisioning.registrar import admin
from provisioning.registrar.directory import Directory
from provisioning.registrar.operators import Operators
from provisioning.registrar.rows import CenterRow
from provisioning.registrar.service import Service
from tests.support import evidence as ev

AT = 1_750_000_000


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.at = AT

    def __call__(self) -> int:
        return self.at


def center(name: str = "dc1", operator: bytes | None = None) -> CenterRow:
    """A data centre of the test's operator, or of another one."""
    key = operator or ev.spki(ev.OPERATOR)
    return CenterRow(
        name=name,
        operator=str(Principal.self_authenticating(key)),
        operator_key=key,
        profile="gen1",
        node_reward_type="type1",
        site_key=ev.SITE_KEY.public_key().public_bytes_raw(),
        added_at=AT,
    )


def write_files(folder: Path) -> tuple[Path, Path]:
    """Root and release as files; its signature and ``release.pub.pem`` are beside the release."""
    roots, release = folder / "roots.pem", folder / "release.json"
    roots.write_bytes(ev.pem(ev.root().der))
    ev.write_release(release, ev.release())
    return roots, release


def write_identity(folder: Path) -> Path:
    """An operator identity whose key is a file."""
    key = folder / "operator.key"
    key.write_bytes(
        ev.OPERATOR.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    key.chmod(0o600)
    recovery = folder / "recovery.key"
    recovery.write_bytes(private_pem(ev.RECOVERY))
    recovery.chmod(0o600)
    identity = folder / "operator.json"
    identity.write_text(json.dumps({"kind": "file", "key": str(key), "recovery": str(recovery)}))
    return identity


def caller(key: bytes | None = None) -> Caller:
    """An operator whose signature was checked."""
    public = key or ev.spki(ev.OPERATOR)
    return Caller(
        principal=Principal.self_authenticating(public),
        public_key=public,
        timestamp=AT,
        nonce="0" * 32,
        signature=bytes(64),
    )


class Registrar:
    """Service, operators and store over one directory, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.directory = Directory(folder / "registrar")
        self.directory.make(["127.0.0.1", "localhost"])
        self.store = self.directory.open()
        roots, release = write_files(folder)
        admin.add_trust(self.store, roots, pin_all=False)
        self.release_key = release.with_name("release.pub.pem")
        admin.add_release(self.store, release, release_keys=[self.release_key], allow_debug=False)
        admin.add_center(self.store, center())
        self.clock = Clock()
        self.service = Service(self.store, self.directory.settings(), self.clock)
        self.operators = Operators(self.service)

    def attest(self, machine: ev.Machine) -> Outcome:
        """Request, challenge, evidence."""
        challenge = self.service.request(machine.request().to_bytes())
        return self.service.evidence(machine.id, machine.answer(challenge).to_bytes())

    def digest(self, machine: ev.Machine) -> str:
        """The evidence that an operator sees."""
        return str(self.operators.enrolment(caller(), machine.id)["evidence"])

    def approve(self, machine: ev.Machine) -> dict[str, object]:
        body = json.dumps({"evidence": self.digest(machine)}).encode()
        return self.operators.approve(caller(), machine.id, body)

    def state(self, machine: ev.Machine) -> str:
        with self.store.read() as tx:
            row = tx.enrolment(machine.id)
        return "absent" if row is None else str(row.state)

    def events(self, machine: ev.Machine) -> list[str]:
        """The machine's audit trail, oldest first."""
        with self.store.read() as tx:
            return [row.event for row in reversed(tx.audit(machine.id, 100))]


def poll(session: str, secret: bytes, counter: int) -> bytes:
    """A poll as a node sends it."""
    return Poll(session=session, counter=counter, proof=poll_proof(secret, session, counter)).to_bytes()
