"""Small calls that are run together, as one transaction: each gets its own, and none notices the
others. (What is begun in one turn of the event loop is run as two calls, and the rest together.)"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import psycopg
import pytest

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.subscription_pb2 import SetSubscriptionTokenResponse
from wfe.persistence.v1.workflow_pb2 import CommitWorkflowRequest, WorkflowInstance, WorkflowPatch
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import commit, event, subscription, workflow
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.rows import text_array
from wfe_persistence.store.tables import Store

NUMBER = 12


@pytest.fixture
async def outsider(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Another transaction, rolled back at the end."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        yield connection
        await connection.rollback()


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """What they returned or raised."""
    async with asyncio.timeout(60):
        return list(await asyncio.gather(*calls, return_exceptions=True))


def reasons(results: list[Any]) -> list[Any]:
    return [error.reason if isinstance(error, PersistenceError) else None for error in results]


async def number(store: Store, sql: str) -> int:
    row = await store.read(f"SELECT ({sql})::text")
    return int(row.get_value(0, 0) or b"0")


async def create_events(store: Store, events: list[Event]) -> list[Any]:
    return await together(*(event.create_event(store, each) for each in events))


async def create_workflows(store: Store, **fields: Any) -> list[WorkflowInstance]:
    instances = [
        make.instance(execution_pointers=[make.pointer("1")], **fields) for _ in range(NUMBER)
    ]
    for instance in instances:
        instance.revision = await workflow.create_new_workflow(store, instance)
    return instances


def patch(store: Store, instance: WorkflowInstance, **header: Any) -> Awaitable[Any]:
    """A patch of a workflow that has just been created."""
    request = CommitWorkflowRequest(
        patch=WorkflowPatch(id=instance.id, execution_pointers=[make.pointer("2")]),
        expected_revision=instance.revision,
        request_id=make.request_id(),
    )
    if header:
        request.patch.header.CopyFrom(WorkflowInstance(**header))
        request.patch.header_mask.paths.extend(header)
    return commit.commit_workflow(store, request, RequestKey(request))


async def test_reads_get_their_own_row(store: Store) -> None:
    events = [make.event(event_data_json=f'{{"n": {n}}}') for n in range(NUMBER)]
    await create_events(store, events)
    ids = [each.id for each in events]
    ids[3:3] = ["nobody"]
    found = await together(*(event.get_event(store, id_) for id_ in ids))
    assert reasons(found)[3] == ErrorReason.ERROR_REASON_EVENT_NOT_FOUND
    assert found[:3] + found[4:] == events


@pytest.mark.parametrize("letter", ["x", ""])
async def test_large_row_is_not_read_with_others(store: Store, letter: str) -> None:
    """Nor one that is large only once PostgreSQL has decompressed it."""
    text = letter * 200_000 or "".join(chr(0x4E00 + n % 9999) for n in range(0, 200_000, 7))
    events = [make.event() for _ in range(NUMBER)]
    events[5].event_data_json = f'"{text}"'
    await create_events(store, events)
    assert await together(*(event.get_event(store, e.id) for e in events)) == events
    found = await store.read(event.GET_EACH_EVENT, text_array(events[n].id for n in (4, 5)))
    assert [found.get_value(row, 0) for row in range(found.ntuples)] == [events[4].id.encode()]


async def test_writes_share_a_transaction(store: Store) -> None:
    assert await create_events(store, [make.event() for _ in range(NUMBER)]) == [None] * NUMBER
    assert await number(store, "SELECT count(*) FROM wfc.events") == NUMBER
    assert await number(store, "SELECT count(DISTINCT xmin::text) FROM wfc.events") == 3


async def test_large_write_shares_none(store: Store) -> None:
    data = f'"{"x" * 5000}"'
    await create_events(store, [make.event(event_data_json=data) for _ in range(NUMBER)])
    assert await number(store, "SELECT count(DISTINCT xmin::text) FROM wfc.events") == NUMBER


async def test_what_fails_one_does_not_fail_its_neighbours(store: Store) -> None:
    """One is refused by PostgreSQL, so that all that was written with it is rolled back."""
    events = [make.event() for _ in range(NUMBER)]
    await event.create_event(store, events[4])
    events[4].event_data_json = "[]"
    events[6].event_data_json = '"\\u0000"'
    found = reasons(await create_events(store, events))
    assert found.pop(6) == ErrorReason.ERROR_REASON_INVALID_FIELD
    assert found.pop(4) == ErrorReason.ERROR_REASON_EVENT_ALREADY_EXISTS
    assert found == [None] * (NUMBER - 2)
    assert await number(store, "SELECT count(*) FROM wfc.events") == NUMBER - 1


async def test_locked_row_is_waited_for_by_its_own_caller_only(
    store: Store, outsider: psycopg.AsyncConnection[Any]
) -> None:
    subscriptions = [make.subscription() for _ in range(NUMBER)]
    await together(*(subscription.create_event_subscription(store, s) for s in subscriptions))
    locked = subscriptions[7].id
    await outsider.execute(
        "SELECT FROM wfc.event_subscriptions WHERE id = %s FOR UPDATE", (locked,)
    )
    tasks = {
        s.id: asyncio.create_task(
            subscription.set_subscription_token(
                store, s.id, "t", "w", expiry=None, duration_ms=60_000, epoch=None
            )
        )
        for s in subscriptions
    }
    waiting = tasks.pop(locked)
    results = await together(*tasks.values())
    assert all(isinstance(r, SetSubscriptionTokenResponse) and r.acquired for r in results)
    assert len({r.epoch for r in results}) == NUMBER - 1
    assert not waiting.done()
    await outsider.rollback()
    [last] = await together(waiting)
    assert last.acquired


async def test_caller_that_goes_leaves_its_neighbours_alone(store: Store) -> None:
    events = [make.event() for _ in range(NUMBER)]
    tasks = [asyncio.create_task(event.create_event(store, each)) for each in events]
    while await number(store, "SELECT count(*) FROM wfc.events") == 0:
        pass
    tasks[5].cancel()
    results = await together(*tasks)
    assert [result for n, result in enumerate(results) if n != 5] == [None] * (NUMBER - 1)
    assert await number(store, "SELECT count(*) FROM wfc.events") >= NUMBER - 1


async def test_patches_are_written_each_to_its_workflow(store: Store) -> None:
    instances = await create_workflows(store)
    nobody = make.instance(id="nobody", revision=1)
    asked = [*instances[:6], nobody, *instances[6:]]
    store.patches_remembered = 1  # the first one would be run by itself
    results = await together(*(patch(store, i, description=f"of {i.id}") for i in asked))
    assert reasons(results)[6] == ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND
    assert [result.revision for result in results if result is not results[6]] == [
        instance.revision + 1 for instance in instances
    ]
    wrong = "SELECT count(*) FROM wfc.workflows WHERE description <> 'of ' || id"
    assert await number(store, wrong) == 0
    pointers = "SELECT count(*) FROM wfc.execution_pointers"
    assert await number(store, pointers) == 2 * NUMBER
    transactions = "SELECT count(DISTINCT xmin::text) FROM wfc.workflows"
    assert await number(store, transactions) == 3


async def test_one_of_several_patches_of_a_revision_is_written(store: Store) -> None:
    [instance, *_] = await create_workflows(store)
    results = await together(*(patch(store, instance) for _ in range(NUMBER)))
    found = reasons(results)
    found.remove(None)
    assert found == [ErrorReason.ERROR_REASON_REVISION_MISMATCH] * (NUMBER - 1)


async def test_name_that_is_taken_is_refused_to_its_own_caller_only(store: Store) -> None:
    instances = await create_workflows(store)
    await workflow.create_new_workflow(store, make.instance(name="taken"))
    results = await together(
        *(
            patch(store, instance, name="taken" if n == 5 else f"name {n}")
            for n, instance in enumerate(instances)
        )
    )
    found = reasons(results)
    assert found.pop(5) == ErrorReason.ERROR_REASON_NAME_TAKEN
    assert found == [None] * (NUMBER - 1)
    named = "SELECT count(*) FROM wfc.workflows WHERE name LIKE 'name %'"
    assert await number(store, named) == NUMBER - 1


async def test_events_of_one_id_are_one(store: Store) -> None:
    """What says the same is a repetition, and the rest is refused, whichever was first."""
    first = make.event()
    other = make.event(id=first.id, event_data_json="[1]")
    events = [make.event() for _ in range(4)]
    found = reasons(await create_events(store, [*events, first, other, first, other]))
    exists = ErrorReason.ERROR_REASON_EVENT_ALREADY_EXISTS
    assert found[:4] == [None] * 4
    assert sorted(found[4:], key=str) == sorted([None, exists, None, exists], key=str)
    assert found[4] == found[6]
    assert await number(store, "SELECT count(*) FROM wfc.events") == 5


async def test_subscriptions_are_created_and_read_together(store: Store) -> None:
    subscriptions = [make.subscription(subscription_data_json="[1]") for _ in range(NUMBER)]
    repeated = [*subscriptions, subscriptions[2]]
    calls = (subscription.create_event_subscription(store, each) for each in repeated)
    assert await together(*calls) == [None] * (NUMBER + 1)
    ids = [each.id for each in subscriptions]
    ids[3:3] = ["nobody"]
    found = await together(*(subscription.get_subscription(store, id_) for id_ in ids))
    assert reasons(found)[3] == ErrorReason.ERROR_REASON_SUBSCRIPTION_NOT_FOUND
    assert found[:3] + found[4:] == subscriptions


async def test_claims_get_their_own_answer(store: Store) -> None:
    """Whatever is in a token, and although one is refused for each reason."""
    tokens = ["t", 'a"b', "a\\b", "a,b", "{a}", "NULL", "null", " ", "\u00e9", "'", "%s", "$1"]
    subscriptions = [make.subscription() for _ in tokens]
    await together(*(subscription.create_event_subscription(store, s) for s in subscriptions))
    now = make.from_now(0)
    past, future = make.from_now(-60), make.from_now(60)

    def claim(id_: str, token: str, n: int, **given: Any) -> Awaitable[Any]:
        lasts: dict[str, Any] = {"expiry": None, "duration_ms": None, "epoch": None}
        lasts |= ({"expiry": future}, {"duration_ms": 60_000}, {})[n % 3]
        return subscription.set_subscription_token(store, id_, token, token, **(lasts | given))

    ids = [each.id for each in subscriptions]
    calls = [claim(id_, token, n) for n, (id_, token) in enumerate(zip(ids, tokens, strict=True))]
    calls.append(claim(ids[3], "another", 1))
    calls.append(claim("nobody", "t", 1))
    calls.append(claim(ids[4], tokens[4], 0, expiry=past))
    results = await together(*calls)
    assert reasons(results) == [None] * (len(tokens) + 1) + [
        ErrorReason.ERROR_REASON_SUBSCRIPTION_NOT_FOUND,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
    ]
    winners = results[: len(tokens)]
    assert [r.acquired for r in (winners[3], results[len(tokens)])].count(True) == 1
    for n, (id_, token, result) in enumerate(zip(ids, tokens, winners, strict=True)):
        assert result.HasField("expiry") == (result.acquired and n % 3 < 2)
        stored = await subscription.get_subscription(store, id_)
        assert stored.external_token_epoch == (result if result.acquired else results[-3]).epoch
        if result.acquired:
            assert (stored.external_token, stored.external_worker_id) == (token, token)
            assert stored.HasField("external_token_expiry") == result.HasField("expiry")
            assert n % 3 == 2 or stored.external_token_expiry.seconds > now.seconds
    extended = await together(
        *(
            claim(id_, token, 1, epoch=result.epoch)
            for id_, token, result in zip(ids, tokens, winners, strict=True)
            if result.acquired
        )
    )
    assert [r.epoch for r in extended] == [r.epoch for r in winners if r.acquired]
