"""What the opening of the state volume hands to the running system: /run/nodeos/state.json.

{"mode", "made_this_boot", "luks_uuid", "device", "policy_keys", "policy_pcrs", "floor", "security_version",
 "creation_proven", "reason"}
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nodeos.core.statepolicy import HIGHEST_VERSION
from nodeos.core.wire import ParseError, canonical_json, parse_int, parse_json, parse_text

REPORT = Path("/run/nodeos/state.json")
# There while the node runs without its state; units have it as a condition.
LOCKED = Path("/run/nodeos/locked")


class Mode(StrEnum):
    """LOCKED: the TPM was cleared or replaced, and the volume waits for its recovery key."""

    OPEN = "open"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReport:
    """``policy_keys`` are SHA-256 of the DER public keys that the volume's key is sealed to; ``reason`` says for
    people why a volume is locked, or why its making is not proven. The floor of a locked volume is 0."""

    mode: Mode
    made_this_boot: bool
    luks_uuid: str
    device: str
    policy_keys: tuple[bytes, ...]
    policy_pcrs: tuple[int, ...]
    floor: int
    security_version: int
    creation_proven: bool
    reason: str = ""

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "mode": str(self.mode),
                "made_this_boot": self.made_this_boot,
                "luks_uuid": self.luks_uuid,
                "device": self.device,
                "policy_keys": [key.hex() for key in self.policy_keys],
                "policy_pcrs": list(self.policy_pcrs),
                "floor": self.floor,
                "security_version": self.security_version,
                "creation_proven": self.creation_proven,
                "reason": self.reason,
            }
        )

    @classmethod
    def parse(cls, data: bytes, what: str = "state.json") -> StateReport:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(data, what, limit=1 << 13)
        report = cls(
            mode=parse_mode(fields.text("mode", limit=16), f"{what}.mode"),
            made_this_boot=fields.flag("made_this_boot"),
            luks_uuid=fields.text("luks_uuid", limit=64),
            device=fields.text("device", limit=256),
            policy_keys=fields.list_of("policy_keys", parse_fingerprint, limit=4),
            policy_pcrs=fields.list_of("policy_pcrs", parse_int, limit=24),
            floor=fields.integer("floor", low=0, high=HIGHEST_VERSION),
            security_version=fields.integer("security_version", low=0, high=HIGHEST_VERSION),
            creation_proven=fields.flag("creation_proven"),
            reason=fields.text("reason", limit=1024),
        )
        fields.done()
        return report


def parse_mode(text: str, path: str) -> Mode:
    try:
        return Mode(text)
    except ValueError as error:
        raise ParseError(f"{path}: neither open nor locked") from error


def parse_fingerprint(value: object, path: str) -> bytes:
    """A SHA-256 in hexadecimal, in a list."""
    try:
        raw = bytes.fromhex(parse_text(value, path))
    except ValueError as error:
        raise ParseError(f"{path}: not hexadecimal") from error
    if len(raw) != 32:
        raise ParseError(f"{path}: expected 32 bytes, found {len(raw)}")
    return raw
