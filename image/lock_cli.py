"""``nodeos image lock`` and ``nodeos image pool``: which Debian packages the image is made from."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.cli import emit, wants_json

SOURCE = Path(__file__).resolve().parent.parent

snapshot_option = click.option(
    "--snapshot", envvar="NODEOS_SNAPSHOT", metavar="URL",
    help="A snapshot service that keeps old versions, as URL/debian/TIME/pool/… [env: NODEOS_SNAPSHOT]",
)  # fmt: skip


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), default=SOURCE / "build", show_default="build",
    help="Where caches go. The builds are made below WORK/lock.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Change nothing; exit code 3 if the mirror has other versions.")
@click.option("--from-build", is_flag=True, help="Don't build: take what the last run of this command built.")
@click.pass_context
def lock(ctx: click.Context, work: Path, check: bool, from_build: bool) -> None:
    """Write image/packages.lock: every Debian package that is in the image or makes it.

    Builds the release and the debug image from the mirror's newest packages, with cold caches, and writes down
    what was installed: name, version, architecture, SHA-256, size, suite and path. Takes as long as two first
    builds.
    """
    from image import builder, packages
    from image.keys import keys_of
    from image.steps import Steps
    from nodeos.core.errors import RefusedError
    from nodeos.core.release import Variant

    work = work.absolute()
    if check:
        there = packages.read_lock(SOURCE)
        found = packages.compare_mirror(there, work / "tools/apt")
        if found:
            raise RefusedError(
                f"{len(found)} of {len(there.packages)} locked packages are not what the mirror has",
                tuple(item.finding() for item in found),
                hint="a locked build may still find them; `nodeos image lock` takes the new ones",
            )
        emit(ctx, {"packages": len(there.packages), "drift": []}, "the mirror has what is locked")
        return
    place = work / "lock"
    variants = () if from_build else (Variant.RELEASE, Variant.DEBUG)
    steps = Steps(len(variants) + 1, as_json=wants_json(ctx))
    if variants:
        packages.drop_trees(place)
    for variant in variants:
        with steps.step(f"Build the {variant} image from the mirror's packages"):
            config = builder.Config(
                source=SOURCE, work=place, keys=keys_of(place, variant).directory, variant=variant,
                packages=packages.Policy.MIRROR,
            )  # fmt: skip
            builder.build(config, steps.say)
    with steps.step("Write image/packages.lock") as step:
        new = packages.make_lock(place)
        changed = packages.write_lock(SOURCE, new)
        step.notes.append(f"{len(new.packages)} packages, {len(changed)} changed")
    words = [item.words for item in changed]
    emit(
        ctx,
        {"packages": len(new.packages), "changed": words, "sha256": new.digest},
        "\n".join([*words, f"{packages.LOCK}: {len(new.packages)} packages, {len(changed)} changed"]),
    )


@click.group()
def pool() -> None:
    """A folder with exactly the locked packages, to build from without a network."""


@pool.command()
@click.argument("directory", type=click.Path(path_type=Path))
@snapshot_option
@click.pass_context
def fetch(ctx: click.Context, directory: Path, snapshot: str | None) -> None:
    """Download the locked packages into DIRECTORY, from the mirror in /etc/apt or a snapshot service.

    Each file is compared with the SHA-256 in the lock. An interrupted run goes on where it was. The folder is a
    flat apt repository too; `nodeos image build --pool DIRECTORY` builds from it, offline.
    """
    from image import packages, wheels
    from image import pool as pools
    from image.steps import Steps
    from nodeos.core.errors import RefusedError

    directory = directory.absolute()
    there = packages.read_lock(SOURCE)
    steps = Steps(2, as_json=wants_json(ctx))
    with steps.step(f"Fetch {len(there.packages)} Debian packages"):
        try:
            pools.fetch(there, directory, packages.network(there, snapshot), steps.say)
        except RefusedError as error:
            raise packages.explain(error, directory / "partial") from error
    with steps.step("Fetch the Python packages"):
        wheels.fetch(SOURCE / "image/locks", directory / "wheels")
    size = sum(item.size for item in there.packages)
    emit(
        ctx,
        {"directory": str(directory), "packages": len(there.packages), "bytes": size, "lock": there.digest},
        f"{directory}: {len(there.packages)} packages, {size >> 20} MiB",
    )
