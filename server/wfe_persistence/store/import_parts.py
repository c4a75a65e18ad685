"""The statements of imports: each inserts the records of one kind that are not there, and compares
the rest. (`ON CONFLICT DO NOTHING` alone would take another record for the same.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from wfe_persistence.store.columns import Columns
from wfe_persistence.store.records import (
    DEFINITION_SEQUENCE,
    ERROR,
    POINTER,
    QUEUE_ITEM,
    WORKFLOW,
)


@dataclass(frozen=True, slots=True)
class _More:
    """A column of a record that its message does not have: its name and its type in the document,
    the value that is stored, and whether it belongs to what is compared."""

    name: str
    sql_type: str
    value: str
    compared: bool = False


HASH: Final = _More("content_hash", "text", "decode(g.content_hash, 'hex')")


def _compared(columns: Columns[Any], more: Sequence[_More]) -> str:
    """The condition that what is stored, `s`, would be read as what is given, `g`."""
    kept = [column for column in columns.written if not column.key]
    given = [column.codec.compared(f"({column.value('g')})") for column in kept]
    stored = [column.codec.compared(f"s.{column.name}") for column in kept]
    given += [column.value for column in more if column.compared]
    stored += [f"s.{column.name}" for column in more if column.compared]
    return f"({', '.join(given)}, TRUE) IS NOT DISTINCT FROM ({', '.join(stored)}, TRUE)"


def insert(
    table: str,
    columns: Columns[Any],
    key: tuple[str, ...],
    more: Sequence[_More] = (),
) -> str:
    """The statement that stores records of a kind. $1: their documents, each with its number `n` in
    the request. Returns the number of each that has not been stored, and whether it is the same as
    what is there; NULL: nothing was there when the statement began."""
    record = "".join(f", {column.name} {column.sql_type}" for column in more)
    names = "".join(f", {column.name}" for column in more)
    values = "".join(f", {column.value}" for column in more)
    on = " AND ".join(f"s.{name} = g.{name}" for name in key)
    return f"""
WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int{record},
        {columns.record()})
), created AS (
    INSERT INTO wfc.{table} ({columns.names()}{names})
    SELECT {columns.values("g")}{values}
    FROM given g
    ORDER BY {", ".join(f"g.{name}" for name in key)}
    ON CONFLICT DO NOTHING
    RETURNING {", ".join(key)}
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT {_compared(columns, more)} AS same
    FROM wfc.{table} s WHERE {on} LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE {on})
"""


# Pointers are compared as lists of rows.
def _pointers(select: str, rows: str) -> str:
    return f"ARRAY (SELECT ROW ({select})::text FROM {rows})"


_STORED_POINTERS: Final = ", ".join(
    column.codec.compared(f"p.{column.name}") for column in POINTER.written
)
_GIVEN_POINTERS: Final = ", ".join(
    column.codec.compared(f"({column.value('p')})") for column in POINTER.written
)
_POINTER_RECORD: Final = f"""AS p(ordinal bigint,
        {POINTER.record()})"""


# The revision is higher where workflows had been deleted: a trigger sees to that. $2: whether these
# are all of its pointers, which of a workflow in several records they are not.
IMPORT_WORKFLOWS: Final = f"""
WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, revision bigint,
        first_revision bigint, content_hash text, execution_pointers jsonb,
        {WORKFLOW.record()})
), created AS (
    INSERT INTO wfc.workflows (
        {WORKFLOW.names()}, revision, first_revision, content_hash)
    SELECT {WORKFLOW.values("g")}, g.revision, g.first_revision, decode(g.content_hash, 'hex')
    FROM given g
    ORDER BY g.id
    ON CONFLICT DO NOTHING
    RETURNING id
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT g.id, p.ordinal,
        {POINTER.values("p")}
    FROM created JOIN given g ON g.id = created.id,
        jsonb_to_recordset(g.execution_pointers) {_POINTER_RECORD}
)
SELECT g.at, CASE
    WHEN s.same IS NOT NULL THEN s.same
    WHEN EXISTS (SELECT FROM wfc.workflows o WHERE o.name = g.name AND o.id <> g.id) THEN FALSE
    END
FROM given g
LEFT JOIN LATERAL (
    SELECT s.revision >= g.revision
        AND {_compared(WORKFLOW, ())}
        AND {
    _pointers(
        _GIVEN_POINTERS,
        f"jsonb_to_recordset(g.execution_pointers) {_POINTER_RECORD} ORDER BY p.ordinal",
    )
}
        = {
    _pointers(
        _STORED_POINTERS,
        "(SELECT * FROM wfc.execution_pointers p WHERE p.workflow_id = g.id "
        "ORDER BY p.ordinal, p.id LIMIT CASE WHEN $2::boolean THEN NULL::bigint "
        "ELSE jsonb_array_length(g.execution_pointers) END) p",
    )
} AS same
    FROM wfc.workflows s WHERE s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.id = g.id)
