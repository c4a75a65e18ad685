"""Workflows and their execution pointers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from json import loads

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.db import Store
from wfe_persistence.store.documents import (
    POINTER_STATUS,
    WORKFLOW_STATUS,
    array,
    subscription_document,
    workflow_document,
)
from wfe_persistence.store.paging import Cursor, Page, cut
from wfe_persistence.store.rows import (
    GetValue,
    Param,
    PGresult,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_json,
    read_text,
    read_time,
    read_uint,
    text,
    text_list,
)
from wfe_persistence.store.subscription import (
    SUBSCRIPTION_COLUMNS,
    SUBSCRIPTION_RECORD,
    SUBSCRIPTION_VALUES,
    already_subscribed,
)

_WORKFLOW_STATUS_OF = {name.encode(): status for status, name in WORKFLOW_STATUS.items()}
_POINTER_STATUS_OF = {name.encode(): status for status, name in POINTER_STATUS.items()}
_EMPTY_LIST = b"\x01[]"
_RACES_BEFORE_GIVING_UP = 5

# The columns of a workflow document (see documents.py), and of a pointer within it.
_WORKFLOW_RECORD = """(
        id text, name text, root_workflow_id text, definition_id text, version int,
        description text, reference text, status text, data jsonb, next_execution bigint,
        create_time timestamptz, complete_time timestamptz, execution_pointers jsonb)"""
_POINTER_RECORD = """(
        ordinal bigint, id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)"""
_POINTER_COLUMNS = """workflow_id, ordinal, id, step_id, active, status, sleep_until,
        persistence_data, start_time, end_time, event_name, event_key, event_published, event_data,
        step_name, retry_count, children, context_item, predecessor_id, outcome, scope,
        extension_attributes"""
# A pointer record as a row of the table: absent fields get their defaults, JSON is unwrapped.
_POINTER_VALUES = """p.ordinal, p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')"""

# A pointer's row with its JSON as text, because jsonb holds 1.0 and 1.00 for equal.
_POINTER_IDENTITY = """ordinal, id, step_id, active, status, sleep_until, persistence_data::text,
                start_time, end_time, event_name, event_key, event_published, event_data::text,
                step_name, retry_count, children, context_item::text, predecessor_id, outcome::text,
                scope, extension_attributes::text"""

# What exists already is compared by the hash of what was given at its creation, so that a repeated
# create is recognized even after the workflow has moved on.
CREATE_NEW_WORKFLOW = f"""
WITH given AS MATERIALIZED (
    SELECT w.*, sha256(convert_to($1::jsonb::text, 'UTF8')) AS content_hash
    FROM jsonb_to_record($1::jsonb) AS w{_WORKFLOW_RECORD}
), created AS (
    INSERT INTO wfc.workflows (id, name, root_workflow_id, definition_id, version, description,
        reference, status, data, next_execution, create_time, complete_time, content_hash)
    SELECT id, name, root_workflow_id, definition_id, version, description, reference, status,
        data -> 0, next_execution, create_time, complete_time, content_hash
    FROM given
    ON CONFLICT DO NOTHING
    RETURNING id
), pointers AS (
    INSERT INTO wfc.execution_pointers ({_POINTER_COLUMNS})
    SELECT created.id, {_POINTER_VALUES}
    FROM created, given, jsonb_to_recordset(given.execution_pointers) AS p{_POINTER_RECORD}
)
SELECT EXISTS (SELECT FROM created),
    (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w JOIN given g ON w.id = g.id),
    EXISTS (SELECT FROM wfc.workflows w JOIN given g ON w.name = g.name AND w.id <> g.id)
"""


async def create_new_workflow(store: Store, instance: WorkflowInstance) -> None:
    """Insert a workflow; its id and name must be set. The same again changes nothing."""
    document = workflow_document(instance)
    for _ in range(_RACES_BEFORE_GIVING_UP):
        row = await store.write(CREATE_NEW_WORKFLOW, document)
        if read_bool(row.get_value(0, 0)):
            return
        same = row.get_value(0, 1)
        if same is not None:
            if read_bool(same):
                return
            raise PersistenceError(
                ErrorReason.ERROR_REASON_WORKFLOW_ALREADY_EXISTS,
                "a workflow with this id and other content exists",
                metadata={"field": "instance.id"},
            )
        if read_bool(row.get_value(0, 2)):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAME_TAKEN,
                "another workflow has this name",
                metadata={"field": "instance.name"},
            )
        # Something was in the way that the statement's snapshot does not show: another create of
        # the same id or name has committed in between. The next snapshot shows it.
    raise _collided()


