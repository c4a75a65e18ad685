"""`wfe-persistence stats`: how a namespace is, at a glance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from wfe_persistence_cli import times
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.screen import Cell, Screen, status_cell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.times import brief, from_ms, is_at_once

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider

# What has no RPC to count it is counted up to here.
_MOST: Final = 1000


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Show how a namespace is, at a glance.")
@calls_server
@click.option("--no-count", is_flag=True, help="Do not count the workflows, which reads them all.")
@output_option
def stats(call: Caller, *, no_count: bool, output: Output) -> None:
    """Show how many workflows a namespace has by status, how many are stuck, and what waits.

    What is not counted by the server is counted up to 1,000.

    \b
    Example: wfe-persistence stats --namespace prod
    """

    async def body(provider: PersistenceProvider) -> None:
        found = await _gather(provider, count=not no_count)
        if output.is_data:
            output.one(found)
        else:
            _show(output.screen, found, call.target.namespace_set is not None)

    call.run(body)


async def _gather(provider: PersistenceProvider, *, count: bool) -> dict[str, Any]:
    from wfe_persistence_client import WorkflowFilter, WorkflowView
    from wfe_persistence_client.administration import STUCK_AFTER, stuck_since

    now = times.now()
    info = await provider.get_store_info()
    counts = await provider.count_workflows() if count else None
    oldest = None
    async for id_ in provider.iter_runnable_instances(page_size=1):
        for first in await provider.get_workflow_instances([id_], view=WorkflowView.HEADER):
            oldest = first.next_execution
        break
    stuck = await provider.count_workflows(WorkflowFilter(**stuck_since(now - STUCK_AFTER)))
    queues = await provider.get_queue_stats() if info.capabilities.queues else []
    return {
        "server_version": info.server_version,
        "postgres_version": info.postgres_version,
        "namespace": info.namespace,
        "schema_version": info.schema_version,
        "workflows": counts and {status.name: number for status, number in counts.items()},
        "stuck": sum(stuck.values()),
        "oldest_due": oldest,
        "errors_last_hour": await _up_to(
            provider.iter_errors(error_time_from=now - timedelta(hours=1), page_size=_MOST)
        ),
        "unprocessed_events": await _up_to(provider.iter_runnable_events(page_size=_MOST)),
        "due_commands": await _up_to(provider.iter_commands(due_before=now, page_size=_MOST)),
        "locks": await _up_to(provider.iter_locks(page_size=_MOST))
        if info.capabilities.locks
        else 0,
        "queues": queues,
    }


async def _up_to(rows: AsyncIterator[Any]) -> int:
    count = 0
    async for _ in rows:
        count += 1
        if count == _MOST:
            break
    return count


def _show(screen: Screen, found: dict[str, Any], of_set: bool) -> None:
    def line(title: str, *values: Cell | str) -> None:
        screen.line("  ", Cell(f"{title:<20}", "faint"), *values)

    screen.line(
        Cell(f"namespace {'set ' if of_set else ''}{found['namespace']}", "title"),
        f"  server {found['server_version']}, PostgreSQL {found['postgres_version']}, "
        f"schema version {found['schema_version']}",
    )
    if found["workflows"] is not None:
        total = sum(found["workflows"].values())
        line("workflows", f"{total:,}")
        for status, number in found["workflows"].items():
            screen.line(
                "    ",
                status_cell(f"{status:<18}".rstrip()),
                " " * (18 - len(status)),
                f"{number:,}",
            )
    line("stuck", _alarming(found["stuck"], "worst"))
    now = times.now()
    line("longest due", _longest(found["oldest_due"], now))
    line("errors, last hour", _alarming(found["errors_last_hour"], "bad"))
    line("unprocessed events", _alarming(found["unprocessed_events"], "held"))
    line("due commands", _alarming(found["due_commands"], "held"))
    line("locks held", _number(found["locks"]))
    for queue in found["queues"]:
        parts = [f"{queue.waiting:,} waiting"]
        if queue.oldest_waiting_age is not None:
            parts.append(f"oldest {brief(queue.oldest_waiting_age)}")
        parts += [
            f"{number:,} {name}"
            for name, number in (("delayed", queue.delayed), ("leased", queue.leased))
            if number
        ]
        dead: list[Cell | str] = [", ", Cell(f"{queue.dead:,} dead", "worst")] if queue.dead else []
        line(f"queue {queue.queue}", ", ".join(parts), *dead)


def _longest(milliseconds: int | None, now: datetime) -> str:
    if milliseconds is None:
        return "-"
    if is_at_once(milliseconds):
        return "(since when is not known)"
    at = from_ms(milliseconds)
    return brief(now - at) if at is not None and at <= now else "-"


def _number(number: int) -> str:
    return f"{number:,}" + ("+" if number == _MOST else "")


def _alarming(number: int, style: str) -> Cell:
    return Cell(_number(number), style if number else "good")
