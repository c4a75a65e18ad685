"""Nothing gets from one namespace into another: every RPC, with the ids of another namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lifecycle_pb2,
    lock_pb2,
    store_pb2,
    subscription_pb2,
    workflow_pb2,
)
from wfe.persistence.v1 import command_pb2 as c
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import lifecycle_pb2 as lc
from wfe.persistence.v1 import lock_pb2 as lk
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1 import subscription_pb2 as s
from wfe.persistence.v1 import transfer_pb2 as tr
from wfe.persistence.v1 import workflow_pb2 as w


class Namespace:
    """A namespace with one of everything in it, all with ids that a second one may have too."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.name = make.new_namespace()
        self.metadata = (("wfe-namespace", self.name),)
        self.workflow = make.full_instance(id="w", name="the one", next_execution=0)
        self.ended = make.instance(
            id="ended", status=w.WorkflowStatus.WORKFLOW_STATUS_COMPLETE, complete_time=make.time()
        )
        self.event = make.event(id="e", event_key="k")
        self.subscription = make.subscription(id="s", event_key="k")
        self.command = make.command(data="w")
        self.error = make.error(workflow_id="w")
        self.lease_token = ""
        self.lock_token = ""
        self.cursor = ""
        self.epoch = 0

    async def create(self) -> None:
        await self.api.store.CreateNamespace(st.CreateNamespaceRequest(name=self.name))

    async def fill(self) -> None:
        api, metadata = self.api, self.metadata
        for instance in (self.workflow, self.ended):
            await api.workflows.CreateNewWorkflow(
                w.CreateNewWorkflowRequest(instance=instance), metadata=metadata
            )
        await api.events.CreateEvent(e.CreateEventRequest(event=self.event), metadata=metadata)
        for id_ in ("s", "held"):
            self.subscription.id = id_
            await api.subscriptions.CreateEventSubscription(
                s.CreateEventSubscriptionRequest(subscription=self.subscription), metadata=metadata
            )
        held = await api.subscriptions.SetSubscriptionToken(
            s.SetSubscriptionTokenRequest(id="held", token="t"), metadata=metadata
        )
        self.epoch = held.epoch
        await api.workflows.NextDefinitionSequence(
            w.NextDefinitionSequenceRequest(definition_id="d"), metadata=metadata
        )
        await api.store.PersistErrors(
            st.PersistErrorsRequest(errors=[self.error]), metadata=metadata
        )
        await api.commands.ScheduleCommand(
            c.ScheduleCommandRequest(command=self.command), metadata=metadata
        )
        await api.workflows.SetNameHolder(
            w.SetNameHolderRequest(name="claimed", workflow_id="w", claim_id="c"), metadata=metadata
        )
        claimed = await api.commands.ClaimCommands(c.ClaimCommandsRequest(), metadata=metadata)
        self.lease_token = claimed.commands[0].lease_token
        locked = await api.locks.AcquireLock(lk.AcquireLockRequest(resource="r"), metadata=metadata)
        self.lock_token = locked.token
        self.cursor = await api.cursor(metadata=metadata)
        self.change_cursor = await api.change_cursor(metadata=metadata)
        await api.publish(make.lifecycle_event(workflow_id="w"), metadata=metadata)

    async def state(self) -> list[Any]:
        """All that is in it."""
        api, metadata = self.api, self.metadata
        return [
            await api.workflows.ListWorkflows(
                w.ListWorkflowsRequest(view=w.WorkflowView.WORKFLOW_VIEW_FULL), metadata=metadata
            ),
            await api.events.ListEvents(e.ListEventsRequest(), metadata=metadata),
            await api.subscriptions.ListSubscriptions(
                s.ListSubscriptionsRequest(), metadata=metadata
            ),
            await api.store.ListErrors(st.ListErrorsRequest(), metadata=metadata),
            await api.commands.ListCommands(c.ListCommandsRequest(), metadata=metadata),
            await api.locks.ListLocks(lk.ListLocksRequest(), metadata=metadata),
            await api.workflows.GetNameHolder(
                w.GetNameHolderRequest(name="claimed"), metadata=metadata
            ),
            await api.published_since(self.cursor, metadata=metadata),
        ]

    async def delete(self) -> None:
        try:
            await self.api.store.DeleteNamespace(
                st.DeleteNamespaceRequest(name=self.name, force=True)
            )
        except grpc.aio.AioRpcError as exc:
            assert exc.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017


@pytest.fixture
async def filled(api: Api) -> AsyncIterator[Namespace]:
    """The namespace that must be left alone."""
    info = await api.store.GetStoreInfo(st.GetStoreInfoRequest())
    if not (info.capabilities.create_namespace and info.capabilities.delete_namespace):
        pytest.skip("the target does not allow CreateNamespace and DeleteNamespace")
    namespace = Namespace(api)
    await namespace.create()
    await namespace.fill()
    yield namespace
    await namespace.delete()