"""

# More pointers of a workflow that this transaction has created. $1: its id, $2: their documents.
IMPORT_POINTERS = f"""
INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
    {POINTER.names()})
SELECT $1, p.ordinal,
    {POINTER.values("p")}
FROM jsonb_to_recordset($2::jsonb) {_POINTER_RECORD}
ON CONFLICT DO NOTHING
RETURNING 1
"""

# Whether a workflow that was there has these pointers, from number $3 on, and $4: no others.
COMPARE_POINTERS = f"""
SELECT {
    _pointers(
        _GIVEN_POINTERS, f"jsonb_to_recordset($2::jsonb) {_POINTER_RECORD} ORDER BY p.ordinal"
    )
}
    = {
    _pointers(
        _STORED_POINTERS,
        "(SELECT * FROM wfc.execution_pointers p WHERE p.workflow_id = $1 "
        "ORDER BY p.ordinal, p.id OFFSET $3 LIMIT CASE WHEN $4::boolean THEN NULL::bigint "
        "ELSE jsonb_array_length($2::jsonb) END) p",
    )
}
"""

SUBSCRIPTION_MORE: Final = (
    HASH,
    _More("external_token_epoch", "bigint", "coalesce(g.external_token_epoch, 0)", compared=True),
)
# Numbers are given in the order of the request, and rows are inserted in that of their keys.
_ITEM_MORE: Final = (
    _More("n", "bigint", "g.n"),
    _More("dead", "boolean", "coalesce(g.dead, FALSE)", compared=True),
    _More("attempt", "int", "coalesce(g.attempt, 0)", compared=True),
)

IMPORT_QUEUE_ITEMS: Final = f"""
WITH given AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, dead boolean, attempt int,
            {QUEUE_ITEM.record()})
        ORDER BY g.at
    ) g
), created AS (
    INSERT INTO wfc.queue_items (n, dead, attempt, {QUEUE_ITEM.names()})
    SELECT g.n, coalesce(g.dead, FALSE), coalesce(g.attempt, 0),
        {QUEUE_ITEM.values("g")}
    FROM given g
    ORDER BY g.queue, g.id
    ON CONFLICT DO NOTHING
    RETURNING n
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT {_compared(QUEUE_ITEM, _ITEM_MORE[1:])} AS same
    FROM wfc.queue_items s WHERE s.queue = g.queue AND s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.n = g.n)
"""

# So that two imports do not both add what is not there yet.
LOCK_ERRORS = """
SELECT pg_advisory_xact_lock(hashtextextended(
    'wfe-persistence import errors', 'wfc.execution_errors'::regclass::oid::bigint))
"""
_SAME_ERROR: Final = " AND ".join(f"s.{column.name} = g.{column.name}" for column in ERROR.columns)
IMPORT_ERRORS = f"""
INSERT INTO wfc.execution_errors ({ERROR.names()})
SELECT {ERROR.names()}
FROM jsonb_to_recordset($1::jsonb) AS g(at int, copy bigint,
    {ERROR.record()})
WHERE g.copy >= (SELECT count(*) FROM wfc.execution_errors s WHERE {_SAME_ERROR})
ORDER BY g.at
RETURNING 1
"""

IMPORT_SEQUENCES = f"""
INSERT INTO wfc.definition_sequences AS s ({DEFINITION_SEQUENCE.names()})
SELECT {DEFINITION_SEQUENCE.values("g")}
FROM jsonb_to_recordset($1::jsonb) AS g(
    {DEFINITION_SEQUENCE.record()})
ORDER BY g.definition_id
ON CONFLICT (definition_id) DO UPDATE SET next_num = excluded.next_num
    WHERE s.next_num < excluded.next_num
RETURNING 1
"""

# Claims take their epochs while they write one of these tables. A sequence can't be locked, and it
# must not be set back below an epoch that is being taken.
EPOCH_IS_LOWER = """
SELECT last_value < $1 OR (last_value = $1 AND NOT is_called) FROM wfc.claim_epochs
"""
LOCK_CLAIMS = """
LOCK wfc.event_subscriptions, wfc.scheduled_commands, wfc.queue_items, wfc.locks
    IN SHARE ROW EXCLUSIVE MODE
"""
RAISE_EPOCH = """
SELECT setval('wfc.claim_epochs', $1::bigint) FROM wfc.claim_epochs WHERE last_value <= $1
"""
RAISE_REVISION = "SELECT wfc.raise_revision_floor($1)"
