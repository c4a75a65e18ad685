"""A workflow of 100,000 pointers: made bit by bit, read in pages, patched and purged."""

from __future__ import annotations

from tests.support import make
from tests.support.api import Api, pages
from tests.support.expect import fails
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    GetWorkflowInstanceRequest,
    PointerStatus,
    PurgeWorkflowsRequest,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)

POINTERS = 100_000
PER_CALL = 10_000


def ended(i: int) -> ExecutionPointer:
    """A pointer as a step leaves it."""
    return make.pointer(
        f"pointer-{i}",
        active=False,
        status=PointerStatus.POINTER_STATUS_COMPLETE,
        start_time=make.time(i),
        outcome_json=f'{{"step": {i}}}',
    )


async def commit(api: Api, patch: WorkflowPatch, revision: int) -> int:
    request = CommitWorkflowRequest(patch=patch, expected_revision=revision)
    return (await api.workflows.CommitWorkflow(request)).revision


async def view_of(api: Api, id_: str, view: WorkflowView.ValueType) -> WorkflowInstance:
    request = GetWorkflowInstanceRequest(id=id_, view=view)
    return (await api.workflows.GetWorkflowInstance(request)).instance


async def test_a_workflow_of_100_000_pointers(api: Api) -> None:
    definition = make.new_id("definition")
    instance = make.instance(
        workflow_definition_id=definition,
        status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED,
        execution_pointers=map(ended, range(PER_CALL)),
    )
    first = revision = await api.create(instance)
    for begin in range(PER_CALL, POINTERS, PER_CALL):
        pointers = map(ended, range(begin, begin + PER_CALL))
        patch = WorkflowPatch(id=instance.id, execution_pointers=pointers)
        revision = await commit(api, patch, revision)

    # As a whole it does not fit into a message; in parts it does.
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await api.get_workflow_instance(instance.id)
    header = await view_of(api, instance.id, WorkflowView.WORKFLOW_VIEW_HEADER)
    assert header.revision == revision == first + POINTERS // PER_CALL - 1

    # One step changes one pointer and adds one.
    changed = ended(50_000)
    changed.retry_count = 7
    patch = WorkflowPatch(
        id=instance.id,
        execution_pointers=[changed, make.pointer("next")],
        removed_pointer_ids=["pointer-70000"],
    )
    revision = await commit(api, patch, revision)
    active = await view_of(api, instance.id, WorkflowView.WORKFLOW_VIEW_ACTIVE)
    assert list(active.execution_pointers) == [make.pointer("next")]

    read: list[ExecutionPointer] = []
    for page in await pages(
        api.list_execution_pointers,
        workflow_id=instance.id,
        page_size=1000,
        expected_revision=revision,
    ):
        read.extend(page.execution_pointers)
    expected = [ended(i) for i in range(POINTERS) if i != 70_000]
    expected[50_000] = changed
    expected.append(make.pointer("next"))
    assert read == expected

    patch = WorkflowPatch(id=instance.id)
    patch.header.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
    patch.header_mask.paths.append("status")
    await commit(api, patch, revision)
    purge = PurgeWorkflowsRequest(ended_before=make.time(1), workflow_definition_id=definition)
    gone = await api.workflows.PurgeWorkflows(purge)
    assert (gone.workflows, gone.execution_pointers) == (1, POINTERS)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await view_of(api, instance.id, WorkflowView.WORKFLOW_VIEW_HEADER)
