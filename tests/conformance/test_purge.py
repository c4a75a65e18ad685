"""PurgeWorkflows, PurgeEvents: what goes, what stays, and how a purge goes on.

Other tests share the store, so each purge is of a definition or an event name of the test's own.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import failure_of
from tests.support.scene import found
from wfe.persistence.v1.event_pb2 import Event, PurgeEventsResponse
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    PurgeWorkflowsResponse,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
)

RUNNABLE: Final = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
SUSPENDED: Final = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
TERMINATED: Final = WorkflowStatus.WORKFLOW_STATUS_TERMINATED

END: Final = make.time(1000)
"""Before this the purges of these tests delete."""


@pytest.fixture
def definition() -> str:
    """A definition of the test's own."""
    return make.new_id("definition")


def ended(definition: str, **fields: Any) -> WorkflowInstance:
    """A workflow that ended long ago."""
    given = {
        "workflow_definition_id": definition,
        "status": COMPLETE,
        "complete_time": make.time(10),
        "next_execution": None,
    }
    return make.instance(**(given | fields))


async def store(api: Api, *instances: WorkflowInstance) -> None:
    await for_each(api.create_new_workflow, instances)


async def left(api: Api, *instances: WorkflowInstance) -> list[bool]:
    """Which of these workflows are still stored."""
    ids = [instance.id for instance in instances]
    stored = {instance.id for instance in await api.get_workflow_instances(ids)}
    return [id_ in stored for id_ in ids]


async def purge(api: Api, definition: str, **fields: Any) -> PurgeWorkflowsResponse:
    """A purge to its end; the sum of what its calls answered."""
    given: dict[str, Any] = {"ended_before": END, "workflow_definition_id": definition}
    total = PurgeWorkflowsResponse()
    for answer in await pages(api.purge_workflows, **(given | fields)):
        for name in ("workflows", "execution_pointers", "subscriptions", "errors", "events"):
            setattr(total, name, getattr(total, name) + getattr(answer, name))
    return total


# What goes with a workflow.


async def _with_everything(api: Api, instance: WorkflowInstance) -> list[Event]:
    """Store a workflow with all that can hang on one; its events."""
    await store(api, instance)
    for token in (None, "token"):
        await api.create_event_subscription(
            make.subscription(workflow_id=instance.id, external_token=token)
        )
    await api.persist_errors(*[make.error(workflow_id=instance.id) for _ in range(4)])
    events = [
        make.event(event_name=name, event_key=instance.id, is_processed=is_processed)
        for name in ("wfe.workflow.completed", "order.paid")
        for is_processed in (True, False)
    ]
    await for_each(api.create_event, events)
    return events


async def _everything(api: Api, instance: WorkflowInstance, events: list[Event]) -> list[object]:
    return [
        await found(api.get_workflow_instance(instance.id)),
        await api.list_subscriptions(workflow_id=instance.id),
        await api.list_errors(workflow_id=instance.id),
        [await found(api.get_event(event.id)) for event in events],
    ]


async def test_workflow_goes_with_all_that_is_its_own(api: Api, definition: str) -> None:
    pointers = [make.pointer(id_) for id_ in "abc"]
    instance = ended(definition, execution_pointers=pointers)
    stays = ended(definition, status=SUSPENDED, execution_pointers=pointers)
    events = await _with_everything(api, instance)
    others = await _with_everything(api, stays)
    before = await _everything(api, stays, others)
    answer = await purge(api, definition)
    assert answer == PurgeWorkflowsResponse(
        workflows=1, execution_pointers=3, subscriptions=2, errors=4, events=1
    )
    workflow, subscriptions, errors, kept = await _everything(api, instance, events)
    assert workflow is None
    assert await found(api.list_execution_pointers(workflow_id=instance.id)) is None
    assert not subscriptions.subscriptions  # type: ignore[attr-defined]
    assert not errors.errors  # type: ignore[attr-defined]
    # The processed completion event is gone; the others are not the workflow's own.
    assert kept == [None, *events[1:]]
    assert await _everything(api, stays, others) == before
    for event in (*events, *others):
        await found(api.mark_event_processed(event.id))


