"""The release manifest: what a build made, the measurements that it must give, and who signed it.

Written by ``image``; read by the registrar, by whoever downloads a release, and by nodes before an update. PCR
values are lower-case hex, in the banks ``sha256`` and ``sha384``. The signature (``release.sig``) is detached, so
that the manifest is signed as the bytes that it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.statepolicy import HIGHEST_VERSION
from nodeos.core.wire import Fields, ParseError, b64, canonical_json, parse_json

BANKS: Mapping[str, int] = {"sha256": 32, "sha384": 48}
"""The banks that predictions are given for, and the bytes of a value in each."""
PREDICTED = (4, 7, 12, 13)
PREDICTED_OFF = (4, 7)
SIGNATURE_DOMAIN = b"nodeos-release-v1\0"
_Key = TypeVar("_Key")


class BootPhase(StrEnum):
    """The points of a boot at which systemd-pcrphase extends PCR 11 (systemd-pcrphase.service(8))."""

    ENTER_INITRD = "enter-initrd"
    LEAVE_INITRD = "leave-initrd"
    SYSINIT = "sysinit"
    READY = "ready"


class Variant(StrEnum):
    """A release has no shell anywhere; a debug image has, and so has other measurements."""

    RELEASE = "release"
    DEBUG = "debug"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file of the build: its size in bytes and its SHA-256."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedPcr7:
    """A value of PCR 7 that a release's state policy is signed for; ``name`` says for people when it shows."""

    name: str
    sha256: bytes
    sha384: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKeys:
    """SHA-256 of each signer: of the DER certificate (db, verity) or of the DER public key (pcr, release)."""

    db: bytes
    pcr: tuple[bytes, ...]
    release: bytes
    verity: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release.

    ``pcrs`` holds by bank the final values of PREDICTED, with Secure Boot on, the release's own keys enrolled and
    no site configuration; ``pcr11`` the value after each phase; ``secure_boot_off`` PCRs 4 and 7 of a machine in
    setup mode. ``accepted_pcr7`` is every PCR 7 that the state policy was signed for. A node starts the release
    only if its rollback floor is at most ``security_version``, and then raises it to ``rollback_floor``.
    """

    version: str
    variant: Variant
    root_hash: bytes
    kernel_command_line: str
    artefacts: Mapping[str, Artefact]
    security_version: int
    rollback_floor: int
    pcrs: Mapping[str, Mapping[int, bytes]]
    pcr11: Mapping[str, Mapping[BootPhase, bytes]]
    secure_boot_off: Mapping[str, Mapping[int, bytes]]
    accepted_pcr7: tuple[AcceptedPcr7, ...]
    keys: ReleaseKeys
    source_commit: str
    source_date_epoch: int

    def to_bytes(self) -> bytes:
        """Canonical JSON; equal releases give equal bytes."""
        value: dict[str, Any] = {
            "version": 2,
            "release": self.version,
            "variant": str(self.variant),
            "root_hash": self.root_hash.hex(),
            "kernel_command_line": self.kernel_command_line,
            "artefacts": {
                name: {"size": a.size, "sha256": a.sha256.hex()} for name, a in self.artefacts.items()
            },
            "security_version": self.security_version,
            "rollback_floor": self.rollback_floor,
            "pcrs": _banks_to_json(self.pcrs),
            "pcr11": _banks_to_json(self.pcr11),
            "secure_boot_off": _banks_to_json(self.secure_boot_off),
            "accepted_pcr7": [
                {"name": item.name, "sha256": item.sha256.hex(), "sha384": item.sha384.hex()}
                for item in self.accepted_pcr7
            ],
            "keys": {
                "db": self.keys.db.hex(),
                "pcr": [key.hex() for key in self.keys.pcr],
                "release": self.keys.release.hex(),
                "verity": self.keys.verity.hex(),
            },
            "source_commit": self.source_commit,
            "source_date_epoch": self.source_date_epoch,
        }
        return canonical_json(value)

    @classmethod
    def parse(cls, data: bytes, what: str = "release.json") -> Release:
        """Raises ParseError with the path of the first wrong field. No signature is checked here."""
        fields = parse_json(data, what)
        fields.integer("version", low=2, high=2)
        artefacts = fields.nested("artefacts")
        security_version = fields.integer("security_version", low=1, high=HIGHEST_VERSION)
        release = cls(
            version=fields.text("release", limit=64),
            variant=parse_variant(fields.text("variant"), what),
            root_hash=fields.hexadecimal("root_hash", length=32),
            kernel_command_line=fields.text("kernel_command_line"),
            artefacts={
                name: parse_artefact(item, f"{what}.artefacts.{name}") for name, item in artefacts.items()
            },
            security_version=security_version,
            # A higher floor than its own version would keep the release from ever starting again.
            rollback_floor=fields.integer("rollback_floor", low=0, high=security_version),
            pcrs=_banks(fields.nested("pcrs"), {str(index): index for index in PREDICTED}),
            pcr11=_banks(fields.nested("pcr11"), {str(phase): phase for phase in BootPhase}),
            secure_boot_off=_banks(
                fields.nested("secure_boot_off"), {str(index): index for index in PREDICTED_OFF}
            ),
            accepted_pcr7=fields.list_of("accepted_pcr7", parse_accepted),
            keys=_keys(fields.nested("keys")),
            source_commit=fields.text("source_commit", limit=64),
            source_date_epoch=fields.integer("source_date_epoch"),
        )
        fields.done()
        if not release.accepted_pcr7:
            raise ParseError(f"{what}.accepted_pcr7: none")
        return release


def _banks_to_json(banks: Mapping[str, Mapping[_Key, bytes]]) -> dict[str, dict[str, str]]:
    return {bank: {str(key): value.hex() for key, value in values.items()} for bank, values in banks.items()}


def _banks(fields: Fields, keys: Mapping[str, _Key]) -> dict[str, dict[_Key, bytes]]:
    banks: dict[str, dict[_Key, bytes]] = {}
    for bank, length in BANKS.items():
        values = fields.nested(bank)
        banks[bank] = {key: values.hexadecimal(name, length=length) for name, key in keys.items()}
        values.done()
    fields.done()
    return banks


def _keys(fields: Fields) -> ReleaseKeys:
    keys = ReleaseKeys(
        db=fields.hexadecimal("db", length=32),
        pcr=fields.list_of("pcr", _digest),
        release=fields.hexadecimal("release", length=32),
        verity=fields.hexadecimal("verity", length=32),
    )
    fields.done()
    if not keys.pcr:
        raise ParseError(f"{fields.path}.pcr: none")
    return keys


def _digest(item: object, path: str) -> bytes:
    return Fields({"digest": item}, path).hexadecimal("digest", length=32)


def parse_accepted(item: object, path: str) -> AcceptedPcr7:
    """One item of ``accepted_pcr7``, in the manifest and in lists of further values."""
    fields = Fields(item, path)
    accepted = AcceptedPcr7(
        name=fields.text("name", limit=256),
        sha256=fields.hexadecimal("sha256", length=32),
        sha384=fields.hexadecimal("sha384", length=48),
    )
    fields.done()
    return accepted


def parse_artefact(item: object, path: str) -> Artefact:
    """Size and SHA-256 of a file, as manifests have them."""
    fields = Fields(item, path)
    artefact = Artefact(size=fields.integer("size"), sha256=fields.hexadecimal("sha256", length=32))
    fields.done()
    return artefact


def parse_variant(text: str, what: str) -> Variant:
    try:
        return Variant(text)
    except ValueError as error:
        raise ParseError(f"{what}.variant: {text!r} is not one of {', '.join(Variant)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSignature:
    """One signature of a manifest: ``key`` is the SHA-256 of the signer's DER public key.

    ``algorithm`` is ed25519 or ecdsa-p256 (over SHA-256; r and s, 32 bytes each, big-endian).
    """

    key: bytes
    algorithm: str
    signature: bytes


def signed_message(release: bytes) -> bytes:
    """What a release key signs: the manifest's bytes under a prefix that no other signed message has."""
    return SIGNATURE_DOMAIN + release


