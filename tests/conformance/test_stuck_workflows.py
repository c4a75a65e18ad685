"""What "stuck" means to ListWorkflows and CountWorkflows.

Not written since, due before, waiting for an event, with errors since.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.support import make
from tests.support.api import Api, pages
from tests.support.clock import database_time
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)

RUNNABLE: Final = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
SUSPENDED: Final = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
DUE: Final = make.long_ago()


class Own:
    """Workflows of a definition of the test's own."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.definition = make.new_id("definition")

    async def create(self, **fields: Any) -> WorkflowInstance:
        instance = make.instance(workflow_definition_id=self.definition, **fields)
        await self.api.create_new_workflow(instance)
        return instance

    async def found(self, **filter_: Any) -> list[str]:
        """The ids of those that pass, oldest first; counted, too, and in all orders and sizes."""
        given = WorkflowFilter(workflow_definition_id=self.definition, **filter_)
        found: list[list[str]] = []
        for order in (ListOrder.LIST_ORDER_OLDEST_FIRST, ListOrder.LIST_ORDER_NEWEST_FIRST):
            for size, view in (
                (1, WorkflowView.WORKFLOW_VIEW_HEADER),
                (0, WorkflowView.WORKFLOW_VIEW_FULL),
            ):
                answers = await pages(
                    self.api.list_workflows, filter=given, order=order, page_size=size, view=view
                )
                ids = [instance.id for answer in answers for instance in answer.instances]
                found.append(ids[::-1] if order == ListOrder.LIST_ORDER_NEWEST_FIRST else ids)
        assert all(ids == found[0] for ids in found), found
        counts = await self.api.count_workflows(workflow_definition_id=self.definition, **filter_)
        assert sum(each.count for each in counts) == len(found[0])
        return found[0]


@pytest.fixture
def own(api: Api) -> Own:
    return Own(api)


async def test_written_before(own: Own) -> None:
    created = make.time(-3600)
    never_written = await own.create(create_time=created, status=SUSPENDED)
    written = await own.create(create_time=make.time(-3599), status=SUSPENDED)
    ended = await own.create(create_time=make.time(-3598), status=SUSPENDED)
    between = await database_time(own.api)
    await own.api.persist_workflow(written)
    ended.status = COMPLETE
    await own.api.persist_workflow(ended)
    after = await database_time(own.api)
    assert await own.found(written_before=created) == []
    one_later = make.later(created, us=1)
    assert await own.found(written_before=one_later) == [never_written.id]
    assert await own.found(written_before=between) == [never_written.id]
    assert await own.found(written_before=after) == [never_written.id, written.id, ended.id]
    assert await own.found(written_before=after, statuses=[COMPLETE]) == [ended.id]
    assert await own.found(written_before=between, statuses=[COMPLETE]) == []


async def test_due_before(own: Own) -> None:
    due = make.epoch_ms(DUE)
    first = await own.create(status=RUNNABLE, next_execution=due, create_time=make.time(1))
    second = await own.create(status=RUNNABLE, next_execution=due + 1, create_time=make.time(0))
    await own.create(status=SUSPENDED, next_execution=due)
    await own.create(status=COMPLETE, next_execution=due)
    unscheduled = await own.create(status=RUNNABLE)
    unscheduled.ClearField("next_execution")
    await own.api.persist_workflow(unscheduled)
    assert await own.found(due_before=DUE) == []
    # Truncated to milliseconds.
    assert await own.found(due_before=make.later(DUE, ns=999_999)) == []
    assert await own.found(due_before=make.later(DUE, ms=1)) == [first.id]
    assert await own.found(due_before=make.later(DUE, ms=2)) == [second.id, first.id]
    later = make.later(DUE, ms=2)
    assert await own.found(due_before=later, statuses=[RUNNABLE]) == [second.id, first.id]
    assert await own.found(due_before=later, statuses=[SUSPENDED, COMPLETE]) == []
    for instance in (first, second):  # so that nobody comes across them
        instance.status = COMPLETE
        await own.api.persist_workflow(instance)
    assert await own.found(due_before=later) == []


