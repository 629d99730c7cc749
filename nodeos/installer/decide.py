"""The installer's decisions: which hardware profile, which disk. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodeos.core.errors import Finding, RefusedError
from nodeos.flash.disks import Candidate, Kind
from nodeos.preflight.checks import Check, Status

# The Internet Computer's node reward types and the generation of machine that each is paid for.
PROFILES = {
    "type0": "gen1",
    "type1": "gen1",
    "type1.1": "gen1",
    "type2": "gen2",
    "type3": "gen2",
    "type3.1": "gen2",
    "dev": "dev",
}
BLANK, DATA, UNFINISHED = "blank", "data", "unfinished"
STATE_LABEL = "nodeos-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A disk with what speaks against it, and what is on it: BLANK, DATA or UNFINISHED (our own, cut off).

    ``state`` is None if the disk was not looked into, because it is refused anyway.
    """

    candidate: Candidate
    state: str | None

    @property
    def path(self) -> str:
        return self.candidate.device.path


def profile_for(reward_type: str) -> str:
    """The hardware profile of a node reward type. Raises RefusedError for one that is not known."""
    if reward_type not in PROFILES:
        finding = Finding(
            code="profile.unknown",
            message=f"no hardware profile goes with the node reward type {reward_type!r}"
            f" (known: {', '.join(PROFILES)})",
        )
        raise RefusedError(
            "what this machine must have can't be told",
            (finding,),
            hint="make the medium again with another --reward-type",
        )
    return PROFILES[reward_type]


def check_preflight(profile: str, checks: Sequence[Check]) -> None:
    """Raises RefusedError with every check that failed; warnings pass."""
    failed = [item for item in checks if item.status is Status.FAIL]
    if failed:
        findings = tuple(
            Finding(
                code=f"preflight.{item.code}",
                message=f"found {item.found}; needed: {item.needed}. {item.advice or ''}".strip(),
            )
            for item in failed
        )
        raise RefusedError(
            f"this machine is not fit for the profile {profile}; nothing was written",
            findings,
            hint="mend what is listed and start the installer again",
        )


def choose(surveyed: Sequence[Surveyed], wanted: str | None) -> Surveyed:
    """The disk to install on: the one whose serial is ``wanted``, or by these rules the first that there is

    1. a disk on which this very installation was cut off;
    2. a disk with an installed system of ours, which would else be started instead of the new one;
    3. the largest blank disk;
    4. the largest disk with data.

    Only a blank or unfinished disk is written to without the operator's permission. Never chosen by rule:
    removable disks, disks on USB, and any disk with something against it. Raises RefusedError if none is left.
    """
    if wanted is not None:
        return _named(surveyed, wanted)
    fit = [
        item
        for item in surveyed
        if not item.candidate.refusals
        and item.candidate.device.kind is Kind.DISK
        and not item.candidate.device.removable
        and item.candidate.device.bus != "usb"
    ]
    by_size = sorted(fit, key=lambda item: (-item.candidate.device.size, item.path))
    for rule in (
        lambda item: item.state == UNFINISHED,
        lambda item: any(part.label == STATE_LABEL for part in item.candidate.device.partitions),
        lambda item: item.state == BLANK,
        lambda item: item.state == DATA,
    ):
        for item in by_size:
            if rule(item):
                return item
    raise RefusedError(
        "there is no disk to install on",
        tuple(_against(item) for item in surveyed)
        or (Finding(code="disk.none", message="no disk was found"),),
        hint="fit a disk, or name one by its serial: `nodeos media site --disk SERIAL`",
    )


def _named(surveyed: Sequence[Surveyed], wanted: str) -> Surveyed:
    found = [item for item in surveyed if item.candidate.device.serial == wanted]
    if len(found) != 1:
        serials = ", ".join(item.candidate.device.serial or "-" for item in surveyed) or "none"
        finding = Finding(
            code="disk.serial",
            message=f"{len(found)} disks have the serial {wanted!r}; the serials here: {serials}",
        )
        raise RefusedError(
            "the disk that the site configuration names is not there",
            (finding,),
            hint="make this machine's medium again with its own --disk, or without",
        )
    if found[0].candidate.refusals:
        raise RefusedError(
            f"{found[0].path} is left alone",
            found[0].candidate.refusals,
            hint="the site configuration names this disk: name another one, or mend what is listed",
        )
    return found[0]


def _against(item: Surveyed) -> Finding:
    device = item.candidate.device
    reasons = [finding.message for finding in item.candidate.refusals]
    if device.removable or device.bus == "usb":
        reasons.append("it can be pulled out")
    if device.kind is not Kind.DISK and not reasons:
        reasons.append("it is no disk")
    return Finding(
        code="disk.unfit", message=f"{device.path}: {'; '.join(reasons) or 'it was not looked into'}"
    )
