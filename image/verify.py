"""Checks a downloaded release completely: without building it, without a TPM, with the publisher's key alone.

In three steps, and each tells everything that it finds: the manifest's signature; the folder, which holds the
manifest's files as they are described and nothing else; then what the files say. Of each file every byte is
covered: by the manifest, or (``signatures/``) by being what the manifest's files were made with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsm.keys import parse_publics
from image import assemble, authenticode, installer, measure, pe, release_dir, secureboot, unsigned, verity
from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.release import BootPhase, Release, check_signature

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Findings:
    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, message: str) -> None:
        self.found.append(Finding(code=code, message=message))

    @contextmanager
    def check(self, code: str) -> Iterator[None]:
        """What the block refuses becomes a finding with this code."""
        try:
            yield
        except UsageError as error:
            self.add(code, error.message)

    def refuse(self) -> None:
        """Raises RefusedError if something was found."""
        if self.found:
            raise RefusedError(
                "the release is refused",
                tuple(self.found),
                hint="get the whole release again; if that doesn't help, don't use it and tell its publisher",
            )


def verify(directory: Path, release_keys: Sequence[bytes], progress: Progress = lambda _: None) -> Release:
    """The manifest of a release that holds in every part; ``release_keys`` are the publisher's, in DER.

    Raises RefusedError with every finding, and UsageError if there is no release or its manifest can't be read.
    """
    manifest = read_file(directory / release_dir.MANIFEST, "the release manifest", limit=1 << 20)
    signature = read_file(directory / release_dir.SIGNATURE, "the release signature", limit=1 << 16)
    release = check_signature(manifest, signature, release_keys)
    progress("size and hash of every file")
    findings = _Findings()
    check_files(directory, release, findings)
    findings.refuse()
    progress("signatures, hash tree and measurements")
    check_content(directory, release, findings)
    findings.refuse()
    return release


def check_files(directory: Path, release: Release, findings: _Findings) -> None:
    """The folder holds the artefacts as described, the manifest, ``signatures/`` with its files, nothing else."""
    required = set(release_dir.ARTEFACTS) - set(release_dir.OPTIONAL)
    for name in sorted(required - release.artefacts.keys()):
        findings.add("artefact.undescribed", f"the manifest describes no {name}")
    for name in sorted(release.artefacts.keys() - set(release_dir.ARTEFACTS)):
        findings.add("artefact.unknown", f"the manifest describes {name!r}, which is no part of a release")
    known = release.artefacts.keys() & set(release_dir.ARTEFACTS)
    if not (directory / installer.NAME).is_file():
        findings.add("artefact.missing", f"{installer.NAME} is not there")
    allowed = {*known, installer.NAME, release_dir.MANIFEST, release_dir.SIGNATURE, release_dir.SIGNATURES}
    for path in sorted(directory.iterdir()):
        if path.name not in allowed:
            findings.add("file.foreign", f"{path.name} is no part of this release")
        elif path.is_symlink() or path.is_file() == (path.name == release_dir.SIGNATURES):
            kind = "folder" if path.name == release_dir.SIGNATURES else "plain file"
            findings.add("file.kind", f"{path.name} is not a {kind}")
    for name in sorted(known):
        path, expected = directory / name, release.artefacts[name]
        if not path.is_file():
            findings.add("artefact.missing", f"{name} is not there")
            continue
        found = unsigned.describe(path)
        if found.size != expected.size:
            findings.add("artefact.size", f"{name} has {found.size} bytes, expected {expected.size}")
        elif found.sha256 != expected.sha256:
            findings.add(
                "artefact.sha256",
                f"{name} has SHA-256 {found.sha256.hex()}, expected {expected.sha256.hex()}",
            )


def check_content(directory: Path, release: Release, findings: _Findings) -> None:
    """The files are signed by the manifest's keys, belong together, and give the manifest's measurements."""
    try:
        detached = assemble.read_signatures(directory / release_dir.SIGNATURES)
        missing = set(assemble.NAMES) - set(release_dir.OPTIONAL) - detached.keys()
        if missing:
            raise UsageError(f"{release_dir.SIGNATURES} lacks {', '.join(sorted(missing))}")
        db = assemble.parse_certificate(detached[assemble.DB_CERTIFICATE])
        verity_certificate = assemble.parse_certificate(detached[assemble.VERITY_CERTIFICATE])
        hint = "the publisher signed another release with them"
        pcr_keys = parse_publics(detached[assemble.PCR_KEYS], assemble.PCR_KEYS, hint=hint)
        release_keys = parse_publics(detached[assemble.RELEASE_KEY], assemble.RELEASE_KEY, hint=hint)
        uki = measure.Uki.read(directory / unsigned.UKI)
    except UsageError as error:
        # Without these nothing else can be checked.
        findings.add("signatures.unreadable", error.message)
        return
    found_keys = {
        "db": [hashlib.sha256(db.public_bytes(Encoding.DER)).digest()] == [release.keys.db],
        "verity": verity.fingerprint(verity_certificate) == release.keys.verity,
        "pcr": tuple(map(assemble.key_id, pcr_keys)) == release.keys.pcr,
        "release": [assemble.key_id(key) for key in release_keys] == [release.keys.release],
    }
    for name, same in found_keys.items():
        if not same:
            findings.add(
                f"keys.{name}", f"{release_dir.SIGNATURES} holds another {name} key than the manifest names"
            )
    bootloader = read_file(directory / unsigned.BOOTLOADER, "the boot loader")
    files = {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name in release_dir.AUTH_FILES
    }
    with findings.check("signature.bootloader"):
        authenticode.verify(bootloader, db, unsigned.BOOTLOADER)
    with findings.check("signature.uki"):
        authenticode.verify(uki.data, db, unsigned.UKI)
    with findings.check("kernel.signed"):
        measure.check_kernel_signer(uki, files["db.auth"])
    _check_root(directory, release, uki, verity_certificate, findings)
    _check_policy(release, uki, pcr_keys, findings)
    _check_measurements(release, bootloader, uki, files, db=db, findings=findings)
    _check_detached(directory, release, uki, bootloader, files=files, detached=detached, findings=findings)
    if not findings.found:
        # It is made from all that was checked so far, so it is compared last; no manifest describes it, since it
        # carries the manifest.
        with findings.check("installer"):
            made = assemble.signed_installer(installer.Parts.read(directory), detached)
            if made != (directory / installer.NAME).read_bytes():
                raise UsageError(f"{installer.NAME} is not the installer of this release")


def _check_root(
    directory: Path, release: Release, uki: measure.Uki, certificate: x509.Certificate, findings: _Findings
) -> None:
    with findings.check("root.hash"):
        verity.check(directory / unsigned.ROOT, directory / unsigned.VERITY, release.root_hash)
    if uki.command_line != release.kernel_command_line:
        findings.add("uki.command_line", "the kernel command line is not the one in the manifest")
    with findings.check("uki.root_hash"):
        if uki.root_hash != release.root_hash:
            raise UsageError("the root hash on the kernel command line is not the one in the manifest")
    with findings.check("verity.signature"):
        name = release_dir.VERITY_SIGNATURE
        data = (directory / name).read_bytes()
        parsed = verity.RootHashSignature.parse(data, name)
        if parsed.root_hash != release.root_hash or parsed.fingerprint != release.keys.verity:
            raise UsageError(f"{name} is for another root hash or by another certificate")
        verity.check_signature(parsed.signature, release.root_hash, certificate)


def _check_policy(release: Release, uki: measure.Uki, keys: Sequence[bytes], findings: _Findings) -> None:
    with findings.check("policy.key"):
        if assemble.policy_key(uki) != keys[-1]:
            raise UsageError("the image seals to another key than the one that its policies are signed with")
    with findings.check("policy.signatures"):
        section = uki.sections.get(".pcrsig")
        if section is None:
            raise UsageError(f"{unsigned.UKI} carries no policy signatures")
        pcr11 = measure.pcr11(uki)[BootPhase.ENTER_INITRD]
        assemble.check_policy(section, release.accepted_pcr7, pcr11, release.security_version, keys)


def _check_measurements(
    release: Release, bootloader: bytes, uki: measure.Uki, files: dict[str, bytes], *, db: x509.Certificate,
    findings: _Findings,
) -> None:  # fmt: skip
    try:
        lists = secureboot.check(assemble.enrolled(files), db, release.source_date_epoch)
    except UsageError as error:
        findings.add("secure_boot.variables", error.message)
        return
    with findings.check("prediction.unreadable"):
        predicted = measure.predict(bootloader, uki, lists, db)
        for name in ("pcrs", "pcr11", "secure_boot_off"):
            stated, computed = getattr(release, name), getattr(predicted, name)
            wrong = [f"{bank} {key}" for bank in computed for key in computed[bank]
                     if stated[bank][key] != computed[bank][key]]  # fmt: skip
            if wrong:
                findings.add(f"prediction.{name}", f"the manifest has other values for {', '.join(wrong)}")
        own = (predicted.pcrs["sha256"][7], predicted.pcrs["sha384"][7])
        if own not in {(item.sha256, item.sha384) for item in release.accepted_pcr7}:
            findings.add("prediction.accepted", "PCR 7 of the release's own variables is not an accepted one")


def _check_detached(
    directory: Path, release: Release, uki: measure.Uki, bootloader: bytes, *, files: dict[str, bytes],
    detached: dict[str, bytes], findings: _Findings,
) -> None:  # fmt: skip
    """``signatures/`` holds what is attached: no byte of the folder is left unchecked."""
    expected = dict(files)
    expected[release_dir.SIGNATURE] = (directory / release_dir.SIGNATURE).read_bytes()
    expected[assemble.POLICY] = uki.sections.get(".pcrsig", b"")
    expected[assemble.ACCEPTED] = assemble.accepted_to_bytes(release.accepted_pcr7)
    for name, image in ((assemble.UKI_SIGNATURE, uki.data), (assemble.BOOTLOADER_SIGNATURE, bootloader)):
        with findings.check("signatures.differ"):
            expected[name] = b"".join(pe.signatures(image, name))
    with findings.check("signatures.differ"):
        data = (directory / release_dir.VERITY_SIGNATURE).read_bytes()
        expected[assemble.ROOT_SIGNATURE] = verity.RootHashSignature.parse(data).signature
    for name in sorted(expected.keys() | detached.keys() & set(release_dir.AUTH_FILES)):
        if detached.get(name) != expected.get(name):
            findings.add(
                "signatures.differ", f"{release_dir.SIGNATURES}/{name} is not what is in the release"
            )
