"""How much space a namespace takes: cheap to ask but for the count of what retention lets go."""

from __future__ import annotations

from typing import Final

from wfe.persistence.v1 import store_pb2 as pb
from wfe_persistence.store import retention
from wfe_persistence.store.rows import read_int8, read_text, text, text_list
from wfe_persistence.store.tables import TABLES, Store

# $1 the schema, $2 the tables. A row takes its columns, 24 bytes before them and 4 in the list of
# its page. (Widths are of what is in the row: of what is out of line, only the reference.)
GET_STORAGE_REPORT = """
SELECT c.relname,
    pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid),
    pg_table_size(c.oid), pg_indexes_size(c.oid),
    CASE WHEN w.bytes IS NOT NULL THEN greatest(
        pg_relation_size(c.oid) - pg_stat_get_live_tuples(c.oid) * (28 + w.bytes), 0) END
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid
CROSS JOIN LATERAL (
    SELECT sum(s.avg_width * (1 - s.null_frac))::bigint AS bytes FROM pg_stats s
    WHERE s.schemaname = n.nspname AND s.tablename = c.relname
) w
WHERE n.nspname = $1 AND c.relkind = 'r'
    AND c.relname IN (SELECT jsonb_array_elements_text($2::jsonb))
ORDER BY pg_total_relation_size(c.oid) DESC, c.relname
"""


async def get_storage_report(store: Store, max_rows: int) -> pb.GetStorageReportResponse:
    """The space that the tables take, and what the retention policy would free of it."""
    schema = store.schema
    rows = await store.read(
        GET_STORAGE_REPORT,
        text(schema.name),
        text_list(schema.table_prefix + table for table in TABLES),
    )
    report = pb.GetStorageReportResponse()
    bytes_per_row = {}
    for i in range(rows.ntuples):
        live, dead, data, indexes = (read_int8(rows.get_value(i, n)) for n in range(1, 5))
        table = read_text(rows.get_value(i, 0)).removeprefix(schema.table_prefix)
        found = report.tables.add(
            name=table,
            estimated_rows=live,
            dead_rows=dead,
            table_bytes=data,
            index_bytes=indexes,
        )
        if (bloat := rows.get_value(i, 5)) is not None:
            found.bloat_bytes = read_int8(bloat)
        bytes_per_row[table] = (data + indexes) / max(live + dead, 1)
    report.freed.CopyFrom(await retention.count_expired(store, max_rows))
    report.freed_bytes = int(
        sum(getattr(report.freed, field) * bytes_per_row[table] for field, table in _TABLE.items())
    )
    return report


_TABLE: Final = {
    "workflows": "workflows",
    "execution_pointers": "execution_pointers",
    "subscriptions": "event_subscriptions",
    "events": "events",
    "errors": "execution_errors",
    "commands": "scheduled_commands",
}
