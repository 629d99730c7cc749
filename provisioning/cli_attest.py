"""``nodeos attest``: tools for a person with one file of a machine's evidence. They need no registrar."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeos.cli import emit
from provisioning import cli_attest_chips
from provisioning.cli_options import plain

if TYPE_CHECKING:
    from nodeos.core.errors import Finding
    from provisioning.verify.eventlog import Event
    from provisioning.verify.replayed import Replayed

# A folder is told like any other file that is no log, with the code 1.
_file = click.Path(path_type=Path)


@click.group()
def commands() -> None:
    """Look at evidence: event logs, certificates, reports.

    Exit codes: 0 good, 3 refused, 1 a file can't be read as what it should be.
    """


@commands.command()
@click.argument("log", type=_file)
@click.option(
    "--cel", type=_file, help="systemd's log of the same boot (tpm2-measure.log), which continues LOG."
)
@click.option(
    "--expect",
    type=_file,
    help="PCR values to compare with: JSON (as --json prints, or a node's evidence), or YAML of tpm2-tools.",
)
@click.option(
    "--pcrs", help="Compare only these, for example 0-7,9,11. [default: all that FILE of --expect has]"
)
@click.pass_context
def replay(ctx: click.Context, log: Path, cel: Path | None, expect: Path | None, pcrs: str | None) -> None:
    """Show the events of a boot, and the PCR values that they make, in every bank.

    LOG is the firmware's event log, crypto-agile or with SHA-1 alone; on Linux
    /sys/kernel/security/tpm0/binary_bios_measurements.

    The log itself is no proof: compare the values with a quote. A `yes` behind an event says that its digest is of
    its data; `no` refuses the log, and with `-` the data is only what somebody wrote down.
    """
    from nodeos.core.errors import NodeosError, UsageError
    from provisioning.verify.replayed import replay_logs

    wanted = _numbers(pcrs)
    if wanted is not None and expect is None:
        raise UsageError("--pcrs needs --expect")
    try:
        replayed = replay_logs(
            _read(log, "event log"), _read(cel, "systemd's log") if cel else b"", *_expected(expect, wanted)
        )
    except UsageError as error:
        # Wrong use of this command is 2; that a file is not what it should be is what this command finds out.
        raise NodeosError(error.message, hint=error.hint) from error
    notes = [*replayed.notes, *_cut(cel)]
    emit(ctx, _value(replayed, notes), _table(replayed, notes))
    _refuse(ctx, log, replayed.findings, compared=expect is not None)


def _read(path: Path, what: str) -> bytes:
    from nodeos.core.files import read_file
    from provisioning.verify.eventlog import MAX_BYTES

    return read_file(path, what, limit=MAX_BYTES)


def _expected(path: Path | None, wanted: frozenset[int] | None) -> tuple[dict[int, dict[int, bytes]]]:
    from provisioning.verify.expected import only, parse_expected

    if path is None:
        return ({},)
    values = parse_expected(_read(path, "expected values"), str(path))
    return (values if wanted is None else only(values, wanted),)


def _numbers(text: str | None) -> frozenset[int] | None:
    """``0-7,9`` as numbers. Raises UsageError."""
    from nodeos.core.errors import UsageError
    from provisioning.verify.eventlog import PCRS

    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        ends = (low, high if dash else low)
        if not all(end.isascii() and end.isdecimal() and int(end) < PCRS for end in ends):
            raise UsageError(f"--pcrs: {part!r} is no PCR and no range", hint="for example 0-7,9,11")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    if not found:
        raise UsageError(f"--pcrs: {text!r} names no PCR", hint="for example 0-7,9,11")
    return frozenset(found)


def _cut(cel: Path | None) -> list[str]:
    """systemd sets the sticky bit on its log when a record may be missing."""
    if cel is not None and cel.stat().st_mode & stat.S_ISVTX:
        return ["systemd's log is marked as incomplete (sticky bit): the values of its PCRs may be too short"]
    return []


def _value(replayed: Replayed, notes: list[str]) -> dict[str, Any]:
    from provisioning.verify.eventlog import bank_name

    return {
        "pcrs": {
            bank_name(alg): {str(index): value.hex() for index, value in sorted(values.items())}
            for alg, values in replayed.banks.items()
        },
        "events": [_event(event, checked) for event, checked in replayed.events],
        "startup_locality": replayed.log.locality,
        "notes": notes,
        "findings": [finding.to_json() for finding in replayed.findings],
    }


def _event(event: Event, checked: bool | None) -> dict[str, Any]:
    from provisioning.verify.eventdata import describe
    from provisioning.verify.eventlog import bank_name

    return {
        "number": event.number,
        "log": "firmware" if event.firmware else "systemd",
        "pcr": event.pcr,
        "type": event.name,
        "type_id": event.kind,
        "digests": {bank_name(alg): value.hex() for alg, value in event.digests.items()},
        "extends": event.extends,
        "data": event.data.hex(),
        "data_checked": checked,
        "words": describe(event),
    }


def _table(replayed: Replayed, notes: list[str]) -> str:
    from provisioning.verify.eventdata import describe
    from provisioning.verify.eventlog import bank_name

    lines = [f"{'event':>5}  {'PCR':>3}  {'type':<34}  data?  what the log says"]
    for event, checked in replayed.events:
        pcr = str(event.pcr) if event.extends else "-"
        mark = {True: "yes", False: "no", None: "-"}[checked]
        lines.append(f"{event.number:>5}  {pcr:>3}  {event.name:<34}  {mark:<5}  {describe(event)}".rstrip())
    for alg, values in replayed.banks.items():
        lines += ["", bank_name(alg)]
        lines += [f"{index:>5}  {value.hex()}" for index, value in sorted(values.items())]
    if notes:
        lines += ["", *(f"note: {note}" for note in notes)]
    return plain("\n".join(lines))


def _refuse(ctx: click.Context, log: Path, findings: tuple[Finding, ...], *, compared: bool) -> None:
    """Exit with 3 if there is any finding. The result is printed already; under --json the findings are in it."""
    from nodeos.cli import wants_json
    from nodeos.core.errors import RefusedError

    if not findings:
        return
    if wants_json(ctx):
        ctx.exit(RefusedError.exit_code)
    hint = "with --pcrs only those are compared that the logs cover" if compared else None
    raise RefusedError(f"{log}: the log is refused", findings, hint=hint)


cli_attest_chips.register(commands)
