"""`wfe-persistence list`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli import times
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.filters import filter_options, workflow_filter
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, limit_options, output_option, page_size
from wfe_persistence_cli.screen import Cell, status_cell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.table import Column
from wfe_persistence_cli.times import ago, from_ms, is_at_once, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider, WorkflowInstance


@click.command("list", cls=ClientCommand, epilog=EPILOG)
@calls_server
@filter_options
@click.option("--oldest", is_flag=True, help="The oldest first, instead of the newest.")
@limit_options
@output_option
def list_(
    call: Caller, *, chosen: dict[str, Any], oldest: bool, limit: int, output: Output
) -> None:
    """List workflows, the newest first. The options that choose them all have to match.

    DUE is how long ago a RUNNABLE workflow was to be run, or in how long it will be (`at once`: as
    soon as a host can); `-` is one that waits for something else.

    \b
    Examples:
      wfe-persistence list --stuck
      wfe-persistence list --waiting-for order.paid --created-before 2d
      wfe-persistence list --status suspended --definition order -o json --all
    """
    from wfe_persistence_client import ListOrder

    order = ListOrder.OLDEST_FIRST if oldest else ListOrder.NEWEST_FIRST

    async def body(provider: PersistenceProvider) -> None:
        rows = provider.iter_workflows(
            workflow_filter(chosen), order=order, page_size=page_size(limit)
        )
        await output.list(rows, columns(times.now()), limit=limit, what="workflows")

    call.run(body)


def columns(now: datetime) -> list[Column[WorkflowInstance]]:
    """The columns of a list of workflows."""
    return [
        Column("NAME", lambda each: each.name, shrinks=True),
        Column("ID", lambda each: each.id, wide=True),
        Column("STATUS", lambda each: status_cell(each.status.name)),
        Column("DEFINITION", lambda each: f"{each.workflow_definition_id} v{each.version}"),
        Column("REFERENCE", lambda each: each.reference or "-"),
        Column("AGE", lambda each: ago(each.create_time, now), right=True),
        Column("DUE", lambda each: due_cell(each, now), right=True),
        Column("CREATED", lambda each: stamp(each.create_time), wide=True),
        Column("ENDED", lambda each: _end(each), wide=True),
        Column("REV", lambda each: each.revision, wide=True, right=True),
        Column("ROOT", lambda each: each.root_workflow_id or "-", wide=True),
        Column("DESCRIPTION", lambda each: each.description or "-", wide=True),
    ]


def due_cell(instance: WorkflowInstance, now: datetime) -> Cell:
    """When a workflow is to be run, if it is."""
    if instance.status.name != "RUNNABLE" or instance.next_execution is None:
        return Cell("-", "faint")
    if is_at_once(instance.next_execution):
        return Cell("at once")
    at = from_ms(instance.next_execution)
    if at is None:
        return Cell("never", "faint")
    from wfe_persistence_client.administration import STUCK_AFTER

    return Cell(ago(at, now), "bad" if now - at >= STUCK_AFTER else "")


def _end(instance: WorkflowInstance) -> str:
    return "-" if instance.complete_time is None else stamp(instance.complete_time)
