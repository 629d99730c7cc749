"""A small unsigned build: PE images and a root of random blocks, as ``nodeos image build`` would leave them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from image import verity
from image.unsigned import BuildManifest, Unsigned, describe
from nodeos.core.release import Variant
from tests.support.pe import make_pe

EPOCH = 1_767_225_600
BLOCKS = 130
KERNEL = make_pe({".text": b"a kernel"})
BOOTLOADER = make_pe({".text": b"a boot loader", ".sbat": b"sbat,1"})


def make_unsigned(
    directory: Path,
    pcr_key: bytes,
    *,
    variant: Variant = Variant.RELEASE,
    epoch: int = EPOCH,
    kernel: bytes = KERNEL,
    sections: Mapping[str, bytes] | None = None,
    version: str = "1.2.3",
    security_version: int = 2,
    drift: Sequence[str] = (),
) -> Unsigned:
    """A build whose image carries ``pcr_key`` (PEM); ``sections`` replaces sections of the image, and
    ``drift`` says how its packages are not the locked ones."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "root.raw").write_bytes(random.Random(version).randbytes(BLOCKS * verity.BLOCK))
    salt = bytes(range(32))
    root_hash, tree = verity.hash_tree(directory / "root.raw", salt)
    superblock = verity.Superblock(uuid=bytes(range(16)), blocks=BLOCKS, salt=salt)
    (directory / "verity.raw").write_bytes(superblock.to_bytes() + tree)
    command_line = f"quiet roothash={root_hash.hex()}"
    content = {
        ".text": b"the stub",
        ".reloc": b"its end",
        ".osrel": b"ID=nodeos\n",
        ".cmdline": command_line.encode(),
        ".initrd": b"an initrd",
        ".pcrpkey": pcr_key,
        ".linux": kernel,
        **(sections or {}),
    }
    (directory / "nodeos.efi").write_bytes(make_pe({name: data for name, data in content.items() if data}))
    (directory / "boot.efi").write_bytes(BOOTLOADER)
    (directory / "packages.json").write_text(json.dumps({"version": 1, "locked": not drift, "drift": drift}))
    (directory / "sbom.spdx.json").write_text("{}")
    names = ("root.raw", "verity.raw", "boot.efi", "nodeos.efi", "packages.json", "sbom.spdx.json")
    manifest = BuildManifest(
        release=version,
        variant=variant,
        root_hash=root_hash,
        kernel_command_line=command_line,
        source_commit="0" * 40,
        source_date_epoch=epoch,
        security_version=security_version,
        rollback_floor=1,
        artefacts={name: describe(directory / name) for name in names},
    )
    (directory / "build.json").write_bytes(manifest.to_bytes())
    return Unsigned.read(directory)
