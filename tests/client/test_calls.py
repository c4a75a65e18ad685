"""Deadlines, and retries only where they are safe."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.conftest import FAST
from tests.client.fake_store import (
    METHODS,
    UNAVAILABLE,
    FakeStore,
    Forwarder,
    Step,
    answers,
    broken,
    fails,
    hangs,
    not_written,
)
from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lifecycle_pb2,
    lock_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    transfer_pb2,
    workflow_pb2,
)
from wfe_persistence_client import (
    CommandName,
    CommitOutcomeUnknown,
    DeadlineExceeded,
    Event,
    EventSubscription,
    ExecutionError,
    LeaseLost,
    LifecycleEvent,
    LifecycleEventType,
    PersistenceError,
    PersistenceProvider,
    PoolExhausted,
    QueueItem,
    RetentionPolicy,
    RetryPolicy,
    RevisionMismatch,
    ScheduledCommand,
    SubscriptionClaim,
    SubscriptionNotFound,
    TokenMismatch,
    TransactionConflict,
    Unavailable,
    WorkflowInstance,
    connect,
    deadline,
)
from wfe_persistence_client.calls import RULES, Safety

Status = grpc.StatusCode
NOW = datetime(2024, 1, 1, tzinfo=UTC)
WORKFLOW = WorkflowInstance(workflow_definition_id="d", version=1, data={})
EVENT = Event(event_name="n", event_key="k", event_data=1)
SUBSCRIPTION = EventSubscription(
    workflow_id="w",
    step_id=0,
    execution_pointer_id="p",
    event_name="n",
    event_key="k",
    subscribe_as_of=NOW,
)
CLAIM = SubscriptionClaim(subscription_id="s", token="t", epoch=1)
COMMAND = ScheduledCommand(command_name=CommandName.PROCESS_WORKFLOW, data="w", execute_time=0)
STORED = workflow_pb2.WorkflowInstance(
    id="w", data_json="{}", status=workflow_pb2.WORKFLOW_STATUS_RUNNABLE
)

SET = store_pb2.NamespaceSet(name="s", members=["s_0"])

LIFECYCLE_EVENT = LifecycleEvent(
    type=LifecycleEventType.STARTED, workflow_id="w", workflow_definition_id="d"
)


def all_of(items: Any) -> Any:
    """All items of an iterator, or what to await for those of an async one."""
    if not hasattr(items, "aclose"):
        return list(items)

    async def take() -> list[object]:
        return [item async for item in items]

    return take()


def first(items: Any) -> Any:
    """The first item of an iterator, or what to await for that of an async one."""
    if not hasattr(items, "aclose"):
        return next(items)

    async def take() -> object:
        async with aclosing(items):
            return await anext(items)

    return take()


Call = Callable[[PersistenceProvider], Awaitable[object]]


def all_created(results: Any) -> Any:
    """Take all of them, of which none may have been refused; what to await for it of async ones."""
    if not hasattr(results, "aclose"):
        for result in results:
            if result.error is not None:
                raise result.error
        return None

    async def take() -> None:
        async for result in results:
            if result.error is not None:
                raise result.error

    return take()


#: Every RPC: a call that makes it, and a good answer.
CALLS: dict[str, tuple[Call, Any]] = {
    "CreateNewWorkflow": (
        lambda p: p.create_new_workflow(replace(WORKFLOW)),
        workflow_pb2.CreateNewWorkflowResponse(id="w"),
    ),
    "CreateWorkflows": (
        lambda p: all_created(p.create_workflows([replace(WORKFLOW)])),
        [
            workflow_pb2.CreateWorkflowsResponse(
                results=[
                    workflow_pb2.CreateWorkflowsResult(
                        created=workflow_pb2.CreateNewWorkflowResponse(id="w")
                    )
                ]
            )
        ],
    ),
    "CreateEvents": (
        lambda p: all_created(p.create_events([EVENT])),
        [
            event_pb2.CreateEventsResponse(
                results=[
                    event_pb2.CreateEventsResult(created=event_pb2.CreateEventResponse(id="e"))
                ]
            )
        ],
    ),
    "PersistWorkflow": (
        lambda p: p.persist_workflow(WORKFLOW),
        workflow_pb2.PersistWorkflowResponse(revision=2),
    ),
    "PersistWorkflowWithSubscriptions": (
        lambda p: p.persist_workflow_with_subscriptions(WORKFLOW, [SUBSCRIPTION]),
        workflow_pb2.PersistWorkflowWithSubscriptionsResponse(revision=2),
    ),
    "CommitWorkflow": (
        lambda p: p.commit_workflow(WORKFLOW, create_events=[EVENT]),
        workflow_pb2.CommitWorkflowResponse(revision=2, event_ids=["e"]),
    ),
    "ListExecutionPointers": (
        lambda p: p.list_execution_pointers("w"),
        workflow_pb2.ListExecutionPointersResponse(),
    ),
    "ListWorkflows": (
        lambda p: p.list_workflows(),
        workflow_pb2.ListWorkflowsResponse(instances=[STORED]),
    ),
    "CountWorkflows": (
        lambda p: p.count_workflows(),
        workflow_pb2.CountWorkflowsResponse(),
    ),
    "DeleteWorkflow": (
        lambda p: p.delete_workflow("w"),
        workflow_pb2.DeleteWorkflowResponse(),
    ),
    "PurgeWorkflows": (
        lambda p: p.purge_workflows(NOW),
        workflow_pb2.PurgeWorkflowsResponse(),
    ),
    "GetWorkflowInstance": (
        lambda p: p.get_workflow_instance("w"),
        workflow_pb2.GetWorkflowInstanceResponse(instance=STORED),
    ),
    "GetWorkflowInstanceByName": (
        lambda p: p.get_workflow_instance_by_name("n"),
        workflow_pb2.GetWorkflowInstanceByNameResponse(instance=STORED),
    ),
    "WaitForWorkflow": (
        lambda p: p.wait_for_workflow("w"),
        workflow_pb2.WaitForWorkflowResponse(instance=STORED),
    ),
    "GetWorkflowInstances": (
        lambda p: p.get_workflow_instances(["w"]),
        [workflow_pb2.GetWorkflowInstancesResponse(instance=STORED)],
    ),
    "GetRunnableInstances": (
        lambda p: p.get_runnable_instances(),
        workflow_pb2.GetRunnableInstancesResponse(),
    ),
    "NextDefinitionSequence": (
        lambda p: p.next_definition_sequence("d"),
        workflow_pb2.NextDefinitionSequenceResponse(number=1),
    ),
    "CreateEvent": (lambda p: p.create_event(EVENT), event_pb2.CreateEventResponse(id="e")),
    "GetEvent": (
        lambda p: p.get_event("e"),
        event_pb2.GetEventResponse(event=event_pb2.Event(event_data_json="1")),
    ),
    "GetRunnableEvents": (
        lambda p: p.get_runnable_events(),
        event_pb2.GetRunnableEventsResponse(),
    ),
    "GetEvents": (lambda p: p.get_events("n", "k"), event_pb2.GetEventsResponse()),
    "ListEvents": (lambda p: p.list_events(), event_pb2.ListEventsResponse()),
    "PurgeEvents": (lambda p: p.purge_events(NOW), event_pb2.PurgeEventsResponse()),
    "MarkEventProcessed": (
        lambda p: p.mark_event_processed("e"),
        event_pb2.MarkEventProcessedResponse(),
    ),
    "MarkEventUnprocessed": (
        lambda p: p.mark_event_unprocessed("e"),
        event_pb2.MarkEventUnprocessedResponse(),
    ),
    "CreateEventSubscription": (
        lambda p: p.create_event_subscription(SUBSCRIPTION),
        subscription_pb2.CreateEventSubscriptionResponse(id="s"),
    ),
    "GetSubscription": (
        lambda p: p.get_subscription("s"),
        subscription_pb2.GetSubscriptionResponse(),
    ),
    "GetSubscriptions": (
        lambda p: p.get_subscriptions("n", "k"),
        subscription_pb2.GetSubscriptionsResponse(),
    ),
    "GetFirstOpenSubscription": (
        lambda p: p.get_first_open_subscription("n", "k"),
        subscription_pb2.GetFirstOpenSubscriptionResponse(),
    ),
    "TerminateSubscription": (
        lambda p: p.terminate_subscription("s"),
        subscription_pb2.TerminateSubscriptionResponse(),
    ),
    "SetSubscriptionToken": (
        lambda p: p.set_subscription_token("s", "t", "me", None),
        subscription_pb2.SetSubscriptionTokenResponse(acquired=True),
    ),
    "ClearSubscriptionToken": (
        lambda p: p.clear_subscription_token("s", "t"),
        subscription_pb2.ClearSubscriptionTokenResponse(),
    ),
    "RenewSubscriptionToken": (
        lambda p: p.renew_subscription_token(CLAIM),
        subscription_pb2.RenewSubscriptionTokenResponse(epoch=1),
    ),
    "ListSubscriptions": (
        lambda p: p.list_subscriptions(),
        subscription_pb2.ListSubscriptionsResponse(),
    ),
    "RenewCommands": (
        lambda p: p.renew_commands(["t"]),
        command_pb2.RenewCommandsResponse(),
    ),
    "BreakCommandLease": (
        lambda p: p.break_command_lease(CommandName.PROCESS_WORKFLOW, "w"),
        command_pb2.BreakCommandLeaseResponse(),
    ),
    "ListCommands": (lambda p: p.list_commands(), command_pb2.ListCommandsResponse()),
    "ScheduleCommand": (
        lambda p: p.schedule_command(COMMAND),
        command_pb2.ScheduleCommandResponse(),
    ),
    "ClaimCommands": (lambda p: p.claim_commands(), command_pb2.ClaimCommandsResponse()),
    "CompleteCommands": (
        lambda p: p.complete_commands(["t"]),
        command_pb2.CompleteCommandsResponse(),
    ),
    "ReleaseCommands": (
        lambda p: p.release_commands(["t"]),
        command_pb2.ReleaseCommandsResponse(),
    ),
    "Publish": (lambda p: p.publish([LIFECYCLE_EVENT]), lifecycle_pb2.PublishResponse()),
    "Watch": (
        lambda p: first(p.watch_lifecycle()),
        [lifecycle_pb2.WatchResponse(events=[lifecycle_pb2.WatchedEvent(cursor="c")], cursor="c")],
    ),
    "WatchWorkflows": (
        lambda p: first(p.watch_workflows()),
        [
            workflow_pb2.WatchWorkflowsResponse(
                changes=[
                    workflow_pb2.WorkflowChange(
                        instance=workflow_pb2.WorkflowInstance(
                            status=workflow_pb2.WORKFLOW_STATUS_RUNNABLE,
                            view=workflow_pb2.WORKFLOW_VIEW_HEADER,
                        ),
                        cursor="c",
                    )
                ],
                cursor="c",
            )
        ],
    ),
    "AcquireLock": (
        lambda p: p.acquire_lock("r"),
        lock_pb2.AcquireLockResponse(acquired=True, token="t", epoch=1),
    ),
    "RenewLocks": (lambda p: p.renew_locks(["t"]), lock_pb2.RenewLocksResponse()),
    "ReleaseLock": (lambda p: p.release_lock("t"), lock_pb2.ReleaseLockResponse()),
    "BreakLock": (lambda p: p.break_lock("r"), lock_pb2.BreakLockResponse()),
    "ListLocks": (lambda p: p.list_locks(), lock_pb2.ListLocksResponse()),
    "Enqueue": (
        lambda p: p.enqueue([QueueItem(queue="q", id="i")]),
        queue_pb2.EnqueueResponse(),
    ),
    "Dequeue": (lambda p: p.dequeue(["q"]), queue_pb2.DequeueResponse()),
    "Acknowledge": (lambda p: p.acknowledge(["t"]), queue_pb2.AcknowledgeResponse()),
    "ReturnItems": (lambda p: p.return_items(["t"]), queue_pb2.ReturnItemsResponse()),
    "RenewItems": (lambda p: p.renew_items(["t"]), queue_pb2.RenewItemsResponse()),
    "ListQueueItems": (lambda p: p.list_queue_items("q"), queue_pb2.ListQueueItemsResponse()),
    "GetQueueStats": (lambda p: p.get_queue_stats(), queue_pb2.GetQueueStatsResponse()),
    "RequeueItems": (lambda p: p.requeue_items("q"), queue_pb2.RequeueItemsResponse()),
    "DeleteItems": (lambda p: p.delete_items("q"), queue_pb2.DeleteItemsResponse()),
    "ConfigureQueue": (lambda p: p.configure_queue("q"), queue_pb2.ConfigureQueueResponse()),
    "EnsureStoreExists": (
        lambda p: p.ensure_store_exists(),
        store_pb2.EnsureStoreExistsResponse(schema_version=1),
    ),
    "PersistErrors": (
        lambda p: p.persist_errors([ExecutionError(workflow_id="w")]),
        store_pb2.PersistErrorsResponse(),
    ),
    "ListErrors": (lambda p: p.list_errors(), store_pb2.ListErrorsResponse()),
    "GetStoreInfo": (lambda p: p.get_store_info(), store_pb2.GetStoreInfoResponse()),
    "TruncateAll": (lambda p: p.truncate_all(), store_pb2.TruncateAllResponse()),
    "CreateNamespace": (
        lambda p: p.create_namespace("n"),
        store_pb2.CreateNamespaceResponse(schema_version=1),
    ),
    "ListDatabases": (lambda p: p.list_databases(), store_pb2.ListDatabasesResponse()),
    "ListNamespaces": (lambda p: p.list_namespaces(), store_pb2.ListNamespacesResponse()),
    "DeleteNamespace": (lambda p: p.delete_namespace("n"), store_pb2.DeleteNamespaceResponse()),
    "CreateNamespaceSet": (
        lambda p: p.create_namespace_set("s", 1),
        store_pb2.CreateNamespaceSetResponse(namespace_set=SET),
    ),
    "GetNamespaceSet": (
        lambda p: p.get_namespace_set("s"),
        store_pb2.GetNamespaceSetResponse(namespace_set=SET),
    ),
    "DeleteNamespaceSet": (
        lambda p: p.delete_namespace_set("s"),
        store_pb2.DeleteNamespaceSetResponse(),
    ),
    "SetNameHolder": (
        lambda p: p.set_name_holder("n", "w", claim_id="c"),
        workflow_pb2.SetNameHolderResponse(workflow_id="w", claim_id="c"),
    ),
    "GetNameHolder": (
        lambda p: p.get_name_holder("n"),
        workflow_pb2.GetNameHolderResponse(workflow_id="w", claim_id="c"),
    ),
    "MoveNamespace": (
        lambda p: all_of(p.move_namespace("n", "b")),
        [store_pb2.MoveNamespaceResponse(phase=store_pb2.MOVE_PHASE_MOVED)],
    ),
    "AbortMoveNamespace": (
        lambda p: p.abort_move_namespace("n"),
        store_pb2.AbortMoveNamespaceResponse(),
    ),
    "SetRetentionPolicy": (
        lambda p: p.set_retention_policy(RetentionPolicy()),
        store_pb2.SetRetentionPolicyResponse(),
    ),
    "GetRetentionPolicy": (
        lambda p: p.get_retention_policy(),
        store_pb2.GetRetentionPolicyResponse(),
    ),
    "RunRetention": (lambda p: p.run_retention(), store_pb2.RunRetentionResponse()),
    "GetStorageReport": (
        lambda p: p.get_storage_report(),
        store_pb2.GetStorageReportResponse(),
    ),
    "ExportRecords": (
        lambda p: all_of(p.export_records()),
        [transfer_pb2.ExportRecordsResponse(cursor="c")],
    ),
    "ImportRecords": (
        lambda p: p.import_records([transfer_pb2.Record()]),
        [transfer_pb2.ImportRecordsResponse(stored=1)],
    ),
}
UNREPEATABLE = {
    "ClaimCommands",
    "BreakLock",
    "BreakCommandLease",
    "Dequeue",
    "DeleteItems",
    "PersistErrors",
    "TruncateAll",
    "DeleteNamespace",
    "DeleteNamespaceSet",
    "DeleteWorkflow",
}
REPEATED = sorted(set(CALLS) - UNREPEATABLE)
READS = {name for name, rule in RULES.items() if rule.safety is Safety.READ}


def test_every_rpc_has_a_rule_and_a_call_here() -> None:
    rpcs = {method.name for method in METHODS.values()}
    assert set(RULES) == rpcs
    assert set(CALLS) == rpcs


def test_the_rules_find_the_rpc_by_its_request() -> None:
    for method in METHODS.values():
        assert method.input_type.name == f"{method.name}Request"


def test_which_calls_are_not_repeated() -> None:
    # Said here once more on purpose: a change of the table must be a decision.
    assert {n for n, rule in RULES.items() if rule.safety is Safety.UNREPEATABLE} == UNREPEATABLE
    reads = ("Get", "List", "Count", "Watch", "WaitFor", "Export")
    assert {n for n in RULES if n.startswith(reads)} == READS


PASSES: list[tuple[Status, str]] = [
    (UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    (UNAVAILABLE, "SHUTTING_DOWN"),
    (Status.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED"),
    (Status.RESOURCE_EXHAUSTED, "DATABASE_FULL"),
    (Status.RESOURCE_EXHAUSTED, "NAMESPACE_BUSY"),
    (Status.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS"),
    (Status.RESOURCE_EXHAUSTED, "CALLER_LIMITED"),
    (Status.RESOURCE_EXHAUSTED, "ADMINISTRATION_BUSY"),
    (Status.ABORTED, "TRANSACTION_CONFLICT"),
]


@pytest.mark.parametrize("rpc", sorted(CALLS))
async def test_what_wrote_nothing_and_passes_is_tried_again(
    store: FakeStore, provider: PersistenceProvider, rpc: str
) -> None:
    call, good = CALLS[rpc]
    for code, reason in PASSES:
        store.requests.clear()
        store.on(rpc, fails(code, reason), fails(code, reason), answers(good))
        await call(provider)
        assert store.count(rpc) == 3, reason


@pytest.mark.parametrize("rpc", REPEATED)
@pytest.mark.parametrize("failure", [broken, fails(UNAVAILABLE, "COMMIT_OUTCOME_UNKNOWN")])
async def test_what_is_safe_to_repeat_is_repeated_after_a_lost_answer(
    store: FakeStore, provider: PersistenceProvider, rpc: str, failure: Step
) -> None:
    call, good = CALLS[rpc]
    store.on(rpc, failure, answers(good))
    await call(provider)
    first, second = store.requests[rpc]
    # The same request: ids too, which the provider chose before the first attempt.
    assert first == second


@pytest.mark.parametrize("rpc", sorted(UNREPEATABLE))
@pytest.mark.parametrize("failure", [broken, fails(UNAVAILABLE, "COMMIT_OUTCOME_UNKNOWN")])
async def test_what_is_not_safe_to_repeat_is_not_repeated_after_a_lost_answer(
    store: FakeStore, provider: PersistenceProvider, rpc: str, failure: Step
) -> None:
    call, good = CALLS[rpc]
    store.on(rpc, failure, answers(good))
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await call(provider)
    assert store.count(rpc) == 1
    assert caught.value.maybe_written
    assert caught.value.reason == "COMMIT_OUTCOME_UNKNOWN"


STAYS: list[tuple[Status, str | None]] = [
    (Status.INVALID_ARGUMENT, "INVALID_FIELD"),
    (Status.INTERNAL, "INTERNAL"),
    (Status.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    (Status.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    (Status.RESOURCE_EXHAUSTED, None),
    (Status.ABORTED, None),
    (Status.UNKNOWN, None),
]


@pytest.mark.parametrize("rpc", sorted(CALLS))
async def test_what_does_not_pass_is_not_tried_again(
    store: FakeStore, provider: PersistenceProvider, rpc: str
) -> None:
    call, _ = CALLS[rpc]
    for code, reason in STAYS:
        store.requests.clear()
        store.on(rpc, fails(code, reason))
        with pytest.raises(PersistenceError):
            await call(provider)
        assert store.count(rpc) == 1, (code, reason)


async def test_tries_end(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("CreateEvent", not_written)
    with pytest.raises(Unavailable) as caught:
        await provider.create_event(EVENT)
    assert store.count("CreateEvent") == FAST.max_attempts
    assert type(caught.value) is Unavailable
    assert not caught.value.maybe_written


async def test_by_default_only_the_timeout_ends_the_tries(store: FakeStore) -> None:
    fast = RetryPolicy(initial_backoff=0.001, max_backoff=0.002)
    stopping = fails(UNAVAILABLE, "SHUTTING_DOWN", retry_after=0.0)
    store.on("PersistErrors", *[stopping] * 50, answers(store_pb2.PersistErrorsResponse()))
    async with connect(store.target, retry=fast) as provider:
        await provider.persist_errors([])
    assert store.count("PersistErrors") == 51
    store.on("CreateEvent", not_written)
    async with connect(store.target, retry=fast, timeout=0.5) as provider:
        # The timeout passes between two tries, or in the middle of one.
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await provider.create_event(EVENT)
    assert store.count("CreateEvent") > 10


async def test_one_lost_answer_among_the_tries_leaves_the_outcome_unknown(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("CreateEvent", broken, fails(Status.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED"))
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await provider.create_event(EVENT)
    assert store.count("CreateEvent") == FAST.max_attempts
    assert isinstance(caught.value.__cause__, PoolExhausted)


async def test_a_read_never_leaves_an_outcome_unknown(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetEvent", broken)
    with pytest.raises(Unavailable) as caught:
        await provider.get_event("e")
    assert type(caught.value) is Unavailable
    assert not caught.value.maybe_written


# Calls that find their own work done

DONE: list[tuple[str, Step]] = [
    ("TerminateSubscription", fails(Status.NOT_FOUND, "SUBSCRIPTION_NOT_FOUND")),
    ("ClearSubscriptionToken", fails(Status.FAILED_PRECONDITION, "TOKEN_MISMATCH")),
    *(
        (
            rpc,
            fails(Status.FAILED_PRECONDITION, "LEASE_LOST", metadata={"lease_tokens": "t"}),
        )
        for rpc in ("CompleteCommands", "ReleaseCommands", "Acknowledge", "ReturnItems")
    ),
]


@pytest.mark.parametrize(("rpc", "done"), DONE)
async def test_after_a_lost_answer_the_work_found_done_is_success(
    store: FakeStore, provider: PersistenceProvider, rpc: str, done: Step
) -> None:
    call, _ = CALLS[rpc]
    store.on(rpc, broken, done)
    await call(provider)
    assert store.count(rpc) == 2


@pytest.mark.parametrize(("rpc", "done"), DONE)
@pytest.mark.parametrize("before", [[], [not_written]])
async def test_without_a_lost_answer_it_is_an_error(
    store: FakeStore, provider: PersistenceProvider, rpc: str, done: Step, before: list[Step]
) -> None:
    call, _ = CALLS[rpc]
    store.on(rpc, *before, done)
    with pytest.raises((SubscriptionNotFound, TokenMismatch, LeaseLost)) as caught:
        await call(provider)
    assert not caught.value.maybe_written


async def test_other_errors_after_a_lost_answer_are_errors(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("ClearSubscriptionToken", broken, fails(Status.NOT_FOUND, "SUBSCRIPTION_NOT_FOUND"))
    with pytest.raises(SubscriptionNotFound):
        await provider.clear_subscription_token("s", "t")


async def test_leases_lost_only_in_part_show_that_nothing_was_done(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    lost = fails(Status.FAILED_PRECONDITION, "LEASE_LOST", metadata={"lease_tokens": "a"})
    store.on("CompleteCommands", broken, lost)
    with pytest.raises(LeaseLost):
        await provider.complete_commands(["a", "b"])


# Guarded by a revision


def mismatch(stored: int) -> Step:
    return fails(Status.ABORTED, "REVISION_MISMATCH", metadata={"revision": str(stored)})


async def persist(provider: PersistenceProvider, expected_revision: int | None) -> object:
    return await provider.persist_workflow(WORKFLOW, expected_revision=expected_revision)


async def persist_both(provider: PersistenceProvider, expected_revision: int | None) -> object:
    return await provider.persist_workflow_with_subscriptions(
        WORKFLOW, [SUBSCRIPTION], expected_revision=expected_revision
    )


PERSISTS = [("PersistWorkflow", persist), ("PersistWorkflowWithSubscriptions", persist_both)]


@pytest.mark.parametrize(("rpc", "method"), PERSISTS)
@pytest.mark.parametrize("stored", [6, 7, 0])
async def test_a_revision_grown_after_a_lost_answer_leaves_the_outcome_unknown(
    store: FakeStore, provider: PersistenceProvider, rpc: str, method: Any, stored: int
) -> None:
    store.on(rpc, broken, mismatch(stored))
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await method(provider, 5)
    assert isinstance(caught.value.__cause__, RevisionMismatch)
    assert caught.value.__cause__.revision == stored
    assert store.requests[rpc][1].expected_revision == 5


@pytest.mark.parametrize(("rpc", "method"), PERSISTS)
@pytest.mark.parametrize(
    ("before", "stored"),
    [([], 6), ([not_written], 6), ([broken], 4)],
    ids=["none", "not_written", "broken"],
)
async def test_a_revision_that_cannot_be_ours_is_a_mismatch(
    store: FakeStore,
    provider: PersistenceProvider,
    rpc: str,
    method: Any,
    before: list[Step],
    stored: int,
) -> None:
    store.on(rpc, *before, mismatch(stored))
    with pytest.raises(RevisionMismatch) as caught:
        await method(provider, 5)
    assert caught.value.revision == stored
    assert not caught.value.maybe_written


# Waiting


def test_the_backoff_is_random_up_to_a_ceiling_that_grows() -> None:
    policy = RetryPolicy(initial_backoff=0.1, max_backoff=0.4, multiplier=2)
    for attempts, ceiling in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.4), (10**6, 0.4)]:
        waits = [policy.backoff(attempts) for _ in range(500)]
        assert 0 <= min(waits) < ceiling * 0.1
        assert ceiling * 0.9 < max(waits) <= ceiling


@pytest.mark.parametrize(
    "bad",
    [
        {"max_attempts": 0},
        {"initial_backoff": -1},
        {"max_backoff": -0.1},
        {"multiplier": 0.5},
        {"multiplier": 11},
    ],
)
def test_the_policy_has_bounds(bad: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=next(iter(bad)).removeprefix("initial_").removeprefix("max_")
    ):
        RetryPolicy(**bad)


async def test_the_server_s_wait_is_kept(store: FakeStore, provider: PersistenceProvider) -> None:
    times: list[float] = []

    async def step(request: Any, context: Any) -> Any:
        times.append(time.monotonic())
        if len(times) == 1:
            later = fails(Status.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED", retry_after=0.1)
            return await later(request, context)
        return CALLS["GetEvent"][1]

    store.on("GetEvent", step)
    await provider.get_event("e")
    assert times[1] - times[0] >= 0.1


async def test_a_wait_beyond_the_deadline_is_not_begun(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetEvent", fails(Status.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED", retry_after=60))
    with pytest.raises(PoolExhausted) as caught:
        await provider.get_event("e")
    assert caught.value.retry_after == 60
    assert store.count("GetEvent") == 1


# Deadlines


async def test_the_deadline_ends_a_call(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("GetEvent", hangs())
    store.on("CreateEvent", hangs())
    hurried = provider.with_timeout(0.05)
    with pytest.raises(DeadlineExceeded) as caught:
        await hurried.get_event("e")
    assert not caught.value.maybe_written
    with pytest.raises(DeadlineExceeded) as caught:
        await hurried.create_event(EVENT)
    assert caught.value.maybe_written
    assert store.count("CreateEvent") == 1


async def test_the_server_is_told_the_deadline(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    remaining: list[float] = []

    async def step(request: Any, context: Any) -> Any:
        remaining.append(context.time_remaining())
        return CALLS["GetEvent"][1]

    store.on("GetEvent", step)
    await provider.get_event("e")
    await provider.with_timeout(100).get_event("e")
    # gRPC rounds what it tells by up to two percent.
    assert 5 < remaining[0] < 11
    assert 90 < remaining[1] < 110


async def test_one_deadline_spans_all_attempts(store: FakeStore) -> None:
    remaining: list[float] = []

    async def step(request: Any, context: Any) -> Any:
        remaining.append(context.time_remaining())
        await asyncio.sleep(0.05)
        return await not_written(request, context)

    store.on("GetEvent", step)
    patient = RetryPolicy(max_attempts=1000, initial_backoff=0, max_backoff=0)
    async with connect(store.target, timeout=0.5, retry=patient) as provider:
        before = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await provider.get_event("e")
        assert time.monotonic() - before < 5
    assert len(remaining) > 1
    assert remaining == sorted(remaining, reverse=True)


class Clock:
    """The monotonic clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


