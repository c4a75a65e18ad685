"""The sweep by two servers: what hosts have lost is handed out again, once."""

from __future__ import annotations

import asyncio

import psycopg
from google.protobuf.duration_pb2 import Duration

from tests.faults.conftest import Start
from tests.support import make
from tests.support.api import Api, connect
from tests.support.outdated import outdate
from tests.support.waiting import wait_for
from wfe.persistence.v1.queue_pb2 import QueueKind
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest


async def test_lost_work_is_handed_out_to_who_waits_and_counted_once(start: Start) -> None:
    """In a namespace that no call to the sweeping servers has named since they were started."""
    name = make.new_namespace()
    async with connect(start().address, namespace=name) as channel:
        api = Api(channel)
        await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
        await api.configure_queue("work", QueueKind.QUEUE_KIND_WORKFLOW)
        await api.configure_queue("happenings", QueueKind.QUEUE_KIND_EVENT)
        lost = [make.instance(create_time=make.long_ago()) for _ in range(5)]
        for instance in lost:
            await api.create(instance)
        happened = make.event(event_time=make.long_ago())
        await api.create_event(happened)
        servers = [start("--sweep-seconds", "1", "--log-level", "info") for _ in range(2)]
        expected = {instance.id for instance in lost} | {happened.id}
        found: list[str] = []
        async with asyncio.timeout(30):
            while set(found) < expected:
                answer = await api.dequeue(
                    queues=["work", "happenings"], max_items=10, wait=Duration(seconds=5)
                )
                found += [each.item.id for each in answer.items]
    assert sorted(found) == sorted(expected)
    said = [line for server in servers for line in server.log().splitlines()]
    said = [line for line in said if "enqueued again" in line]
    assert len(said) == 2, said  # the workflows, and the event


async def test_a_server_that_is_too_old_for_the_store_enqueues_nothing(
    start: Start, database_url: str
) -> None:
    """It may not know when work is lost by now."""
    server = start("--sweep-seconds", "1")
    async with connect(server.address) as channel:
        await Api(channel).configure_queue("work", QueueKind.QUEUE_KIND_WORKFLOW)
    with psycopg.connect(database_url, autocommit=True) as connection:
        await outdate(server, connection)
        connection.execute("""
            INSERT INTO wfc.workflows (id, name, definition_id, version, status, create_time,
                next_execution)
            VALUES ('lost', 'lost', 'd', 1, 'Runnable', '2020-01-01', 0)
        """)
        await asyncio.to_thread(wait_for, lambda: "sweep: default: " in server.log(), 60)
        row = connection.execute("SELECT count(*) FROM wfc.queue_items").fetchone()
    assert row == (0,)
