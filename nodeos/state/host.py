"""The machine around the state volume: disks, the mapper, file systems.

The tests' machines replace single methods.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeos.core.errors import NodeosError, ToolError
from nodeos.core.run import run
from nodeos.state import disks
from nodeos.state.contents import MIB

NAME = "state"
MAPPED = f"/dev/mapper/{NAME}"
_BOOTED_FROM = Path("/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
_SCREEN = Path("/dev/tty0")
_HINT = "is the disk healthy? power-cycle; if it stays so, replace it"


class Host:
    """``run`` is a directory in memory: header copies and mount points go there."""

    def __init__(self, run_directory: Path = Path("/run/nodeos")) -> None:
        self.run = run_directory

    def say(self, words: str) -> None:
        """To the journal and the serial console (standard output), and to the person before the screen."""
        line = f"nodeos: state: {words}"
        print(line, flush=True)  # noqa: T201 - a service's output
        try:
            if _SCREEN.is_char_device():
                _SCREEN.write_text(line + "\r\n")
        except OSError:
            pass  # A machine without a screen has the other console.

    # Disks

    def command_line(self) -> bytes:
        return Path("/proc/cmdline").read_bytes()

    def boot_variable(self) -> bytes | None:
        try:
            return _BOOTED_FROM.read_bytes()
        except OSError:
            return None

    def disks(self) -> bytes:
        """What ``disks.find`` takes, once udev has caught up."""
        run(["udevadm", "settle", "--timeout=30"], what="waiting for the disks", good=(0, 1))
        return run(
            ["lsblk", "--json", "--list", "--paths", "--output", disks.COLUMNS], what="listing the disks"
        )

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def read(self, device: str, offset: int, length: int) -> bytes:
        """At most ``length`` bytes; a negative ``offset`` counts from the end."""
        try:
            with Path(device).open("rb", buffering=0) as file:
                file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
                data = b""
                while len(data) < length and (part := file.read(length - len(data))):
                    data += part
                return data
        except OSError as error:
            raise NodeosError(f"{device} can't be read: {error.strerror}", hint=_HINT) from error

    def write(self, device: str, offset: int, data: bytes) -> None:
        """Returns when the data are on the disk."""
        try:
            with Path(device).open("r+b", buffering=0) as file:
                for at in range(0, len(data), MIB):
                    # A raw write may take less than it was given.
                    part = memoryview(data)[at : at + MIB]
                    file.seek(offset + at)
                    while part:
                        part = part[file.write(part) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise NodeosError(f"{device} can't be written: {error.strerror}", hint=_HINT) from error

    @contextmanager
    def boot_files(self, partition: str) -> Iterator[Path]:
        """The EFI system partition, read-only."""
        with self._mounted(partition, "vfat", "ro") as where:
            yield where

    # The volume

    def open(self, header: Path, device: str, key: bytes, keyslot: int) -> None:
        """Map the volume at MAPPED, by ``header`` and not by what the disk shows now."""
        command = ["cryptsetup", "open", "--type", "luks2", "--batch-mode", "--header", str(header)]
        command += ["--key-slot", str(keyslot), "--key-file", "-", device, NAME]
        run(command, what="opening the volume", stdin=key, timeout=300, hint=_HINT)

    def make_filesystem(self) -> None:
        """ext4 with checksums over its metadata. It fills its tables later, while the node runs."""
        command = ["mkfs.ext4", "-q", "-F", "-L", "nodeos-state", "-O", "metadata_csum"]
        command += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", MAPPED]
        run(command, what="making the file system", timeout=1800, hint=_HINT)
        descriptor = os.open(MAPPED, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check_filesystem(self) -> None:
        """Replay the journal and repair what needs no decision. Raises NodeosError if more is broken."""
        try:
            run(["e2fsck", "-p", MAPPED], what="checking the file system", timeout=7200, good=(0, 1, 2))
        except ToolError as error:
            raise NodeosError(
                f"the file system of the state volume is damaged\n{error.message}",
                hint="the disk is failing, or was written to: replace it and install the system anew",
            ) from error

    @contextmanager
    def volume(self) -> Iterator[Path]:
        """The opened volume's files, seen by this process alone."""
        with self._mounted(MAPPED, "ext4", "rw") as where:
            yield where

    @contextmanager
    def _mounted(self, device: str, kind: str, mode: str) -> Iterator[Path]:
        where = self.run / f"mount-{kind}"
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = f"{mode},nodev,nosuid,noexec"
        run(["mount", "-t", kind, "-o", options, device, str(where)], what=f"mounting {device}", hint=_HINT)
        try:
            yield where
        finally:
            run(["umount", str(where)], what=f"unmounting {device}")
            where.rmdir()
