"""Retention by servers that are killed, and by two at once: what the policy lets go, once."""

from __future__ import annotations

import http.client
import re
from typing import Any

import psycopg
from google.protobuf.duration_pb2 import Duration

from tests.faults.conftest import Start
from tests.support import make
from tests.support.api import Api, connect, for_each
from tests.support.expect import eventually
from tests.support.outdated import outdate
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.store_pb2 import WorkflowRetention
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus

NUMBER = 60


def ended(seconds_ago: float) -> Any:
    return make.instance(
        status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
        complete_time=make.from_now(-seconds_ago),
        execution_pointers=[make.pointer("1")],
    )


async def fill(api: Api) -> set[str]:
    """Workflows that the policy lets go, and those that stay: the ids of these."""
    staying = [ended(600), make.instance(create_time=make.from_now(-9000))]
    await for_each(api.create_new_workflow, [ended(7200) for _ in range(NUMBER)] + staying)
    await api.set_retention_policy(
        workflows=[WorkflowRetention(complete_age=Duration(seconds=3600))]
    )
    return {instance.id for instance in staying}


async def ids(api: Api) -> set[str]:
    return {each.id for each in (await api.list_workflows(page_size=1000)).instances}


async def complete(api: Api) -> None:
    async def is_complete() -> bool:
        return (await api.get_retention_policy()).HasField("complete_time")

    await eventually(is_complete, 60)


def deleted(server: ServerProcess) -> int:
    """How many workflows a server has deleted, as it says."""
    return sum(map(int, re.findall(r"retention deleted (\d+) workflows", server.log())))


def counted(server: ServerProcess) -> int:
    """How many workflows a server has deleted, as its metrics say."""
    [address] = re.findall(r"admin port: http://(\S+?)[\s\"]", server.log() + "\n")
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = re.findall(
        r'^wfe_persistence_retention_deleted_rows_total\{kind="workflows"\} (\S+)$', text, re.M
    )
    return int(sum(map(float, values)))


async def test_another_server_goes_on_where_one_was_killed(start: Start) -> None:
    slow = start("--retention-seconds", "1", "--retention-rows-per-second", "20")
    async with connect(slow.address) as channel:
        api = Api(channel)
        staying = await fill(api)

        async def has_begun() -> bool:
            return len(await ids(api)) < NUMBER + 2

        await eventually(has_begun, 60)
    slow.kill()
    fast = start("--retention-seconds", "1", "--log-level", "info")
    async with connect(fast.address) as channel:
        api = Api(channel)
        await complete(api)
        assert await ids(api) == staying
        # Each pointer went with its workflow.
        assert (await api.get_retention_policy()).deleted_rows == 2 * NUMBER
    assert 0 < deleted(fast) < NUMBER


async def test_two_servers_delete_everything_once(start: Start) -> None:
    options = ("--retention-seconds", "1", "--retention-rows-per-second", "40")
    more = ("--log-level", "info", "--admin-listen", "127.0.0.1:0")
    servers = [start(*options, *more) for _ in range(2)]
    async with connect(servers[0].address) as channel:
        api = Api(channel)
        staying = await fill(api)
        await complete(api)
        assert await ids(api) == staying
        assert (await api.get_retention_policy()).deleted_rows == 2 * NUMBER
    assert sum(map(deleted, servers)) == NUMBER
    assert sum(map(counted, servers)) == NUMBER


async def test_a_server_that_is_too_old_for_the_store_deletes_nothing(
    start: Start, database_url: str
) -> None:
    """It may not know what belongs to a workflow by now."""
    server = start("--retention-seconds", "0")
    async with connect(server.address) as channel:
        await fill(Api(channel))
    server.stop()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE wfc.retention_rules SET next_time = 'infinity'")
        server = start("--retention-seconds", "1")
        await outdate(server, connection)
        connection.execute("UPDATE wfc.retention_rules SET next_time = now()")
        wait_for(lambda: "retention: default: " in server.log(), 60)
        row = connection.execute("SELECT count(*) FROM wfc.workflows").fetchone()
    assert row == (NUMBER + 2,)
