"""An unsigned build: what anybody can make again from the source, and what is signed afterwards.

A folder with ``build.json`` and the files that it names. Nothing in it holds a signature or depends on a private
key; the public halves of the keys are inside the root and the unified kernel image. The signing step reads it with
``Unsigned.read`` and so never signs files that are not the ones that were built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Artefact, Variant
from nodeos.core.wire import Fields, ParseError, canonical_json, parse_json, parse_toml

ROOT, VERITY, BOOTLOADER, UKI = "root.raw", "verity.raw", "boot.efi", "nodeos.efi"
PACKAGES, SBOM, BUILD = "packages.json", "sbom.spdx.json", "build.json"
ARTEFACTS = (ROOT, VERITY, BOOTLOADER, UKI, PACKAGES, SBOM)
_LARGEST_VERSION = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """``release.toml``: which security version a release is of, and the lowest that a node may start after it."""

    security_version: int
    rollback_floor: int

    @classmethod
    def parse(cls, data: bytes, what: str = "release.toml") -> Rollback:
        """Raises ParseError. A floor above the release's own version would lock out the release that raises it."""
        fields = parse_toml(data, what)
        rollback = cls.of(fields)
        fields.done()
        return rollback

    @classmethod
    def of(cls, fields: Fields) -> Rollback:
        """The two fields of a larger object."""
        security_version = fields.integer("security_version", low=1, high=_LARGEST_VERSION)
        floor = fields.integer("rollback_floor", low=1, high=_LARGEST_VERSION)
        if floor > security_version:
            raise ParseError(
                f"{fields.path}.rollback_floor: {floor} is above security_version {security_version}",
                hint="a node would refuse the very release that raises the floor; raise security_version first",
            )
        return cls(security_version=security_version, rollback_floor=floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildManifest:
    """``build.json``. ``source_date_epoch`` is in seconds, the root hash that of the hash tree in verity.raw."""

    release: str
    variant: Variant
    root_hash: bytes
    kernel_command_line: str
    source_commit: str
    source_date_epoch: int
    security_version: int
    rollback_floor: int
    artefacts: Mapping[str, Artefact]

    def to_bytes(self) -> bytes:
        """Canonical JSON; equal builds give equal bytes."""
        value: dict[str, Any] = {
            "version": 1,
            "release": self.release,
            "variant": str(self.variant),
            "root_hash": self.root_hash.hex(),
            "kernel_command_line": self.kernel_command_line,
            "source_commit": self.source_commit,
            "source_date_epoch": self.source_date_epoch,
            "security_version": self.security_version,
            "rollback_floor": self.rollback_floor,
            "artefacts": {
                name: {"size": item.size, "sha256": item.sha256.hex()}
                for name, item in self.artefacts.items()
            },
        }
        return canonical_json(value)

    @classmethod
    def parse(cls, data: bytes, what: str = BUILD) -> BuildManifest:
        """Raises ParseError with the path of the first wrong field."""
        fields = parse_json(data, what)
        fields.integer("version", low=1, high=1)
        artefacts = {
            name: _artefact(item, f"{what}.artefacts.{name}")
            for name, item in fields.nested("artefacts").items()
        }
        if unknown := artefacts.keys() - set(ARTEFACTS):
            raise ParseError(f"{what}.artefacts: unknown: {', '.join(sorted(unknown))}")
        if missing := set(ARTEFACTS) - artefacts.keys():
            raise ParseError(f"{what}.artefacts: missing: {', '.join(sorted(missing))}")
        rollback = Rollback.of(fields)
        variant = fields.text("variant", limit=16)
        if variant not in set(Variant):
            raise ParseError(f"{what}.variant: {variant!r} is not one of {', '.join(Variant)}")
        manifest = cls(
            release=fields.text("release", limit=64),
            variant=Variant(variant),
            root_hash=fields.hexadecimal("root_hash", length=32),
            kernel_command_line=fields.text("kernel_command_line"),
            source_commit=fields.text("source_commit", limit=64),
            source_date_epoch=fields.integer("source_date_epoch"),
            security_version=rollback.security_version,
            rollback_floor=rollback.rollback_floor,
            artefacts=artefacts,
        )
        fields.done()
        return manifest


def _artefact(item: object, path: str) -> Artefact:
    fields = Fields(item, path)
    artefact = Artefact(size=fields.integer("size"), sha256=fields.hexadecimal("sha256", length=32))
    fields.done()
    return artefact


def describe(path: Path) -> Artefact:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Artefact(size=path.stat().st_size, sha256=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsigned:
    """An unsigned build in a folder."""

    directory: Path
    build: BuildManifest

    @property
    def root(self) -> Path:
        """The root file system (erofs)."""
        return self.directory / ROOT

    @property
    def verity(self) -> Path:
        """The hash tree over the root, with its superblock."""
        return self.directory / VERITY

    @property
    def bootloader(self) -> Path:
        return self.directory / BOOTLOADER

    @property
    def uki(self) -> Path:
        return self.directory / UKI

    @property
    def packages(self) -> Path:
        """mkosi's manifest: every Debian package and its version."""
        return self.directory / PACKAGES

    @property
    def sbom(self) -> Path:
        return self.directory / SBOM

    @classmethod
    def read(cls, directory: Path) -> Unsigned:
        """The build in ``directory``, each file held to its size and hash.

        Raises UsageError if there is none or if a file is another one than was built.
        """
        path = directory / BUILD
        if not path.is_file():
            raise UsageError(f"{path} is not there", hint="build it with `nodeos image build`")
        build = BuildManifest.parse(read_file(path, "the build manifest"), str(path))
        for name, expected in sorted(build.artefacts.items()):
            file = directory / name
            if not file.is_file() or file.is_symlink():
                raise UsageError(f"{file} is not there, as a file", hint="build it with `nodeos image build`")
            if describe(file) != expected:
                raise UsageError(
                    f"{file} is not the file that was built: its size or SHA-256 differs from {BUILD}",
                    hint="don't sign it; build again with `nodeos image build`",
                )
        return cls(directory=directory, build=build)
