"""Many at once: nothing is lost, nothing torn, and what only one may get, exactly one gets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands, tokens
from tests.support.expect import Failure, failure_of
from wfe.persistence.v1.command_pb2 import ClaimedCommand
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance

T = TypeVar("T")


async def at_once(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results; the first failure fails."""
    return list(await asyncio.gather(*calls))


async def outcomes(calls: Iterable[Awaitable[Any]]) -> tuple[list[int], list[Failure]]:
    """Which of the calls succeeded, and how the others failed."""
    failures = await asyncio.gather(*map(failure_of, calls))
    winners = [n for n, failure in enumerate(failures) if failure is None]
    return winners, [failure for failure in failures if failure is not None]


def _reasons(failures: Iterable[Failure]) -> set[str]:
    return {failure.reason for failure in failures}


# Creates.


async def test_thirty_creates_at_once(api: Api) -> None:
    instances = [make.full_instance() for _ in range(30)]
    await at_once(map(api.create, instances))
    assert await api.get_workflow_instances([i.id for i in instances]) == instances


async def test_same_create_at_once_succeeds_for_all_and_creates_one(api: Api) -> None:
    instance = make.full_instance()
    answers = await at_once(api.create_new_workflow(instance) for _ in range(10))
    assert all(answer == answers[0] for answer in answers)
    instance.revision = answers[0].revision
    assert await api.get_workflow_instance(instance.id) == instance


async def test_same_event_and_subscription_at_once_are_created_once(api: Api) -> None:
    event, subscription = make.event(), make.subscription()
    ids = await at_once(api.create_event(event) for _ in range(10))
    assert set(ids) == {event.id}
    ids = await at_once(api.create_event_subscription(subscription) for _ in range(10))
    assert set(ids) == {subscription.id}


@pytest.mark.parametrize("kind", ["workflow", "event", "subscription"])
async def test_of_creates_of_one_id_with_different_content_exactly_one_succeeds(
    api: Api, kind: str
) -> None:
    id_ = make.new_id()
    create: Any
    get: Any
    messages: list[Message]
    if kind == "workflow":
        messages = [make.full_instance(id=id_, data_json=str(n)) for n in range(10)]
        create, get = api.create, api.get_workflow_instance
    elif kind == "event":
        messages = [make.event(id=id_, event_data_json=str(n)) for n in range(10)]
        create, get = api.create_event, api.get_event
    else:
        messages = [make.subscription(id=id_, step_id=n) for n in range(10)]
        create, get = api.create_event_subscription, api.get_subscription
    [winner], losers = await outcomes(map(create, messages))
    assert _reasons(losers) == {f"{kind.upper()}_ALREADY_EXISTS"}
    assert await get(id_) == messages[winner]


async def test_of_creates_of_one_name_exactly_one_succeeds(api: Api) -> None:
    name = make.new_id("name")
    instances = [make.full_instance(name=name) for _ in range(10)]
    [winner], losers = await outcomes(map(api.create_new_workflow, instances))
    assert _reasons(losers) == {"NAME_TAKEN"}
    assert (await api.get_workflow_instance_by_name(name)).id == instances[winner].id
    assert len(await api.get_workflow_instances([i.id for i in instances])) == 1


# Persists.


def _of_writer(id_: str, writer: int, turn: int) -> WorkflowInstance:
    """A state in which everything tells who wrote it; each writer has pointers of its own."""
    tag = f"{writer}.{turn}"
    pointers = [
        make.pointer(str(n), step_name=tag, outcome_json=f'"{tag}"')
        for n in range(writer, writer + 3 + (turn % 3))
    ]
    return make.instance(id=id_, data_json=f'"{tag}"', description=tag, execution_pointers=pointers)


def _check_one_writers(instance: WorkflowInstance) -> None:
    """All of it must have been written by one call."""
    assert instance.description
    writer, turn = map(int, instance.description.split("."))
    expected = _of_writer(instance.id, writer, turn)
    expected.name, expected.revision = instance.name, instance.revision
    assert instance == expected