# One statement reads one snapshot, so between reading the stored pointers and locking the row
# somebody else may have persisted, and a mix of both states is what must never be stored. So the
# row is updated only if it is still the one of the snapshot. If it is not, nothing is written, and
# the statement is run again behind LOCK_WORKFLOW, where nobody can come in between.
PERSIST_WORKFLOW = f"""
WITH stored AS MATERIALIZED (
    SELECT id, revision FROM wfc.workflows WHERE id = $1
), given AS MATERIALIZED (
    SELECT w.* FROM jsonb_to_record($2::jsonb) AS w{_WORKFLOW_RECORD}
), subscriptions AS MATERIALIZED (
    SELECT s.*, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($4::jsonb) AS documents(document),
        jsonb_to_record(document) AS s{SUBSCRIPTION_RECORD}
), existing AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT s.content_hash FROM subscriptions s WHERE s.id = e.id) AS same
    FROM wfc.event_subscriptions e WHERE e.id = ANY (ARRAY (SELECT id FROM subscriptions))
), updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = g.root_workflow_id,
        definition_id = g.definition_id,
        version = g.version,
        description = g.description,
        reference = g.reference,
        status = g.status,
        data = g.data -> 0,
        next_execution = g.next_execution,
        create_time = g.create_time,
        complete_time = g.complete_time,
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision
        AND ($3::bigint IS NULL OR w.revision = $3)
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
    RETURNING w.id, w.revision
), pointers ({_POINTER_COLUMNS}) AS MATERIALIZED (
    SELECT updated.id, {_POINTER_VALUES}
    FROM updated, given, jsonb_to_recordset(given.execution_pointers) AS p{_POINTER_RECORD}
), removed AS (
    DELETE FROM wfc.execution_pointers p USING updated
    WHERE p.workflow_id = updated.id AND NOT EXISTS (SELECT FROM pointers g WHERE g.id = p.id)
), written AS (
    INSERT INTO wfc.execution_pointers ({_POINTER_COLUMNS})
    SELECT * FROM pointers WHERE id IN (
        SELECT id FROM (
            SELECT {_POINTER_IDENTITY} FROM pointers
            EXCEPT
            SELECT {_POINTER_IDENTITY} FROM wfc.execution_pointers WHERE workflow_id = $1
        ) AS changed
    )
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        ordinal = excluded.ordinal,
        step_id = excluded.step_id,
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
        extension_attributes = excluded.extension_attributes
), subscribed AS (
    INSERT INTO wfc.event_subscriptions ({SUBSCRIPTION_COLUMNS}, content_hash)
    SELECT {SUBSCRIPTION_VALUES}, s.content_hash
    FROM updated, subscriptions s
    WHERE NOT EXISTS (SELECT FROM existing e WHERE e.id = s.id)
)
SELECT (SELECT revision FROM updated),
    (SELECT revision FROM stored),
    (SELECT min(id) FROM existing WHERE NOT same)
"""

LOCK_WORKFLOW = "SELECT FROM wfc.workflows WHERE id = $1 FOR UPDATE"


async def persist_workflow(
    store: Store,
    instance: WorkflowInstance,
    expected_revision: int | None,
    subscriptions: Sequence[EventSubscription] = (),
) -> int:
    """Replace a workflow's stored state, create subscriptions, all or nothing; the new revision.

    The ids of the subscriptions must be set. `expected_revision` None: the last writer wins.
    """
    id_ = text(instance.id)
    params: Sequence[Param] = (
        id_,
        workflow_document(instance),
        None if expected_revision is None else integer(expected_revision),
        array(map(subscription_document, subscriptions)),
    )
    row = await store.write(PERSIST_WORKFLOW, *params)
    if row.get_value(0, 0) is None and row.get_value(0, 1) is not None:
        _, row = await store.write_all((LOCK_WORKFLOW, (id_,)), (PERSIST_WORKFLOW, params))
    revision, stored, clash = (row.get_value(0, column) for column in range(3))
    if revision is not None:
        return read_int8(revision)
    if stored is None:
        raise _not_found("id")
    if expected_revision is not None and read_int8(stored) != expected_revision:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_REVISION_MISMATCH,
            f"the stored revision is {read_int8(stored)}, not {expected_revision}",
            metadata={"revision": str(read_int8(stored))},
        )
    if clash is not None:
        clashing = read_text(clash)
        at = next(i for i, s in enumerate(subscriptions) if s.id == clashing)
        raise already_subscribed(f"subscriptions[{at}].id")
    raise _collided()


