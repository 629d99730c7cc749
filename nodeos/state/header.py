"""The LUKS2 header of a state volume: is it exactly one that this system makes? Pure.

Whoever has the disk can write any header. One with another cipher ("null" is one), another segment, a key slot
that is kept in the clear, or one more key slot would be opened by cryptsetup as well. So every field that says how
something is encrypted, and which ways in there are, must be as ``making`` writes it, and nothing else may be
there.

Source of the fields: LUKS2 On-Disk Format 1.1, section 3. The JSON is taken from a copy in memory, and the same
copy is opened: a disk that answers differently the second time gains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hsm.tpm.sealing import TOKEN_TYPE, SealedSecret
from nodeos.core import recovery
from nodeos.core.errors import Finding, RefusedError
from nodeos.core.recovery import RecoveryBlob
from nodeos.core.wire import Fields, ParseError, canonical_json

# Confidentiality only, the field's standard for disks. The keys of authenticated encryption have other sizes.
CIPHER = "aes-xts-plain64"
KEY_BYTES = 64
SECTOR_SIZE = 4096
DATA_OFFSET = 16 << 20
MAX_TPM_TOKENS = 2
_SEGMENT = {
    "type": "crypt",
    "offset": str(DATA_OFFSET),
    "size": "dynamic",
    "iv_tweak": "0",
    "encryption": CIPHER,
    "sector_size": SECTOR_SIZE,
}
_CONFIG = {"json_size": "12288", "keyslots_size": str(DATA_OFFSET - (32 << 10))}
_AF = {"type": "luks1", "stripes": 4000, "hash": "sha256"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmToken:
    """A secret that the TPM gives out, and the key slot that it opens. ``number`` is the token's."""

    number: int
    keyslot: int
    sealed: SealedSecret

    @property
    def key(self) -> bytes:
        """SHA-256 of the policy key's DER."""
        return hashlib.sha256(self.sealed.policy_key).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The ways into a volume."""

    uuid: str
    tokens: tuple[TpmToken, ...]
    recovery: RecoveryBlob | None
    areas: Mapping[int, tuple[int, int]]

    @property
    def policy_keys(self) -> tuple[bytes, ...]:
        return tuple(token.key for token in self.tokens)


def parse(metadata: bytes, uuid: str, device: str, *, known: Collection[bytes] | None = None) -> Header:
    """The header of ``device``, if it is one of ours. ``known`` are the policy keys (SHA-256) that are accepted.

    Raises RefusedError with every finding.
    """
    found: list[Finding] = []
    try:
        value = json.loads(metadata)
        parts = {name: value[name] for name in ("keyslots", "tokens", "segments", "digests", "config")}
        if not all(isinstance(part, dict) for part in parts.values()):
            raise TypeError("a part is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found.append(_finding("form", "it is not the JSON of a LUKS2 header"))
        raise _refused(device, found) from error
    if set(value) != set(parts):
        found.append(_finding("form", "it has unknown parts"))
    if parts["config"] != _CONFIG:
        found.append(_finding("config", "it has other sizes, or flags, or requirements"))
    if parts["segments"] != {"0": _SEGMENT}:
        found.append(_finding("segment", f"its data are not one segment encrypted with {CIPHER}"))
    found += [
        _finding("keyslot", f"key slot {number} is not protected as it must be")
        for number, slot in parts["keyslots"].items()
        if not _good_slot(slot)
    ]
    if not _good_digests(parts["digests"], parts["keyslots"]):
        found.append(_finding("digest", "not all its key slots are for the one volume key"))
    tokens, blobs = _tokens(parts["tokens"], found)
    found += _ways_in(parts["keyslots"], tokens, blobs, known)
    if any(blob.volume != uuid for blob in blobs):
        found.append(_finding("recovery", "its recovery key is of another volume"))
    if found:
        raise _refused(device, found)
    return Header(
        uuid=uuid,
        tokens=tuple(tokens),
        recovery=blobs[0] if blobs else None,
        areas={
            int(number): (int(slot["area"]["offset"]), int(slot["area"]["size"]))
            for number, slot in parts["keyslots"].items()
        },
    )


def _good_slot(slot: Any) -> bool:
    """Encrypted with the volume's cipher under a derived key. The offset of its area is cryptsetup's to check."""
    try:
        area, kdf = dict(slot["area"]), slot["kdf"]
        int(area.pop("offset")), int(area.pop("size"))
        rest = {name: slot[name] for name in slot if name not in ("area", "kdf")}
        return (
            rest == {"type": "luks2", "key_size": KEY_BYTES, "af": _AF}
            and area == {"type": "raw", "encryption": CIPHER, "key_size": KEY_BYTES}
            and kdf["type"] == "pbkdf2"
            and kdf["hash"] == "sha256"
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _good_digests(digests: dict[str, Any], keyslots: dict[str, Any]) -> bool:
    try:
        digest = digests["0"]
        return (
            set(digests) == {"0"}
            and digest["type"] == "pbkdf2"
            and digest["hash"] == "sha256"
            and set(digest["keyslots"]) == set(keyslots)
            and digest["segments"] == ["0"]
        )
    except (KeyError, TypeError):
        return False


def _tokens(tokens: dict[str, Any], found: list[Finding]) -> tuple[list[TpmToken], list[RecoveryBlob]]:
    sealed: list[TpmToken] = []
    blobs: list[RecoveryBlob] = []
    for number, token in sorted(tokens.items()):
        kind = token.get("type") if isinstance(token, dict) else None
        try:
            if kind == TOKEN_TYPE:
                secret, slots = SealedSecret.parse(Fields(token, f"token {number}"))
                if len(slots) != 1:
                    raise ParseError(f"token {number}.keyslots: not one key slot")
                sealed.append(TpmToken(number=int(number), keyslot=slots[0], sealed=secret))
            elif kind == recovery.TOKEN_TYPE:
                blobs.append(RecoveryBlob.parse(canonical_json(token), f"token {number}"))
            else:
                found.append(_finding("token", f"token {number} is of an unknown type"))
        except (ParseError, TypeError) as error:
            found.append(_finding("token", str(error)))
    return sealed, blobs


def _ways_in(
    keyslots: dict[str, Any],
    tokens: list[TpmToken],
    blobs: list[RecoveryBlob],
    known: Collection[bytes] | None,
) -> list[Finding]:
    found = []
    if not 1 <= len(tokens) <= MAX_TPM_TOKENS:
        found.append(_finding("tokens", f"it has {len(tokens)} TPM tokens, not one or two"))
    if len({token.key for token in tokens}) != len(tokens):
        found.append(_finding("tokens", "two of its TPM tokens are for the same policy key"))
    if len(blobs) > 1:
        found.append(_finding("recovery", f"it has {len(blobs)} recovery keys, not one"))
    if known is not None:
        found += [
            _finding(
                "policy_key",
                f"it is sealed to a policy key that this release does not know: {token.key.hex()}",
            )
            for token in tokens
            if token.key not in known
        ]
    named = {token.keyslot for token in tokens}
    if {str(slot) for slot in named | {blob.keyslot for blob in blobs}} != set(keyslots):
        found.append(_finding("keyslots", "its key slots are not those that its tokens name"))
    if named & {blob.keyslot for blob in blobs}:
        found.append(_finding("keyslots", "its recovery key opens the TPM's key slot"))
    return found


def _finding(code: str, message: str) -> Finding:
    return Finding(code=f"state.{code}", message=message)


def _refused(device: str, found: list[Finding]) -> RefusedError:
    return RefusedError(
        f"the state volume on {device} was not made by this system, or was changed; it is left alone",
        tuple(found),
        hint="install the system anew on this disk if nothing on it is needed",
    )
