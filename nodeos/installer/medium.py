"""Reads the site's configuration and the erase token from what this machine was started from.

Nothing that is read here is trusted: the configuration is signed by the site key, a token by the operator's.
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from nodeos.core.errors import NodeosError, ToolError, UnreachableError, UsageError
from nodeos.core.files import read_file
from nodeos.core.run import run
from nodeos.installer import boot_source

FIRMWARE_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
LOADER_PARTITION = Path("/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
SITE_FILES = ("site.json", "site.sig")
ERASE_FILE = "erase.json"
_LIMIT = 1 << 16
_LOG_LIMIT = 1 << 24
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Medium(Protocol):
    """``source`` names it for people; ``removable`` says whether somebody must take it out in the end."""

    source: str
    removable: bool

    def read(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        """Those of the files that are there. Raises UnreachableError if asking again may help."""
        ...


class HttpMedium:
    """The folder that the firmware fetched the installer from."""

    removable = False

    def __init__(self, folder: str) -> None:
        self.source = folder

    def read(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        found = {name: self._get(name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def _get(self, name: str) -> bytes | None:
        parts = urllib.parse.urlsplit(self.source)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=20)
        try:
            connection.request("GET", parts.path + name)
            answer = connection.getresponse()
            data = answer.read(_LIMIT + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"{self.source}: {error}", hint="check the network and the web server"
            ) from error
        finally:
            connection.close()
        if answer.status == 404:
            return None
        if answer.status != 200 or len(data) > _LIMIT:
            raise UnreachableError(
                f"{self.source}{name}: answered with status {answer.status} and {len(data)} bytes",
                hint="serve the folder that `nodeos media make --kind http` made, as it is",
            )
        return data


class BlockMedium:
    """A partition or disc. It is mounted for each read alone: an operator may take the stick out, put a token on
    it, and plug it in again."""

    removable = True

    def __init__(self, devices: tuple[Path, ...], kind: str) -> None:
        self.source = "disc" if kind == "iso9660" else "disk"
        self._devices, self._kind = devices, kind

    def read(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        errors: list[str] = []
        for device in self._devices:
            try:
                found = self._read(device, names)
            except ToolError as error:
                errors.append(error.message)
                continue
            if found:
                return found
        if errors and len(errors) == len(self._devices):
            raise UnreachableError(
                f"the medium can't be read: {errors[0]}", hint="plug it in again, or make it again"
            )
        return {}

    def _read(self, device: Path, names: tuple[str, ...]) -> Mapping[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="nodeos-medium-") as directory:
            run(
                ["mount", "-t", self._kind, "-o", "ro,nosuid,nodev,noexec", device, directory],
                what=f"mounting {device}",
            )
            try:
                folder = Path(directory) / "nodeos"
                return {
                    name: read_file(folder / name, "file of the medium", limit=_LIMIT)
                    for name in names
                    if (folder / name).is_file()
                }
            finally:
                run(["umount", directory], what=f"unmounting {device}")


def find_medium(
    log: Path = FIRMWARE_LOG, loader: Path = LOADER_PARTITION, devices: Path = Path("/dev")
) -> Medium:
    """What this machine was started from. Raises NodeosError if that can't be told: nothing else is looked at, so
    a stick that somebody forgot in the machine has no say."""
    url = (
        boot_source.booted_url(read_file(log, "the firmware's log", limit=_LOG_LIMIT))
        if log.exists()
        else None
    )
    if url is not None:
        return HttpMedium(boot_source.folder_url(url))
    partition = _loader_partition(loader)
    if partition is not None:
        return BlockMedium((devices / "disk/by-partuuid" / partition,), "vfat")
    discs = tuple(sorted(devices.glob("sr[0-9]*")))
    if discs:
        return BlockMedium(discs, "iso9660")
    raise NodeosError(
        "it can't be told what this machine was started from",
        hint="start the installer by UEFI, from a USB stick, a disc or over HTTP; for HTTP the TPM must be on",
    )


def _loader_partition(path: Path) -> str | None:
    """The partition that the boot loader was started from (systemd's Boot Loader Interface)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Files of efivarfs can't be sought in; 4 bytes of attributes come first.
        text = os.read(descriptor, 256)[4:].decode("utf-16-le", errors="replace").rstrip("\0").lower()
    finally:
        os.close(descriptor)
    return text if _UUID.fullmatch(text) else None


def save_site(medium: Medium, directory: Path) -> None:
    """Fetch the configuration into ``directory``. Raises UsageError if it is not there."""
    found = medium.read(SITE_FILES)
    missing = [name for name in SITE_FILES if name not in found]
    if missing:
        raise UsageError(
            f"{medium.source} holds no {' and no '.join(missing)}",
            hint="make the medium again with `nodeos media make`",
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name in SITE_FILES:
        (directory / name).write_bytes(found[name])
