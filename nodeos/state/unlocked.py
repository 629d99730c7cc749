"""What follows once a volume's key is known: its measurement, and the TPM owner's password on it."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError
from nodeos.core.files import write_atomic
from nodeos.state.host import Host

PCR = 15
# Below /var. Only root reads it, and nobody needs it while the TPM keeps its floor and its storage root.
OWNER_PASSWORD = Path("lib/nodeos/tpm-owner-password")


def measure(tpm: Tpm, volume_key: bytes, uuid: str) -> None:
    """Extend PCR 15, in every bank, with what only this volume's key gives. The TPM gives the key out no more
    after it.

    Raises NodeosError if something was measured before: the PCR would not tell one volume from another.
    """
    if any(tpm.read_pcrs((PCR,))[PCR]):
        raise NodeosError(
            f"PCR {PCR} was extended before the state volume was opened",
            hint="something else measures into it, or the volume was opened before in this boot: power-cycle",
        )
    tpm.measure(PCR, hmac.digest(volume_key, f"nodeos-state:{uuid}".encode(), "sha256"))


def secure_owner(host: Host, tpm: Tpm, srk: bytes) -> None:
    """See that the TPM's owner has a password: without one, the rollback floor could be undefined and made anew.

    It is on the volume before it is set, so that a power cut costs nothing.
    """
    with host.volume() as var:
        path = var / OWNER_PASSWORD
        if tpm.has_owner_auth():
            if not path.exists():
                host.say("the TPM's owner has a password that is not on this volume")
            return
        if not path.exists():
            # Hexadecimal: the TPM drops zero bytes at the end.
            write_atomic(path, secrets.token_hex(16).encode(), mode=0o600)
        # The agent's key is stored by the owner too, and the agent knows no password.
        tpm.attestation_key()
        tpm.set_owner_auth(path.read_bytes(), srk=srk)
