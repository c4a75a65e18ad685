"""Rows that other software has stored: whatever PostgreSQL takes, every read and purge takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest

from tests.support import make
from tests.support.api import Api, connect, pages
from tests.support.expect import invalid
from tests.support.server import ServerProcess
from wfe.persistence.v1.command_pb2 import CommandName
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import PointerStatus, WorkflowStatus, WorkflowView
from wfe_persistence.store.rows import pg_micros_param, read_int8
from wfe_persistence.store.tables import Store

FULL: Final = WorkflowView.WORKFLOW_VIEW_FULL
HEADER: Final = WorkflowView.WORKFLOW_VIEW_HEADER

# In their order. A Timestamp can express those from the year 1 to the year 9999.
TIMES: Final = (
    "-infinity",
    "4714-11-24 00:00:00+00 BC",
    "4001-02-29 23:59:59.999999+00 BC",
    "0001-12-31 23:59:59.999999+00 BC",
    "0001-01-01 00:00:00+00",
    "1969-12-31 23:59:59.999999+00",
    "2026-01-01 12:00:00.123456+00",
    "9999-12-31 23:59:59.999998+00",
    "10000-01-01 00:00:00+00",
    "12000-02-29 00:00:00.000001+00",
    "294276-12-31 23:59:59.999999+00",
    "infinity",
)
EXPRESSIBLE: Final = TIMES[:8]
EACH: Final = 7
PAGE: Final = 3  # so that pages end at, before and behind rows of the same time


class Foreign:
    """A server, and somebody else on its database."""

    def __init__(self, api: Api, sql: psycopg.AsyncConnection[Any]) -> None:
        self.api = api
        self.sql = sql

    async def run(self, statement: str, *params: object) -> list[Any]:
        """Run a statement past the server; the first column of its rows."""
        cursor = await self.sql.execute(statement.encode(), params)
        return [row[0] for row in await cursor.fetchall()] if cursor.description else []

    async def workflows(self, times: Sequence[str] = TIMES, **values: str) -> None:
        """Workflows of each of these times, $t; the first of all has an empty id."""
        given = {
            "name": "'name ' || t || i", "definition_id": "'d'", "version": "1",
            "status": "'Complete'", "create_time": "t::timestamptz",
        } | values  # fmt: skip
        await self.run(
            f"INSERT INTO wfc.workflows (id, {', '.join(given)}) "
            f"SELECT {_ID}, {', '.join(given.values())} FROM {_ROWS}",
            list(times), EACH,
        )  # fmt: skip

    async def events(self, *, is_processed: bool = False) -> None:
        """Events of each time."""
        await self.run(
            "INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, "
            f"is_processed) SELECT {_ID}, 'n', 'k', '1', t::timestamptz, %s FROM {_ROWS}",
            is_processed, list(TIMES), EACH,
        )  # fmt: skip

    async def subscriptions(self) -> None:
        """Open subscriptions of each time."""
        await self.run(
            "INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, "
            "execution_pointer_id, event_name, event_key, subscribe_as_of) "
            f"SELECT {_ID}, 'w', 1, '1', 'n', 'k', t::timestamptz FROM {_ROWS}",
            list(TIMES), EACH,
        )  # fmt: skip


_ROWS: Final = "unnest(%s::text[]) WITH ORDINALITY AS times (t, n), generate_series(1, %s) i"
_ID: Final = "CASE WHEN n = 1 AND i = 1 THEN '' ELSE n || '-' || i END"


@pytest.fixture(scope="module")
async def server(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, str]]:
    """The address of a server, and the URL of its database."""
    log: Path = tmp_path_factory.mktemp("foreign") / "log"
    url = postgres_url.replace("/postgres?", "/foreign_rows?")
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE foreign_rows")
        with ServerProcess(log, "--db-url", url, "--allow-truncate") as server:
            yield server.address, url
        await admin.execute("DROP DATABASE foreign_rows WITH (FORCE)")
        assert "bug" not in server.log(), server.log()


@pytest.fixture
async def foreign(server: tuple[str, str]) -> AsyncIterator[Foreign]:
    address, url = server
    async with (
        connect(address) as channel,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
    ):
        api = Api(channel)
        await api.truncate_all()
        yield Foreign(api, connection)


# Times.


async def test_every_time_of_postgres_can_be_a_cursor(store: Store) -> None:
    """It is read and sent back as the same time, and so are those beside it."""
    for time in TIMES:
        rows = await store.read("SELECT $1::timestamptz", time.encode())
        micros = read_int8(rows.get_value(0, 0))
        for near in range(micros - 2, micros + 3):
            expected = near
            if not -211_813_488_000_000_000 <= near < 9_223_371_331_200_000_000:
                expected = -(2**63) if near < 0 else 2**63 - 1
            rows = await store.read("SELECT $1::timestamptz", pg_micros_param(near))
            assert read_int8(rows.get_value(0, 0)) == expected, (time, near)


@pytest.mark.parametrize(
    ("order", "direction"),
    [
        (ListOrder.LIST_ORDER_OLDEST_FIRST, "ASC"),
        (ListOrder.LIST_ORDER_NEWEST_FIRST, "DESC"),
    ],
)
async def test_lists_in_both_orders_have_each_row_once(
    foreign: Foreign, order: ListOrder.ValueType, direction: str
) -> None:
    await foreign.workflows()
    await foreign.events()
    lists: list[tuple[str, str, Callable[..., Awaitable[Any]]]] = [
        ("workflows", "create_time", foreign.api.list_workflows),
        ("events", "event_time", foreign.api.list_events),
    ]
    for table, time, rpc in lists:
        expected = await foreign.run(
            f"SELECT id FROM wfc.{table} ORDER BY {time} {direction}, id {direction}"
        )
        answers = await pages(rpc, order=order, page_size=PAGE)
        found = [item.id for page in answers for item in page.ListFields()[0][1]]
        assert found == expected, table
        assert len(found) == len(TIMES) * EACH


async def test_times_beyond_a_timestamp_are_clamped(foreign: Foreign) -> None:
    await foreign.workflows(complete_time="t::timestamptz")
    [page] = await pages(
        foreign.api.list_workflows, order=ListOrder.LIST_ORDER_OLDEST_FIRST, page_size=1000
    )
    first, last = page.instances[0], page.instances[-1]
    assert (first.create_time, first.complete_time) == (make.FIRST_TIME,) * 2
    assert (last.create_time, last.complete_time) == (make.LAST_TIME,) * 2
    assert await foreign.api.get_workflow_instance(last.id) == (
        await foreign.api.get_workflow_instance(last.id, FULL)
    )


@pytest.mark.parametrize("rpc", ["get_runnable_events", "get_events", "get_subscriptions"])
async def test_what_is_due_is_answered_once(foreign: Foreign, rpc: str) -> None:
    await foreign.events()
    await foreign.subscriptions()
    given: dict[str, Any] = {"as_at": make.LAST_TIME}
    if rpc != "get_runnable_events":
        given = {"event_name": "n", "event_key": "k", "as_of": make.LAST_TIME}
    answers = await pages(getattr(foreign.api, rpc), page_size=PAGE, **given)
    found = [
        item if isinstance(item, str) else item.id
        for page in answers
        for item in page.ListFields()[0][1]
    ]
    expected = await foreign.run(
        "SELECT id FROM wfc.events WHERE event_time < '10000-01-01' ORDER BY event_time, id"
    )
    assert found == expected
    assert len(found) == len(EXPRESSIBLE) * EACH


async def test_lists_by_id_have_each_row_once(foreign: Foreign) -> None:
    await foreign.subscriptions()
    await foreign.run(
        "INSERT INTO wfc.execution_errors (id, error_time, workflow_id, execution_pointer_id, "
        f"message) SELECT 100 * n + i, t::timestamptz, 'w', '', n || '-' || i FROM {_ROWS}",
        list(TIMES), EACH,
    )  # fmt: skip
    await foreign.run(f"UPDATE wfc.execution_errors SET id = {2**63 - 1} WHERE message = '3-3'")
    found = await pages(foreign.api.list_subscriptions, page_size=PAGE)
    assert [s.id for page in found for s in page.subscriptions] == await foreign.run(
        "SELECT id FROM wfc.event_subscriptions ORDER BY id"
    )
    errors = await pages(foreign.api.list_errors, page_size=PAGE)
    assert [e.message for page in errors for e in page.errors] == await foreign.run(
        "SELECT message FROM wfc.execution_errors ORDER BY id DESC"
    )


async def test_runnable_instances_of_any_time_are_answered_once(foreign: Foreign) -> None:
    numbers = [-(2**63), -(2**63) + 1, -(2**53) - 1, -1, 0, 1, 253_402_300_799_999, 2**63 - 1]
    await foreign.workflows(
        [str(number) for number in numbers],
        status="'Runnable'",
        next_execution="t::bigint",
        create_time="now()",
    )
    await foreign.run("UPDATE wfc.workflows SET next_execution = NULL WHERE next_execution = 1")
    answers = await pages(foreign.api.get_runnable_instances, page_size=PAGE, as_at=make.LAST_TIME)
    found = [id_ for page in answers for id_ in page.instance_ids]
    assert found == await foreign.run(
        "SELECT id FROM wfc.workflows WHERE next_execution < 2 ^ 60 ORDER BY next_execution, id"
    )
    assert len(found) == 6 * EACH


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("ended", ["complete_time", "create_time"])
async def test_purges_leave_nothing_that_qualifies(
    foreign: Foreign, ended: str, dry_run: bool
) -> None:
    at = "t::timestamptz" if ended == "complete_time" else "NULL::timestamptz"
    await foreign.workflows(complete_time=at)
    await foreign.events(is_processed=True)
    given: dict[str, Any] = {"dry_run": dry_run, "max_rows": PAGE}
    gone = await pages(foreign.api.purge_workflows, ended_before=make.LAST_TIME, **given)
    assert sum(page.workflows for page in gone) == len(EXPRESSIBLE) * EACH
    gone = await pages(foreign.api.purge_events, event_time_before=make.LAST_TIME, **given)
    assert sum(page.events for page in gone) == len(EXPRESSIBLE) * EACH
    left = 0 if dry_run else len(TIMES) - len(EXPRESSIBLE)
    for table in ("workflows", "events"):
        count = await foreign.run(f"SELECT count(*) FROM wfc.{table}")
        assert count == [(left or len(TIMES)) * EACH]


# Other oddities.


async def test_unknown_statuses_are_listed_and_counted(foreign: Foreign) -> None:
    await foreign.workflows(
        ["", "Apart", "Complete", "Paused", "Running", "Runnable", "Suspended", "Terminated", "Ü"],
        status="t",
        create_time="now()",
    )
    for order in (ListOrder.LIST_ORDER_OLDEST_FIRST, ListOrder.LIST_ORDER_NEWEST_FIRST):
        found = await pages(foreign.api.list_workflows, order=order, page_size=PAGE)
        ids = [item.id for page in found for item in page.instances]
        assert len(ids) == len(set(ids)) == 9 * EACH
    counts = {c.status: c.count for c in await foreign.api.count_workflows()}
    assert counts.pop(WorkflowStatus.WORKFLOW_STATUS_UNSPECIFIED) == 5 * EACH
    assert list(counts.values()) == [EACH] * 4


ODD_POINTER: Final = """
INSERT INTO wfc.execution_pointers (id, workflow_id, step_id, active, status, retry_count,
    children, scope, extension_attributes, sleep_until, start_time, end_time, event_name,
    predecessor_id)
