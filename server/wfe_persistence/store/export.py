"""Exports: the records of a namespace, as they were at one moment, in an order that does not depend
on the database.

Each kind is one statement, whose rows are read as fast as the client takes them. Ids are sorted
byte by byte: the index of a key has the order of the database's collation. So the keys are sorted
by themselves, and each row is looked up by its key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from wfe.persistence.v1 import transfer_pb2 as pb
from wfe.persistence.v1.workflow_pb2 import ExecutionPointer
from wfe_persistence.offload import Slices
from wfe_persistence.store import retention
from wfe_persistence.store.columns import Columns
from wfe_persistence.store.pointer import POINTER_SELECTION, read_pointer
from wfe_persistence.store.postgres.pipeline import Command
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.session import Session
from wfe_persistence.store.records import (
    COMMAND,
    DEFINITION_SEQUENCE,
    ERROR,
    EVENT,
    NAME_HOLDER,
    POINTER,
    QUEUE,
    QUEUE_ITEM,
    SUBSCRIPTION,
    WORKFLOW,
    WORKFLOW_STATUS,
)
from wfe_persistence.store.rows import (
    GetValue,
    Param,
    PGresult,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_text,
    text_array,
    timestamp,
)
from wfe_persistence.store.statement_names import statement_name
from wfe_persistence.store.tables import Store

Kind = pb.RecordKind

ORDER: Final = (
    Kind.RECORD_KIND_DEFINITION_SEQUENCE,
    Kind.RECORD_KIND_NAME_HOLDER,
    Kind.RECORD_KIND_QUEUE,
    Kind.RECORD_KIND_WORKFLOW,
    Kind.RECORD_KIND_SUBSCRIPTION,
    Kind.RECORD_KIND_EVENT,
    Kind.RECORD_KIND_ERROR,
    Kind.RECORD_KIND_COMMAND,
    Kind.RECORD_KIND_QUEUE_ITEM,
    Kind.RECORD_KIND_RETENTION_POLICY,
)
"""The kinds in the order in which they come: what hands out work, or deletes something, last."""

OF_WORKFLOWS: Final = (
    Kind.RECORD_KIND_WORKFLOW,
    Kind.RECORD_KIND_SUBSCRIPTION,
    Kind.RECORD_KIND_ERROR,
    Kind.RECORD_KIND_COMMAND,
)
"""The kinds that belong to workflows, and so to a selection of them."""

_TABLES: Final = {
    Kind.RECORD_KIND_WORKFLOW: "workflows",
    Kind.RECORD_KIND_SUBSCRIPTION: "event_subscriptions",
    Kind.RECORD_KIND_EVENT: "events",
    Kind.RECORD_KIND_ERROR: "execution_errors",
    Kind.RECORD_KIND_COMMAND: "scheduled_commands",
    Kind.RECORD_KIND_QUEUE: "queues",
    Kind.RECORD_KIND_QUEUE_ITEM: "queue_items",
    Kind.RECORD_KIND_DEFINITION_SEQUENCE: "definition_sequences",
    Kind.RECORD_KIND_RETENTION_POLICY: "retention_rules",
    Kind.RECORD_KIND_NAME_HOLDER: "name_holders",
}

# A workflow with more bytes than this is several records, each of at most so many unless it is a
# single pointer, or only the header. Where they part must not depend on the server.
_PART_BYTES: Final = 262_144


def _selected(x: str) -> str:
    """The condition that a workflow is selected. $2 to $6, each NULL for any: ids, statuses,
    definitions, and create times."""
    return f"""($2::text[] IS NULL OR {x}.id = ANY ($2))
        AND ($3::text[] IS NULL OR {x}.status = ANY ($3))
        AND ($4::text[] IS NULL OR {x}.definition_id = ANY ($4))
        AND ($5::timestamptz IS NULL OR {x}.create_time >= $5)
        AND ($6::timestamptz IS NULL OR {x}.create_time < $6)"""


def _belongs(workflow_id: str) -> str:
    """The condition that a row belongs to a selected workflow."""
    return f"{workflow_id} IN (SELECT x.id FROM wfc.workflows x WHERE {_selected('x')})"


def _keys(table: str, key: str, condition: str) -> str:
    """The keys of a table in order, without the first $1."""
    return f"""
    SELECT t.{key} AS key FROM wfc.{table} t
    WHERE {condition}
    ORDER BY t.{key} COLLATE "C"
    OFFSET $1
