"""A request that would succeed, what it needs in the store, and what it may change there."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Self, TypeVar

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands, tokens
from tests.support.expect import Failure, read_failure
from tests.support.queues import OwnQueue, receipts
from tests.support.rpcs import Rpc, put, valid_request
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    CreateNamespaceSetRequest,
    DeleteNamespaceRequest,
    DeleteNamespaceSetRequest,
    GetNamespaceSetRequest,
    GetStoreInfoRequest,
    RetentionPolicy,
    SetRetentionPolicyRequest,
)
from wfe.persistence.v1.subscription_pb2 import SetSubscriptionTokenRequest
from wfe.persistence.v1.transfer_pb2 import Record
from wfe.persistence.v1.workflow_pb2 import (
    GetNameHolderRequest,
    SetNameHolderRequest,
    WorkflowInstance,
    WorkflowStatus,
)


def never_due(**fields: Any) -> WorkflowInstance:
    """A workflow that nobody comes across who does not know its id."""
    return make.instance(**({"status": WorkflowStatus.WORKFLOW_STATUS_SUSPENDED} | fields))


T = TypeVar("T")


async def found(call: Awaitable[T]) -> T | None:
    """What is answered; None: NOT_FOUND."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        if exc.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return None


async def refusal(call: Awaitable[object]) -> tuple[Failure, str]:
    """How a call fails, and all the text that its error carries."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    trailing: Any = error.trailing_metadata() or ()
    blobs = [value if isinstance(value, bytes) else value.encode() for _, value in trailing]
    said = (error.details() or "") + "".join(blob.decode(errors="replace") for blob in blobs)
    return read_failure(error), said


def filled(start: str, filler: str, size: int) -> str:
    """A text that starts so and has so many bytes."""
    room = size - len(start.encode())
    width = len(filler.encode())
    return start + "x" * (room % width) + filler * (room // width)


def with_values(request: Any, *values: tuple[str, Any]) -> Any:
    """A copy of a request with these values in the fields of these paths."""
    copy = type(request)()
    copy.CopyFrom(request)
    for path, value in values:
        put(copy, path, value)
    return copy


def in_namespace(name: str) -> dict[str, Any]:
    """The options of a call to a namespace."""
    return {"metadata": (("wfe-namespace", name),)}


async def create_namespace(api: Api, name: str) -> None:
    """Create a namespace, if it can be deleted afterwards."""
    await skip_unless_namespaces_can_be_deleted(api)
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))


async def delete_namespace(api: Api, name: str) -> None:
    """Delete a namespace, if it is there."""
    await found(api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True)))


async def give_name_up(api: Api, name: str) -> None:
    """Have no workflow hold a name."""
    holder = await api.workflows.GetNameHolder(GetNameHolderRequest(name=name))
    if holder.claim_id:
        await api.workflows.SetNameHolder(
            SetNameHolderRequest(name=name, expected_claim_id=holder.claim_id)
        )


async def skip_unless_namespaces_can_be_deleted(api: Api) -> None:
    """Nothing may be left behind in the store of somebody else."""
    capabilities = (await api.get_store_info()).capabilities
    if not (capabilities.create_namespace and capabilities.delete_namespace):
        pytest.skip("the target does not allow CreateNamespace and DeleteNamespace")


class Scene:
    """A request of an RPC, and all around it that makes it succeed. `async with` sets it up."""

    def __init__(self, api: Api, rpc: Rpc) -> None:
        self.api = api
        self.rpc = rpc
        self.request = valid_request(rpc)
        self.own = OwnCommands(api)
        self._namespace = ""
        self._name = ""
        self._policy: RetentionPolicy | None = None
        self._locks: dict[str, str] = {}
        self._cursor = ""
        self._queues = [OwnQueue(api, name) for name in self._names_of_queues()]
        self._handled = OwnQueue(api)

    def _names_of_queues(self) -> list[str]:
        match self.rpc.name:
            case (
                "CreateNewWorkflow"
                | "PersistWorkflow"
                | "PersistWorkflowWithSubscriptions"
                | "CommitWorkflow"
                | "CreateEvent"
            ):
                return [item.queue for item in self.request.enqueue]
            case "CreateWorkflows":
                return [item.queue for each in self.request.workflows for item in each.enqueue]
            case "CreateEvents":
                return [item.queue for each in self.request.events for item in each.enqueue]
            case "Enqueue":
                return [item.queue for item in self.request.items]
            case "ImportRecords":
                items = [r.queue_item.item.queue for r in self.request.records]
                return [queue for queue in items if queue]
            case "Dequeue" | "GetQueueStats":
                return list(self.request.queues)
            case "ListQueueItems" | "RequeueItems" | "DeleteItems" | "ConfigureQueue":
                return [self.request.queue]
        return []

    async def __aenter__(self) -> Self:
        api, request = self.api, self.request
        match self.rpc.name:
            case "CreateNewWorkflow":
                await self._hold(request.held_lock_tokens)
            case "CreateWorkflows":
                for each in request.workflows:
                    await self._hold(each.held_lock_tokens)
            case "PersistWorkflow" | "PersistWorkflowWithSubscriptions":
                request.expected_revision = await api.create(never_due(id=request.instance.id))
                await self._set_up_around()
            case "CommitWorkflow":
                await self._set_up_commit()
            case "GetWorkflowInstance" | "WaitForWorkflow":
                await api.create_new_workflow(never_due(id=request.id))
            case "DeleteWorkflow":
                request.expected_revision = await api.create(never_due(id=request.id))
            case "ListExecutionPointers":
                request.expected_revision = await api.create(never_due(id=request.workflow_id))
            case "GetWorkflowInstanceByName":
                await api.create_new_workflow(never_due(name=request.name))
            case "GetWorkflowInstances":
                for id_ in request.ids:
                    await api.create_new_workflow(never_due(id=id_))
            case "GetEvent" | "MarkEventProcessed" | "MarkEventUnprocessed":
                await api.create_event(make.event(id=request.id, is_processed=True))
            case "GetSubscription":
                await api.create_event_subscription(make.subscription(id=request.id))
            case (
                "TerminateSubscription"
                | "SetSubscriptionToken"
                | "ClearSubscriptionToken"
                | "RenewSubscriptionToken"
            ):
                request.epoch = await self._held(request.id, request.token)
            case "ScheduleCommand":
                request.command.CopyFrom(self.own.new())
            case "ClaimCommands":
                await self.own.schedule()
            case "CompleteCommands" | "ReleaseCommands" | "RenewCommands":
                for _ in request.lease_tokens:
                    await self.own.schedule()
                request.lease_tokens[:] = tokens(await self.own.claim())
            case "BreakCommandLease":
                await self.own.schedule(data=request.data, command_name=request.command_name)
                [claim] = await self.own.claim()
                request.epoch = claim.epoch
            case "RenewLocks":
                await self._hold(request.tokens)
            case "ReleaseLock":
                request.token = await self._locked(make.new_id("resource"))
            case "BreakLock":
                await self._locked(request.resource)
                [held] = (await api.list_locks(resource_prefix=request.resource)).locks
                request.epoch = held.epoch
            case "Dequeue":
                for each in self._queues:
                    await each.enqueue()
                await self._take(request.acknowledge, request.return_items)
            case "Acknowledge":
                await self._take(request.acknowledge)
            case "ReturnItems":
                await self._take(request.return_items)
            case "RenewItems":
                request.receipts[:] = await self._receipts(len(request.receipts))
            case "RequeueItems" if request.HasField("break_epoch"):
                [each] = self._queues
                request.break_epoch = (await each.taken(request.ids[0])).epoch
            case "RequeueItems" | "DeleteItems":
                [each] = self._queues
                for id_ in request.ids:
                    await each.enqueue(id_, visible_time=make.from_now(3600))
            case "Publish":
                self._cursor = await api.cursor()
            case "CreateNamespace" | "CreateNamespaceSet":
                await skip_unless_namespaces_can_be_deleted(api)
            case "ImportRecords":
                self._policy = (await api.get_retention_policy()).policy
                for record in request.records:
                    if record.HasField("command"):
                        record.command.CopyFrom(self.own.new())
            case "SetRetentionPolicy":
                self._policy = (await api.get_retention_policy()).policy
            case "DeleteNamespace" | "MoveNamespace" | "AbortMoveNamespace":
                await create_namespace(api, request.name)
                self._namespace = request.name
            case "GetNamespaceSet" | "DeleteNamespaceSet":
                await skip_unless_namespaces_can_be_deleted(api)
                await api.store.CreateNamespaceSet(
                    CreateNamespaceSetRequest(name=request.name, members=1)
                )
                self._namespace = request.name
            case "SetNameHolder":
                await self._hold_name(request.expected_claim_id)
            case "GetNameHolder":
                await self._hold_name(make.new_id())
        return self

    async def _hold_name(self, claim_id: str) -> None:
        """Another workflow has the name until now."""
        self._name = self.request.name
        await self.api.workflows.SetNameHolder(
            SetNameHolderRequest(
                name=self._name, workflow_id=make.new_id("workflow"), claim_id=claim_id
            )
        )

    async def _receipts(self, count: int) -> list[str]:
        """The receipts of so many new items."""
        for _ in range(count):
            await self._handled.enqueue()
        return receipts(await self._handled.dequeue())

    async def _take(self, *lists: Any) -> None:
        """Put good receipts into these lists."""
        for items in lists:
            for item, receipt in zip(items, await self._receipts(len(items)), strict=True):
                item.receipt = receipt

    async def _held(self, id_: str, token: str) -> int:
        """Create a subscription and take hold of it; the epoch of the claim."""
        await self.api.create_event_subscription(make.subscription(id=id_))
        answer = await self.api.subscriptions.SetSubscriptionToken(
            SetSubscriptionTokenRequest(id=id_, token=token, worker_id="worker")
        )
        assert answer.acquired
        return answer.epoch

    async def _hold(self, tokens: Any) -> None:
        """Put the tokens of new locks into a list, as many as it has."""
        tokens[:] = [await self._locked(make.new_id("resource")) for _ in tokens]

    async def _locked(self, resource: str) -> str:
        """Acquire a lock; its token."""
        answer = await self.api.acquire_lock(resource, ttl=Duration(seconds=3600))
        assert answer.acquired
        self._locks[resource] = answer.token
        return answer.token

    async def _set_up_around(self) -> None:
        """What every write of a workflow may come with."""
        await self._hold(self.request.held_lock_tokens)
        await self._take(self.request.acknowledge)
        self._cursor = await self.api.cursor()

    async def _set_up_commit(self) -> None:
        api, request = self.api, self.request
        pointers = [make.pointer(id_) for id_ in request.patch.removed_pointer_ids]
        request.expected_revision = await api.create(
            never_due(id=request.patch.id or request.instance.id, execution_pointers=pointers)
        )
        for claim in request.held_subscriptions:
            claim.epoch = await self._held(claim.subscription_id, claim.token)
        for id_ in request.terminate_subscription_ids:
            await api.create_event_subscription(make.subscription(id=id_))
        for id_ in request.processed_event_ids:
            await api.create_event(make.event(id=id_))
        for command in request.schedule_commands:
            command.CopyFrom(self.own.new())
        await self._set_up_around()
        for leases in (request.held_lease_tokens, request.complete_lease_tokens):
            for _ in leases:
                await self.own.schedule()
            leases[:] = tokens(await self.own.claim())

    async def state(self) -> object:
        """What is stored of all that the request could change."""
        api, request = self.api, self.request
        match self.rpc.name:
            case "CreateNewWorkflow" | "PersistWorkflow" | "PersistWorkflowWithSubscriptions":
                subscriptions = getattr(request, "subscriptions", ())
                return (
                    await found(api.get_workflow_instance(request.instance.id)),
                    await found(api.get_workflow_instance_by_name(request.instance.name)),
                    [await found(api.get_subscription(each.id)) for each in subscriptions],
                    await self._state_around(),
                )
            case "CommitWorkflow":
                return await self._state_of_commit()
            case "CreateWorkflows":
                # What is put into the last one does not affect the others.
                last = request.workflows[-1]
                return (
                    await found(api.get_workflow_instance(last.instance.id)),
                    await self._state_of_queues(last.enqueue),
                )
            case "CreateEvents":
                last = request.events[-1]
                return (
                    await found(api.get_event(last.event.id)),
                    await self._state_of_queues(last.enqueue),
                )
            case "DeleteWorkflow":
                return await found(api.get_workflow_instance(request.id))
            case "CreateEvent":
                return await found(api.get_event(request.event.id)), await self._state_around()
            case "MarkEventProcessed" | "MarkEventUnprocessed":
                return await api.get_event(request.id)
            case "CreateEventSubscription":
                return await found(api.get_subscription(request.subscription.id))
            case (
                "TerminateSubscription"
                | "SetSubscriptionToken"
                | "ClearSubscriptionToken"
                | "RenewSubscriptionToken"
            ):
                return await api.get_subscription(request.id)
            case (
                "ScheduleCommand"
                | "ClaimCommands"
                | "CompleteCommands"
                | "ReleaseCommands"
                | "RenewCommands"
                | "BreakCommandLease"
            ):
                return await self._due_commands()
            case "AcquireLock":
                return await api.list_locks(resource_prefix=request.resource)
            case "RenewLocks" | "ReleaseLock" | "BreakLock":
                return [await api.list_locks(resource_prefix=each) for each in self._locks]
            case (
                "Enqueue"
                | "Dequeue"
                | "Acknowledge"
                | "ReturnItems"
                | "RenewItems"
                | "RequeueItems"
                | "DeleteItems"
                | "ConfigureQueue"
            ):
                return await self._state_of_queues()
            case "PersistErrors":
                ids = [error.workflow_id for error in request.errors]
                return [list((await api.list_errors(workflow_id=id_)).errors) for id_ in ids]
            case "Publish":
                return await self._published(request.events)
            case "ImportRecords":
                return [await self._state_of_record(record) for record in request.records]
            case "SetRetentionPolicy":
                return (await api.get_retention_policy()).policy
            case "CreateNamespace" | "DeleteNamespace" | "MoveNamespace" | "AbortMoveNamespace":
                ask = GetStoreInfoRequest()
                return await found(api.store.GetStoreInfo(ask, **in_namespace(request.name)))
            case "CreateNamespaceSet" | "DeleteNamespaceSet":
                return await found(
                    api.store.GetNamespaceSet(GetNamespaceSetRequest(name=request.name))
                )
            case "SetNameHolder":
                return await api.workflows.GetNameHolder(GetNameHolderRequest(name=request.name))
        return None

    async def _state_of_record(self, record: Record) -> object:
        api = self.api
        match record.WhichOneof("record"):
            case "workflow":
                return await found(api.get_workflow_instance(record.workflow.instance.id))
            case "subscription":
                return await found(api.get_subscription(record.subscription.id))
            case "event":
                return await found(api.get_event(record.event.id))
            case "error":
                return await api.list_errors(workflow_id=record.error.error.workflow_id)
            case "command":
                return await self._due_commands()
            case "queue_item":
                return await self._state_of_queues()
            case "retention_policy":
                return (await api.get_retention_policy()).policy
            case "name_holder":
                request = GetNameHolderRequest(name=record.name_holder.name)
                return await api.workflows.GetNameHolder(request)
        return None

    async def _state_around(self) -> object:
        published = await self._published(getattr(self.request, "publish", ()))
        return await self._state_of_queues(), published

    async def _state_of_queues(self, items: Iterable[QueueItem] | None = None) -> object:
        """Of all queues, or those of some items."""
        only = None if items is None else {item.queue for item in items}
        return [
            (await each.items(), (await each.stats()).max_attempts)
            for each in (*self._queues, self._handled)
            if only is None or each.name in only
        ]

    async def _published(self, events: Iterable[LifecycleEvent]) -> object:
        ids = [event.workflow_id for event in events]
        return await self.api.published_since(self._cursor, ids) if ids else None

    async def _due_commands(self) -> int:
        due = tokens(await self.own.claim())
        await self.api.release_commands(*due)
        return len(due)

    async def _state_of_commit(self) -> object:
        api, request = self.api, self.request
        subscriptions = [
            *(claim.subscription_id for claim in request.held_subscriptions),
            *(each.id for each in request.create_subscriptions),
            *request.terminate_subscription_ids,
        ]
        events = [*(each.id for each in request.create_events), *request.processed_event_ids]
        return (
            await api.get_workflow_instance(request.patch.id or request.instance.id),
            [await found(api.get_subscription(id_)) for id_ in subscriptions],
            [await found(api.get_event(id_)) for id_ in events],
            [await api.list_errors(workflow_id=error.workflow_id) for error in request.errors],
            await self._due_commands(),
            await self._state_around(),
        )

    async def succeed(self) -> None:
        """Send the good request."""
        for answer in await self.rpc.call(self.api, self.request):
            if self.rpc.name == "ClaimCommands":
                await self.api.release_commands(*tokens(answer.commands))
            if self.rpc.name == "AcquireLock":
                self._locks[self.request.resource] = answer.token

    async def __aexit__(self, *_: object) -> None:
        if self.rpc.name == "MarkEventUnprocessed":
            await found(self.api.mark_event_processed(self.request.id))
        if self.rpc.name == "CommitWorkflow":
            for id_ in self.request.processed_event_ids:
                await found(self.api.mark_event_processed(id_))
        if "Command" in self.rpc.name or self.rpc.name in ("CommitWorkflow", "ImportRecords"):
            await self.own.finish()
        for token in self._locks.values():
            await self.api.release_lock(token)
        for queue in {*self._names_of_queues(), *(each.name for each in self._queues)}:
            await OwnQueue(self.api, queue).clear()
        await self._handled.clear()
        if self._policy is not None:
            await self.api.store.SetRetentionPolicy(SetRetentionPolicyRequest(policy=self._policy))
        if self.rpc.name.endswith("Namespace"):
            # The test may have put another name into the request.
            for name in {self.request.name, self._namespace} - {""}:
                await delete_namespace(self.api, name)
        if self.rpc.name.endswith("NamespaceSet"):
            for name in {self.request.name, self._namespace} - {""}:
                await found(
                    self.api.store.DeleteNamespaceSet(
                        DeleteNamespaceSetRequest(name=name, force=True)
                    )
                )
        for name in {self.request.name, self._name} if self._name else ():
            await give_name_up(self.api, name)
