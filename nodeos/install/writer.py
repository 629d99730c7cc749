"""Installs a release in an order that a power cut can't break.

1. A marker takes the place of sector 0, then both old partition tables are erased: the disk boots nothing.
2. The content of ESP and slot A is written; slot B's heads and both ends of the state partition are blanked.
3. All of it is read back from the disk; the hashes of root, verity and signature must be the manifest's.
4. The partition table: backup, primary, and last the protective MBR in the marker's place.

Cut off before 4 the disk has no partition table; before its very last sector it has no protective MBR, without
which firmware and kernel don't use the table (UEFI 2.10, section 5.3). Run again, the marker says that it is
this installation, and what verifies already is not written again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nodeos.core import layout
from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.core.gpt import MIB, Partition, Table
from nodeos.core.site import SignedSite
from nodeos.flash.writer import CHUNK, Report, Target
from nodeos.install import esp
from nodeos.install.permission import Permission
from nodeos.install.source import Source
from nodeos.install.survey import USED_TOKEN, Marker, State, Survey, get, plan, survey, token_record
from nodeos.install.target import Disk

_SYNC_EVERY = 16  # chunks: so that the progress shown is the disk's and not the memory's
_ZEROS = bytes(CHUNK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a partition will hold: the first ``length`` bytes of ``path`` (SHA-256 ``sha256``), then zeros."""

    part: Partition
    path: Path
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished installation. ``written`` are the numbers of the partitions whose content was not there yet;
    ``reread`` says whether the kernel has taken the new table."""

    disk: Disk
    source: Source
    site: SignedSite | None
    table: Table
    pieces: tuple[Piece, ...]
    erased: tuple[str, ...]
    resumed: bool
    written: tuple[int, ...]
    reread: bool
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The result's schema is in docs/operator.md, section "Install"."""
        hashes = {piece.part.number: piece.sha256.hex() for piece in self.pieces}
        return {
            "version": 1,
            "verdict": "installed",
            "target": self.disk.path,
            "disk": {
                **self.disk.identity.to_json(), "sector": self.disk.target.sector, "uuid": str(self.table.uuid),
            },
            "release": self.source.version,
            "root_hash": self.source.root_hash.hex(),
            "site_sha256": self.site.digest.hex() if self.site is not None else None,
            "erased": list(self.erased),
            "resumed": self.resumed,
            "partitions": [
                {**entry, "sha256": hashes.get(part.number), "written": part.number in self.written}
                for entry, part in zip(layout.describe(self.table), self.table.partitions, strict=True)
            ],
            "partitions_reread": self.reread,
            "seconds": round(self.seconds, 2),
        }  # fmt: skip


def install(
    source: Source, disk: Disk, *, site: SignedSite | None, progress: Report,
    permission: Permission | None = None, disk_uuid: uuid.UUID | None = None,
) -> Outcome:  # fmt: skip
    """Install ``source`` to ``disk``. A disk with data is refused unless ``permission`` is there and holds: it is
    used up before the first write.

    Raises RefusedError for a damaged release, with nothing written; NodeosError when the disk fails. ``disk_uuid``
    is random if not given; an unfinished installation keeps its own.
    """
    began = time.monotonic()
    found = survey(source, disk, site)
    source.check_files(progress)
    target = disk.target
    identity = found.marker.disk_uuid if found.marker else disk_uuid or uuid.uuid4()
    table = plan(source, target, identity)
    with tempfile.TemporaryDirectory(prefix="nodeos-install-") as scratch:
        pieces = _pieces(source, site, table, Path(scratch) / "esp")
        token = found.used
        if found.state is State.DATA:
            token = _allow(disk, found, permission)
        with _told(disk, "writing"):
            resumed = found.state is State.UNFINISHED
            # With the backup in place all before it was done: the state partition is not touched any more.
            committed = resumed and get(target, table.backup_offset, len(table.backup())) == table.backup()
            if not committed:
                _begin(target, Marker.of(source, site, target, disk_uuid=identity, token=token))
                _blank(target, table)
            written = _write(target, pieces, progress, compare=resumed)
        with _told(disk, "reading back"):
            target.forget()
            _verify(disk, pieces, progress)
            if not committed:
                _verify_blank(disk, table)
        with _told(disk, "writing the partition table"):
            _finish(disk, table)
    return Outcome(
        disk=disk, source=source, site=site, table=table, pieces=pieces,
        erased=found.contents if found.state is State.DATA else (), resumed=resumed, written=written,
        reread=disk.reread(), seconds=time.monotonic() - began,
    )  # fmt: skip


