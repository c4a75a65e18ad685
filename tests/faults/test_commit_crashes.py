"""A commit whose process is killed between any two of its effects, or before its answer: it has
happened whole or not at all, and sent again with its request_id it has happened once.

A trigger of the test stops the statement right before one effect (see stopping.py).
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.failpoint_server import POINTS
from tests.faults.proxy import Proxy
from tests.faults.stopping import kill_before
from tests.faults.test_crashes import socket_dir
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of
from tests.support.queues import WAITING, OwnQueue
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.lifecycle_pb2 import WatchedEvent
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CommitWorkflowResponse,
    CreateNewWorkflowRequest,
    SubscriptionClaim,
    WorkflowPatch,
)
from wfe_persistence.embedded import EmbeddedPostgres

# The effects of a commit: the table and what is done to it.
EFFECTS = [
    ("workflows", "UPDATE"),
    ("execution_pointers", "INSERT"),
    ("execution_pointers", "DELETE"),
    ("event_subscriptions", "INSERT"),
    ("event_subscriptions", "DELETE"),
    ("events", "INSERT"),
    ("events", "UPDATE"),
    ("execution_errors", "INSERT"),
    ("scheduled_commands", "INSERT"),
    ("scheduled_commands", "UPDATE"),
    ("scheduled_commands", "DELETE"),
    ("queue_items", "INSERT"),
    ("queue_items", "UPDATE"),
    ("queue_items", "DELETE"),
    ("lifecycle_events", "INSERT"),
    ("requests", "INSERT"),
]

# The items of a commit, by their ids: that is enqueued, handled and gone, handled and comes again.
NEW, GONE, AGAIN = "new", "gone", "again"


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that the test may kill."""
    with EmbeddedPostgres(data_dir) as postgres:
        yield postgres


HOUR = Duration(seconds=3600)
CURSORS: dict[str, str] = {}
"""Where the lifecycle events of each workflow begin."""


async def new_step(api: Api) -> CommitWorkflowRequest:
    """A commit with every kind of effect, and what it starts from, stored."""
    instance = make.instance(execution_pointers=[make.pointer(i) for i in "ab"])
    CURSORS[instance.id] = await api.cursor()
    await api.create_new_workflow(instance)
    subscription = await api.create_event_subscription(make.subscription())
    assert await api.set_subscription_token(subscription, "mine")
    event = await api.create_event(make.event())
    completed, rescheduled = (make.command(execute_time=-(2**62)) for _ in range(2))
    await api.schedule_command(completed)
    [claim] = await api.claim_commands(as_of=make.FIRST_TIME)
    assert claim.command == completed
    await api.schedule_command(rescheduled)
    rescheduled.execute_time = 2**62
    queue = make.queue()
    await api.enqueue(*(make.item(queue, id=id_) for id_ in (GONE, AGAIN)))
    items = (await api.dequeue(queues=[queue], max_items=2, lease_duration=HOUR)).items
    return CommitWorkflowRequest(
        patch=WorkflowPatch(
            id=instance.id,
            execution_pointers=[make.pointer("c")],
            removed_pointer_ids=["a"],
        ),
        expected_revision=1,
        held_subscriptions=[SubscriptionClaim(subscription_id=subscription, token="mine")],
        create_subscriptions=[make.subscription()],
        terminate_subscription_ids=[subscription],
        create_events=[make.event()],
        processed_event_ids=[event],
        errors=[make.error(workflow_id=instance.id)],
        schedule_commands=[make.command(execute_time=2**62), rescheduled],
        complete_lease_tokens=[claim.lease_token],
        held_lock_tokens=[(await api.acquire_lock(make.new_id("resource"), ttl=HOUR)).token],
        enqueue=[make.item(queue, id=id_, payload_json="1") for id_ in (NEW, AGAIN)],
        acknowledge=[Acknowledgement(receipt=item.receipt, confirmed=True) for item in items],
        publish=[make.lifecycle_event(workflow_id=instance.id)],
        request_id=str(uuid.uuid4()),
    )