@pytest.fixture
async def other(api: Api) -> AsyncIterator[Namespace]:
    """The namespace that is called, with nothing in it."""
    namespace = Namespace(api)
    await namespace.create()
    yield namespace
    await namespace.delete()


MINUTE = Duration(seconds=60)
NOTHING = object()
W, E, S = "WORKFLOW_NOT_FOUND", "EVENT_NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"
KEY: dict[str, Any] = {"event_name": "order.paid", "event_key": "k"}


def commit(n: Namespace, **effects: Any) -> w.CommitWorkflowRequest:
    """A commit to the workflow of both namespaces, with effects on what only one of them has."""
    return w.CommitWorkflowRequest(
        patch=make.patch("w", reference="x"), expected_revision=1, **effects
    )


# Each RPC: its request with the ids of the filled namespace, and what must come of it in the other
# one: a reason why it fails, the fields that are empty in the answer, or NOTHING: it goes well.
Case = tuple[Callable[[Namespace], Any], object]
CASES: dict[str, Case] = {
    "GetWorkflowInstance": (lambda n: w.GetWorkflowInstanceRequest(id="w"), W),
    "GetWorkflowInstanceByName": (
        lambda n: w.GetWorkflowInstanceByNameRequest(name="the one"), W),
    "WaitForWorkflow": (lambda n: w.WaitForWorkflowRequest(id="w"), W),
    "GetWorkflowInstances": (lambda n: w.GetWorkflowInstancesRequest(ids=["w"]), []),
    "GetRunnableInstances": (lambda n: w.GetRunnableInstancesRequest(), ["instance_ids"]),
    "PersistWorkflow": (lambda n: w.PersistWorkflowRequest(instance=n.workflow), W),
    "PersistWorkflowWithSubscriptions": (
        lambda n: w.PersistWorkflowWithSubscriptionsRequest(
            instance=n.workflow, subscriptions=[n.subscription]), W),
    "CommitWorkflow": (lambda n: commit(n), W),
    "ListExecutionPointers": (lambda n: w.ListExecutionPointersRequest(workflow_id="w"), W),
    "ListWorkflows": (lambda n: w.ListWorkflowsRequest(), ["instances"]),
    "CountWorkflows": (lambda n: w.CountWorkflowsRequest(), ["counts"]),
    "DeleteWorkflow": (lambda n: w.DeleteWorkflowRequest(id="w"), W),
    "PurgeWorkflows": (
        lambda n: w.PurgeWorkflowsRequest(ended_before=make.LAST_TIME),
        ["workflows", "execution_pointers", "subscriptions", "errors", "events"]),
    "CreateWorkflows": (
        lambda n: w.CreateWorkflowsRequest(workflows=[
            w.CreateNewWorkflowRequest(instance=make.instance(id="w"))]), NOTHING),
    "CreateEvents": (
        lambda n: e.CreateEventsRequest(events=[
            e.CreateEventRequest(event=make.event(id="e"))]), NOTHING),
    "CreateNewWorkflow": (
        lambda n: w.CreateNewWorkflowRequest(instance=make.instance(id="w", name="the one")),
        NOTHING),
    "NextDefinitionSequence": (
        lambda n: w.NextDefinitionSequenceRequest(definition_id="d"), {"number": 1}),
    "CreateEvent": (lambda n: e.CreateEventRequest(event=make.event(id="e")), NOTHING),
    "GetEvent": (lambda n: e.GetEventRequest(id="e"), E),
    "GetRunnableEvents": (lambda n: e.GetRunnableEventsRequest(), ["event_ids"]),
    "GetEvents": (lambda n: e.GetEventsRequest(**KEY), ["event_ids"]),
    "MarkEventProcessed": (lambda n: e.MarkEventProcessedRequest(id="e"), E),
    "MarkEventUnprocessed": (lambda n: e.MarkEventUnprocessedRequest(id="e"), E),
    "ListEvents": (lambda n: e.ListEventsRequest(), ["events"]),
    "PurgeEvents": (
        lambda n: e.PurgeEventsRequest(event_time_before=make.LAST_TIME, include_unprocessed=True),
        ["events"]),
    "CreateEventSubscription": (
        lambda n: s.CreateEventSubscriptionRequest(subscription=make.subscription(id="s")),
        NOTHING),
    "GetSubscription": (lambda n: s.GetSubscriptionRequest(id="s"), S),
    "GetSubscriptions": (lambda n: s.GetSubscriptionsRequest(**KEY), ["subscriptions"]),
    "GetFirstOpenSubscription": (
        lambda n: s.GetFirstOpenSubscriptionRequest(**KEY), ["subscription"]),
    "TerminateSubscription": (lambda n: s.TerminateSubscriptionRequest(id="s"), S),
    "SetSubscriptionToken": (lambda n: s.SetSubscriptionTokenRequest(id="s", token="t"), S),
    "ClearSubscriptionToken": (lambda n: s.ClearSubscriptionTokenRequest(id="held", token="t"), S),
    "RenewSubscriptionToken": (
        lambda n: s.RenewSubscriptionTokenRequest(id="held", token="t", epoch=n.epoch), S),
    "ListSubscriptions": (lambda n: s.ListSubscriptionsRequest(), ["subscriptions"]),
    "ScheduleCommand": (
        lambda n: c.ScheduleCommandRequest(command=make.command(data="w", execute_time=9)),
        NOTHING),
    "ClaimCommands": (lambda n: c.ClaimCommandsRequest(), ["commands"]),
    "CompleteCommands": (
        lambda n: c.CompleteCommandsRequest(lease_tokens=[n.lease_token]), "LEASE_LOST"),
    "ReleaseCommands": (
        lambda n: c.ReleaseCommandsRequest(lease_tokens=[n.lease_token]), "LEASE_LOST"),
    "RenewCommands": (
        lambda n: c.RenewCommandsRequest(lease_tokens=[n.lease_token]), "LEASE_LOST"),
    "BreakCommandLease": (
        lambda n: c.BreakCommandLeaseRequest(
            command_name=c.COMMAND_NAME_PROCESS_WORKFLOW, data="w"),
        ["broken"]),
    "ListCommands": (lambda n: c.ListCommandsRequest(), ["commands"]),
    "Publish": (lambda n: lc.PublishRequest(events=[make.lifecycle_event()]), NOTHING),
    "Watch": (lambda n: lc.WatchRequest(after=n.cursor), "CURSOR_EXPIRED"),
    "WatchWorkflows": (
        lambda n: w.WatchWorkflowsRequest(after=n.change_cursor),
        "CURSOR_EXPIRED",
    ),
    "AcquireLock": (lambda n: lk.AcquireLockRequest(resource="r"), ["holder"]),
    "RenewLocks": (lambda n: lk.RenewLocksRequest(tokens=[n.lock_token]), "LEASE_LOST"),
    "ReleaseLock": (lambda n: lk.ReleaseLockRequest(token=n.lock_token), ["released"]),
    "BreakLock": (lambda n: lk.BreakLockRequest(resource="r"), ["broken"]),
    "ListLocks": (lambda n: lk.ListLocksRequest(), ["locks"]),
    "EnsureStoreExists": (lambda n: st.EnsureStoreExistsRequest(), ["applied_migrations"]),
    "PersistErrors": (lambda n: st.PersistErrorsRequest(errors=[n.error]), NOTHING),
    "ListErrors": (lambda n: st.ListErrorsRequest(workflow_id="w"), ["errors"]),
    "GetStoreInfo": (lambda n: st.GetStoreInfoRequest(), NOTHING),
    "TruncateAll": (lambda n: st.TruncateAllRequest(), NOTHING),
    "CreateNamespace": (lambda n: st.CreateNamespaceRequest(name=n.name), NOTHING),
    "ListDatabases": (lambda n: st.ListDatabasesRequest(), NOTHING),
    "ListNamespaces": (lambda n: st.ListNamespacesRequest(), NOTHING),
    "DeleteNamespace": (lambda n: st.DeleteNamespaceRequest(name="no_such"), "NAMESPACE_NOT_FOUND"),
    "MoveNamespace": (
        lambda n: st.MoveNamespaceRequest(name="no_such", database="home"), "NAMESPACE_NOT_FOUND"),
    "AbortMoveNamespace": (lambda n: st.AbortMoveNamespaceRequest(name="no_such"), ["aborted"]),
    "CreateNamespaceSet": (
        lambda n: st.CreateNamespaceSetRequest(name=n.name, members=0), "INVALID_FIELD"),
    "GetNamespaceSet": (
        lambda n: st.GetNamespaceSetRequest(name="no_such"), "NAMESPACE_SET_NOT_FOUND"),
    "DeleteNamespaceSet": (
        lambda n: st.DeleteNamespaceSetRequest(name="no_such"), "NAMESPACE_SET_NOT_FOUND"),
    "SetNameHolder": (
        lambda n: w.SetNameHolderRequest(name="claimed", expected_claim_id="c"), ["workflow_id"]),
    "GetNameHolder": (lambda n: w.GetNameHolderRequest(name="claimed"), ["workflow_id"]),
    "SetRetentionPolicy": (
        lambda n: st.SetRetentionPolicyRequest(policy=st.RetentionPolicy(
            workflows=[st.WorkflowRetention(complete_age=MINUTE, terminated_age=MINUTE)],
            processed_event_age=MINUTE, error_age=MINUTE, overdue_command_age=MINUTE,
        )), NOTHING),
    "GetRetentionPolicy": (lambda n: st.GetRetentionPolicyRequest(), NOTHING),
    # It would go on with what the namespace that is called lets go.
    "RunRetention": (lambda n: st.RunRetentionRequest(), NOTHING),
    "GetStorageReport": (lambda n: st.GetStorageReportRequest(), NOTHING),
    "ExportRecords": (
        lambda n: tr.ExportRecordsRequest(workflows=tr.WorkflowSelection(ids=["w"])), ["records"]),
    "ImportRecords": (
        lambda n: tr.ImportRecordsRequest(records=[tr.Record(event=make.event(id="e"))]),
        {"stored": 1}),
}  # fmt: skip

