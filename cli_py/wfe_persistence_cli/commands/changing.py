"""`wfe-persistence suspend | resume | terminate | delete`: what an operator does to workflows.

What each means is in `wfe_persistence_client.administration`, for the console as well.
"""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli import names, times
from wfe_persistence_cli.calling import Caller, calls_server, confirm
from wfe_persistence_cli.finding import find, title_of
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import CONFLICT, EPILOG
from wfe_persistence_cli.text import counted

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider, WorkflowInstance
    from wfe_persistence_client.administration import Administration


def _changes_workflows(*statuses: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the workflows that it changes, and how. `statuses`: of those that a shell
    offers; none: any."""
    return partial(_with_workflows, offered=names.workflows(*statuses))


def _with_workflows(command: Callable[..., None], offered: names.Complete) -> Callable[..., None]:
    @wraps(command)
    def with_arguments(**arguments: Any) -> None:
        command(**arguments)

    for option in (
        click.option(
            "--force",
            is_flag=True,
            help="Also if a host is running it: what that writes may undo the change.",
        ),
        click.option(
            "--wait",
            type=click.FloatRange(0, 60),
            default=5.0,
            show_default=True,
            help="How long to wait for a host that is running it (seconds).",
        ),
    ):
        with_arguments = option(with_arguments)
    return click.argument(
        "workflows", nargs=-1, required=True, metavar="WORKFLOW…", shell_complete=offered
    )(calls_server(with_arguments))


_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Suspend workflows.")
@_changes_workflows("RUNNABLE")
def suspend(call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float) -> None:
    """Suspend workflows (ids or names), so that no host runs them until they are resumed.

    \b
    Example: wfe-persistence suspend order-42
    """
    _change(call, "suspend", workflows, force=force, wait=wait)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Resume suspended workflows.")
@_changes_workflows("SUSPENDED")
def resume(call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float) -> None:
    """Resume suspended workflows (ids or names): hosts go on with them.

    One that has no time to be run is to be run now, so that a host looks at it. Where there are
    queues for workflows, it is enqueued there, too.

    \b
    Example: wfe-persistence resume order-42
    """
    _change(call, "resume", workflows, force=force, wait=wait)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="End workflows for good.")
@_changes_workflows("RUNNABLE", "SUSPENDED")
@_yes_option
def terminate(
    call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float, yes: bool
) -> None:
    """End workflows (ids or names) for good, as they are. Steps are not undone; what they wait for
    stays until the workflow is deleted.

    \b
    Example: wfe-persistence terminate order-42
    """
    found = _asked(call, "terminate", workflows, yes=yes)
    _change(call, "terminate", [each.id for each in found], force=force, wait=wait)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Delete workflows.")
@_changes_workflows()
@_yes_option
def delete(
    call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float, yes: bool
) -> None:
    """Delete workflows (ids or names), whatever their status, with their execution pointers,
    subscriptions and logged errors. Workflows below them, events and commands stay.

    \b
    Example: wfe-persistence delete order-41
    """
    found = _asked(call, "delete", workflows, yes=yes)

    async def one(administration: Administration, instance: WorkflowInstance) -> str:
        # Only what was shown: not one that has been changed since.
        await administration.delete(instance.id, expected_revision=instance.revision)
        return "deleted"

    async def body(provider: PersistenceProvider) -> None:
        await _each(provider, found, one, force=force, wait=wait)

    call.run(body)


async def _find_all(
    provider: PersistenceProvider, given: tuple[str, ...] | list[str]
) -> list[WorkflowInstance]:
    """The workflows, each once. Raises WorkflowNotFound before anything is changed."""
    found = {}
    for name in given:
        instance = await find(provider, name)
        found[instance.id] = instance
    return list(found.values())


def _asked(call: Caller, verb: str, given: tuple[str, ...], *, yes: bool) -> list[WorkflowInstance]:
    """The workflows, of which a person has said that they may be changed so."""
    from wfe_persistence_client.administration import EXPLANATIONS

    found: list[WorkflowInstance] = call.run(lambda provider: _find_all(provider, given))
    # The first few by their names, with their statuses.
    few = ", ".join(f"{title_of(each)}, which is {each.status.name}" for each in found[:3])
    named = few if len(found) <= 3 else f"{counted(len(found), 'workflow')}: {few}, …"
    confirm(f"{verb.capitalize()} {named}? {EXPLANATIONS[verb]}", yes=yes)
    return found


def _change(
    call: Caller, verb: str, given: tuple[str, ...] | list[str], *, force: bool, wait: float
) -> None:
    """Have workflows suspended, resumed or terminated."""

    async def one(administration: Administration, instance: WorkflowInstance) -> str:
        change = await getattr(administration, verb)(instance.id)
        if change.changed:
            return f"{change.before.status.name} → {change.status.name}"
        return f"is {change.status.name} already"

    async def body(provider: PersistenceProvider) -> None:
        await _each(provider, await _find_all(provider, given), one, force=force, wait=wait)

    call.run(body)


async def _each(
    provider: PersistenceProvider,
    found: list[WorkflowInstance],
    one: Callable[[Administration, WorkflowInstance], Any],
    *,
    force: bool,
    wait: float,
) -> None:
    """Change one after the other, and say of each what was done. The first that is not changed ends
    it."""
    from wfe_persistence_client.administration import Administration, IsRun, NotChanged

    administration = Administration(
        provider, by=_me(), wait=timedelta(seconds=wait), force=force, now=times.now
    )
    for instance in found:
        title = title_of(instance)
        try:
            done = await one(administration, instance)
        except NotChanged as exc:
            hint = "; --force changes it all the same" if isinstance(exc, IsRun) else ""
            tell(f"{title} {exc}{hint}")
            sys.exit(CONFLICT)
        tell(f"{title}: {done}")


def _me() -> str:
    """Who does it, for those who look at locks and lifecycle events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = "somebody"
    return f"wfe-persistence: {user}@{socket.gethostname()}"
