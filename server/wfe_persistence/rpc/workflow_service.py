"""WorkflowService."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from wfe.persistence.v1 import workflow_pb2 as pb
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import bulk, lasting, paging, workflow_writes
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, R
from wfe_persistence.store import (
    commit,
    name_holder,
    pointer,
    purge,
    workflow,
    workflow_list,
    workflow_waiting,
)
from wfe_persistence.store.bulk import create_workflows
from wfe_persistence.store.command import stir_commands
from wfe_persistence.store.paging import Wanted
from wfe_persistence.store.rows import epoch_ms
from wfe_persistence.store.workflow_changes import Change


class WorkflowService:
    """Workflows with their execution pointers."""

    async def CreateNewWorkflow(
        self, request: pb.CreateNewWorkflowRequest, call: Call
    ) -> pb.CreateNewWorkflowResponse:
        """Store a new workflow."""
        instance = request.instance
        await offload.run(workflow_writes.prepare_create, request, call.check)
        revision = await workflow.create_new_workflow(
            call.store, instance, request.enqueue, request.held_lock_tokens
        )
        call.env.changes.published(call.store)
        call.written(request.enqueue)
        return pb.CreateNewWorkflowResponse(id=instance.id, name=instance.name, revision=revision)

    @asynccontextmanager
    async def CreateWorkflows(
        self, call: Call
    ) -> AsyncIterator[
        Callable[[pb.CreateWorkflowsRequest, Check], Awaitable[pb.CreateWorkflowsResponse]]
    ]:
        """Store new workflows, those of each request together."""

        async def store(
            requests: list[pb.CreateNewWorkflowRequest],
        ) -> list[int | PersistenceError]:
            found = await create_workflows(call.store, requests)
            call.env.changes.published(call.store)
            call.written([item for request in requests for item in request.enqueue])
            return found

        async def answer(
            request: pb.CreateWorkflowsRequest, check: Check
        ) -> pb.CreateWorkflowsResponse:
            return await bulk.answer(
                request,
                request.workflows,
                call,
                check,
                rpc="CreateWorkflows",
                prepare=workflow_writes.prepare_create,
                store=store,
                created=workflow_writes.fill_in_created,
                response=pb.CreateWorkflowsResponse,
            )

        with call.env.bulk_streams.one(call.store.namespace):
            yield answer

    async def PersistWorkflow(
        self, request: pb.PersistWorkflowRequest, call: Call
    ) -> pb.PersistWorkflowResponse:
        """Replace a workflow's stored state."""
        key = await offload.run(workflow_writes.prepare_persist, request, call.check)
        written = await commit.persist_workflow(call.store, request, (), key)
        workflow_writes.tell(call, request, written)
        return pb.PersistWorkflowResponse(
            revision=written.revision, returned_receipts=written.returned_receipts
        )

    async def PersistWorkflowWithSubscriptions(
        self, request: pb.PersistWorkflowWithSubscriptionsRequest, call: Call
    ) -> pb.PersistWorkflowWithSubscriptionsResponse:
        """Replace a workflow's stored state and create subscriptions, atomically."""
        key, answer = await offload.run(
            workflow_writes.prepare_persist_with_subscriptions, request, call.check
        )
        written = await commit.persist_workflow(call.store, request, request.subscriptions, key)
        workflow_writes.tell(call, request, written)
        return workflow_writes.answered(answer, written)

    async def CommitWorkflow(
        self, request: pb.CommitWorkflowRequest, call: Call
    ) -> pb.CommitWorkflowResponse:
        """Store one step of an engine atomically."""
        key, answer, room = await offload.run(workflow_writes.prepare_commit, request, call.check)
        written = await commit.commit_workflow(call.store, request, key, room)
        workflow_writes.tell(call, request, written)
        if request.schedule_commands or request.complete_lease_tokens:
            stir_commands(call.store, call.env.waiters)
        return workflow_writes.answered(answer, written)

    async def GetWorkflowInstance(
        self, request: pb.GetWorkflowInstanceRequest, call: Call
    ) -> pb.GetWorkflowInstanceResponse:
        """Return one workflow."""
        check = call.check
        check.id("", "id", request.id)
        view = check.view(request.view)
        check.done()
        instance = await workflow.get_workflow_instance(call.store, request.id, view)
        return pb.GetWorkflowInstanceResponse(instance=instance)

    async def GetWorkflowInstanceByName(
        self, request: pb.GetWorkflowInstanceByNameRequest, call: Call
    ) -> pb.GetWorkflowInstanceByNameResponse:
        """Return one workflow, looked up by its name."""
        check = call.check
        check.id("", "name", request.name)
        view = check.view(request.view)
        check.done()
        instance = await workflow.get_workflow_instance_by_name(call.store, request.name, view)
        return pb.GetWorkflowInstanceByNameResponse(instance=instance)

    async def WaitForWorkflow(
        self, request: pb.WaitForWorkflowRequest, call: Call
    ) -> pb.WaitForWorkflowResponse:
        """Return a workflow's header when it has one of some statuses."""
        check = call.check
        check.id("", "id", request.id)
        check.statuses("", request.statuses)
        wait = check.wait_seconds(request)
        check.done()
        with call.waiting(wait) as until:
            waiting = workflow_waiting.wait_for_workflow(
                call.store,
                request.id,
                frozenset(request.statuses or purge.ENDED),
                until,
                call.env.waiters,
            )
            del request  # ten thousand may wait here
            instance = await waiting
        return pb.WaitForWorkflowResponse(instance=instance)

    async def GetWorkflowInstances(
        self, request: pb.GetWorkflowInstancesRequest, call: Call
    ) -> AsyncIterator[Iterable[pb.GetWorkflowInstancesResponse]]:
        """Return many workflows, one a message."""
        check = call.check
        if check.at_most("", "ids", request.ids):
            check.ids("", "ids", request.ids)
        view = check.view(request.view)
        check.done()
        wanted = Wanted(deque(dict.fromkeys(request.ids)))
        max_bytes = call.env.max_message_bytes - paging.FRAMING_BYTES
        while wanted.ids:
            # No variable for the page: it would be kept while the client reads.
            yield (
                pb.GetWorkflowInstancesResponse(instance=instance)
                for instance in await workflow.get_workflow_instances(
                    call.store, wanted, view, max_bytes
                )
            )

    async def GetRunnableInstances(
        self, request: pb.GetRunnableInstancesRequest, call: Call
    ) -> pb.GetRunnableInstancesResponse:
        """Return the ids of due workflows."""
        check = call.check
        check.time("", "as_at", request.as_at)
        if check.at_most("", "workflow_definition_ids", request.workflow_definition_ids):
            check.ids("", "workflow_definition_ids", request.workflow_definition_ids)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await workflow.get_runnable_instances(
            call.store,
            epoch_ms(request.as_at) if request.HasField("as_at") else None,
            request.workflow_definition_ids,
            *call.page(request, page_size),
            with_keys=request.with_order_keys,
        )
        return pb.GetRunnableInstancesResponse(
            instance_ids=page.items,
            next_page_token=paging.encode(request, call.store, page.next),
            order_keys=page.keys,
        )

    async def SetNameHolder(
        self, request: pb.SetNameHolderRequest, call: Call
    ) -> pb.SetNameHolderResponse:
        """Say which workflow of a set has a name."""
        check = call.check
        check.id("", "name", request.name)
        check.id("", "workflow_id", request.workflow_id, required=False)
        taken = bool(request.workflow_id)
        check.id("", "claim_id", request.claim_id, required=taken)
        check.id("", "expected_claim_id", request.expected_claim_id, required=not taken)
        check.done()
        holder = await name_holder.set_name_holder(call.store, request)
        return pb.SetNameHolderResponse(workflow_id=holder.workflow_id, claim_id=holder.claim_id)

    async def GetNameHolder(
        self, request: pb.GetNameHolderRequest, call: Call
    ) -> pb.GetNameHolderResponse:
        """Return the workflow of a set that has a name."""
        check = call.check
        check.id("", "name", request.name)
        check.done()
        holder = await name_holder.get_name_holder(call.store, request.name)
        return pb.GetNameHolderResponse(workflow_id=holder.workflow_id, claim_id=holder.claim_id)

    async def NextDefinitionSequence(
        self, request: pb.NextDefinitionSequenceRequest, call: Call
    ) -> pb.NextDefinitionSequenceResponse:
        """Take the next number of a definition."""
        check = call.check
        check.id("", "definition_id", request.definition_id)
        check.done()
        number = await workflow.next_definition_sequence(call.store, request.definition_id)
        return pb.NextDefinitionSequenceResponse(number=number)

    async def ListExecutionPointers(
        self, request: pb.ListExecutionPointersRequest, call: Call
    ) -> pb.ListExecutionPointersResponse:
        """Return the execution pointers of one workflow."""
        check = call.check
        check.id("", "workflow_id", request.workflow_id)
        expected = check.revision(request)
        page_size = check.page_size(request.page_size)
        check.done()
        page, revision = await pointer.list_execution_pointers(
            call.store,
            request.workflow_id,
            *call.page(request, page_size),
            active_only=request.active_only,
            expected_revision=expected,
        )
        return pb.ListExecutionPointersResponse(
            execution_pointers=page.items,
            next_page_token=paging.encode(request, call.store, page.next),
            revision=revision,
        )

    async def ListWorkflows(
        self, request: pb.ListWorkflowsRequest, call: Call
    ) -> pb.ListWorkflowsResponse:
        """Return workflows by create_time."""
        check = call.check
        check.filter(request.filter)
        order = check.order(request.order)
        view = check.view(request.view, pb.WorkflowView.WORKFLOW_VIEW_HEADER)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await workflow_list.list_workflows(
            call.store,
            request.filter,
            order,
            view,
            *call.page(request, page_size),
        )
        return pb.ListWorkflowsResponse(
            instances=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def CountWorkflows(
        self, request: pb.CountWorkflowsRequest, call: Call
    ) -> pb.CountWorkflowsResponse:
        """Count workflows by status."""
        check = call.check
        check.filter(request.filter)
        check.done()
        return pb.CountWorkflowsResponse(
            counts=await workflow_list.count_workflows(call.store, request.filter)
        )

    async def DeleteWorkflow(
        self, request: pb.DeleteWorkflowRequest, call: Call
    ) -> pb.DeleteWorkflowResponse:
        """Delete one workflow."""
        check = call.check
        check.id("", "id", request.id)
        expected = check.revision(request)
        check.done()
        await purge.delete_workflow(call.store, request.id, expected)
        call.env.changes.published(call.store)
        workflow_waiting.wake_deleted(call.store, request.id, call.env.waiters)
        return pb.DeleteWorkflowResponse()

    async def PurgeWorkflows(
        self, request: pb.PurgeWorkflowsRequest, call: Call
    ) -> pb.PurgeWorkflowsResponse:
        """Delete workflows that ended long ago."""
        check = call.check
        check.required_time("", "ended_before", request)
        if check.at_most("", "statuses", request.statuses):
            for i, status in enumerate(request.statuses):
                if status in purge.ENDED:
                    continue
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
            paging.decode(request, call.store),
            max_rows,
            dry_run=request.dry_run,
        )
        if done.workflows and not request.dry_run:
            call.env.changes.published(call.store)
            workflow_waiting.stir_purged(call.store, call.env.waiters)
        done.next_page_token = paging.encode(request, call.store, after)
        return done

    async def WatchWorkflows(
        self, request: pb.WatchWorkflowsRequest, call: Call
    ) -> AsyncIterator[Iterable[pb.WatchWorkflowsResponse]]:
        """Send the headers of workflows that change."""
        after, heartbeat = call.check.watch(request)
        call.check.done()
        async for page in lasting.follow(
            call.env.changes,
            call,
            after,
            heartbeat,
            response=pb.WatchWorkflowsResponse,
            items="changes",
            item=_watched(request.filter),
        ):
            yield page


def _watched(f: pb.WatchedWorkflows) -> Callable[[Change, str], pb.WorkflowChange | None]:
    """What a watcher gets of a change, if the workflow passes the filter now, or did before."""
    statuses = frozenset(f.statuses)

    def passes(w: pb.WorkflowInstance) -> bool:
        return (
            (not f.workflow_id or w.id == f.workflow_id)
            and (not statuses or w.status in statuses)
            and (
                not f.workflow_definition_id or w.workflow_definition_id == f.workflow_definition_id
            )
            and (not f.HasField("version") or w.version == f.version)
            and (
                not f.HasField("reference")
                or (w.HasField("reference") and w.reference == f.reference)
            )
            and w.name.startswith(f.name_prefix)
            and (not f.root_workflow_id or w.root_workflow_id == f.root_workflow_id)
        )

    def item(change: Change, cursor: str) -> pb.WorkflowChange | None:
        passes_now = not change.deleted and passes(change.instance)
        if not passes_now and not any(map(passes, change.before)):
            return None
        return pb.WorkflowChange(
            instance=change.instance, deleted=change.deleted, passes=passes_now, cursor=cursor
        )

    return item
