"""``nodeos attest``: what machines and their chips say, checked offline from files."""

from __future__ import annotations

import click

from provisioning import cli_attest_chips


@click.group()
def commands() -> None:
    """Check evidence from files, offline. Exit codes: 0 good, 3 refused, 1 unreadable."""


cli_attest_chips.register(commands)
