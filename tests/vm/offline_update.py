"""An update on the disk of a machine that is off, as ``nodeos update apply`` leaves it for the next boot."""

from __future__ import annotations

from pathlib import Path

from image.measure import esp_of
from image.release_dir import ReleaseDir
from image.vm import Machine
from nodeos.core import layout
from nodeos.core.run import find_tool, run
from nodeos.update.candidate import LOADER, RELEASE, RELEASE_SIGNATURE, VARIABLES
from nodeos.update.entries import DIRECTORY, TRIES, BootEntry, parse_entries
from tests.support import state_files
from tests.vm.lab import Lab, list_esp, put_on_esp, table_of, write_at

# Below /var: nodeos.update.machine.Paths.pending.
_PENDING = "/lib/nodeos/update/pending"


def put_update(lab: Lab, machine: Machine, release: ReleaseDir, running: str, scratch: Path) -> None:
    """Slot, UKI with its tries, and what the blessing needs on the state volume. ``running`` is the version that
    stays in its slot. ``scratch`` is a new folder."""
    scratch.mkdir()
    version = release.release.version
    table = table_of(machine.disk)
    slot = next(slot for slot in layout.slots(table) if slot.version != running)
    parts = release.root.read_bytes(), release.verity.read_bytes(), release.verity_signature.read_bytes()
    for part, data in zip(slot.partitions, parts, strict=True):
        # Nothing may follow the JSON of the signature.
        write_at(machine.disk, part.start, data.ljust(layout.SIGNATURE_SIZE, b"\0"))
    filled = layout.fill(table, slot.name, version=version, root_hash=release.release.root_hash)
    write_at(machine.disk, filled.backup_offset, filled.backup())
    write_at(machine.disk, 0, filled.primary())
    for name in uki_names(machine):
        if parse_entries([name])[0].version != running:
            remove_uki(machine, name)
    put_uki(machine, BootEntry(version=version, left=TRIES).name, release.uki.read_bytes())
    names = [RELEASE, RELEASE_SIGNATURE, LOADER, *(f"{name}.auth" for name in VARIABLES)]
    files = {
        f"{_PENDING}/{name}": release.path(name).read_bytes() for name in names if release.path(name).exists()
    }
    state = layout.state(table)
    identity, pin = lab.demo / "operator.json", (lab.demo / "pin").read_text().strip()
    key = state_files.volume_key(machine.disk, state, scratch / "header", identity=identity, pin=pin)
    (scratch / "files").mkdir()
    state_files.put_files(machine.disk, state, key, files, scratch / "files")


def uki_names(machine: Machine) -> list[str]:
    listed = [Path(path).name for path in list_esp(machine.disk, f"/{DIRECTORY}")]
    return [name for name in listed if parse_entries([name])]


def put_uki(machine: Machine, name: str, data: bytes) -> None:
    put_on_esp(machine.disk, f"/{DIRECTORY}/{name}", data)


def remove_uki(machine: Machine, name: str) -> None:
    mdel = find_tool("mdel", package="mtools")
    run([mdel, "-i", esp_of(machine.disk), f"::/{DIRECTORY}/{name}"], what=f"removing {name}")
