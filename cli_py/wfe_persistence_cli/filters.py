"""The options that choose workflows, for `list`, `stats` and whoever else shows many."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

from wfe_persistence_cli import times
from wfe_persistence_cli.times import Age, Since

if TYPE_CHECKING:
    from wfe_persistence_client import WorkflowFilter

STATUSES: Final = ("runnable", "suspended", "complete", "terminated")

_OPTIONS: Final = (
    click.option(
        "--status",
        "statuses",
        type=click.Choice(STATUSES, case_sensitive=False),
        multiple=True,
        help="Only those with this status; may be repeated.",
    ),
    click.option("--definition", metavar="ID", help="Only those of this definition."),
    click.option(
        "--version",
        type=click.IntRange(min=0),
        help="Only those of this version of their definition.",
    ),
    click.option("--reference", metavar="TEXT", help="Only those with this reference."),
    click.option("--name", metavar="TEXT", help="Only those whose name begins so."),
    click.option("--root", metavar="ID", help="Only those below this workflow."),
    click.option("--created-from", type=Since(), help="Only those created then or later."),
    click.option("--created-before", type=Since(), help="Only those created before then."),
    click.option("--ended-from", type=Since(), help="Only those that ended then or later."),
    click.option("--ended-before", type=Since(), help="Only those that ended before then."),
    click.option(
        "--waiting-for", metavar="EVENT", help="Only those that wait for an event of this name."
    ),
    click.option(
        "--event-key", metavar="KEY", help="With --waiting-for: only for events with this key."
    ),
    click.option(
        "--errors-from", type=Since(), help="Only those with an error logged then or later."
    ),
    click.option(
        "--stuck",
        is_flag=True,
        help="Only those that are stuck: RUNNABLE, their time came 5 minutes ago or earlier, and "
        "nobody has written them since.",
    ),
    click.option("--overdue", type=Age(), help="As --stuck, but for so long."),
    click.option(
        "--idle",
        type=Age(),
        help="Only those that nobody has written for so long; if no --status is given, of those "
        "that have not ended.",
    ),
)


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose workflows; it takes them as the argument `chosen`, a
    dictionary for `workflow_filter`."""
    names = [
        "statuses", "definition", "version", "reference", "name", "root", "created_from",
        "created_before", "ended_from", "ended_before", "waiting_for", "event_key",
        "errors_from", "stuck", "overdue", "idle",
    ]  # fmt: skip

    @wraps(command)
    def with_filter(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in names}
        if chosen["event_key"] is not None and not chosen["waiting_for"]:
            raise click.UsageError("--event-key needs --waiting-for")
        if chosen["stuck"] and chosen["overdue"]:
            raise click.UsageError("--stuck is --overdue 5m: give one of them")
        command(chosen=chosen, **arguments)

    for option in reversed(_OPTIONS):
        with_filter = option(with_filter)
    return with_filter


def workflow_filter(chosen: dict[str, Any]) -> WorkflowFilter:
    """The filter that the options stand for."""
    from wfe_persistence_client import WorkflowFilter, WorkflowStatus
    from wfe_persistence_client.administration import STUCK_AFTER, stuck_since

    now = times.now()
    overdue = STUCK_AFTER if chosen["stuck"] else chosen["overdue"]
    idle = chosen["idle"]
    statuses = [WorkflowStatus[name.upper()] for name in chosen["statuses"]]
    if idle and not statuses:
        statuses = [WorkflowStatus.RUNNABLE, WorkflowStatus.SUSPENDED]
    # The earlier of the two.
    silent = [stuck_since(now - overdue)["written_before"]] if overdue else []
    silent += [now - idle] if idle else []
    return WorkflowFilter(
        statuses=statuses,
        workflow_definition_id=chosen["definition"] or "",
        version=chosen["version"],
        reference=chosen["reference"],
        name_prefix=chosen["name"] or "",
        root_workflow_id=chosen["root"] or "",
        create_time_from=chosen["created_from"],
        create_time_before=chosen["created_before"],
        complete_time_from=chosen["ended_from"],
        complete_time_before=chosen["ended_before"],
        written_before=min(silent, default=None),
        due_before=stuck_since(now - overdue)["due_before"] if overdue else None,
        waiting_event_name=chosen["waiting_for"] or "",
        waiting_event_key=chosen["event_key"],
        error_time_from=chosen["errors_from"],
    )
