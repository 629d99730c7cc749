"""``nodeos install``: put a release on a machine's disk, or into a disk image."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeos.cli import emit, wants_json
from nodeos.core.errors import UsageError

if TYPE_CHECKING:
    from nodeos.core.site import SiteConfig
    from nodeos.install.permission import Permission
    from nodeos.install.survey import Survey
    from nodeos.install.target import Disk

_path = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@click.command()
@click.argument("release_dir", type=_path)
@click.argument("device", type=_path, required=False)
@click.option("--file", "file", type=_path, help="Make this disk image instead of writing to a device.")
@click.option("--size", help="The image's size in bytes, or with K, M, G, T (powers of 1024).")
@click.option(
    "--sector", type=click.Choice(["512", "4096"]), default="512", show_default=True,
    help="The image's sector size.",
)  # fmt: skip
@click.option("--site", type=_path, help="Folder with the site's site.json and site.sig.")
@click.option("--site-key", type=_path, help="The site's public key. [default: the one in this system]")
@click.option("--release-key", type=_path, help="The release's public key. [default: the one in this system]")
@click.option("--erase-token", type=_path, help="The operator's permission to erase this very disk.")
@click.option(
    "--challenge", type=_path, help="Where to keep the challenge for a token. [default: in /run/nodeos]"
)
@click.option("--disk-uuid", type=click.UUID, help="For the same bytes each time. [default: random]")
@click.option("--yes", is_flag=True, help="Do not ask; needs --serial.")
@click.option("--serial", help="The serial number that the disk must have (its name if it has none).")
@click.pass_context
def commands(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context,
    release_dir: Path,
    device: Path | None,
    file: Path | None,
    size: str | None,
    sector: str,
    site: Path | None,
    site_key: Path | None,
    release_key: Path | None,
    erase_token: Path | None,
    challenge: Path | None,
    disk_uuid: uuid.UUID | None,
    yes: bool,
    serial: str | None,
) -> None:
    """Install the release in RELEASE_DIR to DEVICE, or with --file into a disk image.

    The release's signature and all of its files are checked before anything is written, and what was written is
    read back. Refused are disks in use, and disks that hold data unless the operator permits to erase this one
    (`nodeos operator allow-erase`). An interrupted run can be started again and goes on where it was.
    """
    from nodeos.flash.progress import Progress
    from nodeos.install import trust
    from nodeos.install.source import read_release
    from nodeos.install.survey import survey
    from nodeos.install.writer import install

    if not release_dir.is_dir():
        raise UsageError(f"{release_dir} is no folder", hint="name the folder of a signed release")
    opener = _opener(release_dir, device, file, size, int(sector))
    if device is not None and yes and serial is None:
        raise UsageError("--yes without --serial", hint="name the serial number of the disk to erase")
    if erase_token is not None and site is None:
        raise UsageError("--erase-token without --site", hint="the site configuration names the operator")
    keys = trust.read_keys(release_key or trust.RELEASE_KEYS, "the release key")
    source = read_release(release_dir, keys)
    signed, config = trust.read_site(site, site_key or trust.SITE_KEYS) if site is not None else (None, None)
    if signed is None:
        click.echo("no site configuration is installed: the machine will not find a registrar", err=True)
    with opener as disk:
        found = survey(source, disk, signed)
        permission = _permission(disk, found, erase_token, challenge, config)
        click.echo("\n".join([f"Installing nodeos {source.version} erases:", *_what(disk, found)]), err=True)
        if not disk.is_file:
            _confirm(disk, serial, yes=yes)
        try:
            outcome = install(
                source, disk, site=signed, progress=Progress(as_json=wants_json(ctx)), permission=permission,
                disk_uuid=disk_uuid,
            )  # fmt: skip
        except KeyboardInterrupt:
            click.echo(f"\n{disk.path} is not complete: run the same command again", err=True)
            raise
    if not outcome.reread:
        click.echo(f"the kernel still has the old partition table of {disk.path}: start anew", err=True)
    emit(
        ctx,
        outcome.to_json(),
        f"{disk.path} holds nodeos {source.version} and reads back the same (root hash {source.root_hash.hex()})",
    )


def _opener(
    release: Path, device: Path | None, file: Path | None, size: str | None, sector: int
) -> AbstractContextManager[Disk]:
    from nodeos.install.target import open_disk, open_file

    if (device is None) == (file is None):
        raise UsageError("name either a device, or a disk image with --file", hint="`lsblk` lists the disks")
    if (file is None) != (size is None):
        raise UsageError("--file and --size belong together", hint="such as --file disk.raw --size 8G")
    if file is not None and size is not None:
        return open_file(file, _bytes(size), sector)
    if device is None:
        raise AssertionError
    return open_disk(device, release)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)", text)
    if match is None:
        raise UsageError(f"--size {text}: no size", hint="such as 8G, or a number of bytes")
    return int(match[1]) * _UNITS[match[2]]


def _permission(
    disk: Disk, found: Survey, token: Path | None, challenge: Path | None, config: SiteConfig | None
) -> Permission | None:
    """How the disk may be erased. Raises RefusedError, with a challenge, for data without a token."""
    from nodeos.core.erase import EraseToken
    from nodeos.core.files import read_file
    from nodeos.install import permission
    from nodeos.install.survey import State
    from nodeos.install.writer import refusal

    if found.state is not State.DATA:
        return None
    if disk.is_file:
        raise refusal(disk, found.contents, hint="name another file, or remove this one")
    place = challenge or permission.CHALLENGE
    if token is None or config is None:
        made = permission.challenge_for(place, disk.identity)
        hint = (
            f"if it may be erased have the operator run `nodeos operator allow-erase {place.name}`, and give what"
            f" it writes with --erase-token. {place} holds:\n{made.to_bytes().decode()}"
        )
        raise refusal(disk, found.contents, hint=hint)
    parsed = EraseToken.parse(read_file(token, "the erase token", limit=1 << 14), str(token))
    return permission.Permission(token=parsed, place=place, operator=config.operator, now=int(time.time()))


def _what(disk: Disk, found: Survey) -> list[str]:
    from nodeos.flash.progress import size_text

    told = " ".join(
        word for word in (disk.identity.model, disk.identity.serial, size_text(disk.identity.size)) if word
    )
    return [f"  {told}", *(f"  {line}" for line in found.contents)]


def _confirm(disk: Disk, serial: str | None, *, yes: bool) -> None:
    """By its serial number; a disk without one (a loop device) is called by its name."""
    word = disk.identity.serial or disk.names[0]
    if serial is not None and serial != word:
        raise UsageError(
            f"{disk.path}: its serial number is {word!r}, not {serial!r}", hint="nothing was written"
        )
    if yes:
        return
    answer = click.prompt(f"Type {word} to install", err=True, type=str, default="", show_default=False)
    if answer.strip() != word:
        raise click.Abort
