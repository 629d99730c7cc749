"""``nodeos image``: build, measure and boot the node image."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from image import lock_cli, signing_cli
from image.bench.cli import bench
from nodeos import __version__
from nodeos.cli import emit, wants_json
from nodeos.core.files import read_file
from nodeos.core.release import Release, Variant

if TYPE_CHECKING:
    from image.builder import Config
    from image.unsigned import BuildManifest

SOURCE = Path(__file__).resolve().parent.parent


@click.group()
def commands() -> None:
    """Build, sign, verify and boot the node image."""


signing_cli.register(commands)
commands.add_command(lock_cli.lock)
commands.add_command(lock_cli.pool)
commands.add_command(bench)

work_option = click.option(
    "--work", type=click.Path(path_type=Path), default=SOURCE / "build", show_default="build",
    help="Where caches and outputs go.",
)  # fmt: skip

variant_option = click.option(
    "--variant", type=click.Choice([str(item) for item in Variant]), default=str(Variant.RELEASE),
    show_default=True, help="release, or debug with a root shell on the console.",
)  # fmt: skip


keys_option = click.option(
    "--keys", "keys_", type=click.Path(path_type=Path),
    help="Folder of the public keys to build with, from `image keygen`. [default: WORK/keys, made if absent]",
)  # fmt: skip

version_option = click.option(
    "--version", default=__version__, show_default=True, help="The version of the release."
)


def _config(work: Path, keys: Path | None, variant: str, version: str) -> Config:
    """What the options of a build say."""
    from image.builder import Config
    from image.keys import keys_of

    work, chosen = work.absolute(), Variant(variant)
    directory = keys.absolute() if keys else keys_of(work, chosen).directory
    return Config(source=SOURCE, work=work, keys=directory, variant=chosen, version=version)


@commands.command()
@work_option
@keys_option
@variant_option
@version_option
@click.option(
    "--pool", type=click.Path(path_type=Path),
    help="Take all packages from this folder, of `image pool fetch`; needs no network.",
)  # fmt: skip
@click.option(
    "--allow-drift", is_flag=True,
    help="Use the mirror's packages if the locked ones can't be had. packages.json tells of it.",
)  # fmt: skip
@lock_cli.snapshot_option
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Put the build there, and leave the one before. [default: WORK/image/VARIANT/unsigned]",
)  # fmt: skip
@click.pass_context
def build(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context, work: Path, keys_: Path | None, variant: str, version: str, pool: Path | None,
    allow_drift: bool, snapshot: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Build the image, unsigned: no private key is needed, only public ones that go inside.

    Needs root; the first build takes some minutes. The result is in WORK/image/VARIANT/unsigned. The packages are
    the locked ones, from the mirror in /etc/apt, a snapshot service, or a pool. One that can't be had with the
    locked SHA-256 ends the build with the list of what drifted.
    """
    from image import builder
    from image.packages import Policy
    from image.steps import Steps

    config = _config(work, keys_, variant, version)
    steps = Steps(1, as_json=wants_json(ctx))
    config = dataclasses.replace(
        config,
        packages=Policy.ALLOW_DRIFT if allow_drift else Policy.LOCKED,
        pool=pool.absolute() if pool else None,
        snapshot=snapshot,
        out=out.absolute() if out else None,
    )
    with steps.step(f"Build the {variant} image") as step:
        built = builder.build(config, steps.say)
        step.notes.append(str(built.directory))
    emit(
        ctx,
        {"directory": str(built.directory), "build": json.loads(built.build.to_bytes())},
        _describe_build(built.build),
    )


@commands.command("verify-build")
@work_option
@keys_option
@variant_option
@version_option
@click.pass_context
def verify_build(ctx: click.Context, work: Path, keys_: Path | None, variant: str, version: str) -> None:
    """Build twice and tell every difference: exit code 3 if there is one.

    Both builds are made from cold caches below WORK/verify-build, the second from a clone at another path, under
    another umask, time zone and host name. Takes as long as two first builds, and needs a clean working tree.
    """
    import dataclasses
    import shutil

    from image import builder, reproduce
    from image.steps import Steps
    from nodeos.core.errors import RefusedError

    config = _config(work, keys_, variant, version)
    commit = reproduce.check_source(SOURCE)
    steps = Steps(3, as_json=wants_json(ctx))
    place = config.work / "verify-build"
    shutil.rmtree(place, ignore_errors=True)
    log = config.work / "logs/verify-build.log"
    log.unlink(missing_ok=True)
    with steps.step("First build"):
        first = builder.build(dataclasses.replace(config, work=place / "first"), steps.say)
        reproduce.check_unchanged(first, commit)
    with steps.step("Second build, under other conditions") as step:
        steps.say("as long as the first")
        second = reproduce.second_build(SOURCE, first, work=place / "second", keys=config.keys, log=log)
        step.notes.append(f"log {log}")
    with steps.step("Compare every file of the two builds"):
        tools = place / "first/mkosi/tools"
        findings = reproduce.compare(first, second, tools=tools, scratch=place / "roots")
        if findings:
            raise RefusedError(
                "two builds of one commit differ",
                findings if wants_json(ctx) else reproduce.shorten(findings),
                hint=f"both are kept in {place}",
            )
    root_hash = first.build.root_hash.hex()
    emit(
        ctx,
        {"reproducible": True, "commit": commit, "root_hash": root_hash},
        f"reproducible: commit {commit}\nroot hash {root_hash} in both builds",
    )


