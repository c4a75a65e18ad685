"""WorkflowService."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

from google.protobuf.message import Message

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CommitWorkflowResponse,
    CountWorkflowsRequest,
    CountWorkflowsResponse,
    CreateNewWorkflowRequest,
    CreateNewWorkflowResponse,
    DeleteWorkflowRequest,
    DeleteWorkflowResponse,
    ExecutionPointer,
    GetRunnableInstancesRequest,
    GetRunnableInstancesResponse,
    GetWorkflowInstanceByNameRequest,
    GetWorkflowInstanceByNameResponse,
    GetWorkflowInstanceRequest,
    GetWorkflowInstanceResponse,
    GetWorkflowInstancesRequest,
    GetWorkflowInstancesResponse,
    ListExecutionPointersRequest,
    ListExecutionPointersResponse,
    ListWorkflowsRequest,
    ListWorkflowsResponse,
    NextDefinitionSequenceRequest,
    NextDefinitionSequenceResponse,
    PersistWorkflowRequest,
    PersistWorkflowResponse,
    PersistWorkflowWithSubscriptionsRequest,
    PersistWorkflowWithSubscriptionsResponse,
    PurgeWorkflowsRequest,
    PurgeWorkflowsResponse,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.rpc.check import MAX_ID_BYTES, MAX_REVISION, R
from wfe_persistence.rpc.event_service import read_back as event_read_back
from wfe_persistence.rpc.store_service import page_of_one as page_of_one_error
from wfe_persistence.rpc.subscription_service import page_of_one
from wfe_persistence.store import commit, pointer, purge, workflow
from wfe_persistence.store.paging import END, START
from wfe_persistence.store.rows import epoch_ms

_FIRST_REVISION = 1


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
        check.revision(request)
        check.request_id(request.request_id)
        if check.present(request, "instance"):
            check.instance(request.instance, "instance", new=False)
        check.done()
        once = commit.Request(request)
        check.fits(call.size, call.max_message_bytes, lambda: [_read_back(request.instance)])
        revision = await commit.persist_workflow(call.store, request, (), once)
        return PersistWorkflowResponse(revision=revision)

    async def PersistWorkflowWithSubscriptions(
        self, request: PersistWorkflowWithSubscriptionsRequest, call: Call
    ) -> PersistWorkflowWithSubscriptionsResponse:
        """Replace a workflow's stored state and create subscriptions, all or nothing."""
        check = call.check
        check.revision(request)
        check.request_id(request.request_id)
        if check.present(request, "instance"):
            check.instance(request.instance, "instance", new=False)
        for i, subscription in enumerate(request.subscriptions):
            check.subscription(subscription, f"subscriptions[{i}]")
        check.distinct("", "subscriptions", "id", [s.id for s in request.subscriptions])
        check.done()
        once = commit.Request(request)
        for i, subscription in enumerate(request.subscriptions):
            subscription.id = subscription.id or once.new_id("subscription", i)
        check.fits(
            call.size,
            call.max_message_bytes,
            lambda: [_read_back(request.instance), *map(page_of_one, request.subscriptions)],
        )
        revision = await commit.persist_workflow(call.store, request, request.subscriptions, once)
        return PersistWorkflowWithSubscriptionsResponse(
            revision=revision, subscription_ids=[s.id for s in request.subscriptions]
        )

    async def CommitWorkflow(
        self, request: CommitWorkflowRequest, call: Call
    ) -> CommitWorkflowResponse:
        """Store one step of an engine, all or nothing."""
        check = call.check
        check.commit(request)
        check.done()
        once = commit.Request(request)
        for i, subscription in enumerate(request.create_subscriptions):
            subscription.id = subscription.id or once.new_id("subscription", i)
        for i, event in enumerate(request.create_events):
            event.id = event.id or once.new_id("event", i)
        check.fits(call.size, call.max_message_bytes, lambda: _commit_read_back(request))
        revision = await commit.commit_workflow(call.store, request, once)
        return CommitWorkflowResponse(
            revision=revision,
            subscription_ids=[s.id for s in request.create_subscriptions],
            event_ids=[e.id for e in request.create_events],
        )

    async def GetWorkflowInstance(
        self, request: GetWorkflowInstanceRequest, call: Call
    ) -> GetWorkflowInstanceResponse:
        """Answer one workflow."""
        check = call.check
        check.id("", "id", request.id)
        view = check.view(request.view)
        check.done()
        instance = await workflow.get_workflow_instance(call.store, request.id, view)
        return GetWorkflowInstanceResponse(instance=instance)

    async def GetWorkflowInstanceByName(
        self, request: GetWorkflowInstanceByNameRequest, call: Call
    ) -> GetWorkflowInstanceByNameResponse:
        """Answer one workflow, found by its name."""
        check = call.check
        check.id("", "name", request.name)
        view = check.view(request.view)
        check.done()
        instance = await workflow.get_workflow_instance_by_name(call.store, request.name, view)
        return GetWorkflowInstanceByNameResponse(instance=instance)

    async def GetWorkflowInstances(
        self, request: GetWorkflowInstancesRequest, call: Call
    ) -> AsyncIterator[GetWorkflowInstancesResponse]:
        """Answer many workflows, one a message."""
        check = call.check
        check.ids("", "ids", request.ids)
        view = check.view(request.view)
        check.done()
        async with aclosing(
            workflow.get_workflow_instances(call.store, request.ids, view)
        ) as instances:
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

    async def ListExecutionPointers(
        self, request: ListExecutionPointersRequest, call: Call
    ) -> ListExecutionPointersResponse:
        """Answer one workflow's pointers."""
        check = call.check
        check.id("", "workflow_id", request.workflow_id)
        expected = check.revision(request)
        page_size = check.page_size(request.page_size)
        check.done()
        page, revision = await pointer.list_execution_pointers(
            call.store,
            request.workflow_id,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
            paging.page_bytes(call.max_message_bytes),
            active_only=request.active_only,
            expected_revision=expected,
        )
        return ListExecutionPointersResponse(
            execution_pointers=page.items,
            next_page_token=paging.encode(request, call.store, page.next),
            revision=revision,
        )

    async def ListWorkflows(
        self, request: ListWorkflowsRequest, call: Call
    ) -> ListWorkflowsResponse:
        """Answer workflows by create_time."""
        check = call.check
        check.filter(request.filter)
        order = check.order(request.order)
        view = check.view(request.view, WorkflowView.WORKFLOW_VIEW_HEADER)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await workflow.list_workflows(
            call.store,
            request.filter,
            order,
            view,
            paging.decode(
                request,
                call.store,
                request.page_token,
                START if order == ListOrder.LIST_ORDER_OLDEST_FIRST else END,
            ),
            page_size,
            paging.page_bytes(call.max_message_bytes),
        )
        return ListWorkflowsResponse(
            instances=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def CountWorkflows(
        self, request: CountWorkflowsRequest, call: Call
    ) -> CountWorkflowsResponse:
        """Count workflows by status."""
        check = call.check
        check.filter(request.filter)
        check.done()
        return CountWorkflowsResponse(
            counts=await workflow.count_workflows(call.store, request.filter)
        )

    async def DeleteWorkflow(
        self, request: DeleteWorkflowRequest, call: Call
    ) -> DeleteWorkflowResponse:
        """Delete one workflow."""
        check = call.check
        check.id("", "id", request.id)
        expected = check.revision(request)
        check.done()
        await purge.delete_workflow(call.store, request.id, expected)
        return DeleteWorkflowResponse()

    async def PurgeWorkflows(
        self, request: PurgeWorkflowsRequest, call: Call
    ) -> PurgeWorkflowsResponse:
        """Delete workflows that ended long ago."""
        check = call.check
        check.required_time("", "ended_before", request)
        for i, status in enumerate(request.statuses):
            if status not in purge.ENDED:
                check.add(
                    "",
                    f"statuses[{i}]",
                    R.FIELD_VIOLATION_REASON_ENUM_VALUE,
                    "must be COMPLETE or TERMINATED",
                )
        check.key("", "workflow_definition_id", request.workflow_definition_id)
        max_rows = check.purged_rows(request.max_rows)
        check.done()
        done, after = await purge.purge_workflows(
            call.store,
            request.statuses,
            request.ended_before,
            request.workflow_definition_id,
            paging.decode(request, call.store, request.page_token, START),
            max_rows,
            dry_run=request.dry_run,
        )
        done.next_page_token = paging.encode(request, call.store, after)
        return done


def _read_back(instance: WorkflowInstance) -> GetWorkflowInstanceResponse:
    """The answer in which a workflow would be read, with the largest revision and name."""
    answer = GetWorkflowInstanceResponse(instance=instance)
    answer.instance.revision = MAX_REVISION
    answer.instance.name = answer.instance.name or "x" * MAX_ID_BYTES
    return answer


def _commit_read_back(request: CommitWorkflowRequest) -> Iterator[Message]:
    """The answers in which what a commit stores would be read. What a patch makes of a workflow may
    be too large for one message, but not its header nor any pointer."""
    if request.HasField("patch"):
        yield _read_back(request.patch.header)
        yield from map(_page_of_one_pointer, request.patch.execution_pointers)
    else:
        yield _read_back(request.instance)
    yield from map(page_of_one, request.create_subscriptions)
    yield from map(event_read_back, request.create_events)
    yield from map(page_of_one_error, request.errors)


def _page_of_one_pointer(pointer: ExecutionPointer) -> ListExecutionPointersResponse:
    return ListExecutionPointersResponse(
        execution_pointers=[pointer],
        next_page_token="x" * paging.MAX_TOKEN_BYTES,
        revision=MAX_REVISION,
    )
