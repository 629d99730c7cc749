"""Puts detached signatures and an unsigned build together, and checks each signature as it goes in.

``compose`` is the one place that says what a release consists of: signing uses it for what the release key signs,
attaching for what is written. It needs no key, reads no clock, and gives the same bytes each time. The order is
that of dependence: the policy signatures are a section of the unified kernel image, its Authenticode signature is
over them, the manifest over everything.

The folder ``signatures/``: see NAMES. Public halves lie beside the signatures, so that they can be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsm.keys import SignatureError, parse_publics
from hsm.keys import verify as verify_signature
from image import authenticode, installer, measure, pe, release_dir, secureboot, verity
from image.unsigned import BOOTLOADER, UKI, Unsigned
from nodeos.core import statepolicy
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import (
    AcceptedPcr7,
    Artefact,
    BootPhase,
    Release,
    ReleaseKeys,
    parse_accepted,
)
from nodeos.core.statepolicy import PolicySignature, PolicySignatures, policy_pcrs
from nodeos.core.wire import ParseError, canonical_json, parse_json

DB_CERTIFICATE, VERITY_CERTIFICATE = "db.crt", "verity.crt"
PCR_KEYS, RELEASE_KEY = "pcr.pub.pem", "release.pub.pem"
ACCEPTED, POLICY = "accepted-pcr7.json", "pcrsig.json"
UKI_SIGNATURE, BOOTLOADER_SIGNATURE = f"{UKI}.p7", f"{BOOTLOADER}.p7"
ROOT_SIGNATURE = "verity-sig.p7"
INSTALLER_SIGNATURE = f"{installer.NAME}.p7"
NAMES = (
    DB_CERTIFICATE, VERITY_CERTIFICATE, PCR_KEYS, RELEASE_KEY, ACCEPTED, POLICY, UKI_SIGNATURE,
    BOOTLOADER_SIGNATURE, ROOT_SIGNATURE, *release_dir.AUTH_FILES, release_dir.SIGNATURE,
    INSTALLER_SIGNATURE,
)  # fmt: skip
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A release: its manifest, and the files that are not the build's own, by name."""

    release: Release
    files: Mapping[str, bytes]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the file that is checked before the refusal."""
    try:
        yield
    except (UsageError, SignatureError) as error:
        words = error.message.removeprefix(f"{name}: ")
        raise UsageError(f"{release_dir.SIGNATURES}/{name}: {words}", hint=error.hint) from error


def check_build(unsigned: Unsigned) -> measure.Uki:
    """Hold the parts of a build to each other: nothing is signed that contradicts its manifest. Raises UsageError.

    Files and manifest are known to agree (``Unsigned.read``).
    """
    build = unsigned.build
    uki = measure.Uki.read(unsigned.uki)
    if uki.command_line != build.kernel_command_line:
        raise UsageError(f"{unsigned.uki}: its command line is not the one in the build's manifest")
    if uki.root_hash != build.root_hash:
        raise UsageError(f"{unsigned.uki}: its root hash is not the one in the build's manifest")
    if ".pcrsig" in uki.sections:
        raise UsageError(f"{unsigned.uki} carries policy signatures already", hint="build it again")
    for path in (unsigned.uki, unsigned.bootloader):
        if pe.signatures(path.read_bytes(), str(path)):
            raise UsageError(f"{path} is signed already", hint="build it again")
    if not 1 <= build.rollback_floor <= build.security_version <= statepolicy.HIGHEST_VERSION:
        raise UsageError(
            f"security version {build.security_version} with rollback floor {build.rollback_floor}: they are"
            f" between 1 and {statepolicy.HIGHEST_VERSION}, the floor not above the version"
        )
    verity.check(unsigned.root, unsigned.verity, build.root_hash)
    return uki


def policy_key(uki: measure.Uki) -> bytes:
    """The DER public key that the state of machines is sealed to by this image. Raises UsageError."""
    section = uki.sections.get(".pcrpkey")
    if section is None:
        raise UsageError("the unified kernel image carries no PCR policy key", hint="build it again")
    keys = parse_publics(
        section.rstrip(b"\0"), ".pcrpkey", hint="build it again with `nodeos image build --keys`"
    )
    if len(keys) != 1:
        raise UsageError(f"the unified kernel image carries {len(keys)} PCR policy keys, not one")
    return keys[0]


def policies(
    accepted: Sequence[AcceptedPcr7], pcr11: bytes, version: int, keys: Sequence[bytes]
) -> list[tuple[bytes, dict[int, bytes], int]]:
    """What is signed, in its order: for each DER key and PCR 7, the key, the PCRs and the security version.

    ``pcr11`` is the SHA-256 value in the initrd.
    """
    return [(key, policy_pcrs(item.sha256, pcr11), version) for key in keys for item in accepted]


def check_policy(
    data: bytes, accepted: Sequence[AcceptedPcr7], pcr11: bytes, version: int, keys: Sequence[bytes]
) -> None:
    """Hold policy signatures to what was asked for: every one is there, and no other. Raises UsageError."""
    found = PolicySignatures.parse(data, POLICY).signatures
    wanted = policies(accepted, pcr11, version, keys)
    if PolicySignatures(signatures=found).to_bytes() != data:
        raise UsageError("not in its canonical form")
    for item, (key, pcrs, security_version) in zip(found, wanted, strict=False):
        if item.key != hashlib.sha256(key).digest():
            raise UsageError("a signature by another key than was asked for")
        if dict(item.pcrs) != pcrs or item.version != security_version:
            raise UsageError(
                "a signed policy with other PCRs or another security version than this release's"
            )
        message = statepolicy.signed_message(statepolicy.approved_policy(pcrs, security_version))
        try:
            verify_signature(key, message, item.signature)
        except SignatureError as error:
            raise UsageError(f"a policy signature that does not hold for PCR 7 {pcrs[7].hex()}") from error
    if len(found) != len(wanted):
        raise UsageError(f"{len(found)} policy signatures, expected {len(wanted)}")


def key_id(der: bytes) -> bytes:
    """How signatures and manifests name a public key."""
    return hashlib.sha256(der).digest()


def policy_signature(
    key: bytes, pcrs: Mapping[int, bytes], version: int, signature: bytes
) -> PolicySignature:
    return PolicySignature(key=hashlib.sha256(key).digest(), pcrs=pcrs, version=version, signature=signature)


def accepted_to_bytes(accepted: Sequence[AcceptedPcr7]) -> bytes:
    """The file ``accepted-pcr7.json``, canonical."""
    values = [{"name": a.name, "sha256": a.sha256.hex(), "sha384": a.sha384.hex()} for a in accepted]
    return canonical_json({"version": 1, "accepted": values})


def parse_accepted_list(data: bytes, what: str = ACCEPTED) -> list[AcceptedPcr7]:
    """Raises ParseError, also if there is none, and for one value twice."""
    fields = parse_json(data, what)
    fields.integer("version", low=1, high=1)
    accepted = fields.list_of("accepted", parse_accepted)
    fields.done()
    if not accepted or len({item.sha256 for item in accepted}) != len(accepted):
        raise ParseError(f"{what}: no value, or one that stands there twice")
    return list(accepted)


def parse_certificate(data: bytes) -> x509.Certificate:
    """A certificate in PEM. Raises UsageError."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise UsageError("not a certificate in PEM") from error


