"""The traps that the original store and its relatives fell into, one test or more for each.

In the order of the contract's section 5. Its trap of a purge that does nothing needs no test: there
is no purge here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, pages
from tests.support.clock import database_time
from tests.support.commands import OwnCommands, commands, tokens
from tests.support.expect import eventually, fails

if TYPE_CHECKING:
    import psycopg


@pytest.fixture
def tables(postgres_url: str, target: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the tables of the server under test."""
    import psycopg

    url = postgres_url.replace("/postgres?", "/conformance?")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


# Its process_commands deletes by time after handling, so a command upserted in between is lost,
# and one handler's error stops all.


async def test_command_scheduled_again_while_it_is_handled_is_not_lost(own: OwnCommands) -> None:
    command = await own.schedule()
    handled = await own.claim()
    await own.api.schedule_command(command)  # by its own handler, for example
    await own.api.complete_commands(*tokens(handled))
    assert commands(await own.claim()) == [command]


async def test_command_that_becomes_due_while_others_are_handled_is_not_lost(
    own: OwnCommands,
) -> None:
    await own.schedule()
    handled = await own.claim()
    late = await own.schedule(-1000)
    await own.api.complete_commands(*tokens(handled))
    assert commands(await own.claim()) == [late]


async def test_one_failing_handler_does_not_stop_the_others(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in range(3)]
    good, bad, also_good = await own.claim(lease_duration=Duration(nanos=200_000_000))
    for claim in (good, also_good):
        await own.api.complete_commands(claim.lease_token)
    # Nobody says a word about the bad one: it comes back when its lease expires.
    assert (await own.reclaim()).command == bad.command == made[1]


# Its pointers come back in no defined order. Its persist rewrites all of them, one INSERT each:
# cost grows with the square of a workflow's length.


async def test_pointers_come_back_in_the_order_they_were_given(api: Api) -> None:
    ids = [str(n) for n in range(100)]
    instance = make.instance(name=make.new_id("name"))
    await api.create_new_workflow(instance)
    for _ in range(10):
        random.shuffle(ids)
        del instance.execution_pointers[:]
        instance.execution_pointers.extend(map(make.pointer, ids[:90]))
        instance.revision = await api.persist_workflow(instance)
        assert await api.get_workflow_instance(instance.id) == instance
        assert await api.get_workflow_instance_by_name(instance.name) == instance
        assert await api.get_workflow_instances([instance.id]) == [instance]


@pytest.mark.white_box
async def test_persist_rewrites_no_unchanged_pointer(
    api: Api, tables: psycopg.Connection[Any]
) -> None:
    def written_by() -> dict[str, str]:
        """The transaction that wrote each pointer last."""
        rows = tables.execute(
            "SELECT id, xmin::text FROM wfc.execution_pointers WHERE workflow_id = %s",
            [instance.id],
        )
        return dict(rows.fetchall())

    instance = make.instance(execution_pointers=[make.full_pointer(str(n)) for n in range(50)])
    await api.create_new_workflow(instance)
    before = written_by()
    await api.persist_workflow(instance)
    assert written_by() == before
    instance.execution_pointers[7].retry_count += 1
    instance.execution_pointers.append(make.full_pointer("new"))
    await api.persist_workflow(instance)
    after = written_by()
    assert {id_ for id_ in after if after[id_] != before.get(id_)} == {"7", "new"}


@pytest.mark.white_box
async def test_persist_sets_the_heartbeat(api: Api, tables: psycopg.Connection[Any]) -> None:
    def heartbeat_age() -> float | None:
        row = tables.execute(
            "SELECT extract(epoch FROM clock_timestamp() - last_heartbeat_at)::float8 "
            "FROM wfc.workflows WHERE id = %s",
            [instance.id],
        ).fetchone()
        assert row
        age: float | None = row[0]
        return age

    instance = make.instance()
    await api.create_new_workflow(instance)
    assert heartbeat_age() is None
    await api.persist_workflow(instance)
    first = heartbeat_age()
    assert first is not None
    assert 0 <= first < 60
    await api.persist_workflow_with_subscriptions(instance, [])
    second = heartbeat_age()
    assert second is not None
    assert 0 <= second < 60


# Its load is two statements on two connections: a reader can see a torn state.


async def test_reader_sees_the_instance_and_the_pointers_of_one_write(api: Api) -> None:
    def state(turn: int) -> Any:
        pointers = [make.pointer(f"{turn}-{n}", step_id=turn) for n in range(turn % 5 * 10)]
        return make.instance(id=id_, version=turn, execution_pointers=pointers)

    id_ = make.new_id("workflow")
    await api.create_new_workflow(state(0))
    writing = True

    async def read() -> None:
        while writing:
            instance = await api.get_workflow_instance(id_)
            expected = state(instance.version)
            assert instance.execution_pointers == expected.execution_pointers

    async with asyncio.TaskGroup() as readers:
        for _ in range(3):
            readers.create_task(read())
        for turn in range(1, 60):
            await api.persist_workflow(state(turn))
        writing = False


