"""``nodeos enroll``: what machines ask for, and the operator's decision."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from nodeos.cli import emit, wants_json
from nodeos.core.errors import NodeosError, UnreachableError, UsageError
from provisioning.cli_options import Where, operator_options, plain, when
from provisioning.client import OperatorClient

STATES = ("challenged", "refused", "pending", "rejected", "inducted")
_MARKS = {"passed": "✓", "watch": "!", "refused": "✗"}


@click.group()
def commands() -> None:
    """Machines that ask to become nodes."""


@commands.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only machines in this state.")
@operator_options
@click.pass_context
def list_(ctx: click.Context, state: str | None, where: Where) -> None:
    """List the machines of your data centres."""
    with where.client() as client:
        found = client.enrolments(state)
    emit(ctx, found, "\n".join(_line(item) for item in found) or "no machine has asked")


def _line(item: dict[str, Any]) -> str:
    codes = ", ".join(f["code"] for f in item["findings"])
    state = "locked" if item.get("locked") else item["state"]
    return plain(f"{item['machine'][:16]}  {state:10}  {item['data_center']}  {codes}")


@commands.command()
@click.argument("machine")
@operator_options
@click.pass_context
def show(ctx: click.Context, machine: str, where: Where) -> None:
    """Show what a machine proved. MACHINE is its id or the beginning of it."""
    with where.client() as client:
        details = client.enrolment(_full_name(client, machine))
    emit(ctx, details, describe(details))


@commands.command()
@click.option("--evidence", help="Approve only if the evidence is still that of this digest.")
@click.option("--yes", is_flag=True, help="Don't ask: approve the evidence that is there now.")
@click.argument("machine")
@operator_options
@click.pass_context
def approve(ctx: click.Context, machine: str, evidence: str | None, yes: bool, where: Where) -> None:
    """Make a machine a node. Your signature binds the evidence that you are shown."""
    with where.client() as client:
        name = _full_name(client, machine)
        if evidence is None:
            details = client.enrolment(name)
            evidence = details["evidence"]
            if not evidence:
                raise NodeosError(
                    f"machine {name[:16]} has no evidence that passed", hint="look: `nodeos enroll show`"
                )
            click.echo(describe(details), err=True)
            if not yes:
                _ask("Make this machine a node?", wants_json(ctx))
        node = client.approve(name, evidence)
    emit(ctx, node, f"node {node['node_id']} in {node['data_center']}")


@commands.command()
@click.option("--reason", required=True, help="Why, for the record and for the machine's console.")
@click.argument("machine")
@operator_options
@click.pass_context
def reject(ctx: click.Context, machine: str, reason: str, where: Where) -> None:
    """Turn a machine away."""
    with where.client() as client:
        details = client.reject(_full_name(client, machine), reason)
    emit(ctx, details, f"{details['machine'][:16]}  {details['state']}")


@commands.command()
@click.option("--state", default="pending", show_default=True, type=click.Choice(STATES), help="Wait for it.")
@click.option("--machine", default="", help="Only this machine: its id or the beginning of it.")
@click.option("--timeout", default=0, type=click.IntRange(0), help="Give up after so many seconds; 0: never.")
@click.option("--every", default=2, show_default=True, type=click.IntRange(1), help="Seconds between looks.")
@operator_options
@click.pass_context
def watch(  # noqa: PLR0917
    ctx: click.Context, state: str, machine: str, timeout: int, every: int, where: Where
) -> None:
    """Wait until a machine reaches a state, tell of every change on the way, and show the machine."""
    end = time.monotonic() + timeout if timeout else None
    known: dict[str, tuple[str, int]] = {}
    with where.client() as client:
        while True:
            try:
                rows = [row for row in client.enrolments() if row["machine"].startswith(machine)]
            except UnreachableError as error:
                rows = []
                click.echo(f"{error.message}; trying again", err=True)
            for row in rows:
                mark = (row["state"], row["changed_at"])
                if known.get(row["machine"]) != mark:
                    known[row["machine"]] = mark
                    click.echo(_line(row), err=True)
            there = [row for row in rows if row["state"] == state]
            if there:
                emit(ctx, there, "\n".join(_line(row) for row in there))
                return
            if end is not None and time.monotonic() > end:
                seen = ", ".join(sorted({row["state"] for row in rows})) or "no machine"
                raise NodeosError(f"no machine is {state} after {timeout} s (seen: {seen})")
            time.sleep(every)


def _ask(question: str, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UsageError("nobody can be asked here", hint="give --evidence DIGEST, or --yes")
    click.confirm(question, abort=True, err=True)


def _full_name(client: OperatorClient, start: str) -> str:
    """The id that begins so. Raises UsageError if none does, or several."""
    if len(start) == 64:
        return start
    found = [item["machine"] for item in client.enrolments() if item["machine"].startswith(start)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} machines begin with {start!r}",
            hint="see `nodeos enroll list`, give more",
        )
    return str(found[0])


def describe(details: dict[str, Any]) -> str:
    """What an operator should see before deciding."""
    lines = [
        f"machine   {details['machine']}",
        f"state     {details['state']} since {when(details['changed_at'])}, in {details['data_center']}",
        f"evidence  {details['evidence'] or 'none that passed'}",
    ]
    if details["locked"]:
        lines.append("locked    it asks for its recovery key: see `nodeos node recoveries`")
    tpm = details["tpm"]
    if tpm:
        lines.append(f"TPM       {tpm['manufacturer']} {tpm['model']} {tpm['version']}")
    if details["node_id"]:
        lines.append(f"node id   {details['node_id']}")
    if details["recovery"]:
        lines.append(f"recovery  its key is encrypted to the key {details['recovery']['operator_key'][:16]}…")
    attestation = details["attestation"]
    if attestation:
        lines.append(f"attested  {when(attestation['at'])}, release {attestation['release']}")
        for verdict in attestation["verdicts"]:
            lines.append(f"  {_MARKS[verdict['result']]} {verdict['check']}")
            lines += [f"      {f['code']}: {f['message']}" for f in verdict["findings"]]
    shown = {f["code"] for v in (attestation or {}).get("verdicts", []) for f in v["findings"]}
    lines += [f"  ✗ {f['code']}: {f['message']}" for f in details["findings"] if f["code"] not in shown]
    lines += _hardware(details["fingerprint"])
    return plain("\n".join(lines))


def _hardware(report: dict[str, Any] | None) -> list[str]:
    if not report:
        return []
    inventory = report["inventory"]
    cpu, disks = inventory["cpu"], inventory["disks"]
    total = sum(disk["bytes"] for disk in disks)
    return [
        f"system    {inventory['system']['manufacturer']} {inventory['system']['product']} "
        f"({inventory['virtualization']})",
        f"CPU       {cpu['sockets']} x {cpu['model']}, {cpu['threads']} threads",
        f"memory    {inventory['memory']['bytes'] / 2**30:.1f} GiB",
        f"disks     {len(disks)}, {total / 10**9:.0f} GB in all",
    ]
