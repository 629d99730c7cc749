"""Identity files: where an operator's key, or one that signs releases, is. They hold no secret.

    {"kind": "pkcs11", "module": PATH, "token": LABEL, "key": LABEL, "public_key": BASE64 of the DER key,
     "recovery": {"key": LABEL, "public_key": BASE64}}
    {"kind": "tpm", "handle": "0x81000100", "tcti": TCTI (the default device), "public_key": BASE64 of the DER key}
    {"kind": "file", "key": PATH of a PEM private key, "recovery": PATH of another}

``recovery`` is the key that opens boxes (hsm/box.py), such as nodes' recovery keys. Without it the first key does
that too, if it can.

A relative path counts from the identity file's own directory. Which kinds of keys may be there is the caller's
to say with ``accepted``; without it they are those that people authenticate with, and an RSA key is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hsm.agreement import KeyAgreement, parse_agreement_key, parse_point
from hsm.keys import PEOPLE, algorithm_of, check_public, kinds, public_der, read_public
from hsm.pin import refuse_readable
from hsm.signer import Algorithm, Signer
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_new
from nodeos.core.wire import Fields, b64, parse_json

if TYPE_CHECKING:
    from hsm.pkcs11 import OpenToken

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPart:
    """The label of the key for boxes, on the same token, and its DER public key."""

    key: str
    public_key: bytes

    def to_json(self) -> dict[str, object]:
        return {"key": self.key, "public_key": b64(self.public_key)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIdentity:
    """A key on a PKCS#11 token. ``public_key`` is DER, so that showing it needs no token."""

    module: Path
    token: str
    key: str
    public_key: bytes
    recovery: RecoveryPart | None = None

    def to_json(self) -> dict[str, object]:
        more: dict[str, object] = {} if self.recovery is None else {"recovery": self.recovery.to_json()}
        return {
            **more,
            "kind": "pkcs11",
            "module": str(self.module),
            "token": self.token,
            "key": self.key,
            "public_key": b64(self.public_key),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """A private key in a PEM file, and another for boxes."""

    key: Path
    recovery: Path | None = None

    def to_json(self) -> dict[str, object]:
        more = {} if self.recovery is None else {"recovery": str(self.recovery)}
        return {"kind": "file", "key": str(self.key), **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmKeyIdentity:
    """A key in a TPM. ``tcti`` None is the kernel's device; ``public_key`` is DER."""

    handle: int
    public_key: bytes
    tcti: str | None = None

    def to_json(self) -> dict[str, object]:
        where = {} if self.tcti is None else {"tcti": self.tcti}
        return {
            "kind": "tpm",
            **where,
            "handle": f"0x{self.handle:08x}",
            "public_key": b64(self.public_key),
        }


Identity = TokenIdentity | TpmKeyIdentity | FileIdentity


def load_identity(path: Path, *, accepted: frozenset[Algorithm] = PEOPLE) -> Identity:
    """Read an identity file. Raises UsageError (ParseError with the field's path), also for a public key
    that is not of a kind in ``accepted``."""
    fields = parse_json(read_file(path, "identity", limit=1 << 16), str(path))
    kind = fields.text("kind", limit=16)
    identity: Identity
    if kind == "pkcs11":
        identity = TokenIdentity(
            module=path.parent / fields.text("module"),
            token=fields.text("token", limit=32),
            key=fields.text("key", limit=256),
            public_key=fields.data("public_key", limit=1024),
            recovery=_recovery_part(fields, path) if fields.has("recovery") else None,
        )
        check_public(identity.public_key, f"{path}.public_key", accepted)
    elif kind == "tpm":
        from hsm.tpm.signing import parse_handle

        identity = TpmKeyIdentity(
            handle=parse_handle(fields.text("handle", limit=16), f"{path}.handle"),
            public_key=fields.data("public_key", limit=1024),
            tcti=fields.text("tcti", limit=256) if fields.has("tcti") else None,
        )
        check_public(identity.public_key, f"{path}.public_key", accepted)
    elif kind == "file":
        identity = FileIdentity(
            key=path.parent / fields.text("key"),
            recovery=path.parent / fields.text("recovery") if fields.has("recovery") else None,
        )
    else:
        raise UsageError(f"{path}.kind: {kind!r} is neither pkcs11, tpm nor file")
    fields.done()
    return identity


def _recovery_part(fields: Fields, path: Path) -> RecoveryPart:
    part = fields.nested("recovery")
    found = RecoveryPart(key=part.text("key", limit=256), public_key=part.data("public_key", limit=1024))
    part.done()
    parse_agreement_key(found.public_key, f"{path}.recovery.public_key")
    return found


def write_identity(path: Path, identity: Identity) -> None:
    """Write a new identity file. Raises UsageError if the file is there."""
    write_new(path, (json.dumps(identity.to_json(), indent=2) + "\n").encode(), mode=0o644)


@contextmanager
def open_identity(
    path: Path, pin: Callable[[], str], *, accepted: frozenset[Algorithm] = PEOPLE
) -> Iterator[Signer]:
    """The signer of an identity file, usable inside the block. ``pin`` is asked only if it is needed.

    Raises UsageError for the file and a key that is not of a kind in ``accepted``, ``hsm.errors.TokenError``
    for the token, ``hsm.errors.TpmError`` for the TPM.
    """
    identity = load_identity(path, accepted=accepted)
    if isinstance(identity, FileIdentity):
        yield load_file_signer(identity.key, pin, accepted=accepted)
        return
    if isinstance(identity, TpmKeyIdentity):
        from hsm.tpm.connection import DEFAULT_TCTI
        from hsm.tpm.signing import open_tpm_key

        tcti = identity.tcti or DEFAULT_TCTI
        with open_tpm_key(tcti, identity.handle, pin, public_key=identity.public_key) as signer:
            yield signer
        return
    from hsm.pkcs11 import open_token

    with open_token(identity.module, identity.token, pin) as token:
        yield token.signer(identity.key, public_key=identity.public_key, accepted=accepted)


@contextmanager
def open_agreement(path: Path, pin: Callable[[], str]) -> Iterator[KeyAgreement]:
    """The identity's key for opening boxes (hsm/box.py), usable inside the block. See ``open_identity``.

    Raises UsageError too for an Ed25519 key, and TokenKeyError for a key that was made to sign only.
    """
    identity = load_identity(path)
    if isinstance(identity, FileIdentity):
        yield load_file_agreement(identity.recovery or identity.key, pin)
        return
    if isinstance(identity, TpmKeyIdentity):
        raise _tpm_signs_only(path)
    from hsm.pkcs11 import open_token

    _check_boxes(path, identity)
    with open_token(identity.module, identity.token, pin) as token:
        yield _token_agreement(token, identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKeys:
    """Both keys of an identity: one signs, one opens boxes."""

    signer: Signer
    agreement: KeyAgreement


@contextmanager
def open_operator(path: Path, pin: Callable[[], str]) -> Iterator[OperatorKeys]:
    """Signer and key for boxes together, after one login. Raises what ``open_agreement`` raises."""
    identity = load_identity(path)
    if isinstance(identity, FileIdentity):
        yield OperatorKeys(
            signer=load_file_signer(identity.key, pin),
            agreement=load_file_agreement(identity.recovery or identity.key, pin),
        )
        return
    if isinstance(identity, TpmKeyIdentity):
        raise _tpm_signs_only(path)
    from hsm.pkcs11 import open_token

    _check_boxes(path, identity)
    with open_token(identity.module, identity.token, pin) as token:
        signer = token.signer(identity.key, public_key=identity.public_key)
        yield OperatorKeys(signer=signer, agreement=_token_agreement(token, identity))


def _check_boxes(path: Path, identity: TokenIdentity) -> None:
    if identity.recovery is None:
        parse_agreement_key(identity.public_key, f"{path}.public_key")


def _token_agreement(token: OpenToken, identity: TokenIdentity) -> KeyAgreement:
    part = identity.recovery or RecoveryPart(key=identity.key, public_key=identity.public_key)
    return token.agreement(part.key, public_key=part.public_key)


def _tpm_signs_only(path: Path) -> UsageError:
    return UsageError(
        f"{path}: a key in a TPM can sign but not receive secrets", hint="use a key on a token or in a file"
    )


def recovery_key_of(path: Path, pin: Callable[[], str]) -> bytes:
    """The DER public key that boxes for this identity are sealed to. The token need not be there.

    Raises UsageError for an identity without such a key.
    """
    identity = load_identity(path)
    if isinstance(identity, TpmKeyIdentity):
        raise _tpm_signs_only(path)
    if isinstance(identity, FileIdentity):
        return load_file_agreement(identity.recovery or identity.key, pin).public_key
    if identity.recovery is not None:
        return identity.recovery.public_key
    parse_agreement_key(identity.public_key, f"{path}.public_key")
    return identity.public_key


def read_recovery_key(path: Path, pin: Callable[[], str]) -> bytes:
    """The DER public key for boxes, from an identity file, or a public key in PEM or DER. Raises UsageError."""
    if read_file(path, "operator's recovery key", limit=1 << 16).lstrip().startswith(b"{"):
        return recovery_key_of(path, pin)
    hint = "give the identity file that `nodeos operator init` makes, or the recovery key in PEM or DER"
    der = public_der(read_public(path, "operator's recovery key", hint=hint))
    parse_agreement_key(der, f"operator's recovery key {path}")
    return der


def public_key_of(path: Path, pin: Callable[[], str], *, accepted: frozenset[Algorithm] = PEOPLE) -> bytes:
    """The DER public key of an identity file. Token and TPM need not be there; ``pin`` opens an encrypted
    file."""
    identity = load_identity(path, accepted=accepted)
    if isinstance(identity, FileIdentity):
        return load_file_signer(identity.key, pin, accepted=accepted).public_key
    return identity.public_key


class FileSigner:
    """A ``hsm.signer.Signer`` whose key is in memory."""

    def __init__(self, key: PrivateKey, *, accepted: frozenset[Algorithm] = PEOPLE) -> None:
        self._key = key
        public = key.public_key()
        self._public = public_der(public)
        self._algorithm = algorithm_of(public, "the key", accepted=accepted)

    @property
    def algorithm(self) -> Algorithm:
        return self._algorithm

    @property
    def public_key(self) -> bytes:
        return self._public

    def sign(self, message: bytes) -> bytes:
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        digest = hashlib.sha256(message).digest()
        r, s = decode_dss_signature(self._key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class FileAgreement:
    """A ``hsm.agreement.KeyAgreement`` whose key is in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public = public_der(key.public_key())
        parse_agreement_key(self._public, "the key")

    @property
    def public_key(self) -> bytes:
        return self._public

    def exchange(self, point: bytes) -> bytes:
        return self._key.exchange(ec.ECDH(), parse_point(self._key.curve, point))


def load_file_signer(
    path: Path, pin: Callable[[], str], *, accepted: frozenset[Algorithm] = PEOPLE
) -> FileSigner:
    """Read a PEM private key that only its owner can read; ``pin`` gives the password of an encrypted one.

    Raises UsageError, also for a key that is not of a kind in ``accepted``.
    """
    return FileSigner(_load_private(path, pin, accepted), accepted=accepted)


def load_file_agreement(path: Path, pin: Callable[[], str]) -> FileAgreement:
    """Like ``load_file_signer``. Raises UsageError also for an Ed25519 key."""
    key = _load_private(path, pin, PEOPLE)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"private key {path}: an Ed25519 key can sign but not receive secrets",
            hint="use a P-256 or secp256k1 key",
        )
    return FileAgreement(key)


def _load_private(path: Path, pin: Callable[[], str], accepted: frozenset[Algorithm]) -> PrivateKey:
    data = read_file(path, "private key", limit=1 << 16)
    refuse_readable(path, "private key")
    try:
        try:
            key = load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            key = load_pem_private_key(data, pin().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"private key {path}: not a readable PEM key, or a wrong password",
            hint="give its password with --pin-file, or name another file",
        ) from error
    if not isinstance(key, PrivateKey):
        raise UsageError(f"private key {path}: neither {kinds(accepted)}")
    algorithm_of(key.public_key(), f"private key {path}", accepted=accepted)
    return key
