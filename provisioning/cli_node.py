"""``nodeos node``: what the registry holds."""

from __future__ import annotations

import sys
from typing import Any

import click

from nodeos.cli import emit, wants_json
from nodeos.core.errors import UsageError
from provisioning.cli_options import Where, operator_options, plain, when


@click.group()
def commands() -> None:
    """Nodes in the registry."""


@commands.command("list")
@operator_options
@click.pass_context
def list_(ctx: click.Context, where: Where) -> None:
    """List the nodes of your data centres, with their latest attestation."""
    with where.client() as client:
        nodes = client.nodes()
    emit(
        ctx,
        nodes,
        "\n".join(
            f"{n['node_id']}  {n['data_center']}  {n['attestation']['state']} {when(n['attestation']['at'])}"
            for n in nodes
        )
        or "there is no node",
    )


@commands.command()
@click.argument("node")
@operator_options
@click.pass_context
def show(ctx: click.Context, node: str, where: Where) -> None:
    """Show a node's record and its attestations. NODE is a node id or a machine id."""
    with where.client() as client:
        found = client.node(node)
    emit(ctx, found, _describe(found))


@commands.command()
@operator_options
@click.pass_context
def recoveries(ctx: click.Context, where: Where) -> None:
    """List the machines whose state is locked and that wait for your answer."""
    with where.client() as client:
        found = client.recoveries()
    emit(ctx, found, "\n".join(_waiting(item) for item in found) or "no machine waits for its recovery key")


def _waiting(item: dict[str, Any]) -> str:
    codes = ", ".join(f["code"] for f in item["findings"])
    return plain(
        f"{item['machine'][:16]}  locked  {item['data_center']}  node {item['node_id']}  "
        f"since {when(item['at'])}  {codes}"
    )


@commands.command()
@click.option("--new-tpm", is_flag=True, help="The machine has another TPM or mainboard, and you know why.")
@click.option("--evidence", help="Answer only if the request is still that of this digest.")
@click.option("--yes", is_flag=True, help="Don't ask: answer the request that is there now.")
@click.argument("machine")
@operator_options
@click.pass_context
def recover(  # noqa: PLR0917
    ctx: click.Context, machine: str, evidence: str | None, yes: bool, new_tpm: bool, where: Where
) -> None:
    """Give a machine the key to its state after its TPM was cleared or replaced.

    MACHINE is a machine id or the beginning of one, as `nodeos node recoveries` shows it. Your token decrypts the
    recovery key, which is then encrypted to a key that the machine has just proven to hold in memory.
    """
    from provisioning import recover as recovery

    with where.operator() as (client, keys):
        name = recovery.full_name(client.recoveries(), machine)
        asked = recovery.check(client.recovery(name), registrar=client.registrar, keys=keys, new_tpm=new_tpm)
        click.echo(plain(recovery.describe(asked)), err=True)
        if evidence is not None and evidence != asked.evidence:
            raise UsageError(
                f"the machine's request is now {asked.evidence}", hint="look at it, then answer what you see"
            )
        if not yes and evidence is None:
            if wants_json(ctx) or not sys.stdin.isatty():
                raise UsageError("nobody can be asked here", hint="give --evidence DIGEST, or --yes")
            click.confirm("Give this machine the key to its state?", abort=True, err=True)
        done = client.answer_recovery(name, recovery.answer(asked, keys, new_tpm=new_tpm))
    emit(ctx, done, f"answered: machine {name[:16]} opens its state and restarts as node {done['node_id']}")


def _describe(node: dict[str, Any]) -> str:
    lines = [
        f"node      {node['node_id']}",
        f"machine   {node['machine']}",
        f"in        {node['data_center']}, {node['node_reward_type']}, since {when(node['inducted_at'])}",
        f"operator  {node['operator']}",
        "attestations, newest first:",
    ]
    for entry in node["attestation"]["history"]:
        lines.append(
            f"  {when(entry['at'])}  {entry['state']:6}  release {entry['release']}, "
            f"resets {entry['reset_count']}, boot {entry['boot_id']}"
        )
        for verdict in entry["verdicts"]:
            lines += [f"      {f['code']}: {f['message']}" for f in verdict["findings"]]
    return plain("\n".join(lines))
