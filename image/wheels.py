"""The Python packages that go into the image, fetched by the host with pinned hashes, installed offline."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from nodeos.core.run import run

PYTHON = "3.13"
# tpm2-pytss is source only; everything else must come as a wheel that trixie's glibc can load.
SOURCE_ONLY = "tpm2-pytss"
PLATFORMS = ("manylinux1_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64",
             "manylinux_2_34_x86_64", "linux_x86_64")  # fmt: skip


def fetch(locks: Path, directory: Path) -> Path:
    """Fill ``directory`` with what ``locks`` (node.txt, build.txt) name. Does nothing while they are unchanged."""
    texts = [locks / "node.txt", locks / "build.txt"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()
    stamp = directory / ".locks"
    if stamp.is_file() and stamp.read_text() == key:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    for path in texts:
        run(
            [
                sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
                "--require-hashes", "--no-deps", "--no-build-isolation", "--only-binary=:all:",
                f"--no-binary={SOURCE_ONLY}", "--python-version", PYTHON, "--implementation", "cp",
                *platforms, "--dest", directory, "-r", path,
            ],
            what=f"fetching the Python packages of {path.name}",
            timeout=600,
            hint="check the network and pip's configuration, then run the same command again",
        )  # fmt: skip
    stamp.write_text(key)
    return directory


def hashes(directory: Path) -> frozenset[str]:
    """The SHA-256, in hex, of each file that ``fetch`` left in ``directory``."""
    files = [path for path in directory.iterdir() if path.suffix in (".whl", ".gz")]
    return frozenset(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
