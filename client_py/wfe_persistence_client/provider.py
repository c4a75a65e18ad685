"""The engine's persistence provider, over the network."""

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from wfe.persistence.v1 import (
    command_pb2,
    command_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    workflow_pb2,
    workflow_pb2_grpc,
)
from wfe_persistence_client import convert
from wfe_persistence_client.calls import Calls, Deadline, RetryPolicy
from wfe_persistence_client.errors import LeaseLost, PersistenceError
from wfe_persistence_client.model import (
    ClaimedCommand,
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    MigratedStore,
    Namespace,
    PersistedWorkflow,
    ScheduledCommand,
    StoreInfo,
    WorkflowInstance,
)

#: Takes one due command; what it raises gives the command back.
CommandHandler = Callable[[ScheduledCommand], Awaitable[object]]

#: What to show the server as a bearer token: the token, or a function that
#: answers the current one, asked before every attempt.
Token = str | Callable[[], str]

_DEFAULT_TIMEOUT = 30.0
_LARGEST_PAGE = 1000
_DEFAULT_LEASE = timedelta(seconds=30)

_T = TypeVar("_T")
_PageRequestT = TypeVar(
    "_PageRequestT",
    bound=workflow_pb2.GetRunnableInstancesRequest
    | event_pb2.GetRunnableEventsRequest
    | event_pb2.GetEventsRequest
    | subscription_pb2.GetSubscriptionsRequest
    | store_pb2.ListErrorsRequest
    | store_pb2.ListNamespacesRequest,
)
_PageT = TypeVar(
    "_PageT",
    bound=workflow_pb2.GetRunnableInstancesResponse
    | event_pb2.GetRunnableEventsResponse
    | event_pb2.GetEventsResponse
    | subscription_pb2.GetSubscriptionsResponse
    | store_pb2.ListErrorsResponse
    | store_pb2.ListNamespacesResponse,
)


def connect(
    target: str,
    *,
    namespace: str | None = None,
    timeout: float = _DEFAULT_TIMEOUT,
    token: Token | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    max_message_bytes: int | None = None,
    retry: RetryPolicy | None = None,
) -> "PersistenceProvider":
    """A provider on a connection of its own.

    To be called where an event loop runs. The connection is made by the first
    call, and again after it broke. Close the provider, or use it as an async
    context manager:

        async with connect("localhost:50051") as provider:
            await provider.get_store_info()

    Args:
        target: `host:port`, `unix:/path/of/socket`, or any other gRPC target.
        namespace: the namespace all calls go to; None: the server's default.
        timeout: how long a call may take, all its attempts together, in seconds.
        token: sent as `authorization: Bearer …`. Without `credentials` it crosses
            the network in the clear: then only for a local server.
        credentials: of the TLS connection, for example
            `grpc.ssl_channel_credentials(...)`; None: no TLS.
        max_message_bytes: the largest answer to take; None: any size.
        retry: how often and how fast to try again; None: the defaults.
    """
    # A channel belongs to the loop it is made on; without one gRPC would pick some other.
    asyncio.get_running_loop()
    receive_limit = -1 if max_message_bytes is None else max_message_bytes
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", receive_limit),
        ("grpc.max_send_message_length", -1),
        # This adapter retries by itself: it knows what is safe to repeat.
        ("grpc.enable_retries", 0),
        # A connection whose other end vanished is found out while calls wait on it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnect within the span of the retries; gRPC's own default is up to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options)
    return PersistenceProvider(
        channel, namespace=namespace, timeout=timeout, token=token, retry=retry
    )


