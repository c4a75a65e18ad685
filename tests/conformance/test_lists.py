"""ListWorkflows, CountWorkflows, ListEvents, ListSubscriptions, and the filters of ListErrors.

Other tests share the store, so each list is of the test's own: of its definition, name, key.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import eventually, fails
from tests.support.scene import never_due
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription, SetSubscriptionTokenRequest
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)

NEWEST: Final = ListOrder.LIST_ORDER_NEWEST_FIRST
OLDEST: Final = ListOrder.LIST_ORDER_OLDEST_FIRST
RUNNABLE: Final = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
SUSPENDED: Final = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
TERMINATED: Final = WorkflowStatus.WORKFLOW_STATUS_TERMINATED


def ns(time: Timestamp) -> int:
    return time.ToNanoseconds()


async def listed_workflows(api: Api, **fields: Any) -> list[WorkflowInstance]:
    """The workflows of all pages."""
    answers = await pages(api.list_workflows, **fields)
    return [instance for answer in answers for instance in answer.instances]


# ListWorkflows and CountWorkflows: the filter.


class Population:
    """Workflows that differ in all that a filter can ask for."""

    def __init__(self) -> None:
        self.definitions = [make.new_id("definition") for _ in range(2)]
        self.references = [make.new_id("reference"), ""]
        self.root = make.new_id("root")
        self.prefix = make.new_id("name")
        self.instances = [self._instance(i) for i in range(48)]
        random.Random(48).shuffle(self.instances)

    def _instance(self, i: int) -> WorkflowInstance:
        # Three at a time are created at the same moment.
        return make.full_instance(
            name=f"{self.prefix}{'ab'[i % 2]}{i:02}",
            workflow_definition_id=self.definitions[i // 2 % 2],
            version=i % 3,
            status=[SUSPENDED, COMPLETE, TERMINATED, SUSPENDED][i % 4],
            create_time=make.time(i // 3),
            complete_time=make.time(100 + i % 7) if i % 5 else None,
            root_workflow_id=self.root if i % 4 == 1 else None,
            reference=[*self.references, None][i % 3],
        )


@pytest.fixture(scope="module")
async def population(api: Api) -> Population:
    """A population that is stored."""
    population = Population()
    await for_each(api.create, population.instances)
    return population


Given = Callable[[Population], dict[str, Any]]
Passes = Callable[[WorkflowInstance, Population], bool]
# What is given, and what passes. What is not only the population's own is asked for with its name.
FILTERS: Final[dict[str, tuple[Given, Passes]]] = {
    "name": (lambda p: {"name_prefix": p.prefix}, lambda w, p: True),
    "longer name": (lambda p: {"name_prefix": f"{p.prefix}a"}, lambda w, p: "a" in w.name[-3:]),
    "whole name": (
        lambda p: {"name_prefix": f"{p.prefix}a04"},
        lambda w, p: w.name.endswith("a04"),
    ),
    "more than a name": (lambda p: {"name_prefix": f"{p.prefix}a04x"}, lambda w, p: False),
    "status": (lambda p: {"statuses": [COMPLETE]}, lambda w, p: w.status == COMPLETE),
    "statuses": (
        lambda p: {"statuses": [TERMINATED, SUSPENDED, TERMINATED]},
        lambda w, p: w.status in (TERMINATED, SUSPENDED),
    ),
    "status of none": (lambda p: {"statuses": [RUNNABLE]}, lambda w, p: False),
    "definition": (
        lambda p: {"workflow_definition_id": p.definitions[1]},
        lambda w, p: w.workflow_definition_id == p.definitions[1],
    ),
    "version": (lambda p: {"version": 2}, lambda w, p: w.version == 2),
    "version 0": (lambda p: {"version": 0}, lambda w, p: w.version == 0),
    "reference": (
        lambda p: {"reference": p.references[0]},
        lambda w, p: w.reference == p.references[0],
    ),
    "empty reference": (
        lambda p: {"reference": ""},
        lambda w, p: w.HasField("reference") and not w.reference,
    ),
    "root": (
        lambda p: {"root_workflow_id": p.root},
        lambda w, p: w.root_workflow_id == p.root,
    ),
    "created from": (
        lambda p: {"create_time_from": make.time(7)},
        lambda w, p: ns(w.create_time) >= ns(make.time(7)),
    ),
    "created before": (
        lambda p: {"create_time_before": make.time(7)},
        lambda w, p: ns(w.create_time) < ns(make.time(7)),
    ),
    "created between": (
        lambda p: {"create_time_from": make.time(3), "create_time_before": make.time(5)},
        lambda w, p: ns(make.time(3)) <= ns(w.create_time) < ns(make.time(5)),
    ),
    "created within no time": (
        lambda p: {"create_time_from": make.time(3), "create_time_before": make.time(3)},
        lambda w, p: False,
    ),
    "completed from": (
        lambda p: {"complete_time_from": make.time(103)},
        lambda w, p: w.HasField("complete_time") and ns(w.complete_time) >= ns(make.time(103)),
    ),
    "completed before": (
        lambda p: {"complete_time_before": make.time(103)},
        lambda w, p: w.HasField("complete_time") and ns(w.complete_time) < ns(make.time(103)),
    ),
    "completed at any time": (
        lambda p: {"complete_time_from": make.FIRST_TIME},
        lambda w, p: w.HasField("complete_time"),
    ),
    "everything": (
        lambda p: {
            "statuses": [COMPLETE],
            "workflow_definition_id": p.definitions[0],
            "version": 1,
            "reference": "",
            "name_prefix": f"{p.prefix}b",
            "root_workflow_id": p.root,
            "create_time_from": make.time(2),
            "create_time_before": make.time(14),
            "complete_time_from": make.time(100),
            "complete_time_before": make.time(107),
        },
        lambda w, p: (
            w.status == COMPLETE
            and w.workflow_definition_id == p.definitions[0]
            and w.version == 1
            and w.HasField("reference")
            and not w.reference
            and w.root_workflow_id == p.root
            and ns(make.time(2)) <= ns(w.create_time) < ns(make.time(14))
            and w.HasField("complete_time")
        ),
    ),
}
STUCK: Final = {
    # What the workflows themselves do not show: see test_stuck_workflows.py.
    "written_before", "due_before", "waiting_event_name", "waiting_event_key", "error_time_from",
}  # fmt: skip
OWN_BY_THEMSELVES: Final = ("workflow_definition_id", "name_prefix", "root_workflow_id")


def _filter(population: Population, name: str) -> tuple[WorkflowFilter, list[WorkflowInstance]]:
    """A filter, and what passes it, the oldest first."""
    given, passes = FILTERS[name]
    fields = given(population)
    own = fields.keys() & set(OWN_BY_THEMSELVES) or fields.get("reference")
    if not own:
        fields["name_prefix"] = population.prefix
    expected = [w for w in population.instances if passes(w, population)]
    expected.sort(key=lambda w: (ns(w.create_time), w.id))
    return WorkflowFilter(**fields), expected


def test_every_field_of_the_filter_is_asked_for(population: Population) -> None:
    asked = {name for given, _ in FILTERS.values() for name in given(population)}
    assert asked | STUCK == set(make.fields_of(WorkflowFilter))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=ListOrder.Name)
async def test_workflows_that_pass_the_filter_in_order(
    api: Api, population: Population, name: str, order: ListOrder.ValueType
) -> None:
    filter_, expected = _filter(population, name)
    if order == NEWEST:
        expected.reverse()
    for page_size in (1, 5, 0):
        found = await listed_workflows(
            api,
            filter=filter_,
            order=order,
            page_size=page_size,
            view=WorkflowView.WORKFLOW_VIEW_FULL,
        )
        assert found == expected, page_size


@pytest.mark.parametrize("name", FILTERS)
async def test_count_of_workflows_that_pass_the_filter(
    api: Api, population: Population, name: str
) -> None:
    filter_, expected = _filter(population, name)
    fields = {field.name: value for field, value in filter_.ListFields()}
    counts = await api.count_workflows(**fields)
    assert [(c.status, c.count) for c in counts] == sorted(
        Counter(w.status for w in expected).items()
    )


async def test_filters_of_the_population_are_worth_something(population: Population) -> None:
    for name in FILTERS:
        _, expected = _filter(population, name)
        nothing = name in ("more than a name", "status of none", "created within no time")
        assert bool(expected) != nothing, name


async def test_unspecified_order_is_the_newest_first(api: Api, population: Population) -> None:
    filter_, expected = _filter(population, "name")
    found = await listed_workflows(api, filter=filter_, page_size=7)
    assert [w.id for w in found] == [w.id for w in expected[::-1]]


async def test_without_a_filter_all_are_listed_and_counted(api: Api) -> None:
    """Of a moment of the test's own: the first ones of all."""
    instance = never_due(create_time=make.FIRST_TIME)
    await api.create_new_workflow(instance)
    answer = await api.list_workflows(order=OLDEST, page_size=1000)
    assert instance.id in [w.id for w in answer.instances]
    assert sum(c.count for c in await api.count_workflows()) >= 1
    await api.delete_workflow(instance.id)


