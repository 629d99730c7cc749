"""Finds out what the preflight needs to know of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeos.core.efilists import EFI_GLOBAL
from nodeos.core.efivarfs import read_variable
from nodeos.core.errors import NodeosError, UsageError
from nodeos.core.files import read_file
from nodeos.core.pem import parse_public_keys
from nodeos.core.release import Release, Variant, parse_variant
from nodeos.core.statereport import REPORT, StateReport
from nodeos.update.candidate import LOADER, RELEASE, read_image, read_release
from nodeos.update.entries import DIRECTORY, BootEntry, of_version, read_entries
from nodeos.update.preflight import Facts
from nodeos.update.variables import EFIVARS, read_lists

# systemd's vendor UUID of boot loader variables (Boot Loader Interface).
LOADER_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
# Where a firmware and where systemd-boot's own entry look for the boot loader.
LOADERS = (Path("EFI/BOOT/BOOTX64.EFI"), Path("EFI/systemd/systemd-bootx64.efi"))


class Tpm(Protocol):
    """The part of ``hsm.tpm.Tpm`` that is used."""

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]: ...
    def read_floor(self) -> int: ...
    def raise_floor(self, version: int) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things are on a node. ``work`` is on the state volume, which only root can read."""

    esp: Path = Path("/boot")
    work: Path = Path("/var/lib/nodeos/update")
    library: Path = Path("/usr/lib/nodeos")
    definitions: Path = Path("/usr/lib/sysupdate.d")
    efivars: Path = EFIVARS
    os_release: Path = Path("/etc/os-release")
    volume_report: Path = REPORT

    @property
    def release_key(self) -> Path:
        return self.library / "release.pub.pem"

    @property
    def verity_certificate(self) -> Path:
        return self.library / "verity.crt"

    @property
    def staging(self) -> Path:
        return self.work / "staging"

    @property
    def incoming(self) -> Path:
        return self.work / "incoming"

    @property
    def download(self) -> Path:
        """Files of an offered release, as far as they were fetched."""
        return self.work / "download"

    @property
    def delivery(self) -> Path:
        """What became of the last offer: a ``Delivery``."""
        return self.work / "delivery.json"

    @property
    def pending(self) -> Path:
        """What the next boot needs once it is blessed: manifest, boot loader, db.auth and dbx.auth."""
        return self.work / "pending"


def read_os_release(path: Path) -> dict[str, str]:
    """The assignments of os-release(5)."""
    found = {}
    for line in read_file(path, "os-release", limit=1 << 16).decode(errors="replace").splitlines():
        name, separator, value = line.partition("=")
        if separator:
            found[name.strip()] = value.strip().strip("\"'")
    return found


def running_version(paths: Paths) -> str:
    version = read_os_release(paths.os_release).get("IMAGE_VERSION")
    if not version:
        raise UsageError(f"{paths.os_release}: has no IMAGE_VERSION", hint="this is not a node's system")
    return version


def running_variant(paths: Paths) -> Variant:
    """What the build wrote into the image."""
    data = read_file(paths.library / "variant", "variant", limit=64)
    return parse_variant(data.decode(errors="replace").strip(), "variant")


def trusted_release_keys(paths: Paths) -> tuple[bytes, ...]:
    """The DER of each key in the image's release.pub.pem: the current one, and perhaps the next."""
    pem = read_file(paths.release_key, "release key", limit=1 << 16)
    keys = parse_public_keys(pem, f"release key {paths.release_key}")
    return tuple(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys)


def verity_certificates(paths: Paths) -> list[x509.Certificate]:
    pem = read_file(paths.verity_certificate, "verity certificate", limit=1 << 16)
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise UsageError(f"verity certificate {paths.verity_certificate}: can't be read") from error


def volume_report(paths: Paths) -> StateReport:
    """The state volume, as the initrd found it."""
    return StateReport.parse(read_file(paths.volume_report, "state volume report", limit=1 << 13))


def is_counted(paths: Paths) -> bool:
    """True if systemd-boot counts this boot (LoaderBootCountPath): it is the try of an update."""
    return read_variable(paths.efivars, "LoaderBootCountPath", LOADER_VENDOR) is not None


def is_blessed(entries: Sequence[BootEntry], running: str) -> bool:
    """True if the running version's entry has no counter (any more)."""
    entry = of_version(entries, running)
    return entry is not None and entry.left is None


def gather_facts(paths: Paths, open_tpm: Callable[[], Tpm]) -> Facts:
    """Raises NodeosError where something can't be found out: an update isn't begun on a guess."""
    version, entries = running_version(paths), read_entries(paths.esp)
    entry = of_version(entries, version)
    if entry is None:
        raise NodeosError(
            f"the ESP at {paths.esp} has no UKI of the running version {version}",
            hint="mount the ESP that this system was started from",
        )
    uki = read_image(read_file(paths.esp / DIRECTORY / entry.name, "UKI", limit=1 << 30), entry.name)
    loader = read_image(read_file(paths.esp / LOADERS[0], "boot loader", limit=1 << 26), LOADER)
    tpm, pending = open_tpm(), pending_release(paths)
    return Facts(
        version=version,
        variant=running_variant(paths),
        entries=entries,
        esp_free=free_space(paths.esp, entries, version),
        secure_boot=read_variable(paths.efivars, "SecureBoot", str(EFI_GLOBAL)) == b"\x01",
        variables=read_lists(paths.efivars),
        pcr7=tpm.read_pcrs((7,))[7],
        loader=loader,
        uki_signer=uki.signer,
        policy_keys=volume_report(paths).policy_keys,
        floor=tpm.read_floor(),
        pending=None if pending is None else pending.version,
    )


def pending_release(paths: Paths) -> Release | None:
    """The release whose blessing is awaited. Its signature is checked again: the file lay on a disk."""
    if not (paths.pending / RELEASE).exists():
        return None
    return read_release(paths.pending, trusted_release_keys(paths))


def free_space(esp: Path, entries: Sequence[BootEntry], running: str) -> int:
    """Bytes that are free on the ESP once the UKIs of other versions are gone: at most two are kept."""
    found = os.statvfs(esp)
    others = (esp / DIRECTORY / entry.name for entry in entries if entry.version != running)
    return found.f_bavail * found.f_frsize + sum(path.stat().st_size for path in others)
