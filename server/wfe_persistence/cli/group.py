"""The command group. A command is loaded when it is used, and loads gRPC and psycopg when it runs,
so that help is fast, and a server does not keep what it does not need.

Those that call a server are in `wfe_persistence_cli`, which also works where there is no server."""

from __future__ import annotations

import click

from wfe_persistence import collector
from wfe_persistence.cli import SERVER_COMMANDS
from wfe_persistence.cli.options import read_config_file, refuse_unknown_variables
from wfe_persistence_cli.options import READ_SETTINGS
from wfe_persistence_cli.program import (
    COMMANDS,
    CONTEXT_SETTINGS,
    PLACES,
    SECTIONS,
    LazyCommands,
    ProgramGroup,
)


@click.group(
    cls=ProgramGroup,
    commands=LazyCommands(
        {name: f"wfe_persistence.cli.{name}:{name}" for name in SERVER_COMMANDS} | PLACES
    ),
    sections={"Run a server": SERVER_COMMANDS, **SECTIONS},
    context_settings=CONTEXT_SETTINGS,
    epilog="Exit status: 0 success, 1 failure, 2 invalid usage; docs/cli.md has the others.",
)
@click.version_option(
    package_name="wfe-persistence", prog_name="wfe-persistence", message="%(prog)s %(version)s"
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Workflow persistence server: a gRPC API on top of PostgreSQL.

    \b
    Example: wfe-persistence serve
    """
    if context.invoked_subcommand != "serve":  # which has more to load
        collector.resume()
    if context.invoked_subcommand in COMMANDS:
        refuse_unknown_variables()
        context.meta[READ_SETTINGS] = read_config_file
