"""Workflows: created, stored, read, listed and deleted."""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from datetime import datetime

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert, patches
from wfe_persistence_client.calls import Deadline
from wfe_persistence_client.connection import LARGEST_PAGE, new_id
from wfe_persistence_client.errors import RevisionMismatch, TooLarge
from wfe_persistence_client.model import (
    CommittedWorkflow,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    ListOrder,
    PersistedWorkflow,
    PurgedWorkflows,
    ScheduledCommand,
    SubscriptionClaim,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.saving import Saving, check_whole
from wfe_persistence_client.step import Step


class Workflows(Saving):
    """The operations on workflows."""

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        """Stores a new workflow with all its pointers, and answers its id.

        An empty id is replaced by a new UUID, an empty name by the id. The same
        workflow again (same id, same content) changes nothing, even if it has moved
        on since. Who wants to be able to call again after `CommitOutcomeUnknown`
        or `DeadlineExceeded` gives the id.

        Raises:
            PartialWorkflow: it was loaded with a view.
            WorkflowAlreadyExists: the id is in use by other content.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit.
        """
        check_whole(instance)
        message = convert.workflow_to_proto(instance)
        message.revision = 0
        # Chosen here and not by the store, so that another attempt is the same create.
        message.id = message.id or new_id()
        answer = await self._calls.unary(
            self._workflows.CreateNewWorkflow,
            workflow_pb2.CreateNewWorkflowRequest(instance=message),
        )
        if self._shared.memory.capacity:
            message.id, message.name = answer.id, answer.name
            self._remember(answer.id, patches.snapshot(message).stored(answer.revision, None))
        return answer.id

    async def persist_workflow(
        self,
        instance: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> int:
        """Replaces the stored state of a workflow, and answers its new revision.

        Pointers no longer in it are removed; the order is kept; an empty name leaves
        the stored one. Of `instance` only `revision` is changed, to the new one.

        It sends only what changed since the provider loaded or wrote the workflow last,
        where that is less. If somebody else has written since, it sends everything: the
        last writer wins, whole. In strict mode it raises `RevisionMismatch` instead.

        One that was loaded as a part (`view`) can be stored as a change only, and only
        to the revision it was loaded or last written with, in any mode.

        Args:
            instance: the whole new state, with its id; or a part as it was loaded, with
                its changes.
            expected_revision: write only if this is the stored revision, from 1;
                None: as `strict` says.
            strict: whether to write only if the stored revision is `instance.revision`,
                or, if that is 0, the one that this provider saw last; None: as said to
                `connect`.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision; nothing was written.
            CommitOutcomeUnknown: also if an answer was lost, the server is too old to
                know a call again, and the revision has grown since.
            PartialWorkflow: a part whose pointers are in another order than they were,
                or that the provider does not remember.
            NameTaken: another workflow has the name.
            TooLarge: it is over the server's message limit, and there is no change to
                be sent instead, because of what others wrote for one.
            ValueError: strict, and the revision is not known.
        """

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            answer = await self._persist(
                self._workflows.PersistWorkflow,
                workflow_pb2.PersistWorkflowRequest(
                    instance=message, expected_revision=expected, request_id=new_id()
                ),
                deadline,
            )
            return CommittedWorkflow(revision=answer.revision, subscription_ids=[], event_ids=[])

        effects = workflow_pb2.CommitWorkflowRequest()
        return (await self._save(instance, effects, whole, expected_revision, strict)).revision

    async def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Sequence[EventSubscription],
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> PersistedWorkflow:
        """`persist_workflow` and the creation of subscriptions, all or nothing.

        Empty ids of subscriptions are replaced by new UUIDs. A subscription that
        exists already with the same content is left as it is.

        Raises:
            SubscriptionAlreadyExists: an id is in use by other content.
            WorkflowNotFound, RevisionMismatch, CommitOutcomeUnknown, PartialWorkflow,
            NameTaken, TooLarge, ValueError: as for `persist_workflow`.
        """
        messages = convert.subscriptions_to_proto(subscriptions)
        for message in messages:
            message.id = message.id or new_id()

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            answer = await self._persist(
                self._workflows.PersistWorkflowWithSubscriptions,
                workflow_pb2.PersistWorkflowWithSubscriptionsRequest(
                    instance=message,
                    subscriptions=messages,
                    expected_revision=expected,
                    request_id=new_id(),
                ),
                deadline,
            )
            return CommittedWorkflow(
                revision=answer.revision,
                subscription_ids=list(answer.subscription_ids),
                event_ids=[],
            )

        effects = workflow_pb2.CommitWorkflowRequest(create_subscriptions=messages)
        answer = await self._save(instance, effects, whole, expected_revision, strict)
        return PersistedWorkflow(revision=answer.revision, subscription_ids=answer.subscription_ids)

    async def commit_workflow(
        self,
        state: WorkflowInstance | WorkflowPatch,
        *,
        expected_revision: int | None = None,
        held_subscriptions: Iterable[SubscriptionClaim] = (),
        held_lease_tokens: Iterable[str] = (),
        create_subscriptions: Sequence[EventSubscription] = (),
        terminate_subscription_ids: Iterable[str] = (),
        create_events: Sequence[Event] = (),
        processed_event_ids: Iterable[str] = (),
        errors: Sequence[ExecutionError] = (),
        schedule_commands: Iterable[ScheduledCommand] = (),
        complete_lease_tokens: Iterable[str] = (),
        request_id: str | None = None,
    ) -> CommittedWorkflow:
        """Stores one step of an engine, all or nothing, exactly as it is given.

        `step` is the same with a new state that finds out by itself what changed. Of
        each list at most 1000 items. Empty ids of what is created are replaced by new
        UUIDs. What is created or scheduled twice is as in the calls of its own.

        Args:
            state: the workflow's new state as a whole, or what changes in it. Of an
                instance only `revision` is changed, to the new one.
            expected_revision: write only if this is the stored revision, from 1; needed
                with a patch. None: write whatever is stored.
            held_subscriptions: write only if each of these claims is still held.
            held_lease_tokens: write only if each of these leases is still held.
            create_subscriptions: subscriptions to create.
            terminate_subscription_ids: subscriptions to remove; each must exist.
            create_events: events to create.
            processed_event_ids: events to mark as processed; each must exist.
            errors: errors to log, in this order.
            schedule_commands: commands to schedule; none twice.
            complete_lease_tokens: claimed commands to remove, as in `complete_commands`.
            request_id: a UUID that names this write: called again with the same one and
                the same arguments, it changes nothing and answers what it answered. The
                server keeps it for `StoreInfo.request_retention`. None: a new one, for
                the attempts that this call makes by itself.

        Raises:
            WorkflowNotFound, PointerNotFound, SubscriptionNotFound, EventNotFound:
                what must exist does not.
            RevisionMismatch: the workflow has another revision.
            TokenMismatch, LeaseLost: a claim is no longer held.
            NameTaken, SubscriptionAlreadyExists, EventAlreadyExists: as in the calls of
                their own.
            RequestIdReused: the `request_id` named another write to this workflow.
            PartialWorkflow: the instance is a part of a workflow only.
            TooLarge: it is over the server's message limit.
            Unimplemented: the server is too old for it.
        """
        new_events = convert.events_to_proto(create_events)
        new_subscriptions = convert.subscriptions_to_proto(create_subscriptions)
        for event in new_events:
            event.id = event.id or new_id()
        for subscription in new_subscriptions:
            subscription.id = subscription.id or new_id()
        request = workflow_pb2.CommitWorkflowRequest(
            expected_revision=expected_revision,
            held_subscriptions=map(convert.claim_to_proto, held_subscriptions),
            held_lease_tokens=held_lease_tokens,
            create_subscriptions=new_subscriptions,
            terminate_subscription_ids=terminate_subscription_ids,
            create_events=new_events,
            processed_event_ids=processed_event_ids,
            errors=convert.errors_to_proto(errors),
            schedule_commands=map(convert.command_to_proto, schedule_commands),
            complete_lease_tokens=complete_lease_tokens,
            request_id=new_id() if request_id is None else request_id,
        )
        taken: patches.Snapshot | None = None
        if isinstance(state, WorkflowPatch):
            request.patch.CopyFrom(convert.patch_to_proto(state))
        else:
            check_whole(state)
            message = convert.workflow_to_proto(state)
            message.revision = 0
            request.instance.CopyFrom(message)
            if self._shared.memory.capacity:
                taken = patches.snapshot(message)
        committed = await self._commit(request)
        if isinstance(state, WorkflowPatch):
            # Its next patch would be refused, and that after a call more.
            self._shared.memory.forget(self._space, state.id)
        else:
            if taken is not None:
                self._remember(state.id, taken.stored(committed.revision, None))
            state.revision = committed.revision
        return committed

    def step(
        self,
        workflow: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> Step:
        """One step of an engine, to be stored as one.

            async with provider.step(workflow) as step:
                workflow.status = WorkflowStatus.COMPLETE
                step.create_event(completed)
                step.terminate_subscription(subscription_id)
                step.schedule_command(command)
                step.complete(claimed_command)
                step.hold(claim)
            print(step.revision)

        When the block ends well, everything is stored in one transaction, with the
        workflow as it is then; if the block raises, nothing is. Like `persist_workflow`
        it sends only what changed where that is less, with the same modes and errors;
        besides, it raises what `commit_workflow` raises. After an error nothing of it
        is stored, unless `maybe_written` says otherwise.

        Args:
            workflow: the workflow, loaded or made by hand, with its id.
            expected_revision: as for `persist_workflow`.
            strict: as for `persist_workflow`.
        """

        async def commit(
            instance: WorkflowInstance, effects: workflow_pb2.CommitWorkflowRequest
        ) -> CommittedWorkflow:
            async def whole(
                message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
            ) -> CommittedWorkflow:
                request = workflow_pb2.CommitWorkflowRequest(
                    instance=message, expected_revision=expected
                )
                request.MergeFrom(effects)
                request.request_id = new_id()
                return await self._commit(request, deadline)

            return await self._save(instance, effects, whole, expected_revision, strict)

        return Step(workflow, commit)

    async def get_workflow_instance(
        self, workflow_id: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Answers a workflow with its pointers, as of one moment.

        One that is too large for one message is read in pages, all of one revision.

        Args:
            workflow_id: its id.
            view: how much of it to answer.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it is read in pages, and was written each time meanwhile.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            answer = await self._calls.unary(
                self._workflows.GetWorkflowInstance,
                workflow_pb2.GetWorkflowInstanceRequest(id=workflow_id, view=convert.view(view)),
                deadline,
            )
            return answer.instance

        return self._read(await self._load(read, view))

    async def get_workflow_instance_by_name(
        self, name: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """Answers the workflow of a name with its pointers, as of one moment.

        One that is too large for one message is read in pages, all of one revision.

        Args:
            name: its name.
            view: how much of it to answer.

        Raises:
            WorkflowNotFound: no workflow has the name.
            RevisionMismatch: it is read in pages, and was written each time meanwhile.
        """

        async def read(view: WorkflowView, deadline: Deadline) -> workflow_pb2.WorkflowInstance:
            answer = await self._calls.unary(
                self._workflows.GetWorkflowInstanceByName,
                workflow_pb2.GetWorkflowInstanceByNameRequest(name=name, view=convert.view(view)),
                deadline,
            )
            return answer.instance

        return self._read(await self._load(read, view))

    async def get_workflow_instances(
        self, workflow_ids: Iterable[str], *, view: WorkflowView = WorkflowView.FULL
    ) -> list[WorkflowInstance]:
        """Answers many workflows as of one moment, in the order asked.

        Ids that do not exist are left out; an id asked for twice is answered twice.

        Args:
            workflow_ids: their ids.
            view: how much of each to answer.

        Raises:
            TooLarge: one of them is too large for one message: `get_workflow_instance`.
        """
        answers = await self._calls.collect(
            self._workflows.GetWorkflowInstances,
            workflow_pb2.GetWorkflowInstancesRequest(
                ids=list(workflow_ids), view=convert.view(view)
            ),
        )
        return [self._read(answer.instance) for answer in answers]

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
                workflow_pb2.ListExecutionPointersRequest(
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
                if attempts >= self._calls.retry.max_attempts:
                    raise
                continue
            instance.view = convert.view(view)
            return instance

    async def get_runnable_instances(self, as_at: datetime | None = None) -> list[str]:
        """Answers the ids of all runnable workflows that are due, soonest first.

        Those with status RUNNABLE and `next_execution` up to and including `as_at`
        (truncated to milliseconds). It reads page by page: a workflow that stops
        being runnable meanwhile may be missing.
        """
        pages = self._in_one_go().iter_runnable_instances(as_at, page_size=LARGEST_PAGE)
        return [instance_id async for instance_id in pages]

    def iter_runnable_instances(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """`get_runnable_instances`, with its arguments, page by page as they are wanted.

        Args:
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._workflows.GetRunnableInstances,
            workflow_pb2.GetRunnableInstancesRequest(
                as_at=convert.optional_timestamp("as_at", as_at), page_size=page_size
            ),
            lambda page: page.instance_ids,
        )

    async def next_definition_sequence(self, definition_id: str) -> int:
        """Takes the next number of a definition, from 1 on.

        No number is given twice; after a lost answer one may be skipped.
        """
        answer = await self._calls.unary(
            self._workflows.NextDefinitionSequence,
            workflow_pb2.NextDefinitionSequenceRequest(definition_id=definition_id),
        )
        return answer.number

    async def list_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
    ) -> list[ExecutionPointer]:
        """Answers the pointers of a workflow, in their order.

        It reads page by page: without `expected_revision` the pages may be of different
        revisions.

        Args:
            workflow_id: its id.
            active_only: only those that can still run (`WorkflowView.ACTIVE`).
            expected_revision: answer only if the workflow's revision is this one, from
                1; None: whatever it is.

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
        """`list_execution_pointers`, with its arguments, page by page as they are wanted.

        Args:
            page_size: pointers a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._workflows.ListExecutionPointers,
            workflow_pb2.ListExecutionPointersRequest(
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
        """Answers all workflows of a filter, by their create_time.

        They are for looking at: those that are not FULL cannot be persisted
        (`get_workflow_instance` loads one that can). It reads page by page; workflows
        that come and go meanwhile shift nothing, and none is answered twice.

        Args:
            filter: which workflows; None: all.
            order: by create_time; equal times by id, or in the reverse.
            view: how much of each to answer. One that alone is too large for a message
                comes as HEADER.
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
        """`list_workflows`, with its arguments, page by page as they are wanted.

        Args:
            page_size: workflows a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._workflows.ListWorkflows,
            workflow_pb2.ListWorkflowsRequest(
                filter=None if filter is None else convert.filter_to_proto(filter),
                order=convert.order_to_proto(order),
                view=workflow_pb2.WorkflowView.ValueType(view.value),
                page_size=page_size,
            ),
            # Not remembered: a long list would push out what is worked on.
            lambda page: map(convert.workflow_from_proto, page.instances),
        )

    async def count_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
    ) -> dict[WorkflowStatus, int]:
        """Counts the workflows of a filter by status; a status that none has is left out.

        Args:
            filter: which workflows; None: all.
        """
        answer = await self._calls.unary(
            self._workflows.CountWorkflows,
            workflow_pb2.CountWorkflowsRequest(
                filter=None if filter is None else convert.filter_to_proto(filter)
            ),
        )
        return convert.counts_from_proto(answer)

    async def delete_workflow(
        self, workflow_id: str, *, expected_revision: int | None = None
    ) -> None:
        """Deletes a workflow, whatever its status.

        Its pointers, subscriptions and logged errors go with it; workflows below it,
        events and commands stay. Not repeated after an attempt that may have been made.

        Args:
            workflow_id: its id.
            expected_revision: delete only if this is the stored revision, from 1; None:
                whatever is stored.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision.
        """
        # Also if the call fails: it may have been done.
        self._shared.memory.forget(self._space, workflow_id)
        await self._calls.unary(
            self._workflows.DeleteWorkflow,
            workflow_pb2.DeleteWorkflowRequest(id=workflow_id, expected_revision=expected_revision),
        )

    async def purge_workflows(
        self,
        ended_before: datetime,
        *,
        statuses: Collection[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> PurgedWorkflows:
        """Deletes all workflows that ended before a time, and answers how many.

        Those that ended first go first, each with its pointers, subscriptions, logged
        errors and processed completion events, and only together with all workflows
        below it in its tree, when those have ended before that time too.

        It makes as many calls as it takes, each with the timeout of its own: it may take
        long. Stopped in the middle it has deleted some; calling again goes on. After
        lost answers the count may be too low. `iter_purge_workflows` tells how far it is.

        Args:
            ended_before: the end is complete_time, or create_time where there is none.
            statuses: of COMPLETE and TERMINATED; empty: both.
            workflow_definition_id: only of this definition; empty: of any. Those below
                them in their trees go whatever their definition.
            dry_run: only count what would be deleted.
            max_rows: how many rows to delete a call, up to 100000; 0: 10000.
        """
        total = PurgedWorkflows()
        async for done in self.iter_purge_workflows(
            ended_before,
            statuses=statuses,
            workflow_definition_id=workflow_definition_id,
            dry_run=dry_run,
            max_rows=max_rows,
        ):
            total = PurgedWorkflows(
                workflows=total.workflows + done.workflows,
                execution_pointers=total.execution_pointers + done.execution_pointers,
                subscriptions=total.subscriptions + done.subscriptions,
                errors=total.errors + done.errors,
                events=total.events + done.events,
            )
        return total

    def iter_purge_workflows(
        self,
        ended_before: datetime,
        *,
        statuses: Collection[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[PurgedWorkflows]:
        """`purge_workflows`, call by call as they are wanted: what each call deleted.

        The arguments are as there; the timeout is for one call. Who stops asking stops
        the purge.
        """
        return self._calls.pages(
            self._workflows.PurgeWorkflows,
            workflow_pb2.PurgeWorkflowsRequest(
                ended_before=convert.timestamp("ended_before", ended_before),
                statuses=convert.statuses_to_proto(statuses),
                workflow_definition_id=workflow_definition_id,
                dry_run=dry_run,
                max_rows=max_rows,
            ),
            lambda page: [convert.purged_from_proto(page)],
        )
