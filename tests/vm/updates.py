"""Releases for the update cases: one more build, signed as each case needs it, and how it gets onto a machine."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from image import builder, sign
from image.keys import keys_of
from image.release_dir import ReleaseDir
from image.unsigned import BUILD, UKI, Unsigned, describe
from image.vm import Machine, Vm
from nodeos.core import layout
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.layout import SlotName
from nodeos.core.release import Variant
from tests.vm.lab import Lab, put_on_esp, table_of, write_at

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build"
SECOND = WORK / "image/release/next/unsigned"
GUEST_SEES_HOST = "10.0.2.2"
DATA_CENTER = "demo-dc"


def second_build() -> Unsigned:
    """0.1.1: the same source as the demo's, under another version. Built where it isn't there yet."""
    first = Unsigned.read(builder.unsigned_directory(WORK, Variant.RELEASE))
    with suppress(UsageError):
        found = Unsigned.read(SECOND)
        if (
            os.environ.get("NODEOS_KEEP_DEMO") == "1"
            or found.build.source_commit == first.build.source_commit
        ):
            return found
    command = [sys.executable, "-m", "nodeos", "image", "build", "--version", "0.1.1", "--allow-drift"]
    subprocess.run(
        [*command, "--out", SECOND], cwd=SOURCE, stdin=subprocess.DEVNULL, check=True, timeout=1200
    )
    return Unsigned.read(SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Signs the second build, changed as a case needs it, by the keys of the demo."""

    build: Unsigned
    scratch: Path

    def make(
        self,
        name: str,
        *,
        version: str = "0.1.1",
        security_version: int = 1,
        rollback_floor: int = 1,
        words: Mapping[str, str] | None = None,
    ) -> ReleaseDir:
        """``words`` of the kernel's command line are replaced by others that are no longer."""
        unsigned = self.scratch / f"{name}.unsigned"
        unsigned.mkdir()
        for artefact in self.build.build.artefacts:
            shutil.copyfile(self.build.directory / artefact, unsigned / artefact)
        uki, line = self.build.uki.read_bytes(), self.build.build.kernel_command_line
        for old, new in (words or {}).items():
            padded = new.ljust(len(old))
            # In the section, where nothing else is as long as this line.
            changed = line.replace(f" {old} ", f" {padded} ")
            assert uki.count(line.encode()) == 1
            assert changed != line
            uki, line = uki.replace(line.encode(), changed.encode()), changed

        (unsigned / UKI).write_bytes(uki)
        made = replace(
            self.build.build,
            release=version,
            kernel_command_line=line,
            security_version=security_version,
            rollback_floor=rollback_floor,
            artefacts={**self.build.build.artefacts, UKI: describe(unsigned / UKI)},
        )
        (unsigned / BUILD).write_bytes(made.to_bytes())
        keys = keys_of(WORK, Variant.RELEASE)
        return sign.sign(Unsigned.read(unsigned), keys, self.scratch / name, pin=_no_pin)


def _no_pin(name: str) -> str:
    raise NodeosError(f"the demo's key {name} is not in a file")


def write_release(disk: Path, release: ReleaseDir, *, entry: str) -> None:
    """Put a release into slot B of a machine that is off, its UKI under the name ``entry``."""
    found = release.release
    table = layout.fill(table_of(disk), SlotName.B, version=found.version, root_hash=found.root_hash)
    write_at(disk, 0, table.primary())
    write_at(disk, table.backup_offset, table.backup())
    slot = layout.slots(table)[1]
    write_at(disk, slot.root.start, release.root.read_bytes())
    write_at(disk, slot.verity.start, release.verity.read_bytes())
    signature = release.verity_signature.read_bytes().ljust(layout.SIGNATURE_SIZE, b"\0")
    write_at(disk, slot.signature.start, signature)
    put_on_esp(disk, f"/EFI/Linux/{entry}", release.uki.read_bytes())


def register(lab: Lab, release: ReleaseDir) -> None:
    """Accept machines that run this release."""
    registrar(
        lab, "add", "--release-key", keys_of(WORK, Variant.RELEASE).public_file("release"), release.manifest
    )


def offer(lab: Lab, release: ReleaseDir, port: int, *options: str) -> None:
    """Have the demo's data centre install it, from this host's server at ``port``."""
    url = f"http://{GUEST_SEES_HOST}:{port}/release"
    registrar(lab, "offer", release.release.version, "--dc", DATA_CENTER, "--url", url, *options)


def registrar(lab: Lab, verb: str, *words: str | Path) -> None:
    command = [sys.executable, "-m", "nodeos", "registrar", "release", verb, "--dir", lab.registrar, *words]
    subprocess.run(command, cwd=SOURCE, stdin=subprocess.DEVNULL, check=True, timeout=60)


Judgement = dict[str, Any]


def wait_for(
    lab: Lab, vm: Vm, ready: Callable[[Judgement], bool], *, what: str, seconds: float = 540
) -> Judgement:
    """The first attestation of the node that ``ready`` takes; it must be newer than what is there now."""
    seen = _count(lab)
    found: list[Judgement] = []

    def over() -> bool:
        nonlocal seen
        now = _count(lab)
        if now != seen:
            seen = now
            judgement = lab.attestation()
            if ready(judgement):
                found.append(judgement)
        return bool(found)

    vm.wait_until(over, seconds=seconds, what=f"{lab.case}: {what}")
    return found[0]


def _count(lab: Lab) -> int:
    """How many attestations there were. Asking the registrar itself would cost the guest its processor."""
    with closing(sqlite3.connect(f"file:{lab.registrar / 'registrar.db'}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT coalesce(max(id), 0) FROM attestation").fetchone()[0])


def wait_for_words(lab: Lab, vm: Vm, words: str, *, seconds: float = 540) -> None:
    """Until the console says so, in this boot."""
    vm.wait_until(
        lambda: words in console(vm.machine), seconds=seconds, what=f"{lab.case}: waiting for {words!r}"
    )


def console(machine: Machine) -> str:
    return machine.console.read_bytes().decode(errors="replace") if machine.console.exists() else ""


def codes(judgement: Judgement) -> set[str]:
    return {finding["code"] for verdict in judgement["verdicts"] for finding in verdict["findings"]}


def summary(judgement: Judgement) -> str:
    """For the table."""
    return f"{judgement['state']}, runs {judgement['release']}, {json.dumps(judgement['update'])}"
