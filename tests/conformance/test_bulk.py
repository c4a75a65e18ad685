"""CreateWorkflows and CreateEvents: many at once, each as if it were created alone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.bulk import as_status, create_events, create_workflows
from tests.support.expect import Failure, fails, failure_of, invalid, read_failure
from tests.support.queues import OwnQueue, ids
from tests.support.scene import found, never_due
from wfe.persistence.v1.event_pb2 import CreateEventRequest, CreateEventsRequest, Event
from wfe.persistence.v1.item_error_pb2 import ItemError
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    CreateWorkflowsRequest,
    CreateWorkflowsResponse,
    WorkflowInstance,
)


def processed(**fields: object) -> Event:
    """An event that nobody comes across."""
    return make.event(**({"is_processed": True} | fields))


def failure(error: ItemError) -> Failure:
    """The error of an item, as a call for it alone would tell it."""
    return read_failure(as_status(error))


async def alone(api: Api, item: WorkflowInstance | Event) -> Failure:
    """How the call for this one alone fails."""
    call = api.create_event(item) if isinstance(item, Event) else api.create_new_workflow(item)
    found = await failure_of(call)
    assert found is not None
    return found


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


# What is created.


async def test_workflows_are_stored_with_every_field_and_answered_in_order(api: Api) -> None:
    given = [make.full_instance(status=2) for _ in range(5)] + [never_due(), never_due()]
    results = await create_workflows(api, given[:4], given[4:])
    assert [result.created.id for result in results] == [each.id for each in given]
    for instance, result in zip(given, results, strict=True):
        stored = await api.get_workflow_instance(instance.id)
        assert result.created.name == stored.name
        assert result.created.revision == stored.revision
        instance.revision, instance.name = stored.revision, instance.name or instance.id
        assert stored == instance


async def test_events_are_stored_with_every_field_and_answered_in_order(api: Api) -> None:
    given = [processed() for _ in range(7)]
    results = await create_events(api, given[:3], given[3:])
    assert [result.created.id for result in results] == [each.id for each in given]
    assert [await api.get_event(each.id) for each in given] == given


async def test_a_bulk_create_is_the_same_as_a_single_one(api: Api) -> None:
    """So either repeats the other: what is compared is what was given."""
    instances, events = [make.full_instance(status=2) for _ in range(3)], [processed(), processed()]
    [first] = await create_workflows(api, [instances[0]])
    assert await api.create_new_workflow(instances[0]) == first.created
    second = await api.create_new_workflow(instances[1])
    results = await create_workflows(api, instances)
    assert [results[0].created, results[1].created] == [first.created, second]
    await api.create_event(events[0])
    await create_events(api, events)
    for event in events:
        assert await api.create_event(event) == event.id


async def test_empty_ids_become_uuids_and_empty_names_the_ids(api: Api) -> None:
    results = await create_workflows(api, [never_due(id="", name=""), never_due(id="", name="")])
    chosen = [result.created.id for result in results]
    assert len(set(chosen)) == 2
    for result in results:
        assert str(uuid.UUID(result.created.id)) == result.created.id == result.created.name
    events = await create_events(api, [processed(id=""), processed(id="")])
    assert len({result.created.id for result in events}) == 2


async def test_a_repeated_request_is_answered_the_same_and_changes_nothing(api: Api) -> None:
    instances = [never_due(), never_due(), never_due()]
    first = await create_workflows(api, instances)
    revision = await api.persist_workflow(never_due(id=instances[0].id))
    assert await create_workflows(api, instances) == first
    assert (await api.get_workflow_instance(instances[0].id)).revision == revision
    events = [make.event(), make.event()]
    answered = await create_events(api, events)
    for event in events:
        await api.mark_event_processed(event.id)
    assert await create_events(api, events) == answered
    for event in events:
        assert (await api.get_event(event.id)).is_processed


async def test_a_request_id_determines_the_ids_that_are_left_open(api: Api) -> None:
    request_id = make.request_id()
    without = [never_due(id="", name=""), never_due(id="", name="")]
    first = await create_workflows(api, without, request_id=request_id)
    assert await create_workflows(api, without, request_id=request_id) == first
    other = await create_workflows(api, without, request_id=make.request_id())
    assert {r.created.id for r in other}.isdisjoint(r.created.id for r in first)
    events = [processed(id=""), processed(id="")]
    answered = await create_events(api, events, request_id=request_id)
    assert await create_events(api, events, request_id=request_id.upper()) == answered
    # Other content is another event of the same id.
    [changed, same] = await create_events(
        api, [processed(id="", event_key="other"), events[1]], request_id=request_id
    )
    assert failure(changed.error).reason == "EVENT_ALREADY_EXISTS"
    assert same == answered[1]


async def test_a_deleted_workflow_is_created_anew_with_a_higher_revision(api: Api) -> None:
    instances = [never_due(), never_due()]
    first = await create_workflows(api, instances)
    await api.delete_workflow(instances[0].id)
    second = await create_workflows(api, instances)
    assert second[0].created.revision > first[0].created.revision
    assert second[1] == first[1]
    stored = await api.get_workflow_instance(instances[0].id)
    assert stored.revision == second[0].created.revision


async def test_none_at_all_is_good(api: Api) -> None:
    assert await create_workflows(api, [], []) == []
    assert await create_events(api, []) == []
    answers = api.workflows.CreateWorkflows(iter([CreateWorkflowsRequest()]))
    assert [answer async for answer in answers] == [CreateWorkflowsResponse()]


# What is refused.


async def test_one_that_is_refused_does_not_affect_the_others(api: Api) -> None:
    taken, other = never_due(), never_due()
    await create_workflows(api, [taken, other])
    good = [never_due() for _ in range(4)]
    bad = [
        never_due(data_json="{"),
        never_due(id=taken.id, workflow_definition_id="another"),
        never_due(name=other.id),
        never_due(status=0, version=2**32 - 1),
    ]
    given = [item for pair in zip(good, bad, strict=True) for item in pair]
    results = await create_workflows(api, given)
    assert [result.WhichOneof("result") for result in results] == ["created", "error"] * 4
    reasons = [failure(result.error).reason for result in results[1::2]]
    assert reasons == ["INVALID_FIELD", "WORKFLOW_ALREADY_EXISTS", "NAME_TAKEN", "INVALID_FIELD"]
    for item, result in zip(bad, results[1::2], strict=True):
        assert failure(result.error) == await alone(api, item)
    for item in good:
        assert await found(api.get_workflow_instance(item.id))
    for item in (bad[0], bad[2], bad[3]):
        assert await found(api.get_workflow_instance(item.id)) is None


async def test_events_that_are_refused_do_not_affect_others(api: Api) -> None:
    taken = processed()
    await create_events(api, [taken])
    good = [processed(), processed()]
    bad = [
        processed(event_key="a\0b", event_data_json="{"),
        processed(id=taken.id, event_key="other"),
        processed(id=" ", event_name="x" * 513),
    ]
    results = await create_events(api, [bad[0], good[0], bad[1], bad[2], good[1]])
    for item, result in zip(bad, (results[0], results[2], results[3]), strict=True):
        assert failure(result.error) == await alone(api, item)
    assert failure(results[0].error).violations == {
        "event.event_key": "TEXT_HAS_NUL",
        "event.event_data_json": "JSON_INVALID",
    }
    for item in good:
        assert await found(api.get_event(item.id))


async def test_what_is_given_twice_is_created_once(api: Api) -> None:
    first, second = never_due(name=make.new_id("name")), never_due()
    same_name = never_due(name=first.name)
    same_id = never_due(id=first.id, workflow_definition_id="another")
    results = await create_workflows(api, [first, first, same_name, same_id, second])
    assert results[0] == results[1]
    assert results[0].HasField("created")
    assert failure(results[2].error).reason == "NAME_TAKEN"
    assert failure(results[3].error).reason == "WORKFLOW_ALREADY_EXISTS"
    assert results[4].HasField("created")
    assert await found(api.get_workflow_instance(same_name.id)) is None
    event = processed()
    other = processed(id=event.id, event_key="other")
    answers = await create_events(api, [event, other, event])
    assert answers[0] == answers[2]
    assert failure(answers[1].error).reason == "EVENT_ALREADY_EXISTS"
    assert await api.get_event(event.id) == event


async def test_errors_of_many_items_are_told_as_far_as_they_fit(api: Api) -> None:
    def bad() -> CreateNewWorkflowRequest:
        pointers = [make.pointer("x" * 513, outcome_json="{") for _ in range(10)]
        return CreateNewWorkflowRequest(instance=never_due(execution_pointers=pointers))

    results = await create_workflows(api, [bad() for _ in range(500)])
    assert len(results) == 500
    for result in results:
        told = failure(result.error)
        assert told.reason == "INVALID_FIELD"
        assert told.violations["instance.execution_pointers[0].id"] == "TOO_LONG"


@pytest.mark.parametrize("rpc", ["workflows", "events"])
async def test_too_many_items_end_the_stream(api: Api, rpc: str) -> None:
    before, more = never_due(), [never_due() for _ in range(1001)]
    with invalid(rpc):
        if rpc == "workflows":
            await create_workflows(api, [before], more)
        else:
            await create_events(api, [processed() for _ in range(1001)])
    if rpc == "workflows":  # what was answered before stays
        assert await found(api.get_workflow_instance(before.id))
        assert await found(api.get_workflow_instance(more[0].id)) is None


async def test_a_bad_request_id_ends_the_stream(api: Api) -> None:
    instance = never_due()
    with invalid("request_id", reason="FORMAT"):
        await create_workflows(api, [instance], request_id="1")
    assert await found(api.get_workflow_instance(instance.id)) is None
    with invalid("request_id", reason="FORMAT"):
        await create_events(api, [processed()], request_id="1")


async def test_a_stream_without_a_request_is_refused(api: Api) -> None:
    with fails("INVALID_ARGUMENT", "MALFORMED_MESSAGE"):
        async for _ in api.events.CreateEvents(iter([])):
            pass


async def test_as_many_as_may_be_are_created_at_once(api: Api) -> None:
    instances = [never_due(data_json='"' + "x" * 1000 + '"') for _ in range(1000)]
    results = await create_workflows(api, instances)
    assert [result.created.id for result in results] == [each.id for each in instances]


async def test_an_item_that_could_not_be_read_back_is_refused_alone(api: Api) -> None:
    # In the store there is a space behind each comma.
    large = never_due(data_json=f"[{'0,' * 1_900_000}0]")
    results = await create_workflows(api, [never_due(), large])
    assert results[0].HasField("created")
    assert failure(results[1].error) == await alone(api, large)
    assert failure(results[1].error).reason == "ANSWER_TOO_LARGE"


# What is enqueued.


def with_items(instance: WorkflowInstance, *items: QueueItem) -> CreateNewWorkflowRequest:
    return CreateNewWorkflowRequest(instance=instance, enqueue=items)


async def test_items_are_enqueued_with_those_that_are_created_only(api: Api, own: OwnQueue) -> None:
    there, bad = never_due(), never_due(data_json="{")
    await create_workflows(api, [there])
    item = QueueItem(queue=own.name)
    given = [with_items(each, item) for each in (never_due(), there, bad, never_due())]
    await create_workflows(api, given)
    expected = [given[0].instance.id, given[3].instance.id]
    assert ids(await own.items()) == expected
    # A repetition does not enqueue.
    assert ids(await own.dequeue()) == expected
    await own.clear()
    await create_workflows(api, given)
    assert await own.items() == []


async def test_items_of_events_are_enqueued_in_their_order(api: Api, own: OwnQueue) -> None:
    events = [processed() for _ in range(3)]
    more = make.new_id("item")
    given = [CreateEventRequest(event=e, enqueue=[QueueItem(queue=own.name)]) for e in events]
    given[1].enqueue.add(queue=own.name, id=more, payload_json='{"n": 1}')
    await create_events(api, given)
    claims = await own.dequeue()
    assert ids(claims) == [events[0].id, events[1].id, more, events[2].id]
    assert claims[2].item.payload_json == '{"n": 1}'


async def test_one_item_that_several_enqueue_is_there_once(api: Api, own: OwnQueue) -> None:
    item = own.name, make.new_id("item")
    given = [
        with_items(never_due(), QueueItem(queue=item[0], id=item[1], payload_json=f"{n}"))
        for n in range(3)
    ]
    results = await create_workflows(api, given)
    assert all(result.HasField("created") for result in results)
    [listed] = await own.items()
    assert (listed.item.id, listed.item.payload_json) == (item[1], "2")
    # It is merged with one that is there already, as by Enqueue.
    again = with_items(never_due(), QueueItem(queue=item[0], id=item[1], payload_json="7"))
    await create_workflows(api, [again, with_items(never_due())])
    [listed] = await own.items()
    assert listed.item.payload_json == "7"


async def test_whoever_waits_for_an_item_is_woken(api: Api, own: OwnQueue) -> None:
    waiting = asyncio.ensure_future(own.take(wait=Duration(seconds=30)))
    await asyncio.sleep(0.1)
    instance = never_due()
    await create_workflows(
        api, [with_items(never_due()), with_items(instance, QueueItem(queue=own.name))]
    )
    async with asyncio.timeout(20):
        assert (await waiting).item.id == instance.id


async def test_changes_are_told_to_watchers(api: Api) -> None:
    cursor = await api.change_cursor()
    instances = [never_due() for _ in range(3)]
    await create_workflows(api, instances)
    missing = {each.id for each in instances}
    async with asyncio.timeout(30), api.watch_workflows(after=cursor) as responses:
        async for response in responses:
            missing -= {change.instance.id for change in response.changes}
            if not missing:
                break


# The stream.


async def test_each_request_is_answered_before_the_next_is_sent(api: Api) -> None:
    """So a client knows what is stored while it goes on."""
    instances = [never_due() for _ in range(3)]
    answered: list[str] = []

    async def requests() -> AsyncIterator[CreateWorkflowsRequest]:
        for n, instance in enumerate(instances):
            yield CreateWorkflowsRequest(workflows=[CreateNewWorkflowRequest(instance=instance)])
            while len(answered) <= n:
                await asyncio.sleep(0.005)
            assert await found(api.get_workflow_instance(instance.id))

    async with asyncio.timeout(30):
        async for answer in api.workflows.CreateWorkflows(requests()):
            answered += [result.created.id for result in answer.results]
    assert answered == [each.id for each in instances]


async def test_what_was_answered_before_an_error_is_stored(api: Api) -> None:
    events = [processed() for _ in range(2)]
    answered = []

    async def requests() -> AsyncIterator[CreateEventsRequest]:
        yield CreateEventsRequest(events=[CreateEventRequest(event=events[0])])
        yield CreateEventsRequest(request_id="bad")
        yield CreateEventsRequest(events=[CreateEventRequest(event=events[1])])

    with invalid("request_id"):
        async for answer in api.events.CreateEvents(requests()):
            answered += [result.created.id for result in answer.results]
    assert answered == [events[0].id]
    assert await found(api.get_event(events[0].id))
    assert await found(api.get_event(events[1].id)) is None


async def test_a_deadline_ends_the_stream_and_takes_nothing_back(api: Api) -> None:
    instance = never_due()
    answered: list[str] = []

    async def requests() -> AsyncIterator[CreateWorkflowsRequest]:
        yield CreateWorkflowsRequest(workflows=[CreateNewWorkflowRequest(instance=instance)])
        await asyncio.sleep(60)

    async def create() -> None:
        async for answer in api.workflows.CreateWorkflows(requests(), timeout=2):
            answered.extend(result.created.id for result in answer.results)

    ended = await failure_of(create())
    assert ended is not None
    assert ended.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert answered == [instance.id]
    assert await found(api.get_workflow_instance(instance.id))


async def test_two_streams_may_create_the_same(api: Api) -> None:
    instances = [never_due(name=make.new_id("name")) for _ in range(200)]
    orders = (instances, instances[::-1], instances[100:] + instances[:100])
    every = await asyncio.gather(*(create_workflows(api, order) for order in orders))
    by_id = [{result.created.id: result for result in results} for results in every]
    assert by_id[0] == by_id[1] == by_id[2]
    assert set(by_id[0]) == {each.id for each in instances}
