"""The folder of a signed release: which files are in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from image import unsigned
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Release

VERITY_SIGNATURE = "verity-sig.json"
VARIABLES = ("PK", "KEK", "db", "dbx")
AUTH_FILES = tuple(f"{name}.auth" for name in VARIABLES)
OPTIONAL = ("dbx.auth",)
ARTEFACTS = (*unsigned.ARTEFACTS, VERITY_SIGNATURE, *AUTH_FILES)
"""What the manifest describes; ``dbx.auth`` is there only once a db certificate was retired."""
MANIFEST, SIGNATURE, SIGNATURES = "release.json", "release.sig", "signatures"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDir:
    """A release as it is published. Reading it checks nothing: see ``image.verify`` and ``check_signature``."""

    directory: Path
    release: Release

    @classmethod
    def read(cls, directory: Path) -> ReleaseDir:
        """Raises UsageError if there is no manifest, or a file that it describes is missing."""
        path = directory / MANIFEST
        if not path.is_file():
            raise UsageError(f"{path} is not there", hint="sign a build with `nodeos image sign`")
        release = Release.parse(read_file(path, "the release manifest"), str(path))
        for name in release.artefacts:
            if not (directory / name).is_file():
                raise UsageError(f"{directory / name} is not there", hint="get the whole release again")
        return cls(directory=directory, release=release)

    def path(self, name: str) -> Path:
        return self.directory / name

    @property
    def root(self) -> Path:
        return self.path(unsigned.ROOT)

    @property
    def verity(self) -> Path:
        return self.path(unsigned.VERITY)

    @property
    def verity_signature(self) -> Path:
        return self.path(VERITY_SIGNATURE)

    @property
    def bootloader(self) -> Path:
        return self.path(unsigned.BOOTLOADER)

    @property
    def uki(self) -> Path:
        return self.path(unsigned.UKI)

    @property
    def manifest(self) -> Path:
        return self.path(MANIFEST)

    @property
    def signature(self) -> Path:
        return self.path(SIGNATURE)

    @property
    def signatures(self) -> Path:
        """The folder of detached signatures, with which ``attach`` makes this release from a build."""
        return self.path(SIGNATURES)

    def enrolled(self) -> dict[str, bytes]:
        """The Secure Boot variables' .auth files by name."""
        return {
            name: read_file(self.path(f"{name}.auth"), f"the variable {name}")
            for name in VARIABLES
            if self.path(f"{name}.auth").exists()
        }
