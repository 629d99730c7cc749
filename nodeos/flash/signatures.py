"""Tells what is on a disk by its magic numbers, so that a person sees what will be erased. Pure.

The offsets are those of util-linux' libblkid.
"""

from __future__ import annotations

NEEDED = 0x10048  # so many bytes from the beginning decide
_MAGIC = (
    (512, b"EFI PART", "GPT"), (4096, b"EFI PART", "GPT"), (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "xfs"), (3, b"NTFS    ", "ntfs"), (3, b"EXFAT   ", "exfat"), (82, b"FAT32   ", "vfat"),
    (54, b"FAT16   ", "vfat"), (54, b"FAT12   ", "vfat"), (536, b"LVM2 001", "LVM"),
    (4096, b"\xfc\x4e\x2b\xa9", "RAID (md)"), (0, b"verity\0\0", "verity"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"), (0, b"hsqs", "squashfs"), (1080, b"\x53\xef", "ext4"),
    (4086, b"SWAPSPACE2", "swap"), (0x8001, b"CD001", "iso9660"), (0x10040, b"_BHRfS_M", "btrfs"),
)  # fmt: skip


def signatures(head: bytes) -> tuple[str, ...]:
    """The names of what ``head`` (the first NEEDED bytes of a disk or partition) begins."""
    found = [name for offset, magic, name in _MAGIC if head[offset : offset + len(magic)] == magic]
    # A GPT has a protective MBR, and a FAT's boot sector ends like an MBR.
    if not found and head[510:512] == b"\x55\xaa":
        found.append("MBR")
    if not found and head.strip(b"\0"):
        found.append("data of an unknown kind")
    return tuple(dict.fromkeys(found))