"""


# The large columns of a workflow come with its first pointer only.
def _workflows(condition: str) -> str:
    return f"""
SELECT {POINTER_SELECTION},
    {WORKFLOW.selection("w", large_if="coalesce(p.at, 1) = 1")},
    w.first_revision, w.content_hash
FROM ({_keys("workflows", "id", condition)}) k
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = k.key LIMIT 1) w ON TRUE
LEFT JOIN LATERAL (
    SELECT *, row_number() OVER (ORDER BY p.ordinal, p.id) AS at
    FROM wfc.execution_pointers p WHERE p.workflow_id = k.key
) p ON TRUE
ORDER BY k.key COLLATE "C", p.at
"""


def _looked_up(table: str, columns: Columns[Any], condition: str, more: str = "") -> str:
    """The rows of a table whose key is its first column."""
    key = columns.columns[0].name
    return f"""
SELECT {columns.selection("r")}{more}
FROM ({_keys(table, key, condition)}) k
JOIN LATERAL (SELECT * FROM wfc.{table} r WHERE r.{key} = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C"
"""


# With how many equal ones there are before. Few have the same time.
def _errors(condition: str) -> str:
    same = " AND ".join(f"s.{column.name} = r.{column.name}" for column in ERROR.columns)
    return f"""
SELECT {ERROR.selection("r")},
    (SELECT count(*) FROM wfc.execution_errors s WHERE {same} AND s.id < r.id)
FROM (
    SELECT * FROM wfc.execution_errors r WHERE {condition} ORDER BY r.id OFFSET $1
) r
ORDER BY r.id
"""


def _commands(condition: str) -> str:
    return f"""
SELECT {COMMAND.selection("r")}
FROM wfc.scheduled_commands r
WHERE {condition}
ORDER BY r.command_name COLLATE "C", r.data COLLATE "C"
OFFSET $1
"""


# The highest epoch of any claim, and the highest revision of any deleted workflow. (Sequences are
# read as they are now, so never lower than those in the snapshot.)
FENCES = """
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM wfc.claim_epochs),
    (SELECT last_value FROM wfc.revision_floor)
"""

# $1: the names of tables.
ESTIMATED_ROWS = """
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM unnest($1::text[]) t(name) JOIN pg_class c ON c.oid = to_regclass(t.name)
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Behind a record. In one snapshot, numbers are enough to find it again."""

    step: int = 0
    """The step of the export."""
    done: int = 0
    """How many things have been sent of that step."""
    parts: int = 0
    """How many records of the next one, which is a workflow of several."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export sends: a fence, the kinds, and another fence, each a step."""

    kinds: tuple[pb.RecordKind.ValueType, ...]
    selection: pb.WorkflowSelection | None

    @classmethod
    def of(cls, request: pb.ExportRecordsRequest) -> Plan:
        """What a request asks for."""
        selection = request.workflows if request.HasField("workflows") else None
        kinds = request.kinds or (ORDER if selection is None else OF_WORKFLOWS)
        return cls(tuple(kind for kind in ORDER if kind in kinds), selection)

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.kinds) + 2

    def command(self, store: Store, kind: pb.RecordKind.ValueType, done: int) -> Command:
        """The statement that reads a kind, but for what has been sent of it."""
        name = _TABLES[kind]
        params: list[Param] = [] if name == "retention_rules" else [integer(done)]
        if self.selection is not None and kind in OF_WORKFLOWS:
            name = f"selected_{name}"
            params += _params(self.selection)
        sql = EXPORT_RECORDS[name]
        return Statement.unprepared(store.schema.qualify(sql), statement_name(sql)), params


