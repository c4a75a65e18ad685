"""Messages that are encoded straight from columns are those that are read field by field."""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.support import make
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence.store import records, workflow, workflow_list
from wfe_persistence.store.columns import (
    BOOL,
    INT4,
    INT8,
    JSON,
    JSON_MAP,
    STRINGS,
    TEXT,
    TEXT_ARRAY,
    TIME,
    UINT4,
    Codec,
    Column,
    Columns,
)
from wfe_persistence.store.paging import START, Wanted
from wfe_persistence.store.pointer import AT_ONCE, FEW, add_pointers
from wfe_persistence.store.rows import text
from wfe_persistence.store.tables import Store

Cell = bytes | None

TABLES: Final[dict[str, Columns[Any]]] = {
    name: columns for name, columns in vars(records).items() if isinstance(columns, Columns)
}


def _names() -> SearchStrategy[bytes]:
    return st.sampled_from([*ENUM_NAMES, b"", b"Unheard of"])


def _packed(kind: str, bits: int) -> SearchStrategy[bytes]:
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    numbers = st.integers(least, most) | st.sampled_from((least, -1, 0, 1, 127, 128, most))
    return numbers.map(lambda number: struct.pack(kind, number))


def _times() -> SearchStrategy[bytes]:
    """Any timestamptz: also ±infinity, years that a Timestamp does not have, and 1970."""
    epoch = -946_684_800_000_000
    near = st.integers(-3, 3) | st.sampled_from([2**n for n in range(63)])
    return _packed("!q", 64) | near.map(lambda micros: struct.pack("!q", epoch + micros))


def _words() -> SearchStrategy[str]:
    return st.sampled_from(("", "a", "\u00e9\U0010ffff", "\x01", "x" * 130)) | st.text(
        st.characters(codec="utf-8", exclude_characters="\0"), max_size=3
    )


def _texts() -> SearchStrategy[bytes]:
    lengths = st.sampled_from((0, 1, 127, 128, 1023, 1024, 1025, 16_383, 16_384))
    return _words().map(str.encode) | lengths.map(lambda length: b"x" * length)


def _jsonb(documents: SearchStrategy[str]) -> SearchStrategy[bytes]:
    return documents.map(lambda document: b"\x01" + document.encode())


def _documents() -> SearchStrategy[str]:
    """Of their content only that matters which strings have."""
    some = ("null", "0", "1e1000", "-0.10", '""', '"\\"\\u00e9\u00e9"', "[]", "{}", '{"a": [1]}')
    return st.sampled_from((*some, json.dumps("x" * 2000), "[" * 100 + "]" * 100))


def _lists() -> SearchStrategy[str]:
    """Lists of strings, and whatever else other software has stored in their place."""
    strings = st.lists(_words(), max_size=3).map(json.dumps)
    return (
        strings
        | st.lists(_documents(), max_size=3).map(lambda items: f"[{','.join(items)}]")
        | _documents()
    )


def _maps() -> SearchStrategy[str]:
    """As JSON_MAP.selected makes them."""
    return st.dictionaries(_words(), _documents() | st.just(""), max_size=3).map(json.dumps)


CELLS: Final[dict[int, Callable[[], SearchStrategy[bytes]]]] = {
    id(TEXT): _texts,
    id(INT4): lambda: _packed("!i", 32),
    id(UINT4): lambda: _packed("!i", 32),
    id(INT8): lambda: _packed("!q", 64),
    id(BOOL): lambda: st.sampled_from((b"\x00", b"\x01")),
    id(TIME): _times,
    id(JSON): lambda: _jsonb(_documents()),
    id(STRINGS): lambda: _jsonb(_lists()),
    id(TEXT_ARRAY): lambda: _jsonb(_lists()),
    id(JSON_MAP): lambda: _jsonb(_maps()),
}
ENUM_NAMES: Final = [
    name.encode()
    for constant, names in vars(records).items()
    if constant.isupper() and isinstance(names, dict)
    for name in names.values()
]


def _cells(codec: Codec) -> SearchStrategy[Cell]:
    return st.none() | CELLS.get(id(codec), _names)()


def _rows(columns: Sequence[Column]) -> SearchStrategy[list[tuple[Cell, ...]]]:
    row = st.tuples(*(_cells(column.codec) for column in columns))
    return st.lists(row, min_size=1, max_size=3)


