"""Workflows and their execution pointers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from itertools import islice, pairwise
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowCount,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, field_error, workflow_not_found
from wfe_persistence.store.columns import INT8, Column, Columns, enum
from wfe_persistence.store.documents import workflow_document
from wfe_persistence.store.oversize import reduce
from wfe_persistence.store.paging import (
    DIRECTIONS,
    LEAST_NUMBER,
    NUMBER,
    TIME,
    Cursor,
    Page,
    Wanted,
    behind,
    fill_page,
    page_of_ids,
)
from wfe_persistence.store.pointer import IS_ACTIVE, POINTER_SELECTION, read_pointer
from wfe_persistence.store.records import POINTER, WORKFLOW, WORKFLOW_STATUS
from wfe_persistence.store.rows import (
    GetValue,
    Param,
    PGresult,
    epoch_ms,
    integer,
    read_int8,
    text,
    text_list,
    timestamp,
)
from wfe_persistence.store.tables import Store

NAME_KEY: Final = "workflows_name_key"
"""The unique constraint on a workflow's name."""


def name_taken(field: str) -> PersistenceError:
    """The error of a name that another workflow has; `field`: the request's field."""
    return field_error(field, ErrorReason.ERROR_REASON_NAME_TAKEN, "another workflow has this name")


# The content given at the creation is compared, by its hash, so that a repeated create is
# recognized even after the workflow has changed. A trigger sets the first revision, above those of
# deleted workflows. If one was deleted in the meantime, another trigger raises it at the end of
# this statement: then it is not reported as created, and the next run returns what is stored.
CREATE_NEW_WORKFLOW = f"""
WITH given AS MATERIALIZED (
    SELECT w.*, sha256(convert_to($1::jsonb::text, 'UTF8')) AS content_hash
    FROM jsonb_to_record($1::jsonb) AS w(
        {WORKFLOW.record()}, execution_pointers jsonb)
), created AS (
    INSERT INTO wfc.workflows (
        {WORKFLOW.names()}, content_hash)
    SELECT {WORKFLOW.values("g")},
        g.content_hash
    FROM given g
    ON CONFLICT DO NOTHING
    RETURNING id, first_revision
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT created.id, p.ordinal,
        {POINTER.values("p")}
    FROM created, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        {POINTER.record()})
)
SELECT EXISTS (SELECT FROM created
        WHERE first_revision > pg_sequence_last_value('wfc.revision_floor')),
    (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w JOIN given g ON w.id = g.id),
    EXISTS (SELECT FROM wfc.workflows w JOIN given g ON w.name = g.name AND w.id <> g.id),
    coalesce((SELECT first_revision FROM created),
        (SELECT w.first_revision FROM wfc.workflows w JOIN given g ON w.id = g.id))
"""
_FIRST_REVISION: Final = 3


async def create_new_workflow(store: Store, instance: WorkflowInstance) -> int:
    """Insert a workflow, which must have an id and a name; returns its revision at creation.

    Repeating the call changes nothing, and returns the same.
    """
    row = await store.create(
        CREATE_NEW_WORKFLOW,
        await offload.run(workflow_document, instance),
        exists=field_error(
            "instance.id",
            ErrorReason.ERROR_REASON_WORKFLOW_ALREADY_EXISTS,
            "a workflow with this id and different content exists",
        ),
        taken=name_taken("instance.name"),
    )
    return read_int8(row.get_value(0, _FIRST_REVISION))


# The header's large columns are returned with a workflow's first pointer only.
_INSTANCE_COLUMNS = f"""{POINTER_SELECTION},
    {WORKFLOW.selection("w", large_if="row_number() OVER pointers = 1")}"""
_read_header_columns = WORKFLOW.reader(first=len(POINTER))
_CREATE_TIME: Final = len(POINTER) + WORKFLOW.at("create_time")

# The condition that joins a view's pointers to a workflow. A join ON FALSE reads nothing.
_POINTERS_OF_VIEW: Final[dict[WorkflowView.ValueType, str]] = {
    WorkflowView.WORKFLOW_VIEW_FULL: "p.workflow_id = w.id",
    WorkflowView.WORKFLOW_VIEW_ACTIVE: f"p.workflow_id = w.id AND {IS_ACTIVE}",
    WorkflowView.WORKFLOW_VIEW_HEADER: "FALSE",
}


