"""EventService: events once, and which of them are still to be processed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import fails
from wfe.persistence.v1.event_pb2 import Event


class Events:
    """Makes events, and in the end sees to it that none is left to be processed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._made: list[str] = []

    async def __call__(
        self, at: Timestamp | None = None, *, us: int = 0, **fields: object
    ) -> Event:
        """A new event of this time, plus so many microseconds."""
        given = {"event_time": make.later(at or make.long_ago(), us=us)} | fields
        event = make.event(**given)
        event.id = await self._api.create_event(event)
        self._made.append(event.id)
        return event

    async def finish(self) -> None:
        await for_each(self._api.mark_event_processed, self._made)


@pytest.fixture
async def happens(api: Api) -> AsyncIterator[Events]:
    events = Events(api)
    yield events
    await events.finish()


# CreateEvent, GetEvent.


async def test_create_answers_the_id_and_stores_every_field(api: Api) -> None:
    for is_processed in (False, True):
        event = make.event(is_processed=is_processed)
        assert await api.create_event(event) == event.id
        assert await api.get_event(event.id) == event


async def test_empty_id_becomes_a_uuid(api: Api) -> None:
    ids = [await api.create_event(make.event(id="")) for _ in range(2)]
    assert ids[0] != ids[1]
    for id_ in ids:
        assert str(uuid.UUID(id_)) == id_
        assert (await api.get_event(id_)).id == id_


async def test_same_create_again_answers_the_same_and_changes_nothing(api: Api) -> None:
    event = make.event()
    for _ in range(2):
        assert await api.create_event(event) == event.id
        assert await api.get_event(event.id) == event


async def test_same_create_again_leaves_a_processed_event_processed(api: Api) -> None:
    event = make.event()
    await api.create_event(event)
    await api.mark_event_processed(event.id)
    assert await api.create_event(event) == event.id
    assert (await api.get_event(event.id)).is_processed


async def test_json_of_other_member_order_is_the_same_content(api: Api) -> None:
    event = make.event(event_data_json='{"a": 1, "b": {"c": 2, "d": 3}}')
    await api.create_event(event)
    event.event_data_json = '{"b":{"d":3,"c":2},"a":1}'
    assert await api.create_event(event) == event.id


@pytest.mark.parametrize("field", make.fields_of(Event, but=("id",)))
async def test_same_id_with_another_field_is_refused(api: Api, field: str) -> None:
    event = make.event()
    await api.create_event(event)
    with fails("ALREADY_EXISTS", "EVENT_ALREADY_EXISTS"):
        await api.create_event(make.changed(event, field))
    assert await api.get_event(event.id) == event


async def test_absent_event_is_not_found(api: Api) -> None:
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await api.get_event(make.new_id())


# MarkEventProcessed, MarkEventUnprocessed.


async def test_marking_changes_nothing_else_and_is_idempotent(api: Api) -> None:
    event, other = make.event(), make.event()
    for e in (event, other):
        await api.create_event(e)
    for is_processed in (True, True, False, False, True):
        mark = api.mark_event_processed if is_processed else api.mark_event_unprocessed
        await mark(event.id)
        event.is_processed = is_processed
        assert await api.get_event(event.id) == event
    assert await api.get_event(other.id) == other


async def test_marking_an_absent_event_is_not_found(api: Api) -> None:
    for mark in (api.mark_event_processed, api.mark_event_unprocessed):
        with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
            await mark(make.new_id())


# GetRunnableEvents.


async def _runnable(
    api: Api, events: Sequence[Event], as_at: Timestamp | None, page_size: int = 0
) -> list[Event]:
    """Which of these are to be processed, in the list's order."""
    own = {event.id: event for event in events}
    answers = await pages(api.get_runnable_events, as_at=as_at, page_size=page_size)
    return [own[id_] for answer in answers for id_ in answer.event_ids if id_ in own]


async def test_runnable_are_the_unprocessed_ones(api: Api, happens: Events) -> None:
    at = make.long_ago()
    processed, unprocessed = await happens(at, is_processed=True), await happens(at)
    assert await _runnable(api, [processed, unprocessed], at) == [unprocessed]


async def test_marking_takes_an_event_from_the_runnable_ones_and_back(
    api: Api, happens: Events
) -> None:
    event = await happens()
    await api.mark_event_processed(event.id)
    assert await _runnable(api, [event], event.event_time) == []
    await api.mark_event_unprocessed(event.id)
    assert await _runnable(api, [event], event.event_time) == [event]