# The header's long columns are sent with a workflow's first pointer only.
_INSTANCE_COLUMNS = """w.id, w.name, w.root_workflow_id, w.definition_id, w.version, w.status,
    w.next_execution, w.create_time, w.complete_time, w.revision,
    CASE WHEN row_number() OVER pointers = 1 THEN w.data END,
    CASE WHEN row_number() OVER pointers = 1 THEN w.description END,
    CASE WHEN row_number() OVER pointers = 1 THEN w.reference END,
    p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
    p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
    p.retry_count, p.children, p.context_item, p.predecessor_id, p.outcome, p.scope,
    CASE WHEN p.extension_attributes <> '{}' THEN
        (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END"""
_FIRST_POINTER_COLUMN = 13

GET_WORKFLOW_INSTANCE = f"""
SELECT {_INSTANCE_COLUMNS}
FROM wfc.workflows w LEFT JOIN wfc.execution_pointers p ON p.workflow_id = w.id
WHERE w.id = $1
WINDOW pointers AS (ORDER BY p.ordinal)
ORDER BY p.ordinal
"""


async def get_workflow_instance(store: Store, id_: str) -> WorkflowInstance:
    """One workflow, by its id."""
    rows = await store.read(GET_WORKFLOW_INSTANCE, text(id_))
    return _read_instance(rows, "id")


GET_WORKFLOW_INSTANCE_BY_NAME = f"""
SELECT {_INSTANCE_COLUMNS}
FROM wfc.workflows w LEFT JOIN wfc.execution_pointers p ON p.workflow_id = w.id
WHERE w.name = $1
WINDOW pointers AS (ORDER BY p.ordinal)
ORDER BY p.ordinal
"""


async def get_workflow_instance_by_name(store: Store, name: str) -> WorkflowInstance:
    """One workflow, by its name."""
    rows = await store.read(GET_WORKFLOW_INSTANCE_BY_NAME, text(name))
    return _read_instance(rows, "name")


# LATERAL ... LIMIT 1 makes it one look-up an id: the planner can't know how few are asked for.
GET_WORKFLOW_INSTANCES = f"""
SELECT {_INSTANCE_COLUMNS}, asked.n
FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS asked (id, n)
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = asked.id LIMIT 1) w ON TRUE
LEFT JOIN wfc.execution_pointers p ON p.workflow_id = w.id
WINDOW pointers AS (PARTITION BY asked.n ORDER BY p.ordinal)
ORDER BY asked.n, p.ordinal
"""


async def get_workflow_instances(
    store: Store, ids: Sequence[str]
) -> AsyncGenerator[WorkflowInstance, None]:
    """Many workflows, in the order asked; absent ones are left out."""
    instance: WorkflowInstance | None = None
    current: bytes | None = None
    async with aclosing(store.stream(GET_WORKFLOW_INSTANCES, text_list(ids))) as rows:
        async for row in rows:
            asked = row.get_value(0, row.nfields - 1)
            if asked != current:
                if instance is not None:
                    yield instance
                instance, current = _read_header(row.get_value), asked
            assert instance is not None
            if row.get_value(0, _FIRST_POINTER_COLUMN) is not None:
                _read_pointer(row.get_value, 0, instance.execution_pointers.add())
    if instance is not None:
        yield instance


GET_RUNNABLE_INSTANCES = """
SELECT id, next_execution FROM wfc.workflows
WHERE status = 'Runnable'
    AND next_execution <= coalesce($1::bigint, floor(extract(epoch FROM now()) * 1000)::bigint)
    AND (next_execution, id) > ($2::bigint, $3::text)
ORDER BY next_execution, id
LIMIT $4
"""


