"""How much a namespace stores, about: cheap to ask, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wfe_persistence.store.rows import integer, read_int8, text, text_list
from wfe_persistence.store.tables import TABLES, Store

MAX_COUNTED_ROWS: Final = 100_000
"""Up to so many, rows are counted where the estimate says that a namespace has reached its limit:
about 10 ms of PostgreSQL, every few seconds while it is full."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The rows and bytes of a namespace's tables, as PostgreSQL estimates them."""

    rows: int
    """Those that are committed; an estimate is seconds behind."""
    disk_bytes: int
    """On disk, with indexes: they shrink when a vacuum gives space back, not when rows go."""


# The number of live rows is kept from vacuum to vacuum by counting writes, which backends report
# up to 10 s later: what is written so long before a vacuum or ANALYZE counts twice, until the next
# one. After a crash PostgreSQL counts from zero, until the next vacuum: what the last one before it
# found is then added.
USAGE = """
SELECT coalesce(sum(pg_stat_get_live_tuples(c.oid) + CASE WHEN coalesce(
            pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid),
            pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)
        ) IS NULL THEN greatest(c.reltuples, 0) ELSE 0 END), 0)::bigint,
    coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
WHERE n.nspname = $1 AND c.relkind = 'r'
    AND c.relname IN (SELECT jsonb_array_elements_text($2::jsonb))
"""


COUNT_ROWS = "SELECT " + " + ".join(
    f"(SELECT count(*) FROM (SELECT FROM wfc.{table} LIMIT $1::int8) AS rows)" for table in TABLES
)


async def usage(store: Store, max_rows: int | None) -> Usage:
    """How much a namespace stores; nothing if it does not exist. An estimate that reaches
    `max_rows` is made sure of by counting, if there are not too many: a namespace that has little
    must not be refused for long because the estimate is wrong."""
    schema = store.schema
    row = await store.read(
        USAGE, text(schema.name), text_list(schema.table_prefix + table for table in TABLES)
    )
    rows, disk_bytes = read_int8(row.get_value(0, 0)), read_int8(row.get_value(0, 1))
    if max_rows is not None and max_rows <= min(rows, MAX_COUNTED_ROWS):
        row = await store.read(COUNT_ROWS, integer(max_rows))
        rows = read_int8(row.get_value(0, 0))
    return Usage(rows, disk_bytes)
