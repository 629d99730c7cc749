"""The one layout of an installed disk. Pure.

    1 esp         1 GiB   vfat: boot loader, UKIs, Secure Boot updates, site configuration
    2 root        1 GiB   slot A: "nodeos_VERSION"          erofs, read-only
    3 verity     32 MiB           "nodeos_VERSION_verity"   dm-verity hash tree
    4 verity-sig  1 MiB           "nodeos_VERSION_sig"      the root hash's signature, JSON
    5 root, 6 verity, 7 verity-sig: slot B, the same; an empty slot's labels are "_empty"
    8 state       the rest, at least 1 GiB: left blank by an installation, made by the node

Everything begins at a whole MiB; the disk's first and last MiB hold the partition table's two copies. The root's
and the verity partition's UUIDs are the halves of the root hash, so systemd finds the slot by ``roothash=`` on the
signed command line alone (systemd-veritysetup-generator(8)). Types are those of the Discoverable Partitions
Specification for x86-64.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from nodeos.core.errors import UsageError
from nodeos.core.gpt import MIB, READ_ONLY, Partition, Table

ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
VERITY_TYPE = uuid.UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
SIGNATURE_TYPE = uuid.UUID("41092b05-9fc8-4523-994f-2def0408b176")
STATE_TYPE = uuid.UUID("2d1f0a56-7b1c-4d8e-9c52-6e6f64656f73")

ESP_SIZE = 1024 * MIB
ROOT_SIZE = 1024 * MIB
VERITY_SIZE = 32 * MIB
SIGNATURE_SIZE = MIB
STATE_MINIMUM = 1024 * MIB
# What is zero at both ends of a state partition that no node has used yet.
STATE_BLANK = MIB

EMPTY = "_empty"
ESP_NUMBER = 1
STATE_NUMBER = 8
MINIMUM = MIB + ESP_SIZE + 2 * (ROOT_SIZE + VERITY_SIZE + SIGNATURE_SIZE) + STATE_MINIMUM + MIB

# A version is in a partition's label (36 characters, with prefix and suffix) and in a file name on vfat.
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.~-]{0,21}")


class SlotName(StrEnum):
    """The two places of a system."""

    A = "a"
    B = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One slot: ``version`` is None if it is empty or torn (its labels don't agree: an update was cut off)."""

    name: SlotName
    root: Partition
    verity: Partition
    signature: Partition
    version: str | None
    empty: bool

    @property
    def torn(self) -> bool:
        return self.version is None and not self.empty

    @property
    def partitions(self) -> tuple[Partition, Partition, Partition]:
        return self.root, self.verity, self.signature


_FIRST = {SlotName.A: 2, SlotName.B: 5}
_SLOT = (
    (ROOT_TYPE, ROOT_SIZE, ""),
    (VERITY_TYPE, VERITY_SIZE, "_verity"),
    (SIGNATURE_TYPE, SIGNATURE_SIZE, "_sig"),
)


def check_version(version: str) -> None:
    """Raises UsageError for a version that can't be a label."""
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"the version {version!r} can't be a partition's label",
            hint="letters, digits, '.', '~' and '-', at most 22, the first a letter or digit",
        )


