"""The command line: ``nodeos NOUN VERB``. Nouns are imported when they are asked for, to start quickly."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from nodeos import __version__
from nodeos.core.errors import NodeosError, RefusedError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

DEBUG = "NODEOS_DEBUG"
_GLOBAL_FLAGS = ("--json", "--debug")
# noun: (module, one line for the overview). Each module has a click group named ``commands``.
NOUNS = {
    "agent": ("nodeos.agent.cli", "What runs on a node at every boot."),
    "attest": ("provisioning.cli_attest", "Look at evidence: event logs, certificates, reports."),
    "canister": ("replica.client_cli", "Create, install and call canisters on a node."),
    "completion": ("nodeos.completion", "Completion of this command line in a shell."),
    "demo": ("image.demo_cli", "The whole path on this machine, from build to serving node."),
    "enroll": ("provisioning.cli_enroll", "Machines that ask to become nodes."),
    "fingerprint": ("nodeos.fingerprint.cli", "The hardware report of a machine."),
    "flash": ("nodeos.flash.cli", "Write a disk image to a disk or stick, and compare."),
    "image": ("image.cli", "Build, measure and boot the node image."),
    "install": ("nodeos.install.cli", "Install a release to a machine's disk or a disk image."),
    "installer": ("nodeos.installer.cli", "What runs on a machine started from installation media."),
    "media": ("image.media_cli", "Installation media with a site's signed configuration."),
    "network": ("nodeos.network", "Addresses and firewall of a node, as the network expects them."),
    "node": ("provisioning.cli_node", "Nodes in the registry."),
    "operator": ("provisioning.cli_operator", "The operator's key and principal."),
    "preflight": ("nodeos.preflight.cli", "Is this machine fit to become a node?"),
    "registrar": ("provisioning.cli_registrar", "The enrolment service."),
    "replica": ("replica.cli", "The replica daemon."),
    "update": ("nodeos.update.cli", "Install a release in the other slot of a node."),
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        nouns = [noun for noun in sorted(NOUNS) if noun.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(noun, help=NOUNS[noun][1]) for noun in nouns), *options]


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nodeos")
@click.option("--json", "as_json", is_flag=True, help="Results and errors as JSON on standard output.")
@click.option("--debug", is_flag=True, help=f"Show where an error came from; so does {DEBUG}=1.")
@click.pass_context
def root(ctx: click.Context, as_json: bool, debug: bool) -> None:
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
    words, flags = _hoist(list(sys.argv[1:] if arguments is None else arguments))
    as_json = "--json" in flags
    try:
        code = root.main(args=words, prog_name="nodeos", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        if as_json:
            _show(_as_usage_error(error), as_json=True)
        else:
            error.show()
        sys.exit(2)
    except Exception as error:
        told = error if isinstance(error, NodeosError) else _in_words(error)
        wanted = "--debug" in flags or os.environ.get(DEBUG, "") not in ("", "0")
        if wanted or (told is not error and _read_by_journal()):
            import traceback

            traceback.print_exception(error)
        _show(told, as_json=as_json)
        sys.exit(told.exit_code)


def _hoist(words: list[str]) -> tuple[list[str], set[str]]:
    """Flags that belong to the whole command line may stand anywhere before a "--"."""
    plain = words[: words.index("--")] if "--" in words else words
    flags = {flag for flag in _GLOBAL_FLAGS if flag in plain}
    rest = words[len(plain) :]
    return [*sorted(flags), *(word for word in plain if word not in flags), *rest], flags


def _as_usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context is not None else None
    return UsageError(error.format_message(), hint=hint)


def _in_words(error: Exception) -> NodeosError:
    """What a person is told of an error that this program did not foresee."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NodeosError(f"{where}the disk is full", hint="make room (see `df -h`) and run this again")
        return NodeosError(f"{where}{error.strerror or error}", hint=f"{DEBUG}=1 shows what was tried")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_globals.get('__name__')}, line {trace.tb_lineno})" if trace else ""
    # Its own text stays out: nobody thought of what it might hold.
    return NodeosError(
        f"a fault of this program: {type(error).__name__}{place}",
        hint=f"report it, with what this prints when {DEBUG}=1 is set",
    )


def _read_by_journal() -> bool:
    """True if standard error goes to systemd's journal (systemd.exec(5), JOURNAL_STREAM): on a node nobody
    can run a command again to see more."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _show(error: NodeosError, *, as_json: bool) -> None:
    try:
        if as_json:
            findings = [f.to_json() for f in error.findings] if isinstance(error, RefusedError) else []
            told = {"message": error.message, "hint": error.hint, "findings": findings}
            click.echo(json.dumps({"error": told}, indent=2, ensure_ascii=False))
            return
        sys.stdout.flush()
    except OSError:
        # Standard output is broken. What is left of it is dropped: the interpreter would fail over it again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    click.echo(f"error: {error}", err=True)
