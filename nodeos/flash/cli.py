"""``nodeos flash``: write a disk image to a disk or stick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeos.cli import emit, wants_json
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError

if TYPE_CHECKING:
    from nodeos.core.release import Artefact
    from nodeos.flash.disks import Candidate, Device, Image
    from nodeos.flash.writer import Report


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("device", type=click.Path(path_type=Path), required=False)
@click.option("--release", type=click.Path(path_type=Path),
              help="The manifest that the image must agree with. [default: release.json beside it]")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before erasing DEVICE.")
@click.pass_context
def commands(ctx: click.Context, image: Path, device: Path | None, release: Path | None, yes: bool) -> None:
    """Write IMAGE to DEVICE and compare what the disk then holds. Without DEVICE: list the disks.

    Refused are disks that are mounted, carry the running system or are in use otherwise, are read-only or too
    small. An interrupted run can be started again.
    """
    from nodeos.flash.disks import candidates
    from nodeos.flash.sysfs import read_facts, read_image

    if yes and device is None:
        raise UsageError("--yes without a device", hint="name the disk to erase")
    source = read_image(image)
    artefact = _artefact(image, release)
    found = candidates(read_facts(), source)
    if device is None:
        shown = [item for item in found if item.device.size and item.device.kind != "other"]
        emit(ctx, [_to_json(item) for item in shown], _table(shown))
        return
    chosen = _choose(device, found)
    result = _flash(image, source, artefact, chosen, yes=yes, as_json=wants_json(ctx))
    emit(ctx, result, f"{chosen.path} holds {image} and reads back the same (SHA-256 {result['sha256']})")


def _artefact(image: Path, release: Path | None) -> Artefact | None:
    """What the manifest says of the image; None if there is no manifest that knows it."""
    from nodeos.core.files import read_file
    from nodeos.core.release import Release

    path = release or image.with_name("release.json")
    if release is None and not path.exists():
        click.echo(f"there is no release.json beside {image}: its content is not checked", err=True)
        return None
    artefacts = Release.parse(read_file(path, "the release manifest"), str(path)).artefacts
    if image.name in artefacts:
        return artefacts[image.name]
    if release is not None:
        raise UsageError(
            f"{path} does not know {image.name}", hint=f"it knows {', '.join(sorted(artefacts))}"
        )
    click.echo(f"{path} does not know {image.name}: its content is not checked", err=True)
    return None


def _choose(path: Path, found: tuple[Candidate, ...]) -> Device:
    from nodeos.flash.device import real_path

    real = str(real_path(path))
    for item in found:
        if item.device.path == real:
            if item.refusals:
                raise RefusedError(
                    f"{path} is left alone", item.refusals, hint="`nodeos flash IMAGE` lists the disks"
                )
            return item.device
    finding = Finding(code="disk.kind", message="it is no whole disk")
    raise RefusedError(f"{path} is left alone", (finding,), hint="`nodeos flash IMAGE` lists the disks")


def _flash(
    image: Path, source: Image, artefact: Artefact | None, device: Device, *, yes: bool, as_json: bool
) -> dict[str, Any]:
    from nodeos.flash import writer
    from nodeos.flash.device import opened
    from nodeos.flash.progress import Progress, size_text

    progress = Progress(as_json=as_json)
    with image.open("rb", buffering=0) as file:
        expected = _check(file, source, artefact, progress)
        # Held from before the question on: the answer is for this very disk.
        with opened(device) as target:
            lines = _what_is_there(device, target)
            click.echo("\n".join(["This erases:", *lines]), err=True)
            if not yes:
                _ask(device)
            try:
                plan = writer.write(file, source.size, target, progress)
                if plan.sha256 != expected:
                    raise NodeosError(
                        f"{image} changed while it was written",
                        hint=f"{device.path} must not be used as it is; run this again",
                    )
                writer.verify(file, plan, target, progress)
            except KeyboardInterrupt:
                click.echo(f"\n{device.path} is not complete: run the same command again", err=True)
                raise
            reread = target.reread_partitions()
    if not reread:
        click.echo(f"the kernel still has the old partition table of {device.path}: plug it anew", err=True)
    if target.size - plan.covered >= writer.TAIL:
        click.echo(
            f"the backup partition table is at the image's end ({size_text(plan.covered)}), as the first one"
            " says; the rest of the disk is free",
            err=True,
        )
    return {
        "device": device.path,
        "serial": device.serial,
        "size": source.size,
        "sha256": plan.sha256.hex(),
        "matches_release": artefact is not None,
        "seconds": {phase: round(seconds, 2) for phase, seconds in progress.seconds.items()},
        "partitions_reread": reread,
    }


def _check(file: Any, source: Image, artefact: Artefact | None, report: Report) -> bytes:
    """The image's SHA-256, before anything is written."""
    from nodeos.flash import writer

    found: list[Finding] = []
    if artefact is not None and artefact.size != source.size:
        message = f"it has {source.size} bytes, the manifest says {artefact.size}"
        found.append(Finding(code="image.size", message=message))
    sha256 = writer.digest(file, source.size, report)
    if artefact is not None and artefact.sha256 != sha256:
        message = f"its SHA-256 is {sha256.hex()}, the manifest says {artefact.sha256.hex()}"
        found.append(Finding(code="image.sha256", message=message))
    if found:
        raise RefusedError(
            f"{source.path} is not the image of this release; nothing was written",
            tuple(found),
            hint="get the image again, and use no disk that was written with it",
        )
    return sha256


def _what_is_there(device: Device, target: Any) -> list[str]:
    from nodeos.flash.progress import size_text
    from nodeos.flash.signatures import NEEDED, signatures

    def line(name: str, start: int, size: int, more: str) -> str:
        length = min(NEEDED, size) // device.sector * device.sector
        head = bytearray(length)
        try:
            target.read(start, memoryview(head))
            kinds = ", ".join(signatures(bytes(head))) or "empty"
        except OSError as error:
            kinds = f"unreadable ({error.strerror})"
        return f"  {name:<12} {size_text(size):>9}  {kinds}{more}"

    told = " ".join(word for word in (device.model, device.serial, device.bus) if word)
    whole = line(device.path, 0, device.size, f"  {told}")
    return [whole, *(line(part.name, part.start, part.size, f"  {part.label}") for part in device.partitions)]


def _ask(device: Device) -> None:
    word = device.serial or device.name
    names = {word, device.name}
    answer = click.prompt(
        f"Type {' or '.join(sorted(names))} to erase it", err=True, type=str, default="", show_default=False
    )
    if answer.strip() not in names:
        raise click.Abort


def _to_json(item: Candidate) -> dict[str, Any]:
    device = item.device
    return {
        "path": device.path, "model": device.model, "serial": device.serial, "size": device.size,
        "bus": device.bus, "removable": device.removable,
        "refusals": [finding.to_json() for finding in item.refusals],
    }  # fmt: skip


def _table(found: list[Candidate]) -> str:
    from nodeos.flash.progress import size_text

    if not found:
        return "no disk found"
    rows = [("DISK", "SIZE", "BUS", "REMOVABLE", "SERIAL", "MODEL")]
    rows += [
        (
            d.path,
            size_text(d.size),
            d.bus or "-",
            "yes" if d.removable else "no",
            d.serial or "-",
            d.model or "-",
        )
        for d in (item.device for item in found)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    told = [lines[0]]
    for item, line in zip(found, lines[1:], strict=True):
        told.append(line)
        told += [f"  ✗ {finding.code}: {finding.message}" for finding in item.refusals]
    return "\n".join(told)