def _get_instance(*, condition: str, pointers: str) -> str:
    """A workflow with the pointers of a view: one row for each pointer, or one without any."""
    return f"""
SELECT {_INSTANCE_COLUMNS}
FROM wfc.workflows w LEFT JOIN wfc.execution_pointers p ON {pointers}
WHERE {condition}
WINDOW pointers AS (ORDER BY p.ordinal)
ORDER BY p.ordinal
"""


GET_WORKFLOW_INSTANCE = {
    view: _get_instance(condition="w.id = $1", pointers=pointers)
    for view, pointers in _POINTERS_OF_VIEW.items()
}


async def get_workflow_instance(
    store: Store, id_: str, view: WorkflowView.ValueType
) -> WorkflowInstance:
    """One workflow, by its id."""
    rows = await store.read(GET_WORKFLOW_INSTANCE[view], text(id_))
    return await _read_instance(rows, view, "id")


GET_WORKFLOW_INSTANCE_BY_NAME = {
    view: _get_instance(condition="w.name = $1", pointers=pointers)
    for view, pointers in _POINTERS_OF_VIEW.items()
}


async def get_workflow_instance_by_name(
    store: Store, name: str, view: WorkflowView.ValueType
) -> WorkflowInstance:
    """One workflow, by its name."""
    rows = await store.read(GET_WORKFLOW_INSTANCE_BY_NAME[view], text(name))
    return await _read_instance(rows, view, "name")


# A page of a stream ends with the workflow that makes it so large.
_PAGE_BYTES: Final = 1_000_000
_PAGE_ROWS: Final = 2_000


def _get_instances(*, pointers: str) -> str:
    """Many workflows, numbered in the order of the request.

    LATERAL with LIMIT 1 makes the planner look up each id in the index, whatever number it expects.
    """
    return f"""
SELECT {_INSTANCE_COLUMNS},
    asked.n
FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS asked (id, n)
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = asked.id LIMIT 1) w ON TRUE
LEFT JOIN wfc.execution_pointers p ON {pointers}
WINDOW pointers AS (PARTITION BY asked.n ORDER BY p.ordinal)
ORDER BY asked.n, p.ordinal
"""


GET_WORKFLOW_INSTANCES = {
    view: _get_instances(pointers=pointers) for view, pointers in _POINTERS_OF_VIEW.items()
}


async def get_workflow_instances(
    store: Store, wanted: Wanted, view: WorkflowView.ValueType, max_bytes: int
) -> list[WorkflowInstance]:
    """The next page of many workflows, in the order of their ids, which are taken from `wanted`;
    unknown ids are skipped. A workflow is never divided, so a page may consist of a large one; from
    one of more than `max_bytes` so much is left out that it fits.

    Between two pages a stream holds no connection, however slowly its client reads.
    """
    ids = list(islice(wanted.ids, wanted.at_once))
    page: list[WorkflowInstance] = []
    size = rows = 0
    result = store.stream(GET_WORKFLOW_INSTANCES[view], text_list(ids), paged=True)
    full = False
    async with aclosing(_instances(result, view)) as instances:
        async for instance, _ in instances:
            reduce(instance, max_bytes)
            page.append(instance)
            size += instance.ByteSize()
            rows += 1 + len(instance.execution_pointers)
            full = size >= _PAGE_BYTES or rows >= _PAGE_ROWS
            if full:
                break
    wanted.read(
        ids.index(page[-1].id) + 1 if full else len(ids),
        page_is_full=full,
        page_is_small=size <= _PAGE_BYTES // 2 and rows <= _PAGE_ROWS // 2,
    )
    return page


async def _instances(
    rows: AsyncGenerator[PGresult, None], view: WorkflowView.ValueType
) -> AsyncGenerator[tuple[WorkflowInstance, Cursor], None]:
    """Workflows from rows, and where each stands in the order of create_time. The last column is
    the number of the workflow that a row belongs to."""
    instance: WorkflowInstance | None = None
    at: Cursor = (0, "")
    current: bytes | None = None
    slices = offload.Slices()
    async with aclosing(rows):
        async for row in rows:
            await slices.pause()
            number = row.get_value(0, row.nfields - 1)
            if instance is None or number != current:
                if instance is not None:
                    yield instance, at
                instance, current = _read_header(row.get_value, view), number
                at = read_int8(row.get_value(0, _CREATE_TIME)), instance.id
            if row.get_value(0, 0) is not None:
                read_pointer(row.get_value, 0, instance.execution_pointers.add())
    if instance is not None:
        yield instance, at


