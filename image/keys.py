"""The keys of releases: Secure Boot, verity, the PCR policy, the manifest, and the site key.

Each key is made apart, so that each can be replaced and kept apart. Directory layout (mode 0700):

    NAME.crt | NAME.pub.pem   the public half: an X.509 certificate (PK, KEK, db, verity), or a public key; PEM
    NAME.key | NAME.json      the private half: PKCS #8 PEM (mode 0600), or an identity file (``hsm.identity``)
                              that says where on a PKCS #11 token or in a TPM the key is
    VARIANT                   which variant the keys are for
    next/                     the keys that a rotation under way brings in (see image/rotation.py)
    retired/NAME-N/           the keys that were in use before, the oldest as 1
    forbidden/N               images that must not start any more (see image/forbidden.py)

Building needs the public halves only. A PIN or password is asked for as its private half is used.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from hsm.identity import (
    FileIdentity,
    Identity,
    TokenIdentity,
    load_file_signer,
    load_identity,
    open_identity,
    write_identity,
)
from hsm.keys import algorithm_of, private_pem, public_der
from hsm.signer import Algorithm, Signer
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.release import Variant

CERTIFICATES: Mapping[str, str] = {
    "PK": "nodeos platform key",
    "KEK": "nodeos key exchange key",
    "db": "nodeos Secure Boot",
    "verity": "nodeos root verity",
}
"""The keys with a certificate, all RSA since firmware and kernel check nothing else, and its common name."""
ALGORITHMS: Mapping[str, frozenset[Algorithm]] = {
    **dict.fromkeys(CERTIFICATES, frozenset({Algorithm.RSA_PKCS1_SHA256})),
    "pcr": frozenset({Algorithm.ECDSA_P256}),
    "release": frozenset({Algorithm.ED25519, Algorithm.ECDSA_P256}),
    "site": frozenset({Algorithm.ED25519}),
}
"""What each key may be."""
NAMES = tuple(ALGORITHMS)
_YEARS = 15
Pin = Callable[[str], str]
"""Gives the PIN or password of the key of this name, for a token, a TPM or an encrypted file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys in one directory."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    @property
    def variant_file(self) -> Path:
        """Says which variant the keys are for: a debug image signed like a release could open a node's state."""
        return self.path("VARIANT")

    @property
    def journal(self) -> Path:
        """There while the end of a rotation is under way."""
        return self.path("ROTATION")

    def public_file(self, name: str) -> Path:
        """Where the public half is: a certificate, or a public key."""
        return self.path(f"{name}.crt" if name in CERTIFICATES else f"{name}.pub.pem")

    def files(self, name: str) -> list[Path]:
        """The files of a key that are there, public half last."""
        wanted = [self.path(f"{name}.key"), self.path(f"{name}.json"), self.public_file(name)]
        return [path for path in wanted if path.exists()]

    def has(self, name: str) -> bool:
        return self.public_file(name).exists()

    def next(self) -> KeySet:
        """The keys that come in with a rotation under way; it has none of those that stay."""
        return KeySet(directory=self.path("next"))

    def retired(self, name: str) -> list[KeySet]:
        """The sets in which the earlier keys of this name lie, the oldest first."""
        found = {}
        for path in self.path("retired").glob(f"{name}-*"):
            number = path.name.removeprefix(f"{name}-")
            if number.isdecimal():
                found[int(number)] = KeySet(directory=path)
        return [found[number] for number in sorted(found)]

    def certificate(self, name: str) -> x509.Certificate:
        """Raises UsageError."""
        path = self.public_file(name)
        try:
            certificate = x509.load_pem_x509_certificate(read_file(path, f"the certificate {name}"))
        except ValueError as error:
            raise UsageError(f"{path}: not a certificate in PEM") from error
        algorithm_of(certificate.public_key(), str(path), accepted=ALGORITHMS[name])
        return certificate

    def public(self, name: str) -> bytes:
        """The public key as DER SubjectPublicKeyInfo. Raises UsageError."""
        if name in CERTIFICATES:
            return public_der(self.certificate(name).public_key())
        path = self.public_file(name)
        try:
            key = load_pem_public_key(read_file(path, f"the public key {name}", limit=1 << 16))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path}: not a public key in PEM") from error
        algorithm_of(key, str(path), accepted=ALGORITHMS[name])
        return public_der(key)

    @contextmanager
    def signer(self, name: str, pin: Pin) -> Iterator[Signer]:
        """The private half, usable inside the block. ``pin`` is asked only if it is needed.

        Raises UsageError, also if both halves don't belong together; ``hsm.errors`` for tokens and TPMs.
        """
        file, identity = self.path(f"{name}.key"), self.path(f"{name}.json")
        if file.exists() and identity.exists():
            raise UsageError(f"{file} and {identity} are both there", hint="keep the one that is the key")
        if identity.exists():
            with open_identity(identity, lambda: pin(name), accepted=ALGORITHMS[name]) as signer:
                self._check_halves(name, signer)
                yield signer
        else:
            signer = load_file_signer(file, lambda: pin(name), accepted=ALGORITHMS[name])
            self._check_halves(name, signer)
            yield signer

    def _check_halves(self, name: str, signer: Signer) -> None:
        if signer.public_key != self.public(name):
            raise UsageError(
                f"{self.directory}: the private key {name} is not that of {self.public_file(name).name}"
            )

    def missing(self, names: Collection[str] = NAMES) -> list[Path]:
        """The public halves that are not there."""
        return [path for path in map(self.public_file, names) if not path.is_file()]

    def require(self, variant: Variant, names: Collection[str] = NAMES) -> None:
        """Raises UsageError if a public half is missing, if the keys are for another variant, or if the end of a
        rotation was interrupted."""
        missing = self.missing(names)
        if missing and not self.journal.exists():
            raise UsageError(
                f"keys are missing: {', '.join(str(path) for path in missing)}",
                hint=f"make them with `nodeos image keygen --variant {variant} {self.directory}`",
            )
        if self.journal.exists():
            raise UsageError(
                f"{self.directory}: the end of a rotation was interrupted",
                hint=f"run `nodeos image rotate {self.directory} --finish` again",
            )
        found = read_file(self.variant_file, "the variant of the keys").decode("ascii", "replace").strip()
        if found != variant:
            raise UsageError(
                f"the keys in {self.directory} are for the {found} variant, not for {variant}",
                hint="an image with a shell must never be signed like a release; make keys of its own",
            )

    def public_pem(self, name: str) -> bytes:
        """The public half's file; while a rotation is under way that of the next key follows it."""
        following = self.next()
        own = read_file(self.public_file(name), f"the key {name}")
        return own + (
            read_file(following.public_file(name), f"the key {name}") if following.has(name) else b""
        )


