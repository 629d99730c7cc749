"""What a machine must have before it is made a node, as TOML.

Not to be confused with ``provisioning.verify.profile``: that is the registrar's, who holds it against the attested
report of a machine that runs the image. This one is for whoever stands before the machine, and asks for what no
report carries (firmware, RAID, health of disks). The registrar decides; where both name a figure of a generation
they are the same, and a test says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.wire import ParseError, parse_text, parse_toml
from nodeos.fingerprint.inventory import FLAGS

NAMES = ("dev", "gen1", "gen2")
TRANSPORTS = ("nvme", "scsi", "virtio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The needs of one kind of machine.

    ``cpu_models`` are shell patterns, one of which must fit (an empty tuple: any model will do). Only disks of
    ``transports`` count. ``secure_boot``: in setup mode, or enforced with the operator's own keys.
    """

    name: str
    cpu_models: tuple[str, ...]
    cpu_sockets: int
    cpu_threads: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    transports: tuple[str, ...]
    storage_bytes: int
    raid_allowed: bool
    smart: bool
    tpm_major: int
    uefi: bool
    secure_boot: bool
    ports: int
    port_speed_mbit: int


def load_profile(name: str) -> Profile:
    """A profile of this package by its name, or the file of that path. Raises UsageError."""
    if name in NAMES:
        text = resources.files("nodeos.preflight").joinpath("profiles", f"{name}.toml").read_bytes()
        return parse_profile(text, f"{name}.toml")
    path = Path(name)
    if not path.exists():
        raise UsageError(f"there is no profile or file {name!r}", hint=f"take one of: {', '.join(NAMES)}")
    return parse_profile(read_file(path, "profile", limit=1 << 16), path.name)


def parse_profile(text: bytes | str, what: str) -> Profile:
    """Raises ParseError with the path of the first wrong field."""
    fields = parse_toml(text.encode() if isinstance(text, str) else text, what)
    cpu, memory, storage = fields.nested("cpu"), fields.nested("memory"), fields.nested("storage")
    firmware, network = fields.nested("firmware"), fields.nested("network")
    profile = Profile(
        name=fields.text("name", limit=32),
        cpu_models=cpu.list_of("models", parse_text),
        cpu_sockets=cpu.integer("min_sockets"),
        cpu_threads=cpu.integer("min_threads"),
        cpu_flags=cpu.list_of("flags", _flag),
        memory_bytes=memory.integer("min_bytes"),
        transports=storage.list_of("transports", _transport),
        storage_bytes=storage.integer("min_bytes"),
        raid_allowed=storage.flag("raid_allowed"),
        smart=storage.flag("smart"),
        tpm_major=firmware.integer("tpm_major", low=2),
        uefi=firmware.flag("uefi"),
        secure_boot=firmware.flag("secure_boot"),
        ports=network.integer("min_ports"),
        port_speed_mbit=network.integer("min_speed_mbit"),
    )
    for part in (cpu, memory, storage, firmware, network, fields):
        part.done()
    return profile


def _flag(value: object, path: str) -> str:
    """A flag that is read at all: any other would be missing on every machine."""
    return _one_of(value, path, tuple(sorted(FLAGS)))


def _transport(value: object, path: str) -> str:
    return _one_of(value, path, TRANSPORTS)


def _one_of(value: object, path: str, known: tuple[str, ...]) -> str:
    text = parse_text(value, path)
    if text not in known:
        raise ParseError(f"{path}: {text!r} is none of {', '.join(known)}")
    return text