async def effects_of(api: Api, step: CommitWorkflowRequest) -> set[str]:
    """Which effects of a commit are there; one that is there twice fails."""
    stored = await api.get_workflow_instance(step.patch.id)
    ids = [p.id for p in stored.execution_pointers]
    errors = await api.list_errors(workflow_id=step.patch.id)
    assert len(errors.errors) <= 1
    items = {item.item.id: item for item in await OwnQueue(api, step.enqueue[0].queue).items()}
    there = {
        "revision": stored.revision == 2,
        "pointer added": "c" in ids,
        "pointer removed": "a" not in ids,
        "subscription created": await exists(api.get_subscription(step.create_subscriptions[0].id)),
        "subscription terminated": not await exists(
            api.get_subscription(step.terminate_subscription_ids[0])
        ),
        "event created": await exists(api.get_event(step.create_events[0].id)),
        "event processed": (await api.get_event(step.processed_event_ids[0])).is_processed,
        "error logged": bool(errors.errors),
        "command completed": await failure_of(
            api.release_commands(*step.complete_lease_tokens)
        ) is not None,
        "item enqueued": NEW in items,
        "item gone": GONE not in items,
        "item comes again": items[AGAIN].state == WAITING and items[AGAIN].item.payload_json == "1",
        "lifecycle event published": bool(await published(api, step)),
    }  # fmt: skip
    assert stored.revision <= 2
    return {effect for effect, is_there in there.items() if is_there}


ALL = 13
"""How many effects effects_of() looks at."""


async def published(api: Api, step: CommitWorkflowRequest) -> list[WatchedEvent]:
    """The lifecycle events of a commit that are there; one that is there twice fails."""
    cursor = CURSORS[step.patch.id]
    events = await api.published_since(cursor, [step.patch.id])
    assert len(events) <= 1
    return events


async def exists(call: Any) -> bool:
    """Whether what a call asks for is stored."""
    failure = await failure_of(call)
    assert failure is None or failure.reason.endswith("_NOT_FOUND"), failure
    return failure is None


async def crash_within(
    server: ServerProcess, url: str, effect: tuple[str, str], victim: str
) -> set[str]:
    """Kill the server, or PostgreSQL, right before an effect of a commit. Which effects are there
    when both are back; if none, the commit sent again must bring all of them."""
    async with connect(server.address) as channel:
        step = await new_step(Api(channel))
    await kill_before(server, url, effect, victim, lambda api: api.workflows.CommitWorkflow(step))
    async with connect(server.address) as channel:
        api = Api(channel)
        effects = await effects_of(api, step)
        if not effects:
            # Sent again, all of it happens. (effects_of has given the lease back.)
            step.complete_lease_tokens[:] = [await _claimed_again(api)]
            assert (await api.workflows.CommitWorkflow(step)).revision == 2
            assert len(await effects_of(api, step)) == ALL
    return effects


async def _claimed_again(api: Api) -> str:
    claims = await api.claim_commands(as_of=make.FIRST_TIME)
    return claims[0].lease_token


@pytest.mark.parametrize("victim", ["server", "postgres"])
async def test_killed_between_any_two_effects(
    tmp_path: Path, postgres: EmbeddedPostgres, victim: str
) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", postgres.url) as server:
        for effect in EFFECTS:
            effects = await crash_within(server, postgres.url, effect, victim)
            assert len(effects) in (0, ALL), (effect, effects)
            if victim == "postgres":
                assert not effects, effect