async def test_first_and_last_times_are_listed(api: Api) -> None:
    definition = make.new_id("definition")
    times = [make.FIRST_TIME, make.time(), make.LAST_TIME]
    ids = [make.new_id("workflow") for _ in times]
    for id_, at in zip(ids, times, strict=True):
        await api.create_new_workflow(
            never_due(id=id_, create_time=at, workflow_definition_id=definition)
        )
    filter_ = WorkflowFilter(workflow_definition_id=definition)
    for size in (1, 10):
        for order, expected in ((OLDEST, ids), (NEWEST, ids[::-1])):
            found = await listed_workflows(api, filter=filter_, order=order, page_size=size)
            assert [w.id for w in found] == expected


async def test_bounds_of_times_are_truncated_to_microseconds(api: Api) -> None:
    definition = make.new_id("definition")
    await api.create_new_workflow(never_due(workflow_definition_id=definition))
    at = make.later(make.time(), ns=999)
    own = {"workflow_definition_id": definition}
    assert await api.count_workflows(**own, create_time_from=at)
    assert not await api.count_workflows(**own, create_time_before=at)


@pytest.mark.parametrize("special", ["%", "_", "\\", "\\%", "%%", "_%\\", "'", "[a]", "é"])
async def test_name_prefix_means_what_it_says(api: Api, special: str) -> None:
    base = make.new_id("name")
    names = [f"{base}{special}", f"{base}{special}x", f"{base}abc", f"{base}", f"{base}\\\\"]
    for name in names:
        await api.create_new_workflow(never_due(name=name))
    found = await listed_workflows(api, filter=WorkflowFilter(name_prefix=f"{base}{special}"))
    assert {w.name for w in found} == {n for n in names if n.startswith(f"{base}{special}")}
    upper = await listed_workflows(api, filter=WorkflowFilter(name_prefix=base.upper()))
    assert not upper


