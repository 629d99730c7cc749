"""The attestation key: made once, told from any other key, and what a registrar's credential opens with it."""

from __future__ import annotations

import hashlib
from typing import Any

from hsm.errors import TpmCredentialError, TpmError, TpmForeignKeyError
from hsm.tpm.connection import Connection
from hsm.tpm.endorsement import EndorsementKey

ATTESTATION_HANDLE = 0x81010002

_UNIQUE = hashlib.sha256(b"nodeos attestation key 1").digest()
_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
_ENDORSEMENT_HIERARCHY = bytes.fromhex("4000000b")


def find(connection: Connection) -> tuple[Any, Any]:
    """Handle and TPM2B_PUBLIC of the stored key, after a check that it is one of ours: our template and a
    primary key of the endorsement hierarchy, which its qualified name shows. Raises TpmForeignKeyError."""
    esys = connection.esys
    with connection.answers("reading the attestation key"):
        if not connection.exists(ATTESTATION_HANDLE):
            raise TpmError(
                f"there is no attestation key at 0x{ATTESTATION_HANDLE:x}",
                hint="the TPM was cleared, or the node was never enrolled: enrol it",
            )
        handle = esys.tr_from_tpmpublic(ATTESTATION_HANDLE)
        public, name, qualified = esys.read_public(handle)
        ours = b"\x00\x0b" + hashlib.sha256(_ENDORSEMENT_HIERARCHY + bytes(name)).digest()
        if _template_bytes(public) != _template_bytes(_template()) or bytes(qualified) != ours:
            raise TpmForeignKeyError(
                f"the TPM holds a foreign key at 0x{ATTESTATION_HANDLE:x}, the attestation key's place",
                hint=f"if nothing needs it: tpm2_evictcontrol -C o -c 0x{ATTESTATION_HANDLE:x}",
            )
        return handle, public


def make(connection: Connection, salt_key: Any) -> Any:
    """Make the key in a session salted to ``salt_key`` and store it; returns its TPM2B_PUBLIC."""
    from tpm2_pytss import ESYS_TR, TPM2_SE

    esys = connection.esys
    with (
        connection.answers("making the attestation key"),
        connection.salted_session(TPM2_SE.HMAC, salt_key) as session,
    ):
        handle, public, *_ = esys.create_primary(None, _template(), ESYS_TR.ENDORSEMENT, session1=session)
        try:
            esys.evict_control(ESYS_TR.OWNER, handle, ATTESTATION_HANDLE)
        finally:
            esys.flush_context(handle)
    return public


def activate(connection: Connection, key: EndorsementKey, blob: bytes, encrypted_secret: bytes) -> bytes:
    """Open a credential (TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET) that was made for ``key`` and the
    attestation key's name. Raises TpmCredentialError otherwise."""
    from tpm2_pytss import ESYS_TR, TPM2_SE, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT

    credential = _unmarshal(TPM2B_ID_OBJECT, blob, "credential")
    secret = _unmarshal(TPM2B_ENCRYPTED_SECRET, encrypted_secret, "credential's secret")
    handle, _ = find(connection)
    esys = connection.esys
    try:
        with (
            connection.answers("opening the registrar's credential"),
            connection.salted_session(TPM2_SE.HMAC, key.handle) as session,
        ):
            if key.usable_with_password:
                return bytes(
                    esys.activate_credential(
                        handle, key.handle, credential, secret, session1=session, session2=ESYS_TR.PASSWORD
                    )
                )
            with connection.plain_policy() as policy:
                esys.policy_secret(ESYS_TR.ENDORSEMENT, policy, expiration=0)
                return bytes(
                    esys.activate_credential(
                        handle, key.handle, credential, secret, session1=session, session2=policy
                    )
                )
    except TpmError as error:
        # Format-1 answers about a parameter: the blob or the secret is not what this TPM can open.
        # libtpms 0.9 answers a secret for another RSA key with TPM_RC_FAILURE, and goes on working.
        code = error.response_code or 0
        if code & 0xC0 == 0xC0 or (code == 0x101 and connection.works()):
            raise TpmCredentialError(
                f"the registrar's credential was not made for this TPM and this attestation key (0x{code:x})",
                hint="ask for a new challenge; if it stays so, the registrar knows another key",
                response_code=error.response_code,
            ) from error
        raise


def _template() -> Any:
    from tpm2_pytss import TPM2B_PUBLIC, TPMA_OBJECT

    template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.parse(_ATTRIBUTES))
    template.publicArea.unique.ecc.x = _UNIQUE
    return template


def _template_bytes(public: Any) -> bytes:
    """A public area without its key: type, name algorithm, attributes, policy and parameters."""
    marshalled = bytes(public.publicArea.marshal())
    unique = public.publicArea.unique.ecc if int(public.publicArea.type) == 0x0023 else None
    length = 4 + len(bytes(unique.x)) + len(bytes(unique.y)) if unique is not None else 0
    return marshalled[: len(marshalled) - length]


def _unmarshal(kind: Any, data: bytes, what: str) -> Any:
    from tpm2_pytss import TSS2_Exception

    try:
        value, used = kind.unmarshal(data)
    except TSS2_Exception as error:
        raise TpmCredentialError(f"the {what} is malformed") from error
    if used != len(data):
        raise TpmCredentialError(f"the {what} is followed by other data")
    return value