async def test_name_and_id_of_a_purged_workflow_can_be_taken_anew(
    api: Api, definition: str
) -> None:
    instance = ended(definition, name=make.new_id("name"), execution_pointers=[make.pointer()])
    await store(api, instance)
    request_id = make.request_id()
    await api.persist_workflow(instance, request_id=request_id)
    await purge(api, definition)
    instance.ClearField("execution_pointers")
    created = await api.create_new_workflow(instance)
    again = await api.persist_workflow(instance, request_id=request_id)
    assert again == created.revision + 1
    assert not (await api.get_workflow_instance(instance.id)).execution_pointers


# Which workflows go.


async def test_only_what_has_ended_goes(api: Api, definition: str) -> None:
    instances = [
        ended(definition, status=status, complete_time=at)
        for status in (COMPLETE, TERMINATED, RUNNABLE, SUSPENDED)
        for at in (make.time(10), None)
    ]
    await store(api, *instances)
    assert (await purge(api, definition)).workflows == 4
    assert await left(api, *instances) == [False] * 4 + [True] * 4


@pytest.mark.parametrize("statuses", [[COMPLETE], [TERMINATED], [TERMINATED, COMPLETE] * 2, []])
async def test_statuses_that_were_asked_for_go(
    api: Api, definition: str, statuses: list[WorkflowStatus.ValueType]
) -> None:
    instances = [ended(definition, status=status) for status in (COMPLETE, TERMINATED)]
    await store(api, *instances)
    await purge(api, definition, statuses=statuses)
    assert await left(api, *instances) == [
        bool(statuses) and instance.status not in statuses for instance in instances
    ]


async def test_end_is_complete_time_or_where_that_is_absent_create_time(
    api: Api, definition: str
) -> None:
    before, at = make.later(END, us=-1), END
    gone = [
        ended(definition, complete_time=before, create_time=make.LAST_TIME),
        ended(definition, complete_time=None, create_time=before),
        ended(definition, complete_time=make.FIRST_TIME, create_time=make.FIRST_TIME),
    ]
    stays = [
        ended(definition, complete_time=at, create_time=before),
        ended(definition, complete_time=None, create_time=at),
        ended(definition, complete_time=make.LAST_TIME),
    ]
    await store(api, *gone, *stays)
    assert (await purge(api, definition)).workflows == 3
    assert await left(api, *gone, *stays) == [False] * 3 + [True] * 3


async def test_only_the_definition_that_was_asked_for_goes(api: Api) -> None:
    one, other = make.alike("a", "A")
    instances = [ended(one), ended(other)]
    await store(api, *instances)
    assert (await purge(api, one)).workflows == 1
    assert await left(api, *instances) == [False, True]


# Trees.


def tree(definition: str, **child: Any) -> list[WorkflowInstance]:
    """A workflow with two below it, the last one of which has these fields."""
    root = ended(definition)
    below = {"root_workflow_id": root.id, "execution_pointers": [make.pointer()]}
    return [root, ended(definition, **below), ended(definition, **(below | child))]


async def test_tree_goes_as_a_whole(api: Api, definition: str) -> None:
    """Whatever the definition of what is below, and the statuses that were asked for."""
    instances = tree(
        definition, workflow_definition_id=make.new_id("definition"), status=TERMINATED
    )
    await store(api, *instances)
    answer = await purge(api, definition, statuses=[COMPLETE])
    assert (answer.workflows, answer.execution_pointers) == (3, 2)
    assert await left(api, *instances) == [False] * 3


@pytest.mark.parametrize(
    "child",
    [
        {"status": RUNNABLE, "next_execution": 2**62},
        {"status": SUSPENDED},
        {"complete_time": END},
        {"complete_time": None, "create_time": END},
        {"status": SUSPENDED, "workflow_definition_id": "another"},
    ],
    ids=["runnable", "suspended", "ended later", "made later", "of another definition"],
)
async def test_tree_stays_as_a_whole_until_all_of_it_has_ended(
    api: Api, definition: str, child: dict[str, Any]
) -> None:
    instances = tree(definition, **child)
    await store(api, *instances)
    for max_rows in (0, 1):
        assert await purge(api, definition, max_rows=max_rows) == PurgeWorkflowsResponse()
    assert await left(api, *instances) == [True] * 3
    last = instances[-1]
    last.status = TERMINATED
    last.complete_time.CopyFrom(make.time(20))
    await api.persist_workflow(last)
    assert (await purge(api, definition)).workflows == 3
    assert await left(api, *instances) == [False] * 3


