"""Views of a workflow (FULL, ACTIVE, HEADER), and ListExecutionPointers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from tests.support import make
from tests.support.api import Api, pages
from tests.support.expect import fails, invalid
from tests.support.scene import never_due
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowView,
)

UNSPECIFIED: Final = WorkflowView.WORKFLOW_VIEW_UNSPECIFIED
FULL: Final = WorkflowView.WORKFLOW_VIEW_FULL
ACTIVE: Final = WorkflowView.WORKFLOW_VIEW_ACTIVE
HEADER: Final = WorkflowView.WORKFLOW_VIEW_HEADER

CAN_STILL_RUN: Final = {
    PointerStatus.POINTER_STATUS_PENDING,
    PointerStatus.POINTER_STATUS_RUNNING,
    PointerStatus.POINTER_STATUS_SLEEPING,
    PointerStatus.POINTER_STATUS_WAITING_FOR_EVENT,
    PointerStatus.POINTER_STATUS_PENDING_PREDECESSOR,
}
# One of each status, active and not; the ones that can still run stand between the others.
POINTERS: Final = [
    make.full_pointer(f"{status}-{active}", status=status, active=active)
    for active in (False, True)
    for status in sorted(value for value in PointerStatus.values() if value)
]


def is_active(pointer: ExecutionPointer) -> bool:
    return pointer.active or pointer.status in CAN_STILL_RUN


def ended_pointer(id_: str, **fields: Any) -> ExecutionPointer:
    """A pointer that can't run any more."""
    return make.pointer(
        id_, **{"active": False, "status": PointerStatus.POINTER_STATUS_COMPLETE} | fields
    )


def part(instance: WorkflowInstance, view: WorkflowView.ValueType) -> WorkflowInstance:
    """What a view shows of a workflow."""
    shown = WorkflowInstance()
    shown.CopyFrom(instance)
    if view in (UNSPECIFIED, FULL):
        return shown
    pointers = [p for p in instance.execution_pointers if view == ACTIVE and is_active(p)]
    shown.ClearField("execution_pointers")
    shown.execution_pointers.extend(pointers)
    shown.view = view
    return shown


async def created(api: Api, **fields: Any) -> WorkflowInstance:
    """A new workflow as it is to be read in full."""
    instance = make.full_instance(**fields)
    await api.create(instance)
    return instance


# The ways to read one workflow.
Read = Callable[[Api, WorkflowInstance, WorkflowView.ValueType], Awaitable[WorkflowInstance]]


async def _in_a_batch(
    api: Api, instance: WorkflowInstance, view: WorkflowView.ValueType
) -> WorkflowInstance:
    [found] = await api.get_workflow_instances([instance.id], view)
    return found


WAYS: Final[dict[str, Read]] = {
    "by id": lambda api, instance, view: api.get_workflow_instance(instance.id, view),
    "by name": lambda api, instance, view: api.get_workflow_instance_by_name(instance.name, view),
    "in a batch": _in_a_batch,
}


