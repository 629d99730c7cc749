"""``nodeos completion``: what a shell needs to complete this command line."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from nodeos.cli import emit

_SHELLS = ("bash", "fish", "zsh")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def commands(ctx: click.Context, shell: str) -> None:
    r"""Print the script that completes nodeos's commands and options in a shell.

    \b
    bash  eval "$(nodeos completion bash)", in ~/.bashrc
    zsh   eval "$(nodeos completion zsh)", in ~/.zshrc
    fish  nodeos completion fish > ~/.config/fish/completions/nodeos.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(f"click has no completion for {shell}")
    root = ctx.find_root().command
    # The base class's: bash's own starts a bash to look at its version.
    script = ShellComplete.source(kind(root, {}, "nodeos", "_NODEOS_COMPLETE"))
    emit(ctx, {"shell": shell, "script": script}, script)