GET_RUNNABLE_INSTANCES = f"""
SELECT id, next_execution FROM wfc.workflows
WHERE status = 'Runnable'
    AND next_execution <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
    AND {behind("(next_execution, id)", "$2::bigint", "$3::text", least=LEAST_NUMBER)}
ORDER BY next_execution, id
LIMIT $4
"""


async def get_runnable_instances(
    store: Store, as_at_ms: int | None, after: Cursor | None, page_size: int, page_bytes: int
) -> Page[str]:
    """The ids of workflows that are due, soonest first. `as_at_ms` None: the database's clock."""
    due = None if as_at_ms is None else integer(as_at_ms)
    return await page_of_ids(
        store, GET_RUNNABLE_INSTANCES, [due], NUMBER, after, page_size, page_bytes
    )


NEXT_DEFINITION_SEQUENCE = """
INSERT INTO wfc.definition_sequences AS s (definition_id, next_num) VALUES ($1, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = s.next_num + 1
RETURNING next_num
"""


async def next_definition_sequence(store: Store, definition_id: str) -> int:
    """The next number of a definition, from 1 on."""
    row = await store.write(NEXT_DEFINITION_SEQUENCE, text(definition_id))
    return read_int8(row.get_value(0, 0))


# An absent criterion is NULL, and its condition is removed when the statement is planned. It is
# planned with its parameters each time (`once`): which index is best depends on the criteria.
# = ANY (ARRAY (...)) makes the planner start from the few workflows with such a subscription or
# error, and look them up by their ids.
_FILTER = """($1::text[] IS NULL OR w.status = ANY ($1))
            AND ($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($7::timestamptz IS NULL OR w.create_time >= $7)
            AND ($8::timestamptz IS NULL OR w.create_time < $8)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)
            AND ($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))
            AND ($13::text IS NULL OR w.id = ANY (ARRAY (
                SELECT DISTINCT s.workflow_id FROM wfc.event_subscriptions s
                WHERE s.event_name = $13 AND ($14::text IS NULL OR s.event_key = $14))))
            AND ($15::timestamptz IS NULL OR w.id = ANY (ARRAY (
                SELECT DISTINCT e.workflow_id FROM wfc.execution_errors e
                WHERE e.error_time >= $15)))"""


def _filter_params(f: WorkflowFilter) -> list[Param]:
    prefix = f.name_prefix.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return [
        status_array(f.statuses) if f.statuses else None,
        text(f.workflow_definition_id) if f.workflow_definition_id else None,
        integer(f.version) if f.HasField("version") else None,
        text(f.reference) if f.HasField("reference") else None,
        text(f"{prefix}%") if prefix else None,
        text(f.root_workflow_id) if f.root_workflow_id else None,
        *(
            timestamp(getattr(f, field)) if f.HasField(field) else None
            for field in (
                "create_time_from",
                "create_time_before",
                "complete_time_from",
                "complete_time_before",
                "written_before",
            )
        ),
        integer(epoch_ms(f.due_before)) if f.HasField("due_before") else None,
        text(f.waiting_event_name) if f.waiting_event_name else None,
        text(f.waiting_event_key) if f.HasField("waiting_event_key") else None,
        timestamp(f.error_time_from) if f.HasField("error_time_from") else None,
    ]


def status_array(statuses: Iterable[WorkflowStatus.ValueType]) -> bytes:
    """Statuses as a text[] parameter."""
    return f"{{{','.join(WORKFLOW_STATUS[status] for status in dict.fromkeys(statuses))}}}".encode()