async def test_one_deadline_spans_all_pages(
    store: FakeStore, provider: PersistenceProvider, clock: Clock
) -> None:
    async def step(request: Any, context: Any) -> Any:
        clock.ahead += 4
        more = store.count("GetEvents") < 5
        return event_pb2.GetEventsResponse(event_ids=["e"], next_page_token="t" if more else "")

    store.on("GetEvents", step)
    with pytest.raises(DeadlineExceeded):
        await provider.get_events("n", "k")
    store.requests.clear()
    # Pages that the caller asks for one by one have a deadline each.
    assert [event async for event in provider.iter_events("n", "k")] == ["e"] * 5


async def test_a_deadline_must_be_positive(provider: PersistenceProvider) -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            provider.with_timeout(timeout)


# The connection itself


@pytest.fixture
async def forwarder(store: FakeStore) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(store)
    yield forwarder
    await forwarder.stop()


def cuts(forwarder: Forwarder, applied: list[str]) -> Step:
    """Does the work; then the connection breaks before the answer is out."""

    async def step(request: Any, context: Any) -> Any:
        applied.append("once")
        forwarder.cut()
        await asyncio.Event().wait()

    return step


async def test_a_connection_cut_under_way(store: FakeStore, forwarder: Forwarder) -> None:
    applied: list[str] = []
    async with connect(await forwarder.start(), timeout=10, retry=RetryPolicy()) as provider:
        store.on("CreateEvent", cuts(forwarder, applied), answers(CALLS["CreateEvent"][1]))
        assert await provider.create_event(EVENT) == "e"
        assert store.count("CreateEvent") == 2
        store.on("PersistErrors", cuts(forwarder, applied))
        with pytest.raises(CommitOutcomeUnknown) as caught:
            await provider.persist_errors([])
        assert store.count("PersistErrors") == 1
        assert caught.value.maybe_written
        assert isinstance(caught.value.__cause__, Unavailable)


