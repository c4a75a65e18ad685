"""How much a namespace stores, about: cheap to ask, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass

from wfe_persistence.store.rows import read_int8, text, text_list
from wfe_persistence.store.tables import TABLES, Store


@dataclass(frozen=True, slots=True)
class Usage:
    """The rows and bytes of a namespace's tables, as PostgreSQL estimates them."""

    rows: int
    """Those that are committed; seconds behind."""
    disk_bytes: int
    """On disk, with indexes: they shrink when a vacuum gives space back, not when rows go."""


# The number of live rows is kept from vacuum to vacuum by counting writes. After a crash PostgreSQL
# counts from zero, until the next vacuum: what the last one before it found is then added.
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


async def usage(store: Store) -> Usage:
    """How much a namespace stores; nothing if it does not exist."""
    schema = store.schema
    row = await store.read(
        USAGE, text(schema.name), text_list(schema.table_prefix + table for table in TABLES)
    )
    return Usage(read_int8(row.get_value(0, 0)), read_int8(row.get_value(0, 1)))