async def test_waiting_for_an_event(own: Own) -> None:
    name = make.new_id("name")
    workflows = [await own.create(status=SUSPENDED, create_time=make.time(i)) for i in range(4)]
    keys = ["k", "", "k", "other"]
    for instance, key in zip(workflows, keys, strict=True):
        for id_ in ("a", "b"):  # twice: it is one workflow still
            await own.api.create_event_subscription(
                make.subscription(
                    id=f"{id_}-{instance.id}",
                    workflow_id=instance.id,
                    event_name=name,
                    event_key=key,
                )
            )
    # Of a workflow that is not there.
    await own.api.create_event_subscription(make.subscription(event_name=name, event_key="k"))
    await own.api.set_subscription_token(f"a-{workflows[0].id}", "token")  # held
    await own.create(status=SUSPENDED, execution_pointers=[make.full_pointer(event_name=name)])
    ids = [instance.id for instance in workflows]
    assert await own.found(waiting_event_name=name) == ids
    assert await own.found(waiting_event_name=name, waiting_event_key="k") == [ids[0], ids[2]]
    assert await own.found(waiting_event_name=name, waiting_event_key="") == [ids[1]]
    assert await own.found(waiting_event_name=name, waiting_event_key="K") == []
    assert await own.found(waiting_event_name=name[:-1]) == []
    assert await own.found(waiting_event_name=name, statuses=[RUNNABLE]) == []
    assert await own.found(waiting_event_name=name, statuses=[SUSPENDED, COMPLETE]) == ids
    for id_ in ("a", "b"):
        await own.api.terminate_subscription(f"{id_}-{ids[0]}")
    assert await own.found(waiting_event_name=name) == ids[1:]


async def test_errors_since(own: Own) -> None:
    at = make.time()
    workflows = [await own.create(status=SUSPENDED, create_time=make.time(i)) for i in range(3)]
    ids = [instance.id for instance in workflows]
    for instance, times in zip(workflows, ([0, 5, 6], [5], []), strict=True):
        await own.api.persist_errors(
            *(make.error(workflow_id=instance.id, error_time=make.later(at, us=us)) for us in times)
        )
    assert await own.found(error_time_from=at) == ids[:2]
    assert await own.found(error_time_from=make.later(at, us=5)) == ids[:2]
    assert await own.found(error_time_from=make.later(at, us=6)) == ids[:1]
    assert await own.found(error_time_from=make.later(at, us=7)) == []
    assert await own.found(error_time_from=at, statuses=[COMPLETE]) == []


async def test_all_conditions_together(own: Own) -> None:
    """Each leaves out one of the workflows."""
    name, at = make.new_id("name"), make.time()
    good = {"status": RUNNABLE, "next_execution": make.epoch_ms(DUE)}
    all_ = [
        await own.create(**{**good, "create_time": make.time(-5), **other})
        for other in (
            {},
            {"create_time": make.LAST_TIME},
            {"next_execution": make.epoch_ms(DUE) + 1},
            {},
            {},
        )
    ]
    for i, instance in enumerate(all_):
        if i != 3:
            await own.api.create_event_subscription(
                make.subscription(workflow_id=instance.id, event_name=name, event_key="k")
            )
        if i != 4:
            await own.api.persist_errors(make.error(workflow_id=instance.id, error_time=at))
    stuck: dict[str, Any] = {
        "statuses": [RUNNABLE],
        "written_before": make.time(),
        "due_before": make.later(DUE, ms=1),
        "waiting_event_name": name,
        "waiting_event_key": "k",
        "error_time_from": at,
    }
    assert await own.found(**stuck) == [all_[0].id]
    for without in ("written_before", "due_before", "waiting_event_key", "error_time_from"):
        less = {field: value for field, value in stuck.items() if field != without}
        expected = 1 if without == "waiting_event_key" else 2
        assert len(await own.found(**less)) == expected, without
    for instance in all_:
        instance.status = COMPLETE
        await own.api.persist_workflow(instance)
