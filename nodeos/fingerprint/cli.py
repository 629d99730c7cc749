"""`nodeos fingerprint`: the hardware report of a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nodeos.cli import emit
from nodeos.core.cbor import as_json

_TPM = Path("/dev/tpmrm0")


@click.group()
def commands() -> None:
    """The hardware report of a machine."""


@commands.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write the report (CBOR) to this new file.")
@click.option(
    "--tcti",
    help=f"How to reach the TPM (TCTI name:configuration). Default: device:{_TPM}, if that is there.",
)
@click.pass_context
def collect(ctx: click.Context, out: Path | None, tcti: str | None) -> None:
    """Take this machine's inventory and measure it, in about 4 seconds. Reads only.

    Without a TPM, the report says so, and holds no hash of the serial number.
    """
    from nodeos.core.files import write_new
    from nodeos.fingerprint import report

    if tcti is None and _TPM.exists():
        tcti = f"device:{_TPM}"
    click.echo("taking the inventory and measuring …", err=True)
    value = _with_tpm(tcti) if tcti else report.collect(machine=None, tpm=None, tpm_command=None)
    data = report.encode(value)
    if out is not None:
        write_new(out, data, mode=0o644, hint="name another file")
        click.echo(f"{out}: {len(data)} bytes", err=True)
    emit(ctx, as_json(value), _summary(value))


@commands.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def show(ctx: click.Context, file: Path) -> None:
    """Show a report that `collect --out` wrote, after checking its form."""
    from nodeos.core.files import read_file
    from nodeos.fingerprint import report

    value = report.decode(read_file(file, "report", limit=1 << 20), file.name)
    emit(ctx, as_json(value), _summary(value))


def _with_tpm(tcti: str) -> dict[str, Any]:
    from hsm.tpm import Tpm
    from nodeos.core.protocol import machine_id
    from nodeos.fingerprint.report import collect

    with Tpm(tcti) as tpm:
        return collect(
            machine=machine_id(tpm.endorsement().public),
            tpm=tpm.identity(),
            tpm_command=lambda: tpm.read_pcrs((0,)),
        )


def _summary(value: dict[str, Any]) -> str:
    """The report for people: the inventory, then the medians."""
    lines = []
    for name, part in as_json(value["inventory"]).items():
        if isinstance(part, dict):
            words = ", ".join(f"{key} {_words(item)}" for key, item in part.items())
        else:
            words = _words(part)
        lines.append(f"{name + ':':<16}{words}")
    lines.append("measurements:   least / median / greatest")
    for name, part in sorted(value["measurements"].items()):
        if "invalid" in part:
            lines.append(f"  {name:<16}not valid: {part['invalid']}")
        else:
            quantiles = part["quantiles"]
            numbers = f"{quantiles[0]:,} / {quantiles[16]:,} / {quantiles[32]:,}"
            lines.append(f"  {name:<16}{numbers} {part['unit']} ({part['n']} samples)")
    return "\n".join(lines)


def _words(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