@pytest.mark.parametrize("victim", ["server", "postgres"])
@pytest.mark.parametrize("table", ["workflows", "events"])
async def test_killed_between_a_creation_and_its_item(
    tmp_path: Path, postgres: EmbeddedPostgres, table: str, victim: str
) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", postgres.url) as server:
        for effect in ((table, "INSERT"), ("queue_items", "INSERT")):
            queue, instance, event = make.queue(), make.instance(), make.event()
            id_ = instance.id if table == "workflows" else event.id
            workflow_request = CreateNewWorkflowRequest(instance=instance)
            event_request = CreateEventRequest(event=event)
            for request in (workflow_request, event_request):
                request.enqueue.append(make.item(queue, id=""))

            async def create(api: Api) -> None:
                if table == "workflows":
                    await api.workflows.CreateNewWorkflow(workflow_request)  # noqa: B023
                else:
                    await api.events.CreateEvent(event_request)  # noqa: B023

            await kill_before(server, postgres.url, effect, victim, create)
            async with connect(server.address) as channel:
                api = Api(channel)
                get: Any = api.get_workflow_instance if table == "workflows" else api.get_event
                is_there = [await exists(get(id_)), bool(await OwnQueue(api, queue).items())]
                assert is_there in ([False, False], [True, True]), effect
                if victim == "postgres":
                    assert is_there == [False, False], effect
                await create(api)
                assert await exists(get(id_))
                assert [each.item.id for each in await OwnQueue(api, queue).items()] == [id_]


async def test_a_commit_in_two_transactions_is_caught(
    tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    """That the test above can fail: with this planted fault a part is there."""
    with ServerProcess(
        tmp_path / "log",
        "--db-url",
        postgres.url,
        module="tests.faults.faulty_server",
        env={**os.environ, "FAULT": "a commit in two transactions"},
    ) as server:
        effect = ("execution_errors", "INSERT")
        effects = await crash_within(server, postgres.url, effect, "postgres")
    assert 0 < len(effects) < ALL, effects


@pytest.mark.parametrize("point", POINTS)
async def test_killed_before_or_after_the_commit(
    tmp_path: Path, postgres: EmbeddedPostgres, point: str
) -> None:
    """The answer never comes. Sent again, the step has happened once, and is answered as it was."""
    passed = tmp_path / "passed"
    server = ServerProcess(
        tmp_path / "log",
        "--db-url",
        postgres.url,
        module="tests.faults.failpoint_server",
        env={**os.environ, "FAILPOINT": point, "FAILPOINT_PASSED": str(passed)},
    )
    with server:
        async with connect(server.address) as channel:
            api = Api(channel)
            step = await new_step(api)
            failure = await failure_of(api.workflows.CommitWorkflow(step))
            assert failure is not None
            assert failure.code == grpc.StatusCode.UNAVAILABLE
        assert passed.exists(), "the server did not come by the point"
        await asyncio.to_thread(server.process.wait)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_until_serving)
        async with connect(server.address) as channel:
            api = Api(channel)
            stored = await api.get_workflow_instance(step.patch.id)
            assert stored.revision == (2 if point == "after commit" else 1)
            expected = CommitWorkflowResponse(
                revision=2,
                subscription_ids=[step.create_subscriptions[0].id],
                event_ids=[step.create_events[0].id],
            )
            for _ in range(2):
                assert await api.workflows.CommitWorkflow(step) == expected
            assert len(await effects_of(api, step)) == ALL


async def test_database_answer_lost_after_the_commit(tmp_path: Path, database_url: str) -> None:
    """The server can't know, and says so; sent again, the step has happened once."""
    directory = tmp_path / "proxy"
    directory.mkdir()
    behind = socket_dir(database_url)
    url = database_url.replace(str(behind), str(directory))
    async with Proxy(directory, behind) as proxy:
        server = ServerProcess(tmp_path / "log", "--db-url", url, "--pool-size", "1")
        await asyncio.to_thread(server.__enter__)  # the proxy needs the loop
        try:
            async with connect(server.address) as channel:
                api = Api(channel)
                step = await new_step(api)
                proxy.drop_answer_to = step.create_events[0].id.encode()
                with fails("UNAVAILABLE", "COMMIT_OUTCOME_UNKNOWN"):
                    await api.workflows.CommitWorkflow(step)
                proxy.drop_answer_to = None

                async def answered() -> bool:
                    return await failure_of(api.workflows.CommitWorkflow(step)) is None

                await eventually(answered)
                assert (await api.workflows.CommitWorkflow(step)).revision == 2
                assert len(await effects_of(api, step)) == ALL
        finally:
            await asyncio.to_thread(server.stop)
