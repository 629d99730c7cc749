"""An operator with both keys, and a locked machine's request, against ``tests.support.registrar``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec

from hsm.identity import FileAgreement, FileSigner, OperatorKeys
from nodeos.core.protocol import Challenge
from nodeos.core.recovery_request import LockedEvidence, RecoveryAnswer, RecoveryOutcome
from provisioning import operator_auth, recover
from provisioning.operator_auth import Asked, Caller
from provisioning.recover import AskedFor
from provisioning.registrar.recoveries import Recoveries
from tests.support import evidence as ev
from tests.support.registrar import AT, Registrar, caller


def operator_keys() -> OperatorKeys:
    return OperatorKeys(signer=FileSigner(ev.OPERATOR), agreement=FileAgreement(ev.RECOVERY))


def approve(registrar: Registrar, machine: ev.Machine) -> str:
    """Approve as the operator's own computer does, with a signature. Gives the node id."""
    body = f'{{"evidence":"{registrar.digest(machine)}"}}'.encode()
    path = f"/v1/operator/enrolments/{machine.id}/approve"
    asked = Asked(registrar=registrar.service.settings.registrar, method="POST", path=path, body=body)
    headers = operator_auth.sign(FileSigner(ev.OPERATOR), asked, AT)
    signed = operator_auth.verify(headers, asked, AT)
    return str(registrar.operators.approve(signed, machine.id, body)["node_id"])


@dataclass
class LockedMachine:
    """A machine that asks, with its fresh key."""

    registrar: Registrar
    machine: ev.Machine
    fresh: FileAgreement
    challenge: Challenge
    evidence: LockedEvidence

    @classmethod
    def make(cls, registrar: Registrar, machine: ev.Machine, **changes: object) -> LockedMachine:
        """Asks for a challenge and makes the evidence for it; ``changes`` are fields of the evidence."""
        fresh = FileAgreement(ec.generate_private_key(ec.SECP256R1()))
        challenge = registrar.service.request(machine.request().to_bytes())
        evidence = machine.ask(challenge, fresh.public_key)
        return cls(registrar, machine, fresh, challenge, replace(evidence, **changes))  # type: ignore[arg-type]

    @property
    def service(self) -> Recoveries:
        return Recoveries(self.registrar.service)

    def send(self) -> RecoveryOutcome:
        return self.service.evidence(self.machine.id, self.evidence.to_bytes())

    def check(self, *, new_tpm: bool = False, keys: OperatorKeys | None = None) -> AskedFor:
        """What the operator's computer makes of the request."""
        details = self.service.details(caller(), self.machine.id)
        name = self.registrar.service.settings.registrar
        return recover.check(details, registrar=name, keys=keys or operator_keys(), new_tpm=new_tpm)

    def answer(self, *, new_tpm: bool = False) -> RecoveryAnswer:
        return recover.answer(self.check(new_tpm=new_tpm), operator_keys(), new_tpm=new_tpm)

    def give(self, answer: RecoveryAnswer, by: Caller | None = None) -> None:
        self.service.answer(by or caller(), self.machine.id, answer.to_bytes())
