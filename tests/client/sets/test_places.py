"""Where things of a namespace set are, and that they are found there."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client.sets.conftest import MEMBERS
from tests.client.sets.support import member, new_id, workflow
from wfe_persistence_client import (
    CommandName,
    Event,
    EventNotFound,
    EventSubscription,
    ExecutionError,
    LifecycleEvent,
    LifecycleEventType,
    MembersDiffer,
    NamespaceSetProvider,
    NotOverASet,
    QueueItem,
    ScheduledCommand,
    SubscriptionNotFound,
    WorkflowNotFound,
    WorkflowStatus,
)
from wfe_persistence_client.sets.routing import home_of, member_of, untag

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(id_: str = "", **fields: Any) -> Event:
    return Event(
        id=id_,
        **{
            "event_name": "paid",
            "event_key": new_id(),
            "event_data": 1,
            "event_time": NOW,
            **fields,
        },
    )


def subscription(workflow_id: str, id_: str = "", **fields: Any) -> EventSubscription:
    return EventSubscription(
        id=id_,
        workflow_id=workflow_id,
        **{
            "step_id": 1,
            "execution_pointer_id": "p",
            "event_name": "paid",
            "event_key": "k",
            "subscribe_as_of": NOW,
            **fields,
        },
    )


@pytest.mark.parametrize("index", range(MEMBERS))
async def test_a_workflow_is_in_the_member_of_its_id(
    orders: NamespaceSetProvider, index: int
) -> None:
    instance = workflow(new_id(index), data={"a": 1})
    await orders.create_new_workflow(instance)
    for other in range(MEMBERS):
        found = await member(orders, other).get_workflow_instances([instance.id])
        assert [one.id for one in found] == ([instance.id] if other == index else [])
    loaded = await orders.get_workflow_instance(instance.id)
    loaded.data = {"a": 2}
    await orders.persist_workflow(loaded)
    assert (await orders.get_workflow_instance_by_name(instance.id)).data == {"a": 2}
    async with orders.step(loaded) as step:
        loaded.status = WorkflowStatus.COMPLETE
    assert step.revision == loaded.revision
    assert (await orders.wait_for_workflow(instance.id)).status is WorkflowStatus.COMPLETE
    await orders.delete_workflow(instance.id)
    with pytest.raises(WorkflowNotFound):
        await orders.get_workflow_instance(instance.id)
    with pytest.raises(WorkflowNotFound):
        await orders.delete_workflow(instance.id)


async def test_a_workflow_without_an_id_gets_one(orders: NamespaceSetProvider) -> None:
    instance = workflow()
    id_ = await orders.create_new_workflow(instance)
    assert instance.id == instance.name == id_
    assert (await member(orders, member_of(id_, MEMBERS)).get_workflow_instance(id_)).id == id_


async def test_many_workflows_in_the_order_asked(orders: NamespaceSetProvider) -> None:
    ids = [new_id(index) for index in (3, 1, 0, 2, 1, 3)]
    for id_ in ids:
        await orders.create_new_workflow(workflow(id_))
    found = await orders.get_workflow_instances([*ids, new_id(), ids[0]])
    assert [one.id for one in found] == [*ids, ids[0]]
    assert found[0] is not found[-1]


async def test_numbers_of_a_definition_are_from_one_member(orders: NamespaceSetProvider) -> None:
    definition = new_id()
    assert [await orders.next_definition_sequence(definition) for _ in range(3)] == [1, 2, 3]
    assert (
        await member(orders, member_of(definition, MEMBERS)).next_definition_sequence(definition)
        == 4
    )


async def test_an_event_is_stored_once(orders: NamespaceSetProvider) -> None:
    one = event(new_id(2), event_key="k-" + new_id())
    assert await orders.create_event(one) == one.id
    assert await orders.create_event(one) == one.id
    for index in range(MEMBERS):
        found = await member(orders, index).get_events("paid", one.event_key)
        assert found == ([one.id] if index == 2 else [])
    assert await orders.get_events("paid", one.event_key) == [one.id]
    await orders.mark_event_processed(one.id)
    assert (await orders.get_event(one.id)).is_processed
    await orders.mark_event_unprocessed(one.id)
    assert not (await orders.get_event(one.id)).is_processed


async def test_an_event_of_a_step_is_stored_with_its_workflow(
    orders: NamespaceSetProvider,
) -> None:
    """In one transaction; and found by its id, though that may say something else."""
    instance = workflow(new_id(1))
    await orders.create_new_workflow(instance)
    given = event(new_id(3))
    async with orders.step(instance) as step:
        assert step.create_event(given) == given.id
        made_up = step.create_event(event())
    assert untag(made_up, MEMBERS)[1] == 1
    for id_ in (given.id, made_up):
        assert (await member(orders, 1).get_event(id_)).id == id_
        assert (await orders.get_event(id_)).id == id_
        await orders.mark_event_processed(id_)
        assert (await orders.get_event(id_)).is_processed
    with pytest.raises(EventNotFound):
        await orders.get_event(new_id())
    with pytest.raises(EventNotFound):
        await orders.mark_event_processed(new_id())


@pytest.mark.parametrize("event_first", [True, False])
async def test_an_event_reaches_every_subscription_once(
    orders: NamespaceSetProvider, event_first: bool
) -> None:
    """Whichever comes first, and whatever members their workflows are in."""
    key = new_id()
    workflows = [workflow(new_id(index)) for index in range(MEMBERS)]
    for instance in workflows:
        await orders.create_new_workflow(instance)
    one = event(event_key=key)
    if event_first:
        one.id = await orders.create_event(one)
    made = []
    for instance in workflows:
        async with orders.step(instance) as step:
            made.append(step.create_subscription(subscription(instance.id, event_key=key)))
        # What the engine does for events that came before.
        assert await orders.get_events("paid", key, NOW) == ([one.id] if event_first else [])
    if not event_first:
        one.id = await orders.create_event(one)
    assert await orders.get_runnable_events(NOW) != []
    waiting = await orders.get_subscriptions("paid", key, NOW)
    assert sorted(s.id for s in waiting) == sorted(made)
    assert {s.workflow_id for s in waiting} == {instance.id for instance in workflows}
    first = await orders.get_first_open_subscription("paid", key, NOW)
    assert first == waiting[0]
    for instance in workflows:
        [own] = await orders.list_subscriptions(workflow_id=instance.id)
        claim = await orders.claim_subscription(own.id)
        assert claim is not None
        claim = await orders.renew_subscription_token(claim)
        assert await orders.claim_subscription(own.id) is None
        async with orders.step(instance) as step:
            step.hold(claim)
            step.terminate_subscription(own.id)
    assert await orders.get_subscriptions("paid", key, NOW) == []
    await orders.mark_event_processed(one.id)


async def test_a_subscription_is_in_the_member_of_its_workflow(
    orders: NamespaceSetProvider,
) -> None:
    workflow_id = new_id(2)
    made_up = await orders.create_event_subscription(subscription(workflow_id))
    given = await orders.create_event_subscription(subscription(workflow_id, new_id(0)))
    assert home_of(made_up, MEMBERS) == 2
    for id_ in (made_up, given):
        assert (await member(orders, 2).get_subscription(id_)).id == id_
        assert (await orders.get_subscription(id_)).id == id_
        assert await orders.set_subscription_token(id_, "t", "w", None)
        await orders.clear_subscription_token(id_, "t")
        claim = await orders.claim_subscription(id_)
        assert claim is not None
        await orders.release_subscription(claim)
        await orders.terminate_subscription(id_)
        with pytest.raises(SubscriptionNotFound):
            await orders.terminate_subscription(id_)


async def test_commands_go_to_the_member_of_their_data(orders: NamespaceSetProvider) -> None:
    ids = [new_id(index) for index in range(MEMBERS)]
    for id_ in ids:
        command = ScheduledCommand(
            command_name=CommandName.PROCESS_WORKFLOW, data=id_, execute_time=1
        )
        await orders.schedule_command(command)
        listed = await member(orders, member_of(id_, MEMBERS)).list_commands(
            command_name=CommandName.PROCESS_WORKFLOW, data=id_
        )
        assert [one.command for one in listed] == [command]
    claimed = await orders.claim_commands(limit=3)
    assert len(claimed) == 3
    claimed += await orders.claim_commands()
    assert {one.command.data for one in claimed} == set(ids)
    assert await orders.claim_commands() == []
    tokens = [one.lease_token for one in claimed]
    assert await orders.renew_commands(tokens) is not None
    await orders.release_commands(tokens[:2])
    again = await orders.claim_commands()
    assert len(again) == 2
    await orders.complete_commands([*tokens[2:], *(one.lease_token for one in again)])
    assert await orders.list_commands() == []


async def test_commands_are_processed_over_all_members(orders: NamespaceSetProvider) -> None:
    ids = {new_id(index) for index in range(MEMBERS)}
    for id_ in ids:
        await orders.schedule_command(
            ScheduledCommand(command_name=CommandName.PROCESS_EVENT, data=id_, execute_time=1)
        )
    handled: list[str] = []

    async def handle(command: ScheduledCommand) -> None:
        handled.append(command.data)

    assert await orders.process_commands(None, handle, batch_size=2) == MEMBERS
    assert sorted(handled) == sorted(ids)


async def test_errors_are_with_their_workflows(orders: NamespaceSetProvider) -> None:
    ids = [new_id(index) for index in range(MEMBERS)]
    errors = [
        ExecutionError(error_time=NOW + timedelta(minutes=at), workflow_id=id_, message=str(at))
        for at, id_ in enumerate(ids)
    ]
    await orders.persist_errors(errors)
    for index, id_ in enumerate(ids):
        assert await member(orders, index).list_errors(id_) == [errors[index]]
    mine = [one for one in await orders.list_errors() if one.workflow_id in ids]
    assert mine == errors[::-1]


async def test_a_write_is_on_one_member(orders: NamespaceSetProvider) -> None:
    """What refers to others is refused with a typed error, and nothing is written."""
    instance = workflow(new_id(0))
    await orders.create_new_workflow(instance)
    revision = instance.revision
    elsewhere = await orders.create_event_subscription(subscription(new_id(1)))
    there = event(new_id(2))
    await orders.create_event(there)
    await orders.enqueue([QueueItem(queue="elsewhere", id=new_id(3))])
    [item] = (await orders.dequeue(["elsewhere"])).items
    lock = await orders.acquire_lock(new_id(1))
    assert lock is not None
    claim = await orders.claim_subscription(elsewhere)
    assert claim is not None
    with pytest.raises(MembersDiffer):
        async with orders.step(instance) as step:
            step.terminate_subscription(elsewhere)
    with pytest.raises(MembersDiffer):
        async with orders.step(instance) as step:
            step.hold(claim)
    with pytest.raises(MembersDiffer):
        async with orders.step(instance) as step:
            step.hold(lock)
    with pytest.raises(MembersDiffer):
        async with orders.step(instance) as step:
            step.acknowledge(item)
    with pytest.raises(MembersDiffer):
        async with orders.step(instance) as step:
            step.mark_event_processed(there.id)
    with pytest.raises(MembersDiffer):
        await orders.commit_workflow(instance, processed_event_ids=[there.id])
    with pytest.raises(MembersDiffer):
        await orders.persist_workflow(instance, held_lock_tokens=[lock.token])
    assert (await orders.get_workflow_instance(instance.id)).revision == revision
    # What does not exist anywhere is what it is in a single namespace.
    with pytest.raises(EventNotFound):
        await orders.commit_workflow(instance, processed_event_ids=[new_id(0)])


async def test_tokens_of_others_are_refused_before_anything_is_sent(
    orders: NamespaceSetProvider,
) -> None:
    with pytest.raises(ValueError, match=r"receipts\[0\]: is not one that this namespace set"):
        await orders.acknowledge(["1.2.3"])
    with pytest.raises(ValueError, match=r"lease_tokens\[0\]"):
        await orders.complete_commands(["x"])
    assert not await orders.release_lock("7.0e7c8e1f-9f64-4b3c-8d6e-0c6f2f7c5f10")


async def test_what_a_set_does_not_offer(orders: NamespaceSetProvider) -> None:
    with pytest.raises(NotOverASet):
        orders.export_records()
    with pytest.raises(NotOverASet) as raised:
        await orders.import_records([])
    assert raised.value.reason == "NOT_OVER_A_SET"


async def test_publishes_to_the_members_of_the_workflows(orders: NamespaceSetProvider) -> None:
    ids = [new_id(index) for index in range(MEMBERS)]
    watching = orders.watch_lifecycle(workflow_definition_id="watched")
    first = watching.__aiter__().__anext__()

    task = asyncio.ensure_future(first)
    await asyncio.sleep(0.5)
    for _ in range(2):
        await orders.publish(
            LifecycleEvent(
                type=LifecycleEventType.STARTED, workflow_id=id_, workflow_definition_id="watched"
            )
            for id_ in ids
        )
    seen = [await task]
    while len(seen) < 2 * MEMBERS:
        seen.append(await anext(watching))
    assert sorted(one.workflow_id for one in seen) == sorted(ids * 2)
    # From any of them on, what has not been seen comes again.
    for at in (0, 3, 6):
        again = orders.watch_lifecycle(workflow_definition_id="watched", after=seen[at].cursor)
        rest = [await anext(again) for _ in range(2 * MEMBERS - at - 1)]
        assert sorted(one.workflow_id for one in rest) == sorted(
            one.workflow_id for one in seen[at + 1 :]
        )
        await again.aclose()  # type: ignore[attr-defined]
    await watching.aclose()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="after: is not a cursor of this namespace set"):
        await anext(orders.watch_lifecycle(after="WyJ4Il0="))
