"""Calls of every kind that the dashboard has a panel for, those that fail included."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Final

import grpc
import psycopg
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from wfe.persistence.v1.command_pb2 import (
    ClaimCommandsRequest,
    CompleteCommandsRequest,
    ScheduleCommandRequest,
)
from wfe.persistence.v1.event_pb2 import CreateEventRequest, MarkEventProcessedRequest
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.queue_pb2 import (
    ConfigureQueueRequest,
    DequeueRequest,
    EnqueueRequest,
    QueueKind,
)
from wfe.persistence.v1.store_pb2 import (
    PersistErrorsRequest,
    RetentionPolicy,
    SetRetentionPolicyRequest,
)
from wfe.persistence.v1.subscription_pb2 import (
    CreateEventSubscriptionRequest,
    RenewSubscriptionTokenRequest,
    SetSubscriptionTokenRequest,
)
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
    WorkflowStatus,
)

SETTINGS: Final = ("--sweep-seconds", "1", "--retention-seconds", "1")
"""With which a server has something to sweep and to delete."""

_WORK: Final = "orders"
_NEVER: Final = "nobody-knows"
_LEASE: Final = Duration(seconds=30)
_ENDLESS: Final = 2**52


async def prepare(api: Api) -> None:
    """Queues, one of which the sweep may use, and a retention policy."""
    await api.queues.ConfigureQueue(
        ConfigureQueueRequest(queue=_WORK, kind=QueueKind.QUEUE_KIND_WORKFLOW)
    )
    await api.queues.ConfigureQueue(
        ConfigureQueueRequest(queue=_NEVER, kind=QueueKind.QUEUE_KIND_PLAIN, max_attempts=1)
    )
    minute = Duration(seconds=60)
    policy = RetentionPolicy(processed_event_age=minute, error_age=minute)
    await api.store.SetRetentionPolicy(SetRetentionPolicyRequest(policy=policy))


async def order(api: Api) -> None:
    """One order: a workflow with its queue item, a step, an event, and an error of long ago."""
    workflow = make.instance(next_execution=_ENDLESS)
    await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=workflow))
    await api.queues.Enqueue(EnqueueRequest(items=[make.item(_WORK, id=workflow.id)]))
    found = await api.queues.Dequeue(DequeueRequest(queues=[_WORK], include_workflow=True))
    for item in found.items:  # it may be another one, which the sweep has found
        item.workflow.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
        item.workflow.complete_time.CopyFrom(make.from_now(0))
        commit = CommitWorkflowRequest(
            instance=item.workflow, acknowledge=[Acknowledgement(receipt=item.receipt)]
        )
        await api.workflows.CommitWorkflow(commit)
    created = await api.events.CreateEvent(CreateEventRequest(event=make.event()))
    await api.events.MarkEventProcessed(MarkEventProcessedRequest(id=created.id))
    await api.store.PersistErrors(PersistErrorsRequest(errors=[make.error()]))
    await api.workflows.GetWorkflowInstance(GetWorkflowInstanceRequest(id=workflow.id))


async def trouble(api: Api) -> None:
    """What goes wrong with hosts: a workflow in no queue, an item that fails for good, a claim that
    is lost, an id that nobody knows; and what is left waiting."""
    lost = make.instance(
        create_time=make.from_now(-60), next_execution=make.epoch_ms(make.from_now(-60))
    )
    await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=lost))
    await api.queues.Enqueue(EnqueueRequest(items=[make.item(_NEVER)]))
    brief = Duration(nanos=1_000_000)
    await api.queues.Dequeue(DequeueRequest(queues=[_NEVER], lease_duration=brief))
    await api.events.CreateEvent(CreateEventRequest(event=make.event()))
    await api.commands.ScheduleCommand(ScheduleCommandRequest(command=make.command()))
    claimed = await api.commands.ClaimCommands(ClaimCommandsRequest(limit=1))
    await api.commands.CompleteCommands(
        CompleteCommandsRequest(lease_tokens=[claim.lease_token for claim in claimed.commands])
    )
    await api.commands.ScheduleCommand(ScheduleCommandRequest(command=make.command()))
    id_ = (
        await api.subscriptions.CreateEventSubscription(
            CreateEventSubscriptionRequest(subscription=make.subscription())
        )
    ).id
    await api.subscriptions.SetSubscriptionToken(
        SetSubscriptionTokenRequest(id=id_, token="mine", worker_id="host-1", duration=_LEASE)
    )
    with contextlib.suppress(grpc.aio.AioRpcError):
        await api.subscriptions.RenewSubscriptionToken(
            RenewSubscriptionTokenRequest(id=id_, token="another's", duration=_LEASE)
        )
    with contextlib.suppress(grpc.aio.AioRpcError):
        await api.workflows.GetWorkflowInstance(GetWorkflowInstanceRequest(id=make.new_id()))


async def interrupt(database_url: str, schema: str, how: str) -> None:
    """End the statement of a call that waits for a lock, or its connection, with a function of
    PostgreSQL."""
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass LIMIT 1"
    async with (
        await psycopg.AsyncConnection.connect(database_url) as locker,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other,
    ):
        await locker.execute(f"LOCK TABLE {schema}.events")
        while (
            row := await (await other.execute(waiting, [f"{schema}.events"])).fetchone()
        ) is None:
            await asyncio.sleep(0.02)
        await other.execute(f"SELECT {how}(%s)", row)


async def go_on(
    api: Api,
    database_url: str | None,
    schema: str = "wfc",
    *,
    hosts: int,
    pause: float,
    trouble_every: int = 20,
) -> None:
    """Orders of some hosts at once, each after a pause (seconds), and now and then trouble. For as
    long as it is not cancelled."""

    async def host(number: int) -> None:
        for turn in itertools.count(number):
            # A call may meet the moment at which the connections end.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await order(api)
                if turn % trouble_every == 0:
                    await trouble(api)
            await asyncio.sleep(pause)

    async def breaker(url: str) -> None:
        for how in itertools.cycle(("pg_cancel_backend", "pg_terminate_backend")):
            await asyncio.sleep(pause * trouble_every)
            await interrupt(url, schema, how)

    async with asyncio.TaskGroup() as group:
        for number in range(hosts):
            group.create_task(host(number))
        if database_url:
            group.create_task(breaker(database_url))
