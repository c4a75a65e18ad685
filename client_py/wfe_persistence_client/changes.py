"""Changes of workflows: watch which ones are written or deleted."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import timedelta

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import DEFAULT_HEARTBEAT
from wfe_persistence_client.connection import Connection
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import WorkflowChange, WorkflowStatus


class Changes(Connection):
    """The operations on changes of workflows."""

    def watch_workflows(
        self,
        *,
        after: str = "",
        workflow_id: str = "",
        statuses: Iterable[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        version: int | None = None,
        reference: str | None = None,
        name_prefix: str = "",
        root_workflow_id: str = "",
        heartbeat: timedelta = DEFAULT_HEARTBEAT,
    ) -> AsyncIterator[WorkflowChange]:
        """Yields each workflow that is written or deleted and passes the filter, or passed
        it before, in the order of the commits, without end.

        Several changes of a workflow may come as one, and a change may come again, but
        the last one always comes. When the connection breaks, or the server stops, the
        stream is resumed where it was; `timeout` applies to each resumption. To resume
        after a restart of your own, keep the `cursor` of the last change that was
        handled, and pass it as `after`:

            async for change in provider.watch_workflows(statuses=[RUNNABLE], after=cursor):
                if change.passes:
                    runnable[change.instance.id] = change.instance
                else:
                    runnable.pop(change.instance.id, None)
                cursor = change.cursor

        A server that is silent for two heartbeats counts as lost.

        Args:
            after: the cursor of a change: start behind it; empty: from now.
            workflow_id: only this workflow; empty: any.
            statuses: only those with one of these statuses; none: any.
            workflow_definition_id: only those of this definition; empty: any.
            version: only those of this version of the definition; None: any.
            reference: only those with this reference; None: any.
            name_prefix: only those whose name starts with this; empty: any.
            root_workflow_id: only those with this root; empty: any.
            heartbeat: how often the server says at least that it is there, and how far it
                has looked; 1 s to 60 s.

        Raises:
            CursorExpired: changes after the cursor were deleted, the store was emptied,
                or the cursor is from before a restore: list the workflows anew.
        """
        request = build(
            workflow_pb2.WatchWorkflowsRequest,
            filter=build(
                workflow_pb2.WatchedWorkflows,
                workflow_id=workflow_id,
                statuses=convert.statuses_to_proto(statuses),
                workflow_definition_id=workflow_definition_id,
                version=version,
                reference=reference,
                name_prefix=name_prefix,
                root_workflow_id=root_workflow_id,
            ),
            after=after,
            heartbeat=convert.duration(heartbeat),
        )
        return self._changes(request, heartbeat)

    async def _changes(
        self, request: workflow_pb2.WatchWorkflowsRequest, heartbeat: timedelta
    ) -> AsyncIterator[WorkflowChange]:
        responses = self._calls.watch(self._workflows.WatchWorkflows, request, heartbeat)
        async with aclosing(responses):
            async for response in responses:
                for change in response.changes:
                    yield convert.change_from_proto(change)
