"""What a machine of a generation must have, and how a fingerprint report is held against it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from nodeos.core.errors import Finding, UsageError
from nodeos.core.wire import Fields, parse_text, parse_toml
from provisioning.verify.findings import Verdict, finding, verdict
from provisioning.verify.fingerprint import Inventory, Report

NAMES = ("dev", "gen1")
# What may be missing of the memory that is plugged in: firmware and kernel keep some for themselves.
_USABLE_PERCENT = 95
_KEPT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Bounds on the median of one measurement. None is no bound."""

    unit: str
    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The rules of one generation. An empty tuple means: anything goes."""

    name: str
    reward_types: tuple[str, ...]
    cpu_models: tuple[str, ...]
    cpu_sockets: int
    cpu_threads: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    disk_count: int
    disk_bytes: int
    disk_transports: tuple[str, ...]
    disk_rotational: bool
    nic_count: int
    nic_speed_mbit: int
    virtualization: tuple[str, ...]
    memory_encryption: bool
    measurements: dict[str, Limit]


def load_profile(name: str) -> Profile:
    """A profile that comes with this package. Raises UsageError for an unknown name."""
    if name not in NAMES:
        raise UsageError(f"there is no profile {name!r}", hint=f"take one of: {', '.join(NAMES)}")
    text = resources.files("provisioning").joinpath("profiles", f"{name}.toml").read_text("utf-8")
    return parse_profile(text, f"{name}.toml")


def parse_profile(text: str, what: str) -> Profile:
    """Raises ParseError with the path of the first wrong field."""
    fields = parse_toml(text.encode(), what)
    cpu, disks, nics = fields.nested("cpu"), fields.nested("disks"), fields.nested("nics")
    memory, limits = fields.nested("memory"), fields.nested("measurements")
    profile = Profile(
        name=fields.text("name", limit=32),
        reward_types=fields.list_of("reward_types", parse_text),
        cpu_models=cpu.list_of("models", parse_text),
        cpu_sockets=cpu.integer("min_sockets"),
        cpu_threads=cpu.integer("min_threads"),
        cpu_flags=cpu.list_of("flags", parse_text),
        memory_bytes=memory.integer("min_bytes"),
        memory_encryption=memory.flag("encryption"),
        disk_count=disks.integer("min_count"),
        disk_bytes=disks.integer("min_total_bytes"),
        disk_transports=disks.list_of("transports", parse_text),
        disk_rotational=disks.flag("rotational"),
        nic_count=nics.integer("min_count"),
        nic_speed_mbit=nics.integer("min_speed_mbit"),
        virtualization=fields.list_of("virtualization", parse_text),
        measurements={name: _limit(item, f"{what}.measurements.{name}") for name, item in limits.items()},
    )
    for part in (cpu, disks, nics, memory, fields):
        part.done()
    return profile


def _limit(item: object, path: str) -> Limit:
    fields = Fields(item, path)
    limit = Limit(
        unit=fields.text("unit", limit=32),
        low=fields.integer("min_median") if fields.has("min_median") else None,
        high=fields.integer("max_median") if fields.has("max_median") else None,
    )
    fields.done()
    return limit


def check_fingerprint(report: Report, profile: Profile, memory_encryption: str) -> Verdict:
    """Every rule that the report breaks: what was found, what is needed."""
    inventory = report.inventory
    refused = [*_cpu(inventory, profile), *_parts(inventory, profile), *_measured(report, profile)]
    if profile.virtualization and inventory.virtualization not in profile.virtualization:
        refused.append(
            finding(
                "fingerprint.virtualization",
                f"found {inventory.virtualization!r}, needed one of {', '.join(profile.virtualization)}",
            )
        )
    watch = []
    if profile.memory_encryption and memory_encryption != "active":
        watch.append(
            finding("fingerprint.memory_encryption", f"found {memory_encryption!r}, wanted 'active'")
        )
    plugged = sum(dimm.size for dimm in inventory.dimms)
    # What firmware and kernel keep for themselves is a share of a large memory and a fixed part of a small one.
    kept = max(plugged * (100 - _USABLE_PERCENT) // 100, _KEPT_BYTES)
    if plugged and inventory.memory_bytes < plugged - kept:
        watch.append(
            finding(
                "fingerprint.memory_usable",
                f"{inventory.memory_bytes} of {plugged} bytes of memory can be used",
            )
        )
    for name, measurement in report.measurements.items():
        if measurement.invalid is not None and name not in profile.measurements:
            watch.append(finding("fingerprint.invalid", f"{name} was not measured: {measurement.invalid}"))
    return verdict("fingerprint", refused, watch)


def _cpu(inventory: Inventory, profile: Profile) -> list[Finding]:
    cpu = inventory.cpu
    found = []
    if profile.cpu_models and not any(model in cpu.model for model in profile.cpu_models):
        needed = ", ".join(profile.cpu_models)
        found.append(finding("fingerprint.cpu_model", f"found {cpu.model!r}, needed one of {needed}"))
    if cpu.sockets < profile.cpu_sockets:
        found.append(
            finding("fingerprint.cpu_sockets", f"found {cpu.sockets}, needed at least {profile.cpu_sockets}")
        )
    if cpu.threads < profile.cpu_threads:
        found.append(
            finding("fingerprint.cpu_threads", f"found {cpu.threads}, needed at least {profile.cpu_threads}")
        )
    missing = [flag for flag in profile.cpu_flags if flag not in cpu.flags]
    if missing:
        found.append(
            finding(
                "fingerprint.cpu_flags",
                f"missing {', '.join(missing)}; needed {', '.join(profile.cpu_flags)} (look in the "
                "firmware's set-up)",
            )
        )
    return found


def _parts(inventory: Inventory, profile: Profile) -> list[Finding]:
    found = []
    memory = sum(dimm.size for dimm in inventory.dimms) or inventory.memory_bytes
    if memory < profile.memory_bytes:
        found.append(
            finding("fingerprint.memory", f"found {memory} bytes, needed at least {profile.memory_bytes}")
        )
    wrong = [
        d for d in inventory.disks if profile.disk_transports and d.transport not in profile.disk_transports
    ]
    wrong += [d for d in inventory.disks if d.rotational and not profile.disk_rotational]
    disks = [disk for disk in inventory.disks if disk not in wrong]
    if len(disks) < profile.disk_count:
        also = "".join(f"; {disk.model!r} ({disk.transport}) does not count" for disk in wrong)
        found.append(
            finding(
                "fingerprint.disk_count", f"found {len(disks)}, needed at least {profile.disk_count}{also}"
            )
        )
    total = sum(disk.size for disk in disks)
    if total < profile.disk_bytes:
        found.append(
            finding("fingerprint.disk_bytes", f"found {total} bytes, needed at least {profile.disk_bytes}")
        )
    fast = [nic for nic in inventory.nics if (nic.speed_mbit or 0) >= profile.nic_speed_mbit]
    if len(fast) < profile.nic_count:
        found.append(
            finding(
                "fingerprint.nics",
                f"found {len(fast)}, needed at least {profile.nic_count} "
                f"with {profile.nic_speed_mbit} Mbit/s",
            )
        )
    return found


def _measured(report: Report, profile: Profile) -> list[Finding]:
    found = []
    for name, limit in profile.measurements.items():
        measured = report.measurements.get(name)
        if measured is None or measured.invalid is not None:
            why = "is missing" if measured is None else f"is not valid: {measured.invalid}"
            found.append(finding("fingerprint.measurement", f"{name} {why}"))
        elif measured.unit != limit.unit:
            found.append(
                finding("fingerprint.unit", f"{name}: found {measured.unit!r}, needed {limit.unit!r}")
            )
        elif not (limit.low or 0) <= measured.median <= (2**63 if limit.high is None else limit.high):
            found.append(
                finding(
                    "fingerprint.median",
                    f"{name}: found a median of {measured.median} {limit.unit}, needed "
                    f"{limit.low if limit.low is not None else 'any'} to "
                    f"{limit.high if limit.high is not None else 'any'}",
                )
            )
    return found
