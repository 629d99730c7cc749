"""Writes docs/reference.md: the help of every command, as the command line itself gives it.

Run it as ``.venv/bin/python docs/generate.py``; tests/unit/test_docs.py fails when the file is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from nodeos.cli import root

TARGET = Path(__file__).resolve().parent / "reference.md"
# Fixed, so that the terminal of whoever runs this does not matter.
WIDTH = 100
_HEAD = """# Command reference

Made by `docs/generate.py` from the commands themselves. Do not edit.

Every command takes `--json` and `--help`. `--json` may stand anywhere on the line. Results go to standard
output, words for people to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
3 refused by policy, 130 interrupted.
"""


def walk(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """The command and all below it, depth first, each with the context that its help needs."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is None:
                raise LookupError(f"{context.command_path} lists {name} and does not have it")
            below = click.Context(child, info_name=name, parent=context, terminal_width=WIDTH)
            yield from walk(child, below)


def commands() -> Iterator[tuple[click.Command, click.Context]]:
    """Every command of ``nodeos``, the overview first."""
    top = click.Context(root, info_name="nodeos", help_option_names=["-h", "--help"], terminal_width=WIDTH)
    return walk(root, top)


def render() -> str:
    """The whole reference."""
    parts = [_HEAD]
    for command, context in commands():
        level = min(2 + context.command_path.count(" "), 4)
        parts.append(f"{'#' * level} {context.command_path}\n")
        parts.append(f"```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
