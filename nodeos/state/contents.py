"""What is on the state partition, told by its first and last MiB. Pure.

A volume is made beside the disk: its header is written when all else is there, and the first sector of the
header last. Until then that sector says that a making was begun. Such a partition holds no state and is made
anew. Who plants the mark on a volume erases it, which whoever can write to the disk can do anyway.
"""

from __future__ import annotations

from enum import StrEnum

MIB = 1 << 20
SECTOR = 512
# LUKS On-Disk Format, versions 1 and 2: the same magic, then the version in two bytes.
_LUKS2 = b"LUKS\xba\xbe\x00\x02"
MAKING = b"nodeos: the state volume is being made\n".ljust(SECTOR, b"\0")


class Contents(StrEnum):
    BLANK = "blank"
    MAKING = "being made"
    LUKS2 = "LUKS2"
    FOREIGN = "foreign data"


def contents(first: bytes, last: bytes) -> Contents:
    """``first`` and ``last`` are the partition's first and last MiB."""
    if first[:SECTOR] == MAKING:
        return Contents.MAKING
    if first.startswith(_LUKS2):
        return Contents.LUKS2
    if len(first) == len(last) == MIB and not first.strip(b"\0") and not last.strip(b"\0"):
        return Contents.BLANK
    return Contents.FOREIGN
