"""The node's keys on the sealed state partition: made once as a whole, never remade silently.

The directory holds ``signing.pem`` (Ed25519, PKCS #8), ``tls.pem`` (P-256, PKCS #8), ``tls.der`` (its
self-signed certificate with the node id as common name), ``committee.hex`` (BLS12-381 scalar) and
``public.json`` (all public keys). It is written beside its place and renamed, so that a power cut leaves
either the whole set or none.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file, write_new
from nodeos.core.principal import Principal
from nodeos.core.protocol import KeyProofs, NodeKeys, possession_message
from nodeos.core.wire import canonical_json, parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from hsm.bls import SecretKey

SIGNING = "signing.pem"
TLS_KEY = "tls.pem"
TLS_CERTIFICATE = "tls.der"
COMMITTEE = "committee.hex"
PUBLIC = "public.json"
_FILES = (SIGNING, TLS_KEY, TLS_CERTIFICATE, COMMITTEE, PUBLIC)

# Fixed, since a machine's clock may be wrong at its first boot; the end means "no date" (RFC 5280, 4.1.2.5).
_NOT_BEFORE = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class IdentityError(NodeosError):
    """The node's keys are damaged. They are never replaced: a new identity is a new node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The public keys, and whether this call made them."""

    keys: NodeKeys
    made: bool


def load_or_make(directory: Path) -> Loaded:
    """The keys in ``directory``, made if it is not there. Raises IdentityError if they are damaged."""
    _remove_leftovers(directory)
    if not os.path.lexists(directory):
        _make(directory)
        return Loaded(keys=load(directory), made=True)
    return Loaded(keys=load(directory), made=False)


def load(directory: Path) -> NodeKeys:
    """Read every file and check that they belong together. Raises IdentityError."""
    return _read(directory).keys


def prove(directory: Path, qualifying: bytes) -> KeyProofs:
    """Have each key sign for one attestation. Raises IdentityError."""
    from hsm.identity import FileSigner

    secret, message = _read(directory), possession_message(qualifying)
    return KeyProofs(
        signing=secret.signing.sign(message),
        tls=FileSigner(secret.tls).sign(message),
        committee=secret.committee.sign(message),
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Identity:
    """The secret keys, and the public ones that they make."""

    signing: Ed25519PrivateKey
    tls: EllipticCurvePrivateKey
    committee: SecretKey
    keys: NodeKeys


def _read(directory: Path) -> _Identity:
    _check_modes(directory)
    try:
        stored = NodeKeys.parse(parse_json(read_file(directory / PUBLIC, "public keys"), PUBLIC))
        found = _derive(directory)
    except (UsageError, ValueError, TypeError) as error:
        raise _damaged(directory, str(error).splitlines()[0]) from error
    if found.keys.signing != stored.signing:
        raise _damaged(directory, f"{SIGNING} is not the key in {PUBLIC}")
    if found.keys.committee != stored.committee:
        raise _damaged(directory, f"{COMMITTEE} is not the key in {PUBLIC}")
    if found.keys.tls_certificate != stored.tls_certificate:
        raise _damaged(directory, f"{TLS_CERTIFICATE} is not the certificate in {PUBLIC}")
    return found


def _derive(directory: Path) -> _Identity:
    """The secret keys and their public ones. Raises ValueError, TypeError or UsageError for what is no key."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_der_x509_certificate
    from cryptography.x509.oid import NameOID

    from hsm.bls import SecretKey
    from hsm.keys import public_der

    signing = load_pem_private_key(read_file(directory / SIGNING, "signing key"), None)
    if not isinstance(signing, Ed25519PrivateKey):
        raise TypeError(f"{SIGNING} is not an Ed25519 key")
    tls = load_pem_private_key(read_file(directory / TLS_KEY, "TLS key"), None)
    if not isinstance(tls, EllipticCurvePrivateKey):
        raise TypeError(f"{TLS_KEY} is not an elliptic-curve key")
    certificate_der = read_file(directory / TLS_CERTIFICATE, "TLS certificate")
    certificate = load_der_x509_certificate(certificate_der)
    public = public_der(signing.public_key())
    if public_der(certificate.public_key()) != public_der(tls.public_key()):
        raise ValueError(f"{TLS_CERTIFICATE} is not for the key in {TLS_KEY}")
    names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [str(Principal.self_authenticating(public))]:
        raise ValueError(f"{TLS_CERTIFICATE} does not name the node id")
    committee = SecretKey.load(directory / COMMITTEE)
    keys = NodeKeys(signing=public, tls_certificate=certificate_der, committee=committee.public_key)
    return _Identity(signing=signing, tls=tls, committee=committee, keys=keys)


def _make(directory: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from hsm.bls import SecretKey
    from hsm.keys import private_pem, public_der

    directory.parent.mkdir(parents=True, exist_ok=True)
    whole = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    whole.mkdir(mode=0o700)
    signing = Ed25519PrivateKey.generate()
    tls = generate_private_key(SECP256R1())
    committee = SecretKey.generate()
    public = public_der(signing.public_key())
    certificate = _certificate(tls, str(Principal.self_authenticating(public)))
    keys = NodeKeys(signing=public, tls_certificate=certificate, committee=committee.public_key)
    write_new(whole / SIGNING, private_pem(signing))
    write_new(whole / TLS_KEY, private_pem(tls))
    write_new(whole / TLS_CERTIFICATE, certificate)
    committee.save(whole / COMMITTEE)
    write_new(whole / PUBLIC, canonical_json(keys.to_json()))
    whole.rename(directory)
    _sync(directory.parent)


def _certificate(key: object, common_name: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    if not isinstance(key, EllipticCurvePrivateKey):
        raise TypeError("the TLS key is an elliptic-curve key")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _check_modes(directory: Path) -> None:
    for path in (directory, *(directory / name for name in _FILES)):
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise _damaged(directory, f"{path.name}: {error.strerror}") from error
        if mode & 0o077:
            raise _damaged(directory, f"{path.name} can be read by others (mode {mode & 0o777:o})")


def _remove_leftovers(directory: Path) -> None:
    # A set that a power cut left unfinished was never anybody's identity.
    for path in directory.parent.glob(f".{directory.name}.*"):
        shutil.rmtree(path)


def _damaged(directory: Path, why: str) -> IdentityError:
    return IdentityError(
        f"the node's keys in {directory} are damaged: {why}",
        hint="they are not made anew, since that would be another node: restore the directory, or remove it "
        "and enrol the machine as a new node",
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
