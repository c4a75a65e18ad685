"""How workflows are read: one, many, in pages, and counted."""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from datetime import datetime, timedelta

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import RevisionMismatch, TooLarge
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import (
    ExecutionPointer,
    ListOrder,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.saving import Saving

# Of one GetWorkflowInstances.
_MOST_IDS = 1000


class Reading(Saving):
    """Reads workflows; those that can be persisted are remembered."""

    async def get_workflow_instance(
        self, workflow_id: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Returns a workflow with its pointers, from one snapshot.

        A workflow that is too large for one message is read in pages, all of the same
        revision.

        Args:
            workflow_id: its id.
            view: how much of it to return.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it is read in pages, and was written during every attempt.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            response = await self._calls.unary(
                self._workflows.GetWorkflowInstance,
                build(
                    workflow_pb2.GetWorkflowInstanceRequest, id=workflow_id, view=convert.view(view)
                ),
                deadline,
            )
            return response.instance

        return self._read(await self._load(read, view))

    async def get_workflow_instance_by_name(
        self, name: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Returns the workflow with a name, with its pointers, from one snapshot.

        A workflow that is too large for one message is read in pages, all of the same
        revision.

        Args:
            name: its name.
            view: how much of it to return.

        Raises:
            WorkflowNotFound: no workflow has the name.
            RevisionMismatch: it is read in pages, and was written during every attempt.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            response = await self._calls.unary(
                self._workflows.GetWorkflowInstanceByName,
                build(
                    workflow_pb2.GetWorkflowInstanceByNameRequest,
                    name=name,
                    view=convert.view(view),
                ),
                deadline,
            )
            return response.instance

        return self._read(await self._load(read, view))

    async def wait_for_workflow(
        self,
        workflow_id: str,
        *,
        statuses: Iterable[WorkflowStatus] = (),
        wait: timedelta | None = None,
    ) -> WorkflowInstance:
        """Returns a workflow's header as soon as it has one of some statuses.

        If it has none of them when the wait is over, the header is returned all the same.

        Args:
            workflow_id: its id.
            statuses: what to wait for, at most 1000; empty: `COMPLETE` and `TERMINATED`.
            wait: how long to wait, up to 60 s, in addition to `timeout`; None: not at
                all.

        Raises:
            WorkflowNotFound: it does not exist, or was deleted during the wait.
        """
        waiting = 0.0 if wait is None else max(wait.total_seconds(), 0.0)
        response = await self._calls.unary(
            self._workflows.WaitForWorkflow,
            build(
                workflow_pb2.WaitForWorkflowRequest,
                id=workflow_id,
                statuses=convert.statuses_to_proto(statuses),
                wait=convert.optional_duration(wait),
            ),
            # The wait ends before the deadline, on which the server decides.
            Deadline(self._calls.timeout + waiting),
        )
        return self._read(response.instance)

    async def get_workflow_instances(
        self, workflow_ids: Iterable[str], *, view: WorkflowView = WorkflowView.FULL
    ) -> list[WorkflowInstance]:
        """Returns many workflows, each from one snapshot, in the order of `workflow_ids`.

        Ids that do not exist are omitted; an id given twice is returned twice. More than
        1000 different ids are read by several calls. A workflow that is too large for one
        message is read in pages, from a later snapshot.

        Args:
            workflow_ids: their ids.
            view: how much of each to return.

        Raises:
            WorkflowNotFound: one that is read in pages was deleted meanwhile.
            RevisionMismatch: one that is read in pages was written during every attempt.
        """
        asked = list(workflow_ids)
        ids = list(dict.fromkeys(asked))
        found: dict[str, workflow_pb2.WorkflowInstance] = {}
        deadline = self._calls.deadline()
        for i in range(0, max(len(ids), 1), _MOST_IDS):
            responses = await self._calls.collect(
                self._workflows.GetWorkflowInstances,
                build(
                    workflow_pb2.GetWorkflowInstancesRequest,
                    ids=ids[i : i + _MOST_IDS],
                    view=convert.view(view),
                ),
                deadline,
            )
            found.update((response.instance.id, response.instance) for response in responses)
        instances = []
        for id_ in asked:
            instance = found.get(id_)
            if instance is None:
                continue
            if view is not WorkflowView.HEADER and instance.view == convert.view(
                WorkflowView.HEADER
            ):
                instances.append(await self.get_workflow_instance(instance.id, view=view))
            else:
                instances.append(self._read(instance))
        return instances

    async def _load(
        self,
        read: Callable[[WorkflowView, Deadline], Awaitable[workflow_pb2.WorkflowInstance]],
        view: WorkflowView,
    ) -> workflow_pb2.WorkflowInstance:
        deadline = self._calls.deadline()
        try:
            return await read(view, deadline)
        except TooLarge as error:
            if error.reason != "ANSWER_TOO_LARGE" or view is WorkflowView.HEADER:
                raise
        attempts = 0
        while True:
            attempts += 1
            instance = await read(WorkflowView.HEADER, deadline)
            pages = self._calls.pages(
                self._workflows.ListExecutionPointers,
                build(
                    workflow_pb2.ListExecutionPointersRequest,
                    workflow_id=instance.id,
                    active_only=view is WorkflowView.ACTIVE,
                    expected_revision=instance.revision,
                    page_size=LARGEST_PAGE,
                ),
                lambda page: page.execution_pointers,
                deadline,
            )
            try:
                instance.execution_pointers.extend([pointer async for pointer in pages])
            except RevisionMismatch:
                if self._calls.retry.ends_after(attempts) or deadline.remaining() <= 0:
                    raise
                continue
            instance.view = convert.view(view)
            return instance

    async def get_runnable_instances(
        self, as_at: datetime | None = None, *, workflow_definition_ids: Iterable[str] = ()
    ) -> list[str]:
        """Returns the ids of all runnable workflows that are due, soonest first.

        These are the ones with status RUNNABLE and `next_execution` up to and including
        `as_at` (truncated to milliseconds). It reads page by page: a workflow that
        stops being runnable in the meantime may be missing.

        Args:
            as_at: None: now, by the database's clock.
            workflow_definition_ids: only those with one of these definitions, at most
                1000; empty: any. Hosts that share a store ask for those they can run.
        """
        pages = self._in_one_go().iter_runnable_instances(
            as_at, workflow_definition_ids=workflow_definition_ids, page_size=LARGEST_PAGE
        )
        return [instance_id async for instance_id in pages]

    def iter_runnable_instances(
        self,
        as_at: datetime | None = None,
        *,
        workflow_definition_ids: Iterable[str] = (),
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """`get_runnable_instances` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._workflows.GetRunnableInstances,
            build(
                workflow_pb2.GetRunnableInstancesRequest,
                as_at=convert.optional_timestamp("as_at", as_at),
                page_size=page_size,
                workflow_definition_ids=list(workflow_definition_ids),
            ),
            lambda page: page.instance_ids,
        )

    async def _keyed_runnable_instances(
        self, as_at: datetime | None, workflow_definition_ids: Iterable[str], page_size: int
    ) -> AsyncIterator[tuple[int, str]]:
        """`iter_runnable_instances`, each with the number that it is ordered by."""
        pages = self._calls.pages(
            self._workflows.GetRunnableInstances,
            build(
                workflow_pb2.GetRunnableInstancesRequest,
                as_at=convert.optional_timestamp("as_at", as_at),
                page_size=page_size,
                workflow_definition_ids=list(workflow_definition_ids),
                with_order_keys=True,
            ),
            lambda page: zip(page.order_keys, page.instance_ids, strict=True),
        )
        async for keyed in pages:
            yield keyed

    async def list_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
    ) -> list[ExecutionPointer]:
        """Returns the pointers of a workflow, in their order.

        It reads page by page; without `expected_revision` the pages may belong to
        different revisions.

        Args:
            workflow_id: its id.
            active_only: only those that can still run (`WorkflowView.ACTIVE`).
            expected_revision: require the workflow to have this revision, 1 or higher;
                None: any revision.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision.
        """
        pages = self._in_one_go().iter_execution_pointers(
            workflow_id,
            active_only=active_only,
            expected_revision=expected_revision,
            page_size=LARGEST_PAGE,
        )
        return [pointer async for pointer in pages]

    def iter_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionPointer]:
        """`list_execution_pointers` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._workflows.ListExecutionPointers,
            build(
                workflow_pb2.ListExecutionPointersRequest,
                workflow_id=workflow_id,
                active_only=active_only,
                expected_revision=expected_revision,
                page_size=page_size,
            ),
            lambda page: map(convert.pointer_from_proto, page.execution_pointers),
        )

    async def list_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
    ) -> list[WorkflowInstance]:
        """Returns all workflows that match a filter, ordered by create_time.

        They are for inspection: those that are not FULL cannot be persisted
        (`get_workflow_instance` loads one that can). It reads page by page; workflows
        created or deleted in the meantime neither shift the list nor make one appear
        twice.

        Args:
            filter: which workflows; None: all.
            order: by create_time; ties by id, in the same direction.
            view: how much of each to return. One that by itself is too large for a
                message is returned as HEADER.
        """
        pages = self._in_one_go().iter_workflows(
            filter, order=order, view=view, page_size=LARGEST_PAGE
        )
        return [instance async for instance in pages]

    def iter_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
        page_size: int = 0,
    ) -> AsyncIterator[WorkflowInstance]:
        """`list_workflows` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._workflows.ListWorkflows,
            build(
                workflow_pb2.ListWorkflowsRequest,
                filter=None if filter is None else convert.filter_to_proto(filter),
                order=convert.order_to_proto(order),
                view=workflow_pb2.WorkflowView.ValueType(view.value),
                page_size=page_size,
            ),
            # Not remembered: a long list would evict the workflows in use.
            lambda page: map(convert.workflow_from_proto, page.instances),
        )

    async def count_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
    ) -> dict[WorkflowStatus, int]:
        """Counts the workflows that match a filter, by status.

        A status that none of them has is omitted.

        Args:
            filter: which workflows; None: all.
        """
        response = await self._calls.unary(
            self._workflows.CountWorkflows,
            build(
                workflow_pb2.CountWorkflowsRequest,
                filter=None if filter is None else convert.filter_to_proto(filter),
            ),
        )
        return convert.counts_from_proto(response)
