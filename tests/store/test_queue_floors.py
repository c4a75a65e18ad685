"""Where dequeues begin: what is behind, and that nothing is overlooked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
import pytest

from tests.store.test_queue_backlog import blocks, explained
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.queue_pb2 import DequeueRequest
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import dequeue, queue_floors, queue_groups, queue_waiting
from wfe_persistence.store.queue_floors import BEGINNING, Floors
from wfe_persistence.store.rows import floor_param
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters


class Table:
    """The first item of a queue, as looks find it when they are let."""

    def __init__(self) -> None:
        self.first = 100
        self.looks: list[int | None] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: PersistenceError | None = None

    async def look(self, _: str, start: int | None) -> int:
        self.looks.append(start)
        found = self.first
        await self.may_end.wait()
        if self.error:
            raise self.error
        return found


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> Floors:
    monkeypatch.setattr(queue_floors, "LOOK_SECONDS", 0.0)
    return Floors()


async def keep_up(floors: Floors, table: Table) -> None:
    floors.keep_up(["q"], table.look)
    while floors._tasks:
        await asyncio.gather(*floors._tasks)


async def test_nothing_is_known_of_a_queue_at_first(floors: Floors) -> None:
    assert floors.of("q") is BEGINNING
    assert floors.known("q") is BEGINNING


async def test_floor_is_what_was_found(floors: Floors) -> None:
    table = Table()
    await keep_up(floors, table)
    assert floors.of("q") == floors.known("q") == 100
    table.first = 200
    await keep_up(floors, table)
    assert floors.of("q") == 200
    assert floors.of("other") is BEGINNING


async def test_floor_is_lowered_by_what_comes_below(floors: Floors) -> None:
    await keep_up(floors, Table())
    floors.lower("q", 150)
    assert floors.of("q") == 100
    floors.lower("q", 50)
    assert floors.of("q") == 50
    floors.lower("q")
    assert floors.of("q") is BEGINNING


async def test_look_that_began_before_a_lower_item_came_does_not_count(floors: Floors) -> None:
    table = Table()
    await keep_up(floors, table)
    table.may_end.clear()
    floors.keep_up(["q"], table.look)
    await asyncio.sleep(0)
    floors.lower("q", 50)
    table.may_end.set()
    await asyncio.gather(*floors._tasks)
    assert floors.of("q") == 50


async def test_one_look_at_a_time(floors: Floors) -> None:
    table = Table()
    table.may_end.clear()
    for _ in range(3):
        floors.keep_up(["q"], table.look)
        await asyncio.sleep(0)
    assert len(table.looks) == 1
    table.may_end.set()
    await asyncio.gather(*floors._tasks)


async def test_looks_from_the_beginning_take_a_small_part_of_the_time(
    floors: Floors, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table()
    await keep_up(floors, table)
    floors._floors["q"].took = 1000.0
    await keep_up(floors, table)
    await keep_up(floors, table)
    assert table.looks == [BEGINNING, 100, 100]
    assert not floors.may_hide(["q"])  # it would take long
    monkeypatch.setattr(queue_floors, "_REST", 0)
    await keep_up(floors, table)
    assert table.looks[-1] is BEGINNING


async def test_what_is_hidden_may_be_looked_for_while_that_is_quick(floors: Floors) -> None:
    assert not floors.may_hide(["q"])  # the look was from the beginning
    await keep_up(floors, Table())
    floors._floors["q"].took = 0.0
    assert floors.may_hide(["other", "q"])


async def test_failed_look_changes_nothing(floors: Floors) -> None:
    table = Table()
    await keep_up(floors, table)
    table.error = PersistenceError(ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, "away")
    await keep_up(floors, table)
    assert floors.of("q") == 100


async def test_few_queues_are_remembered(floors: Floors) -> None:
    table = Table()
    floors.keep_up([f"q{i}" for i in range(queue_floors._MAX_QUEUES + 5)], table.look)
    await asyncio.gather(*floors._tasks)
    assert len(floors._floors) == queue_floors._MAX_QUEUES


DEAD: Final = 20_000
FILL: Final = f"""
INSERT INTO wfc.queue_items (queue, id, visible_time)
SELECT 'q', 'item' || i, now() - interval '1 hour' FROM generate_series(1, {DEAD}) i;
DELETE FROM wfc.queue_items;
INSERT INTO wfc.queue_items (queue, id, visible_time)
SELECT 'q', 'later' || i, now() - interval '1 minute' FROM generate_series(1, 100) i
"""


@pytest.fixture
async def held_up(store: Store, database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A queue through which many items have gone, of which no vacuum and no reader can clear
    anything away, because a transaction is still open that might see them."""
    async with (
        await psycopg.AsyncConnection.connect(database_url) as open_transaction,
        await psycopg.AsyncConnection.connect(
            database_url, autocommit=True, prepare_threshold=None
        ) as connection,
    ):
        await open_transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await open_transaction.execute("SELECT count(*) FROM wfc.queue_items")
        await connection.execute(FILL.encode())
        await connection.execute(b"VACUUM ANALYZE wfc.queue_items")
        yield connection


async def test_what_has_gone_costs_nothing_while_a_transaction_stays_open(
    store: Store, held_up: psycopg.AsyncConnection[Any]
) -> None:
    ask = dequeue._Ask(store, DequeueRequest(queues=["q"]), 1, 1, 1, Waiters())
    store.floors.keep_up(["q"], ask._find_floor)
    await asyncio.gather(*store.floors._tasks)
    floor = floor_param(store.floors.of("q")).decode()
    call = '[{"call": 0, "lease_id": "l", "worker_id": "", "lease_ms": 1000}]'
    for sql, params in (
        (dequeue.DEQUEUE, ["{q}", 1, 1000, "l", "", 1000, "{%s}"]),
        (queue_groups.DEQUEUE_TOGETHER, [call, '[{"name": "q", "floor": "%s"}]']),
        (queue_waiting.LOOK_AT_QUEUES, ["{q}", 100, "{%s}"]),
    ):
        read = []
        for begin in (floor, "-infinity"):
            given = [p.replace("%s", begin) if isinstance(p, str) else p for p in params]
            plan = await explained(held_up, sql, given, "generic")
            assert plan["Actual Rows"] == 1
            read.append(blocks(plan))
        assert 4 * read[0] < read[1], sql
