"""The rollback floor in the TPM: an NV index whose bits can be set and never cleared.

``nodeos.core.statepolicy`` says what the bits mean. The index belongs to the owner hierarchy: while the owner has
no password, anyone with the TPM could undefine it and define it afresh. Writing needs no password, since that
can only raise the floor.
"""

from __future__ import annotations

from typing import Any

from hsm.errors import TpmFloorError
from hsm.tpm import storage
from hsm.tpm.connection import Connection
from nodeos.core import statepolicy


def define(
    connection: Connection, floor: int, owner_auth: bytes = b"", *, enrolled: bytes | None = None
) -> int:
    """Make the index if it isn't there and raise it to ``floor``; returns the floor. Can be run again."""
    from tpm2_pytss import TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    statepolicy.floor_bits(floor)
    if not connection.exists(statepolicy.FLOOR_INDEX):
        public = TPMS_NV_PUBLIC(
            nvIndex=statepolicy.FLOOR_INDEX,
            nameAlg=TPM2_ALG.SHA256,
            attributes=TPMA_NV(statepolicy.FLOOR_ATTRIBUTES),
            dataSize=8,
        )
        with (
            connection.answers("defining the rollback floor"),
            storage.as_owner(connection, owner_auth),
            storage.session(connection, enrolled, decrypt=True) as session,
        ):
            connection.esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public), session1=session)
    if _find(connection, unwritten=True)[1]:
        _set_bits(connection, floor, enrolled)
    return raise_to(connection, floor, enrolled=enrolled)


def read(connection: Connection, *, enrolled: bytes | None = None) -> int:
    """The floor. Raises TpmFloorError if there is no such index, or one that is not ours."""
    handle, _ = _find(connection)
    with (
        connection.answers("reading the rollback floor"),
        storage.session(connection, enrolled, encrypt=True) as session,
    ):
        data = connection.esys.nv_read(handle, 8, 0, auth_handle=handle, session1=session)
    return statepolicy.floor_of(int.from_bytes(bytes(data), "big"))


def raise_to(connection: Connection, version: int, *, enrolled: bytes | None = None) -> int:
    """Raise the floor to ``version``; does nothing if it is there or above. Returns the floor."""
    statepolicy.floor_bits(version)
    if read(connection, enrolled=enrolled) < version:
        _set_bits(connection, version, enrolled)
    return read(connection, enrolled=enrolled)


def find(connection: Connection) -> Any:
    """The handle of the index, after a check that its name is ours."""
    return _find(connection)[0]


def _find(connection: Connection, *, unwritten: bool = False) -> tuple[Any, bool]:
    """Handle, and True if the index was defined and never written (which only ``define`` may meet)."""
    with connection.answers("looking for the rollback floor"):
        where = f"0x{statepolicy.FLOOR_INDEX:x}"
        if not connection.exists(statepolicy.FLOOR_INDEX):
            raise TpmFloorError(
                f"the TPM has no rollback floor at {where}",
                hint="the TPM was cleared, or the state volume was never made: use the recovery key",
            )
        handle = connection.esys.tr_from_tpmpublic(statepolicy.FLOOR_INDEX)
        name = bytes(connection.esys.tr_get_name(handle))
        if name == statepolicy.floor_name():
            return handle, False
        public, _ = connection.esys.nv_read_public(handle)
        area = public.nvPublic
        fresh = (int(area.attributes), int(area.nameAlg), int(area.dataSize), len(bytes(area.authPolicy)))
        if unwritten and fresh == (statepolicy.FLOOR_ATTRIBUTES, 0x000B, 8, 0):
            return handle, True
        raise TpmFloorError(
            f"the TPM's storage at {where} is not our rollback floor: its attributes differ",
            hint=f"if nothing needs it: tpm2_nvundefine {where}",
        )


def _set_bits(connection: Connection, version: int, enrolled: bytes | None) -> None:
    handle, _ = _find(connection, unwritten=True)
    with (
        connection.answers("raising the rollback floor"),
        storage.session(connection, enrolled) as session,
    ):
        bits = statepolicy.floor_bits(version)
        connection.esys.nv_set_bits(handle, bits, auth_handle=handle, session1=session)
