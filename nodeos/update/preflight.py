"""May this release be installed on this machine, and will the machine come back with its state? Pure.

Everything is checked before the first byte is written, and every reason is told. What can't be found out counts as
a no.

A machine passes several states of its Secure Boot variables with a new release, and a power cut can make it start
in each of them. The release must open the state volume in all:

    first     as it stands: the boot loader on the ESP (or the release's own, if that one differs in content)
    blessed   the release's boot loader, perhaps signed anew
    KEK, db   the release's KEK applied, then its db
    dbx       and its dbx
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509

from nodeos.core import layout, secureboot
from nodeos.core.efilists import Update, certificates, parse_lists
from nodeos.core.errors import Finding, UsageError
from nodeos.core.release import Variant
from nodeos.core.signed_data import check_detached
from nodeos.core.statepolicy import ZERO_PCRS
from nodeos.update.candidate import ROOT, SIGNATURE, UKI, VARIABLES, VERITY, Candidate, Image
from nodeos.update.entries import BootEntry, of_version
from nodeos.update.versions import older

# Room that stays on the ESP beside the new UKI: vfat's own tables, and the boot loader's files.
ESP_MARGIN = 16 << 20
SLOT = {ROOT: layout.ROOT_SIZE, VERITY: layout.VERITY_SIZE, SIGNATURE: layout.SIGNATURE_SIZE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The machine. ``variables`` are the values of PK, KEK, db and dbx, ``pcr7`` is of this boot (SHA-256);
    ``policy_keys`` (SHA-256 of DER) are those that the state volume is sealed under. ``esp_free`` is what is free
    on the ESP once the UKI of the other slot is gone, in bytes; ``loader`` is the boot loader there; ``pending``
    the version whose update was not finished yet.
    """

    version: str
    variant: Variant
    entries: Sequence[BootEntry]
    esp_free: int
    secure_boot: bool
    variables: Mapping[str, bytes]
    pcr7: bytes
    loader: Image
    uki_signer: bytes
    policy_keys: Sequence[bytes]
    floor: int
    pending: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why not (``code`` is stable), and what to do about it."""

    code: str
    reason: str
    todo: str

    @property
    def finding(self) -> Finding:
        return Finding(code=self.code, message=f"{self.reason}; {self.todo}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A state in which the machine may start the release."""

    name: str
    variables: Mapping[str, bytes]
    loader: bytes


def preflight(facts: Facts, candidate: Candidate, *, rollback: bool = False) -> tuple[Problem, ...]:
    """Every problem, in the order of the checks; none means that the release may be written."""
    found = [
        *_version(facts, candidate, rollback=rollback),
        *_unfinished(facts),
        *_parts(candidate),
        *_room(facts, candidate),
    ]
    if not facts.secure_boot:
        todo = "switch it on in the firmware's setup"
        found.append(Problem(code="firmware.secure_boot", reason="Secure Boot is off", todo=todo))
        return tuple(found)
    try:
        steps = boot_steps(facts, candidate)
    except UsageError as error:
        todo = "the release's db.auth and dbx.auth must be signed by a key in this machine's KEK or PK"
        return (*found, Problem(code="variables.update", reason=error.message, todo=todo))
    return (
        *found,
        *_loader(facts, candidate),
        *_starts(candidate, steps),
        *_unseals(facts, candidate, steps),
    )


def _version(facts: Facts, candidate: Candidate, *, rollback: bool) -> Iterator[Problem]:
    if candidate.version == facts.version:
        todo = "there is nothing to do"
        yield Problem(code="version.running", reason=f"{facts.version} is the running version", todo=todo)
    elif older(candidate.version, facts.version) and not rollback:
        reason = f"{candidate.version} is older than the running {facts.version}"
        yield Problem(code="version.older", reason=reason, todo="declare a rollback with --rollback")
    try:
        layout.check_version(candidate.version)
    except UsageError as error:
        yield Problem(code="version.form", reason=error.message, todo="release it under another version")
    if candidate.variant != facts.variant:
        reason = f"a {candidate.variant} image, this system is a {facts.variant} image"
        yield Problem(code="variant", reason=reason, todo="take the release of the same variant")
    if candidate.security_version < facts.floor:
        reason = f"its security version {candidate.security_version} is below the TPM's floor {facts.floor}"
        yield Problem(code="floor", reason=reason, todo="no way leads back there: take a newer release")
    running = of_version(facts.entries, facts.version)
    if running is None or running.left is not None:
        reason = f"the running {facts.version} is not blessed: the other slot is still the way back"
        yield Problem(
            code="boot.unblessed", reason=reason, todo="wait until the node is attested and healthy"
        )


def _unfinished(facts: Facts) -> Iterator[Problem]:
    if facts.pending == facts.version:
        reason = (
            f"the update to the running {facts.version} is not finished: its db or dbx may not be applied"
        )
        yield Problem(
            code="update.unfinished", reason=reason, todo="wait for nodeos-bless.service, or see its log"
        )


def _parts(candidate: Candidate) -> Iterator[Problem]:
    todo = "the release is not whole: have it signed anew"
    if candidate.root_hash_problem is not None:
        yield Problem(code="root_hash", reason=candidate.root_hash_problem, todo=todo)
    if candidate.verity_problem is not None:
        yield Problem(code="verity.signature", reason=candidate.verity_problem, todo=todo)