async def test_readers_never_see_a_mix_of_what_writers_persist(api: Api) -> None:
    writers, turns = 8, 12
    first = _of_writer(make.new_id("workflow"), 0, 0)
    await api.create(first)
    writing = True
    reads = 0

    async def write(writer: int) -> list[int]:
        return [
            await api.persist_workflow(_of_writer(first.id, writer, turn)) for turn in range(turns)
        ]

    async def read(reader: int) -> None:
        nonlocal reads
        while writing:
            if reader % 2:
                instances = await api.get_workflow_instances([first.id])
            else:
                instances = [await api.get_workflow_instance(first.id)]
            _check_one_writers(instances[0])
            reads += 1

    async with asyncio.TaskGroup() as readers:
        for reader in range(4):
            readers.create_task(read(reader))
        revisions = await at_once(map(write, range(writers)))
        writing = False
    assert reads > 4
    last = await api.get_workflow_instance(first.id)
    _check_one_writers(last)
    assert last.revision == first.revision + writers * turns
    in_order = sorted(r for written in revisions for r in written)
    assert in_order == list(range(first.revision + 1, last.revision + 1))
    winner = next(n for n, written in enumerate(revisions) if last.revision in written)
    assert (last.description or "").startswith(f"{winner}.")


async def test_of_writers_that_expect_one_revision_exactly_one_succeeds(api: Api) -> None:
    instance = make.instance(data_json="0")
    first = await api.create(instance)
    for revision in range(first, first + 5):
        states = [make.instance(id=instance.id, data_json=str(n)) for n in range(8)]
        [winner], losers = await outcomes(api.persist_workflow(s, revision) for s in states)
        assert _reasons(losers) == {"REVISION_MISMATCH"}
        assert {failure.metadata["revision"] for failure in losers} == {str(revision + 1)}
        stored = await api.get_workflow_instance(instance.id)
        assert (stored.revision, stored.data_json) == (revision + 1, str(winner))


async def test_counter_kept_by_expected_revisions_loses_no_count(api: Api) -> None:
    instance = make.instance(data_json="0")
    first = await api.create(instance)

    async def count(times: int) -> None:
        while times:
            stored = await api.get_workflow_instance(instance.id)
            stored.data_json = str(int(stored.data_json) + 1)
            failure = await failure_of(api.persist_workflow(stored, stored.revision))
            if failure is None:
                times -= 1
            else:
                assert failure.reason == "REVISION_MISMATCH"

    await at_once(count(5) for _ in range(8))
    stored = await api.get_workflow_instance(instance.id)
    assert (stored.data_json, stored.revision) == ("40", first + 40)


async def test_of_renames_to_one_name_exactly_one_succeeds(api: Api) -> None:
    instances = [make.full_instance() for _ in range(8)]
    await at_once(map(api.create, instances))
    name = make.new_id("name")
    renamed = [make.instance(id=i.id, name=name) for i in instances]
    [winner], losers = await outcomes(map(api.persist_workflow, renamed))
    assert _reasons(losers) == {"NAME_TAKEN"}
    for n, stored in enumerate(await api.get_workflow_instances([i.id for i in instances])):
        assert stored.name == (name if n == winner else instances[n].name)
        assert stored.revision == instances[n].revision + (n == winner)


async def test_same_subscriptions_with_persists_at_once_are_created_once(api: Api) -> None:
    """Also when they come in different orders, where two may wait for each other."""
    instances = [make.instance() for _ in range(8)]
    await at_once(map(api.create, instances))
    for _ in range(5):
        subscriptions = [make.subscription() for _ in range(4)]
        await at_once(
            api.persist_workflow_with_subscriptions(instance, subscriptions[:: (-1) ** n])
            for n, instance in enumerate(instances)
        )
        assert [await api.get_subscription(s.id) for s in subscriptions] == subscriptions
    stored = await api.get_workflow_instances([i.id for i in instances])
    assert [i.revision for i in stored] == [i.revision + 5 for i in instances]


async def test_of_persists_with_one_subscription_id_exactly_one_writes(api: Api) -> None:
    instances = [make.instance() for _ in range(8)]
    await at_once(map(api.create, instances))
    id_ = make.new_id("subscription")
    subscriptions = [make.subscription(id=id_, workflow_id=i.id) for i in instances]
    [winner], losers = await outcomes(
        api.persist_workflow_with_subscriptions(instance, [subscription])
        for instance, subscription in zip(instances, subscriptions, strict=True)
    )
    assert _reasons(losers) == {"SUBSCRIPTION_ALREADY_EXISTS"}
    assert await api.get_subscription(id_) == subscriptions[winner]
    stored = await api.get_workflow_instances([i.id for i in instances])
    for n, instance in enumerate(stored):
        assert instance.revision == instances[n].revision + (n == winner)