@pytest.mark.parametrize("root_status", [SUSPENDED, COMPLETE])
async def test_child_stays_while_its_root_is_stored(
    api: Api, definition: str, root_status: WorkflowStatus.ValueType
) -> None:
    root = ended(make.new_id("definition"), status=root_status)
    child = ended(definition, root_workflow_id=root.id)
    await store(api, root, child)
    assert await purge(api, definition) == PurgeWorkflowsResponse()
    assert await left(api, child) == [True]
    await api.delete_workflow(root.id)
    assert (await purge(api, definition)).workflows == 1
    assert await left(api, child) == [False]


async def test_children_without_a_root_go_each_by_itself(api: Api, definition: str) -> None:
    root = make.new_id("root")
    instances = [
        ended(definition, root_workflow_id=root),
        ended(definition, root_workflow_id=root, status=SUSPENDED),
        ended(definition, root_workflow_id=root),
    ]
    await store(api, *instances)
    assert (await purge(api, definition)).workflows == 2
    assert await left(api, *instances) == [False, True, False]


async def test_workflow_that_is_its_own_root_goes(api: Api, definition: str) -> None:
    id_ = make.new_id("workflow")
    instance = ended(definition, id=id_, root_workflow_id=id_)
    child = ended(definition, root_workflow_id=id_)
    await store(api, instance, child)
    assert (await purge(api, definition)).workflows == 2
    assert await left(api, instance, child) == [False, False]


def chain(definition: str, length: int, **last: Any) -> list[WorkflowInstance]:
    """Workflows each of which has the one before as its root; the last one has these fields."""
    instances = [ended(definition) for _ in range(length)]
    for above, below in pairwise(instances):
        below.root_workflow_id = above.id
    instances[-1] = ended(
        definition, **{"id": instances[-1].id, "root_workflow_id": instances[-2].id} | last
    )
    return instances


def cycle(definition: str, length: int, **last: Any) -> list[WorkflowInstance]:
    """The same, and the first has the last as its root."""
    instances = chain(definition, length, **last)
    instances[0].root_workflow_id = instances[-1].id
    return instances


@pytest.mark.parametrize("max_rows", [0, 1])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("shape", [chain, cycle])
async def test_tree_of_any_depth_goes_as_a_whole(
    api: Api,
    definition: str,
    shape: Callable[..., list[WorkflowInstance]],
    dry_run: bool,
    max_rows: int,
) -> None:
    """With workflows beside, and whatever ends first."""
    instances = []
    for length in (2, 4, 25):
        tree = shape(definition, length, execution_pointers=[make.pointer()])
        tree.append(ended(definition, root_workflow_id=tree[1].id))
        for i, instance in enumerate(tree):
            instance.complete_time.CopyFrom(make.time(10 + (i * 7) % 11))
        instances += tree
    await store(api, *reversed(instances))
    answer = await purge(api, definition, dry_run=dry_run, max_rows=max_rows)
    assert (answer.workflows, answer.execution_pointers) == (len(instances), 3)
    assert await left(api, *instances) == [dry_run] * len(instances)


@pytest.mark.parametrize("shape", [chain, cycle])
@pytest.mark.parametrize("last", [{"status": SUSPENDED}, {"complete_time": END}], ids=str)
async def test_tree_of_any_depth_stays_as_a_whole(
    api: Api,
    definition: str,
    shape: Callable[..., list[WorkflowInstance]],
    last: dict[str, Any],
) -> None:
    instances = shape(definition, 4, **last)
    await store(api, *instances)
    assert await purge(api, definition) == PurgeWorkflowsResponse()
    assert await left(api, *instances) == [True] * 4


async def test_any_workflow_of_a_cycle_may_be_the_one_asked_for(api: Api, definition: str) -> None:
    instances = [each for _ in range(3) for each in cycle(make.new_id("definition"), 3)]
    for at in range(3):
        instances[at * 3 + at].workflow_definition_id = definition
        instances[at * 3 + at].status = TERMINATED
    await store(api, *instances)
    assert await purge(api, definition, statuses=[COMPLETE]) == PurgeWorkflowsResponse()
    answer = await purge(api, definition, statuses=[TERMINATED])
    assert answer.workflows == 9
    assert await left(api, *instances) == [False] * 9


