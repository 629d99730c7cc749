"""The command line: ``nodeos NOUN VERB``. Nouns are imported when they are asked for, to start quickly."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import click

from nodeos import __version__
from nodeos.core.errors import NodeosError, RefusedError

# noun: (module, one line for the overview). Each module has a click group named ``commands``.
NOUNS = {
    "agent": ("nodeos.agent.cli", "What runs on a node at every boot."),
    "canister": ("replica.client_cli", "Create, install and call canisters on a node."),
    "demo": ("image.demo_cli", "The whole path on this machine, from build to serving node."),
    "enroll": ("provisioning.cli_enroll", "Machines that ask to become nodes."),
    "fingerprint": ("nodeos.fingerprint.cli", "The hardware report of a machine."),
    "image": ("image.cli", "Build, measure and boot the node image."),
    "media": ("image.media_cli", "Installation media with a site's signed configuration."),
    "node": ("provisioning.cli_node", "Nodes in the registry."),
    "operator": ("provisioning.cli_operator", "The operator's key and principal."),
    "registrar": ("provisioning.cli_registrar", "The enrolment service."),
    "replica": ("replica.cli", "The replica daemon."),
}


class Nouns(click.Group):
    """Lists all nouns without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        command = importlib.import_module(NOUNS[cmd_name][0]).commands
        if not isinstance(command, click.Command):
            raise TypeError(f"{NOUNS[cmd_name][0]}.commands is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Nouns"):
            formatter.write_dl([(noun, NOUNS[noun][1]) for noun in sorted(NOUNS)])


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nodeos")
@click.option("--json", "as_json", is_flag=True, help="Results and errors as JSON on standard output.")
@click.pass_context
def root(ctx: click.Context, as_json: bool) -> None:
    """Build, prove, enrol and run Internet Computer node machines.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by policy, 130 interrupted.
    """
    ctx.obj = as_json


def emit(ctx: click.Context, value: Any, text: str) -> None:
    """Print a result: ``value`` as JSON if the user asked for JSON, else ``text``."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if ctx.find_root().obj else text)


def wants_json(ctx: click.Context) -> bool:
    """True if the user gave --json."""
    return bool(ctx.find_root().obj)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --json may stand anywhere before a "--": it belongs to the whole command line.
    plain = words[: words.index("--")] if "--" in words else words
    as_json = "--json" in plain
    if as_json:
        rest = words[len(plain) :]
        words = ["--json", *(word for word in plain if word != "--json"), *rest]
    try:
        code = root.main(args=words, prog_name="nodeos", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except NodeosError as error:
        _show(error, as_json=as_json)
        sys.exit(error.exit_code)


def _show(error: NodeosError, *, as_json: bool) -> None:
    if as_json:
        findings = [f.to_json() for f in error.findings] if isinstance(error, RefusedError) else []
        click.echo(
            json.dumps(
                {"error": {"message": error.message, "hint": error.hint, "findings": findings}},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        click.echo(f"error: {error}", err=True)
