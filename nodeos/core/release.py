"""The release manifest: what a build made, and the measurements that it must give when it boots.

Written by ``image``, read by ``provisioning``. PCR values are SHA-256 bank values as lower-case hex.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nodeos.core.wire import Fields, ParseError, canonical_json, parse_json


class BootPhase(StrEnum):
    """The points of a boot at which systemd-pcrphase extends PCR 11 (systemd-pcrphase.service(8))."""

    ENTER_INITRD = "enter-initrd"
    LEAVE_INITRD = "leave-initrd"
    SYSINIT = "sysinit"
    READY = "ready"


class Variant(StrEnum):
    """A release has no shell anywhere; a debug image has, and so has other measurements."""

    RELEASE = "release"
    DEBUG = "debug"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file of the build: its size in bytes and its SHA-256."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One build. ``pcrs`` holds the final values of PCRs 4 and 7; ``pcr11`` the value after each phase."""

    version: str
    variant: Variant
    root_hash: bytes
    kernel_command_line: str
    artefacts: dict[str, Artefact]
    pcrs: dict[int, bytes]
    pcr11: dict[BootPhase, bytes]
    source_commit: str

    def to_bytes(self) -> bytes:
        """Canonical JSON; equal releases give equal bytes."""
        value: dict[str, Any] = {
            "version": 1,
            "release": self.version,
            "variant": str(self.variant),
            "root_hash": self.root_hash.hex(),
            "kernel_command_line": self.kernel_command_line,
            "artefacts": {
                name: {"size": a.size, "sha256": a.sha256.hex()} for name, a in self.artefacts.items()
            },
            "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
            "pcr11": {str(phase): value.hex() for phase, value in self.pcr11.items()},
            "source_commit": self.source_commit,
        }
        return canonical_json(value)

    @classmethod
    def parse(cls, data: bytes, what: str = "release.json") -> Release:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(data, what)
        fields.integer("version", low=1, high=1)
        artefacts = fields.nested("artefacts")
        pcrs = fields.nested("pcrs")
        pcr11 = fields.nested("pcr11")
        release = cls(
            version=fields.text("release", limit=64),
            variant=_variant(fields.text("variant"), what),
            root_hash=fields.hexadecimal("root_hash", length=32),
            kernel_command_line=fields.text("kernel_command_line"),
            artefacts={name: _artefact(item, f"{what}.artefacts.{name}") for name, item in artefacts.items()},
            pcrs={index: pcrs.hexadecimal(str(index), length=32) for index in (4, 7)},
            pcr11={phase: pcr11.hexadecimal(phase, length=32) for phase in BootPhase},
            source_commit=fields.text("source_commit", limit=64),
        )
        for part in (fields, pcrs, pcr11):
            part.done()
        return release


def _artefact(item: object, path: str) -> Artefact:
    fields = Fields(item, path)
    artefact = Artefact(size=fields.integer("size"), sha256=fields.hexadecimal("sha256", length=32))
    fields.done()
    return artefact


def _variant(text: str, what: str) -> Variant:
    try:
        return Variant(text)
    except ValueError as error:
        raise ParseError(f"{what}.variant: {text!r} is not one of {', '.join(Variant)}") from error