def _tops(instances: Sequence[WorkflowInstance]) -> dict[str, frozenset[str]]:
    """By id: the root of a workflow's tree, or all in the cycle at the top of it."""
    root = {i.id: i.root_workflow_id for i in instances if i.HasField("root_workflow_id")}
    stored = {i.id for i in instances}
    tops = {}
    for id_ in stored:
        path = [id_]
        while (above := root.get(path[-1], path[-1])) in stored and above not in path:
            path.append(above)
        is_cycle = above in path
        tops[id_] = frozenset(path[path.index(above) :] if is_cycle else path[-1:])
    return tops


@pytest.mark.parametrize("number", range(6))
async def test_when_the_token_is_empty_nothing_is_left(
    api: Api, definition: str, number: int
) -> None:
    """Workflows whose roots are any others: what goes is what the definition of a tree says."""
    numbers = random.Random(number)
    ids = [make.new_id("workflow") for _ in range(60)]
    other = make.new_id("definition")
    instances = [
        ended(
            numbers.choice([definition, definition, other]),
            id=id_,
            root_workflow_id=numbers.choice([None, id_, make.new_id(), *numbers.sample(ids, 9)]),
            status=numbers.choices([COMPLETE, TERMINATED, SUSPENDED], [20, 10, 1])[0],
            complete_time=numbers.choices([make.time(numbers.randrange(5)), END], [30, 1])[0],
        )
        for id_ in ids
    ]
    await store(api, *instances)
    by_id, tops = {i.id: i for i in instances}, _tops(instances)
    statuses = numbers.choice([[], [COMPLETE], [TERMINATED]])
    asked = {
        top
        for top in tops.values()
        if any(
            by_id[id_].workflow_definition_id == definition
            and (not statuses or by_id[id_].status in statuses)
            for id_ in top
        )
        and all(
            i.status != SUSPENDED and i.complete_time != END for i in instances if tops[i.id] == top
        )
    }
    expected = [tops[instance.id] not in asked for instance in instances]
    for dry_run in (True, False):
        answer = await purge(
            api, definition, statuses=statuses, dry_run=dry_run, max_rows=numbers.choice([1, 7, 0])
        )
        assert answer.workflows == expected.count(False)
    assert await left(api, *instances) == expected


# Budget, order, going on.


async def test_budget_of_one_call_and_going_on_until_nothing_is_left(
    api: Api, definition: str
) -> None:
    """The first to end go first, and each call takes no more than it needs for its budget."""
    instances = [
        ended(
            definition,
            complete_time=make.time(i),
            execution_pointers=[make.pointer(str(n)) for n in range(4)],
        )
        for i in range(7)
    ]
    await store(api, *reversed(instances))
    fields: dict[str, Any] = {"ended_before": END, "workflow_definition_id": definition}
    answer = await api.purge_workflows(**fields, max_rows=1)
    assert (answer.workflows, answer.execution_pointers) == (1, 4)
    assert await left(api, *instances) == [False] + [True] * 6
    token = answer.next_page_token
    answer = await api.purge_workflows(**fields, max_rows=10, page_token=token)
    assert answer.workflows == 2
    assert await left(api, *instances) == [False] * 3 + [True] * 4
    # The same again does no harm, and goes on where it can.
    again = await api.purge_workflows(**fields, max_rows=10, page_token=token)
    assert again.workflows == 2
    rest = await pages(api.purge_workflows, again.next_page_token, **fields, max_rows=5)
    assert sum(answer.workflows for answer in rest) == 2
    assert all(answer.workflows <= 1 for answer in rest)
    assert await left(api, *instances) == [False] * 7
    assert await purge(api, definition) == PurgeWorkflowsResponse()


async def test_more_than_one_batch_goes_in_one_call(api: Api, definition: str) -> None:
    """Also where many that have to stay stand in front."""
    stay = [workflow for _ in range(60) for workflow in tree(definition, status=SUSPENDED)[::2]]
    go = [ended(definition, complete_time=make.time(100 + i % 5)) for i in range(130)]
    await store(api, *stay, *go)
    answer = await api.purge_workflows(ended_before=END, workflow_definition_id=definition)
    assert (answer.workflows, answer.next_page_token) == (130, "")
    assert await left(api, *stay, *go) == [True] * 120 + [False] * 130


