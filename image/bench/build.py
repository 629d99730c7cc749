"""How long a build, its signing and its verification take, and how large they are."""

from __future__ import annotations

import lzma
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsm.keys import parse_publics
from image import builder, release_dir, sign, verify
from image.builder import Config, Progress
from image.keys import KeySet
from image.release_dir import ReleaseDir
from image.unsigned import BOOTLOADER, ROOT, UKI, VERITY, Unsigned
from nodeos.core.errors import UsageError
from nodeos.core.run import run

# What a build of a clone needs, and what is left behind.
_CHANGED = "nodeos/__init__.py"
_CHUNK = 1 << 20


@contextmanager
def timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    figures[name] = round(time.monotonic() - began, 2)


def cold(config: Config, progress: Progress) -> dict[str, Any]:
    """A first build: tools, packages and caches are made too. Needs 6 GiB, a package mirror, some minutes."""
    work = config.work / "bench/cold"
    shutil.rmtree(work, ignore_errors=True)
    figures: dict[str, Any] = {}
    try:
        with timed(figures, "seconds"):
            builder.build(replace(config, work=work), progress)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return figures


def warm(config: Config, progress: Progress) -> dict[str, Any]:
    """A build with the caches of an earlier one: of the same source, and after a change of Python code."""
    progress("once, so that the caches are there")
    built = builder.build(config, progress)
    with changed_clone(config) as source:
        figures: dict[str, Any] = {}
        progress("after a change of Python code")
        with timed(figures, "changed_seconds"):
            other = builder.build(replace(config, source=source), progress)
    if other.build.root_hash == built.build.root_hash:
        raise UsageError(f"a change of {_CHANGED} did not change the image", hint="report this")
    progress("of the source as it is")
    with timed(figures, "seconds"):
        again = builder.build(config, progress)
    return {**figures, "same_root_hash": again.build.root_hash == built.build.root_hash}


@contextmanager
def changed_clone(config: Config) -> Iterator[Path]:
    """The source with a line more in a Python module, and the same commit."""
    clone = config.work / "bench/clone"
    shutil.rmtree(clone, ignore_errors=True)
    try:
        run(
            ["git", "-c", "safe.directory=*", "clone", "--quiet", config.source, clone],
            what="cloning",
            timeout=300,
        )
        with (clone / _CHANGED).open("a") as file:
            file.write(f"\nBENCH = {time.time_ns()}\n")
        yield clone
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def signing(
    unsigned: Unsigned, keys: KeySet, release: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """Sign by keys in files, attach the detached signatures, and check the release as who downloads it does.

    The signed release takes its place in ``release``: the other parts measure it.
    """
    figures: dict[str, Any] = {}
    attached = scratch / "attached"
    try:
        progress("sign")
        with timed(figures, "sign_seconds"):
            sign.sign(unsigned, keys, release, pin=_no_pin, allow_drift=True)
        progress("attach")
        with timed(figures, "attach_seconds"):
            sign.attach(unsigned, release / release_dir.SIGNATURES, attached)
        progress("verify")
        trusted = parse_publics(keys.public_file("release").read_bytes(), "release key", hint="see --work")
        with timed(figures, "verify_seconds"):
            verify.verify(attached, trusted)
        same = (release / release_dir.MANIFEST).read_bytes() == (attached / release_dir.MANIFEST).read_bytes()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {**figures, "attached_is_the_same": same}


def _no_pin(name: str) -> str:
    raise UsageError(f"the key {name} is not in a file", hint="measure with keys in files")


def sizes(release: ReleaseDir, progress: Progress) -> dict[str, Any]:
    """Bytes of the artefacts. The download is what a node takes: all but the installer, which is made of it."""
    sizes = {path.name: path.stat().st_size for path in sorted(release.directory.iterdir()) if path.is_file()}
    download = [name for name in sizes if name in release.release.artefacts or name.startswith("release.")]
    compressed = {}
    for name in download:
        progress(f"compressing {name}")
        compressed[name] = _compressed(release.directory / name)
    return {
        "root": sizes[ROOT],
        "verity": sizes[VERITY],
        "uki": sizes[UKI],
        "bootloader": sizes[BOOTLOADER],
        "installer": sizes["installer.efi"],
        "download": sum(sizes[name] for name in download),
        "download_compressed": sum(compressed.values()),
        "packages": builder.package_count(release.directory),
    }


def _compressed(path: Path) -> int:
    """The size after xz at its usual level, block by block as it is read."""
    packer, size = lzma.LZMACompressor(preset=6), 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            size += len(packer.compress(data))
    return size + len(packer.flush())
