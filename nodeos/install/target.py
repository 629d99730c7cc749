"""What a release is installed to: a whole disk, or a sparse file that a machine will see as one."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodeos.core import layout
from nodeos.core.erase import DiskIdentity
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError
from nodeos.flash.device import opened, real_path
from nodeos.flash.disks import Facts, Image, Partition, candidates
from nodeos.flash.sysfs import read_facts
from nodeos.flash.writer import Target

_ELSEWHERE = "`lsblk` lists the disks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """An open target, held against others. ``names`` are what a person may type to mean this disk; ``partitions``
    are those that the kernel sees now; ``reread`` makes it look again, and says whether it did."""

    target: Target
    path: str
    identity: DiskIdentity
    names: tuple[str, ...]
    partitions: tuple[Partition, ...]
    is_file: bool
    reread: Callable[[], bool]


@contextmanager
def open_disk(path: Path, release: Path, facts: Facts | None = None) -> Iterator[Disk]:
    """A whole disk that may be installed to. Raises RefusedError with every reason against it: mounted, in use,
    the system's own, the one that ``release`` (a directory) lies on, read-only, too small."""
    number = release.stat().st_dev
    medium = Image(
        path=os.path.realpath(release), size=layout.MINIMUM, number=f"{os.major(number)}:{os.minor(number)}"
    )
    real = str(real_path(path))
    found = candidates(facts or read_facts(), medium)
    chosen = next((item for item in found if item.device.path == real), None)
    refusals = (
        (Finding(code="disk.kind", message="it is no whole disk"),) if chosen is None else chosen.refusals
    )
    if chosen is None or refusals:
        raise RefusedError(f"{path} is left alone", refusals, hint=_ELSEWHERE)
    device = chosen.device
    with opened(device) as target:
        yield Disk(
            target=target,
            path=device.path,
            identity=DiskIdentity(serial=device.serial, model=device.model, size=target.size),
            names=tuple(dict.fromkeys(name for name in (device.serial, device.name) if name)),
            partitions=device.partitions,
            is_file=False,
            reread=target.reread_partitions,
        )


@contextmanager
def open_file(path: Path, size: int, sector: int = 512) -> Iterator[Disk]:
    """A disk image of ``size`` bytes, made if it isn't there. One that is there must have that size; what it holds
    is judged like a disk's content. Raises UsageError for a file that can't be it."""
    if size < layout.MINIMUM or size % sector:
        raise UsageError(
            f"{path}: {size} bytes are no size for a disk: at least {layout.MINIMUM}, in whole sectors of {sector}"
        )
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            finding = Finding(code="disk.busy", message="some other program holds it")
            raise RefusedError(f"{path} is left alone", (finding,)) from error
        there = os.fstat(descriptor).st_size
        if there not in (0, size):
            raise UsageError(f"{path} is there already and has {there} bytes", hint="name another file")
        os.ftruncate(descriptor, size)
        yield Disk(
            target=FileTarget(descriptor, size=size, sector=sector),
            path=str(path),
            identity=DiskIdentity(serial="", model="file", size=size),
            names=(str(path),),
            partitions=(),
            is_file=True,
            reread=lambda: True,
        )
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", hint="name a disk without --file")
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NodeosError(f"{path} can't be opened: {error.strerror}", hint="check the path") from error


class FileTarget:
    """Implements ``nodeos.flash.writer.Target`` on a file; zeros become holes where nothing was yet."""

    def __init__(self, descriptor: int, *, size: int, sector: int) -> None:
        self.size = size
        self.sector = sector
        self._descriptor = descriptor

    def write(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + done, data[done:]

    def zero(self, offset: int, length: int) -> None:
        if not self._hole(offset, length):
            self.write(offset, memoryview(bytes(length)))

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def forget(self) -> None:
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, into: memoryview) -> None:
        if self._hole(offset, len(into)):
            into[:] = bytes(len(into))
            return
        done = 0
        while done < len(into):
            count = os.preadv(self._descriptor, [into[done:]], offset + done)
            if not count:
                raise OSError(errno.EIO, f"{done} bytes instead of {len(into)}")
            done += count

    def _hole(self, offset: int, length: int) -> bool:
        """True if the file system has nothing there, which reads as zeros."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return offset + length <= self.size
            raise
