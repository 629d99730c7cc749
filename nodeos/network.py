"""`nodeos network`: addresses and firewall of a node, worked out and shown. Nothing is changed on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.cli import emit

_LIMIT = 1 << 23  # bytes; more than MAX_NODES addresses with a comment each


@click.group()
def commands() -> None:
    """Addresses and firewall of a node, as the network expects them."""


@commands.command()
@click.option(
    "--mgmt-mac", required=True, metavar="MAC", help="MAC address of the management controller (BMC)."
)
@click.option("--deployment", required=True, metavar="NAME", help="The network of nodes, such as mainnet.")
@click.option("--prefix", metavar="PREFIX", help="The site's IPv6 prefix, a /64; adds the IPv6 addresses.")
@click.pass_context
def addresses(ctx: click.Context, mgmt_mac: str, deployment: str, prefix: str | None) -> None:
    """Show the MAC and IPv6 addresses that the network expects of a machine's systems."""
    from nodeos.core.addresses import (
        System,
        interface_id,
        ipv6_address,
        parse_deployment,
        parse_mac,
        parse_prefix,
        system_mac,
    )

    management = parse_mac(mgmt_mac)
    name = parse_deployment(deployment)
    site = None if prefix is None else parse_prefix(prefix)
    systems = []
    for system in (System.HOST, System.SETUP, System.GUEST):
        mac = system_mac(management, name, system, version=6)
        identifier = interface_id(mac)
        row = {
            "system": str(system),
            "mac_ipv6": str(mac),
            "mac_ipv4": str(system_mac(management, name, system, version=4)),
            "interface_id": ":".join(f"{int.from_bytes(identifier[i : i + 2]):x}" for i in range(0, 8, 2)),
        }
        if site is not None:
            row["ipv6"] = str(ipv6_address(site, mac))
        systems.append(row)
    value = {
        "management_mac": str(management),
        "deployment": name,
        "prefix": None if site is None else str(site),
        "systems": systems,
    }
    emit(ctx, value, _table(systems))


def _table(rows: list[dict[str, str]]) -> str:
    titles = {
        "system": "system",
        "mac_ipv6": "MAC for IPv6",
        "mac_ipv4": "MAC for IPv4",
        "interface_id": "interface id",
        "ipv6": "IPv6 address",
    }
    lines = [[titles[key] for key in rows[0]], *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


@commands.command()
@click.option(
    "--nodes",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Addresses of the registry's nodes: one on a line (# begins a comment), or a JSON list.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="PREFIX",
    help="Who reaches the replica's port 8080 beside them. Can be given more than once.",
)
@click.pass_context
def firewall(ctx: click.Context, path: Path, clients: tuple[str, ...]) -> None:
    """Print the nftables ruleset of a node. It is not loaded.

    Services are open to the given nodes and clients alone, with limits for each source address. Without any of
    them all are closed.
    """
    from nodeos.core.access import sorted_addresses
    from nodeos.core.addresses import collapse, parse_network
    from nodeos.core.errors import UsageError
    from nodeos.core.files import read_file
    from nodeos.core.firewall import parse_nodes, render

    data = read_file(path, "list of nodes", limit=_LIMIT)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path.name}: line {line}: not UTF-8", hint="is this the right file?") from error
    nodes = sorted_addresses(parse_nodes(text, path.name))
    prefixes = collapse(parse_network(client) for client in clients)
    ruleset = render(nodes, clients=prefixes)
    if not nodes:
        closed = "nodes reach nothing" if prefixes else "every service is closed"
        click.echo(f"{path}: no node in it, so {closed}", err=True)
    value = {
        "nodes": [str(node) for node in nodes],
        "clients": [str(prefix) for prefix in prefixes],
        "ruleset": ruleset,
    }
    emit(ctx, value, ruleset.rstrip("\n"))