class PersistenceProvider:
    """The operations of the engine's `PersistenceProvider` trait.

    What holds for every method:

    - It ends within `timeout` seconds, all attempts and pages together, with
      `DeadlineExceeded` at the latest (`with_timeout` sets another time).
    - It tries again by itself after failures that pass (`RetryPolicy`), but only
      where that is safe: reads; writes that are the same when made twice; and any
      write if it is certain that the attempt before wrote nothing.
    - It raises `PersistenceError`, besides those named with the method:
      `InvalidArgument` for what the store refuses, `Unavailable`,
      `CommitOutcomeUnknown` for a write that may or may not have been made,
      `ResourceExhausted`, `DeadlineExceeded`, `TransactionConflict`. What cannot
      be sent at all raises ValueError or TypeError.
    - `as_at` and `as_of` of None mean now, by the database's clock; every datetime
      must have a timezone.
    - Cancelling it abandons the call; a write may have been made.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        namespace: str | None = None,
        timeout: float = _DEFAULT_TIMEOUT,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """A provider on a channel of the caller's; `connect` makes one with its own.

        Closing the provider closes the channel. It should have gRPC's own retries
        switched off (`grpc.enable_retries` 0).
        """
        self._channel = channel
        self._token = token
        self._bind(namespace, timeout, retry or RetryPolicy())
        # The generated stubs' types are for the blocking kind of channel by default.
        self._workflows: workflow_pb2_grpc.WorkflowServiceAsyncStub = (
            workflow_pb2_grpc.WorkflowServiceStub(channel)
        )
        self._events: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(
            channel
        )
        self._subscriptions: subscription_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self._commands: command_pb2_grpc.ScheduledCommandServiceAsyncStub = (
            command_pb2_grpc.ScheduledCommandServiceStub(channel)
        )
        self._store: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)

    async def __aenter__(self) -> Self:
        """The provider itself."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way end with an error.

        Providers made from this one by `with_timeout` and `with_namespace` share
        the connection and are closed too.
        """
        await self._channel.close()

    def with_timeout(self, timeout: float) -> Self:
        """The same provider, on the same connection, with another timeout.

        For single calls: `await provider.with_timeout(5).get_event(event_id)`.

        Args:
            timeout: in seconds, above 0.
        """
        return self._copy(namespace=self._namespace, timeout=timeout)

    def with_namespace(self, namespace: str | None) -> Self:
        """The same provider, on the same connection, for another namespace.

        Args:
            namespace: its name; None: the server's default.
        """
        return self._copy(namespace=namespace, timeout=self._calls.timeout)

    def _copy(self, *, namespace: str | None, timeout: float) -> Self:
        # Shares the stubs, so that it is cheap enough to be made for one call.
        other = copy.copy(self)
        other._bind(namespace, timeout, self._calls.retry)
        return other

    def _bind(self, namespace: str | None, timeout: float, retry: RetryPolicy) -> None:
        if namespace is not None:
            _check_metadata("namespace", namespace)
        self._namespace = namespace
        self._calls = Calls(self._channel, timeout=timeout, retry=retry, metadata=self._metadata)

    # Workflows

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        """Stores a new workflow with all its pointers, and answers its id.

        An empty id is replaced by a new UUID, an empty name by the id. The same
        workflow again (same id, same content) changes nothing, even if it has moved
        on since. Who wants to be able to call again after `CommitOutcomeUnknown`
        or `DeadlineExceeded` gives the id.

        Raises:
            WorkflowAlreadyExists: the id is in use by other content.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit.
        """
        message = convert.workflow_to_proto(instance)
        # Chosen here and not by the store, so that another attempt is the same create.
        message.id = message.id or _new_id()
        answer = await self._calls.unary(
            self._workflows.CreateNewWorkflow,
            workflow_pb2.CreateNewWorkflowRequest(instance=message),
        )
        return answer.id

    async def persist_workflow(
        self, instance: WorkflowInstance, *, expected_revision: int | None = None
    ) -> int:
        """Replaces the stored state of a workflow, and answers its new revision.

        Pointers no longer in it are removed; the order is kept; an empty name leaves
        the stored one. `instance` itself is not changed.

        Args:
            instance: the whole new state, with its id.
            expected_revision: write only if this is the stored revision, from 1;
                None: the last writer wins.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision; nothing was written.
            CommitOutcomeUnknown: also if an answer was lost and the revision has
                grown since, be it by this write or by another.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit.
        """
        answer = await self._calls.unary(
            self._workflows.PersistWorkflow,
            workflow_pb2.PersistWorkflowRequest(
                instance=convert.workflow_to_proto(instance),
                expected_revision=expected_revision,
            ),
        )
        return answer.revision

    async def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Sequence[EventSubscription],
        *,
        expected_revision: int | None = None,
    ) -> PersistedWorkflow:
        """`persist_workflow` and the creation of subscriptions, all or nothing.

        Empty ids of subscriptions are replaced by new UUIDs. A subscription that
        exists already with the same content is left as it is.

        Raises:
            SubscriptionAlreadyExists: an id is in use by other content.
            WorkflowNotFound, RevisionMismatch, CommitOutcomeUnknown, NameTaken,
            TooLarge: as for `persist_workflow`.
        """
        messages = convert.subscriptions_to_proto(subscriptions)
        for message in messages:
            message.id = message.id or _new_id()
        answer = await self._calls.unary(
            self._workflows.PersistWorkflowWithSubscriptions,
            workflow_pb2.PersistWorkflowWithSubscriptionsRequest(
                instance=convert.workflow_to_proto(instance),
                subscriptions=messages,
                expected_revision=expected_revision,
            ),
        )
        return PersistedWorkflow(
            revision=answer.revision, subscription_ids=list(answer.subscription_ids)
        )

    async def get_workflow_instance(self, workflow_id: str) -> WorkflowInstance:
        """Answers a workflow with its pointers, as of one moment.

        Raises:
            WorkflowNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._workflows.GetWorkflowInstance,
            workflow_pb2.GetWorkflowInstanceRequest(id=workflow_id),
        )
        return convert.workflow_from_proto(answer.instance)

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        """Answers the workflow of a name with its pointers, as of one moment.

        Raises:
            WorkflowNotFound: no workflow has the name.
        """
        answer = await self._calls.unary(
            self._workflows.GetWorkflowInstanceByName,
            workflow_pb2.GetWorkflowInstanceByNameRequest(name=name),
        )
        return convert.workflow_from_proto(answer.instance)

    async def get_workflow_instances(self, workflow_ids: Iterable[str]) -> list[WorkflowInstance]:
        """Answers many workflows as of one moment, in the order asked.

        Ids that do not exist are left out; an id asked for twice is answered twice.
        """
        answers = await self._calls.collect(
            self._workflows.GetWorkflowInstances,
            workflow_pb2.GetWorkflowInstancesRequest(ids=list(workflow_ids)),
        )
        return [convert.workflow_from_proto(answer.instance) for answer in answers]

    async def get_runnable_instances(self, as_at: datetime | None = None) -> list[str]:
        """Answers the ids of all runnable workflows that are due, soonest first.

        Those with status RUNNABLE and `next_execution` up to and including `as_at`
        (truncated to milliseconds). It reads page by page: a workflow that stops
        being runnable meanwhile may be missing.
        """
        pages = self._runnable_instances(as_at, _LARGEST_PAGE, self._calls.deadline())
        return [instance_id async for instance_id in pages]

    def iter_runnable_instances(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """`get_runnable_instances`, page by page as they are wanted.

        Args:
            as_at: as there.
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._runnable_instances(as_at, page_size, None)

    def _runnable_instances(
        self, as_at: datetime | None, page_size: int, deadline: Deadline | None
    ) -> AsyncIterator[str]:
        return self._pages(
            self._workflows.GetRunnableInstances,
            workflow_pb2.GetRunnableInstancesRequest(
                as_at=convert.optional_timestamp("as_at", as_at), page_size=page_size
            ),
            lambda page: page.instance_ids,
            deadline,
        )

    async def next_definition_sequence(self, definition_id: str) -> int:
        """Takes the next number of a definition, from 1 on.

        No number is given twice; after a lost answer one may be skipped.
        """
        answer = await self._calls.unary(
            self._workflows.NextDefinitionSequence,
            workflow_pb2.NextDefinitionSequenceRequest(definition_id=definition_id),
        )
        return answer.number

    # Subscriptions

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        """Stores a new subscription, and answers its id; the workflow need not exist.

        An empty id is replaced by a new UUID. The same subscription again changes
        nothing, even if it was claimed since.

        Raises:
            SubscriptionAlreadyExists: the id is in use by other content.
        """
        message = convert.subscription_to_proto(subscription)
        message.id = message.id or _new_id()
        answer = await self._calls.unary(
            self._subscriptions.CreateEventSubscription,
            subscription_pb2.CreateEventSubscriptionRequest(subscription=message),
        )
        return answer.id

    async def get_subscription(self, subscription_id: str) -> EventSubscription:
        """Answers one subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.GetSubscription,
            subscription_pb2.GetSubscriptionRequest(id=subscription_id),
        )
        return convert.subscription_from_proto(answer.subscription)

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> list[EventSubscription]:
        """Answers all open subscriptions of an event name and key, oldest first.

        Those with `subscribe_as_of` up to and including `as_of` that nobody holds.
        It reads page by page: one that is claimed meanwhile may be missing.
        """
        pages = self._open_subscriptions(
            event_name, event_key, as_of, _LARGEST_PAGE, self._calls.deadline()
        )
        return [subscription async for subscription in pages]

    def iter_subscriptions(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """`get_subscriptions`, page by page as they are wanted.

        Args:
            event_name: as there.
            event_key: as there.
            as_of: as there.
            page_size: subscriptions a page, up to 1000; 0: 100. The timeout is for
                one page.
        """
        return self._open_subscriptions(event_name, event_key, as_of, page_size, None)

    def _open_subscriptions(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[EventSubscription]:
        return self._pages(
            self._subscriptions.GetSubscriptions,
            subscription_pb2.GetSubscriptionsRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
                page_size=page_size,
            ),
            lambda page: map(convert.subscription_from_proto, page.subscriptions),
            deadline,
        )

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> EventSubscription | None:
        """Answers the first of `get_subscriptions`, or None; it does not claim it."""
        answer = await self._calls.unary(
            self._subscriptions.GetFirstOpenSubscription,
            subscription_pb2.GetFirstOpenSubscriptionRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
            ),
        )
        if not answer.HasField("subscription"):
            return None
        return convert.subscription_from_proto(answer.subscription)

    async def terminate_subscription(self, subscription_id: str) -> None:
        """Removes a subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        await self._calls.settle(
            self._subscriptions.TerminateSubscription,
            subscription_pb2.TerminateSubscriptionRequest(id=subscription_id),
        )

    async def set_subscription_token(
        self, subscription_id: str, token: str, worker_id: str, expiry: datetime | None
    ) -> bool:
        """Takes hold of a subscription; answers whether this worker holds it now.

        It succeeds if the subscription is open, or held with the same token and
        worker already: then the expiry becomes the given one.

        Args:
            subscription_id: its id.
            token: a text that only this worker knows, best a new UUID for each
                attempt; 1 to 512 bytes.
            worker_id: who takes it, for people who look.
            expiry: when the hold ends by itself, by the database's clock, in the
                future; None: it is held until cleared.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            subscription_pb2.SetSubscriptionTokenRequest(
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                expiry=convert.optional_timestamp("expiry", expiry),
            ),
        )
        return answer.acquired

    async def clear_subscription_token(self, subscription_id: str, token: str) -> None:
        """Lets go of a subscription, so that it is open again.

        Raises:
            TokenMismatch: it is not held with this token; nothing was changed.
            SubscriptionNotFound: it does not exist.
        """
        await self._calls.settle(
            self._subscriptions.ClearSubscriptionToken,
            subscription_pb2.ClearSubscriptionTokenRequest(id=subscription_id, token=token),
        )

    # Events

    async def create_event(self, event: Event) -> str:
        """Stores a new event, and answers its id.

        An empty id is replaced by a new UUID. The same event again (same id, same
        content) changes nothing, even if it was marked processed since.

        Raises:
            EventAlreadyExists: the id is in use by other content.
        """
        message = convert.event_to_proto(event)
        message.id = message.id or _new_id()
        answer = await self._calls.unary(
            self._events.CreateEvent, event_pb2.CreateEventRequest(event=message)
        )
        return answer.id

    async def get_event(self, event_id: str) -> Event:
        """Answers one event.

        Raises:
            EventNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._events.GetEvent, event_pb2.GetEventRequest(id=event_id)
        )
        return convert.event_from_proto(answer.event)

    async def get_runnable_events(self, as_at: datetime | None = None) -> list[str]:
        """Answers the ids of all unprocessed events, oldest first.

        Those with `event_time` up to and including `as_at`. It reads page by page:
        one that is marked processed meanwhile may be missing.
        """
        pages = self._runnable_events(as_at, _LARGEST_PAGE, self._calls.deadline())
        return [event_id async for event_id in pages]

    def iter_runnable_events(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """`get_runnable_events`, page by page as they are wanted.

        Args:
            as_at: as there.
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._runnable_events(as_at, page_size, None)

    def _runnable_events(
        self, as_at: datetime | None, page_size: int, deadline: Deadline | None
    ) -> AsyncIterator[str]:
        return self._pages(
            self._events.GetRunnableEvents,
            event_pb2.GetRunnableEventsRequest(
                as_at=convert.optional_timestamp("as_at", as_at), page_size=page_size
            ),
            lambda page: page.event_ids,
            deadline,
        )

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> list[str]:
        """Answers the ids of all events of a name and key, oldest first.

        Those with `event_time` up to and including `as_of`, processed or not.
        """
        pages = self._events_of(event_name, event_key, as_of, _LARGEST_PAGE, self._calls.deadline())
        return [event_id async for event_id in pages]

    def iter_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """`get_events`, page by page as they are wanted.

        Args:
            event_name: as there.
            event_key: as there.
            as_of: as there.
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._events_of(event_name, event_key, as_of, page_size, None)

    def _events_of(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[str]:
        return self._pages(
            self._events.GetEvents,
            event_pb2.GetEventsRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
                page_size=page_size,
            ),
            lambda page: page.event_ids,
            deadline,
        )

    async def mark_event_processed(self, event_id: str) -> None:
        """Marks an event as processed.

        Raises:
            EventNotFound: it does not exist.
        """
        await self._calls.unary(
            self._events.MarkEventProcessed, event_pb2.MarkEventProcessedRequest(id=event_id)
        )

    async def mark_event_unprocessed(self, event_id: str) -> None:
        """Marks an event as not processed, so that it is handed out again.

        Raises:
            EventNotFound: it does not exist.
        """
        await self._calls.unary(
            self._events.MarkEventUnprocessed, event_pb2.MarkEventUnprocessedRequest(id=event_id)
        )

    # Scheduled commands

    async def supports_scheduled_commands(self) -> bool:
        """Whether the store has scheduled commands."""
        return (await self.get_store_info()).capabilities.scheduled_commands

    async def schedule_command(self, command: ScheduledCommand) -> None:
        """Schedules a command; one of the same name and data gets the new time.

        A command that is claimed at that moment stays claimed, and stays scheduled
        when that claim is completed.
        """
        await self._calls.unary(
            self._commands.ScheduleCommand,
            command_pb2.ScheduleCommandRequest(command=convert.command_to_proto(command)),
        )

    async def claim_commands(
        self,
        as_of: datetime | None = None,
        *,
        limit: int = 0,
        lease_duration: timedelta | None = None,
        worker_id: str = "",
    ) -> list[ClaimedCommand]:
        """Claims due commands, soonest first, each for one claimer at a time.

        Due is what has `execute_time` up to and including `as_of` (truncated to
        milliseconds) and is not under somebody's lease. After a lost answer the
        claimed commands become due again when their leases expire.

        Args:
            as_of: see the class.
            limit: how many at most, up to 1000; 0: 100.
            lease_duration: how long the claim holds, 1 ms to 24 h; None: 30 s.
            worker_id: who claims, for people who look.
        """
        answer = await self._calls.unary(
            self._commands.ClaimCommands,
            command_pb2.ClaimCommandsRequest(
                as_of=convert.optional_timestamp("as_of", as_of),
                limit=limit,
                lease_duration=None if lease_duration is None else convert.duration(lease_duration),
                worker_id=worker_id,
            ),
        )
        return [convert.claimed_command_from_proto(message) for message in answer.commands]

    async def complete_commands(self, lease_tokens: Iterable[str]) -> None:
        """Removes claimed commands that are handled, all or nothing.

        A command scheduled again since its claim stays, with its new time.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice.

        Raises:
            LeaseLost: some are no longer claimed so; nothing was changed. Only if
                `maybe_written`, they may also be lost because this very call was
                applied: the server names too few of them to tell.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.CompleteCommands,
            command_pb2.CompleteCommandsRequest(lease_tokens=tokens),
            _all_lost(tokens),
        )

    async def release_commands(self, lease_tokens: Iterable[str]) -> None:
        """Gives claimed commands back unhandled, due at once; all or nothing.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice.

        Raises:
            LeaseLost: some are no longer claimed so; nothing was changed. Only if
                `maybe_written`, they may also be lost because this very call was
                applied: the server names too few of them to tell.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.ReleaseCommands,
            command_pb2.ReleaseCommandsRequest(lease_tokens=tokens),
            _all_lost(tokens),
        )

    async def process_commands(
        self,
        as_of: datetime | None,
        handler: CommandHandler,
        *,
        worker_id: str = "",
        batch_size: int = 10,
        lease_duration: timedelta = _DEFAULT_LEASE,
    ) -> int:
        """Handles the commands that are due, and answers how many it completed.

        It claims a small batch, handles one command after the other, soonest first,
        and completes each as soon as its handler returns, until no more are due.
        Any number of hosts may do so at the same time: each command is handed to
        one. A host that dies in between leaves the command to others when its lease
        expires, so a handler must bear being run again.

        - A handler that raises an Exception gives its command back, to be due again
          when this call ends; the other commands go on. At the end all failures are
          raised together.
        - No command (name and data) is handled twice within one call, even if it is
          scheduled again meanwhile; that is left to the next call.
        - A command whose lease ran out while it waited in its batch is not handled;
          it is claimed anew. One whose handler takes longer than the lease may be
          handed to somebody else meanwhile: then it counts as failed, with
          `LeaseLost`.
        - When the store cannot be reached, or this call is cancelled, it ends at
          once; what it still has claimed becomes due when the leases expire.

        Args:
            as_of: see the class.
            handler: an async function of one command.
            worker_id: who handles them, for people who look.
            batch_size: how many to claim at once, 1 to 1000.
            lease_duration: how long a claim holds, 1 ms to 24 h: enough for the
                handlers of a whole batch.

        Raises:
            ExceptionGroup: of what the handlers raised, each with a note naming the
                command, and of what went wrong with completing or claiming more.
            PersistenceError: the first claim failed.
        """
        if not 1 <= batch_size <= _LARGEST_PAGE:
            raise ValueError("batch_size must be 1 to 1000")
        round_ = _CommandRound(self, handler)
        more = True
        while more:
            # Begun before the claim is sent, so it never ends after the real one.
            lease = Deadline(lease_duration.total_seconds())
            try:
                batch = await self.claim_commands(
                    as_of, limit=batch_size, lease_duration=lease_duration, worker_id=worker_id
                )
            except PersistenceError as exc:
                if not round_.handled:
                    raise
                round_.abandon(exc)
                break
            more = await round_.handle(batch, lease)
        return await round_.finish()

    # Store

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        """Adds errors to the log, all or none; the workflows need not exist.

        Not repeated after an attempt that may have been made: then it raises
        `CommitOutcomeUnknown`, and calling again may log the errors twice.
        """
        await self._calls.unary(
            self._store.PersistErrors,
            store_pb2.PersistErrorsRequest(errors=convert.errors_to_proto(errors)),
        )

    async def list_errors(self, workflow_id: str = "") -> list[ExecutionError]:
        """Answers all logged errors, the last logged first.

        Args:
            workflow_id: only those of this workflow; empty: of all.
        """
        pages = self._logged_errors(workflow_id, _LARGEST_PAGE, self._calls.deadline())
        return [error async for error in pages]

    def iter_errors(
        self, workflow_id: str = "", *, page_size: int = 0
    ) -> AsyncIterator[ExecutionError]:
        """`list_errors`, page by page as they are wanted.

        Args:
            workflow_id: as there.
            page_size: errors a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._logged_errors(workflow_id, page_size, None)

    def _logged_errors(
        self, workflow_id: str, page_size: int, deadline: Deadline | None
    ) -> AsyncIterator[ExecutionError]:
        return self._pages(
            self._store.ListErrors,
            store_pb2.ListErrorsRequest(workflow_id=workflow_id, page_size=page_size),
            lambda page: map(convert.error_from_proto, page.errors),
            deadline,
        )

    async def ensure_store_exists(self) -> MigratedStore:
        """Creates the store or brings it up to date.

        Raises:
            SchemaTooNew: a newer server migrated it.
            DatabasePermissionDenied: the server's database role may not.
        """
        answer = await self._calls.unary(
            self._store.EnsureStoreExists, store_pb2.EnsureStoreExistsRequest()
        )
        return MigratedStore(
            schema_version=answer.schema_version,
            applied_migrations=list(answer.applied_migrations),
        )

    async def get_store_info(self) -> StoreInfo:
        """Answers what the server and its store are and can do."""
        answer = await self._calls.unary(self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest())
        return convert.store_info_from_proto(answer)

    async def truncate_all(self) -> None:
        """Empties every table of the store, for tests.

        Raises:
            TruncateNotAllowed: the server was started without the flag for it.
        """
        await self._calls.unary(self._store.TruncateAll, store_pb2.TruncateAllRequest())

    # Namespaces. These calls go to the server as a whole, whatever namespace the
    # provider was connected to; so one may create its own.

    async def create_namespace(self, name: str) -> MigratedStore:
        """Creates a namespace, or brings it up to date.

        Args:
            name: `[a-z][a-z0-9_]{0,39}`, not `default`.

        Raises:
            InvalidArgument: the name is bad.
            SchemaTooNew: it exists, and a newer server migrated it.
            DatabasePermissionDenied: the server's database role may not.
        """
        whole = self.with_namespace(None)
        answer = await whole._calls.unary(
            whole._store.CreateNamespace, store_pb2.CreateNamespaceRequest(name=name)
        )
        return MigratedStore(
            schema_version=answer.schema_version,
            applied_migrations=list(answer.applied_migrations),
        )

    async def list_namespaces(self) -> list[Namespace]:
        """All namespaces, `default` first."""
        whole = self.with_namespace(None)
        pages = whole._pages(
            whole._store.ListNamespaces,
            store_pb2.ListNamespacesRequest(),
            lambda page: map(convert.namespace_from_proto, page.namespaces),
            whole._calls.deadline(),
        )
        return [namespace async for namespace in pages]

    async def delete_namespace(self, name: str, *, force: bool = False) -> None:
        """Deletes a namespace with all that is stored in it.

        Args:
            name: not `default`.
            force: even if something is stored in it.

        Raises:
            NamespaceNotFound: there is none.
            NamespaceNotEmpty: something is stored in it, and `force` was not given.
            DeleteNamespaceNotAllowed: the server was started without the flag for it.
        """
        whole = self.with_namespace(None)
        await whole._calls.unary(
            whole._store.DeleteNamespace,
            store_pb2.DeleteNamespaceRequest(name=name, force=force),
        )

    # What every call needs

    def _metadata(self) -> list[tuple[str, str]]:
        metadata = []
        if self._namespace is not None:
            metadata.append(("wfe-namespace", self._namespace))
        if self._token is not None:
            token = self._token if isinstance(self._token, str) else self._token()
            _check_metadata("token", token)
            metadata.append(("authorization", f"Bearer {token}"))
        return metadata

    async def _pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_PageRequestT, _PageT],
        request: _PageRequestT,
        items: Callable[[_PageT], Iterable[_T]],
        deadline: Deadline | None,
    ) -> AsyncIterator[_T]:
        """The items of all pages; without a deadline each page has its own."""
        while True:
            page = await self._calls.unary(method, request, deadline)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class _CommandRound:
    """What one `process_commands` has done so far."""

    def __init__(self, provider: PersistenceProvider, handler: CommandHandler) -> None:
        self._provider = provider
        self._handler = handler
        self.handled: set[tuple[CommandName, str]] = set()
        self.failures: list[Exception] = []
        self._completed = 0
        self._set_aside: set[tuple[CommandName, str]] = set()
        # What failed stays claimed until the end, so that it is not handed out again
        # before everything else had its turn.
        self._to_release: list[str] = []
        self._store_failed = False

    async def handle(self, batch: Sequence[ClaimedCommand], lease: Deadline) -> bool:
        """Handles a batch; answers whether there may be more to do."""
        progress = False
        for position, claimed in enumerate(batch):
            key = (claimed.command.command_name, claimed.command.data)
            if key in self.handled:
                # Out of the way of the others until the end. Only once for each, lest
                # leases shorter than the round make it go on for ever.
                self._to_release.append(claimed.lease_token)
                progress |= key not in self._set_aside
                self._set_aside.add(key)
                continue
            if lease.remaining() <= 0:
                if not progress:
                    # Claiming again would only go on like this.
                    self.failures.append(
                        LeaseLost(
                            f"the leases of {len(batch) - position} commands ran out before "
                            "they could be handled: use a longer lease_duration"
                        )
                    )
                break
            self.handled.add(key)
            progress = True
            await self._handle_one(claimed)
            if self._store_failed:
                return False
        return progress

    async def _handle_one(self, claimed: ClaimedCommand) -> None:
        command = claimed.command
        note = f"command: {command.command_name.name} {command.data!r}"
        try:
            await self._handler(command)
        except Exception as exc:
            exc.add_note(note)
            self.failures.append(exc)
            self._to_release.append(claimed.lease_token)
            return
        try:
            await self._provider.complete_commands([claimed.lease_token])
        except PersistenceError as exc:
            exc.add_note(note)
            if isinstance(exc, LeaseLost):
                self.failures.append(exc)
            else:
                self.abandon(exc)
        else:
            self._completed += 1

    def abandon(self, failure: PersistenceError) -> None:
        """Ends the round because the store fails; the leases end by themselves."""
        self.failures.append(failure)
        self._store_failed = True

    async def finish(self) -> int:
        """Gives back what failed; answers how many were completed, or raises."""
        if not self._store_failed:
            await self._release()
        if self.failures:
            raise ExceptionGroup(
                f"{len(self.failures)} failures while processing {len(self.handled)} commands",
                self.failures,
            )
        return self._completed

    async def _release(self) -> None:
        # One by one, since together one lost lease would keep all others claimed.
        for token in self._to_release:
            try:
                await self._provider.release_commands([token])
            except LeaseLost:
                # It ran out meanwhile: the command is free already.
                continue
            except PersistenceError as exc:
                self.failures.append(exc)
                return


def _new_id() -> str:
    return str(uuid.uuid4())


def _check_metadata(name: str, value: str) -> None:
    # gRPC would refuse it with an error that names neither the cause nor the place.
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} must be printable ASCII")


def _all_lost(tokens: Sequence[str]) -> Callable[[PersistenceError], bool]:
    """Whether every one of these leases is lost.

    Completing and releasing are all or nothing: if one of them is still held, no
    earlier attempt was applied.
    """

    def all_lost(error: PersistenceError) -> bool:
        return isinstance(error, LeaseLost) and set(tokens) <= set(error.lease_tokens)

    return all_lost
