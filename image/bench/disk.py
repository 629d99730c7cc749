"""How fast `nodeos install` and `nodeos flash` write, beside the tools that a person would take instead.

In one run, to one file system, each from the page cache: the tools' speed and not the disk's before them.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image.builder import Progress
from image.keys import KeySet
from image.release_dir import ReleaseDir
from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run

_SIZE = 8 << 30
_MIB = 1 << 20


def measure(release: ReleaseDir, keys: KeySet, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Seconds and bytes of each way."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        return {
            "install": _install(release, keys, scratch, progress),
            "flash": _flash(release, scratch, progress),
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _install(release: ReleaseDir, keys: KeySet, scratch: Path, progress: Progress) -> dict[str, Any]:
    """A new disk image of 8 GiB: checked, written, read back; then copied by `cp` and `dd`."""
    disk, copy = scratch / "disk.raw", scratch / "copy.raw"
    command: list[str | Path] = [
        sys.executable, "-m", "nodeos", "--json", "install", release.directory, "--file", disk,
        "--size", str(_SIZE), "--release-key", keys.public_file("release"),
    ]  # fmt: skip
    progress("nodeos install --file")
    seconds = _seconds(command)
    figures = {"bytes": disk.stat().st_blocks * 512, "seconds": seconds}
    copies: dict[str, list[str | Path]] = {
        "cp_seconds": ["cp", "--sparse=always", disk, copy],
        "dd_seconds": ["dd", f"if={disk}", f"of={copy}", "bs=4M", "conv=sparse,fsync", "status=none"],
    }
    for name, words in copies.items():
        progress(f"{words[0]} of the same image")
        figures[name] = _seconds(words, sync=copy)
        copy.unlink()
    return figures


def _flash(release: ReleaseDir, scratch: Path, progress: Progress) -> dict[str, Any]:
    """The largest artefact, twice over, written to a loop device: with and without reading back."""
    image, backing = scratch / "image.raw", scratch / "backing.raw"
    data = (release.directory / "installer.efi").read_bytes()
    data = data[: len(data) // _MIB * _MIB]
    image.write_bytes(data * 2)
    figures: dict[str, Any] = {"bytes": len(data) * 2}
    with loop(backing, len(data) * 2 + 64 * _MIB) as device:
        progress("nodeos flash")
        words: list[str | Path] = [sys.executable, "-m", "nodeos", "--json", "flash", image, device, "--yes"]
        began = time.monotonic()
        output = run(words, what="nodeos flash", timeout=1800)
        figures["seconds"] = round(time.monotonic() - began, 2)
        figures["phases"] = json.loads(output)["seconds"]
        progress("dd of the same image")
        figures["dd_seconds"] = _seconds(
            ["dd", f"if={image}", f"of={device}", "bs=4M", "conv=fsync", "oflag=direct", "status=none"]
        )
        progress("cmp, to compare as flash does")
        run(["blockdev", "--flushbufs", device], what="dropping the device's cache")
        figures["cmp_seconds"] = _seconds(["cmp", f"--bytes={len(data) * 2}", image, device])
    return figures


@contextmanager
def loop(backing: Path, size: int) -> Iterator[str]:
    """A loop device on a new file of ``size`` bytes, all of them written, as on a disk in use."""
    losetup = find_tool("losetup", package="mount")
    with backing.open("wb") as file:
        for _ in range(size // _MIB):
            file.write(b"\xa5" * _MIB)
    try:
        name = run([losetup, "--find", "--show", backing], what="making a loop device").decode().strip()
    except ToolError as error:
        raise ToolError(
            f"no loop device: {error.message}", hint="run it as root, on a host with loop devices"
        ) from error
    try:
        # udev's scans would be measured too; and an old table on it would have to be erased first.
        run(
            ["dd", "if=/dev/zero", f"of={name}", "bs=1M", "count=8", "conv=fsync", "status=none"],
            what="blanking",
        )
        yield name
    finally:
        run([losetup, "--detach", name], what="removing the loop device")


def _seconds(command: list[str | Path], *, sync: Path | None = None) -> float:
    began = time.monotonic()
    run(command, what=str(command[0]), timeout=1800)
    if sync is not None:
        run(["sync", sync], what="sync")
    return round(time.monotonic() - began, 2)
