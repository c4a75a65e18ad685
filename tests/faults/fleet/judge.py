"""Whether a fleet did what it should have: by the journals of its hosts, which are no part of what
is tested, and by the tables that it left."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.fleet.cast import Life

STEPS = {
    "linear": {"step0", "step1", "step2", "step3", "step4"},
    "parallel": {"before", "left", "middle", "right", "after"},
    "events": {"before", "gate", "after"},
    "delays": {"before", "nap", "after"},
    "saga": {"reserve", "flaky", "refund"},
    "sub": {"before", "after"},
    "child": {"child0"},
}
"""The steps of each definition whose result is in the data of a workflow that is complete."""

STARTED = [name for name in STEPS if name != "child"]
"""What is started from outside."""

_FAILS = {"saga": "charge"}
_TWICE = {"gate", "nap", "flaky"}  # to begin waiting and after it; to fail and to succeed


@dataclass
class Execution:
    """One execution of a step. `end`: or the death of its host."""

    id: str
    step: str
    workflow: str
    pointer: str
    seen: dict[str, Any]
    life: Life
    begin: int
    end: int

    outlived: bool = False
    """Whether its host was frozen in the run of the workflow that it is part of, so that others may
    have taken its work."""

    @property
    def was_frozen(self) -> bool:
        return any(begin < self.end and self.begin < end for begin, end in self.life.frozen)


@dataclass
class Verdict:
    """What was found. Everything in `lost` is a violation."""

    workflows: int = 0
    complete: int = 0
    executions: int = 0
    again: int = 0
    """Executions of steps that had to be run once more: a host was killed or fenced."""
    outlived: int = 0
    """Executions of frozen hosts that ended when another host had already taken over."""
    fenced: int = 0
    """Executions of frozen hosts whose result was refused: that of another one is stored."""
    lost: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def violation(self, kind: str, note: str) -> None:
        self.lost[kind] += 1
        self.notes.append(f"{kind}: {note}")


KINDS = (
    "stuck", "never completed", "event lost", "never ran", "not what ran", "twice at once",
    "ran after it was stored", "forked", "left in a queue", "locked",
)  # fmt: skip
"""What can be violated: a workflow stands still; what a client started has not been done by any
workflow; an event did not reach who waited for it; a step has no execution; a stored result is that
of no execution; two executions of one step overlap; one began when the result had been seen;
an execution that was stored worked on a state that was not; and what is left over."""


def read(lives: Iterable[Life]) -> Iterator[Execution]:
    """The executions in the journals."""
    for life in lives:
        if not life.journal.exists():
            continue
        open_: dict[str, Execution] = {}
        assert life.end is not None
        for line in life.journal.read_text().splitlines():
            at = json.loads(line)
            if "begin" in at:
                open_[at["begin"]] = Execution(
                    at["begin"], at["step"], at["workflow"], at["pointer"], at["seen"], life,
                    at["ns"], life.end,
                )  # fmt: skip
            else:
                execution = open_.pop(at["end"])
                execution.end = at["ns"]
                yield execution
        yield from open_.values()


def _mark_outlived(executions: list[Execution]) -> None:
    """The engine runs all steps that it can of one state of a workflow, one after the other. Who is
    frozen in the first of them does not know better in the others."""
    runs: dict[tuple[Path, str], list[Execution]] = defaultdict(list)
    for each in sorted(executions, key=lambda each: each.begin):
        runs[each.life.journal, each.workflow].append(each)
    for run in runs.values():
        frozen: list[Execution] = []
        for each in run:
            # It sees what the steps before it in the same run have made, stored or not.
            ids = {before.id for before in frozen}
            each.outlived = each.was_frozen or any(
                each.seen == before.seen or not ids.isdisjoint(map(str, each.seen.values()))
                for before in frozen
            )
            if each.outlived:
                frozen.append(each)


def judge(
    connection: psycopg.Connection[Any],
    lives: Iterable[Life],
    started: Collection[int],
    published: Collection[str],
    *,
    ours: bool,
) -> Verdict:
    """`started`, `published`: what clients were told has been accepted. `ours`: queues and locks
    are in the database too."""
    verdict = Verdict()
    executions = list(read(lives))
    verdict.executions = len(executions)
    _mark_outlived(executions)
    runs: dict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        runs[execution.workflow].append(execution)

    done: set[int] = set()
    for id_, definition, status, data in connection.execute(
        "SELECT id, definition_id, status, data FROM wfc.workflows"
    ):
        verdict.workflows += 1
        if status != "Complete":
            _stuck(connection, verdict, id_, definition, status, published)
            continue
        verdict.complete += 1
        if definition != "child":
            done.add(data["n"])
        _check_workflow(verdict, id_, definition, data, runs[id_])
    for number in sorted(set(started) - done):
        verdict.violation("never completed", f"{STARTED[number % len(STARTED)]}, n = {number}")

    _check_overlaps(verdict, executions)
    _check_remains(connection, verdict, ours=ours)
    return verdict


def _stuck(
    connection: psycopg.Connection[Any], verdict: Verdict, id_: str, definition: str, status: str,
    published: Collection[str],
) -> None:  # fmt: skip
    pointers = connection.execute(
        "SELECT coalesce(step_name, step_id::text), status, event_name, event_key"
        " FROM wfc.execution_pointers WHERE workflow_id = %s AND status <> 'Complete'",
        [id_],
    ).fetchall()
    waits = [(name, key) for _, state, name, key in pointers if state == "WaitingForEvent"]
    came = [
        (name, key)
        for name, key in waits
        if connection.execute(
            "SELECT FROM wfc.events WHERE event_name = %s AND event_key = %s", [name, key]
        ).fetchone()
    ]
    what = f"{definition} {id_} is {status}, {[pointer[:2] for pointer in pointers]}"
    if came or (definition == "events" and waits and id_ in published):
        verdict.violation("event lost", f"{what}, and {came} came")
    else:
        verdict.violation("stuck", what)


def _check_workflow(
    verdict: Verdict, id_: str, definition: str, data: dict[str, Any], runs: list[Execution]
) -> None:
    """A complete workflow: its data name one execution of each step, each of which saw those
    before it, and no step was run any more when its result had been seen."""
    what = f"{definition} {id_}"
    by_step: dict[str, list[Execution]] = defaultdict(list)
    seen_at: dict[str, int] = {}
    made_by = {run.id: run.life for run in runs}
    for run in runs:
        by_step[run.step].append(run)
        for name in STEPS[definition] & run.seen.keys():
            # What a step before it in the same run has made may never have been stored.
            if run.seen[name] == data.get(name) or made_by.get(run.seen[name]) is not run.life:
                seen_at[name] = min(seen_at.get(name, run.begin), run.begin)
    for step in sorted(STEPS[definition]):
        if step not in by_step:
            verdict.violation("never ran", f"{step} of {what}")
            continue
        stored = next((run for run in by_step[step] if run.id == data.get(step)), None)
        if stored is None:
            verdict.violation("not what ran", f"{step} of {what}: {data.get(step)}")
            continue
        verdict.fenced += sum(run.outlived and run is not stored for run in by_step[step])
        differs = {
            name
            for name in STEPS[definition] & stored.seen.keys()
            if stored.seen[name] != data.get(name)
        }
        if differs:
            verdict.violation("forked", f"{step} of {what} saw another {differs}")
    if (fails := _FAILS.get(definition)) and fails not in by_step:
        verdict.violation("never ran", f"{fails} of {what}")
    for run in runs:
        if run.begin > seen_at.get(run.step, run.begin) and not run.outlived:
            verdict.violation("ran after it was stored", f"{run.step} of {what}")
    verdict.again += sum(
        max(0, len(found) - (2 if step in _TWICE else 1)) for step, found in by_step.items()
    )


def _check_overlaps(verdict: Verdict, executions: list[Execution]) -> None:
    by_pointer: dict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        by_pointer[execution.pointer].append(execution)
    for runs in by_pointer.values():
        runs.sort(key=lambda run: run.begin)
        for before, after in itertools.pairwise(runs):
            if after.begin >= before.end:
                continue
            if before.outlived or after.outlived:
                verdict.outlived += 1
            else:
                seconds = (before.end - after.begin) / 1e9
                verdict.violation(
                    "twice at once",
                    f"{after.step} of {after.workflow}: {after.life.journal.stem} began"
                    f" {seconds:.3f} s before {before.life.journal.stem} was through",
                )


def _check_remains(connection: psycopg.Connection[Any], verdict: Verdict, *, ours: bool) -> None:
    for id_, name in connection.execute(
        "SELECT id, event_name FROM wfc.events WHERE NOT is_processed"
    ):
        verdict.violation("event lost", f"{name} {id_} is not processed")
    if not ours:
        return
    for queue, id_ in connection.execute("SELECT queue, id FROM wfc.queue_items"):
        verdict.violation("left in a queue", f"{id_} in {queue}")
    for resource, owner in connection.execute(
        "SELECT resource, owner FROM wfc.locks WHERE expiry > now()"
    ):
        verdict.violation("locked", f"{resource} by {owner}")
