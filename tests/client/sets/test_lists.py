"""Lists and counts of a namespace set are those of a single namespace with the same things."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.client.sets.conftest import MEMBERS
from tests.client.sets.support import member, new_id, workflow
from wfe_persistence_client import (
    CommandName,
    Event,
    EventSubscription,
    ListOrder,
    NamespaceSetProvider,
    PersistenceProvider,
    QueueItem,
    ScheduledCommand,
    WorkflowFilter,
    WorkflowStatus,
)
from wfe_persistence_client.sets.merging import merged

NOW = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
async def both(
    orders: NamespaceSetProvider, alone: PersistenceProvider
) -> tuple[PersistenceProvider, PersistenceProvider]:
    return orders, alone


Pair = tuple[PersistenceProvider, PersistenceProvider]


@pytest.mark.parametrize("order", ListOrder)
@pytest.mark.parametrize("page_size", [0, 1, 3])
async def test_workflows(both: Pair, order: ListOrder, page_size: int) -> None:
    definition = new_id()
    chance = random.Random(page_size)
    statuses = [WorkflowStatus.RUNNABLE, WorkflowStatus.SUSPENDED, WorkflowStatus.COMPLETE]
    ids = [new_id() for _ in range(25)]
    for at, id_ in enumerate(ids):
        for provider in both:
            await provider.create_new_workflow(
                workflow(
                    id_,
                    workflow_definition_id=definition,
                    status=statuses[at % 3],
                    # Some at the same moment.
                    create_time=NOW + timedelta(microseconds=at // 3),
                    next_execution=chance.randrange(4) if at % 2 else None,
                )
            )
    wanted = WorkflowFilter(workflow_definition_id=definition)

    async def listed(provider: PersistenceProvider) -> list[str]:
        return [
            one.id
            async for one in provider.iter_workflows(wanted, order=order, page_size=page_size)
        ]

    orders, alone = both
    assert await listed(orders) == await listed(alone)
    assert len(await listed(orders)) == 25
    assert await orders.count_workflows(wanted) == await alone.count_workflows(wanted)
    assert await orders.count_workflows(WorkflowFilter(reference=new_id())) == {}


async def test_runnable_workflows(both: Pair) -> None:
    definition = new_id()
    chance = random.Random(1)
    for _ in range(30):
        id_, due = new_id(), chance.randrange(5)
        for provider in both:
            await provider.create_new_workflow(
                workflow(id_, workflow_definition_id=definition, next_execution=due)
            )

    async def runnable(provider: PersistenceProvider, page_size: int) -> list[str]:
        pages = provider.iter_runnable_instances(
            datetime(1970, 1, 2, tzinfo=UTC),
            workflow_definition_ids=[definition],
            page_size=page_size,
        )
        return [id_ async for id_ in pages]

    orders, alone = both
    expected = await runnable(alone, 0)
    assert len(expected) == 30
    for page_size in (0, 1, 7):
        assert await runnable(orders, page_size) == expected
    assert (
        await orders.get_runnable_instances(
            datetime(1970, 1, 2, tzinfo=UTC), workflow_definition_ids=[definition]
        )
        == expected
    )


async def test_events_and_subscriptions(both: Pair) -> None:
    key = new_id()
    for at in range(25):
        id_, workflow_id = new_id(), new_id()
        time = NOW + timedelta(microseconds=at // 4)
        for provider in both:
            await provider.create_event(
                Event(id=id_, event_name="listed", event_key=key, event_data=at, event_time=time)
            )
            await provider.create_event_subscription(
                EventSubscription(
                    id=id_,
                    workflow_id=workflow_id,
                    step_id=1,
                    execution_pointer_id="p",
                    event_name="listed",
                    event_key=key,
                    subscribe_as_of=time,
                )
            )
    orders, alone = both
    for page_size in (0, 3):
        for provider in both:
            assert [
                e async for e in provider.iter_events("listed", key, page_size=page_size)
            ] == await alone.get_events("listed", key)
    for order in ListOrder:
        assert await orders.list_events(
            event_name="listed", event_key=key, order=order
        ) == await alone.list_events(event_name="listed", event_key=key, order=order)
    since = NOW + timedelta(microseconds=3)
    assert await orders.get_events("listed", key, event_time_from=since) == await alone.get_events(
        "listed", key, event_time_from=since
    )
    assert await orders.get_subscriptions("listed", key) == await alone.get_subscriptions(
        "listed", key
    )
    assert await orders.list_subscriptions(
        event_name="listed", event_key=key
    ) == await alone.list_subscriptions(event_name="listed", event_key=key)
    mine = set(await alone.get_events("listed", key))
    due = [e for e in await orders.get_runnable_events(since) if e in mine]
    assert due == [e for e in await alone.get_runnable_events(since) if e in mine]
    assert len(due) == 16
    await orders.purge_events(NOW + timedelta(days=1), event_name="listed")
    assert set(await orders.get_events("listed", key)) == mine
    assert (
        await orders.purge_events(
            NOW + timedelta(days=1), event_name="listed", include_unprocessed=True
        )
        >= 25
    )
    assert await orders.get_events("listed", key) == []


async def test_commands_locks_and_items(both: Pair) -> None:
    prefix = new_id()
    times = [9, 2, 7, 2, 5, 1, 8, 3]
    for at, time in enumerate(times):
        for provider in both:
            data = f"{prefix}-{at}"
            await provider.schedule_command(
                ScheduledCommand(
                    command_name=CommandName.PROCESS_EVENT, data=data, execute_time=2**47 + time
                )
            )
            assert await provider.acquire_lock(data)
            await provider.enqueue(
                [
                    QueueItem(
                        queue="listed",
                        id=data,
                        visible_time=datetime(2100, 1, 1, tzinfo=UTC) + timedelta(seconds=time),
                    )
                ]
            )
    orders, alone = both
    commands = await orders.list_commands()
    assert [c.command.execute_time for c in commands] == [2**47 + time for time in sorted(times)]
    assert Counter(c.command.data for c in commands) == Counter(
        c.command.data for c in await alone.list_commands()
    )
    locks = await orders.list_locks(resource_prefix=prefix)
    assert [lock.resource for lock in locks] == [
        lock.resource for lock in await alone.list_locks(resource_prefix=prefix)
    ]
    items = await orders.list_queue_items("listed")
    assert [i.item.visible_time for i in items] == [
        i.item.visible_time for i in await alone.list_queue_items("listed")
    ]
    assert await orders.get_queue_stats(["listed"]) == await alone.get_queue_stats(["listed"])
    assert await orders.requeue_items("listed", [f"{prefix}-{at}" for at in range(3)]) == 3
    assert await orders.delete_items("listed", [f"{prefix}-{at}" for at in range(8)]) == 8
    for provider in both:
        claimed = await provider.claim_commands(datetime(9000, 1, 1, tzinfo=UTC), limit=100)
        assert len(claimed) == len(times)
        await provider.complete_commands(c.lease_token for c in claimed)


@pytest.mark.parametrize("order", ListOrder)
@pytest.mark.parametrize("page_size", [1, 4, 30])
async def test_pages_with_one_token(
    orders: NamespaceSetProvider, order: ListOrder, page_size: int
) -> None:
    """Whatever is created or deleted meanwhile, what was there is listed once."""
    definition = new_id()
    ids = []
    for at in range(17):
        instance = workflow(
            new_id(),
            workflow_definition_id=definition,
            create_time=NOW + timedelta(microseconds=at // 5),
        )
        await orders.create_new_workflow(instance)
        ids.append(instance.id)
    wanted = WorkflowFilter(
        workflow_definition_id=definition,
        create_time_from=NOW,
        create_time_before=NOW + timedelta(seconds=1),
    )
    expected = [one.id for one in await orders.list_workflows(wanted, order=order)]
    assert sorted(expected) == sorted(ids)
    found: list[str] = []
    token = ""
    while True:
        page = await orders.list_workflows_page(
            wanted, order=order, page_size=page_size, page_token=token
        )
        found += [one.id for one in page.instances]
        token = page.next_page_token
        if not token:
            break
        assert len(page.instances) == page_size
        # Before and behind; and one that has been listed goes.
        for seconds in (0.1, 0.9):
            extra = workflow(
                new_id(),
                workflow_definition_id=definition,
                create_time=NOW + timedelta(seconds=seconds),
            )
            if (order is ListOrder.NEWEST_FIRST) == (seconds > 0.5) or found[-1] != ids[-1]:
                await orders.create_new_workflow(extra)
        await orders.delete_workflow(found[-1])
    assert [id_ for id_ in found if id_ in ids] == expected
    assert len(set(found)) == len(found)


async def test_tokens_of_another_list(orders: NamespaceSetProvider) -> None:
    for _ in range(2):
        await orders.create_new_workflow(workflow())
    page = await orders.list_workflows_page(page_size=1)
    other = WorkflowFilter(reference="x")
    with pytest.raises(ValueError, match="page_token: is not one of this list"):
        await orders.list_workflows_page(other, page_size=1, page_token=page.next_page_token)
    for token in ("x", "W10=", page.next_page_token[:-4]):
        with pytest.raises(ValueError, match="page_token"):
            await orders.list_workflows_page(page_size=1, page_token=token)
    with pytest.raises(ValueError, match="page_size"):
        await orders.list_workflows_page(page_size=1001)


async def test_purged_workflows(orders: NamespaceSetProvider) -> None:
    definition = new_id()
    for index in range(MEMBERS):
        await orders.create_new_workflow(
            workflow(
                new_id(index), workflow_definition_id=definition, status=WorkflowStatus.COMPLETE
            )
        )
    before = NOW + timedelta(days=1)
    planned = await orders.purge_workflows(before, workflow_definition_id=definition, dry_run=True)
    assert planned.workflows == MEMBERS
    purged = await orders.purge_workflows(before, workflow_definition_id=definition)
    assert purged == planned
    assert await orders.count_workflows(WorkflowFilter(workflow_definition_id=definition)) == {}


async def test_many_are_created_at_once(orders: NamespaceSetProvider) -> None:
    """In order, each in its member; those with names one by one; what is wrong has its number."""
    taken = f"name-{new_id()}"
    await orders.create_new_workflow(workflow(name=taken))
    given = [workflow(new_id(n % MEMBERS)) for n in range(50)]
    given[7].name = f"name-{new_id()}"
    given[20].name = taken
    given[30] = workflow()
    results = [result async for result in orders.create_workflows(given)]
    assert [result.item for result in results] == given
    assert [n for n, result in enumerate(results) if result.error is not None] == [20]
    assert results[30].id == given[30].id != ""
    stored = await orders.get_workflow_instances(
        result.id for result in results if result.error is None
    )
    assert len(stored) == 49
    assert (await orders.get_workflow_instance_by_name(given[7].name)).id == given[7].id

    async def source() -> AsyncIterator[object]:
        for one in (workflow(new_id()), workflow(new_id()), "nothing"):
            yield one

    seen = []

    async def see() -> None:
        async for result in orders.create_workflows(source()):  # type: ignore[arg-type]
            seen.append(result)

    with pytest.raises(TypeError, match=r"instances\[2\]: expected WorkflowInstance, not str"):
        await see()
    assert len(seen) == 2
    bad = [workflow(new_id(n % MEMBERS)) for n in range(10)]
    bad[6].version = "1"  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"instances\[6\].version"):
        _ = [result async for result in orders.create_workflows(bad)]
    events = [
        Event(
            id="" if n % 2 else new_id(),
            event_name="many",
            event_key="k",
            event_data=n,
            event_time=NOW,
        )
        for n in range(20)
    ]
    created = [result async for result in orders.create_events(events)]
    assert [result.item for result in created] == events
    assert [(await orders.get_event(result.id)).event_data for result in created] == list(range(20))


async def test_a_bulk_that_is_left_leaves_nothing_behind(orders: NamespaceSetProvider) -> None:
    async def endless() -> AsyncIterator[object]:
        while True:
            yield workflow(new_id())

    before = asyncio.all_tasks()
    results = orders.create_workflows(endless())  # type: ignore[arg-type]
    assert (await anext(results)).error is None
    await results.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    assert {task for task in asyncio.all_tasks() - before if "SetBulk" in repr(task)} == set()


async def test_merging_reads_no_more_than_it_needs() -> None:
    read: Counter[int] = Counter()

    async def source(number: int) -> AsyncIterator[int]:
        for value in range(number, 100, 3):
            read[number] += 1
            yield value

    items = merged([source(0), source(1), source(2)], lambda value: value)
    assert [await anext(items) for _ in range(10)] == list(range(10))
    await items.aclose()
    assert max(read.values()) <= 5


async def test_merging_when_a_source_fails() -> None:
    async def good() -> AsyncIterator[int]:
        for value in range(3):
            yield value

    async def bad() -> AsyncIterator[int]:
        yield 1
        raise OSError("away")

    found = []

    async def see() -> None:
        async for value in merged([good(), bad()], lambda value: value):
            found.append(value)

    with pytest.raises(OSError, match="away"):
        await see()
    assert found == [0, 1, 1]


async def test_a_member_can_be_looked_at_alone(orders: NamespaceSetProvider) -> None:
    counts = [await member(orders, index).count_workflows() for index in range(MEMBERS)]
    total: Counter[WorkflowStatus] = Counter()
    for one in counts:
        total.update(one)
    assert await orders.count_workflows() == dict(total)
