"""The root hash on the kernel's command line, and the signature over it that lies beside the root. Pure.

Form of the signature partition: systemd's JSON {"rootHash", "certificateFingerprint", "signature"} and zeroes
(Discoverable Partitions Specification); the signature is PKCS #7, detached, over the root hash in lower-case hex.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence

from cryptography import x509

from nodeos.core.errors import UsageError
from nodeos.core.signed_data import check_detached

_WORD = b"roothash="
_HASH = re.compile(rb"[0-9a-f]{64}")


def root_hash_of(command_line: bytes) -> bytes:
    """The 32 bytes of the one root hash. Raises UsageError for none, two, or another form."""
    found = _named(command_line)
    if len(found) != 1 or not _HASH.fullmatch(found[0]):
        raise UsageError(f"the kernel's command line names {_words(found)}, expected one root hash")
    return bytes.fromhex(found[0].decode())


def root_hash_problem(command_line: bytes, root_hash: bytes) -> str | None:
    """Why the command line is not for this root hash, None if it is."""
    found = _named(command_line)
    if found == [root_hash.hex().encode()]:
        return None
    return f"the kernel's command line names {_words(found)}"


def verity_problem(signature: bytes, root_hash: bytes, trusted: Sequence[x509.Certificate]) -> str | None:
    """Why the content of the signature partition doesn't vouch for the root hash, None if it does."""
    try:
        value = json.loads(signature.rstrip(b"\0"))
        named, der = str(value["rootHash"]), base64.b64decode(value["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"the signature of the root hash can't be read: {error}"
    if named != root_hash.hex():
        return f"the signature is for the root hash {named[:64]}"
    why = "this system trusts no verity certificate"
    for certificate in trusted:
        try:
            check_detached(der, certificate, named.encode())
        except UsageError as error:
            why = error.message
        else:
            return None
    return why


def _named(command_line: bytes) -> list[bytes]:
    words = command_line.rstrip(b"\0\n").split()
    return [word.removeprefix(_WORD) for word in words if word.startswith(_WORD)]


def _words(found: Sequence[bytes]) -> str:
    return b", ".join(found).decode(errors="replace") or "no root hash"
