"""Writes a release's KEK, db and dbx to the firmware, through efivarfs.

The kernel guards Secure Boot's variables with the immutable flag (Documentation/filesystems/efivarfs.rst); it
is taken off for the write and put back. A write is one call: attributes, then the .auth file. The firmware
checks the signature itself. What is applied already is left alone, so this can be run again after a power
cut.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nodeos.core import secureboot
from nodeos.core.efilists import APPEND, ATTRIBUTES, VENDORS, Update
from nodeos.core.efivarfs import read_variable
from nodeos.core.errors import NodeosError
from nodeos.update.candidate import VARIABLES
from nodeos.update.preflight import update_appends

EFIVARS = Path("/sys/firmware/efi/efivars")
# linux/fs.h
_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10

# Sets (True) or clears the immutable flag of an open file; returns how it was.
Immutable = Callable[[int, bool], bool]


def read_lists(directory: Path) -> dict[str, bytes]:
    """The values of PK, KEK, db and dbx; one that isn't there is empty."""
    return {name: read_variable(directory, name, str(vendor)) or b"" for name, vendor in VENDORS.items()}


def apply_variables(
    updates: Mapping[str, bytes], directory: Path = EFIVARS, immutable: Immutable | None = None
) -> tuple[str, ...]:
    """Apply the .auth files of KEK, db and dbx in this order; returns the names of those that were written.

    A new signer must be known before the old one is revoked, and the preflight held the release to that order.
    Raises UsageError if no key that may change a variable signed its update, NodeosError if the firmware refuses.
    """
    written = []
    for name in VARIABLES:
        if name not in updates:
            continue
        lists = read_lists(directory)
        update, append = Update.parse(updates[name]), update_appends(name, updates[name], lists)
        wanted = secureboot.updated(lists[name], update.data, append=append)
        if wanted == lists[name]:
            continue
        path = directory / f"{name}-{VENDORS[name]}"
        attributes = struct.pack("<I", ATTRIBUTES | (APPEND if append else 0))
        _write(path, name, attributes + updates[name], immutable or ioctl_immutable)
        written.append(name)
    return tuple(written)


def _write(path: Path, name: str, data: bytes, immutable: Immutable) -> None:
    try:
        with _unlocked(path, immutable):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                done = os.write(descriptor, data)
            finally:
                os.close(descriptor)
    except OSError as error:
        hint = (
            "it holds an update as late as this one: release a later one"
            if error.errno == errno.EACCES
            else None
        )
        raise NodeosError(f"the firmware refuses the new {name}: {error.strerror}", hint=hint) from error
    if done != len(data):
        raise NodeosError(f"the firmware took {done} of {len(data)} bytes of the new {name}")


@contextmanager
def _unlocked(path: Path, immutable: Immutable) -> Iterator[None]:
    if not path.exists():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        was = immutable(descriptor, False)
        try:
            yield
        finally:
            if was:
                immutable(descriptor, True)
    finally:
        os.close(descriptor)


def ioctl_immutable(descriptor: int, wanted: bool) -> bool:
    """chattr +i and -i."""
    flags = struct.unpack("i", fcntl.ioctl(descriptor, _GETFLAGS, bytes(4)))[0]
    changed = flags | _IMMUTABLE if wanted else flags & ~_IMMUTABLE
    if changed != flags:
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("i", changed))
    return bool(flags & _IMMUTABLE)
