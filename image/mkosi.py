"""Which mkosi builds the image: the host's, if it fits, else Debian trixie's own at a pinned version."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from image import apt
from nodeos.core.errors import ToolError
from nodeos.core.run import find_tool, run

VERSION = "25.3"
PACKAGE_VERSION = "25.3-7"
PACKAGE_SHA256 = "ef56c81324fd47d65490e944ec4697bb3f6fb21326d0d071bfc2fb5ba5383252"


def host_command() -> list[str] | None:
    """The host's mkosi, if it is of the version that the configuration was written for."""
    found = shutil.which("mkosi")
    if not found:
        return None
    answer = run([found, "--version"], what="asking mkosi for its version").decode().split()
    return [found] if answer and answer[-1] == VERSION else None


def command(directory: Path, package: Path | None = None) -> list[str]:
    """The command that starts mkosi. If the host has none that fits, it is unpacked below ``directory``.

    It comes from ``package``, or without one from the mirror.
    Raises ToolError if the fetched package is not the pinned one.
    """
    host = host_command()
    if host:
        return host
    unpacked = directory / f"mkosi-{PACKAGE_VERSION}"
    library = unpacked / "usr/lib/python3/dist-packages"
    if not library.is_dir():
        fetched = package or apt.download(
            "mkosi", PACKAGE_VERSION, directory=directory / "packages", scratch=directory / "apt"
        )
        digest = hashlib.sha256(fetched.read_bytes()).hexdigest()
        if digest != PACKAGE_SHA256:
            fetched.unlink()
            raise ToolError(
                f"{fetched.name} has SHA-256 {digest}, pinned is {PACKAGE_SHA256}",
                hint="don't use this mirror before you know why; the pin is in image/mkosi.py",
            )
        fresh = unpacked.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        run([find_tool("dpkg-deb", package="dpkg"), "-x", fetched, fresh], what=f"unpacking {fetched.name}")
        fresh.rename(unpacked)
    # mkosi itself is pure Python; the tools that it runs come from its trixie tools tree, not from the host.
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mkosi.__main__ import main; main()"
    return [sys.executable, "-I", "-c", start, str(library)]
