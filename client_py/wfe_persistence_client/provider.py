"""The engine's persistence provider, over the network."""

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
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
from wfe_persistence_client import convert, patches
from wfe_persistence_client.calls import Calls, Deadline, RetryPolicy
from wfe_persistence_client.errors import (
    CommitOutcomeUnknown,
    LeaseLost,
    PartialWorkflow,
    PersistenceError,
    PointerNotFound,
    RevisionMismatch,
    TooLarge,
    Unimplemented,
)
from wfe_persistence_client.model import (
    ClaimedCommand,
    CommandName,
    CommittedWorkflow,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    ListOrder,
    MigratedStore,
    Namespace,
    PersistedWorkflow,
    PurgedWorkflows,
    ScheduledCommand,
    StoreInfo,
    SubscriptionClaim,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.step import Step

#: Takes one due command; what it raises gives the command back.
CommandHandler = Callable[[ScheduledCommand], Awaitable[object]]

#: What to show the server as a bearer token: the token, or a function that
#: answers the current one, asked before every attempt.
Token = str | Callable[[], str]

_DEFAULT_TIMEOUT = 30.0
_DEFAULT_NAMESPACE = "default"
_LARGEST_PAGE = 1000
_DEFAULT_LEASE = timedelta(seconds=30)
#: Items in each list of a commit, at most.
_LARGEST_COMMIT = 1000

_T = TypeVar("_T")
#: Stores a workflow as a whole: its state, the revision it may replace, the deadline.
_Whole = Callable[
    [workflow_pb2.WorkflowInstance, int | None, Deadline], Awaitable[CommittedWorkflow]
]

_PersistT = TypeVar(
    "_PersistT",
    workflow_pb2.PersistWorkflowRequest,
    workflow_pb2.PersistWorkflowWithSubscriptionsRequest,
)
_PersistedT = TypeVar(
    "_PersistedT",
    workflow_pb2.PersistWorkflowResponse,
    workflow_pb2.PersistWorkflowWithSubscriptionsResponse,
)
_PageRequestT = TypeVar(
    "_PageRequestT",
    bound=workflow_pb2.GetRunnableInstancesRequest
    | workflow_pb2.ListExecutionPointersRequest
    | workflow_pb2.ListWorkflowsRequest
    | workflow_pb2.PurgeWorkflowsRequest
    | event_pb2.ListEventsRequest
    | event_pb2.PurgeEventsRequest
    | subscription_pb2.ListSubscriptionsRequest
    | event_pb2.GetRunnableEventsRequest
    | event_pb2.GetEventsRequest
    | subscription_pb2.GetSubscriptionsRequest
    | store_pb2.ListErrorsRequest
    | store_pb2.ListNamespacesRequest,
)
_PageT = TypeVar(
    "_PageT",
    bound=workflow_pb2.GetRunnableInstancesResponse
    | workflow_pb2.ListExecutionPointersResponse
    | workflow_pb2.ListWorkflowsResponse
    | workflow_pb2.PurgeWorkflowsResponse
    | event_pb2.ListEventsResponse
    | event_pb2.PurgeEventsResponse
    | subscription_pb2.ListSubscriptionsResponse
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
    strict: bool = False,
    remember: int = patches.DEFAULT_CAPACITY,
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
        strict: whether a workflow may replace only the revision that it was loaded or
            last written with; otherwise the last writer wins. See `persist_workflow`.
        remember: of how many execution pointers to remember what was loaded or written
            last, so that only what changes has to be sent; about 250 bytes each; the
            workflow used longest ago is forgotten first. 0: always send everything.
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
        channel,
        namespace=namespace,
        timeout=timeout,
        token=token,
        retry=retry,
        strict=strict,
        remember=remember,
    )


@dataclass(slots=True)
class _Shared:
    """What all copies of a provider know of the server behind their connection."""

    memory: patches.Memory
    #: False: the server is too old for CommitWorkflow.
    commits: bool = True


class PersistenceProvider:
    """The operations of the engine's `PersistenceProvider` trait.

    What holds for every method:

    - It ends within `timeout` seconds, all attempts and pages together, with
      `DeadlineExceeded` at the latest (`with_timeout` sets another time).
    - It tries again by itself after failures that pass (`RetryPolicy`), but only
      where that is safe: reads; writes that are the same when made twice, or that the
      server knows again; and any write if it is certain that the attempt before wrote
      nothing.
    - It raises `PersistenceError`, besides those named with the method:
      `InvalidArgument` for what the store refuses, `Unavailable`,
      `CommitOutcomeUnknown` for a write that may or may not have been made,
      `ResourceExhausted`, `DeadlineExceeded`, `TransactionConflict`. What cannot
      be sent at all raises ValueError or TypeError.
    - It remembers digests of the workflows that it loaded or wrote last, and writes only
      what changed where it can; what is stored is the same as if it had sent all.
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
        strict: bool = False,
        remember: int = patches.DEFAULT_CAPACITY,
    ) -> None:
        """A provider on a channel of the caller's; `connect` makes one with its own.

        Closing the provider closes the channel. It should have gRPC's own retries
        switched off (`grpc.enable_retries` 0).
        """
        self._channel = channel
        self._token = token
        self._strict = strict
        self._shared = _Shared(patches.Memory(remember))
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
            PartialWorkflow: it was loaded with a view.
            WorkflowAlreadyExists: the id is in use by other content.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit.
        """
        _check_whole(instance)
        message = convert.workflow_to_proto(instance)
        message.revision = 0
        # Chosen here and not by the store, so that another attempt is the same create.
        message.id = message.id or _new_id()
        answer = await self._calls.unary(
            self._workflows.CreateNewWorkflow,
            workflow_pb2.CreateNewWorkflowRequest(instance=message),
        )
        if self._shared.memory.capacity:
            message.id, message.name = answer.id, answer.name
            self._remember(answer.id, patches.snapshot(message).stored(answer.revision, None))
        return answer.id

    async def persist_workflow(
        self,
        instance: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> int:
        """Replaces the stored state of a workflow, and answers its new revision.

        Pointers no longer in it are removed; the order is kept; an empty name leaves
        the stored one. Of `instance` only `revision` is changed, to the new one.

        It sends only what changed since the provider loaded or wrote the workflow last,
        where that is less. If somebody else has written since, it sends everything: the
        last writer wins, whole. In strict mode it raises `RevisionMismatch` instead.

        One that was loaded as a part (`view`) can be stored as a change only, and only
        to the revision it was loaded or last written with, in any mode.

        Args:
            instance: the whole new state, with its id; or a part as it was loaded, with
                its changes.
            expected_revision: write only if this is the stored revision, from 1;
                None: as `strict` says.
            strict: whether to write only if the stored revision is `instance.revision`,
                or, if that is 0, the one that this provider saw last; None: as said to
                `connect`.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision; nothing was written.
            CommitOutcomeUnknown: also if an answer was lost, the server is too old to
                know a call again, and the revision has grown since.
            PartialWorkflow: a part whose pointers are in another order than they were,
                or that the provider does not remember.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit, and there is no change to
                be sent instead, because of what others wrote for one.
            ValueError: strict, and the revision is not known.
        """

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            answer = await self._persist(
                self._workflows.PersistWorkflow,
                workflow_pb2.PersistWorkflowRequest(
                    instance=message, expected_revision=expected, request_id=_new_id()
                ),
                deadline,
            )
            return CommittedWorkflow(revision=answer.revision, subscription_ids=[], event_ids=[])

        effects = workflow_pb2.CommitWorkflowRequest()
        return (await self._save(instance, effects, whole, expected_revision, strict)).revision

    async def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Sequence[EventSubscription],
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> PersistedWorkflow:
        """`persist_workflow` and the creation of subscriptions, all or nothing.

        Empty ids of subscriptions are replaced by new UUIDs. A subscription that
        exists already with the same content is left as it is.

        Raises:
            SubscriptionAlreadyExists: an id is in use by other content.
            WorkflowNotFound, RevisionMismatch, CommitOutcomeUnknown, PartialWorkflow,
            NameTaken, TooLarge, ValueError: as for `persist_workflow`.
        """
        messages = convert.subscriptions_to_proto(subscriptions)
        for message in messages:
            message.id = message.id or _new_id()

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            answer = await self._persist(
                self._workflows.PersistWorkflowWithSubscriptions,
                workflow_pb2.PersistWorkflowWithSubscriptionsRequest(
                    instance=message,
                    subscriptions=messages,
                    expected_revision=expected,
                    request_id=_new_id(),
                ),
                deadline,
            )
            return CommittedWorkflow(
                revision=answer.revision,
                subscription_ids=list(answer.subscription_ids),
                event_ids=[],
            )

        effects = workflow_pb2.CommitWorkflowRequest(create_subscriptions=messages)
        answer = await self._save(instance, effects, whole, expected_revision, strict)
        return PersistedWorkflow(revision=answer.revision, subscription_ids=answer.subscription_ids)

    async def commit_workflow(
        self,
        state: WorkflowInstance | WorkflowPatch,
        *,
        expected_revision: int | None = None,
        held_subscriptions: Iterable[SubscriptionClaim] = (),
        held_lease_tokens: Iterable[str] = (),
        create_subscriptions: Sequence[EventSubscription] = (),
        terminate_subscription_ids: Iterable[str] = (),
        create_events: Sequence[Event] = (),
        processed_event_ids: Iterable[str] = (),
        errors: Sequence[ExecutionError] = (),
        schedule_commands: Iterable[ScheduledCommand] = (),
        complete_lease_tokens: Iterable[str] = (),
        request_id: str | None = None,
    ) -> CommittedWorkflow:
        """Stores one step of an engine, all or nothing, exactly as it is given.

        `step` is the same with a new state that finds out by itself what changed. Of
        each list at most 1000 items. Empty ids of what is created are replaced by new
        UUIDs. What is created or scheduled twice is as in the calls of its own.

        Args:
            state: the workflow's new state as a whole, or what changes in it. Of an
                instance only `revision` is changed, to the new one.
            expected_revision: write only if this is the stored revision, from 1; needed
                with a patch. None: write whatever is stored.
            held_subscriptions: write only if each of these claims is still held.
            held_lease_tokens: write only if each of these leases is still held.
            create_subscriptions: subscriptions to create.
            terminate_subscription_ids: subscriptions to remove; each must exist.
            create_events: events to create.
            processed_event_ids: events to mark as processed; each must exist.
            errors: errors to log, in this order.
            schedule_commands: commands to schedule; none twice.
            complete_lease_tokens: claimed commands to remove, as in `complete_commands`.
            request_id: a UUID that names this write: called again with the same one and
                the same arguments, it changes nothing and answers what it answered. The
                server keeps it for `StoreInfo.request_retention`. None: a new one, for
                the attempts that this call makes by itself.

        Raises:
            WorkflowNotFound, PointerNotFound, SubscriptionNotFound, EventNotFound:
                what must exist does not.
            RevisionMismatch: the workflow has another revision.
            TokenMismatch, LeaseLost: a claim is no longer held.
            NameTaken, SubscriptionAlreadyExists, EventAlreadyExists: as in the calls of
                their own.
            RequestIdReused: the `request_id` named another write to this workflow.
            PartialWorkflow: the instance is a part of a workflow only.
            TooLarge: it is over the server's message limit.
            Unimplemented: the server is too old for it.
        """
        new_events = convert.events_to_proto(create_events)
        new_subscriptions = convert.subscriptions_to_proto(create_subscriptions)
        for event in new_events:
            event.id = event.id or _new_id()
        for subscription in new_subscriptions:
            subscription.id = subscription.id or _new_id()
        request = workflow_pb2.CommitWorkflowRequest(
            expected_revision=expected_revision,
            held_subscriptions=map(convert.claim_to_proto, held_subscriptions),
            held_lease_tokens=held_lease_tokens,
            create_subscriptions=new_subscriptions,
            terminate_subscription_ids=terminate_subscription_ids,
            create_events=new_events,
            processed_event_ids=processed_event_ids,
            errors=convert.errors_to_proto(errors),
            schedule_commands=map(convert.command_to_proto, schedule_commands),
            complete_lease_tokens=complete_lease_tokens,
            request_id=_new_id() if request_id is None else request_id,
        )
        taken: patches.Snapshot | None = None
        if isinstance(state, WorkflowPatch):
            request.patch.CopyFrom(convert.patch_to_proto(state))
        else:
            _check_whole(state)
            message = convert.workflow_to_proto(state)
            message.revision = 0
            request.instance.CopyFrom(message)
            if self._shared.memory.capacity:
                taken = patches.snapshot(message)
        committed = _committed(await self._calls.unary(self._workflows.CommitWorkflow, request))
        if isinstance(state, WorkflowPatch):
            # Its next patch would be refused, and that after a call more.
            self._shared.memory.forget(self._namespace or _DEFAULT_NAMESPACE, state.id)
        else:
            if taken is not None:
                self._remember(state.id, taken.stored(committed.revision, None))
            state.revision = committed.revision
        return committed

    def step(
        self,
        workflow: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> Step:
        """One step of an engine, to be stored as one.

            async with provider.step(workflow) as step:
                workflow.status = WorkflowStatus.COMPLETE
                step.create_event(completed)
                step.terminate_subscription(subscription_id)
                step.schedule_command(command)
                step.complete(claimed_command)
                step.hold(claim)
            print(step.revision)

        When the block ends well, everything is stored in one transaction, with the
        workflow as it is then; if the block raises, nothing is. Like `persist_workflow`
        it sends only what changed where that is less, with the same modes and errors;
        besides, it raises what `commit_workflow` raises. After an error nothing of it
        is stored, unless `maybe_written` says otherwise.

        Args:
            workflow: the workflow, loaded or made by hand, with its id.
            expected_revision: as for `persist_workflow`.
            strict: as for `persist_workflow`.
        """

        async def commit(
            instance: WorkflowInstance, effects: workflow_pb2.CommitWorkflowRequest
        ) -> CommittedWorkflow:
            async def whole(
                message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
            ) -> CommittedWorkflow:
                request = workflow_pb2.CommitWorkflowRequest(
                    instance=message, expected_revision=expected
                )
                request.MergeFrom(effects)
                request.request_id = _new_id()
                return _committed(
                    await self._calls.unary(self._workflows.CommitWorkflow, request, deadline)
                )

            return await self._save(instance, effects, whole, expected_revision, strict)

        return Step(workflow, commit)

    async def _save(
        self,
        instance: WorkflowInstance,
        effects: workflow_pb2.CommitWorkflowRequest,
        whole: _Whole,
        expected_revision: int | None,
        strict: bool | None,
    ) -> CommittedWorkflow:
        """Stores a workflow with the effects of a step, as a patch if that is less.

        `whole` stores it as a whole, with the same effects.
        """
        deadline = self._calls.deadline()
        expected: int | None = None
        remembers = self._shared.memory.capacity > 0
        # Everything of the instance is read before the first await: another task may
        # change it during the call.
        message = convert.workflow_to_proto(instance)
        message.revision = 0
        new = patches.snapshot(message) if remembers else None
        base = self._remembered(instance.id, instance.view)
        answer = None
        if instance.view is not WorkflowView.FULL:
            patch = _patch_of_part(instance, message, base, new, expected_revision)
            answer = await self._commit_patch(patch, instance.revision, effects, deadline)
        else:
            expected = expected_revision
            if expected is None and (self._strict if strict is None else strict):
                expected = instance.revision or (base.revision if base is not None else 0)
                if not expected:
                    raise ValueError(
                        "the workflow's revision is not known: load it, or give expected_revision"
                    )
            if base is not None and new is not None:
                answer = await self._save_patch(message, base, new, effects, expected, deadline)
        if answer is None:
            # What was remembered need not be what this replaces.
            base = None
            answer = await whole(message, expected, deadline)
        if new is not None:
            self._remember(instance.id, new.stored(answer.revision, base), instance.view)
        instance.revision = answer.revision
        return answer

    async def _save_patch(
        self,
        message: workflow_pb2.WorkflowInstance,
        base: patches.Snapshot,
        new: patches.Snapshot,
        effects: workflow_pb2.CommitWorkflowRequest,
        expected: int | None,
        deadline: Deadline,
    ) -> CommittedWorkflow | None:
        """Stores a workflow as a patch; None: it is to be stored as a whole."""
        if (
            not self._shared.commits
            or expected not in (None, base.revision)
            or len(effects.create_subscriptions) > _LARGEST_COMMIT
            # Another workflow that had the same id before: its revisions mean nothing.
            or new.header["create_time"] != base.header["create_time"]
        ):
            return None
        patch = patches.patch(base, new, message)
        if patch is None or patch.ByteSize() >= message.ByteSize():
            return None
        try:
            return await self._commit_patch(patch, base.revision, effects, deadline)
        except Unimplemented:
            self._shared.commits = False
        except RevisionMismatch:
            if expected is not None:
                raise
        except PointerNotFound:
            # The memory is wrong, whatever the reason; the state as a whole is right.
            pass
        return None

    async def _commit_patch(
        self,
        patch: workflow_pb2.WorkflowPatch,
        revision: int,
        effects: workflow_pb2.CommitWorkflowRequest,
        deadline: Deadline,
    ) -> CommittedWorkflow:
        request = workflow_pb2.CommitWorkflowRequest(patch=patch, expected_revision=revision)
        request.MergeFrom(effects)
        request.request_id = _new_id()
        return _committed(
            await self._calls.unary(self._workflows.CommitWorkflow, request, deadline)
        )

    async def _persist(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_PersistT, _PersistedT],
        request: _PersistT,
        deadline: Deadline,
    ) -> _PersistedT:
        try:
            return await self._calls.unary(method, request, deadline)
        except CommitOutcomeUnknown as unknown:
            mismatch = unknown.__cause__
            if not isinstance(mismatch, RevisionMismatch):
                raise
            # Refused after a lost answer. A server that knows request ids would have
            # known its own write again; an older one would not.
            if not await self._knows_requests(deadline):
                raise
        mismatch.maybe_written = False
        raise mismatch from mismatch.__cause__

    async def _knows_requests(self, deadline: Deadline) -> bool:
        try:
            info = await self._calls.unary(
                self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest(), deadline
            )
        except PersistenceError:
            return False
        return info.HasField("request_retention")

    def _remembered(self, workflow_id: str, view: WorkflowView) -> patches.Snapshot | None:
        return self._shared.memory.get((self._namespace or _DEFAULT_NAMESPACE, workflow_id, view))

    def _remember(
        self,
        workflow_id: str,
        snapshot: patches.Snapshot,
        view: WorkflowView = WorkflowView.FULL,
    ) -> None:
        # Without a revision nothing can be patched.
        if workflow_id and snapshot.revision:
            key = (self._namespace or _DEFAULT_NAMESPACE, workflow_id, view)
            self._shared.memory.put(key, snapshot)

    async def get_workflow_instance(
        self, workflow_id: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Answers a workflow with its pointers, as of one moment.

        One that is too large for one message is read in pages, all of one revision.

        Args:
            workflow_id: its id.
            view: how much of it to answer.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it is read in pages, and was written each time meanwhile.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            answer = await self._calls.unary(
                self._workflows.GetWorkflowInstance,
                workflow_pb2.GetWorkflowInstanceRequest(id=workflow_id, view=convert.view(view)),
                deadline,
            )
            return answer.instance

        return self._read(await self._load(read, view))

    async def get_workflow_instance_by_name(
        self, name: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Answers the workflow of a name with its pointers, as of one moment.

        One that is too large for one message is read in pages, all of one revision.

        Args:
            name: its name.
            view: how much of it to answer.

        Raises:
            WorkflowNotFound: no workflow has the name.
            RevisionMismatch: it is read in pages, and was written each time meanwhile.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            answer = await self._calls.unary(
                self._workflows.GetWorkflowInstanceByName,
                workflow_pb2.GetWorkflowInstanceByNameRequest(name=name, view=convert.view(view)),
                deadline,
            )
            return answer.instance

        return self._read(await self._load(read, view))

    async def get_workflow_instances(
        self, workflow_ids: Iterable[str], *, view: WorkflowView = WorkflowView.FULL
    ) -> list[WorkflowInstance]:
        """Answers many workflows as of one moment, in the order asked.

        Ids that do not exist are left out; an id asked for twice is answered twice.

        Args:
            workflow_ids: their ids.
            view: how much of each to answer.

        Raises:
            TooLarge: one of them is too large for one message: `get_workflow_instance`.
        """
        answers = await self._calls.collect(
            self._workflows.GetWorkflowInstances,
            workflow_pb2.GetWorkflowInstancesRequest(
                ids=list(workflow_ids), view=convert.view(view)
            ),
        )
        return [self._read(answer.instance) for answer in answers]

    async def _load(
        self,
        read: Callable[[WorkflowView, Deadline], Awaitable[workflow_pb2.WorkflowInstance]],
        view: WorkflowView,
    ) -> workflow_pb2.WorkflowInstance:
        deadline = self._calls.deadline()
        try:
            return await read(view, deadline)
        except TooLarge as error:
            if error.reason != "ANSWER_TOO_LARGE" or view is WorkflowView.HEADER:
                raise
        attempts = 0
        while True:
            attempts += 1
            instance = await read(WorkflowView.HEADER, deadline)
            pages = self._pages(
                self._workflows.ListExecutionPointers,
                workflow_pb2.ListExecutionPointersRequest(
                    workflow_id=instance.id,
                    active_only=view is WorkflowView.ACTIVE,
                    expected_revision=instance.revision,
                    page_size=_LARGEST_PAGE,
                ),
                lambda page: page.execution_pointers,
                deadline,
            )
            try:
                instance.execution_pointers.extend([pointer async for pointer in pages])
            except RevisionMismatch:
                if attempts >= self._calls.retry.max_attempts:
                    raise
                continue
            instance.view = convert.view(view)
            return instance

    def _read(self, message: workflow_pb2.WorkflowInstance) -> WorkflowInstance:
        """Reads an answered workflow, and remembers it."""
        instance = convert.workflow_from_proto(message)
        if self._shared.memory.capacity:
            self._remember(instance.id, patches.snapshot(message, message.revision), instance.view)
        return instance

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

    async def list_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
    ) -> list[ExecutionPointer]:
        """Answers the pointers of a workflow, in their order.

        It reads page by page: without `expected_revision` the pages may be of different
        revisions.

        Args:
            workflow_id: its id.
            active_only: only those that can still run (`WorkflowView.ACTIVE`).
            expected_revision: answer only if the workflow's revision is this one, from
                1; None: whatever it is.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision.
        """
        pages = self._execution_pointers(
            workflow_id, active_only, expected_revision, _LARGEST_PAGE, self._calls.deadline()
        )
        return [pointer async for pointer in pages]

    def iter_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionPointer]:
        """`list_execution_pointers`, page by page as they are wanted.

        Args:
            workflow_id: as there.
            active_only: as there.
            expected_revision: as there.
            page_size: pointers a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._execution_pointers(
            workflow_id, active_only, expected_revision, page_size, None
        )

    def _execution_pointers(
        self,
        workflow_id: str,
        active_only: bool,
        expected_revision: int | None,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[ExecutionPointer]:
        return self._pages(
            self._workflows.ListExecutionPointers,
            workflow_pb2.ListExecutionPointersRequest(
                workflow_id=workflow_id,
                active_only=active_only,
                expected_revision=expected_revision,
                page_size=page_size,
            ),
            lambda page: map(convert.pointer_from_proto, page.execution_pointers),
            deadline,
        )

    async def list_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
    ) -> list[WorkflowInstance]:
        """Answers all workflows of a filter, by their create_time.

        They are for looking at: those that are not FULL cannot be persisted
        (`get_workflow_instance` loads one that can). It reads page by page; workflows
        that come and go meanwhile shift nothing, and none is answered twice.

        Args:
            filter: which workflows; None: all.
            order: by create_time; equal times by id, or in the reverse.
            view: how much of each to answer. One that alone is too large for a message
                comes as HEADER.
        """
        pages = self._listed_workflows(filter, order, view, _LARGEST_PAGE, self._calls.deadline())
        return [instance async for instance in pages]

    def iter_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
        page_size: int = 0,
    ) -> AsyncIterator[WorkflowInstance]:
        """`list_workflows`, page by page as they are wanted.

        Args:
            filter: as there.
            order: as there.
            view: as there.
            page_size: workflows a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._listed_workflows(filter, order, view, page_size, None)

    def _listed_workflows(
        self,
        filter_: WorkflowFilter | None,
        order: ListOrder,
        view: WorkflowView,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[WorkflowInstance]:
        return self._pages(
            self._workflows.ListWorkflows,
            workflow_pb2.ListWorkflowsRequest(
                filter=None if filter_ is None else convert.filter_to_proto(filter_),
                order=convert.order_to_proto(order),
                view=workflow_pb2.WorkflowView.ValueType(view.value),
                page_size=page_size,
            ),
            # Not remembered: a long list would push out what is worked on.
            lambda page: map(convert.workflow_from_proto, page.instances),
            deadline,
        )

    async def count_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
    ) -> dict[WorkflowStatus, int]:
        """Counts the workflows of a filter by status; a status that none has is left out.

        Args:
            filter: which workflows; None: all.
        """
        answer = await self._calls.unary(
            self._workflows.CountWorkflows,
            workflow_pb2.CountWorkflowsRequest(
                filter=None if filter is None else convert.filter_to_proto(filter)
            ),
        )
        return convert.counts_from_proto(answer)

    async def delete_workflow(
        self, workflow_id: str, *, expected_revision: int | None = None
    ) -> None:
        """Deletes a workflow, whatever its status.

        Its pointers, subscriptions and logged errors go with it; workflows below it,
        events and commands stay. Not repeated after an attempt that may have been made.

        Args:
            workflow_id: its id.
            expected_revision: delete only if this is the stored revision, from 1; None:
                whatever is stored.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision.
        """
        # Also if the call fails: it may have been done.
        self._shared.memory.forget(self._namespace or _DEFAULT_NAMESPACE, workflow_id)
        await self._calls.unary(
            self._workflows.DeleteWorkflow,
            workflow_pb2.DeleteWorkflowRequest(id=workflow_id, expected_revision=expected_revision),
        )

    async def purge_workflows(
        self,
        ended_before: datetime,
        *,
        statuses: Collection[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> PurgedWorkflows:
        """Deletes all workflows that ended before a time, and answers how many.

        Those that ended first go first, each with its pointers, subscriptions, logged
        errors and processed completion events, and only together with all workflows
        below it in its tree, when those have ended before that time too.

        It makes as many calls as it takes, each with the timeout of its own: it may take
        long. Stopped in the middle it has deleted some; calling again goes on. After
        lost answers the count may be too low. `iter_purge_workflows` tells how far it is.

        Args:
            ended_before: the end is complete_time, or create_time where there is none.
            statuses: of COMPLETE and TERMINATED; empty: both.
            workflow_definition_id: only of this definition; empty: of any. Those below
                them in their trees go whatever their definition.
            dry_run: only count what would be deleted.
            max_rows: how many rows to delete a call, up to 100000; 0: 10000.
        """
        total = PurgedWorkflows()
        async for done in self.iter_purge_workflows(
            ended_before,
            statuses=statuses,
            workflow_definition_id=workflow_definition_id,
            dry_run=dry_run,
            max_rows=max_rows,
        ):
            total = PurgedWorkflows(
                workflows=total.workflows + done.workflows,
                execution_pointers=total.execution_pointers + done.execution_pointers,
                subscriptions=total.subscriptions + done.subscriptions,
                errors=total.errors + done.errors,
                events=total.events + done.events,
            )
        return total

    def iter_purge_workflows(
        self,
        ended_before: datetime,
        *,
        statuses: Collection[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[PurgedWorkflows]:
        """`purge_workflows`, call by call as they are wanted: what each call deleted.

        The arguments are as there; the timeout is for one call. Who stops asking stops
        the purge.
        """
        return self._pages(
            self._workflows.PurgeWorkflows,
            workflow_pb2.PurgeWorkflowsRequest(
                ended_before=convert.timestamp("ended_before", ended_before),
                statuses=convert.statuses_to_proto(statuses),
                workflow_definition_id=workflow_definition_id,
                dry_run=dry_run,
                max_rows=max_rows,
            ),
            lambda page: [convert.purged_from_proto(page)],
            None,
        )

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
        await self._clear_token(SubscriptionClaim(subscription_id=subscription_id, token=token))

    async def claim_subscription(
        self,
        subscription_id: str,
        *,
        duration: timedelta | None = _DEFAULT_LEASE,
        worker_id: str = "",
    ) -> SubscriptionClaim | None:
        """Takes hold of a subscription; None: somebody else holds it.

        It is `set_subscription_token` with a token of its own, an end by the database's
        clock, and an epoch that later holders of the subscription do not have.

        Args:
            subscription_id: its id.
            duration: how long the hold lasts from now on, by the database's clock, 1 ms
                to 24 h; None: until it is cleared.
            worker_id: who takes it, for people who look.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        token = _new_id()
        answer = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            subscription_pb2.SetSubscriptionTokenRequest(
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                duration=convert.optional_duration(duration),
            ),
        )
        if not answer.acquired:
            return None
        return convert.claim_from_proto(subscription_id, token, answer)

    async def renew_subscription_token(
        self, claim: SubscriptionClaim, *, duration: timedelta | None = None
    ) -> SubscriptionClaim:
        """Holds a subscription for longer, and answers the claim with its new expiry.

        Args:
            claim: the hold, from `claim_subscription` or an earlier renewal, or made of
                a token given to `set_subscription_token`.
            duration: how long the hold lasts from now on, by the database's clock, 1 ms
                to 24 h; None: 30 s.

        Raises:
            TokenMismatch: it is not held so any more, or the hold has expired.
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.RenewSubscriptionToken,
            subscription_pb2.RenewSubscriptionTokenRequest(
                id=claim.subscription_id,
                token=claim.token,
                epoch=claim.epoch,
                duration=convert.optional_duration(duration),
            ),
        )
        return convert.claim_from_proto(claim.subscription_id, claim.token, answer)

    async def release_subscription(self, claim: SubscriptionClaim) -> None:
        """Lets go of a claimed subscription, so that it is open again.

        Raises:
            TokenMismatch: it is not held by this claim any more; nothing was changed.
            SubscriptionNotFound: it does not exist.
        """
        await self._clear_token(claim)

    async def _clear_token(self, claim: SubscriptionClaim) -> None:
        await self._calls.settle(
            self._subscriptions.ClearSubscriptionToken,
            subscription_pb2.ClearSubscriptionTokenRequest(
                id=claim.subscription_id, token=claim.token, epoch=claim.epoch
            ),
        )

    async def list_subscriptions(
        self,
        *,
        workflow_id: str = "",
        event_name: str = "",
        event_key: str | None = None,
        held: bool | None = None,
    ) -> list[EventSubscription]:
        """Answers subscriptions, open and held, by their ids.

        Args:
            workflow_id: of this workflow; empty: of any.
            event_name: waiting for this kind of event; empty: for any.
            event_key: waiting for this event key, with an `event_name`; None: for any.
            held: True: those that somebody holds; False: open ones; None: both.
        """
        pages = self._listed_subscriptions(
            workflow_id, event_name, event_key, held, _LARGEST_PAGE, self._calls.deadline()
        )
        return [subscription async for subscription in pages]

    def iter_all_subscriptions(
        self,
        *,
        workflow_id: str = "",
        event_name: str = "",
        event_key: str | None = None,
        held: bool | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """`list_subscriptions`, page by page as they are wanted.

        Args:
            workflow_id: as there.
            event_name: as there.
            event_key: as there.
            held: as there.
            page_size: subscriptions a page, up to 1000; 0: 100. The timeout is for one
                page.
        """
        return self._listed_subscriptions(workflow_id, event_name, event_key, held, page_size, None)

    def _listed_subscriptions(
        self,
        workflow_id: str,
        event_name: str,
        event_key: str | None,
        held: bool | None,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[EventSubscription]:
        return self._pages(
            self._subscriptions.ListSubscriptions,
            subscription_pb2.ListSubscriptionsRequest(
                workflow_id=workflow_id,
                event_name=event_name,
                event_key=event_key,
                held=held,
                page_size=page_size,
            ),
            lambda page: map(convert.subscription_from_proto, page.subscriptions),
            deadline,
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

    async def list_events(
        self,
        *,
        event_name: str = "",
        event_key: str | None = None,
        is_processed: bool | None = None,
        event_time_from: datetime | None = None,
        event_time_before: datetime | None = None,
        order: ListOrder = ListOrder.NEWEST_FIRST,
    ) -> list[Event]:
        """Answers events by their event_time, whole ones, for looking into a store.

        Args:
            event_name: of this kind; empty: of any.
            event_key: with this event key, with an `event_name`; None: with any.
            is_processed: True: processed ones; False: those still to be processed;
                None: both.
            event_time_from: at this time or later; None: at any.
            event_time_before: before this time; None: at any.
            order: by event_time; equal times by id, or in the reverse.
        """
        pages = self._listed_events(
            event_name,
            event_key,
            is_processed,
            event_time_from,
            event_time_before,
            order,
            _LARGEST_PAGE,
            self._calls.deadline(),
        )
        return [event async for event in pages]

    def iter_all_events(
        self,
        *,
        event_name: str = "",
        event_key: str | None = None,
        is_processed: bool | None = None,
        event_time_from: datetime | None = None,
        event_time_before: datetime | None = None,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        page_size: int = 0,
    ) -> AsyncIterator[Event]:
        """`list_events`, page by page as they are wanted.

        Args:
            event_name: as there.
            event_key: as there.
            is_processed: as there.
            event_time_from: as there.
            event_time_before: as there.
            order: as there.
            page_size: events a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._listed_events(
            event_name,
            event_key,
            is_processed,
            event_time_from,
            event_time_before,
            order,
            page_size,
            None,
        )

    def _listed_events(
        self,
        event_name: str,
        event_key: str | None,
        is_processed: bool | None,
        event_time_from: datetime | None,
        event_time_before: datetime | None,
        order: ListOrder,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[Event]:
        return self._pages(
            self._events.ListEvents,
            event_pb2.ListEventsRequest(
                event_name=event_name,
                event_key=event_key,
                is_processed=is_processed,
                event_time_from=convert.optional_timestamp("event_time_from", event_time_from),
                event_time_before=convert.optional_timestamp(
                    "event_time_before", event_time_before
                ),
                order=convert.order_to_proto(order),
                page_size=page_size,
            ),
            lambda page: map(convert.event_from_proto, page.events),
            deadline,
        )

    async def purge_events(
        self,
        event_time_before: datetime,
        *,
        event_name: str = "",
        include_unprocessed: bool = False,
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> int:
        """Deletes all events before a time, the oldest first, and answers how many.

        It makes as many calls as it takes, each with the timeout of its own: it may take
        long. Stopped in the middle it has deleted some; calling again goes on. After
        lost answers the count may be too low. `iter_purge_events` tells how far it is.

        Args:
            event_time_before: only events before this time.
            event_name: only of this kind; empty: of any.
            include_unprocessed: also events that were never processed.
            dry_run: only count what would be deleted.
            max_rows: how many events to delete a call, up to 100000; 0: 10000.
        """
        calls = self.iter_purge_events(
            event_time_before,
            event_name=event_name,
            include_unprocessed=include_unprocessed,
            dry_run=dry_run,
            max_rows=max_rows,
        )
        return sum([events async for events in calls])

    def iter_purge_events(
        self,
        event_time_before: datetime,
        *,
        event_name: str = "",
        include_unprocessed: bool = False,
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[int]:
        """`purge_events`, call by call as they are wanted: how many each call deleted.

        The arguments are as there; the timeout is for one call. Who stops asking stops
        the purge.
        """
        return self._pages(
            self._events.PurgeEvents,
            event_pb2.PurgeEventsRequest(
                event_time_before=convert.timestamp("event_time_before", event_time_before),
                event_name=event_name,
                include_unprocessed=include_unprocessed,
                dry_run=dry_run,
                max_rows=max_rows,
            ),
            lambda page: [page.events],
            None,
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
                lease_duration=convert.optional_duration(lease_duration),
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

    async def renew_commands(
        self, lease_tokens: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """Holds claimed commands for longer, and answers until when; all or nothing.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice. They stay valid.
            lease_duration: how long the leases last from now on, by the database's
                clock, 1 ms to 24 h; None: 30 s.

        Returns:
            When all these leases end by themselves, by the database's clock; None: no
            lease was named.

        Raises:
            LeaseLost: some are no longer claimed so, or have expired; nothing was
                changed.
        """
        answer = await self._calls.unary(
            self._commands.RenewCommands,
            command_pb2.RenewCommandsRequest(
                lease_tokens=list(lease_tokens),
                lease_duration=convert.optional_duration(lease_duration),
            ),
        )
        return convert.lease_expiry_from_proto(answer)

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

    async def list_errors(
        self,
        workflow_id: str = "",
        *,
        error_time_from: datetime | None = None,
        error_time_before: datetime | None = None,
    ) -> list[ExecutionError]:
        """Answers all logged errors, the last logged first.

        Args:
            workflow_id: only those of this workflow; empty: of all.
            error_time_from: only those that happened then or later; None: at any time.
            error_time_before: only those that happened before; None: at any time.
        """
        pages = self._logged_errors(
            workflow_id, error_time_from, error_time_before, _LARGEST_PAGE, self._calls.deadline()
        )
        return [error async for error in pages]

    def iter_errors(
        self,
        workflow_id: str = "",
        *,
        error_time_from: datetime | None = None,
        error_time_before: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionError]:
        """`list_errors`, page by page as they are wanted.

        Args:
            workflow_id: as there.
            error_time_from: as there.
            error_time_before: as there.
            page_size: errors a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._logged_errors(workflow_id, error_time_from, error_time_before, page_size, None)

    def _logged_errors(
        self,
        workflow_id: str,
        error_time_from: datetime | None,
        error_time_before: datetime | None,
        page_size: int,
        deadline: Deadline | None,
    ) -> AsyncIterator[ExecutionError]:
        return self._pages(
            self._store.ListErrors,
            store_pb2.ListErrorsRequest(
                workflow_id=workflow_id,
                error_time_from=convert.optional_timestamp("error_time_from", error_time_from),
                error_time_before=convert.optional_timestamp(
                    "error_time_before", error_time_before
                ),
                page_size=page_size,
            ),
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
        # Also if the call fails: it may have been done.
        self._shared.memory.forget_namespace(self._namespace or _DEFAULT_NAMESPACE)
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
        self._shared.memory.forget_namespace(name)
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


def _check_whole(instance: WorkflowInstance) -> None:
    if instance.view is not WorkflowView.FULL:
        raise PartialWorkflow(
            f"this is a part of a workflow only (view {instance.view.name}): stored as a whole "
            "it would remove the rest"
        )


def _patch_of_part(
    instance: WorkflowInstance,
    message: workflow_pb2.WorkflowInstance,
    base: patches.Snapshot | None,
    new: patches.Snapshot | None,
    expected_revision: int | None,
) -> workflow_pb2.WorkflowPatch:
    """What changed in a part of a workflow since it was loaded.

    Only what that very part was at that very revision can tell what is gone from it.
    """
    if new is None or base is None or not instance.revision:
        raise PartialWorkflow(
            "the provider does not remember what it loaded of this workflow: load it anew"
        )
    if base.revision > instance.revision:
        raise RevisionMismatch(
            "this part of the workflow was written since it was loaded",
            reason="REVISION_MISMATCH",
            metadata={"revision": str(base.revision)},
        )
    if base.revision != instance.revision or expected_revision not in (None, base.revision):
        raise PartialWorkflow(
            "a part of a workflow can be stored to the revision only that it was loaded with"
        )
    patch = patches.patch(base, new, message)
    if patch is None:
        raise PartialWorkflow(
            "the pointers of a part of a workflow must stay in their order, new ones behind "
            "them, none twice"
        )
    return patch


def _committed(answer: workflow_pb2.CommitWorkflowResponse) -> CommittedWorkflow:
    return CommittedWorkflow(
        revision=answer.revision,
        subscription_ids=list(answer.subscription_ids),
        event_ids=list(answer.event_ids),
    )


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
