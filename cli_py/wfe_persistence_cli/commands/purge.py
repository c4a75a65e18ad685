"""`wfe-persistence purge`: what has ended long ago, counted first and then deleted."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli.calling import Caller, calls_server, confirm
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.progress import Progress, progress_option
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import EPILOG, INTERRUPTED
from wfe_persistence_cli.text import counted
from wfe_persistence_cli.times import Since, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Delete what ended long ago.")
@calls_server
@click.option(
    "--ended-before",
    type=Since(),
    help="Delete workflows that ended before then, each with all that belongs to it.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(["complete", "terminated"]),
    multiple=True,
    help="With --ended-before: only those with this status.",
)
@click.option(
    "--definition",
    default="",
    metavar="ID",
    help="With --ended-before: only those of this definition.",
)
@click.option(
    "--events-before", type=Since(), help="Delete processed events that occurred before then."
)
@click.option("--event", default="", metavar="NAME", help="With --events-before: only these.")
@click.option(
    "--unprocessed",
    is_flag=True,
    help="With --events-before: those that nobody has processed, too.",
)
@click.option("--dry-run", is_flag=True, help="Only count, and delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not count first, and do not ask.")
@progress_option
@output_option
def purge(
    call: Caller,
    *,
    ended_before: datetime | None,
    statuses: tuple[str, ...],
    definition: str,
    events_before: datetime | None,
    event: str,
    unprocessed: bool,
    dry_run: bool,
    yes: bool,
    progress: bool | None,
    output: Output,
) -> None:
    """Delete ended workflows, or old events: counts them, asks, and deletes them.

    A workflow is deleted with its execution pointers, subscriptions and logged errors, and only
    together with all workflows below it. It is done in many small transactions, so hosts go on
    meanwhile. Ctrl-C ends it between two of them; what is deleted by then is deleted, and the same
    command goes on with the rest. (For what is to happen by itself, see `retention`.)

    \b
    Examples:
      wfe-persistence purge --ended-before 90d --dry-run
      wfe-persistence purge --ended-before 2026-01-01 --definition order
      wfe-persistence purge --events-before 30d --yes
    """
    if (ended_before is None) == (events_before is None):
        raise click.UsageError("give --ended-before (workflows) or --events-before (events)")
    if events_before is None and (event or unprocessed):
        raise click.UsageError("--event and --unprocessed need --events-before")
    if ended_before is None and (statuses or definition):
        raise click.UsageError("--status and --definition need --ended-before")

    def batches(provider: PersistenceProvider, *, dry: bool) -> AsyncIterator[dict[str, int]]:
        if ended_before is not None:
            return _workflows(provider, ended_before, statuses, definition, dry=dry)
        assert events_before is not None
        return _events(provider, events_before, event, unprocessed, dry=dry)

    at = ended_before or events_before
    assert at is not None
    total = 0
    if dry_run or not yes:
        found = _all(call, batches, dry=True, progress=progress)
        total = sum(found.values())
        if dry_run and output.is_data:
            output.one(found)
            return
        text = _listed(found)
        if dry_run or not total:
            click.echo(f"would be deleted: {text}")
            return
        what = "that ended" if ended_before else "from"
        confirm(f"Delete {text} ({what} before {stamp(at)}) in {call.place}?", yes=False)
    done = _all(call, batches, dry=False, progress=progress, total=total)
    if output.is_data:
        output.one(done)
    else:
        click.echo(f"deleted: {_listed(done)}")


async def _workflows(
    provider: PersistenceProvider,
    before: datetime,
    statuses: tuple[str, ...],
    definition: str,
    *,
    dry: bool,
) -> AsyncIterator[dict[str, int]]:
    from wfe_persistence_client import WorkflowStatus

    async for batch in provider.iter_purge_workflows(
        before,
        statuses=[WorkflowStatus[name.upper()] for name in statuses],
        workflow_definition_id=definition,
        dry_run=dry,
    ):
        yield asdict(batch)


async def _events(
    provider: PersistenceProvider, before: datetime, name: str, unprocessed: bool, *, dry: bool
) -> AsyncIterator[dict[str, int]]:
    async for batch in provider.iter_purge_events(
        before, event_name=name, include_unprocessed=unprocessed, dry_run=dry
    ):
        yield {"events": batch}


def _all(
    call: Caller, batches: Any, *, dry: bool, progress: bool | None, total: int = 0
) -> dict[str, int]:
    """The sums of all batches. Ctrl-C says how far it had come."""
    sums: dict[str, int] = {}

    async def body(provider: PersistenceProvider) -> None:
        doing = "counting" if dry else "deleting"
        with Progress(doing, total, shown=progress, what="rows") as bar:
            async for batch in batches(provider, dry=dry):
                for name, number in batch.items():
                    sums[name] = sums.get(name, 0) + number
                bar.at(sum(sums.values()))

    try:
        call.run(body)
    except KeyboardInterrupt:
        if dry:
            tell("interrupted: nothing was deleted")
        else:
            tell(f"interrupted; deleted: {_listed(sums)} or more; the same command goes on")
        sys.exit(INTERRUPTED)
    return sums


def _listed(counts: dict[str, int]) -> str:
    parts = [
        counted(number, name.replace("_", " ").removesuffix("s"))
        for name, number in counts.items()
        if number
    ]
    return ", ".join(parts) or "nothing"