@pytest.mark.parametrize(("one", "other"), make.ALIKE)
async def test_filters_take_nothing_for_what_is_like_it(api: Api, one: str, other: str) -> None:
    first, second = make.alike(one, other)
    fields = ("workflow_definition_id", "reference", "root_workflow_id")
    instances = [
        never_due(workflow_definition_id=text, reference=text, root_workflow_id=text)
        for text in (first, second)
    ]
    for instance in instances:
        await api.create_new_workflow(instance)
    for field in fields:
        for text, instance in zip((first, second), instances, strict=True):
            given: dict[str, Any] = {field: text}
            found = await listed_workflows(api, filter=WorkflowFilter(**given))
            assert [w.id for w in found] == [instance.id], field


# ListWorkflows: views.


@pytest.mark.parametrize("view", WorkflowView.values(), ids=WorkflowView.Name)
async def test_listed_workflows_are_as_the_view_shows_them(
    api: Api, view: WorkflowView.ValueType
) -> None:
    definition = make.new_id("definition")
    ids = []
    for n, pointers in enumerate(
        ([], [make.pointer("a")], [make.full_pointer("b"), make.pointer()])
    ):
        instance = make.full_instance(
            workflow_definition_id=definition,
            execution_pointers=pointers,
            create_time=make.time(n),
            status=SUSPENDED,
        )
        await api.create_new_workflow(instance)
        ids.append(instance.id)
    shown = view or WorkflowView.WORKFLOW_VIEW_HEADER
    expected = await api.get_workflow_instances(ids, shown)
    filter_ = WorkflowFilter(workflow_definition_id=definition)
    for size in (1, 2, 3):
        found = await listed_workflows(api, filter=filter_, order=OLDEST, view=view, page_size=size)
        assert found == expected