def _room(facts: Facts, candidate: Candidate) -> Iterator[Problem]:
    needed = candidate.sizes[UKI] + ESP_MARGIN
    if facts.esp_free < needed:
        reason = f"{facts.esp_free} bytes are free on the ESP, {needed} are needed"
        yield Problem(code="esp.space", reason=reason, todo="remove what does not belong there")
    for name, size in SLOT.items():
        if candidate.sizes[name] > size:
            reason = f"{name} has {candidate.sizes[name]} bytes, its partition {size}"
            yield Problem(code="slot.space", reason=reason, todo="make the image smaller")


def _loader(facts: Facts, candidate: Candidate) -> Iterator[Problem]:
    """A changed boot loader is written before the reboot, since PCR 4 must be the release's; a boot loader by
    another signer after the blessing, since the way back must still open the state. Both at once is no way."""
    old, new = facts.loader, candidate.loader
    if old.digest != new.digest and old.signer != new.signer:
        yield Problem(
            code="loader.signer",
            reason="the boot loader changes its content and its signer in one release",
            todo="release the new boot loader signed by the old key first",
        )


def _starts(candidate: Candidate, steps: Sequence[Step]) -> Iterator[Problem]:
    uki, loader = candidate.uki, candidate.loader.digest
    images = ((UKI, lambda step: (uki.signer, uki.digest)), ("boot.efi", lambda step: (step.loader, loader)))
    for name, image in images:
        for step in steps:
            why = secureboot.lets_start(step.variables, *image(step))
            if why is not None:
                reason = f"firmware would not start {name} (state: {step.name}): {why}"
                yield Problem(code="signer", reason=reason, todo="sign the release with a key in db")
                break


def _unseals(facts: Facts, candidate: Candidate, steps: Sequence[Step]) -> Iterator[Problem]:
    usable = [
        item
        for item in candidate.policies
        if item.key in facts.policy_keys
        and item.version >= facts.floor
        and item.pcrs[11] == candidate.pcr11
        and not any(any(item.pcrs[pcr]) for pcr in ZERO_PCRS)
    ]
    if not usable:
        reason = "no policy in it is signed by a key that the state volume is sealed under"
        todo = "sign the release with the PCR key of the running one too"
        yield Problem(code="pcr_key", reason=reason, todo=todo)
        return
    values = {item.pcrs[7] for item in usable}
    told: set[bytes | None] = set()
    for step, value in zip(steps, _predicted(facts, candidate, steps), strict=True):
        if value in told:
            continue
        told.add(value)
        if value is None:
            reason = f"PCR 7 can't be told in advance (state: {step.name}): this firmware measures more"
            todo = "install a release that doesn't change the signer, db or dbx"
            yield Problem(code="pcr7.unknown", reason=reason, todo=todo)
        elif value not in values:
            reason = (
                f"no signed policy opens the state volume with PCR 7 = {value.hex()} (state: {step.name})"
            )
            todo = "sign the release for this value, see `nodeos image sign --pcr7`"
            yield Problem(code="pcr7.unsigned", reason=reason, todo=todo)


def _predicted(facts: Facts, candidate: Candidate, steps: Sequence[Step]) -> Iterator[bytes | None]:
    """PCR 7 in each state; None where it can't be told. If the formula doesn't give today's value, then only a
    state that measures the same as today is known."""
    today = (dict(facts.variables), _authorities(facts.loader.signer, facts.uki_signer))
    trusted = _pcr7(*today) == facts.pcr7
    for step in steps:
        state = (dict(step.variables), _authorities(step.loader, candidate.uki.signer))
        if state == today:
            yield facts.pcr7
        else:
            yield _pcr7(*state) if trusted else None


def _authorities(loader: bytes, uki: bytes) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys((loader, uki)))


def _pcr7(variables: Mapping[str, bytes], authorities: Sequence[bytes]) -> bytes | None:
    try:
        return secureboot.pcr7(variables, authorities)
    except UsageError:
        return None


def boot_steps(facts: Facts, candidate: Candidate) -> tuple[Step, ...]:
    """The states in their order. Raises UsageError for an update of a variable that this firmware won't take."""
    same = facts.loader.digest == candidate.loader.digest
    first = facts.loader if same else candidate.loader
    variables = dict(facts.variables)
    steps = [
        Step(name="first", variables=dict(variables), loader=first.signer),
        Step(name="blessed", variables=dict(variables), loader=candidate.loader.signer),
    ]
    for name in VARIABLES:
        if name in candidate.updates:
            update = Update.parse(candidate.updates[name])
            append = update_appends(name, candidate.updates[name], variables)
            variables[name] = secureboot.updated(variables.get(name, b""), update.data, append=append)
            steps.append(Step(name=name, variables=dict(variables), loader=candidate.loader.signer))
    return tuple(steps)


def update_appends(name: str, auth: bytes, variables: Mapping[str, bytes]) -> bool:
    """True if the .auth file was signed to be appended, False if to be set.

    Raises UsageError if no certificate that may change the variable signed it: of PK for KEK, of KEK or PK for db
    and dbx (UEFI 2.10, section 8.2.2).
    """
    update = Update.parse(auth)
    signers = parse_lists(variables.get("PK", b""))
    if name != "KEK":
        signers += parse_lists(variables.get("KEK", b""))
    for der in certificates(signers):
        for append in (False, True):
            try:
                message = secureboot.update_message(name, update, append=append)
                check_detached(update.signature, x509.load_der_x509_certificate(der), message)
            except (UsageError, ValueError):
                continue
            return append
    raise UsageError(f"{name}.auth is not signed by a key that may change {name}")
