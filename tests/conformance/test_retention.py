"""Retention policies: what goes, what stays, and the report of what there is.

In namespaces of the tests' own: a policy is that of a whole namespace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, connect, for_each
from tests.support.expect import eventually, invalid
from tests.support.scene import create_namespace, delete_namespace, found
from wfe.persistence.v1.store_pb2 import (
    GetRetentionPolicyResponse,
    RetentionCounts,
    RetentionPolicy,
    WorkflowRetention,
)
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowStatus

RUNNABLE: Final = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
TERMINATED: Final = WorkflowStatus.WORKFLOW_STATUS_TERMINATED
DAY: Final = 86_400


def days(number: float) -> Duration:
    return Duration(seconds=int(number * DAY))


def ended(days_ago: float, status: WorkflowStatus.ValueType = COMPLETE, **fields: Any) -> Any:
    """A workflow that ended so many days ago."""
    return make.instance(
        **{
            "status": status,
            "create_time": make.from_now(-100 * DAY),
            "complete_time": make.from_now(-days_ago * DAY),
            **fields,
        }
    )


@pytest.fixture
async def own(api: Api, target: str) -> AsyncIterator[Api]:
    """A namespace of the test's own."""
    name = make.new_namespace()
    await create_namespace(api, name)
    async with connect(target, namespace=name) as channel:
        yield Api(channel)
    await delete_namespace(api, name)


async def is_there(call: Awaitable[object]) -> bool:
    return await found(call) is not None


async def left(own_api: Api, *instances: WorkflowInstance) -> list[bool]:
    return [await is_there(own_api.get_workflow_instance(each.id)) for each in instances]


async def run_all(own_api: Api) -> GetRetentionPolicyResponse:
    """Have the policy applied, and wait until it has been."""
    before = (await own_api.get_retention_policy()).complete_time

    async def is_done() -> bool:
        done = (await own_api.get_retention_policy()).complete_time
        return done != before

    assert not (await own_api.run_retention()).HasField("counts")
    await eventually(is_done)
    return await own_api.get_retention_policy()


async def test_a_policy_is_replaced_and_returned(own: Api) -> None:
    api = own
    none = await api.get_retention_policy()
    assert none == GetRetentionPolicyResponse(policy=RetentionPolicy())
    fields: dict[str, Any] = {
        "workflows": [
            WorkflowRetention(complete_age=days(30), terminated_age=days(7)),
            WorkflowRetention(workflow_definition_id="audited"),
            WorkflowRetention(
                workflow_definition_id="short", complete_age=Duration(seconds=60, nanos=1999)
            ),
        ],
        "processed_event_age": days(1),
        "overdue_command_age": make.LONGEST_AGE,
    }
    for _ in range(2):
        await api.set_retention_policy(**fields)
    kept = await api.get_retention_policy()
    expected = RetentionPolicy(**fields)
    expected.workflows[2].complete_age.nanos = 1000
    assert kept.policy == expected
    assert kept.HasField("set_time")
    await api.set_retention_policy(error_age=days(2))
    assert (await api.get_retention_policy()).policy == RetentionPolicy(error_age=days(2))
    await api.set_retention_policy()
    assert await api.get_retention_policy() == none


async def test_workflows_go_by_their_status_definition_and_age(own: Api) -> None:
    api = own
    going = [
        ended(31),
        ended(8, TERMINATED),
        ended(3, workflow_definition_id="short"),
    ]
    root = ended(40)
    going += [root, ended(40, root_workflow_id=root.id, workflow_definition_id="audited")]
    busy = ended(40)
    staying = [
        ended(29),
        ended(6, TERMINATED),
        ended(1, workflow_definition_id="short"),
        ended(99, TERMINATED, workflow_definition_id="short"),
        ended(99, workflow_definition_id="audited"),
        make.instance(create_time=make.from_now(-99 * DAY), status=RUNNABLE),
        busy,
        make.instance(root_workflow_id=busy.id, status=RUNNABLE),
    ]
    await for_each(api.create_new_workflow, going + staying)
    await api.set_retention_policy(
        workflows=[
            WorkflowRetention(complete_age=days(30), terminated_age=days(7)),
            WorkflowRetention(workflow_definition_id="short", complete_age=days(2)),
            WorkflowRetention(workflow_definition_id="audited"),
        ]
    )
    would = (await api.run_retention(dry_run=True)).counts
    assert would == RetentionCounts(workflows=5)
    assert all(await left(api, *going, *staying))
    done = await run_all(api)
    assert await left(api, *going, *staying) == [False] * len(going) + [True] * len(staying)
    assert done.deleted_rows == 5


