"""The store of the soak: filled by SQL, and looked at while the load goes on."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import psycopg

from wfe_persistence.embedded import EmbeddedPostgres

_BATCH: Final = 50_000

# Of each definition three of five workflows wait for an event for long, the others have ended,
# each with three pointers. Ids as hosts make them: in no order.
WORKFLOWS: Final = """
INSERT INTO wfc.workflows (id, name, definition_id, version, reference, status, data,
    next_execution, create_time, complete_time)
SELECT id, id, 'order-' || i / 5 % 20, 1, 'customer-' || i % 50000,
    CASE WHEN i % 5 < 3 THEN 'Runnable' ELSE 'Complete' END,
    jsonb_build_object('order', i, 'customer', 'Customer ' || i % 50000, 'note', repeat('x', 200)),
    CASE WHEN i % 5 < 3 THEN 4000000000000 + i END,
    now() - i * interval '1 second' / 10,
    CASE WHEN i % 5 >= 3 THEN now() - i * interval '1 second' / 20 END
FROM (SELECT i, md5('workflow' || i) AS id FROM generate_series(%s::int, %s::int) AS g(i)) AS new
"""

POINTERS: Final = """
INSERT INTO wfc.execution_pointers (id, workflow_id, step_id, active, status, start_time, end_time,
    event_name, event_key, step_name, outcome)
SELECT 'p' || s, md5('workflow' || i), s, s = 3 AND i % 5 < 3,
    CASE WHEN s < 3 OR i % 5 >= 3 THEN 'Complete' ELSE 'WaitingForEvent' END,
    now() - interval '1 hour', CASE WHEN s < 3 OR i % 5 >= 3 THEN now() END,
    CASE WHEN s = 3 THEN 'paid' END, CASE WHEN s = 3 THEN 'order-' || i END, 'Step number ' || s,
    '{"done": true, "by": "worker-1"}'
FROM generate_series(%s::int, %s::int) AS g(i), generate_series(1, 3) AS t(s)
"""

SUBSCRIPTIONS: Final = """
INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
    event_key, subscribe_as_of)
SELECT md5('subscription' || i), md5('workflow' || i), 3, 'p3', 'paid', 'order-' || i, now()
FROM generate_series(%s::int, %s::int) AS g(i) WHERE i %% 5 < 3
"""

EVENTS: Final = """
INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
SELECT md5('event' || i), 'shipped', 'order-' || i, '{"amount": 12.5, "currency": "EUR"}',
    now() - i * interval '1 second' / 10, TRUE
FROM generate_series(%s::int, %s::int) AS g(i)
"""

TABLES: Final = """
SELECT relname, pg_table_size(relid), pg_indexes_size(relid), n_live_tup, n_dead_tup,
    autovacuum_count, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del
FROM pg_stat_user_tables WHERE schemaname = 'wfc'
    AND relname IN ('workflows', 'execution_pointers', 'events', 'event_subscriptions', 'requests',
        'queue_items', 'lifecycle_events', 'scheduled_commands', 'locks')
"""

WHOLE: Final = """
SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8, pg_database_size('postgres'),
    (SELECT num_timed + num_requested FROM pg_stat_checkpointer)
"""

_COLUMNS: Final = (
    "table_bytes", "index_bytes", "live", "dead", "autovacuums", "inserted", "updated", "hot",
    "deleted",
)  # fmt: skip


# As docs/scaling.md advises for large tables; by default none of them would be vacuumed in half an
# hour.
SETTINGS: Final = """
ALTER TABLE wfc.workflows SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE wfc.execution_pointers SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE wfc.events SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE wfc.event_subscriptions SET (autovacuum_vacuum_scale_factor = 0.01);
"""


def fill(postgres: EmbeddedPostgres, workflows: int) -> float:
    """Put so many workflows into a store whose tables are there; in how many seconds."""
    begun = time.monotonic()
    with psycopg.connect(postgres.url, autocommit=True) as database:
        database.execute("SET synchronous_commit = off")
        for first in range(1, workflows + 1, _BATCH):
            numbers = (first, min(first + _BATCH - 1, workflows))
            for sql in (WORKFLOWS, POINTERS, SUBSCRIPTIONS, EVENTS):
                database.execute(_escaped(sql).encode(), numbers)
            print(f"\rfilling: {numbers[1]:,} workflows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        database.execute(SETTINGS.encode())
        database.execute("VACUUM (ANALYZE)")
        database.execute("CHECKPOINT")
    return time.monotonic() - begun


def look(database: psycopg.Connection[Any]) -> dict[str, Any]:
    """How large the store is now, and what has been done to it so far."""
    rows = database.execute(TABLES.encode()).fetchall()
    whole = database.execute(WHOLE.encode()).fetchone()
    assert whole
    return {
        "tables": {
            row[0]: dict(zip(_COLUMNS, map(int, row[1:]), strict=True)) for row in sorted(rows)
        },
        "wal_bytes": float(whole[0]),
        "database_bytes": int(whole[1]),
        "checkpoints": int(whole[2]),
    }


def _escaped(sql: str) -> str:
    """psycopg takes every % for a parameter, but the two that are."""
    plain = sql.replace("%%", "%").replace("%s", "\0")
    return plain.replace("%", "%%").replace("\0", "%s")
