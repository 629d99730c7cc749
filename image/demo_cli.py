"""``nodeos demo``: the whole path on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from image.cli import SOURCE, work_option
from nodeos.cli import emit, wants_json
from nodeos.core.errors import NodeosError


@click.group()
def commands() -> None:
    """The whole path on this machine, from build to serving node."""


@commands.command()
@work_option
@click.option("--summary", type=click.Path(path_type=Path), help="Write the JSON summary here too.")
@click.pass_context
def run(ctx: click.Context, work: Path, summary: Path | None) -> None:
    """Build the image, boot it, attest and enrol the node, run a canister, reboot, and sum up.

    Everything the demo makes lies in WORK/demo and is made anew by each run. Exit code 0 only if every step held.
    """
    from image import demo
    from image.demo_summary import render
    from nodeos.core.files import write_atomic

    result = demo.run(source=SOURCE, work=work.absolute(), as_json=wants_json(ctx))
    target = summary or work.absolute() / "demo" / "summary.json"
    write_atomic(target, json.dumps(result.to_json(), indent=2).encode() + b"\n")
    emit(ctx, result.to_json(), f"{render(result)}\nsummary as JSON: {target}")
    if result.error is not None:
        raise NodeosError(f"the demo failed: {result.error}", hint=result.hint)
