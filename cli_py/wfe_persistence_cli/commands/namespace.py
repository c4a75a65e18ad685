"""`wfe-persistence namespace list | create | delete`; `move` is in `moving.py`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wfe_persistence_cli import names
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.commands.moving import move
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, aiter_of, output_option
from wfe_persistence_cli.screen import Cell, tell
from wfe_persistence_cli.status import EPILOG, FAILURE
from wfe_persistence_cli.table import Column

if TYPE_CHECKING:
    from wfe_persistence_client import Namespace, PersistenceProvider

# It makes tables, or deletes all of them.
_SECONDS = 60.0


@click.group(short_help="List, create and delete namespaces.")
def namespace() -> None:
    """List, create, move and delete namespaces: separate stores on the same server.

    \b
    Example: wfe-persistence namespace list
    """


namespace.add_command(move)


@namespace.command("list", cls=ClientCommand, epilog=EPILOG)
@calls_server
@output_option
def list_(call: Caller, *, output: Output) -> None:
    """List the namespaces in which the caller may do anything.

    \b
    Example: wfe-persistence namespace list -o json
    """

    current = None if call.target.namespace_set else call.namespace

    async def body(provider: PersistenceProvider) -> None:
        columns: list[Column[Namespace]] = [
            Column("NAME", lambda each: each.name),
            Column("DATABASE", lambda each: database_cell(each), shrinks=True),
            Column("SCHEMA", lambda each: each.schema, shrinks=True, wide=True),
            Column("VERSION", lambda each: each.schema_version, right=True),
            Column("ROWS (ESTIMATED)", lambda each: each.estimated_rows, right=True),
            Column(
                "",
                lambda each: Cell("←" if each.name == current else "", "good"),
            ),
        ]
        found = await provider.list_namespaces()
        await output.list(aiter_of(found), columns, limit=0, what="namespaces")

    call.run(body)


def database_cell(each: Namespace) -> Cell:
    """The database that a namespace is in."""
    name = each.database or "-"
    return Cell(f"{name} (can't be reached)", "bad") if each.unavailable else Cell(name)


@namespace.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name")
@calls_server
@click.option(
    "--database",
    default="",
    metavar="NAME",
    help="The database in which it is to live.  [default: the server chooses]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="A label that the database must have; may be repeated.",
)
def create(call: Caller, *, name: str, database: str, labels: tuple[str, ...]) -> None:
    """Create the namespace NAME, or bring its tables up to date.

    \b
    Examples:
      wfe-persistence namespace create orders
      wfe-persistence namespace create archive --label disk=slow
    """
    for label in labels:
        if "=" not in label:
            raise click.UsageError(f"--label {label}: must be KEY=VALUE")

    async def body(provider: PersistenceProvider) -> None:
        patient = provider.with_timeout(max(call.timeout, _SECONDS))
        made = await patient.create_namespace(name, database=database, database_labels=list(labels))
        if made.applied_migrations:
            tell(f"{name}: created, schema version {made.schema_version}")
        else:
            tell(f"{name}: is there already, schema version {made.schema_version}")

    call.run(body)


@namespace.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name", shell_complete=names.namespaces)
@calls_server
@click.option("--force", is_flag=True, help="Also if it is not empty.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(call: Caller, *, name: str, force: bool, yes: bool) -> None:
    """Delete the namespace NAME, and with --force everything in it. It can't be undone.

    On a terminal its name has to be typed again.

    \b
    Example: wfe-persistence namespace delete old
    """
    if not yes:
        typed_again(name, f"the namespace {name} at {call.target.address}")

    async def body(provider: PersistenceProvider) -> None:
        patient = provider.with_timeout(max(call.timeout, _SECONDS))
        await patient.delete_namespace(name, force=force)

    call.run(body)
    tell(f"{name}: deleted")


def typed_again(name: str, where: str) -> None:
    """Have a person type the name of what is to be deleted, or exit."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"Delete {where}? Nobody can be asked here: say --yes")
    typed = click.prompt(f"Type its name to delete {where}", err=True, default="")
    if typed != name:
        tell("that is another name: nothing was changed")
        sys.exit(FAILURE)
