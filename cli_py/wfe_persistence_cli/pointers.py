"""The execution pointers of a workflow as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from wfe_persistence_cli.screen import Cell, status_cell
from wfe_persistence_cli.text import cut, harmless
from wfe_persistence_cli.times import ago, brief, stamp

if TYPE_CHECKING:
    from wfe_persistence_client import ExecutionError, ExecutionPointer

MARKS: Final = {
    "PENDING": "○",
    "RUNNING": "▶",
    "COMPLETE": "✓",
    "SKIPPED": "-",
    "SLEEPING": "z",
    "WAITING_FOR_EVENT": "…",
    "FAILED": "✗",
    "COMPENSATED": "↺",
    "CANCELLED": "✗",
    "PENDING_PREDECESSOR": "○",
}
# Statuses of pointers of which nobody has to know more if there are many.
_QUIET: Final = frozenset({"COMPLETE", "SKIPPED", "PENDING", "PENDING_PREDECESSOR", "LEGACY"})
# Of so many such in a row, those in the middle are folded.
_FOLDED_FROM: Final = 12
_SHOWN_BESIDE: Final = 3
# Lines of one tree are indented up to so far.
_DEEPEST: Final = 20


@dataclass(slots=True)
class Node:
    """A pointer and those that it has started."""

    pointer: ExecutionPointer
    children: list[Node] = field(default_factory=list)


def tree(pointers: Sequence[ExecutionPointer]) -> list[Node]:
    """The pointers below those that enclose them, in their order.

    One is below the pointer whose `children` have it or, if none has, below the one of its `scope`
    that is deepest itself. What would be below itself is at the top.
    """
    nodes = {pointer.id: Node(pointer) for pointer in pointers}
    parent_of = {
        child: pointer.id for pointer in pointers for child in pointer.children if child in nodes
    }
    for pointer in pointers:
        if pointer.id not in parent_of and pointer.scope:
            inner = [nodes[id_].pointer for id_ in pointer.scope if id_ in nodes]
            if inner:
                parent_of[pointer.id] = max(inner, key=lambda each: len(each.scope)).id
    tops: list[Node] = []
    is_rooted: dict[str, bool] = {}
    for pointer in pointers:
        if _leads_to_top(pointer.id, parent_of, is_rooted):
            parent = parent_of.get(pointer.id)
            (tops if parent is None else nodes[parent].children).append(nodes[pointer.id])
        else:
            tops.append(nodes[pointer.id])
    return tops


def _leads_to_top(id_: str, parent_of: dict[str, str], known: dict[str, bool]) -> bool:
    """Whether the way up from a pointer ends, instead of going round."""
    way = []
    seen = set()
    at: str | None = id_
    while at is not None and at not in known and at not in seen:
        seen.add(at)
        way.append(at)
        at = parent_of.get(at)
    result = at is None or known.get(at, False)
    known.update(dict.fromkeys(way, result))
    return result


def lines(
    nodes: Sequence[Node],
    now: datetime,
    errors: dict[str, list[ExecutionError]],
    *,
    everything: bool = False,
) -> Iterator[list[Cell | str]]:
    """The lines of a tree: a pointer each, and below it what it waits for and what went wrong."""
    # Not recursive: a workflow may have loops in loops as deep as it likes.
    waiting: list[tuple[Node | str, str, str]] = _siblings(nodes, "", everything=everything)[::-1]
    while waiting:
        node, branch, indent = waiting.pop()
        if isinstance(node, str):
            yield [Cell(branch, "faint"), Cell(node, "faint")]
            continue
        yield [Cell(branch, "faint"), *_pointer_cells(node.pointer, now)]
        stem = indent + ("│ " if node.children else "  ")
        for text, style in _details(node.pointer, now, errors.get(node.pointer.id, [])):
            yield [Cell(stem, "faint"), "  ", Cell(text, style)]
        waiting += _siblings(node.children, indent, everything=everything)[::-1]


def _siblings(
    nodes: Sequence[Node], indent: str, *, everything: bool
) -> list[tuple[Node | str, str, str]]:
    """Nodes of one level with their branches; long runs without news are folded."""
    shown: list[Node | str] = []
    run: list[Node] = []

    def end_run() -> None:
        if len(run) >= _FOLDED_FROM and not everything:
            beside = _SHOWN_BESIDE
            hidden = run[beside:-beside]
            shown.extend(run[:beside])
            shown.append(f"… {len(hidden):,} more like these (--all shows them)")
            shown.extend(run[-beside:])
        else:
            shown.extend(run)
        run.clear()

    for node in nodes:
        quiet = node.pointer.status.name in _QUIET and not node.children
        if not quiet or (run and run[0].pointer.status is not node.pointer.status):
            end_run()
        if quiet:
            run.append(node)
        else:
            shown.append(node)
    end_run()
    found: list[tuple[Node | str, str, str]] = []
    deep = len(indent) // 2 >= _DEEPEST
    for i, each in enumerate(shown):
        last = i == len(shown) - 1
        branch = indent if deep else indent + ("└ " if last else "├ ")
        below = indent if deep else indent + ("  " if last else "│ ")
        found.append((each, branch, below))
    return found


def _pointer_cells(pointer: ExecutionPointer, now: datetime) -> list[Cell | str]:
    name = pointer.step_name or f"step {pointer.step_id}"
    status = status_cell(pointer.status.name)
    cells: list[Cell | str] = [
        Cell(MARKS.get(status.text, "•"), status.style),
        " ",
        Cell(name, "title"),
        "  ",
        status,
    ]
    if pointer.start_time is not None:
        if pointer.end_time is not None:
            cells += ["  ", brief(pointer.end_time - pointer.start_time)]
        else:
            cells += ["  ", f"for {ago(pointer.start_time, now)}"]
    if pointer.retry_count:
        retries = f"{pointer.retry_count} " + ("retry" if pointer.retry_count == 1 else "retries")
        cells += ["  ", Cell(retries, "bad")]
    if pointer.context_item is not None and _has(pointer.context_item):
        cells += ["  ", Cell(f"item {_folded(pointer.context_item)}", "faint")]
    cells += ["  ", Cell(pointer.id, "faint")]
    return cells


def _details(
    pointer: ExecutionPointer, now: datetime, errors: Sequence[ExecutionError]
) -> Iterator[tuple[str, str]]:
    if pointer.status.name == "WAITING_FOR_EVENT" or (
        pointer.event_name is not None and not pointer.event_published and pointer.active
    ):
        yield (
            f"waits for the event {pointer.event_name} with the key {pointer.event_key!r}",
            "waiting",
        )
    if pointer.sleep_until is not None and pointer.end_time is None:
        until = pointer.sleep_until
        yield f"sleeps until {stamp(until)} ({_relative(until, now)})", "waiting"
    if _has(pointer.outcome) and pointer.outcome is not None:
        yield f"outcome {_folded(pointer.outcome)}", "faint"
    if errors:
        latest = errors[0]
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors, the latest"
        yield f"{count} {ago(latest.error_time, now)} ago: {latest.message}", "bad"


def _relative(at: datetime, now: datetime) -> str:
    return f"in {brief(at - now)}" if at > now else f"{brief(now - at)} ago"


def _has(value: object) -> bool:
    from wfe_persistence_client import ABSENT

    return value is not ABSENT


def _folded(value: object) -> str:
    from wfe_persistence_cli.data_text import folded

    return cut(harmless(folded(value)), 60)