# Its tokens never expire: a dead worker holds a subscription for ever.


async def test_subscription_of_a_dead_worker_becomes_open_again(api: Api) -> None:
    expiry = await database_time(api, 0.2)
    subscription = make.subscription(
        external_token="dead", external_worker_id="worker", external_token_expiry=expiry
    )
    await api.create_event_subscription(subscription)

    async def is_acquired() -> bool:
        return await api.set_subscription_token(subscription.id, "alive", "another")

    await eventually(is_acquired)
    assert (await database_time(api)).ToNanoseconds() >= expiry.ToNanoseconds()


# An empty name becomes the id on create, but a later persist writes the empty name: the second such
# workflow collides.


async def test_workflows_without_a_name_can_all_be_persisted(api: Api) -> None:
    instances = [make.instance(name="") for _ in range(3)]
    for instance in instances:
        await api.create_new_workflow(instance)
    for instance in instances:
        await api.persist_workflow(instance)
        assert (await api.get_workflow_instance(instance.id)).name == instance.id


# Its batch get is two queries an id. Its runnable queries have no limit and no order. Errors can be
# written and never read.


async def test_each_workflow_of_a_batch_comes_from_one_snapshot(api: Api) -> None:
    """The batch as a whole does not: it is read in pages, as the client takes it. So there is more
    of it than a page holds."""
    instances = [make.instance(data_json="0") for _ in range(4)]
    for instance in instances:
        for n in range(50):
            instance.execution_pointers.append(make.pointer(id=str(n), outcome_json="0"))
    filling = [make.instance(data_json=f'"{"x" * 200_000}"') for _ in range(10)]
    for instance in (*instances, *filling):
        await api.create_new_workflow(instance)
    asked = [i.id for i in (*instances[:2], *filling, *instances[2:])]
    writing = True
    turn = 0

    async def write() -> None:
        nonlocal turn
        while writing:
            turn += 1
            for instance in instances:
                instance.data_json = str(turn)
                for pointer in instance.execution_pointers:
                    pointer.outcome_json = str(turn)
                await api.persist_workflow(instance)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        for _ in range(15):
            answers = await api.get_workflow_instances(asked)
            assert [answer.id for answer in answers] == asked
            for answer in (*answers[:2], *answers[-2:]):
                assert {p.outcome_json for p in answer.execution_pointers} == {answer.data_json}
        writing = False
    assert turn > 2


async def test_runnable_queries_have_a_limit_and_an_order(api: Api) -> None:
    at = make.long_ago()
    events = [make.event(event_time=make.later(at, us=-n)) for n in range(5)]
    for event in events:
        await api.create_event(event)
    answers = await pages(api.get_runnable_events, as_at=at, page_size=2)
    assert max(len(answer.event_ids) for answer in answers) == 2
    listed = [id_ for answer in answers for id_ in answer.event_ids]
    own = [id_ for id_ in listed if id_ in {event.id for event in events}]
    assert own == [event.id for event in reversed(events)]
    for event in events:
        await api.mark_event_processed(event.id)


async def test_errors_that_were_written_can_be_read(api: Api) -> None:
    error = make.error()
    await api.persist_errors(error)
    assert list((await api.list_errors(workflow_id=error.workflow_id)).errors) == [error]


# Absent JSON and JSON null differ (NULL and 'null'::jsonb).


async def test_absent_json_and_json_null_differ(api: Api) -> None:
    absent, null = make.pointer("absent"), make.pointer("null", outcome_json="null")
    instance = make.instance(execution_pointers=[absent, null])
    await api.create_new_workflow(instance)
    for _ in range(2):
        absent, null = (await api.get_workflow_instance(instance.id)).execution_pointers
        assert not absent.HasField("outcome_json")
        assert null.HasField("outcome_json")
        assert null.outcome_json == "null"
        await api.persist_workflow(instance)


# The .NET engine's own tests use pointer ids "1", "2", ... in every workflow: ids are unique within
# a workflow only.


async def test_pointer_ids_are_unique_within_a_workflow_only(api: Api) -> None:
    instances = [
        make.full_instance(
            execution_pointers=[make.pointer("1", step_name=name), make.pointer("2")]
        )
        for name in ("first", "second")
    ]
    for instance in instances:
        await api.create(instance)
    instances[1].execution_pointers[0].step_name = "changed"
    del instances[1].execution_pointers[1]
    await api.persist_workflow(instances[1])
    instances[1].revision += 1
    assert await api.get_workflow_instances([i.id for i in instances]) == instances


async def test_persist_of_an_absent_workflow_is_no_silent_success(api: Api) -> None:
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.persist_workflow(make.instance())
