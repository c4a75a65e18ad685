"""The services as typed stubs on one channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from wfe.persistence.v1 import (
    command_pb2,
    command_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    lifecycle_pb2,
    lifecycle_pb2_grpc,
    lock_pb2,
    lock_pb2_grpc,
    queue_item_pb2,
    queue_pb2,
    queue_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    transfer_pb2_grpc,
    workflow_pb2,
    workflow_pb2_grpc,
)
from wfe.persistence.v1.command_pb2 import ClaimedCommand, CommandLease, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent, WatchedEvent, WatchResponse
from wfe.persistence.v1.lock_pb2 import Lock
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowCount,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowView,
)

Metadata = Sequence[tuple[str, str]]

LAST = "last of those to read"
"""How the ids of workflows begin whose events are for `published_since` only."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Api:
    """All services of a server, through the generated stubs and nothing else.

    The methods are the RPCs, each under its own name, without the wrapping: messages in, what the
    answer is about out. Lists take the request's fields and answer the whole response (see pages).
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.workflows: workflow_pb2_grpc.WorkflowServiceAsyncStub = (
            workflow_pb2_grpc.WorkflowServiceStub(channel)
        )
        self.events: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(channel)
        self.subscriptions: subscription_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self.commands: command_pb2_grpc.ScheduledCommandServiceAsyncStub = (
            command_pb2_grpc.ScheduledCommandServiceStub(channel)
        )
        self.locks: lock_pb2_grpc.LockServiceAsyncStub = lock_pb2_grpc.LockServiceStub(channel)
        self.queues: queue_pb2_grpc.QueueServiceAsyncStub = queue_pb2_grpc.QueueServiceStub(channel)
        self.lifecycle: lifecycle_pb2_grpc.LifecycleServiceAsyncStub = (
            lifecycle_pb2_grpc.LifecycleServiceStub(channel)
        )
        self.store: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)
        self.transfer: transfer_pb2_grpc.TransferServiceAsyncStub = (
            transfer_pb2_grpc.TransferServiceStub(channel)
        )

    def unary(self, method: str) -> Any:
        """A unary method by its full path, bytes in and bytes out."""
        return self.channel.unary_unary(method)

    async def create_new_workflow(
        self, instance: WorkflowInstance
    ) -> workflow_pb2.CreateNewWorkflowResponse:
        request = workflow_pb2.CreateNewWorkflowRequest(instance=instance)
        return await self.workflows.CreateNewWorkflow(request)

    async def create(self, instance: WorkflowInstance) -> int:
        """Create a workflow; its first revision, which the message has afterwards, as the stored
        one does. What it is depends on what was deleted from the store before."""
        instance.revision = (await self.create_new_workflow(instance)).revision
        return instance.revision

    async def persist_workflow(
        self,
        instance: WorkflowInstance,
        expected_revision: int | None = None,
        request_id: str = "",
    ) -> int:
        request = workflow_pb2.PersistWorkflowRequest(
            instance=instance, expected_revision=expected_revision, request_id=request_id
        )
        return (await self.workflows.PersistWorkflow(request)).revision

    async def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Iterable[EventSubscription],
        expected_revision: int | None = None,
        request_id: str = "",
    ) -> workflow_pb2.PersistWorkflowWithSubscriptionsResponse:
        request = workflow_pb2.PersistWorkflowWithSubscriptionsRequest(
            instance=instance,
            subscriptions=subscriptions,
            expected_revision=expected_revision,
            request_id=request_id,
        )
        return await self.workflows.PersistWorkflowWithSubscriptions(request)

    async def commit_workflow(self, **fields: Any) -> workflow_pb2.CommitWorkflowResponse:
        request = workflow_pb2.CommitWorkflowRequest(**fields)
        return await self.workflows.CommitWorkflow(request)

    async def get_workflow_instance(
        self, id_: str, view: WorkflowView.ValueType = WorkflowView.WORKFLOW_VIEW_UNSPECIFIED
    ) -> WorkflowInstance:
        request = workflow_pb2.GetWorkflowInstanceRequest(id=id_, view=view)
        return (await self.workflows.GetWorkflowInstance(request)).instance

    async def wait_for_workflow(self, id_: str, **fields: Any) -> WorkflowInstance:
        request = workflow_pb2.WaitForWorkflowRequest(id=id_, **fields)
        return (await self.workflows.WaitForWorkflow(request)).instance

    async def get_workflow_instance_by_name(
        self, name: str, view: WorkflowView.ValueType = WorkflowView.WORKFLOW_VIEW_UNSPECIFIED
    ) -> WorkflowInstance:
        request = workflow_pb2.GetWorkflowInstanceByNameRequest(name=name, view=view)
        return (await self.workflows.GetWorkflowInstanceByName(request)).instance

    async def get_workflow_instances(
        self,
        ids: Iterable[str],
        view: WorkflowView.ValueType = WorkflowView.WORKFLOW_VIEW_UNSPECIFIED,
    ) -> list[WorkflowInstance]:
        request = workflow_pb2.GetWorkflowInstancesRequest(ids=ids, view=view)
        return [answer.instance async for answer in self.workflows.GetWorkflowInstances(request)]

    async def get_runnable_instances(
        self, **fields: Any
    ) -> workflow_pb2.GetRunnableInstancesResponse:
        request = workflow_pb2.GetRunnableInstancesRequest(**fields)
        return await self.workflows.GetRunnableInstances(request)

    async def next_definition_sequence(self, definition_id: str) -> int:
        request = workflow_pb2.NextDefinitionSequenceRequest(definition_id=definition_id)
        return (await self.workflows.NextDefinitionSequence(request)).number

    async def list_execution_pointers(
        self, **fields: Any
    ) -> workflow_pb2.ListExecutionPointersResponse:
        request = workflow_pb2.ListExecutionPointersRequest(**fields)
        return await self.workflows.ListExecutionPointers(request)

    async def list_workflows(self, **fields: Any) -> workflow_pb2.ListWorkflowsResponse:
        return await self.workflows.ListWorkflows(workflow_pb2.ListWorkflowsRequest(**fields))

    async def count_workflows(self, **filter_: Any) -> list[WorkflowCount]:
        request = workflow_pb2.CountWorkflowsRequest(filter=WorkflowFilter(**filter_))
        return list((await self.workflows.CountWorkflows(request)).counts)

    async def delete_workflow(self, id_: str, expected_revision: int | None = None) -> None:
        request = workflow_pb2.DeleteWorkflowRequest(id=id_, expected_revision=expected_revision)
        await self.workflows.DeleteWorkflow(request)

    async def purge_workflows(self, **fields: Any) -> workflow_pb2.PurgeWorkflowsResponse:
        return await self.workflows.PurgeWorkflows(workflow_pb2.PurgeWorkflowsRequest(**fields))

    async def create_event(self, event: Event) -> str:
        return (await self.events.CreateEvent(event_pb2.CreateEventRequest(event=event))).id

    async def get_event(self, id_: str) -> Event:
        return (await self.events.GetEvent(event_pb2.GetEventRequest(id=id_))).event

    async def get_runnable_events(self, **fields: Any) -> event_pb2.GetRunnableEventsResponse:
        return await self.events.GetRunnableEvents(event_pb2.GetRunnableEventsRequest(**fields))

    async def get_events(self, **fields: Any) -> event_pb2.GetEventsResponse:
        return await self.events.GetEvents(event_pb2.GetEventsRequest(**fields))

    async def mark_event_processed(self, id_: str) -> None:
        await self.events.MarkEventProcessed(event_pb2.MarkEventProcessedRequest(id=id_))

    async def mark_event_unprocessed(self, id_: str) -> None:
        await self.events.MarkEventUnprocessed(event_pb2.MarkEventUnprocessedRequest(id=id_))

    async def list_events(self, **fields: Any) -> event_pb2.ListEventsResponse:
        return await self.events.ListEvents(event_pb2.ListEventsRequest(**fields))

    async def purge_events(self, **fields: Any) -> event_pb2.PurgeEventsResponse:
        return await self.events.PurgeEvents(event_pb2.PurgeEventsRequest(**fields))

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        request = subscription_pb2.CreateEventSubscriptionRequest(subscription=subscription)
        return (await self.subscriptions.CreateEventSubscription(request)).id

    async def get_subscription(self, id_: str) -> EventSubscription:
        request = subscription_pb2.GetSubscriptionRequest(id=id_)
        return (await self.subscriptions.GetSubscription(request)).subscription

    async def get_subscriptions(self, **fields: Any) -> subscription_pb2.GetSubscriptionsResponse:
        request = subscription_pb2.GetSubscriptionsRequest(**fields)
        return await self.subscriptions.GetSubscriptions(request)

    async def get_first_open_subscription(self, **fields: Any) -> EventSubscription | None:
        request = subscription_pb2.GetFirstOpenSubscriptionRequest(**fields)
        answer = await self.subscriptions.GetFirstOpenSubscription(request)
        return answer.subscription if answer.HasField("subscription") else None

    async def terminate_subscription(
        self, id_: str, token: str | None = None, epoch: int | None = None
    ) -> None:
        request = subscription_pb2.TerminateSubscriptionRequest(id=id_, token=token, epoch=epoch)
        await self.subscriptions.TerminateSubscription(request)

    async def set_subscription_token(
        self, id_: str, token: str, worker_id: str = "worker", expiry: Timestamp | None = None
    ) -> bool:
        request = subscription_pb2.SetSubscriptionTokenRequest(
            id=id_, token=token, worker_id=worker_id, expiry=expiry
        )
        return (await self.subscriptions.SetSubscriptionToken(request)).acquired

    async def clear_subscription_token(
        self, id_: str, token: str, epoch: int | None = None
    ) -> None:
        request = subscription_pb2.ClearSubscriptionTokenRequest(id=id_, token=token, epoch=epoch)
        await self.subscriptions.ClearSubscriptionToken(request)

    async def renew_subscription_token(
        self, id_: str, token: str, **fields: Any
    ) -> subscription_pb2.RenewSubscriptionTokenResponse:
        request = subscription_pb2.RenewSubscriptionTokenRequest(id=id_, token=token, **fields)
        return await self.subscriptions.RenewSubscriptionToken(request)

    async def list_subscriptions(self, **fields: Any) -> subscription_pb2.ListSubscriptionsResponse:
        request = subscription_pb2.ListSubscriptionsRequest(**fields)
        return await self.subscriptions.ListSubscriptions(request)

    async def schedule_command(self, command: ScheduledCommand) -> None:
        await self.commands.ScheduleCommand(command_pb2.ScheduleCommandRequest(command=command))

    async def claim_commands(self, **fields: Any) -> list[ClaimedCommand]:
        request = command_pb2.ClaimCommandsRequest(**fields)
        return list((await self.commands.ClaimCommands(request)).commands)

    async def list_commands(self, **fields: Any) -> command_pb2.ListCommandsResponse:
        return await self.commands.ListCommands(command_pb2.ListCommandsRequest(**fields))

    async def complete_commands(self, *lease_tokens: str) -> None:
        request = command_pb2.CompleteCommandsRequest(lease_tokens=lease_tokens)
        await self.commands.CompleteCommands(request)

    async def release_commands(self, *lease_tokens: str) -> None:
        request = command_pb2.ReleaseCommandsRequest(lease_tokens=lease_tokens)
        await self.commands.ReleaseCommands(request)

    async def break_command_lease(
        self, command: ScheduledCommand, **fields: Any
    ) -> CommandLease | None:
        request = command_pb2.BreakCommandLeaseRequest(
            command_name=command.command_name, data=command.data, **fields
        )
        answer = await self.commands.BreakCommandLease(request)
        return answer.broken if answer.HasField("broken") else None

    async def renew_commands(
        self, *lease_tokens: str, lease_duration: Duration | None = None
    ) -> command_pb2.RenewCommandsResponse:
        request = command_pb2.RenewCommandsRequest(
            lease_tokens=lease_tokens, lease_duration=lease_duration
        )
        return await self.commands.RenewCommands(request)

    async def acquire_lock(self, resource: str, **fields: Any) -> lock_pb2.AcquireLockResponse:
        request = lock_pb2.AcquireLockRequest(resource=resource, **fields)
        return await self.locks.AcquireLock(request)

    async def renew_locks(
        self, *tokens: str, ttl: Duration | None = None
    ) -> lock_pb2.RenewLocksResponse:
        return await self.locks.RenewLocks(lock_pb2.RenewLocksRequest(tokens=tokens, ttl=ttl))

    async def release_lock(self, token: str) -> bool:
        return (await self.locks.ReleaseLock(lock_pb2.ReleaseLockRequest(token=token))).released

    async def break_lock(self, resource: str, epoch: int | None = None) -> Lock | None:
        request = lock_pb2.BreakLockRequest(resource=resource, epoch=epoch)
        answer = await self.locks.BreakLock(request)
        return answer.broken if answer.HasField("broken") else None

    async def list_locks(self, **fields: Any) -> lock_pb2.ListLocksResponse:
        return await self.locks.ListLocks(lock_pb2.ListLocksRequest(**fields))

    async def enqueue(self, *items: queue_item_pb2.QueueItem) -> None:
        await self.queues.Enqueue(queue_pb2.EnqueueRequest(items=items))

    async def dequeue(self, **fields: Any) -> queue_pb2.DequeueResponse:
        return await self.queues.Dequeue(queue_pb2.DequeueRequest(**fields))

    async def acknowledge(self, *receipts: str, confirmed: bool = False) -> list[str]:
        request = queue_pb2.AcknowledgeRequest(
            acknowledge=[
                queue_item_pb2.Acknowledgement(receipt=receipt, confirmed=confirmed)
                for receipt in receipts
            ]
        )
        return list((await self.queues.Acknowledge(request)).returned_receipts)

    async def return_items(self, *receipts: str, delay: Duration | None = None) -> None:
        request = queue_pb2.ReturnItemsRequest(
            return_items=[
                queue_pb2.ReturnedItem(receipt=receipt, delay=delay) for receipt in receipts
            ]
        )
        await self.queues.ReturnItems(request)

    async def renew_items(
        self, *receipts: str, lease_duration: Duration | None = None
    ) -> queue_pb2.RenewItemsResponse:
        request = queue_pb2.RenewItemsRequest(receipts=receipts, lease_duration=lease_duration)
        return await self.queues.RenewItems(request)

    async def list_queue_items(self, **fields: Any) -> queue_pb2.ListQueueItemsResponse:
        return await self.queues.ListQueueItems(queue_pb2.ListQueueItemsRequest(**fields))

    async def get_queue_stats(self, **fields: Any) -> queue_pb2.GetQueueStatsResponse:
        return await self.queues.GetQueueStats(queue_pb2.GetQueueStatsRequest(**fields))

    async def requeue_items(self, **fields: Any) -> int:
        request = queue_pb2.RequeueItemsRequest(**fields)
        return (await self.queues.RequeueItems(request)).requeued

    async def delete_items(self, **fields: Any) -> int:
        return (await self.queues.DeleteItems(queue_pb2.DeleteItemsRequest(**fields))).deleted

    async def configure_queue(
        self, queue: str, kind: queue_pb2.QueueKind.ValueType, max_attempts: int = 0
    ) -> None:
        request = queue_pb2.ConfigureQueueRequest(queue=queue, kind=kind, max_attempts=max_attempts)
        await self.queues.ConfigureQueue(request)

    async def ensure_store_exists(self) -> store_pb2.EnsureStoreExistsResponse:
        return await self.store.EnsureStoreExists(store_pb2.EnsureStoreExistsRequest())

    async def persist_errors(self, *errors: ExecutionError) -> None:
        await self.store.PersistErrors(store_pb2.PersistErrorsRequest(errors=errors))

    async def list_errors(self, **fields: Any) -> store_pb2.ListErrorsResponse:
        return await self.store.ListErrors(store_pb2.ListErrorsRequest(**fields))

    async def set_retention_policy(self, **fields: Any) -> None:
        policy = store_pb2.RetentionPolicy(**fields)
        await self.store.SetRetentionPolicy(store_pb2.SetRetentionPolicyRequest(policy=policy))

    async def get_retention_policy(self) -> store_pb2.GetRetentionPolicyResponse:
        return await self.store.GetRetentionPolicy(store_pb2.GetRetentionPolicyRequest())

    async def run_retention(self, **fields: Any) -> store_pb2.RunRetentionResponse:
        return await self.store.RunRetention(store_pb2.RunRetentionRequest(**fields))

    async def get_storage_report(self, **fields: Any) -> store_pb2.GetStorageReportResponse:
        return await self.store.GetStorageReport(store_pb2.GetStorageReportRequest(**fields))

    async def publish(self, *events: LifecycleEvent, metadata: Metadata = ()) -> None:
        request = lifecycle_pb2.PublishRequest(events=events)
        await self.lifecycle.Publish(request, metadata=metadata)

    @asynccontextmanager
    async def watch(
        self, *, metadata: Metadata = (), **fields: Any
    ) -> AsyncIterator[AsyncIterator[WatchResponse]]:
        """The stream of Watch, ended with the context; the first response is its start."""
        call: Any = self.lifecycle.Watch(lifecycle_pb2.WatchRequest(**fields), metadata=metadata)
        try:
            yield aiter(call)
        finally:
            call.cancel()

    @asynccontextmanager
    async def watch_workflows(
        self,
        *,
        after: str = "",
        heartbeat: Duration | None = None,
        metadata: Metadata = (),
        **filter_: Any,
    ) -> AsyncIterator[AsyncIterator[workflow_pb2.WatchWorkflowsResponse]]:
        """The stream of WatchWorkflows, ended with the context; the first response is its start."""
        request = workflow_pb2.WatchWorkflowsRequest(
            filter=workflow_pb2.WatchedWorkflows(**filter_), after=after, heartbeat=heartbeat
        )
        call: Any = self.workflows.WatchWorkflows(request, metadata=metadata)
        try:
            yield aiter(call)
        finally:
            call.cancel()

    async def change_cursor(self, *, metadata: Metadata = ()) -> str:
        """Where a WatchWorkflows begins now."""
        async with self.watch_workflows(metadata=metadata) as responses:
            return (await anext(responses)).cursor

    async def cursor(self, *, metadata: Metadata = ()) -> str:
        """Where a Watch begins now."""
        async with self.watch(metadata=metadata) as responses:
            return (await anext(responses)).cursor

    async def published_since(
        self, cursor: str, workflow_ids: Iterable[str] | None = None, *, metadata: Metadata = ()
    ) -> list[WatchedEvent]:
        """The events after a cursor, up to now; with `workflow_ids`, those of these workflows."""
        own = None if workflow_ids is None else set(workflow_ids)
        last = make.lifecycle_event(workflow_id=f"{LAST} {make.new_id()}")
        await self.publish(last, metadata=metadata)
        found: list[WatchedEvent] = []
        async with self.watch(after=cursor, metadata=metadata) as responses:
            async for response in responses:
                for each in response.events:
                    id_ = each.event.workflow_id
                    if id_ == last.workflow_id:
                        return found
                    if id_ in own if own is not None else not id_.startswith(LAST):
                        found.append(each)
        raise AssertionError("the stream ended")

    async def get_store_info(self) -> store_pb2.GetStoreInfoResponse:
        return await self.store.GetStoreInfo(store_pb2.GetStoreInfoRequest())

    async def truncate_all(self) -> None:
        await self.store.TruncateAll(store_pb2.TruncateAllRequest())


async def for_each(
    call: Callable[[Item], Awaitable[Answer]], items: Iterable[Item]
) -> list[Answer]:
    """The answers to a call for each item; only some at once, a server may refuse a thousand."""
    some = asyncio.Semaphore(20)

    async def one(item: Item) -> Answer:
        async with some:
            return await call(item)

    return list(await asyncio.gather(*map(one, items)))


async def pages(
    list_rpc: Callable[..., Awaitable[Any]], page_token: str = "", **fields: Any
) -> list[Any]:
    """All pages of a list, as answered: `pages(api.get_events, event_name="x", page_size=3)`."""
    answers = [await list_rpc(page_token=page_token, **fields)]
    while token := answers[-1].next_page_token:
        answers.append(await list_rpc(**fields, page_token=token))
        assert len(answers) < 10_000, "the list does not end"
    return answers


_NAMESPACE_KEY = "wfe-namespace"


def _within(name: str, details: Any) -> Any:
    """A call's details with the namespace added, unless the call itself says where it goes."""
    given = tuple(details.metadata or ())
    if any(key == _NAMESPACE_KEY for key, _ in given):
        return details
    return details._replace(metadata=grpc.aio.Metadata(*given, (_NAMESPACE_KEY, name)))