def plan(size: int, sector: int, *, version: str, root_hash: bytes, disk_uuid: uuid.UUID) -> Table:
    """The table of a freshly installed disk: slot A holds the release, slot B is empty. Equal input gives equal
    tables. Raises UsageError for a disk that is too small."""
    if size < MINIMUM:
        raise UsageError(
            f"the disk has {size} bytes, an installation needs {MINIMUM}", hint="take a larger disk"
        )
    parts = [_partition(ESP_NUMBER, ESP_TYPE, disk_uuid, "esp", start=MIB, size=ESP_SIZE, label="esp")]
    for name, first in _FIRST.items():
        for number, (kind, length, suffix) in enumerate(_SLOT, first):
            identity = f"slot-{name}{suffix}"
            start = parts[-1].end
            part = _partition(number, kind, disk_uuid, identity, start=start, size=length, label=EMPTY)
            parts.append(replace(part, attributes=READ_ONLY))
    start = parts[-1].end
    state = (size - MIB) // MIB * MIB - start
    parts.append(
        _partition(
            STATE_NUMBER, STATE_TYPE, disk_uuid, "state", start=start, size=state, label="nodeos-state"
        )
    )
    # The usable size ends with a sector: a disk image may have any size.
    table = Table(size=size // sector * sector, sector=sector, uuid=disk_uuid, partitions=tuple(parts))
    return fill(table, SlotName.A, version=version, root_hash=root_hash)


def slots(table: Table) -> tuple[Slot, Slot]:
    """Slot A and slot B. Raises UsageError if the table is not of this layout."""
    a, b = (_slot(table, name) for name in SlotName)
    return a, b


def esp(table: Table) -> Partition:
    return _of_type(table, ESP_NUMBER, ESP_TYPE)


def state(table: Table) -> Partition:
    return _of_type(table, STATE_NUMBER, STATE_TYPE)


def fill(table: Table, name: SlotName, *, version: str, root_hash: bytes) -> Table:
    """The table once the slot holds this release."""
    check_version(version)
    if len(root_hash) != 32:
        raise UsageError(f"a root hash of {len(root_hash)} bytes, expected 32")
    identities = (uuid.UUID(bytes=root_hash[:16]), uuid.UUID(bytes=root_hash[16:]), signature_uuid(root_hash))
    named = zip(_slot(table, name).partitions, identities, _SLOT, strict=True)
    return _replaced(
        table,
        {
            part.number: replace(part, uuid=identity, label=f"nodeos_{version}{suffix}", attributes=READ_ONLY)
            for part, identity, (_, _, suffix) in named
        },
    )


def clear(table: Table, name: SlotName) -> Table:
    """The table once the slot is empty: systemd does not find its root any more."""
    named = zip(_slot(table, name).partitions, _SLOT, strict=True)
    return _replaced(
        table,
        {
            part.number: replace(part, uuid=_derived(table.uuid.bytes, f"slot-{name}{suffix}"), label=EMPTY)
            for part, (_, _, suffix) in named
        },
    )


def signature_uuid(root_hash: bytes) -> uuid.UUID:
    """The signature partition's, derived from the root hash."""
    return _derived(root_hash, "verity-sig")


def _replaced(table: Table, by_number: dict[int, Partition]) -> Table:
    return replace(table, partitions=tuple(by_number.get(part.number, part) for part in table.partitions))


def _slot(table: Table, name: SlotName) -> Slot:
    root, verity, signature = (
        _of_type(table, number, kind) for number, (kind, _, _) in enumerate(_SLOT, _FIRST[name])
    )
    labels = (root.label, verity.label, signature.label)
    version: str | None = root.label.removeprefix("nodeos_")
    if labels != tuple(f"nodeos_{version}{suffix}" for _, _, suffix in _SLOT):
        version = None
    return Slot(
        name=name,
        root=root,
        verity=verity,
        signature=signature,
        version=version,
        empty=labels == (EMPTY,) * 3,
    )


def _of_type(table: Table, number: int, kind: uuid.UUID) -> Partition:
    for part in table.partitions:
        if part.number == number and part.type == kind:
            return part
    raise UsageError(
        f"the disk does not have this system's layout: partition {number} is missing or of another type"
    )


def _partition(
    number: int, kind: uuid.UUID, disk_uuid: uuid.UUID, identity: str, *, start: int, size: int, label: str
) -> Partition:
    return Partition(
        number=number,
        type=kind,
        uuid=_derived(disk_uuid.bytes, identity),
        start=start,
        size=size,
        label=label,
    )


def _derived(seed: bytes, name: str) -> uuid.UUID:
    """A UUID of version 4's form from a hash, so that the same disk gets the same ones again."""
    return uuid.UUID(
        bytes=hashlib.sha256(b"nodeos-partition-v1\0" + seed + name.encode()).digest()[:16], version=4
    )


def describe(table: Table) -> Iterator[dict[str, object]]:
    """The partitions for JSON."""
    for part in table.partitions:
        yield {
            "number": part.number, "label": part.label, "type": str(part.type), "uuid": str(part.uuid),
            "start": part.start, "size": part.size,
        }  # fmt: skip