async def test_nobody_listens(tmp_path: Path) -> None:
    async with connect(f"unix:{tmp_path}/nobody.sock", timeout=0.3, retry=FAST) as provider:
        with pytest.raises(Unavailable) as caught:
            await provider.persist_errors([])
        assert type(caught.value) is Unavailable
        assert caught.value.reason == "SERVER_UNREACHABLE"
        assert not caught.value.maybe_written


async def test_a_server_that_comes_late_is_found(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/late.sock"
    late = FakeStore()
    late.on("PersistErrors", answers(store_pb2.PersistErrorsResponse()))
    async with connect(target, retry=RetryPolicy(max_backoff=0.2, max_attempts=100)) as provider:
        # Not even sent while there is no connection, so it is safe to go on trying.
        call = asyncio.create_task(provider.persist_errors([]))
        await asyncio.sleep(0.05)
        assert not call.done()
        await late.start(target)
        await call
    assert late.count("PersistErrors") == 1
    await late.stop()


async def test_a_server_that_never_says_hello() -> None:
    # The kernel takes the connection, and nobody ever reads from it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with connect(f"127.0.0.1:{port}", timeout=0.1) as provider:
            with pytest.raises(DeadlineExceeded, match=f"127.0.0.1:{port}") as caught:
                await provider.persist_errors([])
            assert caught.value.reason == "DEADLINE_EXCEEDED"
            assert not caught.value.maybe_written


async def test_large_answers_are_taken(store: FakeStore, provider: PersistenceProvider) -> None:
    large = workflow_pb2.WorkflowInstance()
    large.CopyFrom(STORED)
    large.data_json = '"' + "x" * (6 << 20) + '"'
    store.on(
        "GetWorkflowInstance", answers(workflow_pb2.GetWorkflowInstanceResponse(instance=large))
    )
    instance = await provider.get_workflow_instance("w")
    assert instance.data == "x" * (6 << 20)


async def test_the_limit_for_answers_can_be_set(store: FakeStore) -> None:
    large = event_pb2.GetEventResponse(event=event_pb2.Event(event_data_json=f'"{"x" * 2000}"'))
    store.on("GetEvent", answers(large))
    async with connect(store.target, max_message_bytes=1000, retry=FAST) as provider:
        with pytest.raises(PersistenceError) as caught:
            await provider.get_event("e")
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    assert store.count("GetEvent") == 1


# Ending


async def test_cancelling_cancels(store: FakeStore, provider: PersistenceProvider) -> None:
    cancelled = asyncio.Event()

    async def step(request: Any, context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    store.on("GetEvent", step)
    call = asyncio.create_task(provider.get_event("e"))
    await store.called("GetEvent")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert store.count("GetEvent") == 1


async def test_closing_ends_what_is_under_way(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetEvent", hangs())
    store.on("CreateEvent", hangs())
    read = asyncio.create_task(provider.get_event("e"))
    write = asyncio.create_task(provider.create_event(EVENT))
    await store.called("GetEvent", "CreateEvent")
    await provider.close()
    with pytest.raises(Unavailable) as caught:
        await read
    assert type(caught.value) is Unavailable
    with pytest.raises(CommitOutcomeUnknown):
        await write


async def test_a_closed_provider_says_so(provider: PersistenceProvider) -> None:
    await provider.close()
    with pytest.raises(RuntimeError, match="closed"):
        await provider.get_event("e")
    with pytest.raises(RuntimeError, match="closed"):
        await provider.with_timeout(1).get_workflow_instances(["w"])


async def test_a_conflict_that_stays_is_told(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("ScheduleCommand", fails(Status.ABORTED, "TRANSACTION_CONFLICT"))
    with pytest.raises(TransactionConflict) as caught:
        await provider.schedule_command(COMMAND)
    assert not caught.value.maybe_written


async def test_a_stream_that_breaks_starts_anew(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    def message(workflow_id: str) -> workflow_pb2.GetWorkflowInstancesResponse:
        stored = workflow_pb2.WorkflowInstance()
        stored.CopyFrom(STORED)
        stored.id = workflow_id
        return workflow_pb2.GetWorkflowInstancesResponse(instance=stored)

    async def half(request: Any, context: Any) -> Any:
        await context.write(message("a"))
        await broken(request, context)

    store.on("GetWorkflowInstances", half, answers([message("a"), message("b")]))
    instances = await provider.get_workflow_instances(["a", "b"])
    assert [instance.id for instance in instances] == ["a", "b"]
