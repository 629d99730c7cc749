"""What an installer tells of its work. Nothing of it is proven: whoever reaches the registrar can say it.

Written by the installer, read by the registrar. The same document is on the console, and shortened in a QR code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodeos.core.errors import Finding
from nodeos.core.wire import Fields, ParseError, canonical_json, parse_finding, parse_json

LIMIT = 1 << 15
PATH = "/v1/installations"
_MOST_FINDINGS = 32


class Verdict(StrEnum):
    """How it ended. Refused: a check said no, nothing was written. Failed: something broke."""

    INSTALLED = "installed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """``machine`` is the machine's id at the registrar (see ``protocol.machine_id``), None if its TPM did not
    answer; ``source`` is what the installer was started from; ``disk`` the serial; ``seconds`` from its start."""

    verdict: Verdict
    data_center: str
    machine: str | None
    release: str
    root_hash: bytes
    source: str
    disk: str | None
    message: str
    findings: tuple[Finding, ...] = ()
    seconds: int = 0

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": 1,
                "verdict": str(self.verdict),
                "data_center": self.data_center,
                "machine": self.machine,
                "release": self.release,
                "root_hash": self.root_hash.hex(),
                "source": self.source,
                "disk": _plain(self.disk) if self.disk is not None else None,
                "message": _plain(self.message[:1024]),
                "findings": [
                    {"code": item.code, "message": _plain(item.message[:256])}
                    for item in self.findings[:_MOST_FINDINGS]
                ],
                "seconds": self.seconds,
            }
        )

    @classmethod
    def parse(cls, data: bytes, what: str = "installation") -> Installation:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(data, what, limit=LIMIT)
        fields.integer("version", low=1, high=1)
        made = cls(
            verdict=_verdict(fields, what),
            data_center=fields.text("data_center", limit=64),
            machine=fields.text("machine", limit=64) if fields.has("machine") else None,
            release=fields.text("release", limit=64),
            root_hash=fields.hexadecimal("root_hash", length=32),
            source=fields.text("source", limit=256),
            disk=fields.text("disk", limit=256) if fields.has("disk") else None,
            message=fields.text("message", limit=1024),
            findings=fields.list_of("findings", parse_finding, limit=_MOST_FINDINGS),
            seconds=fields.integer("seconds", high=1 << 31),
        )
        fields.done()
        # Anyone can send this, and it is shown on an administrator's terminal.
        texts = (made.data_center, made.machine, made.release, made.source, made.disk, made.message)
        told = [part for item in made.findings for part in (item.code, item.message)]
        if not all((text or "").isprintable() for text in (*texts, *told)):
            raise ParseError(f"{what}: a text with control characters")
        return made

    @property
    def code(self) -> str:
        """The text of the QR code: upper case, which QR codes hold in the least room."""
        parts = (
            "nodeos-install",
            "1",
            self.verdict,
            self.release,
            self.root_hash.hex(),
            self.machine or "-",
            self.disk or "-",
        )
        return "/".join(parts).upper()


def _plain(text: str) -> str:
    """On one line, without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _verdict(fields: Fields, what: str) -> Verdict:
    text = fields.text("verdict", limit=16)
    try:
        return Verdict(text)
    except ValueError as error:
        raise ParseError(f"{what}.verdict: {text!r} is not one of {', '.join(Verdict)}") from error
