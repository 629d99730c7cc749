"""``nodeos node``: what the registry holds."""

from __future__ import annotations

from typing import Any

import click

from nodeos.cli import emit
from provisioning.cli_options import Where, operator_options, when


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
    return "\n".join(lines)
