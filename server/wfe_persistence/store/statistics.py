"""What is in a store, for the metrics: counted at an interval, and bounded in cost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Final

from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import migration_history
from wfe_persistence.store.lease import unexpired, unexpired_or_endless
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.records import WORKFLOW_STATUS
from wfe_persistence.store.rows import integer, read_int8, read_text, text, text_list
from wfe_persistence.store.tables import TABLES, Store

log = logging.getLogger(__name__)

MAX_COUNTED: Final = 100_000
"""How many rows of a kind are counted at most."""

MAX_NAMESPACES: Final = 20
"""Of how many namespaces: the default one, and those used last."""

INTERVAL_SECONDS: Final = 60.0
_TIMEOUT_SECONDS: Final = 5.0

# $1 the most rows of a kind. Each count reads no more of its index, or of its table, than that.
# A next_execution of 0 means "at once" and says nothing of when: such a workflow has been due since
# it was written. (Of very many that are due, those whose time came first are looked at.)
STORE_COUNTS = f"""
SELECT 'workflows', s.status, (SELECT count(*) FROM (
        SELECT FROM wfc.workflows w WHERE w.status = s.status LIMIT $1) w)
    FROM unnest(ARRAY[{", ".join(f"'{status}'" for status in WORKFLOW_STATUS.values())}]) s(status)
UNION ALL
SELECT 'runnable', '', count(*) FROM (
    SELECT FROM wfc.workflows WHERE status = 'Runnable'
        AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint LIMIT $1) w
UNION ALL
SELECT 'oldest_runnable_ms', '', greatest(coalesce(
    floor(extract(epoch FROM now()) * 1000)::bigint - (
        SELECT min(greatest(w.next_execution,
            floor(extract(epoch FROM coalesce(w.last_heartbeat_at, w.create_time)) * 1000)::bigint))
        FROM (
            SELECT next_execution, last_heartbeat_at, create_time FROM wfc.workflows
            WHERE status = 'Runnable'
                AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint
            ORDER BY next_execution, id LIMIT 1000) w), 0), 0)
UNION ALL
SELECT 'events', '', count(*) FROM (
    SELECT FROM wfc.events WHERE NOT is_processed LIMIT $1) e
UNION ALL
SELECT 'subscriptions', s.state, count(*) FROM (
    SELECT CASE WHEN external_token IS NOT NULL
            AND {unexpired_or_endless("external_token_expiry")} THEN 'held' ELSE 'open' END AS state
    FROM wfc.event_subscriptions LIMIT $1) s GROUP BY s.state
UNION ALL
SELECT 'commands', c.state, count(*) FROM (
    SELECT CASE WHEN {unexpired("lease_expiry")} THEN 'leased'
            WHEN execute_time <= floor(extract(epoch FROM now()) * 1000)::bigint THEN 'due'
            ELSE 'scheduled' END AS state
    FROM wfc.scheduled_commands LIMIT $1) c GROUP BY c.state
UNION ALL
SELECT 'queue_items', q.state, count(*) FROM (
    SELECT CASE WHEN dead THEN 'dead' WHEN visible_time <= now() THEN 'waiting'
            WHEN lease_id IS NULL THEN 'delayed' ELSE 'leased' END AS state
    FROM wfc.queue_items LIMIT $1) q GROUP BY q.state
"""

# $1 the schema, $2 the tables.
TABLE_SIZES = """
SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), pg_stat_get_dead_tuples(c.oid)
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
WHERE n.nspname = $1 AND c.relkind = 'r'
    AND c.relname IN (SELECT jsonb_array_elements_text($2::jsonb))
"""

_GAUGES: Final = {
    "workflows": metrics.STORE_WORKFLOWS,
    "runnable": metrics.STORE_RUNNABLE,
    "oldest_runnable_ms": metrics.STORE_OLDEST_RUNNABLE,
    "events": metrics.STORE_EVENTS,
    "subscriptions": metrics.STORE_SUBSCRIPTIONS,
    "commands": metrics.STORE_COMMANDS,
    "queue_items": metrics.STORE_QUEUE_ITEMS,
}
_STATES: Final = {
    "subscriptions": ("open", "held"),
    "commands": ("due", "scheduled", "leased"),
    "queue_items": ("waiting", "delayed", "leased", "dead"),
}

Numbers = dict[metrics.Gauge, dict[metrics.Labels, float]]


async def watch_stores(namespaces: Namespaces) -> None:
    """Have the metrics tell what is in the stores, for as long as the server runs."""
    while True:
        numbers: Numbers = {gauge: {} for gauge in _ALL}
        await side_by_side(
            namespaces.used_last(MAX_NAMESPACES), partial(_look_if_possible, numbers)
        )
        # All at once. What was not found this time is not shown: it would be out of date.
        for gauge, values in numbers.items():
            gauge.values = values
        await asyncio.sleep(INTERVAL_SECONDS)


async def _look_if_possible(numbers: Numbers, store: Store) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await _look(store, numbers)
    except (PersistenceError, TimeoutError) as exc:
        # Why the database can't be reached has been logged elsewhere.
        log.debug("statistics of %s: %s", store.namespace, exc)
        metrics.STORE_LOOKS_FAILED.add()


async def _look(store: Store, numbers: Numbers) -> None:
    """Add the numbers of one store; those of the counts or the sizes all or none."""
    name = store.namespace
    version = await migration_history.schema_version(store)
    rows = await store.read(STORE_COUNTS, integer(MAX_COUNTED))
    for kind, states in _STATES.items():
        for state in states:
            numbers[_GAUGES[kind]][name, state] = 0
    for i in range(rows.ntuples):
        kind, state = (read_text(rows.get_value(i, column)) for column in range(2))
        value: float = read_int8(rows.get_value(i, 2))
        if kind == "oldest_runnable_ms":
            value /= 1000
        elif kind == "workflows":
            state = state.lower()
        numbers[_GAUGES[kind]][(name, state) if state else (name,)] = value
    schema = store.schema
    tables = await store.read(
        TABLE_SIZES, text(schema.name), text_list(schema.table_prefix + t for t in TABLES)
    )
    for i in range(tables.ntuples):
        table = read_text(tables.get_value(i, 0)).removeprefix(schema.table_prefix)
        for column, gauge in enumerate(_OF_TABLES, 1):
            numbers[gauge][name, table] = read_int8(tables.get_value(i, column))
    numbers[metrics.STORE_SCHEMA_VERSION][name,] = version.number
    numbers[metrics.STORE_LOOKED][name,] = time.time()


_OF_TABLES: Final = (
    metrics.STORE_TABLE_BYTES, metrics.STORE_INDEX_BYTES, metrics.STORE_DEAD_ROWS,
)  # fmt: skip
_ALL: Final[Iterable[metrics.Gauge]] = (
    *_GAUGES.values(), *_OF_TABLES, metrics.STORE_SCHEMA_VERSION, metrics.STORE_LOOKED,
)  # fmt: skip