def enrolled(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The .auth files among ``files``, by the variable's name."""
    return {name: files[f"{name}.auth"] for name in release_dir.VARIABLES if f"{name}.auth" in files}


def with_policy(unsigned_uki: bytes, policy: bytes) -> bytes:
    """The image that the Authenticode signature is over."""
    return pe.add_section(unsigned_uki, ".pcrsig", policy, UKI)


def compose(unsigned: Unsigned, files: Mapping[str, bytes]) -> Composed:
    """The release that a build and the detached signatures ``files`` (by name; ``release.sig`` isn't needed) make.

    Raises UsageError with the name of the signature that is missing or wrong.
    """
    later = {release_dir.SIGNATURE, INSTALLER_SIGNATURE}
    missing = sorted(set(NAMES) - set(release_dir.OPTIONAL) - later - set(files))
    foreign = sorted(set(files) - set(NAMES))
    if missing or foreign:
        words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"holds {', '.join(foreign)}"] * bool(
            foreign
        )
        raise UsageError(f"{release_dir.SIGNATURES}: it {' and '.join(words)}")
    uki = check_build(unsigned)
    build = unsigned.build
    with _naming(DB_CERTIFICATE):
        db = parse_certificate(files[DB_CERTIFICATE])
    with _naming(VERITY_CERTIFICATE):
        verity_certificate = parse_certificate(files[VERITY_CERTIFICATE])
    with _naming(PCR_KEYS):
        pcr_keys = parse_publics(files[PCR_KEYS], PCR_KEYS, hint="sign again")
        if policy_key(uki) != pcr_keys[-1]:
            raise UsageError("the image carries another PCR policy key", hint="build again with these keys")
    with _naming(RELEASE_KEY):
        (release_key,) = parse_publics(files[RELEASE_KEY], RELEASE_KEY, hint="sign again")
    with _naming(ACCEPTED):
        accepted = parse_accepted_list(files[ACCEPTED])
    lists = _variables(files, db, build.source_date_epoch)
    pcr11 = measure.pcr11(uki)[BootPhase.ENTER_INITRD]
    with _naming(POLICY):
        check_policy(files[POLICY], accepted, pcr11, build.security_version, pcr_keys)
    images = {
        UKI: with_policy(uki.data, files[POLICY]),
        BOOTLOADER: unsigned.bootloader.read_bytes(),
    }
    for name, image in images.items():
        with _naming(f"{name}.p7"):
            authenticode.verify_detached(files[f"{name}.p7"], pe.authenticode(image, name), db)
            images[name] = pe.attach_signature(image, files[f"{name}.p7"], name)
    with _naming(ROOT_SIGNATURE):
        verity.check_signature(files[ROOT_SIGNATURE], build.root_hash, verity_certificate)
    signed_uki = measure.Uki.parse(images[UKI], UKI)
    measure.check_kernel_signer(signed_uki, files["db.auth"])
    made = {
        **images,
        release_dir.VERITY_SIGNATURE: verity.RootHashSignature(
            root_hash=build.root_hash,
            fingerprint=verity.fingerprint(verity_certificate),
            signature=files[ROOT_SIGNATURE],
        ).to_bytes(),
        **{name: files[name] for name in release_dir.AUTH_FILES if name in files},
    }
    predictions = measure.predict(images[BOOTLOADER], signed_uki, lists, db)
    with _naming(ACCEPTED):
        if predictions.pcrs["sha256"][7] not in {item.sha256 for item in accepted}:
            raise UsageError("PCR 7 of the release's own variables is not among the accepted ones")
    release = Release(
        version=build.release,
        variant=build.variant,
        root_hash=build.root_hash,
        kernel_command_line=build.kernel_command_line,
        artefacts={**build.artefacts, **{name: _describe(data) for name, data in made.items()}},
        security_version=build.security_version,
        rollback_floor=build.rollback_floor,
        pcrs=predictions.pcrs,
        pcr11=predictions.pcr11,
        secure_boot_off=predictions.secure_boot_off,
        accepted_pcr7=tuple(accepted),
        keys=ReleaseKeys(
            db=hashlib.sha256(db.public_bytes(Encoding.DER)).digest(),
            pcr=tuple(hashlib.sha256(key).digest() for key in pcr_keys),
            release=hashlib.sha256(release_key).digest(),
            verity=verity.fingerprint(verity_certificate),
        ),
        source_commit=build.source_commit,
        source_date_epoch=build.source_date_epoch,
    )
    return Composed(release=release, files=made)


