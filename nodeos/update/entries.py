"""The kernel images on the ESP, whose names carry systemd-boot's boot counters. Pure but for ``read_entries``.

    nodeos_VERSION.efi           blessed
    nodeos_VERSION+LEFT.efi      not tried yet, LEFT tries
    nodeos_VERSION+LEFT-DONE.efi tried DONE times; systemd-boot renames it before each try

An entry with no tries left is taken last (Boot Loader Specification, "Boot counting"), so a version that failed
three times gives way to the one before it. One that never had a try and has none left (``+0``) was set aside by a
declared rollback: its version is newer, and would otherwise be started first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("EFI/Linux")
TRIES = 3
_NAME = re.compile(r"nodeos_([0-9A-Za-z.~^-]{1,64}?)(?:\+([0-9]{1,9})(?:-([0-9]{1,9}))?)?\.efi", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEntry:
    """``left`` is None for an entry without a counter; ``file`` is the name that it was found under."""

    version: str
    left: int | None = None
    done: int = 0
    file: str | None = None

    @property
    def name(self) -> str:
        """The file name: as found, or as it would be written ("+3" and "+3-0" say the same)."""
        if self.file is not None:
            return self.file
        if self.left is None:
            return f"nodeos_{self.version}.efi"
        return f"nodeos_{self.version}+{self.left}{f'-{self.done}' if self.done else ''}.efi"

    @property
    def startable(self) -> bool:
        """True if systemd-boot takes it before those that failed."""
        return self.left is None or self.left > 0

    @property
    def failed(self) -> bool:
        return self.left == 0 and self.done > 0


def parse_name(name: str) -> BootEntry | None:
    """None for a file that is none of ours. vfat keeps the case, firmware doesn't care for it."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    version, left, done = found.groups()
    return BootEntry(
        version=version, left=None if left is None else int(left), done=int(done or 0), file=name
    )


def parse_entries(names: Iterable[str]) -> tuple[BootEntry, ...]:
    """All entries among these file names, sorted by version."""
    found = [entry for entry in map(parse_name, names) if entry is not None]
    return tuple(sorted(found, key=lambda entry: (entry.version, entry.name)))


def read_entries(esp: Path) -> tuple[BootEntry, ...]:
    """The entries on the ESP that is mounted at ``esp``."""
    directory = esp / DIRECTORY
    return parse_entries(path.name for path in directory.iterdir()) if directory.is_dir() else ()


def of_version(entries: Sequence[BootEntry], version: str) -> BootEntry | None:
    return next((entry for entry in entries if entry.version == version), None)


def failed_version(entries: Sequence[BootEntry], running: str) -> str | None:
    """The version that was tried and given up, if the running one is another: the node fell back."""
    return next((entry.version for entry in entries if entry.failed and entry.version != running), None)


def can_fall_back(entries: Sequence[BootEntry], running: str) -> bool:
    """True if systemd-boot has another version to start once the running one has no tries left."""
    return any(entry.startable for entry in entries if entry.version != running)


def rollback_renames(entries: Sequence[BootEntry], running: str, target: str) -> tuple[tuple[str, str], ...]:
    """The renames (old name, new name), in their order, after which ``target`` is started instead of ``running``.

    First the target gets its tries, then the running version is set aside: cut off between the two, the machine
    starts the running version as before. Fails the target three times, both have no tries left, and systemd-boot
    takes the newer version, which is the one that ran.
    """
    found, current = of_version(entries, target), of_version(entries, running)
    if found is None or current is None:
        raise ValueError(f"no entry for {target if found is None else running}")
    wanted = (BootEntry(version=target, left=TRIES), BootEntry(version=running, left=0))
    return tuple(
        (old.name, new.name)
        for old, new in zip((found, current), wanted, strict=True)
        if old.name != new.name
    )
