"""Where an installer keeps its erase challenge between the refusal and the operator's answer.

The file holds no secret. It belongs where it does not outlive the machine's boot (/run), and is removed before the
disk is written to: that is what makes a token good once.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from hsm.keys import verify
from nodeos.core.erase import NONCE_BYTES, Challenge, DiskIdentity, EraseToken
from nodeos.core.errors import Finding, RefusedError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError

CHALLENGE = Path("/run/nodeos/erase-challenge.json")


def challenge_for(path: Path, disk: DiskIdentity) -> Challenge:
    """The challenge for this disk, kept in ``path``. One that is there already for this disk stays."""
    if path.exists():
        try:
            kept = Challenge.parse(read_file(path, "the erase challenge", limit=1 << 14), str(path))
        except ParseError:
            kept = None
        if kept is not None and kept.disk == disk:
            return kept
    fresh = Challenge(nonce=secrets.token_bytes(NONCE_BYTES), disk=disk)
    write_atomic(path, fresh.to_bytes())
    return fresh


def use(path: Path, token: EraseToken, disk: DiskIdentity, *, operator: Principal, now: int) -> None:
    """Check a token against this disk and the challenge in ``path``, and forget the challenge.

    Raises RefusedError if there is no challenge (none was made, or a token was used already), or for whatever is
    wrong with the token; then the challenge stays.
    """
    if not path.exists():
        finding = Finding(
            code="erase.nonce", message=f"there is no challenge ({path}), or its token was used"
        )
        raise RefusedError(
            "the erase token is refused; nothing was written",
            (finding,),
            hint="run this without a token first: that makes a challenge",
        )
    kept = Challenge.parse(read_file(path, "the erase challenge", limit=1 << 14), str(path))
    token.check(Challenge(nonce=kept.nonce, disk=disk), operator=operator, now=now, verify=verify)
    path.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
