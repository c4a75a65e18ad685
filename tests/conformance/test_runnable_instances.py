"""GetRunnableInstances: what is due, soonest first, in pages.

Tests use times long past, so that what others have stored is not due by then, and still look at
their own workflows only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, for_each, pages
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowStatus


class Due:
    """Makes workflows, and in the end sees to it that none is due any more."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._made: list[WorkflowInstance] = []

    async def __call__(self, at: Timestamp, *, ms: int = 0, **fields: object) -> WorkflowInstance:
        """A new workflow to be run at this time, plus so many milliseconds."""
        given = {"next_execution": make.epoch_ms(at) + ms} | fields
        instance = make.instance(**given)
        await self._api.create_new_workflow(instance)
        self._made.append(instance)
        return instance

    async def stop(self, instance: WorkflowInstance) -> None:
        """Make a workflow no longer runnable."""
        instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
        await self._api.persist_workflow(instance)

    async def stop_all(self) -> None:
        await for_each(self.stop, self._made)


@pytest.fixture
async def due(api: Api) -> AsyncIterator[Due]:
    due = Due(api)
    yield due
    await due.stop_all()


async def _listed(
    api: Api, instances: Sequence[WorkflowInstance], as_at: Timestamp | None, page_size: int = 0
) -> list[WorkflowInstance]:
    """Which of these are listed, in the list's order."""
    own = {instance.id: instance for instance in instances}
    answers = await pages(api.get_runnable_instances, as_at=as_at, page_size=page_size)
    return [own[id_] for answer in answers for id_ in answer.instance_ids if id_ in own]


@pytest.mark.parametrize(
    "status",
    [s for s in WorkflowStatus.values() if s != WorkflowStatus.WORKFLOW_STATUS_UNSPECIFIED],
)
async def test_only_runnable_ones_are_listed(
    api: Api, due: Due, status: WorkflowStatus.ValueType
) -> None:
    at = make.long_ago()
    instance = await due(at, status=status)
    is_listed = bool(await _listed(api, [instance], at))
    assert is_listed == (status == WorkflowStatus.WORKFLOW_STATUS_RUNNABLE)


async def test_what_is_due_later_is_not_listed(api: Api, due: Due) -> None:
    at = make.long_ago()
    before, now, after = [await due(at, ms=ms) for ms in (-1, 0, 1)]
    assert await _listed(api, [before, now, after], at) == [before, now]


async def test_as_at_is_truncated_to_milliseconds(api: Api, due: Due) -> None:
    at = make.long_ago()
    instance = await due(at)
    assert await _listed(api, [instance], make.later(at, ns=-1)) == []
    assert await _listed(api, [instance], make.later(at, ns=999_999)) == [instance]
    instance = await due(at, ms=1)
    assert await _listed(api, [instance], make.later(at, ns=999_999)) == []


async def test_absent_next_execution_is_never_due(api: Api, due: Due) -> None:
    instance = await due(Timestamp(), next_execution=None)
    assert await _listed(api, [instance], make.LAST_TIME, 1000) == []


async def test_zero_next_execution_is_the_epoch(api: Api, due: Due) -> None:
    instance = await due(Timestamp(), next_execution=0)
    assert await _listed(api, [instance], make.later(Timestamp(), ns=-1), 1000) == []
    assert await _listed(api, [instance], Timestamp(), 1000) == [instance]


async def test_without_as_at_the_databases_clock_counts(api: Api, due: Due) -> None:
    past = await due(make.from_now(-3600))
    future = await due(make.from_now(3600))
    assert await _listed(api, [past, future], None, 1000) == [past]


async def test_least_and_greatest_next_execution(api: Api, due: Due) -> None:
    least, greatest = [await due(Timestamp(), next_execution=n) for n in (-(2**63), 2**63 - 1)]
    assert await _listed(api, [least, greatest], make.long_ago()) == [least]


async def test_only_those_of_the_definitions_asked_for_are_listed(api: Api, due: Due) -> None:
    """Several applications on one store don't pick up each other's workflows."""
    at = make.long_ago()
    mine, other, third = (make.new_id("definition") for _ in range(3))
    made = [
        await due(at, ms=-n, workflow_definition_id=definition)
        for n, definition in enumerate([mine, other, third, mine, other, third])
    ]
    soonest_first = made[::-1]

    async def listed(*definitions: str, **fields: Any) -> list[str]:
        answers = await pages(
            api.get_runnable_instances, workflow_definition_ids=definitions, as_at=at, **fields
        )
        return [id_ for answer in answers for id_ in answer.instance_ids]

    def of(*definitions: str) -> list[str]:
        return [w.id for w in soonest_first if w.workflow_definition_id in definitions]

    for page_size in (0, 1, 2, 3):
        assert await listed(mine, page_size=page_size) == of(mine)
        assert await listed(other, mine, page_size=page_size) == of(mine, other)
    assert await listed(mine, mine) == of(mine)
    assert await listed(make.new_id("definition")) == []
    assert await _listed(api, made, at) == soonest_first


