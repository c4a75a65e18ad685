"""Workflows and their execution pointers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, field_error, workflow_not_found
from wfe_persistence.store.columns import sql_list
from wfe_persistence.store.create_parts import NOTHING, ONE, Besides, Documents
from wfe_persistence.store.documents import array, queue_items_document, workflow_document
from wfe_persistence.store.effect_parts import OF_LOCKS, locked_locks
from wfe_persistence.store.lease import lease_lost
from wfe_persistence.store.lock import lock_documents
from wfe_persistence.store.oversize import reduce
from wfe_persistence.store.paging import (
    LEAST_NUMBER,
    NUMBER,
    Cursor,
    Page,
    Wanted,
    behind,
    page_of_ids,
)
from wfe_persistence.store.pointer import (
    AT_ONCE,
    FEW,
    IS_ACTIVE,
    POINTER_SELECTION,
    add_pointers,
    read_pointer,
)
from wfe_persistence.store.queue_parts import ENQUEUE_CREATED
from wfe_persistence.store.records import POINTER, WORKFLOW
from wfe_persistence.store.rows import (
    Found,
    GetValue,
    Param,
    PGresult,
    Rows,
    integer,
    read_int8,
    read_record,
    text,
    text_array,
    text_list,
)
from wfe_persistence.store.tables import Store

NAME_KEY: Final = "workflows_name_key"
"""The unique constraint on a workflow's name."""


def name_taken(field: str) -> PersistenceError:
    """The error of a name that another workflow has; `field`: the request's field."""
    return field_error(field, ErrorReason.ERROR_REASON_NAME_TAKEN, "another workflow has this name")


def new_name_taken() -> PersistenceError:
    """The same of a workflow to create."""
    return name_taken("instance.name")


def workflow_exists() -> PersistenceError:
    """The error of the id of a workflow to create that is in use with different content."""
    return field_error(
        "instance.id",
        ErrorReason.ERROR_REASON_WORKFLOW_ALREADY_EXISTS,
        "a workflow with this id and different content exists",
    )


# The content given at the creation is compared, by its hash, so that a repeated create is
# recognized even after the workflow has changed. A trigger sets the first revision, above those of
# deleted workflows. If one was deleted in the meantime, another trigger raises it at the end of
# this statement: then it is not reported as created, and the next run returns what is stored.
def inserting_workflows(documents: Documents, besides: Besides = NOTHING) -> str:
    """What a statement begins with that creates workflows: the parts `given` and `created`, which
    has those that are new."""
    return f"""
WITH {besides.first}given AS MATERIALIZED (
    SELECT {documents.number}w.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM {documents.table},
        jsonb_to_record(d.document) AS w(
        {WORKFLOW.record()}, execution_pointers jsonb)
), created AS (
    INSERT INTO wfc.workflows (
        {WORKFLOW.names()}, content_hash)
    SELECT {WORKFLOW.values("g")},
        g.content_hash
    FROM given g
    WHERE {besides.condition}{documents.order}
    ON CONFLICT DO NOTHING
    RETURNING id, first_revision
), pointers AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT created.id, p.ordinal,
        {POINTER.values("p")}
    FROM created JOIN given ON given.id = created.id,
        jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        {POINTER.record()})
){besides.then}"""


def _create(besides: Besides = NOTHING) -> str:
    return f"""{inserting_workflows(ONE, besides)}
SELECT EXISTS (SELECT FROM created
        WHERE first_revision > pg_sequence_last_value('wfc.revision_floor')),
    (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w JOIN given g ON w.id = g.id),
    EXISTS (SELECT FROM wfc.workflows w JOIN given g ON w.name = g.name AND w.id <> g.id),
    coalesce((SELECT first_revision FROM created),
        (SELECT w.first_revision FROM wfc.workflows w JOIN given g ON w.id = g.id)){besides.column}
"""


_FIRST_REVISION: Final = 3
_LOST_LOCK: Final = 4

CREATE_NEW_WORKFLOW = _create()
CREATE_NEW_WORKFLOW_ENQUEUE = _create(ENQUEUE_CREATED)
# $3: the locks. If one is lost, nothing is created.
CREATE_NEW_WORKFLOW_LOCKED = _create(
    Besides(
        first=f"""{ENQUEUE_CREATED.first}{locked_locks(after="locked_items", of="$3::jsonb")}, """,
        condition=f"{OF_LOCKS['lost_lock']} IS NULL",
        then=ENQUEUE_CREATED.then,
        column=f""",
    {OF_LOCKS["lost_lock"]}""",
    )
)


