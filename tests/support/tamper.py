"""What an attacker puts beside our system: changed images, the stub's addons, disks with a state partition."""

from __future__ import annotations

import uuid
from pathlib import Path

from image import authenticode, pe
from image.keys import KeySet
from nodeos.core import layout
from nodeos.core.errors import UsageError
from nodeos.core.gpt import MIB, Partition, Table
from nodeos.core.pe import parse
from nodeos.core.run import find_tool, run
from nodeos.state.luks import Luks

PASSPHRASE = b"known to the attacker".ljust(32)


def flip_in_section(image: bytes, name: str) -> bytes:
    """The image with one bit changed in the middle of a section."""
    [section] = [item for item in parse(image, "UKI").sections if item.name == name]
    place = section.offset + min(section.size, section.virtual_size) // 2
    return image[:place] + bytes([image[place] ^ 1]) + image[place + 1 :]


def addon(stub: bytes, command_line: str) -> bytes:
    """An unsigned addon: systemd's stub for it, with words for the kernel's command line (systemd-stub(7))."""
    return pe.add_section(stub, ".cmdline", command_line.encode(), "addon")


def signed(image: bytes, keys: KeySet) -> bytes:
    """The image signed by the key in db, as ``image`` signs a release."""
    with keys.signer("db", _no_pin) as signer:
        signature = authenticode.sign(image, signer, keys.certificate("db"))
    return pe.attach_signature(image, signature)


def _no_pin(name: str) -> str:
    raise UsageError(f"the key {name} is not in a file")


def luks(path: Path, volume: str) -> bytes:
    """The header of a volume that PASSPHRASE opens, in the form and with the UUID of the node's own."""
    return Luks.format(path, volume, PASSPHRASE).path.read_bytes()


def ext4(path: Path, size: int) -> bytes:
    with path.open("wb") as file:
        file.truncate(size)
    mkfs = find_tool("mkfs.ext4", package="e2fsprogs")
    run([mkfs, "-q", "-F", "-L", "nodeos-state", path], what="making a file system")
    return path.read_bytes()


def disk_like(path: Path, own: Partition, content: bytes, *, size: int = 64 * MIB) -> Path:
    """A disk whose one partition has the type, label and UUID of ``own``, and this content."""
    part = Partition(
        number=1, type=layout.STATE_TYPE, uuid=own.uuid, start=MIB, size=size - 2 * MIB, label=own.label
    )
    table = Table(size=size, sector=512, uuid=uuid.uuid4(), partitions=(part,))
    with path.open("wb") as file:
        file.truncate(size)
        file.write(table.primary())
        file.seek(part.start)
        file.write(content)
        file.seek(table.backup_offset)
        file.write(table.backup())
    return path
