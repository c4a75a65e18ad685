"""`wfe-persistence watch`: changes as they come."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli import names, times
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.commands.get import show
from wfe_persistence_cli.diagnosis import look
from wfe_persistence_cli.filters import STATUSES
from wfe_persistence_cli.finding import find
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.screen import Cell, status_cell, tell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.text import width_of

if TYPE_CHECKING:
    from wfe_persistence_client import LifecycleEvent, PersistenceProvider, WorkflowChange

_EVENT_STYLES = {
    "STARTED": "running", "RESUMED": "running", "SUSPENDED": "held", "COMPLETED": "good",
    "TERMINATED": "bad", "ERROR": "worst", "STEP_COMPLETED": "good",
}  # fmt: skip


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Show changes as they come.")
@click.argument("workflow", required=False, shell_complete=names.workflows())
@calls_server
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES, case_sensitive=False),
    multiple=True,
    help="Only those that have, or had, this status; may be repeated.",
)
@click.option("--definition", default="", metavar="ID", help="Only those of this definition.")
@click.option("--reference", metavar="TEXT", help="Only those with this reference.")
@click.option("--name", default="", metavar="TEXT", help="Only those whose name begins so.")
@click.option(
    "--events", is_flag=True, help="What hosts tell of, such as steps that end, not what changes."
)
@click.option("--after", default="", metavar="CURSOR", help="Begin behind this cursor of a change.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
@output_option
def watch(
    call: Caller,
    *,
    workflow: str | None,
    statuses: tuple[str, ...],
    definition: str,
    reference: str | None,
    name: str,
    events: bool,
    after: str,
    count: int | None,
    output: Output,
) -> None:
    """Show workflows as they are written or deleted, a line each, until Ctrl-C; with WORKFLOW (an
    id or a name) only that one, on a terminal as `get` shows it, until it has ended.

    If the connection breaks, that is said, and it goes on where it was, however long the server is
    away. With `-o json`, a change is a line; its `cursor` is what --after takes.

    \b
    Examples:
      wfe-persistence watch --status suspended
      wfe-persistence watch order-42
      wfe-persistence watch --events -o json
    """
    chosen = bool(statuses or definition or reference or name)
    if workflow is not None and chosen:
        raise click.UsageError("WORKFLOW is one already: no other options choose it")
    if events and (statuses or reference or name):
        raise click.UsageError("--events can't be chosen by --status, --reference or --name")

    async def body(provider: PersistenceProvider) -> None:
        from wfe_persistence_client import WorkflowStatus

        # However long a server is away, what happened meanwhile is not missed.
        provider = provider.with_timeout(math.inf)
        id_ = "" if workflow is None else (await find(provider, workflow)).id
        if events:
            stream: AsyncIterator[Any] = provider.watch_lifecycle(
                workflow_id=id_, workflow_definition_id=definition, after=after
            )
        else:
            stream = provider.watch_workflows(
                after=after,
                workflow_id=id_,
                statuses=[WorkflowStatus[each.upper()] for each in statuses],
                workflow_definition_id=definition,
                reference=reference,
                name_prefix=name,
            )
        live = bool(id_) and not events and not output.is_data and output.screen.is_terminal
        shown = _events(stream, output) if events else _changes(stream, output, live=live)
        if live:
            await _draw(provider, id_, output)
        left = count
        async with aclosing(shown):
            async for ended in shown:
                if live:
                    ended = await _draw(provider, id_, output)
                left = None if left is None else left - 1
                if left == 0 or (id_ and ended):
                    return

    if workflow is None:
        # A server that is not there is said at once; later one may be away for a while.
        call.run(lambda provider: provider.get_store_info())
    with _outages_told():
        call.run(body, patient=True)


class _Outages(logging.Handler):
    """Says what the client knows of its connection: that it is lost, and why, and that it is
    back."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        if record.module == "link":
            tell(record.getMessage())


@contextmanager
def _outages_told() -> Iterator[None]:
    log = logging.getLogger("wfe_persistence_client")
    handler, level = _Outages(), log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


async def _changes(
    stream: AsyncIterator[WorkflowChange], output: Output, *, live: bool
) -> AsyncGenerator[bool, None]:
    """Write each change, and tell whether its workflow has ended."""
    async for change in stream:
        instance = change.instance
        if output.is_data:
            output.each(change)
        elif not live:
            status = "DELETED" if change.deleted else instance.status.name
            cell = Cell("DELETED", "bad") if change.deleted else status_cell(status)
            output.screen.line(
                Cell(f"{times.now():%H:%M:%S}", "faint"),
                "  ",
                cell,
                " " * max(11 - width_of(status), 1),
                Cell(instance.name, "title"),
                f"  {instance.workflow_definition_id} v{instance.version}"
                + (f"  {instance.reference}" if instance.reference else ""),
                Cell(f"  revision {instance.revision}", "faint"),
                Cell("" if change.passes or change.deleted else "  (leaves the list)", "faint"),
                width=None if output.is_wide else output.screen.width,
            )
        yield change.deleted or instance.status.name in ("COMPLETE", "TERMINATED")


async def _events(
    stream: AsyncIterator[LifecycleEvent], output: Output
) -> AsyncGenerator[bool, None]:
    """The same of lifecycle events."""
    async for event in stream:
        kind = event.type.name
        if output.is_data:
            output.each(event)
        else:
            step = event.step_name or (f"step {event.step_id}" if event.step_id is not None else "")
            output.screen.line(
                Cell(f"{event.event_time:%H:%M:%S}", "faint"),
                "  ",
                Cell(kind, _EVENT_STYLES.get(kind, "")),
                " " * max(15 - width_of(kind), 1),
                Cell(event.workflow_id, "title"),
                f"  {event.workflow_definition_id} v{event.version}",
                f"  {step}" if step else "",
                f"  {event.message}" if event.message else "",
                width=None if output.is_wide else output.screen.width,
            )
        yield kind in ("COMPLETED", "TERMINATED")


async def _draw(provider: PersistenceProvider, id_: str, output: Output) -> bool:
    """Show a workflow anew, on a screen of its own; whether it has ended."""
    from wfe_persistence_client import WorkflowNotFound, WorkflowView

    try:
        instance = await find(provider, id_, WorkflowView.FULL)
    except WorkflowNotFound:
        tell("it was deleted")
        return True
    found = await look(provider, instance)
    output.screen.clear()
    show(output.screen, found, wide=output.is_wide)
    output.screen.line()
    output.screen.line(Cell(f"{times.now():%H:%M:%S}Z, until it has ended; Ctrl-C ends", "faint"))
    return instance.status.name in ("COMPLETE", "TERMINATED")