async def test_sequence_gives_no_number_twice(api: Api) -> None:
    definition = make.new_id("definition")
    numbers = await at_once(api.next_definition_sequence(definition) for _ in range(20))
    assert sorted(numbers) == list(range(1, 21))


async def test_readers_see_all_of_the_errors_of_one_call_or_none(api: Api) -> None:
    workflow, batch = make.new_id("workflow"), 150
    writing = True

    async def read() -> None:
        while writing:
            listed = await api.list_errors(workflow_id=workflow, page_size=1000)
            assert len(listed.errors) % batch == 0

    async with asyncio.TaskGroup() as readers:
        for _ in range(3):
            readers.create_task(read())
        for _ in range(5):
            await api.persist_errors(*(make.error(workflow_id=workflow) for _ in range(batch)))
        writing = False


# Tokens.


async def test_exactly_one_worker_acquires_a_subscription(api: Api) -> None:
    for expiry in (None, make.from_now(3600)):
        subscription = make.subscription()
        await api.create_event_subscription(subscription)
        acquired = await at_once(
            api.set_subscription_token(subscription.id, f"token {n}", f"worker {n}", expiry)
            for n in range(8)
        )
        assert Counter(acquired) == {True: 1, False: 7}
        stored = await api.get_subscription(subscription.id)
        assert stored.external_token == f"token {acquired.index(True)}"
        assert stored.external_worker_id == f"worker {acquired.index(True)}"


async def test_exactly_one_call_clears_and_exactly_one_terminates(api: Api) -> None:
    subscription = make.subscription(external_token="token")
    await api.create_event_subscription(subscription)
    winners, losers = await outcomes(
        api.clear_subscription_token(subscription.id, "token") for _ in range(8)
    )
    assert len(winners) == 1
    assert _reasons(losers) == {"TOKEN_MISMATCH"}
    winners, losers = await outcomes(api.terminate_subscription(subscription.id) for _ in range(8))
    assert len(winners) == 1
    assert _reasons(losers) == {"SUBSCRIPTION_NOT_FOUND"}


# Commands.


async def test_each_command_is_claimed_by_exactly_one_of_eight(own: OwnCommands) -> None:
    made = await at_once(map(own.schedule, range(120)))

    async def claim() -> list[str]:
        # Completed only in the end: a command that was claimed twice must still be there.
        claimed: list[ClaimedCommand] = []
        while claims := await own.claim(limit=7):
            claimed += claims
        await own.api.complete_commands(*tokens(claimed))
        return [claim.command.data for claim in claimed]

    claimed = await at_once(claim() for _ in range(8))
    # (One more, alone: who finds only what others are claiming at the moment finds none.)
    times = Counter(data for some in [*claimed, await claim()] for data in some)
    assert times == {command.data: 1 for command in made}


async def test_exactly_one_call_completes_a_command(own: OwnCommands) -> None:
    await own.schedule()
    [claim] = await own.claim()
    winners, losers = await outcomes(own.api.complete_commands(claim.lease_token) for _ in range(8))
    assert len(winners) == 1
    assert _reasons(losers) == {"LEASE_LOST"}


async def test_scheduling_one_command_at_once_leaves_one(own: OwnCommands) -> None:
    data = make.new_id("command")
    made = await at_once(own.schedule(at, data=data) for at in range(10))
    [claim] = await own.claim()
    assert claim.command in made


async def test_no_scheduling_is_lost_between_claims_and_completions(own: OwnCommands) -> None:
    """However they fall together: what was scheduled last is handed out after that."""
    data = make.new_id("command")
    scheduling = True
    handled: list[int] = []

    async def work() -> None:
        claims: list[ClaimedCommand] = []
        while scheduling or claims:
            claims = await own.claim()
            handled.extend(claim.command.execute_time for claim in claims)
            if claims:
                await own.api.complete_commands(*tokens(claims))

    async with asyncio.TaskGroup() as workers:
        for _ in range(4):
            workers.create_task(work())
        for at in range(60):
            last = await own.schedule(at, data=data)
        scheduling = False
    while claims := await own.claim():
        handled += [claim.command.execute_time for claim in claims]
        await own.api.complete_commands(*tokens(claims))
    assert handled.count(last.execute_time) == 1
    assert len(handled) == len(set(handled))
