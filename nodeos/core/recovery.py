"""The recovery key of a state volume: its form for people, and the form in which it is kept.

A recovery key (32 random bytes) opens the state volume when the TPM can't. It is kept encrypted to the
operator's key, as a LUKS2 token of the type ``nodeos-recovery`` and at the registrar:

    {"type": "nodeos-recovery", "keyslots": ["1"], "version": 1, "operator_key": HEX of the SHA-256 of the
     operator's DER public key, "machine": HEX, "volume": the LUKS UUID, "box": BASE64 (see hsm/box.py)}

``type`` and ``keyslots`` are what LUKS2 asks of every token (LUKS2 On-Disk Format, "Tokens"). Nothing
here encrypts: the box is opaque to this module. Its context binds it to one machine and one volume.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
import zlib
from dataclasses import dataclass, field

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.wire import ParseError, b64, canonical_json, parse_json, parse_text

TOKEN_TYPE = "nodeos-recovery"  # noqa: S105  (LUKS2 calls such entries tokens)
KEY_BYTES = 32
HIGHEST_BOX = 1024
_CONTEXT_DOMAIN = b"nodeos-recovery-v1\0"
_HIGHEST_KEYSLOT = 31  # LUKS2 has 32 key slots.
# Modhex, the alphabet of systemd's recovery keys: on the same keys of most keyboard layouts.
_MODHEX = "cbdefghijklnrtuv"
_GROUP, _CHECK_BYTES = 8, 4
_CHARACTERS = 2 * (KEY_BYTES + _CHECK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryKey:
    """32 secret bytes. They are not in its ``repr``."""

    value: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.value) != KEY_BYTES:
            raise ValueError(f"a recovery key has {KEY_BYTES} bytes, not {len(self.value)}")

    @classmethod
    def generate(cls) -> RecoveryKey:
        return cls(value=secrets.token_bytes(KEY_BYTES))

    def to_text(self) -> str:
        """Nine groups of eight modhex letters: the key, then its CRC-32. Secret like the key itself."""
        digits = (self.value + _check(self.value)).hex()
        letters = "".join(_MODHEX[int(digit, 16)] for digit in digits)
        return "-".join(letters[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))

    @classmethod
    def parse(cls, text: str, what: str = "recovery key") -> RecoveryKey:
        """Read what a person typed: case, hyphens and white space don't matter.

        Raises ParseError, without any part of the text. A CRC-32 finds every burst of up to 32 bits, so one
        wrong letter (4 bits) or two neighbours in the wrong order (8 bits) are always found.
        """
        letters = re.sub(r"[\s-]", "", text).lower()
        for at, letter in enumerate(letters[:_CHARACTERS]):
            if letter not in _MODHEX:
                raise ParseError(
                    f"{what}: group {at // _GROUP + 1} has a letter that is in no recovery key",
                    hint=f"the letters are {_MODHEX}",
                )
        if len(letters) != _CHARACTERS:
            raise ParseError(
                f"{what}: {len(letters)} letters, not {_CHARACTERS}",
                hint="type all nine groups of eight letters",
            )
        data = bytes.fromhex("".join(f"{_MODHEX.index(letter):x}" for letter in letters))
        value, check = data[:KEY_BYTES], data[KEY_BYTES:]
        if _check(value) != check:
            raise ParseError(
                f"{what}: a letter is wrong (its checksum does not fit)", hint="compare it letter by letter"
            )
        return cls(value=value)


def recovery_context(*, machine: str, volume: str) -> bytes:
    """What the box of a recovery key is bound to. ``machine`` is 64 hex digits, ``volume`` the LUKS UUID.

    Raises ParseError for one that is not in its canonical (lower-case) form.
    """
    return _CONTEXT_DOMAIN + _machine(machine, "machine") + _volume(volume, "volume").bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryBlob:
    """An encrypted recovery key. ``operator_key`` is the SHA-256 of the operator's DER public key."""

    keyslot: int
    operator_key: bytes
    machine: str
    volume: str
    box: bytes

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "type": TOKEN_TYPE,
                "keyslots": [str(self.keyslot)],
                "version": 1,
                "operator_key": self.operator_key.hex(),
                "machine": self.machine,
                "volume": self.volume,
                "box": b64(self.box),
            }
        )

    @classmethod
    def parse(cls, data: bytes, what: str = TOKEN_TYPE) -> RecoveryBlob:
        """Raises ParseError with the path of the first wrong field.

        White space and the order of keys may differ, since cryptsetup writes the JSON anew; values may not.
        """
        fields = parse_json(data, what, limit=1 << 13)
        fields.integer("version", low=1, high=1)
        if fields.text("type", limit=64) != TOKEN_TYPE:
            raise ParseError(f"{what}.type: not {TOKEN_TYPE}")
        slots = fields.list_of("keyslots", parse_text, limit=1)
        if not slots or not re.fullmatch("[0-9]{1,2}", slots[0]) or int(slots[0]) > _HIGHEST_KEYSLOT:
            raise ParseError(f"{what}.keyslots: not one number of a key slot")
        found = cls(
            keyslot=int(slots[0]),
            operator_key=fields.hexadecimal("operator_key", length=32),
            machine=fields.text("machine", limit=64),
            volume=fields.text("volume", limit=36),
            box=fields.data("box", limit=HIGHEST_BOX),
        )
        fields.done()
        _machine(found.machine, f"{what}.machine")
        _volume(found.volume, f"{what}.volume")
        if not found.box:
            raise ParseError(f"{what}.box: empty")
        # Capital hex digits, loose bits of base64, "01" for a slot: one value has one form.
        if canonical_json(json.loads(data)) != found.to_bytes():
            raise ParseError(f"{what}: not in the canonical form")
        return found

    def context_for(self, *, machine: str, volume: str, operator_key: bytes) -> bytes:
        """The context to open the box under, for the machine, volume and operator key that are expected.

        They come from what was attested, never from this blob: else a blob that was moved here from another
        machine would open. Raises RefusedError with everything that differs.
        """
        pairs = (
            ("machine", self.machine == machine, "it is for another machine"),
            ("volume", self.volume == volume, "it is for another volume"),
            ("operator_key", self.operator_key == operator_key, "it is encrypted to another operator's key"),
        )
        findings = tuple(
            Finding(code=f"recovery.{code}", message=message) for code, same, message in pairs if not same
        )
        if findings:
            raise RefusedError("the encrypted recovery key is refused", findings)
        return recovery_context(machine=machine, volume=volume)


def _check(value: bytes) -> bytes:
    return zlib.crc32(value).to_bytes(_CHECK_BYTES, "big")


def _machine(text: str, what: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ParseError(f"{what}: not a machine id (64 hexadecimal digits)")
    return bytes.fromhex(text)


def _volume(text: str, what: str) -> uuid.UUID:
    if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        raise ParseError(f"{what}: not a UUID in lower case")
    return uuid.UUID(text)
