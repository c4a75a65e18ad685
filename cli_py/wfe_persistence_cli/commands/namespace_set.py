"""`wfe-persistence namespace-set`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.commands.namespace import database_cell, typed_again
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, aiter_of, output_option
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.table import Column

if TYPE_CHECKING:
    from wfe_persistence_client import Namespace, PersistenceProvider

# To make the tables of a member, or delete all that is in it.
_SECONDS_EACH = 30.0


@click.group("namespace-set", short_help="Create, show and delete namespace sets.")
def namespace_set() -> None:
    """Create, show and delete namespace sets: stores that are spread over several namespaces, their
    members. With --namespace-set, most commands work on all members as one store.

    \b
    Example: wfe-persistence list --namespace-set orders
    """


@namespace_set.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name")
@calls_server
@click.option(
    "--members",
    type=click.IntRange(1, 256),
    required=True,
    help="How many namespaces it consists of, for ever.",
)
@click.option(
    "--database",
    "databases",
    metavar="NAME",
    multiple=True,
    help="A database for the members, which are spread over all that are given, in turn; may be "
    "repeated.  [default: all that take new namespaces]",
)
def create(call: Caller, *, name: str, members: int, databases: tuple[str, ...]) -> None:
    """Create the namespace set NAME, or go on with a creation that was interrupted.

    \b
    Example: wfe-persistence namespace-set create orders --members 64
    """

    async def body(provider: PersistenceProvider) -> None:
        patient = provider.with_timeout(max(call.timeout, members * _SECONDS_EACH))
        made = await patient.create_namespace_set(name, members, databases=databases)
        tell(f"{name}: {made.members[0]} to {made.members[-1]}")

    call.run(body)


@namespace_set.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name")
@calls_server
@output_option
def show(call: Caller, *, name: str, output: Output) -> None:
    """Show the members of the namespace set NAME, in their order, and in which database each is.

    \b
    Example: wfe-persistence namespace-set show orders
    """

    async def body(provider: PersistenceProvider) -> None:
        found = await provider.get_namespace_set(name)
        all_ = {each.name: each for each in await provider.list_namespaces()}
        columns: list[Column[Namespace]] = [
            Column("MEMBER", lambda each: each.name),
            Column("DATABASE", lambda each: database_cell(each), shrinks=True),
            Column("VERSION", lambda each: each.schema_version, right=True),
            Column("ROWS (ESTIMATED)", lambda each: each.estimated_rows, right=True),
        ]
        # (Those that are not listed, the caller may not see.)
        members = [all_[member] for member in found.members if member in all_]
        await output.list(aiter_of(members), columns, limit=0, what="members")

    call.run(body)


@namespace_set.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name")
@calls_server
@click.option("--force", is_flag=True, help="Also if members are not empty.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(call: Caller, *, name: str, force: bool, yes: bool) -> None:
    """Delete the namespace set NAME with all its members, and with --force everything in them. It
    can't be undone. If it is interrupted, the same command goes on with it.

    On a terminal its name has to be typed again.

    \b
    Example: wfe-persistence namespace-set delete old
    """
    if not yes:
        typed_again(name, f"the namespace set {name} at {call.target.address}")

    async def body(provider: PersistenceProvider) -> None:
        patient = provider.with_timeout(max(call.timeout, 256 * _SECONDS_EACH))
        await patient.delete_namespace_set(name, force=force)

    call.run(body)
    tell(f"{name}: deleted")