async def test_dry_run_counts_what_would_go_and_changes_nothing(api: Api, definition: str) -> None:
    instances = [*tree(definition), *tree(definition, status=SUSPENDED), ended(definition)]
    events = [event for each in instances for event in await _with_everything(api, each)]
    filter_ = WorkflowFilter(workflow_definition_id=definition)
    before = await api.list_workflows(filter=filter_)
    state = [await _everything(api, each, events) for each in instances]
    counted = [
        await purge(api, definition, dry_run=True, max_rows=max_rows) for max_rows in (0, 1, 20)
    ]
    assert await api.list_workflows(filter=filter_) == before
    assert [await _everything(api, each, events) for each in instances] == state
    purged = await purge(api, definition)
    assert purged == PurgeWorkflowsResponse(
        workflows=4, execution_pointers=2, subscriptions=8, errors=16, events=4
    )
    assert counted == [purged] * 3
    for event in events:
        await found(api.mark_event_processed(event.id))


# While others write.


async def test_workflow_that_is_written_again_is_purged_whole_or_not_at_all(
    api: Api, definition: str
) -> None:
    """Hosts that revive ended workflows, or write them once more as ended, against purges."""

    def state(i: int, *, revives: bool) -> WorkflowInstance:
        return ended(
            definition,
            id=ids[i],
            status=SUSPENDED if revives else COMPLETE,
            execution_pointers=[make.pointer(str(n)) for n in range(i % 5 + 2)],
        )

    ids = [make.new_id("workflow") for _ in range(60)]
    await store(
        api, *[ended(definition, id=id_, execution_pointers=[make.pointer()]) for id_ in ids]
    )
    revived: list[str] = []

    async def write(i: int) -> None:
        instance = state(i, revives=i % 2 == 0)
        failure = await failure_of(api.persist_workflow(instance))
        if failure is None and i % 2 == 0:
            revived.append(ids[i])
        assert failure is None or failure.reason == "WORKFLOW_NOT_FOUND", failure

    async def purge_all() -> None:
        for _ in range(5):
            await purge(api, definition, max_rows=7)

    await asyncio.gather(purge_all(), for_each(write, range(60)), purge_all())
    stored = {w.id: w for w in await api.get_workflow_instances(ids)}
    assert set(revived) <= set(stored), "a workflow that was revived was purged"
    for i, id_ in enumerate(ids):
        if id_ in revived:
            assert len(stored[id_].execution_pointers) == i % 5 + 2
    await purge(api, definition)
    assert {w.id for w in await api.get_workflow_instances(ids)} == set(revived)


async def test_purges_at_once_count_each_workflow_once(api: Api, definition: str) -> None:
    instances = [
        ended(definition, complete_time=make.time(i), execution_pointers=[make.pointer()])
        for i in range(60)
    ]
    await store(api, *instances)
    answers = await asyncio.gather(*(purge(api, definition, max_rows=10) for _ in range(4)))
    answers.append(await purge(api, definition))  # what they passed over for each other's locks
    assert sum(answer.workflows for answer in answers) == 60
    assert sum(answer.execution_pointers for answer in answers) == 60


# PurgeEvents.


def old_event(name: str, **fields: Any) -> Event:
    return make.event(**{"event_name": name, "is_processed": True} | fields)


async def stored_events(api: Api, name: str) -> list[Event]:
    answers = await pages(api.list_events, event_name=name, order=ListOrder.LIST_ORDER_OLDEST_FIRST)
    return [event for answer in answers for event in answer.events]


async def purge_events(api: Api, name: str, **fields: Any) -> list[PurgeEventsResponse]:
    """All answers of a purge to its end."""
    given: dict[str, Any] = {"event_time_before": END, "event_name": name}
    return await pages(api.purge_events, **(given | fields))


def count(answers: list[PurgeEventsResponse]) -> int:
    return sum(answer.events for answer in answers)