def signatures_to_bytes(signatures: Sequence[ReleaseSignature]) -> bytes:
    """The file ``release.sig``: canonical JSON."""
    listed = [
        {"key": item.key.hex(), "algorithm": item.algorithm, "signature": b64(item.signature)}
        for item in signatures
    ]
    return canonical_json({"version": 1, "signatures": listed})


def parse_signatures(data: bytes, what: str = "release.sig") -> tuple[ReleaseSignature, ...]:
    """Raises ParseError with the path of the first wrong field. No signature is checked here."""
    fields = parse_json(data, what, limit=1 << 16)
    fields.integer("version", low=1, high=1)
    signatures = fields.list_of("signatures", _release_signature, limit=16)
    fields.done()
    return signatures


def _release_signature(item: object, path: str) -> ReleaseSignature:
    fields = Fields(item, path)
    parsed = ReleaseSignature(
        key=fields.hexadecimal("key", length=32),
        algorithm=fields.text("algorithm", limit=32),
        signature=fields.data("signature", length=64),
    )
    fields.done()
    return parsed


def check_signature(release: bytes, signature: bytes, trusted: Sequence[bytes]) -> Release:
    """The manifest, once a trusted key has signed it: ``trusted`` are DER public keys, one signature is enough.

    Signatures by other keys are passed over; a wrong one that claims to be by a trusted key is not. Raises
    RefusedError (codes ``release.unsigned``, ``release.signature``), ParseError for either file's form, UsageError
    for a trusted key that is neither Ed25519 nor P-256.
    """
    keys = {hashlib.sha256(der).digest(): _trusted(der) for der in trusted}
    found = [item for item in parse_signatures(signature) if item.key in keys]
    if not found:
        known = ", ".join(sorted(key.hex()[:16] for key in keys)) or "none"
        raise _refused("release.unsigned", f"no signature by a trusted release key (trusted: {known})")
    for item in found:
        _verify(keys[item.key], item, signed_message(release))
    parsed = Release.parse(release)
    if parsed.to_bytes() != release:
        raise ParseError("release.json: not in its canonical form")
    return parsed


def _trusted(der: bytes) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("a release key that is not a public key in DER") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return key
    raise UsageError("a release key that is neither Ed25519 nor P-256", hint="give release.pub.pem")


def _verify(
    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey, item: ReleaseSignature, message: bytes
) -> None:
    short = item.key.hex()[:16]
    algorithm = "ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else "ecdsa-p256"
    if item.algorithm != algorithm:
        raise _refused("release.signature", f"the key {short} signs with {algorithm}, not {item.algorithm!r}")
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(item.signature, message)
        else:
            r, s = (int.from_bytes(half, "big") for half in (item.signature[:32], item.signature[32:]))
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        words = f"the signature by the key {short} is not over this manifest"
        raise _refused("release.signature", words) from error


def _refused(code: str, words: str) -> RefusedError:
    return RefusedError(
        "the release manifest is refused",
        (Finding(code=code, message=words),),
        hint="take release.json and release.sig from the same release, and the publisher's release.pub.pem",
    )