VALUES (%s, 'odd', -5, TRUE, 'Odd', -1, %s, %s, %s, 'infinity', '-infinity', '12000-01-01',
    repeat('n', 10000), repeat('p', 10000))
"""
DEEP: Final = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("document", "strings"),
    [
        ("null", []),
        ('"text"', []),
        ("12", []),
        ('{"a": "b"}', []),
        ('["a", 1, 2.50, true, null, ["b"], {"c": "d"}]',
         ["a", "1", "2.50", "true", "null", '["b"]', '{"c": "d"}']),
        (f"[{'9' * 5000}]", ["9" * 5000]),
        (DEEP, []),
    ],
    ids=["null", "a text", "a number", "an object", "a mixture", "many digits", "deep"],
)  # fmt: skip
async def test_lists_of_ids_may_be_any_json(
    foreign: Foreign, document: str, strings: list[str]
) -> None:
    await foreign.run(
        "INSERT INTO wfc.workflows (id, definition_id, version, status, data, create_time) "
        "VALUES ('odd', 'd', -1, 'Odd', '{}', now())"
    )
    await foreign.run(ODD_POINTER, "1", document, document, document)
    instance = await foreign.api.get_workflow_instance("odd")
    [pointer] = instance.execution_pointers
    assert list(pointer.children) == list(pointer.scope) == strings
    assert set(pointer.extension_attributes_json) == ({"a"} if document.startswith("{") else set())
    assert pointer.status == PointerStatus.POINTER_STATUS_UNSPECIFIED
    assert (pointer.step_id, pointer.retry_count) == (-5, 2**32 - 1)
    assert instance.status == WorkflowStatus.WORKFLOW_STATUS_UNSPECIFIED
    assert instance.name == "odd"
    assert await foreign.api.get_workflow_instance_by_name("odd") == instance
    assert await foreign.api.get_workflow_instances(["odd"]) == [instance]
    [page] = await pages(foreign.api.list_execution_pointers, workflow_id="odd")
    assert list(page.execution_pointers) == [pointer]
    [page] = await pages(foreign.api.list_workflows, view=FULL)
    assert list(page.instances) == [instance]


async def test_ids_of_any_length_are_paged(foreign: Foreign) -> None:
    """An index takes long texts if they can be compressed."""
    for table, columns, values in (
        ("workflows", "definition_id, version, status, next_execution, create_time",
         "'d', 1, 'Runnable', 0, now()"),
        ("events", "event_name, event_key, event_data, event_time",
         "'n', 'k', '1', '2026-01-01'"),
        ("event_subscriptions",
         "workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of",
         "'w', 1, '', 'n', 'k', '2026-01-01'"),
    ):  # fmt: skip
        await foreign.run(
            f"INSERT INTO wfc.{table} (id, {columns}) "
            f"SELECT repeat(i::text, 50000), {values} FROM generate_series(1, 9) i"
        )
    await foreign.run(
        "INSERT INTO wfc.execution_pointers (workflow_id, id, step_id, status, event_published, "
        "retry_count, children, scope, extension_attributes) SELECT w.id, w.id || j, 1, "
        "'Running', FALSE, 0, '[]', '[]', '{}' FROM wfc.workflows w, generate_series(1, 9) j"
    )
    api = foreign.api
    key: dict[str, Any] = {"event_name": "n", "event_key": "k", "as_of": make.LAST_TIME}
    lists: list[tuple[Callable[..., Awaitable[Any]], dict[str, Any]]] = [
        (api.list_workflows, {"view": FULL}),
        (api.get_runnable_instances, {}),
        (api.list_events, {}),
        (api.get_runnable_events, {}),
        (api.get_events, key),
        (api.get_subscriptions, key),
        (api.list_subscriptions, {}),
    ]
    for rpc, given in lists:
        for page_size in (2, 1000):
            answers = await pages(rpc, page_size=page_size, **given)
            assert sum(len(page.ListFields()[0][1]) for page in answers) == 9, (rpc, page_size)


async def test_commands_of_any_name_and_time_are_claimed(foreign: Foreign) -> None:
    await foreign.run(
        "INSERT INTO wfc.scheduled_commands (command_name, data, execute_time) VALUES "
        "('Other', repeat('x', 10000), -9223372036854775808), "
        "('ProcessEvent', '', 9223372036854775807), "
        "('ProcessEvent', 'e', 0)"
    )
    for page_size in (1, 0):
        answers = await pages(foreign.api.list_commands, page_size=page_size)
        assert [each.command.command_name for page in answers for each in page.commands] == [
            CommandName.COMMAND_NAME_UNSPECIFIED,
            CommandName.COMMAND_NAME_PROCESS_EVENT,
            CommandName.COMMAND_NAME_PROCESS_EVENT,
        ]
    claimed = await foreign.api.claim_commands()
    assert [claim.command.command_name for claim in claimed] == [
        CommandName.COMMAND_NAME_UNSPECIFIED,
        CommandName.COMMAND_NAME_PROCESS_EVENT,
    ]


async def test_numbers_at_their_end_are_refused_with_a_field(foreign: Foreign) -> None:
    """What only the database can find out names the field that asked for it."""
    last = 2**63 - 1
    await foreign.run("INSERT INTO wfc.definition_sequences VALUES ('d', %s)", last)
    with invalid("definition_id"):
        await foreign.api.next_definition_sequence("d")
    instance = make.instance()
    await foreign.api.create_new_workflow(instance)
    await foreign.run("UPDATE wfc.workflows SET revision = %s", last)
    with invalid("instance"):
        await foreign.api.persist_workflow(instance, request_id=make.request_id())
    patch = make.patch(instance.id, reference="r")
    with invalid("patch"):
        await foreign.api.commit_workflow(patch=patch, expected_revision=last)
    # What is deleted with such a revision leaves room for others.
    await foreign.api.delete_workflow(instance.id)
    assert (await foreign.api.create_new_workflow(instance)).revision == 2**62 + 1
    assert await foreign.api.persist_workflow(instance) == 2**62 + 2
    # And their revisions never come again either.
    await foreign.api.delete_workflow(instance.id)
    assert (await foreign.api.create_new_workflow(instance)).revision == 2**62 + 3


# Too large for a message.

_MiB: Final = 2**20


async def test_lists_go_on_behind_what_is_too_large(foreign: Foreign) -> None:
    await foreign.workflows(["2026-01-01"], create_time="t::timestamptz + i * interval '1 h'")
    await foreign.events()
    await foreign.subscriptions()
    await foreign.run(
        "UPDATE wfc.workflows SET data = to_jsonb(repeat('x', %s)) WHERE id LIKE '%%-4'", 5 * _MiB
    )
    await foreign.run(
        "UPDATE wfc.workflows SET description = repeat('x', %s) WHERE id LIKE '%%-5'", 5 * _MiB
    )
    await foreign.run(
        "UPDATE wfc.events SET event_data = to_jsonb(repeat('x', %s)) WHERE id = '5-4'", 5 * _MiB
    )
    await foreign.run(
        "UPDATE wfc.event_subscriptions SET subscription_data = to_jsonb(repeat('x', %s)) "
        "WHERE id = '5-4'", 5 * _MiB,
    )  # fmt: skip
    await foreign.run(
        "UPDATE wfc.event_subscriptions SET external_token = repeat('x', %s), "
        "external_token_expiry = now() WHERE id = '5-5'", 5 * _MiB,
    )  # fmt: skip
    await foreign.run(
        "INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)"
        " SELECT now(), 'w', '', repeat('x', CASE WHEN i = 5 THEN %s ELSE 1 END)"
        " FROM generate_series(1, 10) i", 5 * _MiB,
    )  # fmt: skip
    await foreign.run(
        "INSERT INTO wfc.execution_pointers (workflow_id, id, step_id, status, event_published, "
        "retry_count, children, scope, extension_attributes, step_name, outcome) "
        "SELECT '1-7', i, 1, 'Running', FALSE, 0, '[]', '[]', '{}', "
        "CASE WHEN i = 5 THEN repeat('x', %s) END, "
        "CASE WHEN i = 4 THEN to_jsonb(repeat('x', %s)) END FROM generate_series(1, 10) i",
        5 * _MiB, 5 * _MiB,
    )  # fmt: skip
    api = foreign.api
    key: dict[str, Any] = {"event_name": "n", "event_key": "k", "as_of": make.LAST_TIME}
    subscriptions: list[tuple[Callable[..., Awaitable[Any]], dict[str, Any], int]] = [
        (api.get_subscriptions, key, len(EXPRESSIBLE) * EACH),
        (api.list_subscriptions, {}, len(TIMES) * EACH),
    ]
    for page_size in (1, 2, 1000):
        workflows: dict[str, Any] = {}
        for page in await pages(api.list_workflows, page_size=page_size, view=FULL):
            workflows |= {item.id: item for item in page.instances}
        assert len(workflows) == EACH
        for id_, instance in workflows.items():
            # Without pointers, then without documents, then with texts cut off.
            assert instance.view == (HEADER if id_ in ("1-4", "1-5", "1-7") else 0)
            assert (instance.data_json == "") is (id_ in ("1-4", "1-5"))
        assert workflows["1-5"].description == f"{'x' * 511}…"
        events: dict[str, Any] = {}
        for page in await pages(api.list_events, page_size=page_size):
            events |= {item.id: item for item in page.events}
        assert len(events) == len(TIMES) * EACH
        assert [id_ for id_, item in events.items() if not item.event_data_json] == ["5-4"]
        for rpc, given, count in subscriptions:
            found: dict[str, Any] = {}
            for page in await pages(rpc, page_size=page_size, **given):
                found |= {item.id: item for item in page.subscriptions}
            assert len(found) == count
            marked = [i for i, s in found.items() if s.HasField("subscription_data_json")]
            assert sorted(marked) == ["5-4", "5-5"]
            assert found["5-4"].subscription_data_json == ""
            assert len(found["5-5"].external_token) == 512
        errors = [
            error
            for page in await pages(api.list_errors, page_size=page_size)
            for error in page.errors
        ]
        assert [len(error.message) for error in errors] == [1] * 5 + [512] + [1] * 4
        pointers: dict[str, Any] = {}
        for page in await pages(
            api.list_execution_pointers, workflow_id="1-7", page_size=page_size
        ):
            pointers |= {item.id: item for item in page.execution_pointers}
        assert len(pointers) == 10
        assert [i for i, p in pointers.items() if p.HasField("persistence_data_json")] == ["4", "5"]
        assert pointers["4"].outcome_json == ""
        assert len(pointers["5"].step_name) == 512


async def test_stream_goes_on_behind_what_is_too_large(foreign: Foreign) -> None:
    await foreign.workflows(["2026-01-01"])
    await foreign.run(
        "UPDATE wfc.workflows SET data = to_jsonb(repeat('x', %s)) WHERE id = '1-4'", 5 * _MiB
    )
    ids = [f"1-{i}" for i in range(2, EACH + 1)]
    for view in (FULL, HEADER):
        found = await foreign.api.get_workflow_instances(ids, view)
        assert [instance.id for instance in found] == ids
        assert [i.id for i in found if not i.data_json] == ["1-4"]
        assert found[2].view == HEADER


async def test_what_was_left_out_is_not_stored_as_nothing(foreign: Foreign) -> None:
    """An item from which parts were left out can't be written back by mistake."""
    await foreign.workflows(["2026-01-01"])
    await foreign.run(
        "UPDATE wfc.workflows SET data = to_jsonb(repeat('x', %s)) WHERE id = '1-4'", 5 * _MiB
    )
    [instance] = await foreign.api.get_workflow_instances(["1-4"], HEADER)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await foreign.api.persist_workflow(instance)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
