"""`wfe-persistence errors | events | subscriptions | commands | queues | locks`: what else there is
beside workflows, as lists."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from wfe_persistence_cli import names, times
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.data_text import folded
from wfe_persistence_cli.finding import find
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import (
    Output,
    aiter_of,
    limit_options,
    output_option,
    page_size,
)
from wfe_persistence_cli.screen import Cell, status_cell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.table import Column
from wfe_persistence_cli.times import Since, ago, brief, from_ms, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import (
        Event,
        EventSubscription,
        ExecutionError,
        ListedCommand,
        ListedQueueItem,
        Lock,
        PersistenceProvider,
        QueueStats,
    )

COMMANDS: Final = ("process_workflow", "process_event")
"""The names of commands, as they are typed."""


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="List errors, the latest first.")
@click.argument("workflow", required=False, shell_complete=names.workflows())
@calls_server
@click.option("--from", "from_", type=Since(), help="Only those that occurred then or later.")
@click.option("--before", type=Since(), help="Only those that occurred before then.")
@limit_options
@output_option
def errors(
    call: Caller,
    *,
    workflow: str | None,
    from_: datetime | None,
    before: datetime | None,
    limit: int,
    output: Output,
) -> None:
    """List the errors that hosts have logged, the latest first; with WORKFLOW (an id or a name)
    only its errors.

    \b
    Examples:
      wfe-persistence errors --from 1h
      wfe-persistence errors order-42
    """

    async def body(provider: PersistenceProvider) -> None:
        id_ = "" if workflow is None else await _id_of(provider, workflow)
        rows = provider.iter_errors(
            workflow_id=id_,
            error_time_from=from_,
            error_time_before=before,
            page_size=page_size(limit),
        )
        columns: list[Column[ExecutionError]] = [
            Column("TIME", lambda each: stamp(each.error_time)),
            Column("WORKFLOW", lambda each: each.workflow_id, shrinks=True, wide=bool(id_)),
            Column("POINTER", lambda each: each.execution_pointer_id or "-"),
            Column("MESSAGE", lambda each: Cell(each.message, "bad"), shrinks=True),
        ]
        await output.list(rows, columns, limit=limit, what="errors")

    call.run(body)


async def _id_of(provider: PersistenceProvider, workflow: str) -> str:
    """The id of a workflow; what is neither an id nor a name may be that of one that is gone, of
    which there may be something all the same."""
    from wfe_persistence_client import WorkflowNotFound

    try:
        return (await find(provider, workflow)).id
    except WorkflowNotFound:
        return workflow


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="List events, the latest first.")
@calls_server
@click.option("--name", default="", metavar="NAME", help="Only those with this name.")
@click.option("--key", metavar="KEY", help="With --name: only those with this key.")
@click.option(
    "--processed/--unprocessed",
    default=None,
    help="Only those that have been delivered, or only those that have not.",
)
@click.option("--from", "from_", type=Since(), help="Only those that occurred then or later.")
@click.option("--before", type=Since(), help="Only those that occurred before then.")
@click.option("--oldest", is_flag=True, help="The oldest first, instead of the latest.")
@limit_options
@output_option
def events(
    call: Caller,
    *,
    name: str,
    key: str | None,
    processed: bool | None,
    from_: datetime | None,
    before: datetime | None,
    oldest: bool,
    limit: int,
    output: Output,
) -> None:
    """List events, the latest first.

    \b
    Examples:
      wfe-persistence events --unprocessed --oldest
      wfe-persistence events --name order.paid --key 42
    """
    from wfe_persistence_client import ListOrder

    if key is not None and not name:
        raise click.UsageError("--key needs --name")

    async def body(provider: PersistenceProvider) -> None:
        rows = provider.iter_all_events(
            event_name=name,
            event_key=key,
            is_processed=processed,
            event_time_from=from_,
            event_time_before=before,
            order=ListOrder.OLDEST_FIRST if oldest else ListOrder.NEWEST_FIRST,
            page_size=page_size(limit),
        )
        columns: list[Column[Event]] = [
            Column("ID", lambda each: each.id, shrinks=True),
            Column("TIME", lambda each: stamp(each.event_time)),
            Column("NAME", lambda each: each.event_name, shrinks=True),
            Column("KEY", lambda each: each.event_key or '""', shrinks=True),
            Column("STATE", lambda each: _event_state(each)),
            Column("DATA", lambda each: folded(each.event_data), wide=True),
        ]
        await output.list(rows, columns, limit=limit, what="events")

    call.run(body)


def _event_state(event: Event) -> Cell:
    return Cell("processed", "faint") if event.is_processed else Cell("unprocessed", "held")


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="List who waits for which events.")
@calls_server
@click.option("--workflow", metavar="ID|NAME", help="Only those of this workflow.")
@click.option("--event", default="", metavar="NAME", help="Only those for this event.")
@click.option("--key", metavar="KEY", help="With --event: only those for this key.")
@click.option("--held/--open", default=None, help="Only those that a worker holds, or only others.")
@limit_options
@output_option
def subscriptions(
    call: Caller,
    *,
    workflow: str | None,
    event: str,
    key: str | None,
    held: bool | None,
    limit: int,
    output: Output,
) -> None:
    """List who waits for which events, and which worker holds that.

    \b
    Examples:
      wfe-persistence subscriptions --event order.paid --key 42
      wfe-persistence subscriptions --held
    """
    if key is not None and not event:
        raise click.UsageError("--key needs --event")

    async def body(provider: PersistenceProvider) -> None:
        id_ = "" if workflow is None else await _id_of(provider, workflow)
        rows = provider.iter_all_subscriptions(
            workflow_id=id_, event_name=event, event_key=key, held=held, page_size=page_size(limit)
        )
        now = times.now()
        columns: list[Column[EventSubscription]] = [
            Column("ID", lambda each: each.id, shrinks=True),
            Column("EVENT", lambda each: each.event_name, shrinks=True),
            Column("KEY", lambda each: each.event_key or '""', shrinks=True),
            Column("WORKFLOW", lambda each: each.workflow_id, shrinks=True),
            Column("POINTER", lambda each: each.execution_pointer_id or "-", wide=True),
            Column("SINCE", lambda each: ago(each.subscribe_as_of, now), right=True),
            Column("HELD BY", lambda each: holder(each, now), shrinks=True),
            Column("EPOCH", lambda each: each.external_token_epoch, wide=True, right=True),
        ]
        await output.list(rows, columns, limit=limit, what="subscriptions")

    call.run(body)


def holder(subscription: EventSubscription, now: datetime) -> Cell:
    """Who holds a subscription, and for how long."""
    if subscription.external_token is None:
        return Cell("-", "faint")
    worker = subscription.external_worker_id or "a worker without a name"
    expiry = subscription.external_token_expiry
    if expiry is None:
        return Cell(f"{worker} (until cleared)", "held")
    if expiry <= now:
        return Cell(f"{worker} (expired)", "faint")
    return Cell(f"{worker} (expires {ago(expiry, now)})", "held")


@click.command(
    cls=ClientCommand, epilog=EPILOG, short_help="List scheduled commands, the soonest first."
)
@calls_server
@click.option(
    "--kind",
    type=click.Choice(COMMANDS, case_sensitive=False),
    help="Only those to process workflows, or only those to process events.",
)
@click.option("--data", metavar="ID", help="With --kind: only the one for this workflow or event.")
@click.option("--due", is_flag=True, help="Only those that are due.")
@click.option("--leased/--free", default=None, help="Only those under a lease, or only others.")
@click.option("--worker", default="", metavar="NAME", help="Only those that this worker holds.")
@limit_options
@output_option
def commands(
    call: Caller,
    *,
    kind: str | None,
    data: str | None,
    due: bool,
    leased: bool | None,
    worker: str,
    limit: int,
    output: Output,
) -> None:
    """List scheduled commands, the soonest first, and who holds them.

    \b
    Examples:
      wfe-persistence commands --due --free
      wfe-persistence commands --worker host-7
    """
    from wfe_persistence_client import CommandName

    if data is not None and kind is None:
        raise click.UsageError("--data needs --kind")

    async def body(provider: PersistenceProvider) -> None:
        now = times.now()
        rows = provider.iter_commands(
            command_name=CommandName[kind.upper()] if kind else None,
            data=data,
            due_before=now if due else None,
            leased=leased,
            worker_id=worker,
            page_size=page_size(limit),
        )
        columns: list[Column[ListedCommand]] = [
            Column("COMMAND", lambda each: each.command.command_name.name),
            Column("DATA", lambda each: each.command.data, shrinks=True),
            Column("DUE", lambda each: _due(each.command.execute_time, now), right=True),
            Column("LEASED BY", lambda each: _lease(each.lease, now), shrinks=True),
            Column("EPOCH", lambda each: _epoch(each.lease), wide=True, right=True),
        ]
        await output.list(rows, columns, limit=limit, what="commands")

    call.run(body)


def _due(milliseconds: int, now: datetime) -> str:
    at = from_ms(milliseconds)
    return ago(at, now) if at else f"{milliseconds} ms"


def _lease(lease: Any, now: datetime) -> Cell:
    if lease is None:
        return Cell("-", "faint")
    worker = lease.worker_id or "a worker without a name"
    return Cell(f"{worker} (expires {ago(lease.expiry, now)})", "held")


def _epoch(lease: Any) -> str:
    return "-" if lease is None else str(lease.epoch)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="List queues, or the items of one.")
@click.argument("queue", required=False, shell_complete=names.queues)
@calls_server
@click.option(
    "--state",
    type=click.Choice(["waiting", "delayed", "leased", "dead"]),
    help="With QUEUE: only items in this state.",
)
@click.option("--id", "id_", default="", metavar="ID", help="With QUEUE: only this item.")
@limit_options
@output_option
def queues(
    call: Caller, *, queue: str | None, state: str | None, id_: str, limit: int, output: Output
) -> None:
    """List the queues and how many items they have or, with QUEUE, its items in their order, dead
    ones last.

    \b
    Examples:
      wfe-persistence queues
      wfe-persistence queues workflow --state dead
    """
    from wfe_persistence_client import QueueItemState

    if queue is None and (state or id_):
        raise click.UsageError("--state and --id need QUEUE")

    async def body(provider: PersistenceProvider) -> None:
        now = times.now()
        if queue is None:
            rows = aiter_of(await provider.get_queue_stats())
            await output.list(rows, _QUEUE_COLUMNS, limit=limit, what="queues")
            return
        items = provider.iter_queue_items(
            queue,
            state=QueueItemState[state.upper()] if state else None,
            item_id=id_,
            page_size=page_size(limit),
        )
        columns: list[Column[ListedQueueItem]] = [
            Column("ID", lambda each: each.item.id, shrinks=True),
            Column("STATE", lambda each: status_cell(each.state.name)),
            Column("VISIBLE", lambda each: _visible(each, now), right=True),
            Column("ATTEMPT", lambda each: each.attempt, right=True),
            Column("LEASED BY", lambda each: _lease(each.lease, now), shrinks=True),
            Column("BLOCKED BY", lambda each: ", ".join(each.item.blocked_by) or "-", wide=True),
            Column("PAYLOAD", lambda each: folded(each.item.payload), wide=True),
        ]
        await output.list(items, columns, limit=limit, what="items")

    call.run(body)


def _visible(listed: ListedQueueItem, now: datetime) -> str:
    return "-" if listed.state.name == "DEAD" else ago(listed.item.visible_time, now)


def _depth(number: int, style: str) -> Cell:
    return Cell(f"{number:,}", style if number else "faint")


_QUEUE_COLUMNS: list[Column[QueueStats]] = [
    Column("QUEUE", lambda each: each.queue, shrinks=True),
    Column("KIND", lambda each: each.kind.name.lower()),
    Column("WAITING", lambda each: _depth(each.waiting, "waiting"), right=True),
    Column("OLDEST", lambda each: _oldest(each), right=True),
    Column("DELAYED", lambda each: _depth(each.delayed, ""), right=True),
    Column("LEASED", lambda each: _depth(each.leased, "running"), right=True),
    Column("DEAD", lambda each: _depth(each.dead, "worst"), right=True),
    Column("ATTEMPTS", lambda each: str(each.max_attempts or "any"), right=True),
]


def _oldest(stats: QueueStats) -> str:
    return "-" if stats.oldest_waiting_age is None else brief(stats.oldest_waiting_age)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="List locks, and who holds them.")
@calls_server
@click.option(
    "--resource", default="", metavar="TEXT", help="Only locks of resources that begin so."
)
@click.option("--owner", default="", metavar="NAME", help="Only locks that this owner holds.")
@limit_options
@output_option
def locks(call: Caller, *, resource: str, owner: str, limit: int, output: Output) -> None:
    """List the locks that are held, and by whom.

    \b
    Example: wfe-persistence locks --resource order-
    """

    async def body(provider: PersistenceProvider) -> None:
        now = times.now()
        rows = provider.iter_locks(
            resource_prefix=resource, owner=owner, page_size=page_size(limit)
        )
        columns: list[Column[Lock]] = [
            Column("RESOURCE", lambda each: each.resource, shrinks=True),
            Column("OWNER", lambda each: each.owner or "-", shrinks=True),
            Column("HELD FOR", lambda each: ago(each.acquire_time, now), right=True),
            Column("EXPIRES", lambda each: ago(each.expiry, now), right=True),
            Column("EPOCH", lambda each: str(each.epoch), right=True),
        ]
        await output.list(rows, columns, limit=limit, what="locks")

    call.run(body)
