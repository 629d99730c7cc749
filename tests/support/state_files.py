"""Files of a state volume on the disk of a machine that is off, with the operator's recovery key and no mapper.

This is what a person can do who holds the disk and the operator's token. The tests put there what an update leaves
for the boot after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from hsm.box import open_box
from hsm.identity import open_operator
from image.vm import copy_sparse
from nodeos.core.gpt import Partition
from nodeos.core.recovery import recovery_context
from nodeos.core.run import find_tool, run
from nodeos.state import header as headers
from nodeos.state.header import DATA_OFFSET, SECTOR_SIZE, Header
from nodeos.state.luks import Luks


def read_header(disk: Path, state: Partition, scratch: Path) -> tuple[Luks, Header]:
    """The volume's header, in the file ``scratch``."""
    with disk.open("rb") as file:
        scratch.write_bytes(os.pread(file.fileno(), DATA_OFFSET, state.start))
    luks = Luks(scratch)
    return luks, headers.parse(luks.metadata(), luks.uuid(), disk.name)


def volume_key(disk: Path, state: Partition, scratch: Path, *, identity: Path, pin: str) -> bytes:
    """The volume's key. The operator's token decrypts the recovery key, which opens a key slot."""
    luks, header = read_header(disk, state, scratch)
    blob = header.recovery
    assert blob is not None
    with open_operator(identity, lambda: pin) as keys:
        secret = open_box(
            keys.agreement, blob.box, recovery_context(machine=blob.machine, volume=blob.volume)
        )
    return luks.volume_key(secret, blob.keyslot)


def put_files(disk: Path, state: Partition, key: bytes, files: Mapping[str, bytes], scratch: Path) -> None:
    """Write files of root's (mode 0600) to the volume's file system, by their paths on it. Folders are made.

    ``scratch`` is an empty folder.
    """
    plain, before = scratch / "plain", scratch / "before"
    _decrypt(disk, state, key, plain)
    run([_tool("e2fsck"), "-f", "-p", plain], what="checking the file system", good=(0, 1), timeout=300)
    copy_sparse(plain, before)
    # debugfs spoils the file system when a folder is there already.
    folders = {
        str(folder): None for name in sorted(files) for folder in reversed(PurePosixPath(name).parents)
    }
    script = [f"mkdir {folder}" for folder in folders if not _is_there(plain, folder)]
    for number, (name, data) in enumerate(sorted(files.items())):
        (scratch / str(number)).write_bytes(data)
        script += [f"write {scratch / str(number)} {name}", f"sif {name} mode 0100600"]
    (scratch / "script").write_text("\n".join(script) + "\n")
    run([_tool("debugfs"), "-w", "-f", scratch / "script", plain], what="writing files", timeout=300)
    run([_tool("e2fsck"), "-f", "-n", plain], what="checking the file system", timeout=300)
    _encrypt_changes(disk, state, key, before, plain)


def _is_there(plain: Path, name: str) -> bool:
    command: list[str | Path] = [_tool("debugfs"), "-R", f"stat {name}", plain]
    return b"Inode: " in run(command, what="looking for a folder")


def _tool(name: str) -> str:
    return find_tool(name, package="e2fsprogs")


def _sector(key: bytes, number: int) -> Cipher[XTS]:
    """dm-crypt counts its tweak ("plain64") in units of 512 bytes, whatever the sector's size."""
    return Cipher(AES(key), XTS((number * (SECTOR_SIZE // 512)).to_bytes(16, "little")))


def _decrypt(disk: Path, state: Partition, key: bytes, plain: Path) -> None:
    """A sector that was never written is a hole here too."""
    start = state.start + DATA_OFFSET
    with disk.open("rb") as source, plain.open("wb") as target:
        target.truncate(state.end - start)
        for place in _data(source.fileno(), start, state.end):
            sector = os.pread(source.fileno(), SECTOR_SIZE, place)
            if any(sector):
                number = (place - start) // SECTOR_SIZE
                data = _sector(key, number).decryptor().update(sector)
                os.pwrite(target.fileno(), data, number * SECTOR_SIZE)


def _encrypt_changes(disk: Path, state: Partition, key: bytes, before: Path, after: Path) -> None:
    start = state.start + DATA_OFFSET
    with _opened(before) as old, _opened(after) as new, disk.open("r+b") as target:
        for place in _data(new, 0, after.stat().st_size):
            sector = os.pread(new, SECTOR_SIZE, place)
            if sector != os.pread(old, SECTOR_SIZE, place):
                data = _sector(key, place // SECTOR_SIZE).encryptor().update(sector)
                os.pwrite(target.fileno(), data, start + place)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        yield file.fileno()


def _data(descriptor: int, start: int, end: int) -> Iterator[int]:
    """The sectors between two places of a file that are in no hole."""
    place = start
    while place < end:
        try:
            place = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError:  # there is no more
            return
        place -= (place - start) % SECTOR_SIZE
        hole = os.lseek(descriptor, place, os.SEEK_HOLE)
        while place < min(hole, end):
            yield place
            place += SECTOR_SIZE