async def get_runnable_instances(
    store: Store, as_at_ms: int | None, after: Cursor, page_size: int
) -> Page[str]:
    """The ids of workflows that are due, soonest first. `as_at_ms` None: the database's clock."""
    rows = await store.read(
        GET_RUNNABLE_INSTANCES,
        None if as_at_ms is None else integer(as_at_ms),
        integer(after[0]),
        text(after[1]),
        integer(page_size + 1),
    )
    ids = [read_text(rows.get_value(i, 0)) for i in range(rows.ntuples)]
    cursors = [(read_int8(rows.get_value(i, 1)), id_) for i, id_ in enumerate(ids)]
    return cut(ids, cursors, page_size)


NEXT_DEFINITION_SEQUENCE = """
INSERT INTO wfc.definition_sequences AS s (definition_id, next_num) VALUES ($1, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = s.next_num + 1
RETURNING next_num
"""


async def next_definition_sequence(store: Store, definition_id: str) -> int:
    """The next number of a definition, from 1 on."""
    row = await store.write(NEXT_DEFINITION_SEQUENCE, text(definition_id))
    return read_int8(row.get_value(0, 0))


def _read_instance(rows: PGresult, asked_by: str) -> WorkflowInstance:
    if rows.ntuples == 0:
        raise _not_found(asked_by)
    get = rows.get_value
    instance = _read_header(get)
    if get(0, _FIRST_POINTER_COLUMN) is not None:
        add = instance.execution_pointers.add
        for i in range(rows.ntuples):
            _read_pointer(get, i, add())
    return instance


def _read_header(get: GetValue) -> WorkflowInstance:
    w = WorkflowInstance(
        id=read_text(get(0, 0)),
        name=read_text(get(0, 1)),
        workflow_definition_id=read_text(get(0, 3)),
        version=read_uint(get(0, 4)),
        status=_WORKFLOW_STATUS_OF.get(
            get(0, 5) or b"", WorkflowStatus.WORKFLOW_STATUS_UNSPECIFIED
        ),
        revision=read_int8(get(0, 9)),
        data_json=read_json(get(0, 10)),
    )
    read_time(get(0, 7), w.create_time)
    if (value := get(0, 2)) is not None:
        w.root_workflow_id = value.decode()
    if (value := get(0, 6)) is not None:
        w.next_execution = read_int8(value)
    if (value := get(0, 8)) is not None:
        read_time(value, w.complete_time)
    if (value := get(0, 11)) is not None:
        w.description = value.decode()
    if (value := get(0, 12)) is not None:
        w.reference = value.decode()
    return w


def _read_pointer(get: GetValue, i: int, p: ExecutionPointer) -> None:
    p.id = read_text(get(i, 13))
    p.step_id = read_int4(get(i, 14))
    p.active = read_bool(get(i, 15))
    p.status = _POINTER_STATUS_OF.get(get(i, 16) or b"", PointerStatus.POINTER_STATUS_UNSPECIFIED)
    p.event_published = read_bool(get(i, 23))
    p.retry_count = read_uint(get(i, 26))
    if (value := get(i, 17)) is not None:
        read_time(value, p.sleep_until)
    if (value := get(i, 18)) is not None:
        p.persistence_data_json = read_json(value)
    if (value := get(i, 19)) is not None:
        read_time(value, p.start_time)
    if (value := get(i, 20)) is not None:
        read_time(value, p.end_time)
    if (value := get(i, 21)) is not None:
        p.event_name = value.decode()
    if (value := get(i, 22)) is not None:
        p.event_key = value.decode()
    if (value := get(i, 24)) is not None:
        p.event_data_json = read_json(value)
    if (value := get(i, 25)) is not None:
        p.step_name = value.decode()
    if (value := get(i, 27)) != _EMPTY_LIST:
        p.children.extend(loads(read_json(value)))
    if (value := get(i, 28)) is not None:
        p.context_item_json = read_json(value)
    if (value := get(i, 29)) is not None:
        p.predecessor_id = value.decode()
    if (value := get(i, 30)) is not None:
        p.outcome_json = read_json(value)
    if (value := get(i, 31)) != _EMPTY_LIST:
        p.scope.extend(loads(read_json(value)))
    if (value := get(i, 32)) is not None:
        p.extension_attributes_json.update(loads(read_json(value)))


def _not_found(asked_by: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND, f"no workflow has this {asked_by}"
    )


def _collided() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the workflow kept colliding with other writes",
        retry_after=0.1,
    )