async def test_processed_events_before_a_time_go(api: Api) -> None:
    name = make.new_id("name")
    gone = [
        old_event(name),
        old_event(name, event_time=make.later(END, us=-1)),
        old_event(name, event_time=make.FIRST_TIME),
    ]
    stays = [
        old_event(name, is_processed=False),
        old_event(name, event_time=END),
        old_event(name, event_time=make.LAST_TIME),
        old_event(f"{name}2"),
        old_event(name.upper()),
    ]
    await for_each(api.create_event, [*gone, *stays])
    assert count(await purge_events(api, name, dry_run=True)) == 3
    assert [await found(api.get_event(e.id)) for e in gone] == gone
    assert count(await purge_events(api, name)) == 3
    assert [await found(api.get_event(e.id)) for e in gone] == [None] * 3
    assert [await found(api.get_event(e.id)) for e in stays] == stays
    assert count(await purge_events(api, name)) == 0
    assert count(await purge_events(api, name, include_unprocessed=True)) == 1
    assert [await found(api.get_event(e.id)) for e in stays] == [None, *stays[1:]]


async def test_events_of_any_name_go(api: Api) -> None:
    """Of a moment of the test's own: before all others'. Nothing is deleted."""
    first = old_event(make.new_id("name"), event_time=make.FIRST_TIME)
    await api.create_event(first)
    answers = await purge_events(
        api, "", event_time_before=make.later(make.FIRST_TIME, us=1), dry_run=True
    )
    assert count(answers) >= 1
    await purge_events(api, first.event_name)


@pytest.mark.parametrize("dry_run", [True, False])
async def test_purge_of_events_goes_on_until_nothing_is_left(api: Api, dry_run: bool) -> None:
    """The oldest first; equal times too."""
    name = make.new_id("name")
    events = [old_event(name, event_time=make.time(i // 4)) for i in range(25)]
    await for_each(api.create_event, events)
    events.sort(key=lambda e: (e.event_time.ToNanoseconds(), e.id))
    fields: dict[str, Any] = {"event_time_before": END, "event_name": name, "dry_run": dry_run}
    first = await api.purge_events(**fields, max_rows=7)
    assert first.events == 7
    kept = events if dry_run else events[7:]
    assert await stored_events(api, name) == kept
    again = await api.purge_events(**fields, max_rows=7)
    assert again.events == 7
    rest = await pages(api.purge_events, again.next_page_token, **fields, max_rows=5)
    assert count(rest) == (25 - 7 if dry_run else 25 - 14)
    assert all(answer.events <= 5 for answer in rest)
    assert await stored_events(api, name) == (events if dry_run else [])


async def test_event_that_is_to_be_processed_again_stays(api: Api) -> None:
    """Marked as such while purges run: it stays, or it was gone by then."""
    name = make.new_id("name")
    events = [old_event(name, event_time=make.time(i)) for i in range(60)]
    await for_each(api.create_event, events)
    outcome: Counter[bool] = Counter()
    marked: set[str] = set()

    async def mark(event: Event) -> None:
        failure = await failure_of(api.mark_event_unprocessed(event.id))
        assert failure is None or failure.reason == "EVENT_NOT_FOUND"
        outcome[failure is None] += 1
        if failure is None:
            marked.add(event.id)

    async def purge_all() -> None:
        for _ in range(5):
            await purge_events(api, name, max_rows=3)

    await asyncio.gather(purge_all(), for_each(mark, events[::-1]), purge_all())
    await purge_events(api, name)
    assert {e.id for e in await stored_events(api, name)} == marked
    assert sum(outcome.values()) == 60
    await purge_events(api, name, include_unprocessed=True)


@pytest.mark.parametrize("max_rows", [0, 100_000, 2**31 - 1])
async def test_budget_may_be_left_to_the_store_or_be_too_large(
    api: Api, definition: str, max_rows: int
) -> None:
    await store(api, ended(definition))
    await api.create_event(old_event(definition))
    workflows = await api.purge_workflows(
        ended_before=END, workflow_definition_id=definition, max_rows=max_rows
    )
    assert (workflows.workflows, workflows.next_page_token) == (1, "")
    events = await api.purge_events(event_time_before=END, event_name=definition, max_rows=max_rows)
    assert (events.events, events.next_page_token) == (1, "")