@pytest.mark.parametrize("read", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("view", WorkflowView.values(), ids=WorkflowView.Name)
async def test_view_shows_its_part_and_says_so(
    api: Api, read: Read, view: WorkflowView.ValueType
) -> None:
    instance = await created(api, execution_pointers=POINTERS)
    assert await read(api, instance, view) == part(instance, view)


@pytest.mark.parametrize("read", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize(
    "pointers", [[], [ended_pointer("1")], [make.pointer("1")]], ids=["none", "ended", "active"]
)
async def test_few_pointers_in_each_view(
    api: Api, read: Read, pointers: list[ExecutionPointer]
) -> None:
    instance = await created(api, execution_pointers=pointers)
    for view in WorkflowView.values():
        assert await read(api, instance, view) == part(instance, view)


@pytest.mark.parametrize("view", WorkflowView.values(), ids=WorkflowView.Name)
async def test_batch_in_each_view_keeps_the_order_asked(
    api: Api, view: WorkflowView.ValueType
) -> None:
    first = await created(api, execution_pointers=POINTERS)
    second = await created(api, execution_pointers=[])
    asked = [second, first]
    ids = [make.new_id(), *(each.id for each in asked)]
    assert await api.get_workflow_instances(ids, view) == [part(each, view) for each in asked]


@pytest.mark.parametrize("view", WorkflowView.values(), ids=WorkflowView.Name)
async def test_absent_workflow_is_not_found_in_any_view(
    api: Api, view: WorkflowView.ValueType
) -> None:
    for read in (api.get_workflow_instance, api.get_workflow_instance_by_name):
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await read(make.new_id(), view)
    assert await api.get_workflow_instances([make.new_id()], view) == []


async def test_view_follows_the_pointers_as_they_change(api: Api) -> None:
    """Whether a pointer was changed by a patch or by a persist."""
    instance = await created(api, execution_pointers=[make.pointer("a"), ended_pointer("b")])
    patch = make.patch(
        instance.id,
        execution_pointers=[ended_pointer("a"), make.pointer("b"), make.pointer("c")],
    )
    await api.commit_workflow(patch=patch, expected_revision=instance.revision)
    found = await api.get_workflow_instance(instance.id, ACTIVE)
    assert [p.id for p in found.execution_pointers] == ["b", "c"]
    instance.execution_pointers[1].active = True
    await api.persist_workflow(instance)
    found = await api.get_workflow_instance(instance.id, ACTIVE)
    assert [p.id for p in found.execution_pointers] == ["a", "b"]


@pytest.mark.parametrize("view", [ACTIVE, HEADER])
async def test_part_of_a_workflow_is_refused_as_its_new_state(
    api: Api, view: WorkflowView.ValueType
) -> None:
    instance = await created(api, execution_pointers=POINTERS)
    loaded = await api.get_workflow_instance(instance.id, view)
    for write in (
        lambda: api.persist_workflow(loaded),
        lambda: api.persist_workflow_with_subscriptions(loaded, [make.subscription()]),
        lambda: api.commit_workflow(instance=loaded),
        lambda: api.create_new_workflow(loaded),
    ):
        with invalid("instance.view", reason="ENUM_VALUE"):
            await write()
    assert await api.get_workflow_instance(instance.id) == instance


async def test_part_of_a_workflow_can_be_patched(api: Api) -> None:
    """As hosts do: load what can still run, change it, send the change."""
    instance = await created(api, execution_pointers=POINTERS)
    loaded = await api.get_workflow_instance(instance.id, ACTIVE)
    pointer = loaded.execution_pointers[0]
    pointer.outcome_json = '"changed"'
    patch = make.patch(loaded.id, execution_pointers=[pointer])
    await api.commit_workflow(patch=patch, expected_revision=loaded.revision)
    at = [p.id for p in instance.execution_pointers].index(pointer.id)
    instance.execution_pointers[at].CopyFrom(pointer)
    instance.revision += 1
    assert await api.get_workflow_instance(instance.id) == instance


# ListExecutionPointers.


async def all_pointers(api: Api, id_: str, **fields: Any) -> list[ExecutionPointer]:
    """The pointers of all pages."""
    answers = await pages(api.list_execution_pointers, workflow_id=id_, **fields)
    for answer in answers[:-1]:
        assert answer.execution_pointers, "a page that is not the last one is empty"
    return [pointer for answer in answers for pointer in answer.execution_pointers]


@pytest.mark.parametrize("page_size", [1, 2, 7, 19, 20, 21, 0, 2**31 - 1])
async def test_pages_have_every_pointer_in_order(api: Api, page_size: int) -> None:
    instance = await created(api, execution_pointers=POINTERS)
    assert await all_pointers(api, instance.id, page_size=page_size) == POINTERS
    active = await all_pointers(api, instance.id, page_size=page_size, active_only=True)
    assert active == [p for p in POINTERS if is_active(p)]


async def test_pages_are_as_large_as_asked(api: Api) -> None:
    pointers = [make.pointer(str(i)) for i in range(1205)]
    instance = await created(api, execution_pointers=pointers)
    for page_size, sizes in ((0, [100] * 12 + [5]), (5000, [1000, 205]), (1205, [1000, 205])):
        answers = await pages(
            api.list_execution_pointers, workflow_id=instance.id, page_size=page_size
        )
        assert [len(answer.execution_pointers) for answer in answers] == sizes
        assert [p for answer in answers for p in answer.execution_pointers] == pointers


async def test_order_is_that_of_the_last_persist_with_what_patches_added_behind(api: Api) -> None:
    instance = await created(api, execution_pointers=[make.pointer(id_) for id_ in "cab"])
    assert [p.id for p in await all_pointers(api, instance.id, page_size=1)] == [*"cab"]
    instance.execution_pointers.reverse()
    await api.persist_workflow(instance)
    assert [p.id for p in await all_pointers(api, instance.id, page_size=2)] == [*"bac"]
    added = [make.pointer(id_) for id_ in ("z", "a", "0")]
    await api.commit_workflow(
        patch=make.patch(instance.id, execution_pointers=added),
        expected_revision=instance.revision + 1,
    )
    for page_size in (1, 2, 3, 100):
        found = await all_pointers(api, instance.id, page_size=page_size)
        assert [p.id for p in found] == ["b", "a", "c", "z", "0"]


async def test_workflow_without_pointers_has_one_empty_page(api: Api) -> None:
    instance = await created(api, execution_pointers=[])
    for active_only in (False, True):
        answer = await api.list_execution_pointers(workflow_id=instance.id, active_only=active_only)
        assert (list(answer.execution_pointers), answer.next_page_token) == ([], "")
        assert answer.revision == instance.revision


async def test_pointers_of_an_absent_workflow_are_not_found(api: Api) -> None:
    for fields in ({}, {"active_only": True}, {"expected_revision": 1}):
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.list_execution_pointers(workflow_id=make.new_id(), **fields)


async def test_pointers_are_of_one_workflow_only(api: Api) -> None:
    """Also where another one's id begins with it, and its pointers have the same ids."""
    id_ = make.new_id("workflow")
    for suffix, name in (("", "one"), ("0", "other")):
        pointers = [make.pointer(str(i), step_name=name) for i in range(5)]
        await api.create_new_workflow(never_due(id=id_ + suffix, execution_pointers=pointers))
    found = await all_pointers(api, id_, page_size=2)
    assert [p.step_name for p in found] == ["one"] * 5


async def test_page_of_another_revision_is_refused(api: Api) -> None:
    instance = await created(api, execution_pointers=POINTERS)
    first = await api.list_execution_pointers(
        workflow_id=instance.id, page_size=5, expected_revision=instance.revision
    )
    assert first.revision == instance.revision
    revision = await api.persist_workflow(instance)
    assert revision == first.revision + 1
    for token in ("", first.next_page_token):
        for expected in (revision - 1, revision + 1):
            with fails("ABORTED", "REVISION_MISMATCH") as failure:
                await api.list_execution_pointers(
                    workflow_id=instance.id,
                    page_size=5,
                    page_token=token,
                    expected_revision=expected,
                )
            assert failure.metadata["revision"] == str(revision)
    second = await api.list_execution_pointers(
        workflow_id=instance.id,
        page_size=5,
        page_token=first.next_page_token,
        expected_revision=revision,
    )
    assert second.revision == revision
    assert list(second.execution_pointers) == POINTERS[5:10]


@pytest.mark.parametrize("active_only", [False, True])
async def test_other_revision_of_a_workflow_without_pointers_is_refused(
    api: Api, active_only: bool
) -> None:
    instance = await created(api, execution_pointers=[])
    with fails("ABORTED", "REVISION_MISMATCH"):
        await api.list_execution_pointers(
            workflow_id=instance.id,
            active_only=active_only,
            expected_revision=instance.revision + 1,
        )


async def test_pages_go_on_while_the_workflow_changes(api: Api) -> None:
    """What stays is answered once, whatever is removed before and after it, or added."""
    pointers = [make.pointer(f"{i:02}") for i in range(20)]
    instance = await created(api, execution_pointers=pointers)
    seen: list[str] = []
    token, turn = "", 1
    while True:
        answer = await api.list_execution_pointers(
            workflow_id=instance.id, page_size=3, page_token=token
        )
        assert answer.revision == instance.revision
        seen += [p.id for p in answer.execution_pointers]
        token = answer.next_page_token
        if not token:
            break
        # Of each three the middle one goes: seen already, or still to come.
        gone = [f"{i:02}" for i in {1: [1, 19], 2: [4, 16], 3: [7, 13]}.get(turn, ())]
        added = [make.pointer(f"new {turn}")] if turn <= 3 else []
        patch = make.patch(instance.id, removed_pointer_ids=gone, execution_pointers=added)
        answered = await api.commit_workflow(patch=patch, expected_revision=instance.revision)
        assert answered.revision == instance.revision + 1
        instance.revision = answered.revision
        turn += 1
    assert len(seen) == len(set(seen))
    stayed = {f"{i:02}" for i in range(20)} - {"01", "19", "04", "16", "07", "13"}
    assert set(seen) >= stayed | {"new 1", "new 2", "new 3"}
    assert not set(seen) & {"19", "16", "13"}