def _get(row: Sequence[Cell]) -> Callable[[int, int], Cell]:
    return lambda _, column: row[column]


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_message_is_the_same_either_way(table: str, data: st.DataObject) -> None:
    columns = TABLES[table]
    rows = data.draw(_rows(columns.columns))
    read, expected = columns.reader(), []
    for row in rows:
        message: Message = columns.message()
        read(_get(row), 0, message)
        expected.append(message)
    encoded = list(columns.encoder()(list(zip(*rows, strict=True))))
    assert [columns.message.FromString(each) for each in encoded] == expected
    # Nothing is there that protobuf itself would leave out or write in another way.
    assert list(map(len, encoded)) == [message.ByteSize() for message in expected]


@settings(max_examples=100, deadline=None)
@given(micros=st.integers(0, 999_999), second=st.integers(-(2**33), 2**33))
@example(micros=2097, second=0)
@example(micros=2098, second=127)
@example(micros=999_999, second=-1)
def test_a_time_is_to_the_microsecond(micros: int, second: int) -> None:
    value = struct.pack("!q", second * 1_000_000 + micros)
    columns = Columns(ExecutionPointer, Column("sleep_until", TIME, nullable=True))
    expected = ExecutionPointer()
    columns.reader()(lambda *_: value, 0, expected)
    [encoded] = columns.encoder()([[value]])
    assert encoded == expected.SerializeToString()


def test_rows_without_values_are_empty_messages() -> None:
    absent: list[Cell] = [None, None]
    encoded = records.POINTER.encoder()([absent] * len(records.POINTER))
    assert list(encoded) == [b"", b""]


def test_pointers_are_added_in_their_order() -> None:
    instance = WorkflowInstance(execution_pointers=[ExecutionPointer(id="first")])
    absent: list[Cell] = [None, None]
    columns: list[list[Cell]] = [[b"second", b"third"]]
    columns += [absent] * (len(records.POINTER) - 1)
    add_pointers(instance, columns)
    assert [pointer.id for pointer in instance.execution_pointers] == ["first", "second", "third"]


FULL: Final = WorkflowView.WORKFLOW_VIEW_FULL
LENGTHS: Final = (0, 1, FEW, FEW + 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE)


# The two ways take turns by the number of pointers, and slices end within a workflow.
@pytest.mark.parametrize("view", [v for v in WorkflowView.values() if v])
async def test_every_view_of_every_length(store: Store, view: WorkflowView.ValueType) -> None:
    stored = {}
    for length in LENGTHS:
        pointers = [
            make.pointer(
                f"p{i}",
                active=i % 3 == 0,
                step_id=i,
                children=[f"child {n}" for n in range(i % 3)],
                scope=["outer", "inner"][: i % 4],
                extension_attributes_json={f"name {n}": f'{{"n": {n}}}' for n in range(i % 2)},
            )
            for i in range(length)
        ]
        id_ = make.new_id("workflow")
        instance = make.instance(id=id_, name=id_, execution_pointers=pointers)
        instance.revision = await workflow.create_new_workflow(store, instance)
        if view != FULL:
            instance.view = view
        if view == WorkflowView.WORKFLOW_VIEW_HEADER:
            del instance.execution_pointers[:]
        stored[instance.id] = instance
    for id_, expected in stored.items():
        assert await workflow.get_workflow_instance(store, id_, view) == expected
        by_name = await workflow.get_workflow_instance_by_name(store, expected.name, view)
        assert by_name == expected
    wanted = Wanted(deque(stored))
    found: list[WorkflowInstance] = []
    while wanted.ids:
        found += await workflow.get_workflow_instances(store, wanted, view, 10**9)
    assert found == list(stored.values())
    page = await workflow_list.list_workflows(
        store, WorkflowFilter(), ListOrder.LIST_ORDER_OLDEST_FIRST, view, START, 100, 10**9
    )
    assert {instance.id: instance for instance in page.items} == stored


async def test_lists_that_other_software_has_stored(store: Store) -> None:
    """Both ways of reading take them, however many pointers there are."""
    for length in (1, AT_ONCE):
        pointers = [make.pointer(f"p{i}") for i in range(length)]
        instance = make.instance(execution_pointers=pointers)
        await workflow.create_new_workflow(store, instance)
        await store.write_once(
            "UPDATE wfc.execution_pointers SET children = '[\"a\", 1, null]', scope = '{\"b\": 1}',"
            " extension_attributes = '[1]', status = 'Odd', retry_count = -1,"
            " sleep_until = 'infinity' WHERE workflow_id = $1",
            text(instance.id),
        )
        [pointer, *others] = (
            await workflow.get_workflow_instance(store, instance.id, FULL)
        ).execution_pointers
        assert list(pointer.children) == ["a", "1", "null"]
        assert not pointer.scope
        assert not pointer.extension_attributes_json
        assert pointer.status == 0
        assert pointer.retry_count == 2**32 - 1
        assert pointer.sleep_until.seconds == 253_402_300_799
        assert all(other.children == pointer.children for other in others)
