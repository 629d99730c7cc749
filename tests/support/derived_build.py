"""Another build from one that is there, in seconds: the same system under another version, for another policy key.

Two updates in a row need two further builds. What differs between them here has the same length in each, so it can
be replaced where it stands: the version in the root's os-release (which lies uncompressed in the file system) and
in the UKI's, the root hash on the command line, and the policy key. The hash tree is computed anew.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from image import pe, verity
from image.unsigned import BUILD, ROOT, UKI, VERITY, Unsigned, describe


def derive(
    unsigned: Unsigned, directory: Path, *, version: str, later: int, policy_key: bytes | None = None
) -> Unsigned:
    """The build in the new ``directory``, made ``later`` (seconds) than ``unsigned``: firmware takes updates of
    its variables only from a later time. ``policy_key`` is PEM. A version is as long as the one it replaces."""
    build = unsigned.build
    directory.mkdir(parents=True)
    for name in build.artefacts:
        shutil.copyfile(unsigned.directory / name, directory / name)
    named = f'IMAGE_VERSION="{build.release}"'.encode(), f'IMAGE_VERSION="{version}"'.encode()
    root, tree, uki = (directory / name for name in (ROOT, VERITY, UKI))
    root.write_bytes(_replaced(root.read_bytes(), *named))
    old = tree.read_bytes()
    root_hash, levels = verity.hash_tree(root, verity.Superblock.parse(old[: verity.BLOCK]).salt)
    tree.write_bytes((old[: verity.BLOCK] + levels).ljust(len(old), b"\0"))
    image = _replaced(uki.read_bytes(), *named)
    image = _replaced(image, build.root_hash.hex().encode(), root_hash.hex().encode())
    if policy_key is not None:
        image = _replaced(image, pe.section_contents(image)[".pcrpkey"].rstrip(b"\0"), policy_key)
    uki.write_bytes(image)
    made = replace(
        build,
        release=version,
        root_hash=root_hash,
        kernel_command_line=build.kernel_command_line.replace(build.root_hash.hex(), root_hash.hex()),
        source_date_epoch=build.source_date_epoch + later,
        artefacts={name: describe(directory / name) for name in build.artefacts},
    )
    (directory / BUILD).write_bytes(made.to_bytes())
    return Unsigned.read(directory)


def _replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new), (old, new)
    assert data.count(old) == 1, f"{old!r} is there {data.count(old)} times"
    return data.replace(old, new)
