"""cryptsetup on a LUKS2 header, which is a file in memory or a device. Keys go over pipes only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeos.core.errors import NodeosError
from nodeos.core.run import run
from nodeos.core.wire import canonical_json
from nodeos.state.header import CIPHER, DATA_OFFSET, KEY_BYTES, SECTOR_SIZE

LABEL = "nodeos-state"
# The keys have 256 random bits: there is nothing that a slow derivation could protect. It costs each boot time,
# and a first boot that measures the machine's speed writes another header each time. 1000 is LUKS2's least.
_KDF = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256")
_DUMPED = re.compile(rb"^MK dump:((?:\s+[0-9a-f]{2})+)\s*$", re.MULTILINE)


class Luks:
    """The header in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def format(cls, path: Path, uuid: str, key: bytes) -> Luks:
        """A new header in a new file of DATA_OFFSET bytes. ``key`` opens its slot 0."""
        with path.open("xb") as file:
            path.chmod(0o600)
            # cryptsetup asks for room for data behind the header. A sparse file costs nothing.
            file.truncate(DATA_OFFSET * 2)
        luks = cls(path)
        words = ["luksFormat", "--type", "luks2", "--cipher", CIPHER, "--key-size", str(KEY_BYTES * 8)]
        words += ["--sector-size", str(SECTOR_SIZE), "--uuid", uuid, "--label", LABEL, *_KDF]
        luks._run(words, "making the volume's header", key=key)
        os.truncate(path, DATA_OFFSET)
        return luks

    def copy_to(self, path: Path) -> Luks:
        """A copy of the header and its key slots in a new file."""
        path.unlink(missing_ok=True)
        self._run(["luksHeaderBackup", "--header-backup-file", str(path)], "reading the volume's header")
        return Luks(path)

    def uuid(self) -> str:
        return self._run(["luksUUID"], "reading the volume's UUID").decode().strip()

    def metadata(self) -> bytes:
        """The JSON of the header; cryptsetup has checked its checksum."""
        return self._run(["luksDump", "--dump-json-metadata"], "reading the volume's header")

    def volume_key(self, key: bytes, keyslot: int) -> bytes:
        """The volume's key, by a slot's. Raises ToolError if the slot does not open."""
        words = ["luksDump", "--dump-volume-key", "--key-slot", str(keyslot)]
        dumped = _DUMPED.search(self._run(words, "opening a key slot", key=key))
        volume_key = bytes.fromhex(dumped.group(1).decode()) if dumped else b""
        if len(volume_key) != KEY_BYTES:
            raise NodeosError(
                "cryptsetup did not tell the volume's key", hint="the image is damaged: install it again"
            )
        return volume_key

    def add_key(self, keyslot: int, new: bytes, *, by: bytes) -> None:
        """Give ``keyslot`` the key ``new``, by the key of another slot."""
        with _in_memory(new) as file:
            words = ["luksAddKey", "--key-slot", str(keyslot), *_KDF]
            self._run(words, "adding a key slot", key=by, after=(file,))

    def kill_slot(self, keyslot: int, *, by: bytes) -> None:
        self._run(["luksKillSlot"], "removing a key slot", key=by, after=(str(keyslot),))

    def add_token(self, token: bytes | dict[str, object]) -> None:
        data = token if isinstance(token, bytes) else canonical_json(token)
        self._run(["token", "import", "--json-file", "-"], "storing a token", stdin=data)

    def remove_token(self, number: int) -> None:
        self._run(["token", "remove", "--token-id", str(number)], "removing a token")

    def _run(
        self,
        words: list[str],
        what: str,
        *,
        key: bytes | None = None,
        stdin: bytes | None = None,
        after: tuple[str, ...] = (),
    ) -> bytes:
        given = [] if key is None else ["--key-file", "-"]
        command = ["cryptsetup", "--batch-mode", *words, *given, str(self.path), *after]
        return run(command, what=what, stdin=key if key is not None else stdin, timeout=300, hint=_HINT)


_HINT = "is the disk healthy? power-cycle; if it stays so, replace it"


@contextmanager
def _in_memory(secret: bytes) -> Iterator[str]:
    """The path of an anonymous file with the secret, for a program that wants a second one."""
    descriptor = os.memfd_create("key")
    try:
        os.write(descriptor, secret)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
