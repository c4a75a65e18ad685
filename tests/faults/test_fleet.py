"""The short form of `./run fleet`, and a proof that its judge finds what is wrong.

Every kind of violation is made once by hand, in the journal or in the tables of a fleet that did
well. The long form, with more hosts, 2,000 workflows and at least 100 kills, is `./run fleet`
itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.fleet.build import CannotBuildError, build
from tests.faults.fleet.cast import Life
from tests.faults.fleet.judge import KINDS, Verdict, judge
from tests.faults.fleet.runner import Fleet, Plan
from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.schema import Schema


@pytest.mark.timeout(1800)  # the first build takes minutes
async def test_a_fleet_that_is_killed_loses_nothing(run_dir: Path) -> None:
    try:
        program = build(run_dir)
    except CannotBuildError as exc:
        pytest.skip(str(exc))
    plan = Plan("grpc", hosts=2, workflows=60, kills=10, seed=1, freezes=1, lease=2.0)
    result = await Fleet(plan, program, run_dir).run()
    assert result.passed, "\n".join(result.verdict.notes)
    assert result.kills.total() == 10
    assert result.frozen == 1
    assert result.started == 60
    assert result.published >= 10


# Times are in seconds here.
class Made:
    """A fleet of two hosts, made by hand: one workflow of `linear` and one of `events`."""

    def __init__(self, connection: psycopg.Connection[Any], directory: Path) -> None:
        self.connection = connection
        self.lives = [
            Life(directory / "host0-0.jsonl", 0, end=int(50e9), killed=True),
            Life(directory / "host1-0.jsonl", 0, end=int(100e9)),
        ]
        self._lines: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
        self.started = {0, 2}
        for id_, definition, number in (("l", "linear", 0), ("e", "events", 2)):
            connection.execute(
                "INSERT INTO wfc.workflows (id, name, definition_id, version, status, data,"
                " create_time) VALUES (%s, %s, %s, 1, 'Complete', %s, now())",
                [id_, id_, definition, json.dumps({"n": number})],
            )
        seen: dict[str, Any] = {"n": 0}
        for at in range(5):
            step = f"step{at}"
            self.run(step, "l", at, at + 0.5, seen=dict(seen))
            seen[step] = f"{step} l {at}"
        self.store("l", seen)
        self.run("died", "l", 40, None)  # with its host, at 50
        seen = {"n": 2}
        for step, at in (("before", 0), ("gate", 1), ("gate", 2), ("after", 3)):
            self.run(step, "e", at, at + 0.5, seen=dict(seen))
            if (step, at) != ("gate", 1):
                seen[step] = f"{step} e {at}"
        self.store("e", seen)

    def run(
        self, step: str, workflow: str, begin: float, end: float | None, *, host: int = 0,
        seen: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """An execution; its id is made of the step, the workflow and its beginning."""
        id_ = f"{step} {workflow} {begin}"
        self._lines[host].append(
            {
                "begin": id_, "ns": int(begin * 1e9), "step": step, "workflow": workflow,
                "pointer": f"{step} {workflow}", "seen": seen or {},
            }
        )  # fmt: skip
        if end is not None:
            self._lines[host].append({"end": id_, "ns": int(end * 1e9)})

    def store(self, workflow: str, data: dict[str, Any]) -> None:
        self.connection.execute(
            "UPDATE wfc.workflows SET data = data || %s WHERE id = %s",
            [json.dumps(data), workflow],
        )

    def forget(self, step: str) -> None:
        """No execution of this step is in the journals."""
        for lines in self._lines.values():
            lines[:] = [line for line in lines if not str(line.get("begin", line.get("end")))
                        .startswith(step)]  # fmt: skip

    def judge(self) -> Verdict:
        for host, lines in self._lines.items():
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            self.lives[host].journal.write_text(text)
        return judge(self.connection, self.lives, self.started, {"e"}, ours=True)


@pytest.fixture(scope="module")
async def store_url(postgres_url: str) -> str:
    """A database with the tables of an empty store."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE made_fleets")
    url = postgres_url.replace("/postgres?", "/made_fleets?")
    async with database_from(Settings(db_url=url)) as database:
        await migrate(database.source, Schema())
    return url