async def create_new_workflow(
    store: Store,
    instance: WorkflowInstance,
    enqueue: Sequence[QueueItem] = (),
    held_lock_tokens: Sequence[str] = (),
) -> int:
    """Insert a workflow, which must have an id and a name, and enqueue items with it; returns its
    revision at creation. Raises LEASE_LOST if a lock is not held.

    Repeating the call changes nothing, and returns the same.
    """
    locks = array(lock_documents(held_lock_tokens, "held_lock_tokens"))

    def params() -> tuple[Param, ...]:
        document = workflow_document(instance)
        if held_lock_tokens:
            return document, queue_items_document(enqueue), locks
        return (document, queue_items_document(enqueue)) if enqueue else (document,)

    def check_locks(row: Found) -> None:
        if held_lock_tokens and (lost := row.get_value(0, _LOST_LOCK)) is not None:
            at = read_int8(lost)
            raise lease_lost([held_lock_tokens[at]], field=f"held_lock_tokens[{at}]")

    enqueuing = CREATE_NEW_WORKFLOW_ENQUEUE if enqueue else CREATE_NEW_WORKFLOW
    row = await store.create(
        CREATE_NEW_WORKFLOW_LOCKED if held_lock_tokens else enqueuing,
        *await offload.run(params),
        exists=workflow_exists,
        taken=new_name_taken,
        check=check_locks,
    )
    return read_int8(row.get_value(0, _FIRST_REVISION))


# The header's large columns are returned with a workflow's first pointer only.
INSTANCE_COLUMNS = f"""{POINTER_SELECTION},
    {WORKFLOW.selection("w", large_if="row_number() OVER pointers = 1")}"""
_read_columns = WORKFLOW.reader()
_read_header_columns = WORKFLOW.reader(first=len(POINTER))
_CREATE_TIME: Final = len(POINTER) + WORKFLOW.at("create_time")

# The condition that joins a view's pointers to a workflow. A join ON FALSE reads nothing.
POINTERS_OF_VIEW: Final[dict[WorkflowView.ValueType, str]] = {
    WorkflowView.WORKFLOW_VIEW_FULL: "p.workflow_id = w.id",
    WorkflowView.WORKFLOW_VIEW_ACTIVE: f"p.workflow_id = w.id AND {IS_ACTIVE}",
    WorkflowView.WORKFLOW_VIEW_HEADER: "FALSE",
}


# The header comes as a row of its own behind the pointers, as a record: to send its columns with
# each pointer costs PostgreSQL a third of what it takes for a long workflow.
_HEADER_ROW: Final = f"""
UNION ALL
SELECT {sql_list(["NULL"] * (len(POINTER) + 1))},
    ROW(
        {WORKFLOW.selection("w")})"""
_RECORD: Final = len(POINTER) + 1


def _get_instance(*, condition: str, pointers: str | None) -> str:
    """A workflow with the pointers that meet a condition, None: without."""
    if pointers is None:
        return f"""
SELECT {WORKFLOW.selection("w")}
FROM wfc.workflows w
WHERE {condition}
"""
    return f"""
SELECT {POINTER_SELECTION}, p.ordinal, NULL::record
FROM wfc.execution_pointers p
WHERE {pointers}{_HEADER_ROW}
FROM wfc.workflows w
WHERE {condition}
ORDER BY ordinal NULLS LAST
"""


_OF_VIEW: Final[dict[WorkflowView.ValueType, str | None]] = {
    WorkflowView.WORKFLOW_VIEW_FULL: "p.workflow_id = {id}",
    WorkflowView.WORKFLOW_VIEW_ACTIVE: f"p.workflow_id = {{id}} AND {IS_ACTIVE}",
    WorkflowView.WORKFLOW_VIEW_HEADER: None,
}


def _get_instance_of_views(*, condition: str, id_: str) -> dict[WorkflowView.ValueType, str]:
    return {
        view: _get_instance(condition=condition, pointers=pointers and pointers.format(id=id_))
        for view, pointers in _OF_VIEW.items()
    }


# Which workflow it is, is hidden from the planner where pointers are looked up: otherwise it plans
# each load of a workflow that is shorter than others anew, which takes three times as long as to
# read it.
GET_WORKFLOW_INSTANCE = _get_instance_of_views(condition="w.id = $1", id_="(SELECT $1::text)")


async def get_workflow_instance(
    store: Store, id_: str, view: WorkflowView.ValueType
) -> WorkflowInstance:
    """One workflow, by its id."""
    rows = await store.read(GET_WORKFLOW_INSTANCE[view], text(id_))
    return await _read_instance(rows, view, "id")


GET_WORKFLOW_INSTANCE_BY_NAME = _get_instance_of_views(
    condition="w.name = $1", id_="(SELECT id FROM wfc.workflows WHERE name = $1)"
)


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
SELECT {INSTANCE_COLUMNS},
    asked.n
FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS asked (id, n)
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = asked.id LIMIT 1) w ON TRUE
LEFT JOIN wfc.execution_pointers p ON {pointers}
WINDOW pointers AS (PARTITION BY asked.n ORDER BY p.ordinal)
ORDER BY asked.n, p.ordinal
"""


GET_WORKFLOW_INSTANCES = {
    view: _get_instances(pointers=pointers) for view, pointers in POINTERS_OF_VIEW.items()
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
    result = store.stream(GET_WORKFLOW_INSTANCES[view], text_list(ids))
    full = False
    async with aclosing(read_instances(result, view)) as instances:
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


async def read_instances(
    rows: AsyncGenerator[PGresult, None], view: WorkflowView.ValueType
) -> AsyncGenerator[tuple[WorkflowInstance, Cursor], None]:
    """Workflows from rows, and where each stands in the order of create_time. The last column is
    the number of the workflow that a row belongs to."""
    instance: WorkflowInstance | None = None
    at: Cursor = (0, "")
    current: bytes | None = None
    pointers: list[list[bytes | None]] = []
    columns = range(len(POINTER))
    slices = offload.Slices()

    def add_to(instance: WorkflowInstance) -> None:
        if pointers:
            add_pointers(instance, list(zip(*pointers, strict=True)))
            pointers.clear()

    async with aclosing(rows):
        async for row in rows:
            await slices.pause()
            get = row.get_value
            number = get(0, row.nfields - 1)
            if instance is None or number != current:
                if instance is not None:
                    add_to(instance)
                    yield instance, at
                instance, current = _header(_read_header_columns, get, view), number
                at = read_int8(get(0, _CREATE_TIME)), instance.id
            if get(0, 0) is not None:
                pointers.append([get(0, column) for column in columns])
                if len(pointers) == AT_ONCE:
                    add_to(instance)
    if instance is not None:
        add_to(instance)
        yield instance, at


def _get_runnable(*, condition: str = "", after: int) -> str:
    """`after`: the number of the parameter that the page's parameters begin with."""
    number, id_, limit = f"${after}::bigint", f"${after + 1}::text", f"${after + 2}"
    return f"""
SELECT id, next_execution FROM wfc.workflows
WHERE status = 'Runnable'
    AND next_execution <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
    AND {behind("(next_execution, id)", number, id_, least=LEAST_NUMBER)}{condition}
ORDER BY next_execution, id
LIMIT {limit}
"""


GET_RUNNABLE_INSTANCES = _get_runnable(after=2)

# No index has both the definition and next_execution: each step of every workflow would have to
# update it. This is planned with its parameters each time (`once`), so the planner can choose: a
# definition that few workflows have is read by its own index, others in the order of what is due.
# The worst is one that many workflows have, but few of those that are due: 100,000 due workflows of
# others were passed over in 41 ms.
GET_RUNNABLE_INSTANCES_OF = _get_runnable(
    condition="\n    AND definition_id = ANY ($2::text[])",
    after=3,
)


async def get_runnable_instances(
    store: Store,
    as_at_ms: int | None,
    definition_ids: Sequence[str],
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
    *,
    with_keys: bool = False,
) -> Page[str]:
    """The ids of workflows that are due, soonest first. `as_at_ms` None: the database's clock;
    `definition_ids` empty: of any definition."""
    due = None if as_at_ms is None else integer(as_at_ms)
    if definition_ids:
        sql, filters, once = GET_RUNNABLE_INSTANCES_OF, [due, text_array(definition_ids)], True
    else:
        sql, filters, once = GET_RUNNABLE_INSTANCES, [due], False
    return await page_of_ids(
        store, sql, filters, NUMBER, after, page_size, page_bytes, once=once, with_keys=with_keys
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


async def _read_instance(
    rows: PGresult, view: WorkflowView.ValueType, key: str
) -> WorkflowInstance:
    if rows.ntuples == 0:
        raise workflow_not_found(key)
    get, last = rows.get_value, rows.ntuples - 1
    if view == WorkflowView.WORKFLOW_VIEW_HEADER:
        return _header(_read_columns, get, view)
    record = get(last, _RECORD)
    if record is None:
        raise workflow_not_found(key)
    header = read_record(record)
    instance = _header(_read_columns, lambda _, column: header[column], view)
    if last <= FEW:
        for row in range(last):
            read_pointer(get, row, instance.execution_pointers.add())
    else:
        await offload.in_slices(_add_pointers(instance, rows, last))
    return instance


def _add_pointers(instance: WorkflowInstance, result: PGresult, end: int) -> Iterator[None]:
    """Append the pointers of the rows before `end`, some at a time."""
    rows = Rows(result)
    for first in range(0, end, AT_ONCE):
        columns = rows.columns(first, min(first + AT_ONCE, end))
        add_pointers(instance, columns[: len(POINTER)])
        yield


def _header(
    read: Callable[[GetValue, int, WorkflowInstance], None],
    get: GetValue,
    view: WorkflowView.ValueType,
) -> WorkflowInstance:
    """A workflow without pointers."""
    instance = WorkflowInstance()
    read(get, 0, instance)
    if view != WorkflowView.WORKFLOW_VIEW_FULL:
        instance.view = view
    return instance