@commands.command()
@click.argument("release", type=click.Path(path_type=Path))
@click.pass_context
def show(ctx: click.Context, release: Path) -> None:
    """Show a release manifest: what was built, and the measurements that it must give."""
    data = read_file(release, "the release manifest")
    parsed = Release.parse(data, str(release))
    emit(ctx, json.loads(data), _describe(parsed))


@commands.command()
@click.argument("machine", type=click.Path(path_type=Path))
@work_option
@click.option(
    "--image",
    "image_",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The disk image of a new machine, from `nodeos install --file`. [default: an empty disk]",
)
@click.option(
    "--medium",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Start this installation medium first: an .iso as a disc, another as a USB stick.",
)
@click.option("--forward", multiple=True, metavar="HOST:GUEST", help="Forward a loopback port to the guest.")
@click.option("--seconds", type=click.IntRange(1), help="Press the power button after so long.")
@click.pass_context
def boot(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context, machine: Path, work: Path, image_: Path | None, medium: Path | None,
         forward: tuple[str, ...], seconds: int | None) -> None:  # fmt: skip
    """Switch a virtual machine on. MACHINE is its folder, made if it isn't there yet.

    Secure Boot is enforced and the TPM is a software one with a test manufacturer's certificate. Ctrl-C presses
    the power button.
    """
    from hsm.softtpm import ManufacturerCa
    from image.vm import Machine, choose_accelerator, switch_on
    from nodeos.core.errors import UsageError

    work = work.absolute()
    ports = dict(_port_pair(item) for item in forward)
    if not machine.exists():
        if image_ is None and medium is None:
            raise UsageError(f"{machine} is not there", hint="name its disk with --image, or a --medium")
        Machine.make(machine.absolute(), image=image_, ca=ManufacturerCa.create(work / "manufacturer"))
    accelerator = choose_accelerator(work / "probe")
    box = Machine(directory=machine.absolute())
    with switch_on(box, accelerator=accelerator, forward=ports, medium=medium) as vm:
        click.echo(f"on ({accelerator}); console: {box.console}", err=True)
        try:
            deadline = time.monotonic() + seconds if seconds else None
            while vm.process.poll() is None and (deadline is None or time.monotonic() < deadline):
                time.sleep(0.5)
        except KeyboardInterrupt:
            click.echo("pressing the power button", err=True)
        if vm.process.poll() is None:
            vm.power_button()
    emit(ctx, {"machine": str(machine), "accelerator": accelerator}, "off")


def _port_pair(text: str) -> tuple[int, int]:
    host, _, guest = text.partition(":")
    if not (host.isdecimal() and guest.isdecimal()):
        raise click.UsageError(f"--forward {text}: expected HOST:GUEST, two port numbers")
    return int(host), int(guest)


def _describe_build(build: BuildManifest) -> str:
    lines = [
        f"build      {build.release} ({build.variant}), commit {build.source_commit}, not signed yet",
        f"root hash  {build.root_hash.hex()}",
        f"security   version {build.security_version}, rollback floor {build.rollback_floor}",
        *(f"{name:<15} {item.size:>11} bytes  sha256 {item.sha256.hex()}"
          for name, item in sorted(build.artefacts.items())),
    ]  # fmt: skip
    return "\n".join(lines)


def _describe(release: Release) -> str:
    lines = [
        f"release    {release.version} ({release.variant}), commit {release.source_commit}",
        f"root hash  {release.root_hash.hex()}",
        *(f"{name:<10} {item.size:>11} bytes  sha256 {item.sha256.hex()}"
          for name, item in sorted(release.artefacts.items())),
        f"floor      security version {release.security_version}, rollback floor {release.rollback_floor}",
        *(f"PCR {index:<6} {value.hex()}" for index, value in sorted(release.pcrs["sha256"].items())),
        *(f"PCR 11     {value.hex()}  after {phase}" for phase, value in release.pcr11["sha256"].items()),
        *(f"accepts    {item.sha256.hex()}  as PCR 7: {item.name}" for item in release.accepted_pcr7),
    ]  # fmt: skip
    return "\n".join(lines)
