"""A commit may leave out the handling of events for which nobody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.queues import OwnQueue
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.subscription_pb2 import EventSubscription, SetSubscriptionTokenRequest
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowPatch

Commit = Callable[..., Awaitable[Any]]


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


@pytest.fixture(params=["instance", "patch"])
async def commit(api: Api, request: pytest.FixtureRequest) -> Commit:
    """Commits a step of a new workflow, as its state or as a patch."""
    instance = make.instance()
    await api.create(instance)

    async def commit(**fields: Any) -> Any:
        fields |= {"expected_revision": instance.revision}
        if request.param == "patch":
            fields["patch"] = WorkflowPatch(id=instance.id, header=WorkflowInstance())
        else:
            fields["instance"] = instance
        return await api.commit_workflow(**fields)

    return commit


def subscription_to(event: Event, **fields: Any) -> EventSubscription:
    return make.subscription(event_name=event.event_name, event_key=event.event_key, **fields)


async def is_processed(api: Api, event: Event) -> bool:
    return (await api.get_event(event.id)).is_processed


async def test_event_for_which_nobody_waits_is_processed_and_not_enqueued(
    own: OwnQueue, commit: Commit
) -> None:
    event, other = make.event(), make.event()
    for another in (make.event(), make.event(event_name="other", event_key=event.event_key)):
        await own.api.create_event_subscription(subscription_to(another))
    items = [make.item(own.name, id=id_) for id_ in (event.id, other.id, make.new_id("item"))]
    await own.api.create_event_subscription(subscription_to(other))
    answer = await commit(create_events=[event, other], enqueue=items, skip_unawaited_events=True)
    assert answer.event_ids == [event.id, other.id]
    assert await is_processed(own.api, event)
    assert not await is_processed(own.api, other)
    assert (await own.states()).keys() == {other.id, items[2].id}


async def test_without_the_field_every_event_is_enqueued(own: OwnQueue, commit: Commit) -> None:
    event = make.event()
    await commit(create_events=[event], enqueue=[make.item(own.name, id=event.id)])
    assert not await is_processed(own.api, event)
    assert (await own.states()).keys() == {event.id}


@pytest.mark.parametrize("how", ["open", "later", "held", "created with it"])
async def test_whoever_has_a_subscription_waits(own: OwnQueue, commit: Commit, how: str) -> None:
    api, event, fields = own.api, make.event(), dict[str, Any]()
    subscription = subscription_to(event)
    if how == "later":
        subscription.subscribe_as_of.CopyFrom(Timestamp(seconds=event.event_time.seconds + 3600))
    if how == "created with it":
        fields["create_subscriptions"] = [subscription]
    else:
        await api.create_event_subscription(subscription)
    if how == "held":
        answer = await api.subscriptions.SetSubscriptionToken(
            SetSubscriptionTokenRequest(
                id=subscription.id, token="t", worker_id="w", duration=Duration(seconds=3600)
            )
        )
        assert answer.acquired
    items = [make.item(own.name, id=event.id)]
    await commit(create_events=[event], enqueue=items, skip_unawaited_events=True, **fields)
    assert not await is_processed(api, event)
    assert (await own.states()).keys() == {event.id}


async def test_event_is_processed_also_without_a_queue(api: Api, commit: Commit) -> None:
    event, awaited = make.event(), make.event()
    await api.create_event_subscription(subscription_to(awaited))
    await commit(create_events=[event, awaited], skip_unawaited_events=True)
    assert await is_processed(api, event)
    assert not await is_processed(api, awaited)


async def test_repetition_changes_nothing(own: OwnQueue, commit: Commit) -> None:
    event = make.event()
    fields = {
        "create_events": [event],
        "enqueue": [make.item(own.name, id=event.id)],
        "skip_unawaited_events": True,
        "request_id": make.request_id(),
    }
    first = await commit(**fields)
    await own.api.create_event_subscription(subscription_to(event))
    assert await commit(**fields) == first
    assert await is_processed(own.api, event)
    assert await own.items() == []
