"""The storage root key: the parent of what is sealed, and the key that sessions with secrets are salted to.

The key is the TCG's (TCG TPM v2.0 Provisioning Guidance) at the TCG's handle, so that other software on the
machine shares it. Whoever sits on the bus can answer with a key of its own. So whoever knows the enrolled
public names it, and no session is salted to another key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hsm.errors import TpmForeignKeyError, TpmPasswordError, TpmStorageRootError
from hsm.tpm.connection import Connection

STORAGE_ROOT_HANDLE = 0x81000001
_NEEDED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt"
_TEMPLATES = {"ecc": "ecc256:aes128cfb", "rsa": "rsa2048:aes128cfb"}
_OWNER_AUTH_BYTES = range(16, 33)


def ensure(connection: Connection, salt_key: Any, owner_auth: bytes = b"") -> bytes:
    """The key's TPMT_PUBLIC. Makes and stores it, in a session salted to ``salt_key``, if it isn't there."""
    from tpm2_pytss import ESYS_TR, TPM2_SE, TPMA_SESSION

    if connection.exists(STORAGE_ROOT_HANDLE):
        return find(connection)[1]
    esys = connection.esys
    area = template(connection)
    with (
        as_owner(connection, owner_auth),
        connection.answers("making the storage root key"),
        connection.salted_session(TPM2_SE.HMAC, salt_key) as session,
    ):
        handle, *_ = esys.create_primary(None, area, ESYS_TR.OWNER, session1=session)
        try:
            # TPM2_EvictControl has no parameter that could be encrypted; the session only authorises it.
            esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
            esys.evict_control(ESYS_TR.OWNER, handle, STORAGE_ROOT_HANDLE, session1=session)
        finally:
            esys.flush_context(handle)
    return find(connection)[1]


def template(connection: Connection) -> Any:
    """The TCG's template of the key, for the algorithms that this TPM has."""
    from tpm2_pytss import TPM2B_PUBLIC, TPMA_OBJECT

    kind = "ecc" if _has_p256(connection) else "rsa"
    return TPM2B_PUBLIC.parse(
        _TEMPLATES[kind], objectAttributes=TPMA_OBJECT.parse(_NEEDED) | TPMA_OBJECT.NODA
    )


def find(connection: Connection, enrolled: bytes | None = None) -> tuple[Any, bytes]:
    """Handle and TPMT_PUBLIC of the stored key.

    Raises TpmStorageRootError if there is none or if it is not ``enrolled``, TpmForeignKeyError if the key is
    no storage key of this TPM.
    """
    from tpm2_pytss import TPMA_OBJECT

    esys = connection.esys
    with connection.answers("reading the storage root key"):
        if not connection.exists(STORAGE_ROOT_HANDLE):
            raise TpmStorageRootError(
                f"there is no storage root key at 0x{STORAGE_ROOT_HANDLE:x}",
                hint="the TPM was cleared, or this is another machine: recover the volume with its recovery key",
            )
        handle = esys.tr_from_tpmpublic(STORAGE_ROOT_HANDLE)
        public, _, _ = esys.read_public(handle)
        area = bytes(public.publicArea.marshal())
        # The library salts with the public that it read for itself. It must be the one that is checked here.
        if not bytes(esys.tr_serialize(handle)).endswith(len(area).to_bytes(2, "big") + area):
            raise TpmStorageRootError("the TPM told two different storage root keys", hint=_BUS)
        needed = int(TPMA_OBJECT.parse(_NEEDED))
        kind = int(public.publicArea.type)
        if kind not in (0x0001, 0x0023) or int(public.publicArea.objectAttributes) & needed != needed:
            raise TpmForeignKeyError(
                f"the TPM holds a key at 0x{STORAGE_ROOT_HANDLE:x} that is no storage root key: it must be "
                "a restricted decryption key that can't leave the TPM",
                hint=f"if nothing needs it: tpm2_evictcontrol -C o -c 0x{STORAGE_ROOT_HANDLE:x}",
            )
        if enrolled is not None and area != enrolled:
            raise TpmStorageRootError(
                "the TPM's storage root key is not the one that the volume was sealed with",
                hint=f"the TPM was cleared or replaced: use the recovery key. If neither is so: {_BUS}",
            )
    return handle, area


@contextmanager
def session(
    connection: Connection, enrolled: bytes | None, *, encrypt: bool = False, decrypt: bool = False
) -> Iterator[Any]:
    """An HMAC session salted to the storage root key. ``decrypt``: the first parameter of the command is
    encrypted; ``encrypt``: that of the answer. The TPM refuses either for a command that has none."""
    from tpm2_pytss import TPM2_SE, TPMA_SESSION

    handle, _ = find(connection, enrolled)
    with connection.salted_session(TPM2_SE.HMAC, handle) as made:
        attributes = TPMA_SESSION.CONTINUESESSION
        attributes |= TPMA_SESSION.ENCRYPT if encrypt else TPMA_SESSION(0)
        attributes |= TPMA_SESSION.DECRYPT if decrypt else TPMA_SESSION(0)
        connection.esys.trsess_set_attributes(made, attributes)
        yield made


@contextmanager
def as_owner(connection: Connection, auth: bytes) -> Iterator[None]:
    """Know the owner's password for as long as it is needed. With HMAC sessions it never goes over the bus."""
    from tpm2_pytss import ESYS_TR

    connection.esys.tr_set_auth(ESYS_TR.OWNER, auth)
    try:
        yield
    except TpmPasswordError as error:
        error.hint = "name the owner password that was set when the state volume was made"
        raise
    finally:
        connection.esys.tr_set_auth(ESYS_TR.OWNER, b"")


def set_owner_auth(
    connection: Connection, new: bytes, *, old: bytes = b"", enrolled: bytes | None = None
) -> None:
    """Give the owner hierarchy the password ``new`` (16 to 32 bytes, random). Encrypted on the bus.

    The TPM drops zero bytes at the end of a password, and so does the library.
    """
    from tpm2_pytss import ESYS_TR

    if len(new) not in _OWNER_AUTH_BYTES:
        raise ValueError(f"an owner password has 16 to 32 bytes, not {len(new)}")
    with (
        as_owner(connection, old),
        connection.answers("setting the owner password"),
        session(connection, enrolled, decrypt=True) as made,
    ):
        connection.esys.hierarchy_change_auth(ESYS_TR.OWNER, new, session1=made)


_BUS = "something may sit between the processor and the TPM: open the machine and look"


def _has_p256(connection: Connection) -> bool:
    from tpm2_pytss import TPM2_CAP

    with connection.answers("asking for the TPM's curves"):
        _, capability = connection.esys.get_capability(TPM2_CAP.ECC_CURVES, 0, 128)
        curves = capability.data.eccCurves
        return any(int(curves[i]) == 0x0003 for i in range(len(curves)))
