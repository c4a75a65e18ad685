"""Execution pointers: their columns, and one workflow's pointers in pages."""

from __future__ import annotations

from contextlib import aclosing
from json import loads

from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, PointerStatus
from wfe_persistence.errors import revision_mismatch, workflow_not_found
from wfe_persistence.store.documents import POINTER_STATUS
from wfe_persistence.store.paging import Cursor, Page
from wfe_persistence.store.rows import (
    GetValue,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_json,
    read_text,
    read_time,
    read_uint,
    text,
)
from wfe_persistence.store.tables import Store

_POINTER_STATUS_OF = {name.encode(): status for status, name in POINTER_STATUS.items()}
_EMPTY_LIST = b"\x01[]"

# The fields of a pointer within a workflow document (see documents.py).
POINTER_RECORD = """(
        ordinal bigint, id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)"""
POINTER_COLUMNS = """workflow_id, ordinal, id, step_id, active, status, sleep_until,
        persistence_data, start_time, end_time, event_name, event_key, event_published, event_data,
        step_name, retry_count, children, context_item, predecessor_id, outcome, scope,
        extension_attributes"""
# A pointer record as a row of the table: absent fields get their defaults, JSON is unwrapped.
POINTER_VALUES = """p.ordinal, p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')"""

# A pointer's row with its JSON as text, because jsonb holds 1.0 and 1.00 for equal.
POINTER_IDENTITY = """ordinal, id, step_id, active, status, sleep_until, persistence_data::text,
                start_time, end_time, event_name, event_key, event_published, event_data::text,
                step_name, retry_count, children, context_item::text, predecessor_id, outcome::text,
                scope, extension_attributes::text"""

# What a write of a pointer that exists already replaces, beside its place in the order.
POINTER_UPDATES = """step_id = excluded.step_id,
        active = excluded.active,
        status = excluded.status,
        sleep_until = excluded.sleep_until,
        persistence_data = excluded.persistence_data,
        start_time = excluded.start_time,
        end_time = excluded.end_time,
        event_name = excluded.event_name,
        event_key = excluded.event_key,
        event_published = excluded.event_published,
        event_data = excluded.event_data,
        step_name = excluded.step_name,
        retry_count = excluded.retry_count,
        children = excluded.children,
        context_item = excluded.context_item,
        predecessor_id = excluded.predecessor_id,
        outcome = excluded.outcome,
        scope = excluded.scope,
        extension_attributes = excluded.extension_attributes"""

# Pointers that can still run: WorkflowView ACTIVE, and the condition of their index.
IS_ACTIVE = """(p.active OR p.status IN
        ('Pending', 'Running', 'Sleeping', 'WaitingForEvent', 'PendingPredecessor'))"""

# The first columns of every row that read_pointer() reads; others come behind.
POINTER_SELECTION = """p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data,
    p.start_time, p.end_time, p.event_name, p.event_key, p.event_published, p.event_data,
    p.step_name, p.retry_count, p.children, p.context_item, p.predecessor_id, p.outcome, p.scope,
    CASE WHEN p.extension_attributes <> '{}' THEN
        (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END"""
BEHIND_POINTER = 20
"""The first column behind POINTER_SELECTION."""

# The revision comes with every row, and with one row of its own where there are no pointers. Read
# row by row: a page ends early where it would not fit into one message.
LIST_EXECUTION_POINTERS = f"""
SELECT {POINTER_SELECTION}, p.ordinal, w.revision
FROM wfc.workflows w LEFT JOIN LATERAL (
    SELECT * FROM wfc.execution_pointers p
    WHERE p.workflow_id = w.id AND (p.ordinal, p.id) > ($2::bigint, $3::text)
    ORDER BY p.ordinal, p.id
    LIMIT $4
) p ON TRUE
WHERE w.id = $1
ORDER BY p.ordinal, p.id
"""

LIST_ACTIVE_EXECUTION_POINTERS = f"""
SELECT {POINTER_SELECTION}, p.ordinal, w.revision
FROM wfc.workflows w LEFT JOIN LATERAL (
    SELECT * FROM wfc.execution_pointers p
    WHERE p.workflow_id = w.id AND {IS_ACTIVE} AND (p.ordinal, p.id) > ($2::bigint, $3::text)
    ORDER BY p.ordinal, p.id
    LIMIT $4
) p ON TRUE
WHERE w.id = $1
ORDER BY p.ordinal, p.id
"""


async def list_execution_pointers(
    store: Store,
    workflow_id: str,
    after: Cursor,
    page_size: int,
    page_bytes: int,
    *,
    active_only: bool,
    expected_revision: int | None,
) -> tuple[Page[ExecutionPointer], int]:
    """One workflow's pointers in their order, and the workflow's revision."""
    sql = LIST_ACTIVE_EXECUTION_POINTERS if active_only else LIST_EXECUTION_POINTERS
    page: list[ExecutionPointer] = []
    size = 0
    cursor = after
    revision: int | None = None
    async with aclosing(
        store.stream(
            sql, text(workflow_id), integer(after[0]), text(after[1]), integer(page_size + 1)
        )
    ) as rows:
        async for row in rows:
            get = row.get_value
            revision = read_int8(get(0, BEHIND_POINTER + 1))
            if expected_revision is not None and revision != expected_revision:
                raise revision_mismatch(revision, expected_revision)
            if get(0, 0) is None:
                break
            pointer = ExecutionPointer()
            read_pointer(get, 0, pointer)
            size += pointer.ByteSize() + 8
            if page and (len(page) == page_size or size > page_bytes):
                return Page(page, cursor), revision
            page.append(pointer)
            cursor = (read_int8(get(0, BEHIND_POINTER)), pointer.id)
    if revision is None:
        raise workflow_not_found("workflow_id")
    return Page(page, None), revision


def read_pointer(get: GetValue, i: int, p: ExecutionPointer) -> None:
    """Put the first columns of row `i`, POINTER_SELECTION, into a pointer."""
    p.id = read_text(get(i, 0))
    p.step_id = read_int4(get(i, 1))
    p.active = read_bool(get(i, 2))
    p.status = _POINTER_STATUS_OF.get(get(i, 3) or b"", PointerStatus.POINTER_STATUS_UNSPECIFIED)
    p.event_published = read_bool(get(i, 10))
    p.retry_count = read_uint(get(i, 13))
    if (value := get(i, 4)) is not None:
        read_time(value, p.sleep_until)
    if (value := get(i, 5)) is not None:
        p.persistence_data_json = read_json(value)
    if (value := get(i, 6)) is not None:
        read_time(value, p.start_time)
    if (value := get(i, 7)) is not None:
        read_time(value, p.end_time)
    if (value := get(i, 8)) is not None:
        p.event_name = value.decode()
    if (value := get(i, 9)) is not None:
        p.event_key = value.decode()
    if (value := get(i, 11)) is not None:
        p.event_data_json = read_json(value)
    if (value := get(i, 12)) is not None:
        p.step_name = value.decode()
    if (value := get(i, 14)) != _EMPTY_LIST:
        p.children.extend(loads(read_json(value)))
    if (value := get(i, 15)) is not None:
        p.context_item_json = read_json(value)
    if (value := get(i, 16)) is not None:
        p.predecessor_id = value.decode()
    if (value := get(i, 17)) is not None:
        p.outcome_json = read_json(value)
    if (value := get(i, 18)) != _EMPTY_LIST:
        p.scope.extend(loads(read_json(value)))
    if (value := get(i, 19)) is not None:
        p.extension_attributes_json.update(loads(read_json(value)))
