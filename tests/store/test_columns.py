"""The declared columns are those of the tables, and none can be mistaken for another."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_persistence.store.columns import Columns
from wfe_persistence.store.records import (
    COMMAND,
    ERROR,
    EVENT,
    LIFECYCLE_EVENT,
    LOCK,
    POINTER,
    QUEUE_ITEM,
    SUBSCRIPTION,
    WORKFLOW,
    WORKFLOW_BEFORE,
)
from wfe_persistence.store.rows import text
from wfe_persistence.store.tables import Store

# By table; and its columns that no message holds.
DECLARED: dict[str, tuple[Columns[Any], set[str]]] = {
    "workflows": (WORKFLOW, {"content_hash", "first_revision", "last_heartbeat_at"}),
    "execution_pointers": (POINTER, {"workflow_id", "ordinal"}),
    "events": (EVENT, {"content_hash"}),
    "event_subscriptions": (SUBSCRIPTION, {"content_hash"}),
    "execution_errors": (ERROR, {"id"}),
    "lifecycle_events": (LIFECYCLE_EVENT, {"xid", "n", "publish_time"}),
    "workflow_changes": (WORKFLOW_BEFORE, {"xid", "n", "publish_time"}),
    "locks": (LOCK, {"n", "token", "request_id"}),
    "scheduled_commands": (
        COMMAND,
        {"id", "revision", "lease_id", "lease_worker_id", "lease_expiry", "lease_epoch"},
    ),
    "queue_items": (
        QUEUE_ITEM,
        {
            "n",
            "dead",
            "attempt",
            "again_time",
            "lease_id",
            "lease_worker_id",
            "lease_epoch",
        },
    ),
}
# Fields of messages that are not columns of the message's own table.
NOT_COLUMNS = {"WorkflowInstance": {"execution_pointers", "view"}}

every_table = pytest.mark.parametrize("table", DECLARED)


def filled(columns: Columns[Any]) -> Any:
    """A message of which each field that is written has a value that no other field has. (Of two
    booleans one is false.)"""
    message = columns.message()
    for n, column in enumerate(columns.written, 1):
        field = message.DESCRIPTOR.fields_by_name[column.field_name]
        set_field(message, field, n)
    return message


def set_field(message: Message, field: FieldDescriptor, n: int) -> None:
    value: Any
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[f"key {n}"] = f'{{"n": {n}}}'
    elif field.is_repeated:
        getattr(message, field.name).extend([f"first {n}", f"second {n}"])
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(Timestamp(seconds=1_700_000_000 + n, nanos=n * 1000))
    else:
        if field.type == field.TYPE_STRING:
            value = f'{{"n": {n}}}' if field.name.endswith("_json") else f"text {n}"
        elif field.type == field.TYPE_BOOL:
            value = not any(
                getattr(message, other.name)
                for other in message.DESCRIPTOR.fields
                if other.type == field.TYPE_BOOL
            )
        elif field.type == field.TYPE_ENUM:
            value = 2
        else:
            value = 100 + n
        setattr(message, field.name, value)


async def stored(store: Store, table: str) -> Any:
    """A filled message, inserted as the statements of the store do it."""
    columns, _ = DECLARED[table]
    message = filled(columns)
    place = {"workflow_id": "'w'"} if table == "execution_pointers" else {}
    if place:
        await store.write(
            "INSERT INTO wfc.workflows (id, name, definition_id, version, status, create_time)"
            " VALUES ('w', 'w', 'd', 1, 'Runnable', now())"
        )
    names = ", ".join([*place, columns.names()])
    values = ", ".join([*place.values(), columns.values("r")])
    await store.write(
        f"INSERT INTO wfc.{table} ({names}) SELECT {values}"
        f" FROM jsonb_to_record($1::jsonb) AS r({columns.record()})",
        text(f"{{{','.join(columns.members(message))}}}"),
    )
    return message


async def read(store: Store, table: str, selection: str) -> Any:
    """The one row of a table, read by the declared columns. What the store itself gives a value is
    left out."""
    columns, _ = DECLARED[table]
    rows = await store.read_once(f"SELECT {selection} FROM wfc.{table} t")
    assert rows.ntuples == 1
    message = columns.message()
    columns.reader()(rows.get_value, 0, message)
    for column in columns.columns:
        if not column.written:
            message.ClearField(column.field_name)
    return message


@every_table
async def test_every_field_reads_back(store: Store, table: str) -> None:
    columns, _ = DECLARED[table]
    message = await stored(store, table)
    assert await read(store, table, columns.selection("t")) == message


def swaps(columns: Columns[Any]) -> Iterator[tuple[str, str, Columns[Any]]]:
    """The same columns with two of them swapped, for every two."""
    for a, b in itertools.combinations(range(len(columns)), 2):
        order = list(columns.columns)
        order[a], order[b] = order[b], order[a]
        yield order[a].name, order[b].name, Columns(columns.message, *order)


@every_table
async def test_columns_that_are_swapped_are_noticed(store: Store, table: str) -> None:
    """The values of filled() are so distinct that test_every_field_reads_back fails if any two
    columns of a selection change places."""
    columns, _ = DECLARED[table]
    message = await stored(store, table)
    for a, b, swapped in swaps(columns):
        try:
            got = await read(store, table, swapped.selection("t"))
        except (ValueError, TypeError, AssertionError, struct.error):
            continue
        assert got != message, f"{a} and {b} were swapped, and it was not noticed"


@every_table
async def test_every_column_is_declared_with_its_type(store: Store, table: str) -> None:
    columns, others = DECLARED[table]
    rows = await store.read_once(
        "SELECT attname, format_type(atttypid, NULL), attnotnull FROM pg_attribute"
        f" WHERE attrelid = 'wfc.{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    types, not_null = {}, set()
    for i in range(rows.ntuples):
        name, type_, required = (rows.get_value(i, column) for column in range(3))
        assert name
        assert type_
        types[name.decode()] = type_.decode()
        if required == b"\x01":
            not_null.add(name.decode())
    long_names = {"int": "integer", "timestamptz": "timestamp with time zone"}
    declared = {
        column.name: long_names.get(column.codec.sql_type, column.codec.sql_type)
        for column in columns.columns
    }
    assert declared == {name: type_ for name, type_ in types.items() if name not in others}
    assert others <= set(types)
    assert not not_null & {column.name for column in columns.columns if column.nullable}


@every_table
def test_every_field_is_a_column(table: str) -> None:
    columns, _ = DECLARED[table]
    if columns is WORKFLOW_BEFORE:
        return  # what a filter asks for, and who it was; not all of a workflow
    descriptor = columns.message.DESCRIPTOR
    fields = {field.name for field in descriptor.fields} - NOT_COLUMNS.get(descriptor.name, set())
    assert fields == {column.field_name for column in columns.columns}


def document(columns: Columns[Any], message: Message) -> Any:
    return json.loads(f"{{{','.join(columns.members(message))}}}")


def test_documents_leave_out_what_is_absent_or_has_a_default() -> None:
    pointer = ExecutionPointer(
        id="p", status=PointerStatus.POINTER_STATUS_PENDING, event_name="", retry_count=0
    )
    assert document(POINTER, pointer) == {
        "id": "p", "step_id": 0, "status": "Pending", "event_name": "",
    }  # fmt: skip


def test_a_patch_tells_absent_fields() -> None:
    header = WorkflowInstance(status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE)
    members = {column.name: WORKFLOW.member(column, header) for column in WORKFLOW.written}
    assert members["description"] == '"description":null'
    assert members["version"] == '"version":0'
    assert members["status"] == '"status":"Complete"'
