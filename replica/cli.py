"""``nodeos replica``: the replica daemon."""

from __future__ import annotations

from pathlib import Path

import click

from nodeos.core.daemon import parse_listen


@click.group()
def commands() -> None:
    """The replica daemon."""


@commands.command()
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for canisters and chain; made if absent.",
)
@click.option(
    "--node",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The node's record in the registry (JSON).",
)
@click.option(
    "--committee-key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="BLS12-381 secret, 32 bytes in hexadecimal.",
)
@click.option(
    "--node-key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Ed25519 private key in PEM.",
)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT; port 0 takes any.")
@click.option(
    "--update-instructions",
    type=click.IntRange(min=1_000_000),
    help="Most instructions that one update may take; 40 billion if not given. Lower it on a slow machine.",
)
def run(
    *,
    state: Path,
    node: Path,
    committee_key: Path,
    node_key: Path,
    listen: str,
    update_instructions: int | None,
) -> None:
    """Run canisters and answer agents over HTTP until SIGTERM.

    The keys must be those in the node's record. Progress goes to standard error; the service manager is told
    when the port listens.
    """
    from replica.execution import Limits
    from replica.server import Config, serve

    host, port = parse_listen(listen)
    limits = Limits() if update_instructions is None else Limits(update=update_instructions)
    config = Config(
        state=state,
        record=node,
        committee_key=committee_key,
        node_key=node_key,
        host=host,
        port=port,
        limits=limits,
    )
    serve(config, lambda line: click.echo(f"replica: {line}", err=True))
