"""``nodeos operator``: the operator's key on a PKCS#11 token, and its principal."""

from __future__ import annotations

from pathlib import Path

import click

_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def commands() -> None:
    """The operator's key and principal."""