@pytest.fixture
def made(tmp_path: Path, store_url: str) -> Iterator[Made]:
    with psycopg.connect(store_url) as connection:
        yield Made(connection, tmp_path)
        connection.rollback()


def _stand_still(made: Made, workflow: str) -> None:
    made.connection.execute(
        "UPDATE wfc.workflows SET status = 'Runnable' WHERE id = %s", [workflow]
    )


def _wait(made: Made) -> None:
    _stand_still(made, "e")
    made.connection.execute(
        "INSERT INTO wfc.execution_pointers (id, workflow_id, step_id, status, event_name,"
        " event_key) VALUES ('p', 'e', 1, 'WaitingForEvent', 'gate', 'e')"
    )


def _unprocessed(made: Made) -> None:
    made.connection.execute(
        "INSERT INTO wfc.events (id, event_name, event_key, event_time)"
        " VALUES ('x', 'gate', 'e', now())"
    )


def _fork(made: Made) -> None:
    """The result of step3 is that of an execution that had not seen what is stored of step1."""
    made.run("step3", "l", 3.7, 3.8, host=1, seen={"step1": "another"})
    made.store("l", {"step3": "step3 l 3.7"})


def _queued(made: Made) -> None:
    made.connection.execute(
        "INSERT INTO wfc.queue_items (queue, id, visible_time) VALUES ('q', 'l', now())"
    )


def _locked(made: Made) -> None:
    made.connection.execute(
        "INSERT INTO wfc.locks (resource, expiry) VALUES ('l', now() + interval '1 minute')"
    )


BROKEN: list[tuple[str, Callable[[Made], object]]] = [
    ("stuck", lambda made: _stand_still(made, "l")),
    ("never completed", lambda made: made.started.add(5)),
    ("event lost", _wait),
    ("event lost", _unprocessed),
    ("never ran", lambda made: made.forget("step3")),
    ("not what ran", lambda made: made.store("l", {"step3": "nobody"})),
    ("twice at once", lambda made: made.run("step4", "l", 4.4, 4.6, host=1)),
    # The host of the first one lived until 50.
    ("twice at once", lambda made: made.run("died", "l", 49, 51, host=1)),
    ("ran after it was stored", lambda made: made.run("step1", "l", 3, 3.1, host=1)),
    ("forked", _fork),
    ("left in a queue", _queued),
    ("locked", _locked),
]  # fmt: skip


def test_a_fleet_that_did_well_is_found_to_have_done_so(made: Made) -> None:
    verdict = made.judge()
    assert verdict.notes == []
    assert (verdict.workflows, verdict.complete) == (2, 2)
    assert (verdict.executions, verdict.again, verdict.outlived) == (10, 0, 0)


@pytest.mark.parametrize(("kind", "break_"), BROKEN)
def test_what_is_wrong_is_found(kind: str, break_: Callable[[Made], object], made: Made) -> None:
    break_(made)
    verdict = made.judge()
    assert kind in verdict.lost, verdict.notes


def test_every_kind_is_broken_once() -> None:
    assert {kind for kind, _ in BROKEN} == set(KINDS)


def test_what_a_frozen_host_did_too_late_is_no_violation_unless_it_was_stored(made: Made) -> None:
    made.run("step4", "l", 3.9, 20, host=1, seen={})
    # In the same run of the workflow, whose state is the one from before.
    made.run("step3", "l", 20.1, 20.2, host=1, seen={})
    made.lives[1].frozen.append((int(3.95e9), int(19e9)))
    verdict = made.judge()
    assert verdict.notes == []
    assert (verdict.again, verdict.outlived, verdict.fenced) == (2, 1, 2)


def test_what_a_killed_host_did_not_store_may_be_done_again(made: Made) -> None:
    """The engine runs all steps that it can, and stores their results together."""
    made.run("step3", "l", 2.6, 2.7, host=1)
    made.run("step4", "l", 2.7, 2.8, host=1, seen={"step3": "step3 l 2.6"})
    verdict = made.judge()
    assert verdict.notes == []
    assert verdict.again == 2
