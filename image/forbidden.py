"""Images that must not start any more though our key signed them: a boot loader with a hole, a withdrawn release.

KEYS/forbidden/N, the oldest as 1, is a list of SHA-256 Authenticode digests in hex, one a line, each followed by
the name of its file. Every release carries all of them in its dbx.auth. The last list is the one that the next
release brings: it is also signed for machines whose dbx is still without it. So there is one list for one release.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from image import pe
from image.keys import KeySet
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.wire import ParseError

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def read(keys: KeySet) -> list[tuple[bytes, ...]]:
    """The digests of each list, the oldest first. Raises ParseError."""
    found = {int(path.name): path for path in keys.path("forbidden").glob("*") if path.name.isdecimal()}
    return [_parse(found[number]) for number in sorted(found)]


def forbid(keys: KeySet, images: Sequence[Path]) -> Path:
    """Write the next list, with the digests of ``images``. Raises UsageError for one that is forbidden already."""
    known = {digest for digests in read(keys) for digest in digests}
    lines = []
    for path in images:
        digest = pe.authenticode(read_file(path, "image", limit=1 << 30), str(path))
        if digest in known:
            raise UsageError(f"{path} is forbidden already")
        known.add(digest)
        lines.append(f"{digest.hex()}  {path.name}\n")
    if not lines:
        raise UsageError("name the images to forbid")
    target = keys.path("forbidden") / str(len(read(keys)) + 1)
    write_atomic(target, "".join(lines).encode())
    return target


def check(keys: KeySet, name: str, image: bytes) -> None:
    """Raises UsageError if a release would forbid an image of its own."""
    digest = pe.authenticode(image, name)
    if any(digest in digests for digests in read(keys)):
        raise UsageError(
            f"{name} is forbidden in {keys.path('forbidden')}", hint="build the release with another one"
        )


def _parse(path: Path) -> tuple[bytes, ...]:
    lines = read_file(path, "the forbidden images", limit=1 << 16).decode(errors="replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    if not lines or not all(found):
        raise ParseError(f"{path}: not lines of a SHA-256 in hex, two spaces, and a name")
    return tuple(bytes.fromhex(match.group(1)) for match in found if match)
