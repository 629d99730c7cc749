"""A new state volume on an empty partition.

The header is made in memory, with every key slot and token. The disk gets a mark first and the header last, and
its first sector last of all: cut off anywhere, the partition holds nothing and is made anew (see ``contents``).
"""

from __future__ import annotations

import secrets
import uuid

from hsm.box import seal_to
from hsm.keys import public_der
from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError
from nodeos.core.protocol import machine_id
from nodeos.core.recovery import RecoveryBlob, RecoveryKey, recovery_context
from nodeos.core.statepolicy import POLICY_PCRS
from nodeos.core.statereport import Mode, StateReport
from nodeos.state import header as headers
from nodeos.state.booted import Booted, fingerprint
from nodeos.state.contents import MAKING, SECTOR
from nodeos.state.header import DATA_OFFSET, Header
from nodeos.state.host import Host
from nodeos.state.luks import Luks
from nodeos.state.unlocked import measure, secure_owner

KEYSLOT, RECOVERY_KEYSLOT = 0, 1


def make(host: Host, tpm: Tpm, booted: Booted, device: str, operator_key: bytes) -> StateReport:
    """Make the volume on ``device`` and open it.

    ``operator_key`` (DER) is what the recovery key is encrypted to.
    """
    host.say(f"making the state volume on {device} (LUKS2, its key sealed to the TPM)")
    if tpm.has_owner_auth():
        raise NodeosError(
            "the TPM's owner has a password that this system does not know; nothing was made",
            hint="whoever knows it could lower the rollback floor: clear the TPM in the firmware",
        )
    srk = tpm.storage_root()
    floor = tpm.define_floor(booted.rollback_floor, srk=srk)
    # Before anything is written: without a policy that holds now, the next boot could not open it.
    policies = [
        (key, tpm.choose_policy(public_der(key), booted.signatures, srk=srk)) for key in booted.policy_keys
    ]
    host.write(device, 0, MAKING)
    path = host.run / "header"
    path.unlink(missing_ok=True)
    key, volume = secrets.token_bytes(32), str(uuid.uuid4())
    luks = Luks.format(path, volume, key)
    machine = machine_id(tpm.endorsement().public)
    _add_recovery(luks, key, machine=machine, volume=volume, operator_key=operator_key)
    for policy_key, policy in policies:
        sealed = tpm.seal(key, policy_key, srk=srk, under=policy)
        luks.add_token(sealed.to_json((KEYSLOT,)))
    _check(tpm, booted, headers.parse(luks.metadata(), luks.uuid(), device, known=booted.known), key)
    measure(tpm, luks.volume_key(key, KEYSLOT), volume)
    host.open(path, device, key, KEYSLOT)
    host.make_filesystem()
    _commit(host, luks, device)
    path.unlink()
    secure_owner(host, tpm, srk)
    return StateReport(
        mode=Mode.OPEN,
        made_this_boot=True,
        luks_uuid=volume,
        device=device,
        policy_keys=tuple(fingerprint(key) for key in booted.policy_keys),
        policy_pcrs=POLICY_PCRS,
        floor=floor,
        security_version=booted.security_version,
        creation_proven=True,
    )


def _add_recovery(luks: Luks, key: bytes, *, machine: str, volume: str, operator_key: bytes) -> None:
    """A second way in, which only the operator's key opens. Kept in the header, and by the registrar."""
    import hashlib

    recovery = RecoveryKey.generate()
    luks.add_key(RECOVERY_KEYSLOT, recovery.value, by=key)
    blob = RecoveryBlob(
        keyslot=RECOVERY_KEYSLOT,
        operator_key=hashlib.sha256(operator_key).digest(),
        machine=machine,
        volume=volume,
        box=seal_to(operator_key, recovery.value, recovery_context(machine=machine, volume=volume)),
    )
    luks.add_token(blob.to_bytes())


def _check(tpm: Tpm, booted: Booted, header: Header, key: bytes) -> None:
    """Before there are data: does the TPM give the key out, and prove its making, by each token?"""
    for token in header.tokens:
        tpm.check_creation(token.sealed)
        if tpm.unseal(token.sealed, booted.signatures) != key:
            raise NodeosError(
                "the TPM gave out another key than was sealed", hint="the TPM is broken: replace it"
            )


def _commit(host: Host, luks: Luks, device: str) -> None:
    data = luks.path.read_bytes()
    if len(data) != DATA_OFFSET:
        raise NodeosError("the volume's header has another size than it must", hint="the image is damaged")
    host.write(device, SECTOR, data[SECTOR:])
    host.write(device, 0, data[:SECTOR])
