"""A machine held against a profile: pure, and every check is always made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from nodeos.preflight.facts import Disk, Facts, Health
from nodeos.preflight.profile import Profile

# What of the fitted memory the kernel must have: firmware and kernel keep a share of a large memory, and a fixed
# part of a small one.
_USABLE_PERCENT = 95
_KEPT_BYTES = 256 << 20


class Status(StrEnum):
    """A warning is for a person to look at; only a failure is a no."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. ``code`` is stable and for machines; ``advice`` says what to do, and is None after a pass."""

    code: str
    status: Status
    found: str
    needed: str
    advice: str | None

    def to_json(self) -> dict[str, str | None]:
        return {
            "code": self.code,
            "status": str(self.status),
            "found": self.found,
            "needed": self.needed,
            "advice": self.advice,
        }


def passed(checks: tuple[Check, ...]) -> bool:
    """True if no check failed."""
    return all(item.status is not Status.FAIL for item in checks)


def check(profile: Profile, facts: Facts, own_keys: tuple[bytes, ...] = ()) -> tuple[Check, ...]:
    """Every check of ``profile``, in a fixed order. ``own_keys`` are the certificates (DER) that PK may hold."""
    checks = [*_cpu(profile, facts), _memory(profile, facts), _storage(profile, facts)]
    if not profile.raid_allowed:
        checks.append(_raid(profile, facts))
    if profile.smart:
        checks.append(_smart(profile, facts))
    checks.append(_tpm(profile, facts))
    if profile.uefi:
        checks.append(_uefi(facts))
    if profile.secure_boot:
        checks.append(_secure_boot(facts, own_keys))
    checks.append(_network(profile, facts))
    return tuple(checks)


def _judge(code: str, good: bool, found: str, needed: str, advice: str) -> Check:
    status = Status.PASS if good else Status.FAIL
    return Check(code=code, status=status, found=found, needed=needed, advice=None if good else advice)


def _cpu(profile: Profile, facts: Facts) -> tuple[Check, ...]:
    cpu = facts.cpu
    missing = [flag for flag in profile.cpu_flags if flag not in cpu.flags]
    there = [flag for flag in profile.cpu_flags if flag in cpu.flags]
    return (
        _judge(
            "cpu.model",
            # The space lets a pattern end at the end of a word, where the name may end too.
            not profile.cpu_models or any(fnmatchcase(f"{cpu.model} ", item) for item in profile.cpu_models),
            cpu.model,
            " or ".join(item.rstrip(" *") for item in profile.cpu_models) or "any",
            "this processor is not of the generation: take the profile that fits the machine, or another machine",
        ),
        _judge(
            "cpu.sockets",
            cpu.sockets >= profile.cpu_sockets,
            str(cpu.sockets),
            f"at least {profile.cpu_sockets}",
            "fit the second processor, or look at the firmware's log for one that failed",
        ),
        _judge(
            "cpu.threads",
            cpu.threads >= profile.cpu_threads,
            str(cpu.threads),
            f"at least {profile.cpu_threads}",
            "switch SMT and all cores on in the firmware's set-up",
        ),
        _judge(
            "cpu.flags",
            not missing,
            f"{', '.join(there) or 'none'}" + (f"; missing {', '.join(missing)}" if missing else ""),
            ", ".join(profile.cpu_flags) or "any",
            "switch SVM, SME, SEV and SEV-SNP on in the firmware's set-up; the kernel must be built for them too",
        ),
    )


