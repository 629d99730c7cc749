"""Installation media: a release's installer and a site's signed configuration, as USB disk, ISO or HTTP folder.

All three hold the same signed installer, and so end at the same root hash on the disk. The same release, site and
token give the same bytes: time stamps are the release's, identifiers are derived from the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from image import installer, pe
from nodeos.core import gpt, layout
from nodeos.core.errors import UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.run import find_tool, run
from nodeos.core.site import SIGNATURE_DOMAIN, SignedSite, SiteConfig

MIB = 1 << 20
_LABEL = "NODEOS"
_BOOT_IMAGE = "esp.img"
# The smallest FAT32 (65525 clusters) with sectors of 512 bytes, and a little.
_SMALLEST_FAT = 40 * MIB
_LIMIT = 3 << 30
_LOADER = """timeout 0
editor no
# The project's Secure Boot keys are enrolled in setup mode only: see docs/operator.md for machines of metal.
secure-boot-enroll if-safe
"""


class Kind(StrEnum):
    """What an installer is started from."""

    USB = "usb"
    ISO = "iso"
    HTTP = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What goes on a medium: ``erase`` is a token that lets the installer erase one machine's disk."""

    release: str
    epoch: int
    installer: bytes
    bootloader: bytes
    keys: Mapping[str, bytes]
    site: SignedSite
    erase: bytes | None = None

    @classmethod
    def read(cls, release: Path, site: SignedSite, *, erase: bytes | None = None) -> Content:
        """From a signed release directory. Raises UsageError if it lacks its installer, or has another's."""
        parts = installer.Parts.read(release)
        made = read_file(release / installer.NAME, "the installer", limit=_LIMIT)
        if pe.strip_signatures(made, installer.NAME) != installer.make_uki(parts):
            raise UsageError(
                f"{release / installer.NAME} is not the installer of this release",
                hint="make it again with `nodeos image sign`",
            )
        if not pe.signatures(made, installer.NAME):
            raise UsageError(
                f"{release / installer.NAME} is not signed", hint="sign the release with `nodeos image sign`"
            )
        return cls(
            release=str(json.loads(parts.files["release.json"]).get("release", "")),
            epoch=parts.source_date_epoch,
            installer=made,
            bootloader=parts.files["boot.efi"],
            keys={name: data for name, data in parts.files.items() if name.endswith(".auth")},
            site=site,
            erase=erase,
        )

    @property
    def site_files(self) -> dict[str, bytes]:
        """What the installer reads besides the release: below ``nodeos/``, or beside installer.efi."""
        files = {"site.json": self.site.document, "site.sig": self.site.signature}
        return files if self.erase is None else {**files, "erase.json": self.erase}

    @property
    def esp_files(self) -> dict[str, bytes]:
        """The EFI system partition: systemd-boot enrols the keys in setup mode, then starts the installer."""
        return {
            "EFI/BOOT/BOOTX64.EFI": self.bootloader,
            "EFI/Linux/nodeos-installer.efi": self.installer,
            "loader/loader.conf": _LOADER.encode(),
            **{f"loader/keys/auto/{name}": data for name, data in self.keys.items()},
            **{f"nodeos/{name}": data for name, data in self.site_files.items()},
        }

    def identity(self, purpose: str) -> uuid.UUID:
        """An identifier that is the same for the same content."""
        digest = hashlib.sha256(b"nodeos-medium-v1\0" + purpose.encode() + b"\0")
        for name, data in sorted(self.esp_files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return uuid.UUID(bytes=digest.digest()[:16], version=4)


def write(kind: Kind, content: Content, target: Path) -> None:
    """Make a medium: a file, or for HTTP a folder. A target that is there already is refused; nothing is left of
    one that failed."""
    if target.exists():
        raise UsageError(f"{target} is there already", hint="name another one; nothing is overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    _remove(fresh)
    try:
        {Kind.USB: _usb, Kind.ISO: _iso, Kind.HTTP: _http}[kind](content, fresh)
        fresh.rename(target)
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _http(content: Content, target: Path) -> None:
    """A folder to be served over HTTP as it is: the firmware starts installer.efi, which fetches what is beside
    it."""
    target.mkdir()
    files = {installer.NAME: content.installer, **content.site_files}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    for name, data in {**files, "SHA256SUMS": sums.encode()}.items():
        (target / name).write_bytes(data)
        os.utime(target / name, (content.epoch, content.epoch))


def _usb(content: Content, target: Path) -> None:
    """A GPT disk of 512-byte sectors with one EFI system partition."""
    with _scratch(target) as scratch:
        volume = scratch / "esp.img"
        make_fat(volume, content.esp_files, epoch=content.epoch, serial=content.identity("fat"))
        size = volume.stat().st_size
        esp = gpt.Partition(
            number=1,
            type=layout.ESP_TYPE,
            uuid=content.identity("esp"),
            start=MIB,
            size=size,
            label="nodeos-installer",
        )
        table = gpt.Table(size=size + 2 * MIB, sector=512, uuid=content.identity("disk"), partitions=(esp,))
        with target.open("wb") as file, volume.open("rb") as source:
            file.write(table.primary())
            file.seek(MIB)
            shutil.copyfileobj(source, file, 1 << 22)
            file.seek(table.backup_offset)
            file.write(table.backup())


def _iso(content: Content, target: Path) -> None:
    """An ISO 9660 image that UEFI firmware starts from a disc (El Torito), and as a disk if it is written to one:
    the same FAT is the boot image and a GPT partition. The site's files are in the ISO 9660 tree too, since Linux
    sees no partitions on a disc.

    The FAT is a file of that tree, and not behind it: EDK2 ends the boot image where the ISO 9660 volume ends.
    """
    xorriso = find_tool("xorriso", package="xorriso")
    with _scratch(target) as scratch:
        tree = scratch / "tree"
        _write_tree(
            tree, {f"nodeos/{name}": data for name, data in content.site_files.items()}, content.epoch
        )
        make_fat(tree / _BOOT_IMAGE, content.esp_files, epoch=content.epoch, serial=content.identity("fat"))
        for path in (tree / _BOOT_IMAGE, tree):
            os.utime(path, (content.epoch, content.epoch))
        run(
            [
                xorriso, "-as", "mkisofs", "-iso-level", "3", "-V", _LABEL, "-R",
                "--gpt_disk_guid", content.identity("disk").hex,
                "-c", "boot.catalog", "-e", _BOOT_IMAGE, "-no-emul-boot",
                # 0: to the end of the disc (UEFI 2.10, 13.3.2.1). The field can't count more than 32 MiB.
                "-boot-load-size", "0", "-efi-boot-part", "--efi-boot-image",
                "-o", target, tree,
            ],
            what="making the ISO image", env={"SOURCE_DATE_EPOCH": str(content.epoch), "TZ": "UTC"}, timeout=600,
        )  # fmt: skip


def make_fat(target: Path, files: Mapping[str, bytes], *, epoch: int, serial: uuid.UUID) -> None:
    """A FAT32 volume with these files, just large enough. Deterministic: see ``epoch`` and ``serial``."""
    mkfs = find_tool("mkfs.vfat", package="dosfstools")
    mcopy = find_tool("mcopy", package="mtools")
    needed = sum(len(data) + 4096 for data in files.values()) * 102 // 100 + 4 * MIB
    size = max(_SMALLEST_FAT, -(-needed // MIB) * MIB)
    with target.open("wb") as file:
        file.truncate(size)
    run(
        [mkfs, "--invariant", "-F", "32", "-S", "512", "-n", _LABEL, "-i", serial.hex[:8], target],
        what="making a FAT file system",
    )
    folders = sorted({name[:i] for name in files for i, sign in enumerate(name) if sign == "/"})
    environment = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    if folders:
        mmd = find_tool("mmd", package="mtools")
        run([mmd, "-i", target, *(f"::{name}" for name in folders)], what="making folders", env=environment)
    with _scratch(target) as scratch:
        tree = scratch / "tree"
        _write_tree(tree, files, epoch)
        for folder in ["", *folders]:
            # Named one by one: copied as a whole tree they would stand in the order of the file system beneath.
            inside = [tree / name for name in sorted(files) if name.rpartition("/")[0] == folder]
            if inside:
                run(
                    [mcopy, "-m", "-i", target, *inside, f"::{folder}/"],
                    what="writing the files of the medium", env=environment, timeout=600,
                )  # fmt: skip


def _write_tree(tree: Path, files: Mapping[str, bytes], epoch: int) -> None:
    tree.mkdir()
    for name, data in sorted(files.items()):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, (epoch, epoch))


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Beside the target: media are large, and /tmp may be memory."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name.lstrip('.')}.") as directory:
        yield Path(directory)


def load_site_key(path: Path) -> Ed25519PrivateKey:
    """The site key in a PEM file. Raises UsageError if it is none."""
    try:
        key = load_pem_private_key(read_file(path, "the site key"), None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: not an Ed25519 key", hint="site keys come from `nodeos image keygen`")
    return key


def sign(site: SiteConfig, key: Ed25519PrivateKey) -> SignedSite:
    """The configuration with its signature."""
    document = site.to_bytes()
    return SignedSite(document=document, signature=key.sign(SIGNATURE_DOMAIN + document))


def write_site(site: SignedSite, directory: Path) -> None:
    """Write ``site.json`` and ``site.sig``. Raises UsageError if one of them is there already."""
    files = {"site.json": site.document, "site.sig": site.signature}
    for name in files:
        if (directory / name).exists():
            raise UsageError(
                f"{directory / name} is there already", hint="name another folder; nothing is overwritten"
            )
    for name, data in files.items():
        write_atomic(directory / name, data)


def read_site(directory: Path) -> SignedSite:
    """What ``write_site`` wrote. The signature is for the machine to check, which has the key."""
    return SignedSite(
        document=read_file(directory / "site.json", "the site configuration", limit=1 << 16),
        signature=read_file(directory / "site.sig", "the site's signature", limit=1 << 10),
    )
