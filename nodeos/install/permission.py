"""Where an installer keeps its erase challenge until the operator's answer, and how the answer is used up.

The file holds no secret. It is removed before the disk is written to, and the disk keeps a record of the token:
each makes a token good once, the second also where the challenge is on a medium that can't be written to.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """The operator's token and what it is held against: the challenge in ``place``, the site's operator, and the
    time (seconds since 1970)."""

    token: EraseToken
    place: Path
    operator: Principal
    now: int

    def use(self, disk: DiskIdentity, used: bytes) -> bytes:
        """Check the token against this disk, forget the challenge, and give the token's digest for the record.

        ``used`` is the digest that the disk itself has on record. Raises RefusedError if there is no challenge
        (none was made, or its token was used already), if the disk was erased with this token before, or for
        whatever else is wrong with the token; then the challenge stays.
        """
        digest = hashlib.sha256(self.token.document).digest()
        if used == digest:
            raise _refused("erase.used", "this disk was erased with it already")
        if not self.place.exists():
            raise _refused("erase.nonce", f"there is no challenge ({self.place}), or its token was used")
        kept = Challenge.parse(read_file(self.place, "the erase challenge", limit=1 << 14), str(self.place))
        asked = Challenge(nonce=kept.nonce, disk=disk)
        self.token.check(asked, operator=self.operator, now=self.now, verify=verify)
        self.place.unlink()
        directory = os.open(self.place.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return digest


def _refused(code: str, message: str) -> RefusedError:
    return RefusedError(
        "the erase token is refused; nothing was written",
        (Finding(code=code, message=message),),
        hint="run this without a token: that makes a challenge for a new one",
    )
