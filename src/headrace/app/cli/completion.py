"""`headrace completion`: a script with which a shell completes what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from headrace.model.errors import Internal

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_HEADRACE_COMPLETE"
"""With it the script asks this program for what may follow; click's own way."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that has a shell complete verbs, options, files, topics and tables.

    It is kept where the shell looks for it, and is there from the next shell on:

    \b
      headrace completion bash > ~/.local/share/bash-completion/completions/headrace
      headrace completion zsh > "${fpath[1]}/_headrace"
      headrace completion fish > ~/.config/fish/completions/headrace.fish

    For bash that needs the package bash-completion; without it: source <(headrace completion bash).
    """  # noqa: D301 - click's own mark, one character, keeps what follows from being wrapped
    script = get_completion_class(shell)
    if script is None:
        raise Internal(f"There is no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(script(root, {}, "headrace", VARIABLE).source())