def generate(
    directory: Path,
    variant: Variant = Variant.RELEASE,
    *,
    identities: Mapping[str, Path] | None = None,
    pin: Pin | None = None,
) -> KeySet:
    """Make all keys of a ``variant``'s releases in ``directory``, which must not hold anything yet.

    ``identities`` names identity files of keys that exist on tokens or in TPMs; they are used instead of new ones,
    and sign their certificates here. The directory is there with all keys or not at all.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="keys are never overwritten; name another folder")
    with _appearing(directory) as keys:
        write_atomic(keys.variant_file, f"{variant}\n".encode())
        make_keys(keys, NAMES, identities=identities or {}, pin=pin)
    return KeySet(directory=directory)


@contextmanager
def _appearing(directory: Path) -> Iterator[KeySet]:
    """A key directory that gets its name when the block has ended: whoever sees it sees all keys."""
    fresh = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    fresh.mkdir(mode=0o700, parents=True)
    try:
        yield KeySet(directory=fresh)
        fresh.rename(directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(fresh)
        raise


def sync(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_next(
    keys: KeySet, names: Collection[str], *, identities: Mapping[str, Path], pin: Pin | None
) -> KeySet:
    """Make ``next/`` with new keys of these names. See image/rotation.py."""
    following = keys.next()
    with _appearing(following.directory) as fresh:
        make_keys(fresh, names, identities=identities, pin=pin)
    return following


def make_keys(
    keys: KeySet, names: Collection[str], *, identities: Mapping[str, Path], pin: Pin | None
) -> None:
    """Make the keys ``names``, or take those that ``identities`` names. Raises UsageError for an unknown name."""
    unknown = sorted((set(names) | set(identities)) - set(NAMES)) or sorted(set(identities) - set(names))
    if unknown:
        raise UsageError(
            f"no such key is made here: {', '.join(unknown)}", hint=f"there are {', '.join(NAMES)}"
        )
    for name in names:
        if name in identities:
            identity = load_identity(identities[name], accepted=ALGORITHMS[name])
            write_identity(keys.path(f"{name}.json"), _absolute(identity))
        else:
            write_atomic(keys.path(f"{name}.key"), _private(name), mode=0o600)
        _write_public(keys, name, pin or _no_pin)


def _absolute(identity: Identity) -> Identity:
    """The identity files of keys are moved when keys are rotated."""
    if isinstance(identity, FileIdentity):
        return replace(identity, key=identity.key.absolute())
    if isinstance(identity, TokenIdentity):
        return replace(identity, module=identity.module.absolute())
    return identity


def _no_pin(name: str) -> str:
    raise UsageError(f"the key {name} needs a PIN", hint="give it with --pin-file")


def _private(name: str) -> bytes:
    if name in CERTIFICATES:
        return private_pem(generate_private_key(public_exponent=65537, key_size=2048))
    if name == "pcr":
        return private_pem(generate_ec(SECP256R1()))
    return private_pem(Ed25519PrivateKey.generate())


def _write_public(keys: KeySet, name: str, pin: Pin) -> None:
    identity = keys.path(f"{name}.json")
    private = identity if identity.exists() else keys.path(f"{name}.key")
    opened = (
        open_identity(private, lambda: pin(name), accepted=ALGORITHMS[name])
        if identity.exists()
        else nullcontext(load_file_signer(private, lambda: pin(name), accepted=ALGORITHMS[name]))
    )
    with opened as signer:
        if name in CERTIFICATES:
            pem = _self_signed(signer, CERTIFICATES[name]).public_bytes(Encoding.PEM)
        else:
            key = load_der_public_key(signer.public_key)
            pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(keys.public_file(name), pem)


def _self_signed(signer: Signer, common_name: str) -> x509.Certificate:
    """A certificate that the key signs itself, wherever it is."""
    public = load_der_public_key(signer.public_key)
    if not isinstance(public, RSAPublicKey):
        raise UsageError(f"{common_name}: not an RSA key", hint="firmware checks RSA signatures only")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    # The library signs only with keys that it holds: another key's signature is put in, then replaced.
    draft = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(generate_private_key(public_exponent=65537, key_size=2048), hashes.SHA256())
    )
    signed = asn1_x509.Certificate.load(draft.public_bytes(Encoding.DER))
    signed["signature_value"] = signer.sign(draft.tbs_certificate_bytes)
    certificate = x509.load_der_x509_certificate(signed.dump(force=True))
    certificate.verify_directly_issued_by(certificate)
    return certificate


def keys_of(work: Path, variant: Variant) -> KeySet:
    """The keys that builds of ``variant`` in ``work`` use by default, made if there are none yet."""
    directory = work / ("keys" if variant is Variant.RELEASE else f"keys-{variant}")
    return KeySet(directory=directory) if directory.exists() else generate(directory, variant)
