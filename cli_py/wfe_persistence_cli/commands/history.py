"""`wfe-persistence history`: what happened to a workflow, in the order in which it did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from wfe_persistence_cli import names
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.finding import find
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import (
    Output,
    aiter_of,
    limit_options,
    output_option,
)
from wfe_persistence_cli.screen import Cell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.table import Column
from wfe_persistence_cli.times import brief, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import ExecutionError, PersistenceProvider, WorkflowInstance


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened."""

    time: datetime
    what: str
    step: str = ""
    pointer_id: str = ""
    detail: str = ""


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Show what happened to a workflow.")
@click.argument("workflow", shell_complete=names.workflows())
@calls_server
@limit_options
@output_option
def history(call: Caller, *, workflow: str, limit: int, output: Output) -> None:
    """Show what happened to WORKFLOW (an id or a name), the latest last: when it was created, its
    steps began and ended, errors occurred, and it ended.

    It is put together from what the store has now: the times of the execution pointers, and the log
    of errors. A step that was run several times has only its last times; pointers that the host has
    removed are not there. `watch` shows changes as they come.

    \b
    Example: wfe-persistence history order-42
    """
    from wfe_persistence_client import WorkflowView

    async def body(provider: PersistenceProvider) -> None:
        instance = await find(provider, workflow, WorkflowView.FULL)
        errors = [error async for error in provider.iter_errors(instance.id, page_size=1000)]
        found = happenings(instance, errors)
        if limit and len(found) > limit:
            # The latest matter most.
            hidden = len(found) - limit
            found = found[hidden:]
            click.echo(f"{hidden} earlier ones are left out; --all shows them", err=True)
        await output.list(aiter_of(found), _COLUMNS, limit=0, what="history")

    call.run(body)


_STYLES = {
    "created": "title", "step began": "", "step ended": "good", "error": "bad", "ended": "title",
}  # fmt: skip

_COLUMNS: list[Column[Happening]] = [
    Column("TIME", lambda each: stamp(each.time)),
    Column("WHAT", lambda each: Cell(each.what, _STYLES.get(each.what, ""))),
    Column("STEP", lambda each: each.step or "-", shrinks=True),
    Column("POINTER", lambda each: each.pointer_id or "-", wide=True),
    Column("DETAIL", lambda each: each.detail, shrinks=True),
]


def happenings(instance: WorkflowInstance, errors: list[ExecutionError]) -> list[Happening]:
    """All that is known, in the order of the times."""
    of = f"{instance.workflow_definition_id} v{instance.version}"
    found = [Happening(instance.create_time, "created", detail=of)]
    names = {}
    for pointer in instance.execution_pointers:
        name = names[pointer.id] = pointer.step_name or f"step {pointer.step_id}"
        if pointer.start_time is not None:
            found.append(Happening(pointer.start_time, "step began", name, pointer.id))
        if pointer.end_time is not None:
            detail = pointer.status.name
            if pointer.start_time is not None:
                detail += f", after {brief(pointer.end_time - pointer.start_time)}"
            found.append(Happening(pointer.end_time, "step ended", name, pointer.id, detail))
    found += [
        Happening(
            error.error_time,
            "error",
            names.get(error.execution_pointer_id, ""),
            error.execution_pointer_id,
            error.message,
        )
        for error in errors
    ]
    if instance.complete_time is not None:
        found.append(Happening(instance.complete_time, "ended", detail=instance.status.name))
    # (Sorting is stable: what has the same time stays in this order.)
    return sorted(found, key=lambda each: each.time)
