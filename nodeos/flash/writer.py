"""Writes an image to a target and compares what the target then holds.

The first chunk holds the partition table. It is erased first and written last, so a disk on which the writing was
cut off does not boot; running it again from the beginning is always right.

A larger disk: the image's backup GPT stays at the image's end, where the image's primary header says that it is
(UEFI 2.10, 5.3.2: AlternateLBA), so firmware and kernel find a valid pair. Signatures of older use in the disk's
last MiB (its old backup GPT, RAID metadata) are erased. The disk begins with exactly the image's bytes.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nodeos.core.errors import NodeosError

CHUNK = 4 << 20
TAIL = 1 << 20
_SYNC_EVERY = 16  # chunks: so that the progress shown is the disk's and not the memory's

Report = Callable[[str, int, int], None]
"""Called with the phase ("check", "write", "verify"), the bytes done, and the bytes in all."""


class Target(Protocol):
    """What is written to. Offsets and lengths are multiples of ``sector``; errors are OSError."""

    size: int
    sector: int

    def write(self, offset: int, data: memoryview) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def sync(self) -> None: ...
    def forget(self) -> None: ...
    def read(self, offset: int, into: memoryview) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was written: the image's SHA-256, that of each chunk (the last one padded to whole sectors), the
    bytes from the beginning that they cover, and where the erased tail begins."""

    sha256: bytes
    chunks: tuple[bytes, ...]
    covered: int
    tail: int


def digest(image: io.FileIO, size: int, report: Report) -> bytes:
    """SHA-256 of the image."""
    total = hashlib.sha256()
    view = _buffer()
    report("check", 0, size)
    for offset in range(0, size, CHUNK):
        length = min(CHUNK, size - offset)
        _fill(image, offset, view[:length])
        total.update(view[:length])
        report("check", offset + length, size)
    return total.digest()


def write(image: io.FileIO, size: int, target: Target, report: Report) -> Plan:
    """Write ``size`` bytes of the image. Raises NodeosError that names the offset if the target fails."""
    covered = -(-size // target.sector) * target.sector
    tail = max(covered, target.size - TAIL)
    total = hashlib.sha256()
    chunks: list[bytes] = []
    offset = 0
    report("write", 0, size)
    view, head = _buffer(), _buffer()
    of_zeros = hashlib.sha256(bytes(CHUNK)).digest()
    try:
        target.zero(0, min(CHUNK, covered))
        # On a disk just as large as the image too: until then firmware could start from the old backup GPT.
        offset = max(min(CHUNK, covered), target.size - TAIL)
        if offset < target.size:
            target.zero(offset, target.size - offset)
        target.sync()
        for offset in range(0, covered, CHUNK):
            data = (view if offset else head)[: min(CHUNK, covered - offset)]
            length = min(len(data), size - offset)
            _fill(image, offset, data[:length])
            data[length:] = bytes(len(data) - length)
            total.update(data[:length])
            chunks.append(hashlib.sha256(data).digest())
            if offset and chunks[-1] == of_zeros:
                target.zero(offset, len(data))
            elif offset:
                target.write(offset, data)
            if len(chunks) % _SYNC_EVERY == 0:
                target.sync()
            if offset + length < size:
                report("write", offset + length, size)
        target.sync()
        offset = 0
        target.write(0, head[: min(CHUNK, covered)])
        target.sync()
        report("write", size, size)
    except OSError as error:
        raise NodeosError(
            f"writing failed at byte {offset}: {error.strerror or error}",
            hint="the disk must not be used as it is; check its cable, try again, or take another disk",
        ) from error
    return Plan(sha256=total.digest(), chunks=tuple(chunks), covered=covered, tail=tail)


def verify(image: io.FileIO, plan: Plan, target: Target, report: Report) -> None:
    """Read everything back. Raises NodeosError with the offset of the first byte that differs."""
    offset = 0
    report("verify", 0, plan.covered)
    view = _buffer()
    try:
        target.forget()
        for index, expected in enumerate(plan.chunks):
            offset = index * CHUNK
            data = view[: min(CHUNK, plan.covered - offset)]
            target.read(offset, data)
            if hashlib.sha256(data).digest() != expected:
                raise _differs(offset + _first_difference(image, offset, data))
            report("verify", offset + len(data), plan.covered)
        if plan.tail < target.size:
            offset = plan.tail
            data = view[: target.size - plan.tail]
            target.read(offset, data)
            left = bytes(data).lstrip(b"\0")
            if left:
                raise _differs(target.size - len(left))
    except OSError as error:
        raise NodeosError(
            f"reading back failed at byte {offset}: {error.strerror or error}",
            hint="the disk must not be used; take another one",
        ) from error


def _buffer() -> memoryview:
    """A chunk of memory that begins at a page, as O_DIRECT wants it."""
    return memoryview(mmap.mmap(-1, CHUNK))


def _differs(offset: int) -> NodeosError:
    return NodeosError(
        f"the disk does not hold what was written: the first difference is at byte {offset}",
        hint="the disk must not be used; it fails, or has less room than it says. Take another one",
    )


def _first_difference(image: io.FileIO, offset: int, data: memoryview) -> int:
    """Within the chunk; 0 if the image has changed since and can't tell."""
    image.seek(offset)
    wanted = image.read(len(data)).ljust(len(data), b"\0")
    return next((at for at, (a, b) in enumerate(zip(wanted, data, strict=False)) if a != b), 0)


def _fill(image: io.FileIO, offset: int, into: memoryview) -> None:
    image.seek(offset)
    done = 0
    while done < len(into):
        count = image.readinto(into[done:])
        if not count:
            raise NodeosError(
                f"the image became shorter while it was read: it ends at byte {offset + done}",
                hint="if the disk was being written to it must not be used; run this again",
            )
        done += count
