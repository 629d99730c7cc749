"""Signs a release: makes detached signatures of an unsigned build, and attaches them.

``sign`` needs the private keys, ``attach`` none: the one who holds the keys can hand over ``signatures/`` alone,
and everybody who builds the same commit gets the same release with them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hsm.keys import parse_publics
from image import assemble, authenticode, installer, measure, release_dir, secureboot, verity
from image.assemble import compose
from image.keys import KeySet, Pin
from image.packages import require_locked
from image.release_dir import ReleaseDir
from image.unsigned import BOOTLOADER, UKI, Unsigned
from nodeos.core import statepolicy
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.release import (
    AcceptedPcr7,
    BootPhase,
    ReleaseSignature,
    check_signature,
    parse_accepted,
    signatures_to_bytes,
    signed_message,
)
from nodeos.core.statepolicy import PolicySignatures
from nodeos.core.wire import ParseError


def sign(
    unsigned: Unsigned,
    keys: KeySet,
    out: Path,
    *,
    pin: Pin,
    pcr7: Sequence[AcceptedPcr7] = (),
    allow_drift: bool = False,
) -> ReleaseDir:
    """Make the release ``out`` of a build, with ``out/signatures/``.

    A build of other packages than the locked ones raises RefusedError, unless ``allow_drift``.

    ``pcr7`` are further values of PCR 7 (see ``read_pcr7``). An earlier release in ``out`` is replaced once the
    new one is whole. Raises UsageError; nothing is left of a release that could not be signed.
    """
    if not allow_drift:
        require_locked(unsigned.packages.read_bytes())
    with _fresh(out) as fresh:
        signatures = fresh / release_dir.SIGNATURES
        signatures.mkdir(parents=True)
        for name, data in make_signatures(unsigned, keys, pin=pin, pcr7=pcr7).items():
            write_atomic(signatures / name, data)
        _write(unsigned, signatures, fresh)
    return ReleaseDir.read(out)


def attach(unsigned: Unsigned, signatures: Path, out: Path) -> ReleaseDir:
    """Make the release ``out`` of a build and detached signatures: the same bytes each time.

    Raises UsageError that names the signature which is missing, or is not of this build.
    """
    with _fresh(out) as fresh:
        target = fresh / release_dir.SIGNATURES
        target.mkdir(parents=True)
        for name, data in assemble.read_signatures(signatures).items():
            write_atomic(target / name, data)
        _write(unsigned, target, fresh)
    return ReleaseDir.read(out)


@contextmanager
def _fresh(out: Path) -> Iterator[Path]:
    """A folder that takes the place of ``out`` when the block has ended."""
    if out.exists() and any(out.iterdir()) and not (out / release_dir.MANIFEST).is_file():
        raise UsageError(f"{out} holds something else than a release", hint="name another folder with --out")
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write(unsigned: Unsigned, signatures: Path, fresh: Path) -> None:
    files = assemble.read_signatures(signatures)
    composed = compose(unsigned, files)
    document = composed.release.to_bytes()
    signature = files.get(release_dir.SIGNATURE)
    if signature is None:
        raise UsageError(f"{release_dir.SIGNATURES}: it lacks {release_dir.SIGNATURE}")
    hint = "the signatures are of another build"
    trusted = parse_publics(files[assemble.RELEASE_KEY], assemble.RELEASE_KEY, hint=hint)
    check_signature(document, signature, trusted)
    for name in unsigned.build.artefacts:
        if name not in composed.files:
            _copy(unsigned.directory / name, fresh / name)
    for name, data in composed.files.items():
        write_atomic(fresh / name, data)
    write_atomic(fresh / release_dir.MANIFEST, document)
    write_atomic(fresh / release_dir.SIGNATURE, signature)
    write_atomic(fresh / installer.NAME, assemble.signed_installer(installer.Parts.read(fresh), files))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as data, target.open("wb") as copy:
        shutil.copyfileobj(data, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def make_signatures(
    unsigned: Unsigned, keys: KeySet, *, pin: Pin, pcr7: Sequence[AcceptedPcr7] = ()
) -> dict[str, bytes]:
    """Every detached signature of a build, by the name of its file in ``signatures/``.

    The keys in use sign; those of a rotation under way sign policies only. Raises UsageError if the keys are for
    another variant, or if the image carries another policy key than the newest.
    """
    build = unsigned.build
    keys.require(build.variant)
    uki = assemble.check_build(unsigned)
    following = keys.next()
    policy_keys = [keys, following] if following.has("pcr") else [keys]
    if assemble.policy_key(uki) != policy_keys[-1].public("pcr"):
        raise UsageError(
            f"{unsigned.uki}: the PCR policy key inside is not {policy_keys[-1].public_file('pcr')}",
            hint="the image was built with other keys, or before they were rotated: build it again with --keys",
        )
    states = secureboot.states(keys)
    retired = keys.retired("db")
    before = retired[-1].certificate("db") if retired else None
    accepted = secureboot.accepted(states, keys.certificate("db"), before)
    known = {item.sha256: item.name for item in accepted}
    for item in pcr7:
        if item.sha256 in known:
            raise UsageError(
                f"PCR 7 {item.sha256.hex()} ({item.name}) is signed for already: {known[item.sha256]}",
                hint="take it out of the list of further values",
            )
        known[item.sha256] = item.name
        accepted.append(item)
    files = {
        assemble.DB_CERTIFICATE: read_file(keys.public_file("db"), "certificate"),
        assemble.VERITY_CERTIFICATE: read_file(keys.public_file("verity"), "certificate"),
        assemble.RELEASE_KEY: read_file(keys.public_file("release"), "release key"),
        assemble.PCR_KEYS: b"".join(read_file(item.public_file("pcr"), "PCR key") for item in policy_keys),
        assemble.ACCEPTED: assemble.accepted_to_bytes(accepted),
    }
    measured = measure.pcr11(uki)[BootPhase.ENTER_INITRD]
    files[assemble.POLICY] = _policies(policy_keys, accepted, measured, build.security_version, pin)
    for name, lists in secureboot.sign(states[0], keys, build.source_date_epoch, pin).items():
        files[f"{name}.auth"] = lists
    images = {
        UKI: assemble.with_policy(uki.data, files[assemble.POLICY]),
        BOOTLOADER: unsigned.bootloader.read_bytes(),
    }
    with keys.signer("db", pin) as signer:
        for name, image in images.items():
            files[f"{name}.p7"] = authenticode.sign(image, signer, keys.certificate("db"), name)
    with keys.signer("verity", pin) as signer:
        files[assemble.ROOT_SIGNATURE] = verity.sign(build.root_hash, signer, keys.certificate("verity"))
    composed = compose(unsigned, files)
    document = composed.release.to_bytes()
    with keys.signer("release", pin) as signer:
        signature = ReleaseSignature(
            key=assemble.key_id(signer.public_key),
            algorithm=str(signer.algorithm),
            signature=signer.sign(signed_message(document)),
        )
    files[release_dir.SIGNATURE] = signatures_to_bytes([signature])
    whole = {name: (unsigned.directory / name).read_bytes() for name in build.artefacts}
    whole |= composed.files
    whole |= {release_dir.MANIFEST: document, release_dir.SIGNATURE: files[release_dir.SIGNATURE]}
    parts = installer.Parts(uki=whole[UKI], files=whole, source_date_epoch=build.source_date_epoch)
    made = installer.make_uki(parts)
    with keys.signer("db", pin) as signer:
        files[assemble.INSTALLER_SIGNATURE] = authenticode.sign(
            made, signer, keys.certificate("db"), installer.NAME
        )
    return files


def _policies(
    sets: Sequence[KeySet], accepted: Sequence[AcceptedPcr7], pcr11: bytes, version: int, pin: Pin
) -> bytes:
    made = []
    for keys in sets:
        with keys.signer("pcr", pin) as signer:
            for key, pcrs, _ in assemble.policies(accepted, pcr11, version, [signer.public_key]):
                policy = statepolicy.approved_policy(pcrs, version)
                signature = signer.sign(statepolicy.signed_message(policy))
                made.append(assemble.policy_signature(key, pcrs, version, signature))
    return PolicySignatures(signatures=tuple(made)).to_bytes()


def read_pcr7(path: Path) -> list[AcceptedPcr7]:
    """Further values of PCR 7, of firmware that measures more than the standard: a JSON list of objects with name,
    sha256 and sha384. Raises ParseError."""
    data = read_file(path, "PCR 7 values", limit=1 << 20)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, list):
        raise ParseError(f"{path}: expected a list")
    return [parse_accepted(item, f"{path}[{index}]") for index, item in enumerate(values)]