_STATUSES: Final = sorted(f"'{name}'" for name in WORKFLOW_STATUS.values())
# Other software may have stored statuses that this server does not know. They are found between
# those that it knows, in the same index, as one look into each gap.
_OTHER_STATUS: Final = " OR ".join(
    (
        f"w.status < {_STATUSES[0]}",
        *(f"w.status > {a} AND w.status < {b}" for a, b in pairwise(_STATUSES)),
        f"w.status > {_STATUSES[-1]}",
    )
)


def _list_workflows(*, after: str, direction: str, pointers: str) -> str:
    """A page of workflows by create_time, numbered in their order.

    It is merged from the first workflows of each status, so that one index by status is enough.
    """

    def first(status: str) -> str:
        return f"""
        SELECT * FROM wfc.workflows w
        WHERE {status} AND {_FILTER}
            AND ($17::text IS NULL OR (w.create_time, w.id) {after} ($16::timestamptz, $17))
        ORDER BY w.create_time {direction}, w.id {direction}
        LIMIT $18"""

    return f"""
WITH page AS MATERIALIZED (
    SELECT * FROM (
        SELECT w.* FROM unnest(
            coalesce($1::text[], ARRAY[{", ".join(_STATUSES)}])
        ) AS of (status), LATERAL ({first("w.status = of.status")}
        ) w
        UNION ALL
        ({first(f"$1 IS NULL AND ({_OTHER_STATUS})")})
    ) first
    ORDER BY first.create_time {direction}, first.id {direction}
    LIMIT $18
), numbered AS (
    SELECT page.*, row_number() OVER (ORDER BY create_time {direction}, id {direction}) AS n
    FROM page
)
SELECT {_INSTANCE_COLUMNS},
    w.n
FROM numbered w LEFT JOIN wfc.execution_pointers p ON {pointers}
WINDOW pointers AS (PARTITION BY w.n ORDER BY p.ordinal)
ORDER BY w.n, p.ordinal
"""


LIST_WORKFLOWS = {
    (order, view): _list_workflows(
        after=direction.after, direction=direction.order, pointers=pointers
    )
    for order, direction in DIRECTIONS.items()
    for view, pointers in _POINTERS_OF_VIEW.items()
}


async def list_workflows(
    store: Store,
    filter_: WorkflowFilter,
    order: ListOrder.ValueType,
    view: WorkflowView.ValueType,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[WorkflowInstance]:
    """Workflows by create_time. One that is too large for a page is returned without pointers."""
    rows = store.stream_once(
        LIST_WORKFLOWS[order, view],
        *_filter_params(filter_),
        *TIME.params(after),
        integer(page_size + 1),
    )
    return await fill_page(
        _instances(rows, view),
        lambda found: found[0],
        lambda found, _: found[1],
        page_size,
        page_bytes,
    )


_read_count = Columns(
    WorkflowCount, Column("status", enum(WORKFLOW_STATUS)), Column("count", INT8)
).reader()

COUNT_WORKFLOWS = f"""
SELECT w.status, count(*) FROM wfc.workflows w WHERE {_FILTER} GROUP BY w.status
"""


async def count_workflows(store: Store, filter_: WorkflowFilter) -> list[WorkflowCount]:
    """How many workflows have each status; UNSPECIFIED: any that this server does not know."""
    rows = await store.read_once(COUNT_WORKFLOWS, *_filter_params(filter_))
    counts: dict[WorkflowStatus.ValueType, WorkflowCount] = {}
    for row in range(rows.ntuples):
        count = WorkflowCount()
        _read_count(rows.get_value, row, count)
        if (same := counts.setdefault(count.status, count)) is not count:
            same.count += count.count
    return [counts[status] for status in sorted(counts)]


async def _read_instance(
    rows: PGresult, view: WorkflowView.ValueType, key: str
) -> WorkflowInstance:
    if rows.ntuples == 0:
        raise workflow_not_found(key)
    get = rows.get_value
    instance = _read_header(get, view)
    if get(0, 0) is not None:
        add = instance.execution_pointers.add
        await offload.in_slices(read_pointer(get, i, add()) for i in range(rows.ntuples))
    return instance


def _read_header(get: GetValue, view: WorkflowView.ValueType) -> WorkflowInstance:
    instance = WorkflowInstance()
    _read_header_columns(get, 0, instance)
    if view != WorkflowView.WORKFLOW_VIEW_FULL:
        instance.view = view
    return instance