async def test_definitions_are_compared_byte_by_byte(api: Api, due: Due) -> None:
    at = make.long_ago()
    prefix = make.new_id("definition")
    names = [text for pair in make.ALIKE for text in make.alike(*pair)]
    names += [prefix + end for end in ("", '"', "\\", '\\"', ",", "{}", "\n", "NULL", "'")]
    made = [await due(at, workflow_definition_id=name) for name in names]
    for workflow in made:
        answers = await pages(
            api.get_runnable_instances,
            workflow_definition_ids=[workflow.workflow_definition_id],
            as_at=at,
        )
        assert [id_ for answer in answers for id_ in answer.instance_ids] == [workflow.id]


async def test_definition_does_not_make_workflows_due(api: Api, due: Due) -> None:
    at, definition = make.long_ago(), make.new_id("definition")
    due_now = await due(at, workflow_definition_id=definition)
    await due(at, ms=1, workflow_definition_id=definition)
    await due(at, workflow_definition_id=definition, next_execution=None)
    complete = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
    await due(at, workflow_definition_id=definition, status=complete)
    answer = await api.get_runnable_instances(workflow_definition_ids=[definition], as_at=at)
    assert list(answer.instance_ids) == [due_now.id]


async def test_soonest_comes_first(api: Api, due: Due) -> None:
    at = make.long_ago()
    instances = [await due(at, ms=ms) for ms in (-3, 0, -5000, -1, -2, -100_000)]
    by_time = sorted(instances, key=lambda i: i.next_execution)
    assert await _listed(api, instances, at) == by_time
    assert await _listed(api, instances, at, 1) == by_time


async def test_equal_times_come_in_the_order_of_ids(api: Api, due: Due) -> None:
    at = make.long_ago()
    instances = [await due(at) for _ in range(6)]
    for page_size in (0, 2):
        listed = await _listed(api, instances, at, page_size)
        assert listed == sorted(instances, key=lambda i: i.id.encode())


@pytest.mark.parametrize("page_size", [1, 3, 4, 9, 10, 11])
async def test_pages_are_complete_and_without_repeats(api: Api, due: Due, page_size: int) -> None:
    at = make.long_ago()
    instances = [await due(at, ms=-(n // 3)) for n in range(10)]
    answers = await pages(api.get_runnable_instances, as_at=at, page_size=page_size)
    assert all(len(answer.instance_ids) <= page_size for answer in answers)
    ids = [id_ for answer in answers for id_ in answer.instance_ids]
    assert len(set(ids)) == len(ids)
    assert {i.id for i in instances} <= set(ids)


async def test_one_that_stops_being_runnable_between_two_pages_is_left_out(
    api: Api, due: Due
) -> None:
    at = make.long_ago()
    instances = [await due(at, ms=n) for n in range(6)]
    own = [i.id for i in instances]
    token, listed = "", list[str]()
    while len(listed) < 2:
        answer = await api.get_runnable_instances(
            as_at=make.later(at, ms=10), page_size=1, page_token=token
        )
        token = answer.next_page_token
        listed += [id_ for id_ in answer.instance_ids if id_ in own]
    await due.stop(instances[3])
    answers = await pages(
        api.get_runnable_instances, token, as_at=make.later(at, ms=10), page_size=1
    )
    listed += [id_ for answer in answers for id_ in answer.instance_ids if id_ in own]
    assert listed == [*own[:3], *own[4:]]


async def test_persist_changes_when_it_is_due(api: Api, due: Due) -> None:
    at = make.long_ago()
    instance = await due(at)
    instance.next_execution += 1
    await api.persist_workflow(instance)
    assert await _listed(api, [instance], at) == []
    instance.next_execution -= 1
    await api.persist_workflow(instance)
    assert await _listed(api, [instance], at) == [instance]
    await due.stop(instance)
    assert await _listed(api, [instance], at) == []


@pytest.fixture(scope="module")
async def thousand_and_one(api: Api) -> AsyncIterator[Timestamp]:
    """When 1001 workflows, which are no longer runnable afterwards, are due."""
    at = make.long_ago()
    due = Due(api)
    await for_each(due, [at] * 1001)
    yield at
    await due.stop_all()


@pytest.mark.parametrize(
    ("page_size", "length"), [(0, 100), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
async def test_default_and_maximum_page_size(
    api: Api, thousand_and_one: Timestamp, page_size: int, length: int
) -> None:
    answer = await api.get_runnable_instances(as_at=thousand_and_one, page_size=page_size)
    assert len(answer.instance_ids) == length
    assert answer.next_page_token


async def test_pages_of_maximum_size_are_complete(api: Api, thousand_and_one: Timestamp) -> None:
    answers = await pages(api.get_runnable_instances, as_at=thousand_and_one, page_size=1000)
    ids = [id_ for answer in answers for id_ in answer.instance_ids]
    assert len(set(ids)) == len(ids) >= 1001
    assert all(a.instance_ids and b.instance_ids for a, b in pairwise(answers))
