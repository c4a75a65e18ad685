"""The sweep: what is in no queue, and should be, is enqueued; nothing else is."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from wfe_persistence.store.sweep import ADD_SWEEPS, KINDS, sweep
from wfe_persistence.store.tables import Store

HOUR = 3600.0

FILL = """
INSERT INTO wfc.queues (name, kind)
    VALUES ('work', 'Workflow'), ('happenings', 'Event'), ('plain', 'Plain');
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,
        create_time, last_heartbeat_at)
    SELECT id, id, 'd', 1, status, '{}', next, now() - age, now() - written
    FROM (VALUES
        ('lost', 'Runnable', 0::bigint, interval '1 day', interval '2 hours'),
        ('lost since it was created', 'Runnable', -1, '2 hours', NULL),
        ('lost, but in another queue', 'Runnable', 1, '1 day', '2 hours'),
        ('just written', 'Runnable', 0, '1 day', '1 second'),
        ('just created', 'Runnable', 0, '1 second', NULL),
        ('waiting', 'Runnable', 0, '1 day', '2 hours'),
        ('delayed', 'Runnable', 0, '1 day', '2 hours'),
        ('leased', 'Runnable', 0, '1 day', '2 hours'),
        ('dead', 'Runnable', 0, '1 day', '2 hours'),
        ('suspended', 'Suspended', 0, '1 day', '2 hours'),
        ('ended', 'Complete', 0, '1 day', '2 hours'),
        ('waits for an event', 'Runnable', NULL, '1 day', '2 hours'),
        ('sleeps', 'Runnable', 4102444800000, '1 day', '2 hours')
    ) w (id, status, next, age, written);
INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
    SELECT id, 'n', 'k', 'null', now() - age, processed
    FROM (VALUES
        ('lost', interval '2 hours', FALSE),
        ('waiting', '2 hours', FALSE),
        ('processed', '2 hours', TRUE),
        ('just happened', '1 second', FALSE),
        ('of the future', '-2 hours', FALSE)
    ) e (id, age, processed);
INSERT INTO wfc.queue_items (queue, id, visible_time, dead, lease_id) VALUES
    ('work', 'waiting', now(), FALSE, NULL),
    ('work', 'delayed', now() + interval '1 hour', FALSE, NULL),
    ('work', 'leased', now() + interval '1 hour', FALSE, 'x'),
    ('work', 'dead', now(), TRUE, NULL),
    ('plain', 'lost, but in another queue', now(), FALSE, NULL),
    ('happenings', 'waiting', now(), FALSE, NULL);
"""
LOST = {
    "workflow": ["lost", "lost since it was created", "lost, but in another queue"],
    "event": ["lost"],
}
QUEUE = {"workflow": "work", "event": "happenings"}


@pytest.fixture
async def tables(database_url: str, store: Store) -> Any:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await store.write_once(ADD_SWEEPS)
        yield connection


async def items(tables: Any, queue: str) -> list[str]:
    cursor = await tables.execute(
        "SELECT id FROM wfc.queue_items WHERE queue = %s ORDER BY id", [queue]
    )
    return [row[0] for row in await cursor.fetchall()]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_lost_is_enqueued_and_nothing_else(
    store: Store, tables: Any, kind: str
) -> None:
    await tables.execute(FILL)
    before = await items(tables, QUEUE[kind])
    part = await sweep(store, kind, HOUR, 100, is_last=False)
    assert (part.lost, part.queues, part.is_over) == (len(LOST[kind]), [QUEUE[kind]], True)
    assert await items(tables, QUEUE[kind]) == sorted([*before, *LOST[kind]])
    again = await tables.execute(
        "SELECT count(*) FROM wfc.queue_items WHERE visible_time <= now() AND id = 'lost'"
    )
    assert await again.fetchone() == (1,)


async def test_each_queue_of_the_kind_gets_what_is_in_none(store: Store, tables: Any) -> None:
    await tables.execute(FILL)
    await tables.execute("INSERT INTO wfc.queues (name, kind) VALUES ('other', 'Workflow')")
    part = await sweep(store, "workflow", HOUR, 100, is_last=False)
    assert (part.lost, sorted(part.queues)) == (len(LOST["workflow"]), ["other", "work"])
    assert await items(tables, "other") == sorted(LOST["workflow"])


async def test_without_a_queue_of_the_kind_nothing_is_done(store: Store, tables: Any) -> None:
    await tables.execute(FILL)
    await tables.execute("DELETE FROM wfc.queues WHERE kind <> 'Plain'")
    await tables.execute("DELETE FROM wfc.queue_items")
    for kind in KINDS:
        part = await sweep(store, kind, HOUR, 100, is_last=False)
        assert (part.lost, part.is_over) == (0, True)
    assert await items(tables, "work") == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_goes_on_where_it_was_and_begins_anew_at_its_end(
    store: Store, tables: Any, kind: str
) -> None:
    """In parts of two, of which the third ends it."""
    await tables.execute(FILL)
    await tables.execute("DELETE FROM wfc.queue_items")
    await tables.execute(
        "INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,"
        " create_time) SELECT 'w' || i, 'w' || i, 'd', 1, 'Runnable', '{}', 5,"
        " now() - interval '1 day' FROM generate_series(1, 9) i"
    )
    await tables.execute(
        "INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time)"
        " SELECT 'e' || i, 'n', 'k', 'null', '-infinity' FROM generate_series(1, 9) i"
    )

    async def is_due() -> bool:
        cursor = await tables.execute(
            "SELECT next_time <= now() FROM wfc.sweeps WHERE lower(kind) = %s", [kind]
        )
        [due] = await cursor.fetchone()
        return bool(due)

    lost = 0
    for number in range(1, 4):
        assert await is_due()
        part = await sweep(store, kind, HOUR, 2, is_last=number == 3)
        assert not part.is_over
        lost += part.lost
    assert 0 < lost <= 6
    assert not await is_due()
    assert (await sweep(store, kind, HOUR, 2, is_last=False)).is_over
    assert len(await items(tables, QUEUE[kind])) == lost
    await tables.execute("UPDATE wfc.sweeps SET next_time = now()")
    while not (part := await sweep(store, kind, HOUR, 2, is_last=False)).is_over:
        lost += part.lost
    had_items = ["waiting", "delayed", "leased", "dead"] if kind == "workflow" else ["waiting"]
    many = [f"{'w' if kind == 'workflow' else 'e'}{i}" for i in range(1, 10)]
    expected = sorted([*LOST[kind], *had_items, *many])
    assert await items(tables, QUEUE[kind]) == expected
    assert lost + part.lost == len(expected)
    # The next turn begins with the first ones.
    await tables.execute("DELETE FROM wfc.queue_items")
    await tables.execute("UPDATE wfc.sweeps SET next_time = now()")
    await sweep(store, kind, HOUR, 100, is_last=False)
    assert await items(tables, QUEUE[kind]) == expected


async def test_of_many_who_come_at_once_one_has_the_turn(store: Store, tables: Any) -> None:
    await tables.execute(FILL)
    parts = await asyncio.gather(
        *(sweep(store, "workflow", HOUR, 100, is_last=False) for _ in range(8))
    )
    assert sorted(part.lost for part in parts) == [0] * 7 + [len(LOST["workflow"])]