async def test_events_errors_and_commands_go_by_their_age(own: Api) -> None:
    api = own
    old, new = make.from_now(-3 * DAY), make.from_now(-1 * DAY)
    events = [
        make.event(event_time=old, is_processed=True),
        make.event(event_time=old),
        make.event(event_time=new, is_processed=True),
    ]
    await for_each(api.create_event, events)
    await api.persist_errors(make.error(error_time=old), make.error(error_time=new))
    held, late, soon = make.command(), make.command(), make.command(execute_time=new.seconds * 1000)
    await api.schedule_command(held)
    assert len(await api.claim_commands(lease_duration=Duration(seconds=3600))) == 1
    await api.schedule_command(late)
    await api.schedule_command(soon)
    await api.set_retention_policy(
        processed_event_age=days(2), error_age=days(2), overdue_command_age=days(2)
    )
    counts = (await api.run_retention(dry_run=True)).counts
    assert counts == RetentionCounts(events=1, errors=1, commands=1)
    assert (await run_all(api)).deleted_rows == 3
    assert [await is_there(api.get_event(each.id)) for each in events] == [False, True, True]
    [error] = (await api.list_errors()).errors
    assert error.error_time.seconds == new.seconds
    kept = {each.command.data for each in (await api.list_commands()).commands}
    assert kept == {held.data, soon.data}


async def test_without_a_policy_nothing_goes(own: Api) -> None:
    api = own
    old = ended(99)
    await api.create_new_workflow(old)
    await api.set_retention_policy(workflows=[WorkflowRetention(complete_age=days(1))])
    await api.set_retention_policy()
    assert (await api.run_retention(dry_run=True)).counts == RetentionCounts()
    await api.run_retention()
    assert await left(api, old) == [True]


async def test_a_count_is_of_about_as_many_rows_as_were_asked_for(own: Api) -> None:
    api = own
    await for_each(api.create_new_workflow, [ended(9) for _ in range(12)])
    await api.set_retention_policy(
        workflows=[WorkflowRetention(complete_age=days(1))], error_age=days(1)
    )
    counts = (await api.run_retention(dry_run=True, max_rows=5)).counts
    assert counts == RetentionCounts(workflows=5, is_partial=True)
    assert (await api.run_retention(dry_run=True)).counts == RetentionCounts(workflows=12)


@pytest.mark.parametrize(
    ("definitions", "path", "reason"),
    [
        (["d"] * 2, "policy.workflows[1].workflow_definition_id", "DUPLICATE"),
        ([""] * 2, "policy.workflows[1].workflow_definition_id", "DUPLICATE"),
        ([f"d{n}" for n in range(101)], "policy.workflows", "NUMBER_RANGE"),
    ],
)
async def test_a_policy_has_one_rule_for_a_definition_and_not_too_many(
    api: Api, definitions: list[str], path: str, reason: str
) -> None:
    before = await api.get_retention_policy()
    rules = [WorkflowRetention(workflow_definition_id=each) for each in definitions]
    with invalid(path, reason=reason):
        await api.set_retention_policy(workflows=rules)
    assert (await api.get_retention_policy()).policy == before.policy


async def test_the_report_has_every_table_and_what_would_go(own: Api) -> None:
    api = own
    await for_each(api.create_new_workflow, [ended(9) for _ in range(50)])

    async def are_counted() -> bool:
        report = await api.get_storage_report()
        return any(t.name == "workflows" and t.estimated_rows == 50 for t in report.tables)

    await eventually(are_counted)
    none = await api.get_storage_report()
    assert (none.freed, none.freed_bytes) == (RetentionCounts(), 0)
    await api.set_retention_policy(workflows=[WorkflowRetention(complete_age=days(1))])
    report = await api.get_storage_report()
    assert report.freed == RetentionCounts(workflows=50)
    sizes = [each.table_bytes + each.index_bytes for each in report.tables]
    assert sizes == sorted(sizes, reverse=True)
    [workflows] = [each for each in report.tables if each.name == "workflows"]
    assert workflows.table_bytes > 0 < workflows.index_bytes
    assert 0 < report.freed_bytes <= workflows.table_bytes + workflows.index_bytes
    assert (await api.get_storage_report(max_rows=5)).freed.is_partial
