"""WorkflowService."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    CreateNewWorkflowResponse,
    GetRunnableInstancesRequest,
    GetRunnableInstancesResponse,
    GetWorkflowInstanceByNameRequest,
    GetWorkflowInstanceByNameResponse,
    GetWorkflowInstanceRequest,
    GetWorkflowInstanceResponse,
    GetWorkflowInstancesRequest,
    GetWorkflowInstancesResponse,
    NextDefinitionSequenceRequest,
    NextDefinitionSequenceResponse,
    PersistWorkflowRequest,
    PersistWorkflowResponse,
    PersistWorkflowWithSubscriptionsRequest,
    PersistWorkflowWithSubscriptionsResponse,
    WorkflowInstance,
)
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.rpc.check import MAX_ID_BYTES, Check
from wfe_persistence.rpc.subscription_service import page_of_one
from wfe_persistence.store import workflow
from wfe_persistence.store.paging import START
from wfe_persistence.store.rows import epoch_ms

_FIRST_REVISION = 1
_MAX_REVISION = 2**63 - 1


class WorkflowService:
    """Workflows with their execution pointers."""

    async def CreateNewWorkflow(
        self, request: CreateNewWorkflowRequest, call: Call
    ) -> CreateNewWorkflowResponse:
        """Store a new workflow."""
        check = call.check
        instance = request.instance
        if check.present(request, "instance"):
            check.instance(instance, "instance", new=True)
        check.done()
        instance.id = instance.id or str(uuid.uuid4())
        instance.name = instance.name or instance.id
        check.fits(call.size, call.max_message_bytes, lambda: [_read_back(instance)])
        await workflow.create_new_workflow(call.store, instance)
        return CreateNewWorkflowResponse(
            id=instance.id, name=instance.name, revision=_FIRST_REVISION
        )

    async def PersistWorkflow(
        self, request: PersistWorkflowRequest, call: Call
    ) -> PersistWorkflowResponse:
        """Replace a workflow's stored state."""
        check = call.check
        expected = _expected_revision(request, check)
        if check.present(request, "instance"):
            check.instance(request.instance, "instance", new=False)
        check.done()
        check.fits(call.size, call.max_message_bytes, lambda: [_read_back(request.instance)])
        revision = await workflow.persist_workflow(call.store, request.instance, expected)
        return PersistWorkflowResponse(revision=revision)

    async def PersistWorkflowWithSubscriptions(
        self, request: PersistWorkflowWithSubscriptionsRequest, call: Call
    ) -> PersistWorkflowWithSubscriptionsResponse:
        """Replace a workflow's stored state and create subscriptions, all or nothing."""
        check = call.check
        expected = _expected_revision(request, check)
        if check.present(request, "instance"):
            check.instance(request.instance, "instance", new=False)
        for i, subscription in enumerate(request.subscriptions):
            check.subscription(subscription, f"subscriptions[{i}]")
        check.distinct("", "subscriptions", "id", [s.id for s in request.subscriptions])
        check.done()
        for subscription in request.subscriptions:
            subscription.id = subscription.id or str(uuid.uuid4())
        check.fits(
            call.size,
            call.max_message_bytes,
            lambda: [_read_back(request.instance), *map(page_of_one, request.subscriptions)],
        )
        revision = await workflow.persist_workflow(
            call.store, request.instance, expected, request.subscriptions
        )
        return PersistWorkflowWithSubscriptionsResponse(
            revision=revision, subscription_ids=[s.id for s in request.subscriptions]
        )

    async def GetWorkflowInstance(
        self, request: GetWorkflowInstanceRequest, call: Call
    ) -> GetWorkflowInstanceResponse:
        """Answer one workflow."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        instance = await workflow.get_workflow_instance(call.store, request.id)
        return GetWorkflowInstanceResponse(instance=instance)

    async def GetWorkflowInstanceByName(
        self, request: GetWorkflowInstanceByNameRequest, call: Call
    ) -> GetWorkflowInstanceByNameResponse:
        """Answer one workflow, found by its name."""
        check = call.check
        check.id("", "name", request.name)
        check.done()
        instance = await workflow.get_workflow_instance_by_name(call.store, request.name)
        return GetWorkflowInstanceByNameResponse(instance=instance)

    async def GetWorkflowInstances(
        self, request: GetWorkflowInstancesRequest, call: Call
    ) -> AsyncIterator[GetWorkflowInstancesResponse]:
        """Answer many workflows, one a message."""
        check = call.check
        check.ids("", "ids", request.ids)
        check.done()
        async with aclosing(workflow.get_workflow_instances(call.store, request.ids)) as instances:
            async for instance in instances:
                yield GetWorkflowInstancesResponse(instance=instance)

    async def GetRunnableInstances(
        self, request: GetRunnableInstancesRequest, call: Call
    ) -> GetRunnableInstancesResponse:
        """Answer the ids of due workflows."""
        check = call.check
        check.time("", "as_at", request.as_at)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await workflow.get_runnable_instances(
            call.store,
            epoch_ms(request.as_at) if request.HasField("as_at") else None,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
        )
        return GetRunnableInstancesResponse(
            instance_ids=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def NextDefinitionSequence(
        self, request: NextDefinitionSequenceRequest, call: Call
    ) -> NextDefinitionSequenceResponse:
        """Take the next number of a definition."""
        check = call.check
        check.id("", "definition_id", request.definition_id)
        check.done()
        number = await workflow.next_definition_sequence(call.store, request.definition_id)
        return NextDefinitionSequenceResponse(number=number)


def _read_back(instance: WorkflowInstance) -> GetWorkflowInstanceResponse:
    """The answer in which a workflow would be read, with the largest revision and name."""
    answer = GetWorkflowInstanceResponse(instance=instance)
    answer.instance.revision = _MAX_REVISION
    answer.instance.name = answer.instance.name or "x" * MAX_ID_BYTES
    return answer


def _expected_revision(
    request: PersistWorkflowRequest | PersistWorkflowWithSubscriptionsRequest, check: Check
) -> int | None:
    if not request.HasField("expected_revision"):
        return None
    check.number("", "expected_revision", request.expected_revision, _FIRST_REVISION, _MAX_REVISION)
    return request.expected_revision
