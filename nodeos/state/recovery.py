"""The volume without its TPM: opened with the recovery key, and sealed again to the TPM that is there now.

For the running system in locked mode. Its PCRs prove nothing about a sealing, so a volume that was sealed here
is not proven to be made by our initial RAM disk; the registrar holds it to the UUID and the PCR 15 that it
enrolled.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError, ToolError
from nodeos.core.recovery import RecoveryKey
from nodeos.state import header as headers
from nodeos.state.booted import LIBRARY, POLICY, Booted, read_booted
from nodeos.state.header import DATA_OFFSET, Header
from nodeos.state.host import Host
from nodeos.state.luks import Luks
from nodeos.state.unlocked import measure

_HEADER_COPY = 16 << 10  # LUKS2 On-Disk Format, section 2.2: the primary header, then the secondary one


def open_with_recovery(device: str, key: RecoveryKey, *, host: Host, tpm: Tpm) -> Header:
    """Open the volume on ``device`` at host.MAPPED, after its measurement into PCR 15.

    Raises RefusedError for a header that is not ours, NodeosError if the key does not open it.
    """
    luks, header, keyslot = _copied(device, host)
    try:
        measure(tpm, _volume_key(luks, key, keyslot), header.uuid)
        host.open(luks.path, device, key.value, keyslot)
    finally:
        luks.path.unlink(missing_ok=True)
    host.check_filesystem()
    return header


def reseal(device: str, key: RecoveryKey, *, host: Host, tpm: Tpm, booted: Booted) -> Header:
    """Seal the volume on ``device``, open or not, to this TPM instead of the one that it was sealed to.

    The next boot opens it by itself. Can be run again: the old header holds until the new one is whole on the
    disk.
    """
    luks, header, keyslot = _copied(device, host)
    try:
        _volume_key(luks, key, keyslot)
        srk = tpm.storage_root()
        tpm.define_floor(booted.rollback_floor, srk=srk)
        slot = min(set(range(8)) - set(header.areas))
        secret = secrets.token_bytes(32)
        luks.add_key(slot, secret, by=key.value)
        for token in header.tokens:
            luks.remove_token(token.number)
        for old in {token.keyslot for token in header.tokens}:
            luks.kill_slot(old, by=key.value)
        for policy_key in booted.policy_keys:
            luks.add_token(tpm.seal(secret, policy_key, srk=srk).to_json((slot,)))
        made = headers.parse(luks.metadata(), luks.uuid(), device, known=booted.known)
        _replace(host, device, luks.path.read_bytes(), made.areas[slot])
    finally:
        luks.path.unlink(missing_ok=True)
    return made


def recover(device: str, key: RecoveryKey) -> None:
    """Seal the locked volume on ``device`` to this machine's TPM: after a restart it opens by itself.

    Raises NodeosError if the key is not the volume's; then it is as before.
    """
    host = Host()
    with Tpm() as tpm:
        reseal(device, key, host=host, tpm=tpm, booted=read_booted(host.run / POLICY, LIBRARY))


def forget_key(device: str, policy_key: bytes, *, host: Host) -> Header:
    """Remove the token for a policy key (SHA-256 of its DER) that was rotated out. Does nothing if there is none.

    Raises NodeosError if it is the only one: nothing could open the volume then.
    """
    luks = Luks(Path(device))
    header = headers.parse(luks.metadata(), luks.uuid(), device)
    gone = [token for token in header.tokens if token.key == policy_key]
    if not gone:
        return header
    if len(gone) == len(header.tokens):
        raise NodeosError(
            f"the volume on {device} is sealed to no other policy key than {policy_key.hex()[:16]}…",
            hint="restart into the release with the new key first: it seals the volume to that one too",
        )
    luks.remove_token(gone[0].number)
    return headers.parse(luks.metadata(), luks.uuid(), device)


def _copied(device: str, host: Host) -> tuple[Luks, Header, int]:
    luks = Luks(Path(device)).copy_to(host.run / "header")
    header = headers.parse(luks.metadata(), luks.uuid(), device)
    if header.recovery is None:
        raise NodeosError(
            f"the volume on {device} has no recovery key", hint="install the system anew on this disk"
        )
    return luks, header, header.recovery.keyslot


def _volume_key(luks: Luks, key: RecoveryKey, keyslot: int) -> bytes:
    try:
        return luks.volume_key(key.value, keyslot)
    except ToolError as error:
        raise NodeosError(
            "the recovery key does not open the volume", hint="use the recovery key of this very volume"
        ) from error


def _replace(host: Host, device: str, data: bytes, area: tuple[int, int]) -> None:
    """Put a changed header on the disk. LUKS2 keeps two copies with checksums and takes the newer good one, so one
    of them holds at each moment. The new slot's area is not used by the old header."""
    if len(data) != DATA_OFFSET:
        raise NodeosError("the volume's header has another size than it must", hint="the image is damaged")
    offset, size = area
    host.write(device, offset, data[offset : offset + size])
    host.write(device, _HEADER_COPY, data[_HEADER_COPY : 2 * _HEADER_COPY])
    host.write(device, 0, data[:_HEADER_COPY])
    # The slots that were removed.
    host.write(device, 2 * _HEADER_COPY, data[2 * _HEADER_COPY :])
