"""`wfe-persistence completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "wfe-persistence"
_VARIABLE = "_WFE_PERSISTENCE_COMPLETE"


@click.command(short_help="Print the script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes commands, options and contexts. (bash: 4.4 or
    newer)

    \b
    Examples:
      source <(wfe-persistence completion bash)
      wfe-persistence completion zsh >"${fpath[1]}/_wfe-persistence"
      wfe-persistence completion fish >~/.config/fish/completions/wfe-persistence.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    # (Not `source`, which looks for a bash that is new enough, and there may be none here.)
    written = made(context.find_root().command, {}, _PROGRAM, _VARIABLE)
    click.echo(written.source_template % written.source_vars())
