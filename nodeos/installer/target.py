"""The machine's disks as the installer's program sees them, on ``nodeos.install`` and ``nodeos.flash``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeos.core import layout
from nodeos.core.erase import Challenge, EraseToken
from nodeos.core.errors import RefusedError
from nodeos.core.principal import Principal
from nodeos.core.site import SignedSite
from nodeos.flash.disks import Candidate, Image, Kind, candidates
from nodeos.flash.sysfs import read_facts
from nodeos.flash.writer import Report
from nodeos.install import permission
from nodeos.install.source import Source
from nodeos.install.survey import survey
from nodeos.install.target import open_disk
from nodeos.install.writer import install
from nodeos.installer.boot_entry import Esp
from nodeos.installer.decide import Surveyed


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A finished installation: what it says of itself, and the EFI system partition for the firmware."""

    document: dict[str, Any]
    serial: str
    esp: Esp


class MachineDisks:
    """Implements ``program.Disks``. ``challenge_file`` keeps the erase challenge of this boot."""

    def __init__(
        self,
        source: Source,
        *,
        site: SignedSite,
        operator: Principal,
        challenge_file: Path = permission.CHALLENGE,
    ) -> None:
        self._source, self._site, self._operator = source, site, operator
        self._challenge_file = challenge_file

    def survey(self) -> tuple[Surveyed, ...]:
        """Every disk, opened and looked at where nothing speaks against it."""
        directory = self._source.directory
        number = directory.stat().st_dev
        image = Image(
            path=os.path.realpath(directory),
            size=layout.MINIMUM,
            number=f"{os.major(number)}:{os.minor(number)}",
        )
        found = (item for item in candidates(read_facts(), image) if item.device.kind is Kind.DISK)
        return tuple(self._look(item) for item in found)

    def _look(self, candidate: Candidate) -> Surveyed:
        if candidate.refusals or candidate.device.removable:
            return Surveyed(candidate=candidate, state=None)
        try:
            with open_disk(Path(candidate.device.path), self._source.directory) as disk:
                state = survey(self._source, disk, self._site).state
        except RefusedError as error:
            # Taken by somebody since: it is told like any other reason.
            refused = Candidate(device=candidate.device, refusals=error.findings)
            return Surveyed(candidate=refused, state=None)
        return Surveyed(candidate=candidate, state=str(state))

    def challenge(self, path: str) -> tuple[Challenge, tuple[str, ...]]:
        """What the operator must sign to have this disk erased, and what is on it."""
        with open_disk(Path(path), self._source.directory) as disk:
            contents = survey(self._source, disk, self._site).contents
            return permission.challenge_for(self._challenge_file, disk.identity), contents

    def install(self, path: str, token: EraseToken | None, progress: Report) -> Installed:
        """Install. A disk with data needs a token; raises RefusedError (codes ``erase.…``) for a bad one."""
        with open_disk(Path(path), self._source.directory) as disk:
            may = (
                None
                if token is None
                else permission.Permission(
                    token=token, place=self._challenge_file, operator=self._operator, now=int(time.time())
                )
            )
            outcome = install(self._source, disk, site=self._site, progress=progress, permission=may)
        part, sector = layout.esp(outcome.table), outcome.table.sector
        return Installed(
            document=outcome.to_json(),
            serial=outcome.disk.identity.serial,
            esp=Esp(number=part.number, uuid=part.uuid, start=part.start // sector, size=part.size // sector),
        )