METHODS = {
    method.name: method
    for file in (
        workflow_pb2,
        event_pb2,
        subscription_pb2,
        command_pb2,
        lifecycle_pb2,
        lock_pb2,
        store_pb2,
        tr,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_rpc_has_its_case() -> None:
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("rpc", CASES)
async def test_call_with_ids_of_another_namespace_sees_and_changes_nothing(
    api: Api, filled: Namespace, other: Namespace, rpc: str
) -> None:
    before = await filled.state()
    request, expected = CASES[rpc]
    if isinstance(expected, str):
        codes = {
            "LEASE_LOST": "FAILED_PRECONDITION",
            "CURSOR_EXPIRED": "OUT_OF_RANGE",
            "INVALID_FIELD": "INVALID_ARGUMENT",
        }
        with fails(codes.get(expected, "NOT_FOUND"), expected):
            await call(api, rpc, request(filled), other)
    else:
        answers = await call(api, rpc, request(filled), other)
        if expected == []:
            assert answers == []
        elif isinstance(expected, list):
            set_fields = {field.name for field, _ in answers[0].ListFields()}
            assert not set_fields & set(expected)
        elif isinstance(expected, dict):
            assert {name: getattr(answers[0], name) for name in expected} == expected
    assert await filled.state() == before


# What a commit may hang on or touch: the field with the ids of the filled namespace, and why that
# fails in the other one.
EFFECTS: dict[str, tuple[Callable[[Namespace], Any], str]] = {
    "held_subscriptions": (
        lambda n: [w.SubscriptionClaim(subscription_id="held", token="t", epoch=n.epoch)], S),
    "held_lease_tokens": (lambda n: [n.lease_token], "LEASE_LOST"),
    "terminate_subscription_ids": (lambda n: ["s"], S),
    "processed_event_ids": (lambda n: ["e"], E),
    "complete_lease_tokens": (lambda n: [n.lease_token], "LEASE_LOST"),
    "held_lock_tokens": (lambda n: [n.lock_token], "LEASE_LOST"),
}  # fmt: skip


@pytest.mark.parametrize("field", EFFECTS)
async def test_commit_can_not_hang_on_or_touch_what_is_in_another_namespace(
    api: Api, filled: Namespace, other: Namespace, field: str
) -> None:
    await api.workflows.CreateNewWorkflow(
        w.CreateNewWorkflowRequest(instance=make.instance(id="w")), metadata=other.metadata
    )
    before = await filled.state()
    value, reason = EFFECTS[field]
    request = commit(filled, **{field: value(filled)})
    code = "FAILED_PRECONDITION" if reason == "LEASE_LOST" else "NOT_FOUND"
    with fails(code, reason):
        await api.workflows.CommitWorkflow(request, metadata=other.metadata)
    assert await filled.state() == before
    # Where they are, it goes well.
    await api.workflows.CommitWorkflow(request, metadata=filled.metadata)


async def call(api: Api, rpc: str, request: Any, namespace: Namespace) -> list[Any]:
    """Call an RPC by its name in a namespace; all its answers."""
    method = METHODS[rpc]
    stubs = {
        "WorkflowService": api.workflows,
        "EventService": api.events,
        "SubscriptionService": api.subscriptions,
        "ScheduledCommandService": api.commands,
        "LifecycleService": api.lifecycle,
        "LockService": api.locks,
        "StoreService": api.store,
        "TransferService": api.transfer,
    }
    made: Any = getattr(stubs[method.containing_service.name], rpc)(
        iter([request]) if method.client_streaming else request, metadata=namespace.metadata
    )
    if method.server_streaming:
        return [answer async for answer in made]
    single: Awaitable[Any] = made
    return [await single]
