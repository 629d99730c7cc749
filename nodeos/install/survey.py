"""What is on a target before anything is written: nothing, data, or our own unfinished work. Only reads."""

from __future__ import annotations

import hashlib
import mmap
import uuid
from dataclasses import dataclass
from enum import StrEnum

from nodeos.core import layout
from nodeos.core.gpt import MIB, Table
from nodeos.core.site import SignedSite
from nodeos.core.wire import canonical_json
from nodeos.flash.progress import size_text
from nodeos.flash.signatures import NEEDED, signatures
from nodeos.flash.writer import Target
from nodeos.install.source import Source
from nodeos.install.target import Disk

_MAGIC = b"NODEOS\x01I"
_USED = b"NODEOS\x01E"
NO_TOKEN = bytes(32)
# Where an installed disk says with which token it was erased: in its first MiB, which nothing else uses there.
USED_TOKEN = MIB - 4096
_HEAD = 128 << 10  # enough for NEEDED, in whole sectors


class State(StrEnum):
    """``UNFINISHED`` is an installation of this very release, site and size that was cut off."""

    BLANK = "blank"
    DATA = "data"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """``contents`` are lines for people; ``marker`` is that of the unfinished installation, ``used`` the digest of
    the erase token that this disk was last erased with."""

    state: State
    contents: tuple[str, ...]
    used: bytes
    marker: Marker | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What sector 0 holds while an installation is not finished: the digest of what is being installed. The
    protective MBR takes its place as the very last write, so a disk has the one or the other. ``token`` is the
    digest of the erase token that was used, or NO_TOKEN."""

    plan: bytes
    disk_uuid: uuid.UUID
    token: bytes

    @classmethod
    def of(
        cls, source: Source, site: SignedSite | None, target: Target, *, disk_uuid: uuid.UUID, token: bytes
    ) -> Marker:
        what = {
            "release": source.digest.hex(), "site": site.digest.hex() if site is not None else None,
            "size": target.size, "sector": target.sector, "disk": str(disk_uuid),
        }  # fmt: skip
        plan = hashlib.sha256(canonical_json(what)).digest()
        return cls(plan=plan, disk_uuid=disk_uuid, token=token)

    def to_bytes(self) -> bytes:
        data = _MAGIC + self.plan + self.disk_uuid.bytes + self.token
        return data + hashlib.sha256(data).digest()

    @classmethod
    def parse(cls, data: bytes) -> Marker | None:
        """None if it is none, or was not written whole."""
        if data[:8] != _MAGIC or data[88:120] != hashlib.sha256(data[:88]).digest():
            return None
        return cls(plan=data[8:40], disk_uuid=uuid.UUID(bytes=data[40:56]), token=data[56:88])


def survey(source: Source, disk: Disk, site: SignedSite | None) -> Survey:
    """Look at the target. Whatever is not known to be blank or our own is data."""
    target = disk.target
    head, tail = get(target, 0, MIB), get(target, target.size - MIB, MIB)
    marker = Marker.parse(head)
    if marker is not None:
        if Marker.of(source, site, target, disk_uuid=marker.disk_uuid, token=marker.token) == marker:
            told = f"{disk.path}: this installation, unfinished"
            return Survey(state=State.UNFINISHED, contents=(told,), used=marker.token, marker=marker)
        told = f"{disk.path}: an unfinished installation of something else, or of another size"
        return Survey(state=State.DATA, contents=(told,), used=marker.token)
    used = head[USED_TOKEN + 8 : USED_TOKEN + 40] if head[USED_TOKEN:].startswith(_USED) else NO_TOKEN
    # Where a planned partition would begin is looked at too: a wiped table does not make data worthless.
    table = plan(source, target, uuid.UUID(int=0))
    starts = {part.start: (f"at {size_text(part.start)}", part.size) for part in table.partitions}
    starts |= {part.start: (part.name, part.size) for part in disk.partitions}
    found = []
    for start, (name, size) in sorted(starts.items()):
        kinds = signatures(get(target, start, _HEAD)[:NEEDED]) if start + _HEAD <= target.size else ()
        if kinds:
            found.append(f"  {name}: {', '.join(kinds)}, {size_text(size)}")
    if not (any(head) or any(tail) or disk.partitions or found):
        return Survey(state=State.BLANK, contents=(f"{disk.path}: empty",), used=NO_TOKEN)
    kinds = signatures(head[:NEEDED]) or (("data in its first MiB",) if any(head) else ())
    kinds += ("data in its last MiB",) if any(tail) else ()
    whole = f"{disk.path}: {', '.join(kinds) or 'no partition table'}"
    return Survey(state=State.DATA, contents=(whole, *found), used=used)


def token_record(token: bytes) -> bytes:
    """What is at USED_TOKEN: nothing if the disk was empty. It makes a token good once, whoever keeps a copy of
    it and of its challenge: the disk that it is for knows it."""
    return (_USED + token if token != NO_TOKEN else b"").ljust(4096, b"\0")


def plan(source: Source, target: Target, disk_uuid: uuid.UUID) -> Table:
    """The table that this release gets on this target."""
    return layout.plan(
        target.size, target.sector, version=source.version, root_hash=source.root_hash, disk_uuid=disk_uuid
    )


def get(target: Target, offset: int, length: int) -> bytes:
    """Bytes of the target, read into memory that begins at a page, as O_DIRECT wants it."""
    with mmap.mmap(-1, length) as memory:
        with memoryview(memory) as view:
            target.read(offset, view)
        return memory[:]