async def test_later_events_are_not_runnable_yet(api: Api, happens: Events) -> None:
    at = make.long_ago()
    before, now, after = [await happens(at, us=us) for us in (-1, 0, 1)]
    assert await _runnable(api, [before, now, after], at) == [before, now]


async def test_runnable_without_as_at_goes_by_the_databases_clock(
    api: Api, happens: Events
) -> None:
    past = await happens(make.from_now(-3600))
    future = await happens(make.from_now(3600))
    assert await _runnable(api, [past, future], None, 1000) == [past]


async def test_runnable_come_oldest_first(api: Api, happens: Events) -> None:
    at = make.long_ago()
    events = [await happens(at, us=us) for us in (-3, 0, -5000, -1, -10_000_000)]
    oldest_first = sorted(events, key=lambda e: e.event_time.ToNanoseconds())
    for page_size in (0, 1, 2):
        assert await _runnable(api, events, at, page_size) == oldest_first


async def test_runnable_of_equal_times_come_in_the_order_of_ids(api: Api, happens: Events) -> None:
    at = make.long_ago()
    events = [await happens(at) for _ in range(6)]
    for page_size in (0, 2):
        assert await _runnable(api, events, at, page_size) == sorted(events, key=lambda e: e.id)


@pytest.mark.parametrize("page_size", [1, 3, 5, 10, 11])
async def test_pages_of_runnable_are_complete_and_without_repeats(
    api: Api, happens: Events, page_size: int
) -> None:
    at = make.long_ago()
    events = [await happens(at, us=-(n // 3)) for n in range(10)]
    answers = await pages(api.get_runnable_events, as_at=at, page_size=page_size)
    assert all(len(answer.event_ids) <= page_size for answer in answers)
    ids = [id_ for answer in answers for id_ in answer.event_ids]
    assert len(set(ids)) == len(ids)
    assert {e.id for e in events} <= set(ids)


async def test_event_processed_between_two_pages_is_left_out(api: Api, happens: Events) -> None:
    at = make.long_ago()
    events = [await happens(at, us=-n) for n in range(6)]
    oldest_first = [e.id for e in reversed(events)]
    token, listed = "", list[str]()
    while len(listed) < 2:
        answer = await api.get_runnable_events(as_at=at, page_size=1, page_token=token)
        token = answer.next_page_token
        listed += [id_ for id_ in answer.event_ids if id_ in oldest_first]
    await api.mark_event_processed(oldest_first[3])
    answers = await pages(api.get_runnable_events, token, as_at=at, page_size=1)
    listed += [id_ for a in answers for id_ in a.event_ids if id_ in oldest_first]
    assert listed == [*oldest_first[:3], *oldest_first[4:]]


# GetEvents.


async def _events_of(api: Api, event: Event, **fields: Any) -> list[str]:
    """The ids of all events of this one's name and key."""
    answers = await pages(
        api.get_events, event_name=event.event_name, event_key=event.event_key, **fields
    )
    return [id_ for answer in answers for id_ in answer.event_ids]


async def test_events_are_those_of_the_name_and_key(api: Api, happens: Events) -> None:
    event = await happens()
    await happens(event_key=event.event_key, event_name="other")
    await happens(event_name=event.event_name)
    assert await _events_of(api, event) == [event.id]


async def test_events_are_those_up_to_and_including_as_of(api: Api, happens: Events) -> None:
    """The direction is the engine's own; its .NET relative asks for later ones."""
    at, key = make.long_ago(), make.new_id("key")
    before, now, _ = [await happens(at, us=us, event_key=key) for us in (-1, 0, 1)]
    assert await _events_of(api, now, as_of=at) == [before.id, now.id]


async def test_events_are_those_at_or_after_event_time_from(api: Api, happens: Events) -> None:
    at, key = make.long_ago(), make.new_id("key")
    _, now, after = [await happens(at, us=us, event_key=key) for us in (-1, 0, 1)]
    assert await _events_of(api, now, event_time_from=at) == [now.id, after.id]
    assert await _events_of(api, now, event_time_from=make.later(at, ns=999)) == [now.id, after.id]
    assert await _events_of(api, now, event_time_from=make.later(at, us=2)) == []


async def test_events_between_two_times(api: Api, happens: Events) -> None:
    at, key = make.long_ago(), make.new_id("key")
    _, first, last, _ = [await happens(at, us=us, event_key=key) for us in (-1, 0, 1, 2)]
    between = {"event_time_from": first.event_time, "as_of": last.event_time}
    assert await _events_of(api, first, **between) == [first.id, last.id]
    assert await _events_of(api, first, **between, page_size=1) == [first.id, last.id]
    assert (
        await _events_of(
            api, first, event_time_from=last.event_time, as_of=first.event_time, page_size=1
        )
        == []
    )


async def test_workflow_whose_event_came_first_finds_it_by_event_time_from(
    api: Api, happens: Events
) -> None:
    """As an engine of the workflow-core family asks, when a step begins to wait: for what has
    happened since the time that it gives. With that time as `as_of`, it finds nothing."""
    began, key = make.long_ago(), make.new_id("key")
    event = await happens(began, us=5_000_000, event_key=key)
    assert await _events_of(api, event, as_of=began) == []
    assert await _events_of(api, event, event_time_from=began) == [event.id]


async def test_pages_of_events_since_a_time_are_complete(api: Api, happens: Events) -> None:
    at, key = make.long_ago(), make.new_id("key")
    events = [await happens(at, us=n // 3 - 1, event_key=key) for n in range(12)]
    expected = sorted(
        (e for e in events if e.event_time.ToNanoseconds() >= at.ToNanoseconds()),
        key=lambda e: (e.event_time.ToNanoseconds(), e.id),
    )
    for page_size in (1, 2, 4, 9, 10):
        listed = await _events_of(api, events[0], event_time_from=at, page_size=page_size)
        assert listed == [e.id for e in expected]


async def test_events_are_processed_or_not(api: Api, happens: Events) -> None:
    at, key = make.long_ago(), make.new_id("key")
    events = [await happens(at, us=p, event_key=key, is_processed=p) for p in (False, True)]
    assert await _events_of(api, events[0], as_of=make.later(at, us=1)) == [e.id for e in events]


async def test_events_without_as_of_are_those_up_to_the_databases_clock(
    api: Api, happens: Events
) -> None:
    past = await happens(make.from_now(-3600))
    await happens(make.from_now(3600), event_key=past.event_key)
    assert await _events_of(api, past) == [past.id]


async def test_empty_event_key_is_a_key_like_any_other(api: Api, happens: Events) -> None:
    name = make.new_id("name")
    empty = await happens(event_name=name, event_key="")
    other = await happens(event_name=name, event_key="k")
    assert await _events_of(api, empty) == [empty.id]
    assert await _events_of(api, other) == [other.id]


async def test_no_events_is_an_empty_answer(api: Api) -> None:
    answer = await api.get_events(event_name=make.new_id(), event_key="")
    assert (list(answer.event_ids), answer.next_page_token) == ([], "")


@pytest.mark.parametrize("page_size", [0, 1, 2, 3, 8, 9])
async def test_pages_of_events_are_complete_and_oldest_first(
    api: Api, happens: Events, page_size: int
) -> None:
    """Equal times come in the order of ids."""
    at, key = make.long_ago(), make.new_id("key")
    events = [await happens(at, us=-(n // 3), event_key=key) for n in range(8)]
    expected = sorted(events, key=lambda e: (e.event_time.ToNanoseconds(), e.id))
    listed = await _events_of(api, events[0], as_of=at, page_size=page_size)
    assert listed == [e.id for e in expected]


# Page sizes.


@pytest.fixture(scope="module")
async def thousand_and_one(api: Api) -> AsyncIterator[Event]:
    """One of 1001 unprocessed events of the same time, name and key."""
    at, key = make.long_ago(), make.new_id("key")
    events = Events(api)
    made = await for_each(lambda at: events(at, event_key=key), [at] * 1001)
    yield made[0]
    await events.finish()


@pytest.mark.parametrize(
    ("page_size", "length"), [(0, 100), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
async def test_default_and_maximum_page_size(
    api: Api, thousand_and_one: Event, page_size: int, length: int
) -> None:
    event = thousand_and_one
    for answer in (
        await api.get_runnable_events(as_at=event.event_time, page_size=page_size),
        await api.get_events(
            event_name=event.event_name,
            event_key=event.event_key,
            as_of=event.event_time,
            page_size=page_size,
        ),
    ):
        assert len(answer.event_ids) == length
        assert answer.next_page_token


async def test_pages_of_maximum_size_are_complete(api: Api, thousand_and_one: Event) -> None:
    event = thousand_and_one
    for page_size in (0, 1000):
        ids = await _events_of(api, event, as_of=event.event_time, page_size=page_size)
        assert len(ids) == len(set(ids)) == 1001