class _InNamespace(grpc.aio.UnaryUnaryClientInterceptor):
    """Sends unary calls to a namespace."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(_within(self._name, client_call_details), request)


class _StreamsInNamespace(grpc.aio.UnaryStreamClientInterceptor):
    """Sends calls whose answer is a stream to a namespace. (gRPC sorts each interceptor into one
    kind of calls only, so this must be a class of its own.)"""

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(_within(self._name, client_call_details), request)


class _ExchangesInNamespace(grpc.aio.StreamStreamClientInterceptor):
    """The same of calls with streams both ways."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(_within(self._name, client_call_details), request_iterator)


class _BlockingInNamespace(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends the calls of a blocking channel to a namespace."""

    def __init__(self, name: str) -> None:
        self._name = name

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return continuation(_within(self._name, client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return continuation(_within(self._name, client_call_details), request)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return continuation(_within(self._name, client_call_details), request_iterator)


@contextmanager
def all_channels_in(address: str, name: str) -> Iterator[None]:
    """Inside, whatever goes to this address goes to a namespace, unless the call itself says where:
    also through channels that a test opens by gRPC's own functions, so that none is forgotten.
    """
    blocking, asynchronous = grpc.insecure_channel, grpc.aio.insecure_channel

    def open_blocking(target: str, *args: Any, **kwargs: Any) -> grpc.Channel:
        channel = blocking(target, *args, **kwargs)
        if target != address:
            return channel
        return grpc.intercept_channel(channel, _BlockingInNamespace(name))

    def open_asynchronous(target: str, *args: Any, **kwargs: Any) -> grpc.aio.Channel:
        if target == address:
            given = kwargs.pop("interceptors", None) or []
            kwargs["interceptors"] = [*given, *_interceptors(name)]
        return asynchronous(target, *args, **kwargs)

    grpc.insecure_channel, grpc.aio.insecure_channel = open_blocking, open_asynchronous
    try:
        yield
    finally:
        grpc.insecure_channel, grpc.aio.insecure_channel = blocking, asynchronous


def _interceptors(namespace: str) -> list[grpc.aio.ClientInterceptor]:
    return [
        _InNamespace(namespace),
        _StreamsInNamespace(namespace),
        _ExchangesInNamespace(namespace),
    ]


def connect(
    address: str, options: Sequence[tuple[str, Any]] = (), *, namespace: str = ""
) -> grpc.aio.Channel:
    """A channel that shows each failure as it is: no retries of its own.

    `namespace`: where its calls go that do not say it themselves.
    """
    return grpc.aio.insecure_channel(
        address,
        interceptors=_interceptors(namespace) if namespace else None,
        options=[
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            *options,
        ],
    )
