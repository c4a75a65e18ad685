"""Lists, counts, deletes and purges, against the real server and by what is sent."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client.fake_store import FakeStore, answers, broken
from tests.client.test_patches import NOW, subscription, workflow
from tests.client.wire import provider_on
from wfe.persistence.v1 import event_pb2, store_pb2, workflow_pb2
from wfe_persistence_client import (
    CommandLease,
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ListedCommand,
    ListOrder,
    PersistenceProvider,
    PurgedWorkflows,
    RevisionMismatch,
    ScheduledCommand,
    WorkflowFilter,
    WorkflowNotFound,
    WorkflowStatus,
    WorkflowView,
    convert,
)

HOUR = timedelta(hours=1)


@pytest.fixture
async def real(target: str) -> AsyncIterator[PersistenceProvider]:
    async with provider_on(target) as provider:
        yield provider


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_workflows(real: PersistenceProvider) -> None:
    definition = str(uuid.uuid4())
    made = [
        workflow(
            2,
            workflow_definition_id=definition,
            create_time=NOW + n * HOUR,
            complete_time=NOW + n * HOUR if n == 2 else None,
            status=WorkflowStatus.COMPLETE if n == 2 else WorkflowStatus.SUSPENDED,
            name=f"{definition}-{n}",
            reference=f"r{n}",
            version=n,
            root_workflow_id="top" if n == 1 else None,
        )
        for n in range(3)
    ]
    for instance in made:
        await real.create_new_workflow(instance)
    ids = [instance.id for instance in made]
    ours = WorkflowFilter(workflow_definition_id=definition)
    listed = await real.list_workflows(ours)
    assert [w.id for w in listed] == ids[::-1]
    assert {w.view for w in listed} == {WorkflowView.HEADER}
    oldest = await collected(
        real.iter_workflows(ours, order=ListOrder.OLDEST_FIRST, view=WorkflowView.FULL, page_size=1)
    )
    assert [w.id for w in oldest] == ids
    assert oldest[0].execution_pointers == made[0].execution_pointers
    assert oldest[0].view is WorkflowView.FULL
    filters: list[tuple[dict[str, Any], list[int]]] = [
        ({"statuses": [WorkflowStatus.COMPLETE]}, [2]),
        ({"statuses": {WorkflowStatus.COMPLETE, WorkflowStatus.SUSPENDED}}, [2, 1, 0]),
        ({"version": 0}, [0]),
        ({"reference": "r1"}, [1]),
        ({"name_prefix": f"{definition}-2"}, [2]),
        ({"root_workflow_id": "top"}, [1]),
        ({"create_time_from": NOW + HOUR}, [2, 1]),
        ({"create_time_before": NOW + HOUR}, [0]),
        ({"complete_time_from": NOW}, [2]),
        ({"complete_time_before": NOW + HOUR}, []),
        ({"written_before": NOW + HOUR}, [0]),
        ({"due_before": NOW}, []),
        ({"waiting_event_name": definition}, [1, 0]),
        ({"waiting_event_name": definition, "waiting_event_key": "1"}, [1]),
        ({"error_time_from": NOW + HOUR}, [2]),
    ]
    for n in range(2):
        await real.create_event_subscription(
            EventSubscription(
                workflow_id=ids[n],
                step_id=1,
                execution_pointer_id="1",
                event_name=definition,
                event_key=str(n),
                subscribe_as_of=NOW,
            )
        )
    await real.persist_errors(
        [ExecutionError(workflow_id=ids[n], error_time=NOW + (n - 1) * HOUR) for n in range(3)]
    )
    for given, expected in filters:
        fields: Any = {"workflow_definition_id": definition, **given}
        found = await real.list_workflows(WorkflowFilter(**fields))
        assert [w.id for w in found] == [ids[n] for n in expected], given
    assert await real.count_workflows(ours) == {
        WorkflowStatus.SUSPENDED: 2,
        WorkflowStatus.COMPLETE: 1,
    }
    assert sum((await real.count_workflows()).values()) >= 3


async def test_pointers(real: PersistenceProvider) -> None:
    await real.create_new_workflow(instance := workflow(250))
    instance.execution_pointers[7].active = True
    revision = await real.persist_workflow(instance)
    assert await real.list_execution_pointers(instance.id) == instance.execution_pointers
    paged = real.iter_execution_pointers(instance.id, expected_revision=revision, page_size=99)
    assert await collected(paged) == instance.execution_pointers
    active = await real.list_execution_pointers(instance.id, active_only=True)
    assert [p.id for p in active] == ["7"]
    with pytest.raises(RevisionMismatch):
        await real.list_execution_pointers(instance.id, expected_revision=revision - 1)
    with pytest.raises(WorkflowNotFound):
        await real.list_execution_pointers("nobody")


async def test_delete(real: PersistenceProvider) -> None:
    await real.create_new_workflow(instance := workflow(2))
    with pytest.raises(RevisionMismatch):
        await real.delete_workflow(instance.id, expected_revision=instance.revision + 1)
    await real.delete_workflow(instance.id, expected_revision=instance.revision)
    with pytest.raises(WorkflowNotFound):
        await real.delete_workflow(instance.id)


async def test_purge_workflows(real: PersistenceProvider) -> None:
    definition = str(uuid.uuid4())
    for n in range(5):
        instance = workflow(
            3,
            workflow_definition_id=definition,
            status=WorkflowStatus.COMPLETE,
            complete_time=NOW + n * HOUR,
        )
        await real.create_new_workflow(instance)
        await real.create_event_subscription(subscription(instance))
        await real.persist_errors([ExecutionError(workflow_id=instance.id)])
    until = NOW + 4 * HOUR
    expected = PurgedWorkflows(workflows=4, execution_pointers=12, subscriptions=4, errors=4)
    of_ours: dict[str, Any] = {"workflow_definition_id": definition, "max_rows": 1}
    assert await real.purge_workflows(until, dry_run=True, **of_ours) == expected
    terminated = [WorkflowStatus.TERMINATED]
    assert await real.purge_workflows(until, statuses=terminated, **of_ours) == PurgedWorkflows()
    calls = await collected(real.iter_purge_workflows(until, **of_ours))
    assert len(calls) >= 4
    assert sum(done.workflows for done in calls) == 4
    assert await real.purge_workflows(until, **of_ours) == PurgedWorkflows()
    assert len(await real.list_workflows(WorkflowFilter(workflow_definition_id=definition))) == 1


async def test_events(real: PersistenceProvider) -> None:
    name = str(uuid.uuid4())
    made = [
        Event(id=f"{name}-{n}", event_name=name, event_key=f"k{n}", event_data=n,
              event_time=NOW + n * HOUR)
        for n in range(4)
    ]  # fmt: skip
    for event in made:
        await real.create_event(event)
    await real.mark_event_processed(made[1].id)
    made[1].is_processed = True
    assert await real.list_events(event_name=name) == made[::-1]
    oldest = real.iter_all_events(
        event_name=name,
        event_time_from=NOW + HOUR,
        event_time_before=NOW + 3 * HOUR,
        order=ListOrder.OLDEST_FIRST,
        page_size=1,
    )
    assert await collected(oldest) == made[1:3]
    assert await real.list_events(event_name=name, event_key="k2") == [made[2]]
    assert await real.list_events(event_name=name, is_processed=True) == [made[1]]
    until = NOW + 3 * HOUR
    assert await real.purge_events(until, event_name=name, dry_run=True) == 1
    assert await real.purge_events(until, event_name=name) == 1
    calls = real.iter_purge_events(until, event_name=name, include_unprocessed=True, max_rows=1)
    assert sum(await collected(calls)) == 2
    assert await real.list_events(event_name=name) == [made[3]]


async def test_subscriptions(real: PersistenceProvider) -> None:
    instance = workflow()
    made = sorted([subscription(instance) for _ in range(3)], key=lambda s: s.event_name)
    for one in made:
        one.id = one.event_name
        await real.create_event_subscription(one)
    claim = await real.claim_subscription(made[1].id)
    assert claim is not None
    listed = await real.list_subscriptions(workflow_id=instance.id)
    assert [s.id for s in listed] == [s.id for s in made]
    paged = real.iter_all_subscriptions(workflow_id=instance.id, held=False, page_size=1)
    assert await collected(paged) == [made[0], made[2]]
    held = await real.list_subscriptions(workflow_id=instance.id, held=True)
    assert [s.external_token_epoch for s in held] == [claim.epoch]
    by_event = await real.list_subscriptions(event_name=made[2].event_name, event_key="k")
    assert by_event == [made[2]]


async def test_errors_by_time(real: PersistenceProvider) -> None:
    id_ = str(uuid.uuid4())
    made = [ExecutionError(workflow_id=id_, error_time=NOW + n * HOUR) for n in range(4)]
    await real.persist_errors(made)
    times: Any = {"error_time_from": NOW + HOUR, "error_time_before": NOW + 3 * HOUR}
    assert await real.list_errors(id_, **times) == made[2:0:-1]
    assert await collected(real.iter_errors(id_, page_size=1, **times)) == made[2:0:-1]


async def test_a_purge_goes_on_until_it_is_done(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    pages = [
        workflow_pb2.PurgeWorkflowsResponse(workflows=2, events=1, next_page_token="a"),
        # A call whose budget went elsewhere is not the last one.
        workflow_pb2.PurgeWorkflowsResponse(next_page_token="b"),
        workflow_pb2.PurgeWorkflowsResponse(workflows=1, errors=5),
    ]
    store.on("PurgeWorkflows", answers(pages[0]), broken, *map(answers, pages[1:]))
    done = await provider.purge_workflows(NOW, dry_run=True)
    assert done == PurgedWorkflows(workflows=3, errors=5, events=1)
    requests = store.requests["PurgeWorkflows"]
    assert [r.page_token for r in requests] == ["", "a", "a", "b"]
    assert all(r.dry_run and r.ended_before == requests[0].ended_before for r in requests)
    events = [
        event_pb2.PurgeEventsResponse(events=3, next_page_token="a"),
        event_pb2.PurgeEventsResponse(events=4),
    ]
    store.on("PurgeEvents", *map(answers, events))
    assert await provider.purge_events(NOW) == 7


async def test_a_list_that_is_not_asked_for_everything_asks_for_nothing(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("ListWorkflows", answers(workflow_pb2.ListWorkflowsResponse()))
    store.on("CountWorkflows", answers(workflow_pb2.CountWorkflowsResponse()))
    store.on("ListEvents", answers(event_pb2.ListEventsResponse()))
    store.on("ListErrors", answers(store_pb2.ListErrorsResponse()))
    await provider.list_workflows()
    await provider.count_workflows()
    await provider.list_events()
    await provider.list_errors()
    assert not store.requests["ListWorkflows"][0].HasField("filter")
    assert not store.requests["CountWorkflows"][0].HasField("filter")
    assert store.requests["ListEvents"][0] == event_pb2.ListEventsRequest(
        page_size=1000, order=convert.order_to_proto(ListOrder.NEWEST_FIRST)
    )
    assert store.requests["ListErrors"][0] == store_pb2.ListErrorsRequest(page_size=1000)


async def test_commands(real: PersistenceProvider) -> None:
    namespace = f"n{uuid.uuid4().hex}"
    await real.create_namespace(namespace)
    await _check_commands(real.with_namespace(namespace))
    await real.delete_namespace(namespace, force=True)


async def _check_commands(real: PersistenceProvider) -> None:
    made = [
        ScheduledCommand(command_name=CommandName.PROCESS_EVENT, data=f"e{n}", execute_time=n)
        for n in range(3)
    ]
    for command in made:
        await real.schedule_command(command)
    [claim] = await real.claim_commands(limit=1, worker_id="me")
    held = ListedCommand(
        command=made[0],
        lease=CommandLease(worker_id="me", expiry=claim.lease_expiry, epoch=claim.epoch),
    )
    free = [ListedCommand(command=command) for command in made[1:]]
    assert await real.list_commands() == [held, *free]
    assert await collected(real.iter_commands(page_size=1)) == [held, *free]
    assert await real.list_commands(leased=True) == [held]
    assert await real.list_commands(leased=False) == free
    assert await real.list_commands(worker_id="me") == [held]
    assert await real.list_commands(worker_id="you") == []
    before = datetime.fromtimestamp(0.002, UTC)
    assert await real.list_commands(due_before=before) == [held, free[0]]
    name = CommandName.PROCESS_EVENT
    assert await real.list_commands(command_name=name, data="e2") == [free[1]]
    assert await real.list_commands(command_name=CommandName.PROCESS_WORKFLOW) == []
    await real.complete_commands([claim.lease_token])
    assert await real.list_commands() == free