def signed_installer(parts: installer.Parts, files: Mapping[str, bytes]) -> bytes:
    """The installer of a finished release (see ``installer.Parts``), with its signature from ``files``.

    It carries the manifest and its signature, so it comes after them and is in no manifest. Raises UsageError.
    """
    if INSTALLER_SIGNATURE not in files:
        raise UsageError(f"{release_dir.SIGNATURES}: it lacks {INSTALLER_SIGNATURE}")
    made = installer.make_uki(parts)
    installer.check(made)
    with _naming(INSTALLER_SIGNATURE):
        db = parse_certificate(files[DB_CERTIFICATE])
        authenticode.verify_detached(files[INSTALLER_SIGNATURE], pe.authenticode(made, installer.NAME), db)
    return pe.attach_signature(made, files[INSTALLER_SIGNATURE], installer.NAME)


def _variables(files: Mapping[str, bytes], db: x509.Certificate, epoch: int) -> dict[str, bytes]:
    try:
        return secureboot.check(enrolled(files), db, epoch)
    except UsageError as error:
        raise UsageError(f"{release_dir.SIGNATURES}/{error.message}", hint=error.hint) from error


def _describe(data: bytes) -> Artefact:
    return Artefact(size=len(data), sha256=hashlib.sha256(data).digest())


def read_signatures(directory: Path) -> dict[str, bytes]:
    """The files of a folder of detached signatures. Raises UsageError for anything else in it."""
    if not directory.is_dir():
        raise UsageError(f"{directory} is not there", hint="make signatures with `nodeos image sign`")
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name not in NAMES or not path.is_file() or path.is_symlink():
            raise UsageError(f"{path} is no signature of a release", hint="take it away")
        found[path.name] = read_file(path, "signature", limit=_LIMIT)
    return found
