"""WatchWorkflows: every workflow that changes comes, none is left out, resumable."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, invalid
from wfe.persistence.v1.workflow_pb2 import (
    WatchWorkflowsRequest,
    WatchWorkflowsResponse,
    WorkflowChange,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)

RUNNABLE = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
SUSPENDED = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
COMPLETE = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
HEADER = WorkflowView.WORKFLOW_VIEW_HEADER
SECOND = Duration(seconds=1)
LONG = Duration(seconds=60)


@pytest.fixture
def definition() -> str:
    """That of the workflows of one test."""
    return make.new_id("definition")


def workflow(definition: str, **fields: Any) -> WorkflowInstance:
    fields = {"workflow_definition_id": definition, "status": SUSPENDED} | fields
    return make.instance(**fields)


async def following(responses: AsyncIterator[WatchWorkflowsResponse]) -> WorkflowChange:
    """The next change of a stream."""
    return (await changes(responses, 1))[0]


async def changes(
    responses: AsyncIterator[WatchWorkflowsResponse], count: int
) -> list[WorkflowChange]:
    """The next changes of a stream."""
    found: list[WorkflowChange] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += (await anext(responses)).changes
    assert len(found) == count
    return found


async def since(
    api: Api, cursor: str, definition: str, passing: dict[str, Any] | None = None, **filter_: Any
) -> list[WorkflowChange]:
    """The changes after a cursor, up to now, of workflows with this definition. `passing`: fields
    of a workflow that passes the filter; such a one is created as the last."""
    last = workflow(definition, id=f"last {make.new_id()}", **(passing or {}))
    await api.create(last)
    found: list[WorkflowChange] = []
    async with (
        asyncio.timeout(30),
        api.watch_workflows(
            after=cursor, workflow_definition_id=definition, **filter_
        ) as responses,
    ):
        while True:
            for each in (await anext(responses)).changes:
                if each.instance.id == last.id:
                    return found
                if not each.instance.id.startswith("last "):
                    found.append(each)


def header(instance: WorkflowInstance, **fields: Any) -> WorkflowInstance:
    """A workflow as it comes."""
    found = WorkflowInstance()
    found.CopyFrom(instance)
    found.MergeFrom(WorkflowInstance(**fields))
    del found.execution_pointers[:]
    found.view = HEADER
    return found


async def test_each_kind_of_write_comes_with_the_whole_header(api: Api, definition: str) -> None:
    instance = make.full_instance(
        workflow_definition_id=definition, status=SUSPENDED, execution_pointers=[make.pointer()]
    )
    async with api.watch_workflows(workflow_definition_id=definition) as responses:
        first = await anext(responses)
        assert first.cursor
        assert not first.changes

        instance.revision = await api.create(instance)
        created = await following(responses)
        assert created.instance == header(instance)
        assert (created.passes, created.deleted) == (True, False)

        instance.description = "persisted"
        instance.revision = await api.persist_workflow(instance)
        assert (await following(responses)).instance == header(instance)

        instance.description = "persisted with subscriptions"
        answer = await api.persist_workflow_with_subscriptions(instance, [make.subscription()])
        instance.revision = answer.revision
        assert (await following(responses)).instance == header(instance)

        instance.description = "committed"
        instance.revision = (await api.commit_workflow(instance=instance)).revision
        assert (await following(responses)).instance == header(instance)

        instance.data_json = '{"patched": true}'
        patch = WorkflowPatch(
            id=instance.id, header=instance, header_mask=FieldMask(paths=["data_json"])
        )
        committed = await api.commit_workflow(patch=patch, expected_revision=instance.revision)
        instance.revision = committed.revision
        changed = await following(responses)
        assert changed.instance == header(instance)
        assert changed.passes

        await api.delete_workflow(instance.id)
        deleted = await following(responses)
        assert (deleted.passes, deleted.deleted) == (False, True)
        assert deleted.instance == WorkflowInstance(
            id=instance.id,
            name=instance.name,
            root_workflow_id=instance.root_workflow_id,
            workflow_definition_id=definition,
            version=instance.version,
            reference=instance.reference,
            status=SUSPENDED,
            create_time=instance.create_time,
            complete_time=instance.complete_time,
            revision=instance.revision,
            view=HEADER,
        )


async def test_purged_workflows_come_as_deleted(api: Api, definition: str) -> None:
    instances = [
        workflow(definition, status=COMPLETE, complete_time=make.long_ago()) for _ in range(3)
    ]
    for each in instances:
        await api.create(each)
    async with api.watch_workflows(workflow_definition_id=definition) as responses:
        await anext(responses)
        await api.purge_workflows(ended_before=make.time(), workflow_definition_id=definition)
        found = await changes(responses, 3)
    assert {each.instance.id for each in found} == {each.id for each in instances}
    assert all(each.deleted for each in found)


async def test_what_a_rejected_write_leaves_as_it_was_does_not_come(
    api: Api, definition: str
) -> None:
    instance = workflow(definition)
    async with api.watch_workflows(workflow_definition_id=definition) as responses:
        await anext(responses)
        revision = await api.create(instance)
        await following(responses)
        with fails("ABORTED", "REVISION_MISMATCH"):
            await api.persist_workflow(instance, expected_revision=revision + 7)
        await api.create(instance)  # again
        other = workflow(definition)
        await api.create(other)
        assert (await following(responses)).instance.id == other.id


async def test_who_stops_passing_comes_once_more(api: Api, definition: str) -> None:
    instance = workflow(definition, status=RUNNABLE)
    async with api.watch_workflows(
        workflow_definition_id=definition, statuses=[RUNNABLE]
    ) as responses:
        await anext(responses)
        await api.create(instance)
        assert (await following(responses)).passes
        instance.status = SUSPENDED
        await api.persist_workflow(instance)
        left = await following(responses)
        assert (left.instance.status, left.passes) == (SUSPENDED, False)
        instance.description = "nobody sees this"
        await api.persist_workflow(instance)
        instance.status = RUNNABLE
        revision = await api.persist_workflow(instance)
        back = await following(responses)
        assert (back.instance.revision, back.passes) == (revision, True)


async def test_every_criterion_is_asked_of_what_is_and_of_what_was(
    api: Api, definition: str
) -> None:
    """Each workflow passes before the change, after it, or neither; the filter names one field."""
    root = make.new_id("root")
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        # the filter, fields that pass it, fields that do not
        ({"statuses": [RUNNABLE, COMPLETE]}, {"status": RUNNABLE}, {"status": SUSPENDED}),
        ({"version": 7}, {"version": 7}, {"version": 8}),
        ({"version": 0}, {"version": 0}, {"version": 1}),
        ({"reference": "r"}, {"reference": "r"}, {"reference": "s"}),
        ({"root_workflow_id": root}, {"root_workflow_id": root}, {"root_workflow_id": "x"}),
    ]
    for filter_, passing, other in cases:
        cursor = await api.change_cursor()
        one, two, three = (workflow(definition, **fields) for fields in (passing, other, other))
        for each in (one, two, three):
            await api.create(each)
        middle = await api.change_cursor()
        created = await since(api, cursor, definition, passing, **filter_)
        assert [(each.instance.id, each.passes) for each in created] == [(one.id, True)], filter_
        for each, fields in ((one, other), (two, passing), (three, other)):
            each.MergeFrom(WorkflowInstance(**fields))
            for name, value in fields.items():
                setattr(each, name, value)
            await api.persist_workflow(each)
        changed = await since(api, middle, definition, passing, **filter_)
        assert {(each.instance.id, each.passes) for each in changed} == {
            (one.id, False),
            (two.id, True),
        }, filter_
    prefix = make.new_id("name")
    cursor = await api.change_cursor()
    named, other_name = workflow(definition, name=f"{prefix}-a"), workflow(definition)
    await api.create(named)
    await api.create(other_name)
    found = await since(api, cursor, definition, {"name": f"{prefix}-z"}, name_prefix=prefix)
    assert [each.instance.id for each in found] == [named.id]
    async with api.watch_workflows(after=cursor, workflow_id=other_name.id) as responses:
        assert (await following(responses)).instance.id == other_name.id


async def test_every_cursor_resumes_behind_its_change(api: Api, definition: str) -> None:
    instances = [workflow(definition) for _ in range(5)]
    cursor = await api.change_cursor()
    for each in instances:
        await api.create(each)
    ids = [each.id for each in instances]
    found = await since(api, cursor, definition)
    assert [each.instance.id for each in found] == ids
    for n, change in enumerate(found, 1):
        rest = await since(api, change.cursor, definition)
        assert [one.instance.id for one in rest] == ids[n:]


async def test_a_watcher_that_was_cut_off_sees_the_last_state_of_all(
    api: Api, definition: str
) -> None:
    """It resumes after every few changes, while workflows are written and deleted."""
    instances = [workflow(definition) for _ in range(20)]
    cursor = await api.change_cursor()

    async def write(instance: WorkflowInstance, seed: int) -> int | None:
        """Its last revision; None: it was deleted."""
        chance = random.Random(seed)
        revision = await api.create(instance)
        for _ in range(10):
            instance.status = chance.choice([RUNNABLE, SUSPENDED, COMPLETE])
            revision = await api.persist_workflow(instance)
        if seed % 4:
            return revision
        await api.delete_workflow(instance.id)
        return None

    seen: dict[str, int | None] = {}
    known: set[str] = set()  # those that are runnable, for who follows only them

    async def follow(**filter_: Any) -> None:
        at = cursor
        while True:
            async with api.watch_workflows(
                after=at, workflow_definition_id=definition, heartbeat=SECOND, **filter_
            ) as responses:
                fresh = 0
                while fresh < 7:
                    response = await anext(responses)
                    for each in response.changes:
                        fresh += 1
                        if filter_:
                            (known.add if each.passes else known.discard)(each.instance.id)
                        else:
                            seen[each.instance.id] = (
                                None if each.deleted else each.instance.revision
                            )
                    at = response.cursor
                    if seen == expected and known == runnable:
                        return

    expected: dict[str, int | None] = {"": 0}
    runnable: set[str] = set()
    followers = [
        asyncio.create_task(follow()), asyncio.create_task(follow(statuses=[RUNNABLE]))
    ]  # fmt: skip
    last = await asyncio.gather(*(write(each, n) for n, each in enumerate(instances)))
    runnable |= {
        each.id
        for each, revision in zip(instances, last, strict=True)
        if revision is not None and each.status == RUNNABLE
    }
    del expected[""]
    expected |= {each.id: revision for each, revision in zip(instances, last, strict=True)}
    async with asyncio.timeout(60):
        await asyncio.gather(*followers)


async def test_heartbeats_come_with_a_cursor_beyond_what_the_filter_leaves_out(
    api: Api, definition: str
) -> None:
    other = workflow(definition)
    async with (
        asyncio.timeout(30),
        api.watch_workflows(workflow_id="nobody", heartbeat=SECOND) as responses,
    ):
        cursor = (await anext(responses)).cursor
        await api.create(other)
        while await since(api, cursor, definition):
            heartbeat = await anext(responses)
            assert not heartbeat.changes
            cursor = heartbeat.cursor


async def test_list_and_watch_from_the_first_response_on_is_complete(
    api: Api, definition: str
) -> None:
    before, after = workflow(definition), workflow(definition)
    await api.create(before)
    async with api.watch_workflows(workflow_definition_id=definition, heartbeat=LONG) as responses:
        await anext(responses)
        await api.create(after)
        assert (await following(responses)).instance.id == after.id


async def test_deleted_and_created_anew_is_not_deleted(api: Api, definition: str) -> None:
    instance = workflow(definition)
    cursor = await api.change_cursor()
    await api.create(instance)
    await api.delete_workflow(instance.id)
    revision = await api.create(instance)
    found = await since(api, cursor, definition)
    assert (found[-1].instance.revision, found[-1].deleted) == (revision, False)


async def test_large_headers_come_one_by_one_up_to_the_message_limit(
    api: Api, definition: str
) -> None:
    most = (await api.get_store_info()).max_message_bytes
    large = [workflow(definition, data_json=f'"{"x" * (most - 20_000)}"') for _ in range(4)]
    async with api.watch_workflows(workflow_definition_id=definition) as responses:
        first = await anext(responses)
        for each in large:
            await api.create(each)
        found = await changes(responses, 4)
    assert [each.instance.data_json for each in found] == [each.data_json for each in large]
    async with api.watch_workflows(
        after=first.cursor, workflow_definition_id=definition
    ) as responses:
        assert len(await changes(responses, 4)) == 4


@pytest.mark.parametrize(
    ("after", "reason"), [("x", "FORMAT"), ("A" * 44, "FORMAT"), ("é", "FORMAT")]
)
async def test_what_is_no_cursor_is_refused(api: Api, after: str, reason: str) -> None:
    call: Any = api.workflows.WatchWorkflows(WatchWorkflowsRequest(after=after))
    with invalid("after", reason=reason):
        await anext(aiter(call))


async def test_a_cursor_of_another_feed_has_expired(api: Api) -> None:
    """That of the lifecycle events, for example."""
    cursor = await api.cursor()
    call: Any = api.workflows.WatchWorkflows(WatchWorkflowsRequest(after=cursor))
    with fails("OUT_OF_RANGE", "CURSOR_EXPIRED") as failure:
        await anext(aiter(call))
    instance = workflow(make.new_id("definition"))
    await api.create(instance)
    oldest = failure.metadata["oldest_cursor"]
    async with (
        asyncio.timeout(30),
        api.watch_workflows(after=oldest, workflow_id=instance.id) as responses,
    ):
        await anext(responses)
        assert (await following(responses)).passes