def _params(selection: pb.WorkflowSelection) -> Iterator[Param]:
    statuses = [WORKFLOW_STATUS[status] for status in selection.statuses]
    for values in (selection.ids, statuses, selection.workflow_definition_ids):
        yield text_array(values) if values else None
    for field in ("create_time_from", "create_time_before"):
        yield timestamp(getattr(selection, field)) if selection.HasField(field) else None


async def estimate(store: Store, session: Session, plan: Plan) -> int:
    """About how many records there will be; 0: unknown."""
    if plan.selection is not None:
        return 0
    names = [store.schema.qualify(f"wfc.{_TABLES[kind]}") for kind in plan.kinds]
    [row] = await session.run([(_bound(store, ESTIMATED_ROWS), (text_array(names),))])
    return read_int8(row.get_value(0, 0))


Found = tuple[pb.Record, Position]
"""A record, and where the export is behind it."""

_PROCESSES: Final = f"r.command_name = 'ProcessWorkflow' AND {_belongs('r.data')}"

EXPORT_RECORDS: Final = {
    "workflows": _workflows("TRUE"),
    "selected_workflows": _workflows(_selected("t")),
    "event_subscriptions": _looked_up(
        "event_subscriptions", SUBSCRIPTION, "TRUE", ", r.content_hash"
    ),
    "selected_event_subscriptions": _looked_up(
        "event_subscriptions", SUBSCRIPTION, _belongs("t.workflow_id"), ", r.content_hash"
    ),
    "events": _looked_up("events", EVENT, "TRUE", ", r.content_hash"),
    "execution_errors": _errors("TRUE"),
    "selected_execution_errors": _errors(_belongs("r.workflow_id")),
    "scheduled_commands": _commands("TRUE"),
    "selected_scheduled_commands": _commands(_PROCESSES),
    "queues": _looked_up("queues", QUEUE, "TRUE"),
    "queue_items": f"""
SELECT {QUEUE_ITEM.selection("r")}, r.dead, r.attempt
FROM wfc.queue_items r
ORDER BY r.n
OFFSET $1
""",
    "definition_sequences": _looked_up("definition_sequences", DEFINITION_SEQUENCE, "TRUE"),
    "name_holders": _looked_up("name_holders", NAME_HOLDER, "TRUE"),
    "retention_rules": retention.GET_RETENTION_POLICY,
}


async def export_records(
    store: Store, session: Session, plan: Plan, after: Position
) -> AsyncIterator[Found]:
    """The records behind a position, each with its own, read in the session's transaction."""
    for step in range(after.step, plan.steps):
        begun = after if step == after.step else Position(step)
        if step in (0, plan.steps - 1):
            if not begun.done:
                yield await _fence(store, session, is_first=step == 0), Position(step, 1)
            continue
        kind = plan.kinds[step - 1]
        command = plan.command(store, kind, begun.done)
        if kind == Kind.RECORD_KIND_RETENTION_POLICY:
            [rows] = await session.run([command])
            if rows.ntuples and not begun.done:
                policy = retention.read_policy(rows).policy
                yield pb.Record(retention_policy=policy), Position(step, 1)
            continue
        slices = Slices()
        async with aclosing(session.stream(command)) as rows_of_kind:
            if kind == Kind.RECORD_KIND_WORKFLOW:
                async for found in _read_workflows(rows_of_kind, begun):
                    yield found
                    await slices.pause()
                continue
            read = _READERS[kind]
            done = begun.done
            async for row in rows_of_kind:
                done += 1
                yield read(row.get_value), Position(step, done)
                await slices.pause()


async def _fence(store: Store, session: Session, *, is_first: bool) -> pb.Record:
    [row] = await session.run([(_bound(store, FENCES), ())])
    epoch, revision = (read_int8(row.get_value(0, column)) for column in range(2))
    return pb.Record(fence=pb.Fence(epoch=epoch) if is_first else pb.Fence(revision=revision))


def _bound(store: Store, sql: str) -> Statement:
    return Statement.unprepared(store.schema.qualify(sql), statement_name(sql))


