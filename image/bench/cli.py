"""``nodeos image bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeos.cli import emit, wants_json

if TYPE_CHECKING:
    from image.bench.record import Record
    from image.builder import Config
    from image.steps import Steps

PARTS = ("cold", "build", "sign", "sizes", "write", "boot")
SOURCE = Path(__file__).resolve().parents[2]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=SOURCE / "build", show_default="build",
              help="Where caches, keys and the release are, and the figures go.")  # fmt: skip
@click.option(
    "--only", multiple=True, type=click.Choice(PARTS), help="Measure this part. Can be given more than once."
)
@click.option("--boots", type=click.IntRange(1, 20), default=3, show_default=True,
              help="Boots after the first; the median counts.")  # fmt: skip
@click.option("--page", type=click.Path(path_type=Path), default=SOURCE / "docs/benchmarks.md",
              show_default="docs/benchmarks.md", help="The document that gets the section.")  # fmt: skip
@click.option(
    "--allow-drift", is_flag=True, help="Build with the mirror's packages where locked ones can't be had."
)
@click.pass_context
def bench(  # noqa: PLR0917 - click calls it by keyword
    ctx: click.Context, work: Path, only: tuple[str, ...], boots: int, page: Path, allow_drift: bool
) -> None:  # fmt: skip
    """Measure the image: builds, signatures, sizes, writing, boots, memory. Needs root.

    All parts take 20 minutes on two cores without KVM; each can be measured alone with --only. What the
    part "sign" signs is what the parts after it measure: else the release that lies in WORK. The figures are in
    WORK/bench/image.json, and with machine, date and commit in the section "Image" of the page.
    """
    from image import builder
    from image.bench import page as document
    from image.bench import record
    from image.keys import keys_of
    from image.packages import Policy
    from image.steps import Steps
    from nodeos.core.release import Variant

    work = work.absolute()
    config = builder.Config(
        source=SOURCE, work=work, keys=keys_of(work, Variant.RELEASE).directory,
        packages=Policy.ALLOW_DRIFT if allow_drift else Policy.LOCKED,
    )  # fmt: skip
    chosen = [part for part in PARTS if not only or part in only]
    steps = Steps(len(chosen), as_json=wants_json(ctx))
    store = work / "bench/image.json"
    records = record.read(store)
    for part in chosen:
        with steps.step(f"Measure: {part}"):
            records.update(_measure(part, config, boots, steps))
            record.write(store, records)
    document.update(page, records)
    told = {name: item.to_json() for name, item in records.items()}
    emit(ctx, told, f"{page}: the section Image\nfigures as JSON: {store}")


def _measure(part: str, config: Config, boots: int, steps: Steps) -> dict[str, Record]:
    """The records of a part: boots have one for each accelerator. The commit is that of what was measured."""
    from image.bench import boot, build, disk, record
    from image.builder import source_commit, unsigned_directory
    from image.keys import KeySet
    from image.release_dir import ReleaseDir
    from image.unsigned import Unsigned
    from image.vm import choose_accelerator

    keys, scratch, say = KeySet(directory=config.keys), config.work / "bench/scratch", steps.say
    directory = config.work / "image" / config.variant / "release"
    load = record.load()

    def kept(commit: str, figures: dict[str, Any]) -> Record:
        return record.Record(
            at=record.now(), commit=commit, machine=record.machine(), load=load, figures=figures
        )

    if part in ("cold", "build"):
        measure = build.cold if part == "cold" else build.warm
        return {part: kept(source_commit(config.source), measure(config, say))}
    if part == "sign":
        unsigned = Unsigned.read(unsigned_directory(config.work, config.variant))
        return {
            part: kept(unsigned.build.source_commit, build.signing(unsigned, keys, directory, scratch, say))
        }
    release = ReleaseDir.read(directory)
    commit = release.release.source_commit
    if part == "sizes":
        return {part: kept(commit, build.sizes(release, say))}
    if part == "write":
        return {part: kept(commit, disk.measure(release, keys, scratch, say))}
    found = {}
    for accelerator in dict.fromkeys(("tcg", choose_accelerator(config.work / "probe"))):
        say(f"boots by {accelerator}")
        figures = boot.measure(
            config.source, config.work, release, accelerator=accelerator, boots=boots, steps=steps
        )
        found[f"boot-{accelerator}"] = kept(commit, figures)
    return found