# ListWorkflows: while others write.


@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=ListOrder.Name)
async def test_what_stays_is_listed_once_while_others_write(
    api: Api, order: ListOrder.ValueType
) -> None:
    definition = make.new_id("definition")

    def new(at: float) -> WorkflowInstance:
        return never_due(workflow_definition_id=definition, create_time=make.time(at))

    stays = [new(i // 2) for i in range(40)]
    goes = [new(i // 2) for i in range(40)]
    await for_each(api.create_new_workflow, [*stays, *goes])
    rng = random.Random(int(order))
    done = asyncio.Event()
    created: set[str] = set()

    async def write() -> None:
        while not done.is_set():
            extra = new(rng.uniform(-5, 25))
            created.add(extra.id)
            await api.create_new_workflow(extra)
            await api.persist_workflow(rng.choice(stays))
            if goes:
                await api.delete_workflow(goes.pop(rng.randrange(len(goes))).id)

    leaving = {w.id for w in goes}
    writers = [asyncio.create_task(write()) for _ in range(3)]
    try:
        for _ in range(3):
            found = await listed_workflows(
                api,
                filter=WorkflowFilter(workflow_definition_id=definition),
                order=order,
                page_size=3,
            )
            ids = [w.id for w in found]
            assert len(ids) == len(set(ids)), "a workflow was listed twice"
            assert {w.id for w in stays} <= set(ids), "one that stayed was not listed"
            assert set(ids) <= {w.id for w in stays} | leaving | created
            times = [ns(w.create_time) for w in found]
            assert times == sorted(times, reverse=order == NEWEST)
    finally:
        done.set()
        await asyncio.gather(*writers)


async def test_page_goes_on_behind_a_workflow_that_was_deleted(api: Api) -> None:
    """Its place in the list is known without it."""
    definition = make.new_id("definition")
    instances = [
        never_due(workflow_definition_id=definition, create_time=make.time(i)) for i in range(6)
    ]
    await for_each(api.create_new_workflow, instances)
    fields: dict[str, Any] = {
        "filter": WorkflowFilter(workflow_definition_id=definition),
        "order": OLDEST,
        "page_size": 2,
    }
    first = await api.list_workflows(**fields)
    await api.delete_workflow(instances[0].id)
    await api.delete_workflow(instances[1].id)
    rest = await pages(api.list_workflows, first.next_page_token, **fields)
    found = [w.id for answer in rest for w in answer.instances]
    assert found == [w.id for w in instances[2:]]


# DeleteWorkflow.


async def test_deleted_workflow_is_gone_with_all_that_is_its_own(api: Api) -> None:
    instance = make.full_instance(status=SUSPENDED)
    other = make.full_instance(status=SUSPENDED, root_workflow_id=instance.id)
    event = make.event(event_name="wfe.workflow.completed", event_key=instance.id)
    subscriptions = []
    for each in (instance, other):
        await api.create(each)
        await api.persist_errors(*[make.error(workflow_id=each.id) for _ in range(2)])
        for token in (None, "token"):
            subscription = make.subscription(workflow_id=each.id, external_token=token)
            await api.create_event_subscription(subscription)
            subscriptions.append(subscription)
    event.is_processed = True
    await api.create_event(event)
    await api.delete_workflow(instance.id)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(instance.id)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.list_execution_pointers(workflow_id=instance.id)
    assert not (await api.list_subscriptions(workflow_id=instance.id)).subscriptions
    for subscription in subscriptions[:2]:
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.get_subscription(subscription.id)
    assert not (await api.list_errors(workflow_id=instance.id)).errors
    # What is not its own stays.
    assert await api.get_event(event.id) == event
    assert await api.get_workflow_instance(other.id) == other
    assert len((await api.list_errors(workflow_id=other.id)).errors) == 2
    assert len((await api.list_subscriptions(workflow_id=other.id)).subscriptions) == 2
    # Its id and name can be taken anew.
    await api.create_new_workflow(
        make.instance(id=instance.id, name=instance.name, status=COMPLETE)
    )
    assert (await api.get_workflow_instance(instance.id)).execution_pointers == []


async def test_workflow_of_any_status_is_deleted_once(api: Api) -> None:
    for status in (RUNNABLE, SUSPENDED, COMPLETE, TERMINATED):
        instance = make.instance(status=status)
        await api.create_new_workflow(instance)
        await api.delete_workflow(instance.id)
        for _ in range(2):
            with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
                await api.delete_workflow(instance.id)
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.delete_workflow(instance.id, 1)


async def test_workflow_of_another_revision_is_not_deleted(api: Api) -> None:
    instance = make.full_instance(status=SUSPENDED)
    await api.create_new_workflow(instance)
    instance.revision = await api.persist_workflow(instance)
    subscription = make.subscription(workflow_id=instance.id)
    await api.create_event_subscription(subscription)
    for difference in (-1, 1):
        with fails("ABORTED", "REVISION_MISMATCH") as failure:
            await api.delete_workflow(instance.id, instance.revision + difference)
        assert failure.metadata["revision"] == str(instance.revision)
    assert await api.get_workflow_instance(instance.id) == instance
    assert await api.get_subscription(subscription.id) == subscription
    await api.delete_workflow(instance.id, instance.revision)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(instance.id)


async def test_request_id_of_a_deleted_workflow_is_forgotten(api: Api) -> None:
    """A workflow of the same id is another one: nothing was written to it yet."""
    instance = never_due(description="first")
    await api.create_new_workflow(instance)
    request_id = make.request_id()
    last = await api.persist_workflow(instance, request_id=request_id)
    await api.delete_workflow(instance.id)
    first = (await api.create_new_workflow(instance)).revision
    assert first > last
    assert await api.persist_workflow(instance, request_id=request_id) == first + 1
    assert (await api.get_workflow_instance(instance.id)).revision == first + 1


# ListEvents.


async def _listed_events(api: Api, **fields: Any) -> list[Event]:
    return [event for answer in await pages(api.list_events, **fields) for event in answer.events]


@pytest.mark.parametrize("order", [NEWEST, OLDEST], ids=ListOrder.Name)
async def test_events_that_pass_the_filter_in_order(api: Api, order: ListOrder.ValueType) -> None:
    name, keys = make.new_id("name"), ["", "key", "KEY"]
    events = [
        make.event(
            event_name=name,
            event_key=keys[i % 3],
            event_time=make.time(i // 4),
            is_processed=i % 2 == 0,
        )
        for i in range(24)
    ]
    await for_each(api.create_event, random.Random(1).sample(events, 24))
    events.sort(key=lambda e: (ns(e.event_time), e.id), reverse=order == NEWEST)
    filters: list[tuple[dict[str, Any], Callable[[Event], bool]]] = [
        ({}, lambda e: True),
        ({"event_key": "key"}, lambda e: e.event_key == "key"),
        ({"event_key": ""}, lambda e: not e.event_key),
        ({"is_processed": True}, lambda e: e.is_processed),
        ({"is_processed": False}, lambda e: not e.is_processed),
        ({"event_time_from": make.time(2)}, lambda e: ns(e.event_time) >= ns(make.time(2))),
        ({"event_time_before": make.time(2)}, lambda e: ns(e.event_time) < ns(make.time(2))),
        (
            {
                "event_key": "KEY",
                "is_processed": True,
                "event_time_from": make.time(1),
                "event_time_before": make.time(5),
            },
            lambda e: (
                e.event_key == "KEY"
                and e.is_processed
                and ns(make.time(1)) <= ns(e.event_time) < ns(make.time(5))
            ),
        ),
        ({"event_time_from": make.time(9)}, lambda e: False),
    ]
    for fields, passes in filters:
        for size in (1, 5, 0):
            found = await _listed_events(
                api, event_name=name, order=order, page_size=size, **fields
            )
            assert found == [e for e in events if passes(e)], fields


async def test_unspecified_order_of_events_is_the_newest_first(api: Api) -> None:
    name = make.new_id("name")
    events = [
        make.event(event_name=name, event_time=make.time(i), is_processed=True) for i in range(3)
    ]
    await for_each(api.create_event, events)
    assert await _listed_events(api, event_name=name, page_size=2) == events[::-1]


async def test_events_of_any_name_are_listed(api: Api) -> None:
    """Of a moment of the test's own."""
    at = make.long_ago()
    event = make.event(event_time=at, is_processed=True)
    await api.create_event(event)
    found = await _listed_events(api, event_time_from=at, event_time_before=make.later(at, us=1))
    assert event in found


async def test_events_are_listed_once_while_others_write(api: Api) -> None:
    name = make.new_id("name")
    stays = [
        make.event(event_name=name, event_time=make.time(i // 3), is_processed=True)
        for i in range(20)
    ]
    await for_each(api.create_event, stays)
    done = asyncio.Event()
    rng = random.Random(2)

    async def write() -> None:
        while not done.is_set():
            extra = make.event(
                event_name=name, event_time=make.time(rng.uniform(-3, 10)), is_processed=True
            )
            await api.create_event(extra)
            await api.mark_event_processed(rng.choice(stays).id)

    writer = asyncio.create_task(write())
    try:
        for order in (NEWEST, OLDEST):
            found = await _listed_events(api, event_name=name, order=order, page_size=2)
            ids = [e.id for e in found]
            assert len(ids) == len(set(ids))
            assert {e.id for e in stays} <= set(ids)
    finally:
        done.set()
        await writer


# ListSubscriptions.


async def _listed_subscriptions(api: Api, **fields: Any) -> list[EventSubscription]:
    answers = await pages(api.list_subscriptions, **fields)
    return [each for answer in answers for each in answer.subscriptions]


async def test_subscriptions_that_pass_the_filter_by_id(api: Api) -> None:
    workflows = [make.new_id("workflow") for _ in range(2)]
    name, keys = make.new_id("name"), ["", "key"]
    given = [
        make.subscription(
            workflow_id=workflows[i % 2],
            event_name=name if i % 3 else f"{name}2",
            event_key=keys[i // 2 % 2],
            external_token="token" if i % 4 == 0 else None,
            external_token_expiry=make.LAST_TIME if i % 8 == 0 else None,
        )
        for i in range(24)
    ]
    await for_each(api.create_event_subscription, random.Random(3).sample(given, 24))
    given.sort(key=lambda s: s.id)
    filters: list[tuple[dict[str, Any], Callable[[EventSubscription], bool]]] = [
        ({"workflow_id": workflows[0]}, lambda s: s.workflow_id == workflows[0]),
        ({"event_name": name}, lambda s: s.event_name == name),
        (
            {"event_name": name, "event_key": ""},
            lambda s: s.event_name == name and not s.event_key,
        ),
        (
            {"event_name": name, "event_key": "key"},
            lambda s: s.event_name == name and s.event_key == "key",
        ),
        ({"event_name": name, "event_key": "KEY"}, lambda s: False),
        (
            {"workflow_id": workflows[0], "held": True},
            lambda s: s.workflow_id == workflows[0] and s.HasField("external_token"),
        ),
        (
            {"event_name": name, "held": False},
            lambda s: s.event_name == name and not s.HasField("external_token"),
        ),
        (
            {
                "workflow_id": workflows[0],
                "event_name": name,
                "event_key": "key",
                "held": False,
            },
            lambda s: (
                s.workflow_id == workflows[0]
                and s.event_name == name
                and s.event_key == "key"
                and not s.HasField("external_token")
            ),
        ),
    ]
    for fields, passes in filters:
        for size in (1, 5, 0):
            found = await _listed_subscriptions(api, page_size=size, **fields)
            assert found == [s for s in given if passes(s)], fields


async def _created_subscription(api: Api) -> EventSubscription:
    subscription = make.subscription()
    await api.create_event_subscription(subscription)
    return subscription


async def test_subscription_is_held_until_it_expires_is_cleared_or_terminated(api: Api) -> None:
    workflow = make.new_id("workflow")
    subscription = make.subscription(workflow_id=workflow)
    await api.create_event_subscription(subscription)

    async def is_held() -> bool:
        [held, is_open] = [
            [s.id for s in await _listed_subscriptions(api, workflow_id=workflow, held=held)]
            for held in (True, False)
        ]
        assert await _listed_subscriptions(api, workflow_id=workflow)
        return subscription.id in held and subscription.id not in is_open

    async def is_open() -> bool:
        return not await is_held()

    assert await is_open()
    await api.set_subscription_token(subscription.id, "token")
    assert await is_held()
    await api.clear_subscription_token(subscription.id, "token")
    assert await is_open()
    brief = SetSubscriptionTokenRequest(
        id=subscription.id, token="token", duration=Duration(nanos=1_000_000)
    )
    assert (await api.subscriptions.SetSubscriptionToken(brief)).acquired
    await eventually(is_open)
    await api.terminate_subscription(subscription.id)
    assert not await _listed_subscriptions(api, workflow_id=workflow)


async def test_subscriptions_of_any_kind_are_listed(api: Api) -> None:
    """Each once, in whatever order the database has for ids."""
    subscription = await _created_subscription(api)
    ids = [s.id for s in await _listed_subscriptions(api, page_size=1000)]
    assert ids.count(subscription.id) == 1
    await api.terminate_subscription(subscription.id)


# ListErrors.


async def _listed_errors(api: Api, **fields: Any) -> list[ExecutionError]:
    return [error for answer in await pages(api.list_errors, **fields) for error in answer.errors]


async def test_errors_that_pass_the_filter_the_last_logged_first(api: Api) -> None:
    workflows = [make.new_id("workflow") for _ in range(2)]
    at = make.long_ago()
    errors = [
        make.error(
            workflow_id=workflows[i % 2],
            error_time=make.later(at, us=[3, 0, 2, 1][i % 4]),
            message=f"{i}",
        )
        for i in range(16)
    ]
    await api.persist_errors(*errors)
    errors.reverse()
    second, third = make.later(at, us=1), make.later(at, us=2)
    own = {"error_time_from": at, "error_time_before": make.later(at, us=4)}
    filters: list[tuple[dict[str, Any], Callable[[ExecutionError], bool]]] = [
        (own, lambda e: True),
        ({"workflow_id": workflows[0]}, lambda e: e.workflow_id == workflows[0]),
        (own | {"error_time_from": third}, lambda e: ns(e.error_time) >= ns(third)),
        (own | {"error_time_before": third}, lambda e: ns(e.error_time) < ns(third)),
        (
            {"workflow_id": workflows[1], "error_time_from": second},
            lambda e: e.workflow_id == workflows[1] and ns(e.error_time) >= ns(second),
        ),
        (
            {
                "workflow_id": workflows[1],
                "error_time_from": make.later(second, ns=999),
                "error_time_before": third,
            },
            lambda e: e.workflow_id == workflows[1] and ns(e.error_time) == ns(second),
        ),
        (own | {"error_time_before": at}, lambda e: False),
    ]
    for fields, passes in filters:
        for size in (1, 3, 0):
            found = await _listed_errors(api, page_size=size, **fields)
            assert found == [e for e in errors if passes(e)], fields
