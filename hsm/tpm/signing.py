"""Signing keys in a TPM: made there, stored at a handle of the owner, and never outside.

A key is a child of the owner hierarchy's storage primary (TCG "TPM v2.0 Provisioning Guidance", section 7.8:
0x81000001; made for the moment if it is not stored there) and is itself stored at a handle from 0x81000100 to
0x8100ffff. It can't be copied (fixedTPM, fixedParent), its scheme is fixed, and a cleared TPM has lost it.

A key with a password is under the TPM's dictionary attack protection: wrong ones lock the TPM out for a time.
The password goes through sessions salted to the storage primary and encrypted, against listeners on the bus.
A key without one signs for whoever may use the TPM.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm.errors import TpmForeignKeyError, TpmKeyMissingError, TpmKeyPasswordError, TpmPasswordError
from hsm.keys import RELEASE, algorithm_of
from hsm.signer import Algorithm
from hsm.tpm.connection import Connection
from hsm.tpm.storage import STORAGE_ROOT_HANDLE, template
from nodeos.core.errors import UsageError

HANDLES = range(0x81000100, 0x81010000)
PASSWORD_BYTES = (
    32  # the size of the name algorithm's digest: TPM 2.0 Library, Part 1, "Authorization values"
)

_TEMPLATES = {
    Algorithm.ECDSA_P256: "ecc256:ecdsa-sha256:null",
    Algorithm.RSA_PKCS1_SHA256: "rsa2048:rsassa-sha256:null",
}
_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
_NO_LOCKOUT = "noda"


def parse_handle(text: str, what: str) -> int:
    """A handle in HANDLES, in the form that the TPM2 tools print. Raises UsageError."""
    if re.fullmatch(r"0x[0-9a-f]{8}", text) and int(text, 16) in HANDLES:
        return int(text, 16)
    raise _no_place(f"{what}: {text!r}")


def generate(tcti: str, handle: int, algorithm: Algorithm, password: str | None = None) -> bytes:
    """Make a key and store it at ``handle``; returns its public key in DER. An RSA key has 2048 bits, and takes
    some TPMs tens of seconds.

    Raises UsageError for a handle out of HANDLES, an algorithm that is not made here and a password that is
    too long, TpmForeignKeyError if something is at the handle (it is left as it is), TpmError.
    """
    if handle not in HANDLES:
        raise _no_place(f"0x{handle:x}")
    if algorithm not in _TEMPLATES:
        raise UsageError(f"{algorithm} keys are not made in TPMs", hint="use ecdsa-p256 or rsa-pkcs1-sha256")
    secret = _secret(password) if password is not None else None
    with _connected(tcti) as connection:
        if connection.exists(handle):
            raise TpmForeignKeyError(
                f"the TPM holds something at 0x{handle:x} already",
                hint=f"choose another handle; or, if nothing needs it: tpm2_evictcontrol -C o -c 0x{handle:x}",
            )
        return _make(connection, handle, algorithm, secret)


@contextmanager
def open_tpm_key(
    tcti: str, handle: int, pin: Callable[[], str], *, public_key: bytes | None = None
) -> Iterator[TpmSigner]:
    """The key at ``handle``, usable inside the block; with ``public_key`` it must be that very key. ``pin`` is
    called only if the key has a password.

    Raises TpmKeyMissingError, TpmForeignKeyError (not a key that ``generate`` makes, or another one), TpmError.
    """
    with _connected(tcti) as connection:
        if not connection.exists(handle):
            raise TpmKeyMissingError(
                f"the TPM holds no key at 0x{handle:x}",
                hint="this is another TPM, or it was cleared: a key that is lost is made anew and rotated in",
            )
        with connection.answers(f"reading the key at 0x{handle:x}"):
            key = connection.esys.tr_from_tpmpublic(handle)
            public, _, _ = connection.esys.read_public(key)
        algorithm, has_password = _described(public, handle)
        der = bytes(public.to_der())
        if public_key is not None and der != public_key:
            raise TpmForeignKeyError(
                f"the TPM's key at 0x{handle:x} is not the one of this identity",
                hint="use the right TPM, or make the identity file anew",
            )
        # Checked here too, since the TPM's own word on its key is all there is without ``public_key``.
        algorithm_of(load_der_public_key(der), f"the TPM's key at 0x{handle:x}", accepted=RELEASE)
        if has_password:
            secret = _secret(pin())
            with connection.answers("setting the key's password"):
                connection.esys.tr_set_auth(key, secret)
            with _storage(connection) as parent:
                yield TpmSigner(
                    connection, key=key, handle=handle, algorithm=algorithm, public_key=der, salt_key=parent
                )
        else:
            yield TpmSigner(
                connection, key=key, handle=handle, algorithm=algorithm, public_key=der, salt_key=None
            )


class TpmSigner:
    """A ``hsm.signer.Signer`` whose key is in a TPM; usable while ``open_tpm_key`` holds it open. RSA signatures
    are the same each time, ECDSA ones are not."""

    def __init__(
        self,
        connection: Connection,
        *,
        key: Any,
        handle: int,
        algorithm: Algorithm,
        public_key: bytes,
        salt_key: Any | None,
    ) -> None:
        self._connection = connection
        self._key = key
        self._handle = handle
        self._algorithm = algorithm
        self._public = public_key
        self._salt_key = salt_key

    @property
    def algorithm(self) -> Algorithm:
        return self._algorithm

    @property
    def public_key(self) -> bytes:
        return self._public

    def sign(self, message: bytes) -> bytes:
        """64 bytes, or 256 of RSA. Raises TpmKeyPasswordError, TpmLockoutError, TpmError."""
        from tpm2_pytss import ESYS_TR, TPM2_SE

        digest = hashlib.sha256(message).digest()
        try:
            with self._connection.answers(f"signing with the key at 0x{self._handle:x}"):
                if self._salt_key is None:
                    return self._signature(digest, ESYS_TR.PASSWORD)
                with self._connection.salted_session(TPM2_SE.HMAC, self._salt_key) as session:
                    return self._signature(digest, session)
        except TpmPasswordError as error:
            raise TpmKeyPasswordError(
                f"the password of the TPM's key at 0x{self._handle:x} is wrong",
                hint="check it: after a few wrong ones the TPM locks such keys for a time "
                "(see `tpm2_getcap properties-variable`)",
                response_code=error.response_code,
            ) from error

    def _signature(self, digest: bytes, session: Any) -> bytes:
        from tpm2_pytss import TPM2_ALG, TPMT_SIG_SCHEME

        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # the key's own
        made = self._connection.esys.sign(self._key, digest, scheme, session1=session)
        if self._algorithm is Algorithm.RSA_PKCS1_SHA256:
            return bytes(made.signature.rsassa.sig)
        # The TPM may leave out leading zeros.
        r, s = bytes(made.signature.ecdsa.signatureR), bytes(made.signature.ecdsa.signatureS)
        return r.rjust(32, b"\0") + s.rjust(32, b"\0")


def _make(connection: Connection, handle: int, algorithm: Algorithm, secret: bytes | None) -> bytes:
    from tpm2_pytss import (
        ESYS_TR,
        TPM2_SE,
        TPM2B_SENSITIVE_CREATE,
        TPMS_SENSITIVE_CREATE,
    )

    area = _template(algorithm, password=secret is not None)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=secret or b""))
    esys = connection.esys
    with (
        _storage(connection) as parent,
        connection.answers("making a signing key"),
        connection.salted_session(TPM2_SE.HMAC, parent) as session,
    ):
        private, public, *_ = esys.create(parent, sensitive, area, session1=session)
        loaded = esys.load(parent, private, public, session1=session)
        try:
            esys.evict_control(ESYS_TR.OWNER, loaded, handle)
        finally:
            esys.flush_context(loaded)
    return bytes(public.to_der())


@contextmanager
def _connected(tcti: str) -> Iterator[Connection]:
    connection = Connection(tcti)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _storage(connection: Connection) -> Iterator[Any]:
    """The storage primary: the stored one, or one made for the moment."""
    from tpm2_pytss import ESYS_TR

    esys = connection.esys
    stored = connection.exists(STORAGE_ROOT_HANDLE)
    with connection.answers("loading the TPM's storage key"):
        if stored:
            handle = esys.tr_from_tpmpublic(STORAGE_ROOT_HANDLE)
        else:
            handle, *_ = esys.create_primary(None, template(connection), ESYS_TR.OWNER)
    try:
        yield handle
    finally:
        if not stored:
            esys.flush_context(handle)


def _described(public: Any, handle: int) -> tuple[Algorithm, bool]:
    """How the key signs, and if it has a password. Raises TpmForeignKeyError unless ``generate`` made such."""
    found = _without_key(public)
    for algorithm in _TEMPLATES:
        for password in (True, False):
            if found == _without_key(_template(algorithm, password=password)):
                return algorithm, password
    raise TpmForeignKeyError(
        f"the TPM's key at 0x{handle:x} is not a signing key that this project makes",
        hint="name the handle of another key",
    )


def _template(algorithm: Algorithm, *, password: bool) -> Any:
    from tpm2_pytss import TPM2B_PUBLIC, TPMA_OBJECT

    attributes = _ATTRIBUTES if password else f"{_ATTRIBUTES}|{_NO_LOCKOUT}"
    return TPM2B_PUBLIC.parse(_TEMPLATES[algorithm], objectAttributes=TPMA_OBJECT.parse(attributes))


def _without_key(public: Any) -> bytes:
    """A public area up to its key: type, name algorithm, attributes, policy and parameters."""
    area = public.publicArea
    kind, marshalled = int(area.type), bytes(area.marshal())
    if kind == 0x0001:  # TPM_ALG_RSA
        length = 2 + len(bytes(area.unique.rsa))
    elif kind == 0x0023:  # TPM_ALG_ECC
        length = 4 + len(bytes(area.unique.ecc.x)) + len(bytes(area.unique.ecc.y))
    else:
        return b""
    return marshalled[: len(marshalled) - length]


def _secret(password: str) -> bytes:
    secret = password.encode()
    # The TPM drops zeros at the end (Part 1, "Authorization values"): such a password would be a shorter one.
    if not secret or len(secret) > PASSWORD_BYTES or b"\0" in secret:
        raise UsageError(
            f"the password of a key in a TPM has 1 to {PASSWORD_BYTES} bytes", hint="choose another password"
        )
    return secret


def _no_place(what: str) -> UsageError:
    return UsageError(
        f"{what} is no place for a signing key in a TPM",
        hint=f"give a handle from 0x{HANDLES[0]:x} to 0x{HANDLES[-1]:x}",
    )