_read_workflow = WORKFLOW.reader(first=len(POINTER))
_ID: Final = len(POINTER) + WORKFLOW.at("id")
_FIRST_REVISION: Final = len(POINTER) + len(WORKFLOW)
_CONTENT_HASH: Final = _FIRST_REVISION + 1


async def _read_workflows(rows: AsyncIterator[PGresult], begun: Position) -> AsyncIterator[Found]:
    """The records of workflows: as many of each as it takes for none to be large."""
    record = pb.Record()
    pointers: Any = None
    id_ = ""
    done, part, sent = begun.done, 0, begun.parts
    size = 0
    async for row in rows:
        get = row.get_value
        found = read_text(get(0, _ID))
        if found != id_:
            if id_:
                done += 1
                if part >= sent:
                    yield record, Position(begun.step, done)
                sent = 0
            id_, part = found, 0
            record = pb.Record(creation_hash=get(0, _CONTENT_HASH) or b"")
            workflow = record.workflow
            _read_workflow(get, 0, workflow.instance)
            workflow.first_revision = read_int8(get(0, _FIRST_REVISION))
            size = record.ByteSize()
            pointers = workflow.instance.execution_pointers
        if get(0, 0) is None:
            continue  # it has no pointers
        pointer = ExecutionPointer()
        read_pointer(get, 0, pointer)
        more = pointer.ByteSize()
        if size and size + more > _PART_BYTES:
            part += 1
            _continue(record)
            if part > sent:
                yield record, Position(begun.step, done, part)
            record = pb.Record()
            record.execution_pointers.workflow_id = id_
            pointers = record.execution_pointers.execution_pointers
            size = 0
        size += more
        pointers.append(pointer)
    if id_ and part >= sent:
        yield record, Position(begun.step, done + 1)


def _continue(record: pb.Record) -> None:
    kind: Any = getattr(record, record.WhichOneof("record") or "")
    kind.is_continued = True


Reader = Callable[[GetValue], pb.Record]


def _created(columns: Columns[Any], field: str) -> Reader:
    """Of rows with the hash of their creation."""
    read, last = _plain(columns, field), len(columns)

    def record(get: GetValue) -> pb.Record:
        found = read(get)
        found.creation_hash = get(0, last) or b""
        return found

    return record


def _plain(columns: Columns[Any], field: str) -> Reader:
    read = columns.reader()

    def record(get: GetValue) -> pb.Record:
        found = pb.Record()
        message: Any = getattr(found, field)
        message.SetInParent()
        read(get, 0, message)
        return found

    return record


_read_error = ERROR.reader()
_read_queue_item = QUEUE_ITEM.reader()


def _error(get: GetValue) -> pb.Record:
    record = pb.Record()
    _read_error(get, 0, record.error.error)
    record.error.copy = read_int8(get(0, len(ERROR)))
    return record


def _queue_item(get: GetValue) -> pb.Record:
    record = pb.Record()
    item = record.queue_item
    _read_queue_item(get, 0, item.item)
    item.is_dead = read_bool(get(0, len(QUEUE_ITEM)))
    item.attempt = read_int4(get(0, len(QUEUE_ITEM) + 1))
    return record


_READERS: Final[dict[pb.RecordKind.ValueType, Reader]] = {
    Kind.RECORD_KIND_SUBSCRIPTION: _created(SUBSCRIPTION, "subscription"),
    Kind.RECORD_KIND_EVENT: _created(EVENT, "event"),
    Kind.RECORD_KIND_ERROR: _error,
    Kind.RECORD_KIND_COMMAND: _plain(COMMAND, "command"),
    Kind.RECORD_KIND_QUEUE: _plain(QUEUE, "queue"),
    Kind.RECORD_KIND_QUEUE_ITEM: _queue_item,
    Kind.RECORD_KIND_DEFINITION_SEQUENCE: _plain(DEFINITION_SEQUENCE, "definition_sequence"),
    Kind.RECORD_KIND_NAME_HOLDER: _plain(NAME_HOLDER, "name_holder"),
}
