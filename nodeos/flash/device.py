"""An open block device: exclusive, checked to be the one that was chosen, with the ioctls that writing needs.

ioctl numbers are from linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeos.core.errors import Finding, NodeosError, RefusedError
from nodeos.flash.disks import Device

_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
_BLKZEROOUT = 0x127F
_BLKGETSIZE64 = 0x80081272


class BlockDevice:
    """Implements ``writer.Target`` on a descriptor."""

    def __init__(self, descriptor: int, *, size: int, sector: int) -> None:
        self.size = size
        self.sector = sector
        self._descriptor = descriptor
        self._zeroout = True

    def write(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + done, data[done:]

    def zero(self, offset: int, length: int) -> None:
        """BLKZEROOUT gives zeros on every disk: the kernel writes them where the disk can't (unlike BLKDISCARD,
        after which a disk may read as anything)."""
        if self._zeroout:
            try:
                fcntl.ioctl(self._descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length))
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                    raise
                self._zeroout = False
        self.write(offset, memoryview(bytes(length)))

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def forget(self) -> None:
        """From here on reads come from the disk: its cache is dropped and, where it works, not used any more."""
        os.fsync(self._descriptor)
        fcntl.ioctl(self._descriptor, _BLKFLSBUF, 0)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def read(self, offset: int, into: memoryview) -> None:
        done = os.preadv(self._descriptor, [into], offset)
        if done != len(into):
            raise OSError(errno.EIO, f"{done} bytes instead of {len(into)}")

    def reread_partitions(self) -> bool:
        """True if the kernel has taken the new partition table."""
        for _ in range(5):
            try:
                fcntl.ioctl(self._descriptor, _BLKRRPART, 0)
                return True
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return False
            time.sleep(0.2)
        return False


@contextmanager
def opened(device: Device) -> Iterator[BlockDevice]:
    """Open exclusively: no partition of it can be mounted meanwhile. Raises RefusedError if someone holds it, or
    if it isn't the device any more that was looked at."""
    try:
        descriptor = os.open(device.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(device) from error
        raise NodeosError(
            f"{device.path} can't be opened: {error.strerror}",
            hint="run this as root" if error.errno in (errno.EACCES, errno.EPERM) else "check the disk",
        ) from error
    try:
        try:
            # systemd's rule for whole disks: udev leaves it alone as long as it is locked.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(device) from error
        status = os.fstat(descriptor)
        size = 0
        if stat.S_ISBLK(status.st_mode):
            size = int.from_bytes(fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)), "little")
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        if (number, size) != (device.number, device.size):
            message = f"{device.path} is not the disk any more that was looked at"
            raise RefusedError(
                f"{device.path} is left alone",
                (Finding(code="disk.changed", message=message),),
                hint="list the disks again",
            )
        yield BlockDevice(descriptor, size=size, sector=device.sector)
    finally:
        os.close(descriptor)


def _busy(device: Device) -> RefusedError:
    finding = Finding(code="disk.busy", message="some other program holds it")
    return RefusedError(f"{device.path} is left alone", (finding,), hint=f"see `lsof {device.path}`")


def real_path(path: Path) -> Path:
    """/dev/disk/by-id/… is a link; what it leads to is what the kernel knows."""
    return Path(os.path.realpath(path))
