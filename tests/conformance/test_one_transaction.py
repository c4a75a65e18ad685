"""One transaction: what a write of a workflow enqueues, acknowledges and publishes happens with it
or not at all, and so do the items that a new workflow or event comes with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, failure_of, invalid
from tests.support.queues import DEAD, DELAYED, LEASED, SHORT, WAITING, OwnQueue, ids
from tests.support.scene import (
    create_namespace,
    delete_namespace,
    found,
    in_namespace,
    never_due,
)
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.queue_pb2 import DequeueRequest, QueueKind
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)

RUNNABLE: Final = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
WORKFLOW: Final = QueueKind.QUEUE_KIND_WORKFLOW
EVENT: Final = QueueKind.QUEUE_KIND_EVENT
LONG: Final = Duration(seconds=60)

Kind = Callable[..., Awaitable[Any]]


async def persist(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    request = PersistWorkflowRequest(instance=instance, **fields)
    return await api.workflows.PersistWorkflow(request)


async def persist_with_subscriptions(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    given = {"subscriptions": [make.subscription(workflow_id=instance.id)]} | fields
    request = PersistWorkflowWithSubscriptionsRequest(instance=instance, **given)
    return await api.workflows.PersistWorkflowWithSubscriptions(request)


async def commit(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    request = CommitWorkflowRequest(instance=instance, **fields)
    return await api.workflows.CommitWorkflow(request)


async def commit_patch(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    patch = WorkflowPatch(id=instance.id, header=instance)
    patch.header_mask.paths.extend(["status", "next_execution", "data_json"])
    given = {"expected_revision": instance.revision} | fields
    return await api.workflows.CommitWorkflow(CommitWorkflowRequest(patch=patch, **given))


async def commit_effects(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    """A commit that does something of its own besides."""
    return await commit(
        api, instance, **({"create_events": [make.event(is_processed=True)]} | fields)
    )


async def commit_patch_effects(api: Api, instance: WorkflowInstance, **fields: Any) -> Any:
    return await commit_patch(api, instance, **({"errors": [make.error()]} | fields))


WRITES: Final = [
    persist, persist_with_subscriptions, commit, commit_patch, commit_effects, commit_patch_effects,
]  # fmt: skip
EVERY_WRITE = pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


@pytest.fixture
async def instance(api: Api) -> WorkflowInstance:
    """A workflow, stored, that nobody else comes across."""
    stored = never_due()
    await api.create(stored)
    return await api.get_workflow_instance(stored.id)


@pytest.fixture
async def due(api: Api) -> AsyncIterator[WorkflowInstance]:
    """A workflow, stored, that is due."""
    stored = make.instance(status=RUNNABLE, next_execution=0)
    await api.create(stored)
    yield await api.get_workflow_instance(stored.id)
    await api.delete_workflow(stored.id)


def acknowledge(*receipts: str, confirmed: bool = False) -> dict[str, Any]:
    given = [Acknowledgement(receipt=receipt, confirmed=confirmed) for receipt in receipts]
    return {"acknowledge": given}


# What is done.


@EVERY_WRITE
async def test_all_of_it_is_done_with_the_write(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    cursor = await api.cursor()
    claims = [await own.taken(), await own.taken()]
    resource = make.new_id("lock")
    at = make.from_now(3600)
    events = [make.lifecycle_event(workflow_id=instance.id, step_id=n) for n in range(3)]
    answer = await write(
        api,
        instance,
        enqueue=[
            make.item(own.name, id="b", payload_json='{"a": 1}', blocked_by=[resource]),
            make.item(own.name, id="a", visible_time=at),
        ],
        **acknowledge(claims[0].receipt, claims[1].receipt),
        publish=events,
    )
    assert answer.revision == instance.revision + 1
    assert not answer.returned_receipts
    waiting, delayed = await own.items()
    assert (waiting.item.id, waiting.state, waiting.attempt) == ("b", WAITING, 0)
    assert (waiting.item.payload_json, list(waiting.item.blocked_by)) == ('{"a": 1}', [resource])
    assert (delayed.item.id, delayed.state) == ("a", DELAYED)
    assert delayed.item.visible_time == at
    published = await api.published_since(cursor, [instance.id])
    assert [each.event for each in published] == events


@EVERY_WRITE
async def test_item_without_an_id_is_that_of_the_workflow(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    await write(api, instance, enqueue=[make.item(own.name, id="")])
    assert ids(await own.items()) == [instance.id]


async def test_items_are_handed_out_in_the_order_of_the_request(
    api: Api, own: OwnQueue, instance: WorkflowInstance
) -> None:
    names = [f"{i:04}" for i in range(999, -1, -1)]
    at = make.from_now(-60)
    items = [make.item(own.name, id=id_, visible_time=at) for id_ in names]
    await persist(api, instance, enqueue=items)
    claims = await own.dequeue()
    assert ids(claims) == names
    receipts = [claim.receipt for claim in claims]
    await persist(api, instance, **acknowledge(*receipts))
    assert await own.items() == []


@EVERY_WRITE
async def test_item_that_is_handled_and_enqueued_comes_again_at_that_time(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    """The loop of an engine: persist, acknowledge, go on later."""
    claim = await own.taken(instance.id)
    at = make.from_now(3600)
    item = make.item(own.name, id="", visible_time=at, payload_json="2", blocked_by=["lock"])
    await write(api, instance, enqueue=[item], **acknowledge(claim.receipt))
    [listed] = await own.items()
    assert (listed.state, listed.attempt) == (DELAYED, 0)
    assert not listed.HasField("lease")
    assert not listed.HasField("again_time")
    item.id = instance.id
    assert listed.item == item
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await api.acknowledge(claim.receipt)


async def test_item_that_others_have_enqueued_comes_again_at_the_earliest_time(
    api: Api, own: OwnQueue, instance: WorkflowInstance
) -> None:
    for first, second in ((1800, 3600), (3600, 1800)):
        claim = await own.taken(instance.id)
        await own.enqueue(instance.id, visible_time=make.from_now(first))
        times = {first: make.from_now(first), second: make.from_now(second)}
        await own.enqueue(instance.id, visible_time=times[first])
        item = make.item(own.name, id="", visible_time=times[second])
        await commit(api, instance, enqueue=[item], **acknowledge(claim.receipt))
        [listed] = await own.items()
        assert abs(listed.item.visible_time.seconds - times[1800].seconds) <= 1
        await own.clear()


@EVERY_WRITE
async def test_item_under_the_lease_of_somebody_else_is_not_handled_twice_at_once(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    claim = await own.taken(instance.id)
    await write(api, instance, enqueue=[make.item(own.name, id="")])
    [listed] = await own.items()
    assert listed.state == LEASED
    assert listed.HasField("again_time")
    await api.acknowledge(claim.receipt)
    assert ids(await own.dequeue()) == [instance.id]


async def test_dead_item_is_revived(api: Api, own: OwnQueue, instance: WorkflowInstance) -> None:
    await own.configure(max_attempts=1)
    claim = await own.taken(instance.id)
    await api.return_items(claim.receipt)
    assert await own.states() == {instance.id: DEAD}
    await persist(api, instance, enqueue=[make.item(own.name, id="")])
    [listed] = await own.items()
    assert (listed.state, listed.attempt) == (WAITING, 0)


async def test_expired_lease_is_good_if_nobody_has_got_the_item(
    api: Api, own: OwnQueue, instance: WorkflowInstance
) -> None:
    claim = await own.taken(lease_duration=SHORT)
    other = await own.retake()
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await persist(api, instance, **acknowledge(claim.receipt))
    await persist(api, instance, **acknowledge(other.receipt))
    assert await own.items() == []


# Confirmed: judged by the state after the write.


@EVERY_WRITE
async def test_item_of_a_workflow_that_this_write_ends_is_done(
    api: Api, own: OwnQueue, due: WorkflowInstance, write: Kind
) -> None:
    await own.configure(WORKFLOW)
    claim = await own.taken(due.id)
    due.status = COMPLETE
    answer = await write(api, due, **acknowledge(claim.receipt, confirmed=True))
    assert not answer.returned_receipts
    assert await own.items() == []


async def test_item_of_a_workflow_that_is_put_off_is_done(
    api: Api, own: OwnQueue, due: WorkflowInstance
) -> None:
    await own.configure(WORKFLOW)
    for write in (persist, commit_patch):
        claim = await own.taken(due.id)
        due.next_execution = 2**62
        due.revision = (
            await write(api, due, **acknowledge(claim.receipt, confirmed=True))
        ).revision
        assert await own.items() == []


@EVERY_WRITE
async def test_item_of_a_workflow_that_is_still_due_comes_back(
    api: Api, own: OwnQueue, due: WorkflowInstance, write: Kind
) -> None:
    await own.configure(WORKFLOW)
    done = await own.taken()
    claim = await own.taken(due.id)
    given = acknowledge(done.receipt, claim.receipt, confirmed=True)
    answer = await write(api, due, **given)
    assert list(answer.returned_receipts) == [claim.receipt]
    assert answer.revision == due.revision + 1
    [listed] = await own.items()
    assert (listed.item.id, listed.state, listed.attempt) == (due.id, DELAYED, 1)


async def test_item_that_was_not_confirmed_comes_at_the_time_it_is_enqueued_for(
    api: Api, own: OwnQueue, due: WorkflowInstance
) -> None:
    await own.configure(WORKFLOW)
    claim = await own.taken(due.id)
    given = acknowledge(claim.receipt, confirmed=True)
    answer = await persist(api, due, enqueue=[make.item(own.name, id="")], **given)
    assert list(answer.returned_receipts) == [claim.receipt]
    assert ids(await own.dequeue()) == [due.id]


async def test_item_that_was_not_confirmed_too_often_is_dead(
    api: Api, own: OwnQueue, due: WorkflowInstance
) -> None:
    await own.configure(WORKFLOW, max_attempts=1)
    claim = await own.taken(due.id)
    await persist(api, due, **acknowledge(claim.receipt, confirmed=True))
    assert await own.states() == {due.id: DEAD}


async def test_other_workflows_are_judged_as_they_are(
    api: Api, own: OwnQueue, due: WorkflowInstance, instance: WorkflowInstance
) -> None:
    await own.configure(WORKFLOW)
    claims = [await own.taken(due.id), await own.taken(instance.id)]
    instance.status, instance.next_execution = RUNNABLE, 0
    given = acknowledge(*(claim.receipt for claim in claims), confirmed=True)
    answer = await commit(api, instance, **given)
    assert list(answer.returned_receipts) == [claim.receipt for claim in claims]
    instance.status = COMPLETE
    await persist(api, instance)


async def test_items_of_events_are_judged_by_what_this_commit_processes_and_creates(
    api: Api, own: OwnQueue, instance: WorkflowInstance
) -> None:
    await own.configure(EVENT)
    processed, left = make.event(), make.event()
    created, handled = make.event(), make.event(is_processed=True)
    await api.create_event(processed)
    await api.create_event(left)
    claims = [await own.taken(event.id) for event in (processed, left, created, handled)]
    answer = await commit(
        api,
        instance,
        processed_event_ids=[processed.id],
        create_events=[created, handled],
        **acknowledge(*(claim.receipt for claim in claims), confirmed=True),
    )
    assert list(answer.returned_receipts) == [claims[1].receipt, claims[2].receipt]
    assert sorted(ids(await own.items())) == sorted([left.id, created.id])
    for event in (left, created):
        await api.mark_event_processed(event.id)


# All or nothing.


async def other_revision(api: Api, instance: WorkflowInstance) -> tuple[str, dict[str, Any]]:
    return "REVISION_MISMATCH", {"expected_revision": instance.revision + 1}


async def lost_lock(api: Api, instance: WorkflowInstance) -> tuple[str, dict[str, Any]]:
    return "LEASE_LOST", {"held_lock_tokens": [f"1.{'0' * 32}"]}


async def absent(api: Api, instance: WorkflowInstance) -> tuple[str, dict[str, Any]]:
    await api.delete_workflow(instance.id)
    return "WORKFLOW_NOT_FOUND", {}


async def reused(api: Api, instance: WorkflowInstance) -> tuple[str, dict[str, Any]]:
    request_id = make.request_id()
    await persist(api, instance, request_id=request_id)
    return "REQUEST_ID_REUSED", {"request_id": request_id}


REFUSALS = pytest.mark.parametrize(
    "refusal", [other_revision, lost_lock, absent, reused], ids=lambda f: f.__name__
)


@EVERY_WRITE
@REFUSALS
async def test_refused_write_does_nothing(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind, refusal: Any
) -> None:
    cursor = await api.cursor()
    claim = await own.taken("a", lease_duration=LONG)
    before = await own.items()
    reason, fields = await refusal(api, instance)
    given = {
        "enqueue": [make.item(own.name, id="a", payload_json="1"), make.item(own.name)],
        **acknowledge(claim.receipt),
        "publish": [make.lifecycle_event(workflow_id=instance.id)],
    }
    code = {
        "REVISION_MISMATCH": "ABORTED",
        "LEASE_LOST": "FAILED_PRECONDITION",
        "WORKFLOW_NOT_FOUND": "NOT_FOUND",
        "REQUEST_ID_REUSED": "ALREADY_EXISTS",
    }[reason]
    with fails(code, reason):
        await write(api, instance, **given, **fields)
    assert await own.items() == before
    assert await api.published_since(cursor, [instance.id]) == []
    await api.acknowledge(claim.receipt)


@EVERY_WRITE
async def test_lost_item_refuses_the_write(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    cursor = await api.cursor()
    held, lost = await own.taken(), await own.taken()
    await api.acknowledge(lost.receipt)
    before = await own.items()
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await write(
            api,
            instance,
            enqueue=[make.item(own.name)],
            **acknowledge(held.receipt, lost.receipt),
            publish=[make.lifecycle_event(workflow_id=instance.id)],
        )
    assert failure.metadata == {
        "lease_tokens": lost.receipt, "lost": "1", "field": "acknowledge[1].receipt",
    }  # fmt: skip
    assert await api.get_workflow_instance(instance.id) == instance
    assert await own.items() == before
    assert await api.published_since(cursor, [instance.id]) == []


@EVERY_WRITE
async def test_what_is_no_receipt_is_refused(
    api: Api, instance: WorkflowInstance, write: Kind
) -> None:
    with invalid("acknowledge[1].receipt", reason="FORMAT"):
        await write(api, instance, **acknowledge(f"1.{'0' * 32}", "mine"))


@EVERY_WRITE
async def test_an_empty_id_and_that_of_the_workflow_are_the_same(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    for twice in (["", ""], ["", instance.id], [instance.id, ""]):
        with invalid("enqueue[1].id", reason="DUPLICATE"):
            await write(api, instance, enqueue=[make.item(own.name, id=id_) for id_ in twice])
    other = OwnQueue(api)
    items = [make.item(own.name, id=""), make.item(other.name, id="")]
    await write(api, instance, enqueue=items)
    assert ids(await other.items()) == [instance.id]
    await other.clear()


async def test_nothing_leaves_the_namespace(api: Api, own: OwnQueue) -> None:
    instance = never_due()
    await api.create(instance)
    name = make.new_namespace()
    await create_namespace(api, name)
    there = in_namespace(name)
    item = make.item(own.name, id="")
    try:
        await api.workflows.CreateNewWorkflow(
            CreateNewWorkflowRequest(instance=instance, enqueue=[item]), **there
        )
        [claim] = (await api.queues.Dequeue(DequeueRequest(queues=[own.name]), **there)).items
        with fails("FAILED_PRECONDITION", "LEASE_LOST"):
            await persist(api, instance, **acknowledge(claim.receipt))
        request = PersistWorkflowRequest(
            instance=instance, enqueue=[item], **acknowledge(claim.receipt)
        )
        await api.workflows.PersistWorkflow(request, **there)
        assert await own.items() == []
    finally:
        await delete_namespace(api, name)


# Repetitions.


@EVERY_WRITE
async def test_repetition_does_nothing_and_is_answered_as_the_first(
    api: Api, own: OwnQueue, due: WorkflowInstance, write: Kind
) -> None:
    await own.configure(WORKFLOW)
    cursor = await api.cursor()
    done, claim = await own.taken(), await own.taken(due.id)
    fields = {
        "request_id": make.request_id(),
        "enqueue": [make.item(own.name, id="next")],
        "publish": [make.lifecycle_event(workflow_id=due.id)],
        **acknowledge(done.receipt, claim.receipt, confirmed=True),
    }
    if write is persist_with_subscriptions:
        fields["subscriptions"] = [make.subscription(workflow_id=due.id)]
    if write is commit_effects:
        fields["create_events"] = [make.event(is_processed=True)]
    if write is commit_patch_effects:
        fields["errors"] = [make.error()]
    first = await write(api, due, **fields)
    assert list(first.returned_receipts) == [claim.receipt]
    [item] = await own.dequeue()
    await api.acknowledge(item.receipt)
    assert item.item.id == "next"
    assert await write(api, due, **fields) == first
    assert ids(await own.items()) == [due.id]
    assert len(await api.published_since(cursor, [due.id])) == 1


@pytest.mark.parametrize("field", ["enqueue", "acknowledge", "publish"])
async def test_request_id_stands_for_all_of_the_content(
    api: Api, own: OwnQueue, instance: WorkflowInstance, field: str
) -> None:
    claim = await own.taken()
    fields: dict[str, Any] = {
        "enqueue": [make.item(own.name)],
        "publish": [make.lifecycle_event()],
        **acknowledge(claim.receipt),
    }
    request_id = make.request_id()
    await persist(api, instance, request_id=request_id, **fields)
    fields.pop(field)
    with fails("ALREADY_EXISTS", "REQUEST_ID_REUSED"):
        await persist(api, instance, request_id=request_id, **fields)


# Those who wait and watch.


async def waits(own: OwnQueue) -> asyncio.Task[list[Any]]:
    """A call that waits for an item, and is likely to have looked already."""
    task = asyncio.ensure_future(own.dequeue(wait=LONG))
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert not task.done()
    return task


@EVERY_WRITE
async def test_who_waits_is_woken(
    api: Api, own: OwnQueue, instance: WorkflowInstance, write: Kind
) -> None:
    task = await waits(own)
    await write(api, instance, enqueue=[make.item(own.name, id="")])
    assert ids(await task) == [instance.id]


async def test_who_waits_is_woken_by_a_creation(api: Api, own: OwnQueue) -> None:
    task = await waits(own)
    created = await create(api, never_due(id=""), own)
    assert ids(await task) == [created]
    task = await waits(own)
    request = CreateEventRequest(
        event=make.event(id="", is_processed=True), enqueue=[make.item(own.name, id="")]
    )
    event = await api.events.CreateEvent(request)
    assert ids(await task) == [event.id]


async def test_lifecycle_events_come_in_the_order_of_the_revisions(
    api: Api, instance: WorkflowInstance
) -> None:
    """However the hosts come together, each of which writes what it has read."""
    cursor = await api.cursor()
    revisions: dict[int, int] = {}

    async def write(n: int) -> None:
        kind = (persist, commit, commit_effects)[n % 3]
        told = make.lifecycle_event(workflow_id=instance.id, step_id=n)
        while n not in revisions.values():
            read = await api.get_workflow_instance(instance.id)
            call = kind(api, instance, publish=[told], expected_revision=read.revision)
            if await failure_of(call) is None:
                revisions[read.revision + 1] = n

    await asyncio.gather(*(write(n) for n in range(20)))
    published = await api.published_since(cursor, [instance.id])
    told = [each.event.step_id for each in published]
    assert told == [revisions[revision] for revision in sorted(revisions)]
    assert len(told) == 20


# Creations.


async def create(api: Api, instance: WorkflowInstance, own: OwnQueue, **fields: Any) -> str:
    """Create a workflow with its item; returns its id."""
    request = CreateNewWorkflowRequest(
        instance=instance, enqueue=[make.item(own.name, id="", **fields)]
    )
    return (await api.workflows.CreateNewWorkflow(request)).id


async def test_repeated_creation_of_a_workflow_does_not_enqueue(api: Api, own: OwnQueue) -> None:
    instance = never_due()
    assert await create(api, instance, own) == instance.id
    claim = await own.take()
    await api.acknowledge(claim.receipt)
    assert await create(api, instance, own) == instance.id
    assert await create(api, instance, own, payload_json="1") == instance.id
    assert await own.items() == []
    await api.delete_workflow(instance.id)
    await create(api, instance, own)
    assert ids(await own.items()) == [instance.id]


async def test_refused_creation_of_a_workflow_does_not_enqueue(api: Api, own: OwnQueue) -> None:
    instance = never_due(name=make.new_id("name"))
    await api.create_new_workflow(instance)
    with fails("ALREADY_EXISTS", "WORKFLOW_ALREADY_EXISTS"):
        await create(api, never_due(id=instance.id), own)
    with fails("ALREADY_EXISTS", "NAME_TAKEN"):
        await create(api, never_due(name=instance.name), own)
    assert await own.items() == []


async def test_creation_enqueues_what_is_there_already(api: Api, own: OwnQueue) -> None:
    """As Enqueue does: it may wait, or be handled."""
    instances = [never_due(), never_due()]
    claim = await own.taken(instances[0].id)
    await own.enqueue(instances[1].id, visible_time=make.from_now(3600))
    for instance in instances:
        await create(api, instance, own)
    assert ids(await own.dequeue()) == [instances[1].id]
    await api.acknowledge(claim.receipt)
    assert ids(await own.dequeue()) == [instances[0].id]


async def test_event_comes_with_its_item_once(api: Api, own: OwnQueue) -> None:
    event = make.event(is_processed=True)
    request = CreateEventRequest(event=event, enqueue=[make.item(own.name, id="")])
    assert (await api.events.CreateEvent(request)).id == event.id
    assert ids(await own.items()) == [event.id]
    await own.clear()
    assert (await api.events.CreateEvent(request)).id == event.id
    request.event.event_key = "another"
    with fails("ALREADY_EXISTS", "EVENT_ALREADY_EXISTS"):
        await api.events.CreateEvent(request)
    assert await own.items() == []


async def test_creations_of_the_same_at_once_enqueue_once(api: Api, own: OwnQueue) -> None:
    instance, event = never_due(), make.event(is_processed=True)
    request = CreateEventRequest(event=event, enqueue=[make.item(own.name, id="")])
    await asyncio.gather(
        *(create(api, instance, own) for _ in range(10)),
        *(api.events.CreateEvent(request) for _ in range(10)),
    )
    assert sorted(ids(await own.items())) == sorted([instance.id, event.id])
    assert await found(api.get_workflow_instance(instance.id)) is not None


async def test_new_things_without_ids_have_one_item_each(api: Api, own: OwnQueue) -> None:
    for twice in (["", ""], ["mine", "mine"]):
        items = [make.item(own.name, id=id_) for id_ in twice]
        with invalid("enqueue[1].id", reason="DUPLICATE"):
            await api.workflows.CreateNewWorkflow(
                CreateNewWorkflowRequest(instance=never_due(id=""), enqueue=items)
            )
        with invalid("enqueue[1].id", reason="DUPLICATE"):
            await api.events.CreateEvent(CreateEventRequest(event=make.event(), enqueue=items))
