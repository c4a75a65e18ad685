"""The indexes of the original crate that ours replace, dropped again.

The migrations drop them, but a host of `wfe-postgres` 1.11 creates what is missing of them when it
starts on a store whose schema does not record the original's own migrations: one that we have made,
or that was made by 1.10. Nothing uses them then, and every write pays for them: a workflow of 5
steps writes 21.5 kB of WAL instead of 16.1. So they are dropped wherever a store is looked after.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Final

import psycopg

from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.schema import Schema

log = logging.getLogger(__name__)

ORIGINAL_INDEXES: Final = {
    "idx_workflows_next_execution": ("workflows", "next_execution"),
    "idx_workflows_status": ("workflows", "status"),
    "idx_events_name_key": ("events", "event_name, event_key"),
    "idx_events_is_processed": ("events", "is_processed"),
    "idx_events_event_time": ("events", "event_time"),
    "idx_subscriptions_name_key": ("event_subscriptions", "event_name, event_key"),
    "idx_subscriptions_workflow": ("event_subscriptions", "workflow_id"),
    "idx_scheduled_commands_execute_time": ("scheduled_commands", "execute_time"),
}
"""By name: the table and the columns."""

MAX_SECONDS: Final = 3.0
"""How long dropping them may take in all. It holds up nobody, but it waits for the transactions
that use the table; the next time may be a better one."""

# Exactly those, as the original creates them, if we may drop them: an index with other columns or
# options, one that is clustered on, or that somebody has moved or described, is a user's own.
FIND_ORIGINAL_INDEXES = """
SELECT i.relname
FROM jsonb_each(%s::jsonb) AS d (name, described)
JOIN pg_class i ON i.relname = d.name
JOIN pg_namespace n ON n.oid = i.relnamespace
JOIN pg_index x ON x.indexrelid = i.oid
WHERE n.nspname = %s
    AND pg_get_indexdef(i.oid) = format('CREATE INDEX %%I ON %%I.%%I USING btree (%%s)',
        i.relname, n.nspname, d.described ->> 0, d.described ->> 1)
    AND pg_has_role(i.relowner, 'USAGE')
    AND NOT x.indisclustered AND NOT x.indisreplident AND i.reltablespace = 0
    AND obj_description(i.oid, 'pg_class') IS NULL
ORDER BY i.relname
"""


async def drop(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Drop those that are there, on a connection that is in no transaction.

    It is for the better only, so it never fails: what can't be dropped now stays.
    """
    prefix = schema.table_prefix
    described = {
        prefix + name: (prefix + table, columns)
        for name, (table, columns) in ORIGINAL_INDEXES.items()
    }
    try:
        async with asyncio.timeout(MAX_SECONDS):
            cursor = await connection.execute(
                FIND_ORIGINAL_INDEXES, [json.dumps(described), schema.name]
            )
            for (name,) in await cursor.fetchall():
                await connection.execute(
                    f'DROP INDEX CONCURRENTLY IF EXISTS "{schema.name}"."{name}"'.encode()
                )
                log.info(
                    "schema %s: dropped %s, which a host of wfe-postgres had created and nothing "
                    "uses",
                    schema.name, name,
                )  # fmt: skip
    except TimeoutError:
        log.info(
            "schema %s: an index of wfe-postgres that nothing uses is not dropped yet: other "
            "transactions use its table",
            schema.name,
        )
    except psycopg.Error as exc:
        log.warning(
            "schema %s: an index of wfe-postgres that nothing uses is not dropped: %s",
            schema.name, why(exc),
        )  # fmt: skip
