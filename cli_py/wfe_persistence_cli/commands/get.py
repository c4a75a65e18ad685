"""`wfe-persistence get`: one workflow, as much of it as people need."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli import names, times
from wfe_persistence_cli import pointers as shown_pointers
from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.diagnosis import Circumstances, look, reasons
from wfe_persistence_cli.finding import find
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.screen import Cell, Screen, status_cell
from wfe_persistence_cli.status import EPILOG
from wfe_persistence_cli.times import ago, brief, from_ms, is_at_once, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import ExecutionError, PersistenceProvider, WorkflowInstance


@click.command(
    cls=ClientCommand, epilog=EPILOG, short_help="Show one workflow, and why it does not go on."
)
@click.argument("workflow", shell_complete=names.workflows())
@calls_server
@click.option("--data", is_flag=True, help="Show its data in full, and the pointers' as well.")
@click.option("--all", "everything", is_flag=True, help="Fold no pointers, however many.")
@output_option
def get(call: Caller, *, workflow: str, data: bool, everything: bool, output: Output) -> None:
    """Show WORKFLOW (an id or a name): its header, why it does not go on, and a tree of its
    execution pointers with what each waits for and what went wrong.

    \b
    Examples:
      wfe-persistence get order-42
      wfe-persistence get order-42 -o json

    The JSON is that of the workflow alone.
    """
    from wfe_persistence_client import WorkflowView

    async def body(provider: PersistenceProvider) -> None:
        instance = await find(provider, workflow, WorkflowView.FULL)
        if output.is_data:
            output.one(instance)
            return
        found = await look(provider, instance)
        show(output.screen, found, wide=output.is_wide, data=data, everything=everything)

    call.run(body)


def show(
    screen: Screen,
    found: Circumstances,
    *,
    wide: bool = False,
    data: bool = False,
    everything: bool = False,
) -> None:
    """Write a workflow for people."""
    now = times.now()
    instance = found.instance
    width = None if wide else screen.width
    screen.line(Cell(instance.name, "title"), "  ", status_cell(instance.status.name), width=width)
    for title, text in _header(instance, now):
        screen.line("  ", Cell(f"{title:<12}", "faint"), text, width=width)
    _document(screen, "data", instance.data, width=width, data=data)
    for name, value in sorted(instance.extension_attributes.items()):
        _document(screen, name, value, width=width, data=data)
    said = list(reasons(found, now))
    if said:
        screen.line()
        screen.line(Cell("Why it is not done", "title"))
        for sentence, style in said:
            screen.paragraph(sentence, style)
    screen.line()
    nodes = shown_pointers.tree(instance.execution_pointers)
    screen.line(Cell("Steps", "title") if nodes else Cell("no steps", "faint"))
    errors: dict[str, list[ExecutionError]] = defaultdict(list)
    for error in found.errors:
        errors[error.execution_pointer_id].append(error)
    for line in shown_pointers.lines(nodes, now, errors, everything=everything or data):
        screen.line(*line, width=width)


def _header(instance: WorkflowInstance, now: datetime) -> list[tuple[str, Cell | str]]:
    found: list[tuple[str, Cell | str]] = []
    if instance.id != instance.name:
        found.append(("id", instance.id))
    found.append(("definition", f"{instance.workflow_definition_id} v{instance.version}"))
    for title, text in (
        ("reference", instance.reference),
        ("description", instance.description),
        ("below", instance.root_workflow_id),
    ):
        if text:
            found.append((title, text))
    created = instance.create_time
    found.append(("created", f"{stamp(created)} ({ago(created, now)} ago)"))
    if instance.complete_time is not None:
        took = brief(instance.complete_time - created)
        found.append(("ended", f"{stamp(instance.complete_time)} (after {took})"))
    if instance.next_execution is not None and instance.complete_time is None:
        at = from_ms(instance.next_execution)
        text = f"{stamp(at)} ({_when(at, now)})" if at else f"{instance.next_execution} ms"
        if is_at_once(instance.next_execution):
            text = "at once"
        found.append(("next run", text))
    found.append(("revision", f"{instance.revision}"))
    return found


def _when(at: datetime, now: datetime) -> str:
    return f"{brief(now - at)} ago" if at <= now else f"in {brief(at - now)}"


def _document(screen: Screen, title: str, value: Any, *, width: int | None, data: bool) -> None:
    from wfe_persistence_cli.data import json_lines, plain
    from wfe_persistence_cli.data_text import folded

    heading = Cell(f"{title:<12}", "faint")
    if not data:
        screen.line("  ", heading, folded(value), width=width)
        return
    for i, line in enumerate(json_lines(plain(value))):
        screen.line("  ", " " * 12 if i else heading, line)
