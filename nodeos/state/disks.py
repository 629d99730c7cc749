"""Which partition holds the state: the one on the disk that this system was started from. Pure.

The boot loader says from which partition it was loaded (systemd's boot loader interface, LoaderDevicePartUUID).
State partitions on other disks are never looked into: they are another machine's, or an attacker's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from nodeos.core import layout
from nodeos.core.errors import NodeosError
from nodeos.core.wire import ParseError

STATE_TYPE = str(layout.STATE_TYPE)
SIGNATURE_TYPE = str(layout.SIGNATURE_TYPE)
COLUMNS = "NAME,TYPE,PKNAME,PARTUUID,PARTTYPE"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Paths of the boot disk, of its EFI system partition, and of its state partition."""

    disk: str
    boot: str
    state: str


class NotThereYetError(NodeosError):
    """The boot disk or its state partition does not show. udev may be late."""


def parse_boot_partition(variable: bytes | None) -> str:
    """The UUID in the EFI variable's file: four bytes of attributes, then UTF-16 text."""
    try:
        text = (variable or b"")[4:].decode("utf-16-le").rstrip("\0").lower()
    except UnicodeDecodeError:
        text = ""
    if not _UUID.fullmatch(text):
        raise NodeosError(
            "the disk that this system was started from can't be told",
            hint="no disk is touched before that is known; start from the boot disk through the firmware, by UEFI",
        )
    return text


def find(listing: bytes, boot_partition: str) -> Places:
    """The places, in the output of ``lsblk --json --list`` with COLUMNS.

    Raises NotThereYetError, or NodeosError for what is not unambiguous.
    """
    rows = _rows(listing)
    boots = [row for row in rows if row["partuuid"] == boot_partition]
    if not boots:
        raise NotThereYetError(
            "the disk that this system was started from does not show",
            hint="is it healthy? look at its cables, then power-cycle",
        )
    if len(boots) > 1:
        raise NodeosError(
            f"two disks carry the partition that this system was started from: {_names(boots)}",
            hint="one is a copy of the other: leave only this machine's own one in",
        )
    disk = boots[0]["pkname"]
    states = [row for row in rows if row["pkname"] == disk and row["parttype"] == STATE_TYPE]
    if not states:
        raise NotThereYetError(
            f"there is no state partition on {disk}, the disk that this system was started from",
            hint="install the system on this disk with the installer; state on other disks is not used",
        )
    if len(states) > 1:
        raise NodeosError(
            f"more than one state partition on {disk}: {_names(states)}",
            hint="the disk was changed after the installation: install the system anew, or remove what was added",
        )
    return Places(disk=disk, boot=boots[0]["name"], state=states[0]["name"])


def find_signature(listing: bytes, disk: str, partition: str) -> str | None:
    """The verity signature partition with the UUID ``partition`` on ``disk``; None unless there is exactly one."""
    found = [
        row["name"]
        for row in _rows(listing)
        if row["pkname"] == disk and row["partuuid"] == partition and row["parttype"] == SIGNATURE_TYPE
    ]
    return found[0] if len(found) == 1 else None


def _rows(listing: bytes) -> list[dict[str, str]]:
    """The partitions that lie on a disk, with text in each column."""
    try:
        devices = json.loads(listing)["blockdevices"]
        rows = [
            {name.lower(): str(row.get(name.lower()) or "") for name in COLUMNS.split(",")} for row in devices
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParseError("the list of disks has another form than lsblk's") from error
    disks = {row["name"] for row in rows if row["type"] == "disk"}
    parts = [row for row in rows if row["type"] == "part" and row["pkname"] in disks]
    return [
        {**row, "partuuid": row["partuuid"].lower(), "parttype": row["parttype"].lower()} for row in parts
    ]


def _names(rows: list[dict[str, str]]) -> str:
    return ", ".join(row["name"] for row in rows)
