"""``nodeos update``: install a release in the other slot, and decide whether it stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeos.cli import emit

if TYPE_CHECKING:
    from nodeos.update.machine import Paths
    from nodeos.update.preflight import Facts

_esp = click.option("--esp", type=click.Path(path_type=Path), default=Path("/boot"), show_default=True,
                    help="Where the EFI system partition is mounted.")  # fmt: skip
_tcti = click.option("--tcti", default="device:/dev/tpmrm0", show_default=True, help="How to reach the TPM.")
_rollback = click.option(
    "--rollback", is_flag=True, help="The release is older than the running one, on purpose."
)


@click.group()
def commands() -> None:
    """Install a release in the other slot of this node."""


@commands.command()
@click.argument("release_dir", type=click.Path(path_type=Path))
@_rollback
@_esp
@_tcti
@click.pass_context
def check(ctx: click.Context, release_dir: Path, rollback: bool, esp: Path, tcti: str) -> None:
    """Would RELEASE_DIR be installed? Writes nothing; refuses with every reason."""
    from nodeos.update import apply as applying

    paths = _paths(esp)
    candidate, _ = applying.check(paths, release_dir, lambda: _facts(paths, tcti), rollback=rollback)
    value = {"version": candidate.version, "installable": True}
    emit(ctx, value, f"{candidate.version} can be installed")


@commands.command()
@click.argument("release_dir", type=click.Path(path_type=Path))
@_rollback
@_esp
@_tcti
@click.pass_context
def apply(ctx: click.Context, release_dir: Path, rollback: bool, esp: Path, tcti: str) -> None:
    """Install RELEASE_DIR in the other slot; the next boot tries it.

    Everything is checked first. Until the last step the next boot starts the running version, and an interrupted
    run can be started again.
    """
    from nodeos.update import apply as applying

    paths = _paths(esp)
    done = applying.apply(
        paths,
        release_dir,
        lambda: _facts(paths, tcti),
        lambda text: click.echo(text, err=True),
        rollback=rollback,
    )
    value = {"version": done.version, "rollback": done.rollback}
    emit(ctx, value, f"{done.version} is installed; restart the machine to try it")


@commands.command()
@_esp
@click.pass_context
def status(ctx: click.Context, esp: Path) -> None:
    """Show the running version, whether it is blessed, and what else is installed."""
    from nodeos.update.blessing import on_trial, update_status
    from nodeos.update.entries import read_entries
    from nodeos.update.machine import pending_release

    paths = _paths(esp)
    found = update_status(paths)
    entries = [
        {"version": entry.version, "tries_left": entry.left, "tries_done": entry.done}
        for entry in read_entries(esp)
    ]
    pending = pending_release(paths)
    value = {
        **found.to_json(),
        "on_trial": on_trial(paths, found.running),
        "entries": entries,
        "pending": None if pending is None else pending.version,
    }
    words = [f"{found.running} runs, {'blessed' if found.blessed else 'not blessed yet'}"]
    words += [f"{found.failed} was tried and given up"] if found.failed else []
    words += [
        f"{entry['version']} is installed"
        + ("" if entry["tries_left"] is None else f", {entry['tries_left']} tries left")
        for entry in entries
    ]
    emit(ctx, value, "\n".join(words))


@commands.command()
@_esp
@_tcti
def bless(esp: Path, tcti: str) -> None:
    """Bless this boot if the node is attested and its replica healthy, and finish the update.

    Run by nodeos-bless.service. Does nothing in a boot that is no trial.
    """
    from hsm.tpm import Tpm
    from nodeos.update import blessing
    from nodeos.update.variables import apply_variables

    paths = _paths(esp)
    with Tpm(tcti) as tpm:
        parts = blessing.Parts(
            replica_health=blessing.replica_health,
            mark_good=blessing.mark_good,
            open_tpm=lambda: tpm,
            apply_variables=apply_variables,
            forget_keys=lambda keep: blessing.forget_keys_but(paths, keep),
        )
        blessing.bless(paths, parts, lambda text: click.echo(text, err=True))


@commands.command("give-up")
@_esp
def give_up(esp: Path) -> None:
    """Restart the machine if this boot is a trial that was not blessed in time.

    Run by nodeos-fallback.timer. Does nothing in any other boot, nor if there is no version to go back to.
    """
    from nodeos.core.run import run
    from nodeos.update.blessing import should_give_up

    if not should_give_up(_paths(esp)):
        click.echo("this boot stays: it is blessed, or there is nothing to go back to", err=True)
        return
    click.echo("this version did not become healthy in time: restarting", err=True)
    run(["systemctl", "--no-block", "reboot"], what="restart the machine")


def _paths(esp: Path) -> Paths:
    from nodeos.update.machine import Paths

    return Paths(esp=esp)


def _facts(paths: Paths, tcti: str) -> Facts:
    from hsm.tpm import Tpm
    from nodeos.update.machine import gather_facts

    with Tpm(tcti) as tpm:
        return gather_facts(paths, lambda: tpm)