def _memory(profile: Profile, facts: Facts) -> Check:
    fitted, managed, needed = facts.memory.fitted, facts.memory.managed, profile.memory_bytes
    kept = max(needed * (100 - _USABLE_PERCENT) // 100, _KEPT_BYTES)
    if fitted is None:
        good = managed is not None and managed >= needed
        advice = "run as root: the firmware's tables say how much is fitted, the kernel has less than that"
    else:
        good = fitted >= needed and managed is not None and managed >= needed - kept
        advice = (
            "fit more memory; if enough is fitted, seat it anew: the firmware's log names modules that failed"
        )
    return _judge(
        "memory",
        good,
        f"{_size(fitted)} fitted, {_size(managed)} usable",
        f"at least {_size(needed)}",
        advice,
    )


def _counted(profile: Profile, facts: Facts) -> list[Disk]:
    return [disk for disk in facts.disks if disk.transport in profile.transports]


def _storage(profile: Profile, facts: Facts) -> Check:
    counted = _counted(profile, facts)
    other = len(facts.disks) - len(counted)
    found = f"{_size(sum(disk.size for disk in counted))} on {len(counted)} disk{'' if len(counted) == 1 else 's'}"
    return _judge(
        "storage",
        sum(disk.size for disk in counted) >= profile.storage_bytes,
        found + (f"; {other} of another kind don't count" if other else ""),
        f"at least {_size(profile.storage_bytes)} of {' or '.join(profile.transports)}",
        "fit more disks; one that is fitted and not seen is not seated, switched off, or behind a controller",
    )


def _raid(profile: Profile, facts: Facts) -> Check:
    """A controller with disks behind it is in the way; so is one that may hide what is missing. One with nothing
    to do is worth a look only."""
    needed = "no RAID controller before the disks"
    advice = "switch RAID (or VMD) off in the firmware's set-up, or take the controller out"
    controllers = facts.raid_controllers
    if controllers is None:
        return _judge("raid", False, "PCI devices can't be read", needed, "mount /sys, and run this again")
    if not controllers:
        return _judge("raid", True, "none", needed, advice)
    behind = [disk.name for disk in facts.disks if set(disk.pci) & set(controllers)]
    found = ", ".join(controllers)
    if behind:
        return _judge("raid", False, f"{found} with {', '.join(behind)} behind it", needed, advice)
    if _storage(profile, facts).status is Status.FAIL:
        return _judge("raid", False, f"{found}, and disks are missing", needed, advice)
    return Check(
        code="raid",
        status=Status.WARN,
        found=f"{found}, with no disk behind it",
        needed=needed,
        advice=advice,
    )


def _smart(profile: Profile, facts: Facts) -> Check:
    """Never a failure: a worn disk may last for years. Never a pass where a disk didn't answer."""
    disks = _counted(profile, facts)
    bad = [f"{disk.name}: {why}" for disk in disks if (why := _illness(disk.health))]
    unknown = any(disk.health is None for disk in disks) or not disks
    return Check(
        code="smart",
        status=Status.WARN if bad or unknown else Status.PASS,
        found="; ".join(bad) or (f"{len(disks)} disks are healthy" if disks else "unknown: no disk to ask"),
        needed="healthy disks",
        advice=(
            "run as root, or ask the disk with its maker's tool" if unknown else "plan to replace the disk"
        )
        if bad or unknown
        else None,
    )


def _illness(health: Health | None) -> str | None:
    if health is None:
        return "unknown"
    if health.critical_warning:
        return f"critical warning {health.critical_warning:#04x}"
    if health.spare < health.spare_threshold:
        return f"{health.spare} % spare, threshold {health.spare_threshold} %"
    if health.used >= 100:
        return f"{health.used} % of its life used"
    return f"{health.media_errors} media errors" if health.media_errors else None


def _tpm(profile: Profile, facts: Facts) -> Check:
    major = facts.tpm_major
    return _judge(
        "tpm",
        major == profile.tpm_major,
        "unknown version" if major is None else (f"TPM {major}" if major else "none"),
        f"TPM {profile.tpm_major}.0",
        "switch the TPM on in the firmware's set-up, as 2.0; on other systems `modprobe -a tpm_tis tpm_crb`",
    )


def _uefi(facts: Facts) -> Check:
    uefi = facts.firmware.uefi
    return _judge(
        "uefi",
        uefi,
        "started by UEFI" if uefi else "not started by UEFI",
        "UEFI",
        "choose UEFI boot in the firmware's set-up and legacy boot (CSM) off, then start this system anew",
    )


def _secure_boot(facts: Facts, own_keys: tuple[bytes, ...]) -> Check:
    """In setup mode anyone may enrol keys, so ours can be; in user mode they must be there and be enforced."""
    firmware, code, needed = facts.firmware, "secure_boot", "setup mode, or enforced with our keys"
    clear = "clear the keys (setup mode) in the firmware's set-up"
    if not firmware.uefi or firmware.setup_mode is None or firmware.secure_boot is None:
        advice = "start by UEFI, and mount efivarfs: `mount -t efivarfs efivarfs /sys/firmware/efi/efivars`"
        return _judge(code, False, "unknown", needed, advice)
    if firmware.setup_mode:
        return _judge(code, True, "setup mode", needed, clear)
    if not own_keys:
        advice = f"name our certificate with --secure-boot-certificate, or {clear}"
        return _judge(code, False, "user mode, with keys that may not be ours", needed, advice)
    if firmware.platform_keys is None:
        return _judge(code, False, "user mode, PK can't be read", needed, f"mount efivarfs, or {clear}")
    if not firmware.platform_keys or not set(firmware.platform_keys) <= set(own_keys):
        return _judge(code, False, "user mode, with keys of others", needed, clear)
    return _judge(
        code,
        firmware.secure_boot,
        f"user mode with our keys, {'enforced' if firmware.secure_boot else 'switched off'}",
        needed,
        "switch Secure Boot on in the firmware's set-up",
    )


def _network(profile: Profile, facts: Facts) -> Check:
    fast = [port for port in facts.ports if (port.speed_mbit or 0) >= profile.port_speed_mbit]
    told = [
        f"{port.name} {port.speed_mbit if port.speed_mbit is not None else '?'}"
        + (f" ({port.driver})" if port.driver else "")
        for port in facts.ports
    ]
    speed = f" of {profile.port_speed_mbit} Mbit/s" if profile.port_speed_mbit else ""
    return _judge(
        "network",
        len(fast) >= profile.ports,
        ", ".join(told) or "no port",
        f"at least {profile.ports} ports{speed}",
        "fit a faster card; where the speed is '?', plug in module and cable, and run as root",
    )


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,} bytes"