def _allow(disk: Disk, found: Survey, permission: Permission | None) -> bytes:
    """The digest of the token that is used up now."""
    if permission is None:
        raise refusal(disk, found.contents, hint="it needs the operator's permission (an erase token)")
    return permission.use(disk.identity, found.used)


def refusal(disk: Disk, contents: tuple[str, ...], *, hint: str) -> RefusedError:
    """What a disk with data on it is refused with."""
    findings = tuple(Finding(code="disk.data", message=line.strip()) for line in contents)
    return RefusedError(f"{disk.path} holds data and is left alone", findings, hint=hint)


@contextmanager
def _told(disk: Disk, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeosError(
            f"{doing} failed on {disk.path}: {error.strerror or error}",
            hint="run the same command again: it goes on where it was. If that fails too take another disk",
        ) from error


def _pieces(source: Source, site: SignedSite | None, table: Table, scratch: Path) -> tuple[Piece, ...]:
    part = layout.esp(table)
    esp.make(
        scratch,
        esp.files(source, site),
        sector=table.sector,
        volume_id=part.uuid.int >> 96,
        epoch=source.release.source_date_epoch,
    )
    length, sha256 = _trimmed(scratch)
    slot, _ = layout.slots(table)
    pieces = [Piece(part=part, path=scratch, length=length, sha256=sha256)]
    for part, name in zip(slot.partitions, ("root.raw", "verity.raw", "verity-sig.json"), strict=True):
        wanted = source.artefacts[name]
        pieces.append(
            Piece(part=part, path=source.directory / name, length=wanted.size, sha256=wanted.sha256)
        )
    return tuple(pieces)


def _trimmed(path: Path) -> tuple[int, bytes]:
    """How long a file is without the zero chunks at its end, and the SHA-256 of that."""
    length, digest, waiting = 0, hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        end = _data_end(file.fileno())
        while length + waiting < end and (data := file.read(CHUNK)):
            if data == _ZEROS[: len(data)]:
                waiting += len(data)
                continue
            for _ in range(waiting // CHUNK):
                digest.update(_ZEROS)
            digest.update(data)
            length, waiting = length + waiting + len(data), 0
    return length, digest.digest()


def _data_end(descriptor: int) -> int:
    """Where a sparse file's last data ends: what is behind it need not be read."""
    end = 0
    while True:
        try:
            end = os.lseek(descriptor, os.lseek(descriptor, end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as error:
            os.lseek(descriptor, 0, os.SEEK_SET)
            if error.errno == errno.ENXIO:  # there is no more
                return end
            raise


def _begin(target: Target, marker: Marker) -> None:
    """From the first write on the disk boots nothing, and says why."""
    _put(target, 0, marker.to_bytes().ljust(target.sector, b"\0"))
    target.sync()
    target.zero(target.sector, MIB - target.sector)
    _put(target, USED_TOKEN, token_record(marker.token))
    target.zero(target.size - MIB, MIB)
    target.sync()


def _blank_ranges(table: Table) -> list[tuple[int, int]]:
    """Offset and length of what must be zero: the beginnings of slot B, and both ends of the state partition."""
    state = layout.state(table)
    ranges = [(part.start, MIB) for part in layout.slots(table)[1].partitions]
    return [*ranges, (state.start, layout.STATE_BLANK), (state.end - layout.STATE_BLANK, layout.STATE_BLANK)]


def _blank(target: Target, table: Table) -> None:
    for offset, length in _blank_ranges(table):
        target.zero(offset, length)
    target.sync()


def _write(target: Target, pieces: tuple[Piece, ...], report: Report, *, compare: bool) -> tuple[int, ...]:
    """The numbers of the partitions that were written; with ``compare`` one that verifies already is not."""
    total = sum(piece.part.size for piece in pieces)
    done, written = 0, []
    buffer = _buffer()
    for piece in pieces:
        if compare and _holds(target, piece, buffer, lambda _: None):
            done += piece.part.size
            continue
        written.append(piece.part.number)
        with piece.path.open("rb", buffering=0) as file:
            for count, offset in enumerate(range(0, piece.part.size, CHUNK), 1):
                size = min(CHUNK, piece.part.size - offset)
                data = buffer[:size]
                if _fill(file, piece, offset, data) and bytes(data) != _ZEROS[:size]:
                    target.write(piece.part.start + offset, data)
                else:
                    target.zero(piece.part.start + offset, size)
                if count % _SYNC_EVERY == 0:
                    target.sync()
                report("write", done + offset + size, total)
        done += piece.part.size
        target.sync()
    return tuple(written)


def _fill(file: io.RawIOBase, piece: Piece, offset: int, data: memoryview) -> bool:
    """Read the piece's bytes, zeros behind its end. False if there are no bytes at all."""
    wanted = max(0, min(len(data), piece.length - offset))
    done = 0
    while done < wanted:
        count = file.readinto(data[done:wanted])
        if not count:
            raise NodeosError(
                f"{piece.path} became shorter while it was read", hint="get the release again, run this again"
            )
        done += count
    data[wanted:] = _ZEROS[: len(data) - wanted]
    return wanted > 0


def _verify(disk: Disk, pieces: tuple[Piece, ...], report: Report) -> None:
    total = sum(piece.part.size for piece in pieces)
    done, buffer = 0, _buffer()
    for piece in pieces:
        if not _holds(disk.target, piece, buffer, partial(_shifted, report, done, total)):
            raise _differs(disk, f"partition {piece.part.number} ({piece.part.label})")
        done += piece.part.size


def _shifted(report: Report, before: int, total: int, done: int) -> None:
    report("verify", before + done, total)


def _holds(target: Target, piece: Piece, buffer: memoryview, report: Callable[[int], None]) -> bool:
    """Whether the partition holds the piece: the hash of its bytes, and zeros behind."""
    digest = hashlib.sha256()
    for offset in range(0, piece.part.size, CHUNK):
        size = min(CHUNK, piece.part.size - offset)
        data = buffer[:size]
        target.read(piece.part.start + offset, data)
        content = max(0, min(size, piece.length - offset))
        digest.update(data[:content])
        if bytes(data[content:]) != _ZEROS[: size - content]:
            return False
        report(offset + size)
    return digest.digest() == piece.sha256


def _verify_blank(disk: Disk, table: Table) -> None:
    for offset, length in _blank_ranges(table):
        if any(get(disk.target, offset, length)):
            raise _differs(disk, f"byte {offset} and after")


def _finish(disk: Disk, table: Table) -> None:
    target, primary = disk.target, table.primary()
    _put(target, table.backup_offset, table.backup())
    target.sync()
    _put(target, table.sector, primary[table.sector :])
    target.sync()
    _put(target, 0, primary[: table.sector])
    target.sync()
    target.forget()
    found = Table.parse(lambda offset, length: _read_any(target, offset, length), target.size, target.sector)
    if found != table:
        raise _differs(disk, "the partition table")


def _read_any(target: Target, offset: int, length: int) -> bytes:
    """Whole sectors are read, whatever was asked for."""
    whole = -(-length // target.sector) * target.sector
    return get(target, offset, whole)[:length] if offset + whole <= target.size else b""


def _differs(disk: Disk, where: str) -> NodeosError:
    return NodeosError(
        f"{disk.path} does not hold what was written: {where}",
        hint="run this again; if it fails again, the disk fails or has less room than it says: take another one",
    )


def _buffer() -> memoryview:
    """A chunk of memory that begins at a page, as O_DIRECT wants it."""
    return memoryview(mmap.mmap(-1, CHUNK))


def _put(target: Target, offset: int, data: bytes) -> None:
    """Whole sectors, from memory that begins at a page."""
    view = memoryview(mmap.mmap(-1, len(data)))
    view[:] = data
    target.write(offset, view)
