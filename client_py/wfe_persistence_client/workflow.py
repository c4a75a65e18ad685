"""Operations on workflows: create, persist, commit, delete and purge; reading adds the reads.

(Longer than 450 lines, as it is one method for each RPC, with its arguments and their meaning.)
"""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Collection,
    Iterable,
    Sequence,
)
from datetime import datetime

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert, patches
from wfe_persistence_client.bulk import Bulk, BulkKind, BulkResult
from wfe_persistence_client.connection import new_id
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.misfit import build, each
from wfe_persistence_client.model import (
    Acknowledgement,
    CommittedWorkflow,
    Event,
    EventSubscription,
    ExecutionError,
    LifecycleEvent,
    NameHolder,
    PersistedWorkflow,
    PurgedWorkflows,
    QueueItem,
    ScheduledCommand,
    SubscriptionClaim,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)
from wfe_persistence_client.reading import Reading
from wfe_persistence_client.saving import check_whole
from wfe_persistence_client.step import Step


class Workflows(Reading):
    """The operations on workflows."""

    async def create_new_workflow(
        self,
        instance: WorkflowInstance,
        *,
        enqueue: Iterable[QueueItem] = (),
        held_lock_tokens: Iterable[str] = (),
    ) -> str:
        """Stores a new workflow with all its pointers, and returns its id.

        An empty id is replaced by a new UUID, an empty name by the id. The call sets
        `id`, `name` and `revision` of `instance` to what is stored. Storing the same
        workflow again (same id, same content) changes nothing, even if it has been
        updated since. Set the id yourself if you want to be able to repeat the call
        after `CommitOutcomeUnknown` or `DeadlineExceeded`.

        Args:
            instance: the workflow.
            enqueue: items to enqueue with it, in the same transaction, as by `enqueue`;
                an empty id stands for that of the workflow. A workflow that is stored
                already is not enqueued again: that was done when it was created.
            held_lock_tokens: create it only if each of these locks is still held.

        Raises:
            PartialWorkflow: it was loaded with a view.
            LeaseLost: a lock is no longer held; nothing was written.
            WorkflowAlreadyExists: the id is in use with different content.
            NameTaken: another workflow has the name.
            TooLarge: it exceeds the server's message limit.
        """
        message = convert.workflow_to_proto(instance)
        check_whole(instance)
        message.revision = 0
        # Generated here, not by the store, so that a retry is the same create.
        message.id = message.id or new_id()
        response = await self._calls.unary(
            self._workflows.CreateNewWorkflow,
            build(
                workflow_pb2.CreateNewWorkflowRequest,
                instance=message,
                enqueue=convert.queue_items_to_proto("enqueue", enqueue),
                held_lock_tokens=held_lock_tokens,
            ),
        )
        if self._shared.memory.capacity:
            message.id, message.name = response.id, response.name
            self._remember(response.id, patches.snapshot(message).stored(response.revision, None))
        instance.id, instance.name = response.id, response.name
        instance.revision = response.revision
        return response.id

    def create_workflows(
        self,
        instances: Iterable[WorkflowInstance] | AsyncIterable[WorkflowInstance],
        *,
        enqueue: Iterable[QueueItem] = (),
    ) -> AsyncIterator[BulkResult[WorkflowInstance]]:
        """Stores many new workflows, and yields what became of each, in their order.

            async for result in provider.create_workflows(instances):
                if result.error is not None:
                    print(result.item.reference, result.error)

        Each is stored as by `create_new_workflow`, at a fraction of the cost: they are sent in
        batches over one stream, and one that is refused does not affect the others. When the
        stream breaks, or the server stops, it is resumed where it was, and no workflow is
        stored twice; `timeout` applies to each batch. What has been yielded without an error
        is stored.

        There may be any number of workflows: they are read while others are sent, at most
        some hundred ahead. Read on, or the stream is ended and resumed later. If `instances`
        raises, or has something that is no workflow or cannot be sent, that is raised when
        all before it has been yielded.

        Workflows that are created this way are not remembered: the first `persist_workflow`
        sends the full state.

        Args:
            instances: the workflows. Set their ids if you want to be able to repeat the call
                after an error.
            enqueue: items to enqueue with each of them; an empty id stands for that of the
                workflow.

        Raises:
            NamespaceFull: the namespace stores as much as it may.
            CommitOutcomeUnknown: what was sent last may or may not be stored.
        """
        items = convert.queue_items_to_proto("enqueue", enqueue)

        def to_proto(instance: WorkflowInstance) -> workflow_pb2.CreateNewWorkflowRequest:
            message = convert.workflow_to_proto(instance)
            check_whole(instance)
            message.revision = 0
            message.id = message.id or new_id()
            return workflow_pb2.CreateNewWorkflowRequest(instance=message, enqueue=items)

        def created(
            instance: WorkflowInstance, answer: workflow_pb2.CreateNewWorkflowResponse
        ) -> str:
            instance.id, instance.name = answer.id, answer.name
            instance.revision = answer.revision
            return answer.id

        kind = BulkKind(
            argument="instances",
            type=WorkflowInstance,
            convert=to_proto,
            method=self._workflows.CreateWorkflows,
            request=lambda some: workflow_pb2.CreateWorkflowsRequest(workflows=some),
            alone=self._workflows.CreateNewWorkflow,
            created=created,
        )
        return Bulk(self._calls, kind).results(instances)

    async def persist_workflow(
        self,
        instance: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
        held_lock_tokens: Iterable[str] = (),
        enqueue: Iterable[QueueItem] = (),
        acknowledge: Iterable[Acknowledgement] = (),
        publish: Iterable[LifecycleEvent] = (),
    ) -> int:
        """Replaces the stored state of a workflow, and returns its new revision.

        Pointers that are no longer in it are removed; the order is preserved; an empty
        name keeps the stored one. The call sets `instance.revision` to the new revision
        and changes nothing else in `instance`.

        It sends a patch against what the provider last loaded or wrote, if that is
        smaller than the full state. If another writer has written since, it sends the
        full state: the last writer wins. In strict mode it raises `RevisionMismatch`
        instead.

        A workflow that was loaded partially (`view`) can only be stored as a patch, and
        only against the revision with which it was loaded or last written, in either
        mode.

        Args:
            instance: the full new state, with its id; or a partially loaded workflow
                with its changes.
            expected_revision: write only if this is the stored revision, 1 or higher;
                None: `strict` decides.
            strict: whether to write only if the stored revision is `instance.revision`
                or, if that is 0, the one that this provider saw last; None: the value
                given to `connect`.
            held_lock_tokens: write only if each of these locks (`AcquiredLock.token`,
                `lock.token`) is still held.
            enqueue: items to enqueue in the same transaction, as by `enqueue`; an empty
                id stands for that of the workflow. One that is also acknowledged here
                comes again, at its `visible_time`.
            acknowledge: items that have been handled, in the same transaction, as by
                `acknowledge`. `confirmed` is judged by the state after this write.
                (`commit_workflow` and `step` tell which items were not confirmed.)
            publish: lifecycle events to publish, in the same transaction.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision; nothing was written.
            LeaseLost: a lock or an item is no longer held; nothing was written.
            CommitOutcomeUnknown: also if a response was lost, the server is too old to
                support `request_id`, and the revision has increased since.
            PartialWorkflow: a partially loaded workflow whose pointers were reordered,
                or that the provider no longer remembers.
            NameTaken: another workflow has the name.
            TooLarge: it exceeds the server's message limit and cannot be sent as a
                patch instead, for example because another writer has written since.
            ValueError: strict, and the revision is unknown.
        """
        effects = _effects(held_lock_tokens, enqueue, acknowledge, publish)

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            response = await self._persist(
                self._workflows.PersistWorkflow,
                build(
                    workflow_pb2.PersistWorkflowRequest,
                    instance=message,
                    expected_revision=expected,
                    request_id=new_id(),
                    held_lock_tokens=effects.held_lock_tokens,
                    enqueue=effects.enqueue,
                    acknowledge=effects.acknowledge,
                    publish=effects.publish,
                ),
                deadline,
            )
            return CommittedWorkflow(revision=response.revision, subscription_ids=[], event_ids=[])

        return (await self._save(instance, effects, whole, expected_revision, strict)).revision

    async def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Sequence[EventSubscription],
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
        held_lock_tokens: Iterable[str] = (),
        enqueue: Iterable[QueueItem] = (),
        acknowledge: Iterable[Acknowledgement] = (),
        publish: Iterable[LifecycleEvent] = (),
    ) -> PersistedWorkflow:
        """`persist_workflow` and the creation of subscriptions, all or nothing.

        Empty ids of subscriptions are replaced by new UUIDs. A subscription that
        already exists with the same content is left unchanged.

        Raises:
            SubscriptionAlreadyExists: an id is in use with different content.
            WorkflowNotFound, RevisionMismatch, LeaseLost, CommitOutcomeUnknown,
            PartialWorkflow, NameTaken, TooLarge, ValueError: as for `persist_workflow`.
        """
        effects = _effects(held_lock_tokens, enqueue, acknowledge, publish)
        messages = convert.subscriptions_to_proto("subscriptions", subscriptions)
        for message in messages:
            message.id = message.id or new_id()
        effects.create_subscriptions.extend(messages)

        async def whole(
            message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
        ) -> CommittedWorkflow:
            response = await self._persist(
                self._workflows.PersistWorkflowWithSubscriptions,
                build(
                    workflow_pb2.PersistWorkflowWithSubscriptionsRequest,
                    instance=message,
                    subscriptions=messages,
                    expected_revision=expected,
                    request_id=new_id(),
                    held_lock_tokens=effects.held_lock_tokens,
                    enqueue=effects.enqueue,
                    acknowledge=effects.acknowledge,
                    publish=effects.publish,
                ),
                deadline,
            )
            return CommittedWorkflow(
                revision=response.revision,
                subscription_ids=list(response.subscription_ids),
                event_ids=[],
                returned_receipts=list(response.returned_receipts),
            )

        response = await self._save(instance, effects, whole, expected_revision, strict)
        return PersistedWorkflow(
            revision=response.revision,
            subscription_ids=response.subscription_ids,
            returned_receipts=response.returned_receipts,
        )

    async def commit_workflow(
        self,
        state: WorkflowInstance | WorkflowPatch,
        *,
        expected_revision: int | None = None,
        held_subscriptions: Iterable[SubscriptionClaim] = (),
        held_lease_tokens: Iterable[str] = (),
        held_lock_tokens: Iterable[str] = (),
        create_subscriptions: Sequence[EventSubscription] = (),
        terminate_subscription_ids: Iterable[str] = (),
        create_events: Sequence[Event] = (),
        processed_event_ids: Iterable[str] = (),
        errors: Sequence[ExecutionError] = (),
        schedule_commands: Iterable[ScheduledCommand] = (),
        complete_lease_tokens: Iterable[str] = (),
        enqueue: Iterable[QueueItem] = (),
        acknowledge: Iterable[Acknowledgement] = (),
        publish: Iterable[LifecycleEvent] = (),
        skip_unawaited_events: bool = False,
        request_id: str | None = None,
    ) -> CommittedWorkflow:
        """Stores one step of an engine, all or nothing, exactly as given.

        `step` does the same but works out the patch itself. Each list has at most 1000
        items. Empty ids of created items are replaced by new UUIDs. Creating or
        scheduling something that already exists behaves as in
        `create_event_subscription`, `create_event` and `schedule_command`.

        Args:
            state: the workflow's full new state, or a patch. The call sets `revision`
                of an instance to the new revision and changes nothing else in it.
            expected_revision: write only if this is the stored revision, 1 or higher;
                required with a patch. None: write regardless of the stored revision.
            held_subscriptions: write only if each of these claims is still held.
            held_lease_tokens: write only if each of these leases is still held.
            held_lock_tokens: write only if each of these locks is still held.
            create_subscriptions: subscriptions to create.
            terminate_subscription_ids: subscriptions to remove; each must exist.
            create_events: events to create.
            processed_event_ids: events to mark as processed; each must exist.
            errors: errors to log, in this order.
            schedule_commands: commands to schedule; no duplicates.
            complete_lease_tokens: claimed commands to remove, as in `complete_commands`.
            enqueue, acknowledge, publish: as for `persist_workflow`.
            skip_unawaited_events: of `create_events`, those to whose name and key there is
                no subscription are stored as processed, and items of `enqueue` with their
                ids are left out. (A server that does not know this stores and enqueues all.)
            request_id: the idempotency key of this write, a UUID: repeating the call
                with the same key and arguments changes nothing and returns the original
                result. The server remembers it for at least
                `StoreInfo.request_retention`. None: a new one, shared by the attempts
                that this call makes.

        Raises:
            WorkflowNotFound, PointerNotFound, SubscriptionNotFound, EventNotFound:
                something that must exist does not.
            RevisionMismatch: the workflow has another revision.
            TokenMismatch, LeaseLost: a claim, lock or item is no longer held.
            NameTaken, SubscriptionAlreadyExists, EventAlreadyExists: an id or name is
                in use with different content.
            RequestIdReused: the `request_id` was used for a different write to this
                workflow.
            PartialWorkflow: the instance was loaded partially (`view`).
            TooLarge: it exceeds the server's message limit.
            Unimplemented: the server is too old to support it.
        """
        new_events = convert.events_to_proto("create_events", create_events)
        new_subscriptions = convert.subscriptions_to_proto(
            "create_subscriptions", create_subscriptions
        )
        for event in new_events:
            event.id = event.id or new_id()
        for subscription in new_subscriptions:
            subscription.id = subscription.id or new_id()
        request = build(
            workflow_pb2.CommitWorkflowRequest,
            expected_revision=expected_revision,
            held_subscriptions=each(
                "held_subscriptions", held_subscriptions, convert.claim_to_proto
            ),
            held_lease_tokens=held_lease_tokens,
            held_lock_tokens=held_lock_tokens,
            create_subscriptions=new_subscriptions,
            terminate_subscription_ids=terminate_subscription_ids,
            create_events=new_events,
            processed_event_ids=processed_event_ids,
            errors=convert.errors_to_proto(errors),
            schedule_commands=each(
                "schedule_commands", schedule_commands, convert.command_to_proto
            ),
            complete_lease_tokens=complete_lease_tokens,
            enqueue=convert.queue_items_to_proto("enqueue", enqueue),
            acknowledge=convert.acknowledgements_to_proto(acknowledge),
            publish=convert.lifecycle_events_to_proto("publish", publish),
            skip_unawaited_events=skip_unawaited_events,
            request_id=new_id() if request_id is None else request_id,
        )
        taken: patches.Snapshot | None = None
        if isinstance(state, WorkflowPatch):
            request.patch.CopyFrom(convert.patch_to_proto(state))
        else:
            message = convert.workflow_to_proto(state)
            check_whole(state)
            message.revision = 0
            request.instance.CopyFrom(message)
            if self._shared.memory.capacity:
                taken = patches.snapshot(message)
        committed = await self._commit(request)
        if isinstance(state, WorkflowPatch):
            # A later patch against it would be rejected, at the cost of a round trip.
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
        """One step of an engine, stored in one transaction.

            async with provider.step(workflow) as step:
                workflow.status = WorkflowStatus.COMPLETE
                step.create_event(completed)
                step.terminate_subscription(subscription_id)
                step.schedule_command(command)
                step.complete(claimed_command)
                step.hold(claim)
            print(step.revision)

        When the block ends without an exception, everything is stored in one
        transaction, with the workflow's state at that moment; if the block raises,
        nothing is stored. Like `persist_workflow` it sends a patch if that is smaller,
        with the same modes and errors; it also raises the errors of `commit_workflow`.
        After an error nothing is stored, unless `maybe_written` is set.

        Args:
            workflow: the workflow, loaded or newly constructed, with its id.
            expected_revision: as for `persist_workflow`.
            strict: as for `persist_workflow`.
        """

        async def commit(
            instance: WorkflowInstance, effects: workflow_pb2.CommitWorkflowRequest
        ) -> CommittedWorkflow:
            async def whole(
                message: workflow_pb2.WorkflowInstance, expected: int | None, deadline: Deadline
            ) -> CommittedWorkflow:
                request = build(
                    workflow_pb2.CommitWorkflowRequest, instance=message, expected_revision=expected
                )
                request.MergeFrom(effects)
                request.request_id = new_id()
                return await self._commit(request, deadline)

            return await self._save(instance, effects, whole, expected_revision, strict)

        return Step(workflow, commit)

    async def set_name_holder(
        self, name: str, workflow_id: str, *, claim_id: str = "", expected_claim_id: str = ""
    ) -> NameHolder:
        """Says which workflow of a namespace set has a name, and returns which one has it then.

        The provider of a set calls this itself, in the member to which the name belongs.
        Nothing changes if it is held under another claim than the expected one.

        Args:
            name: the name.
            workflow_id: the workflow that is to hold it; empty: none, it is given up.
            claim_id: what tells this claim from all others, a new UUID; empty with an empty
                `workflow_id`.
            expected_claim_id: the claim under which it is held until now; empty: nobody
                holds it.
        """
        response = await self._calls.unary(
            self._workflows.SetNameHolder,
            build(
                workflow_pb2.SetNameHolderRequest,
                name=name,
                workflow_id=workflow_id,
                claim_id=claim_id,
                expected_claim_id=expected_claim_id,
            ),
        )
        return NameHolder(workflow_id=response.workflow_id, claim_id=response.claim_id)

    async def get_name_holder(self, name: str) -> NameHolder | None:
        """Returns which workflow of a namespace set has a name, by its claim; None: none.

        Args:
            name: the name.
        """
        response = await self._calls.unary(
            self._workflows.GetNameHolder, build(workflow_pb2.GetNameHolderRequest, name=name)
        )
        if not response.workflow_id:
            return None
        return NameHolder(workflow_id=response.workflow_id, claim_id=response.claim_id)

    async def next_definition_sequence(self, definition_id: str) -> int:
        """Returns the next number of a definition's sequence, starting at 1.

        No number is returned twice; after a lost response one may be skipped.
        """
        response = await self._calls.unary(
            self._workflows.NextDefinitionSequence,
            build(workflow_pb2.NextDefinitionSequenceRequest, definition_id=definition_id),
        )
        return response.number

    async def delete_workflow(
        self, workflow_id: str, *, expected_revision: int | None = None
    ) -> None:
        """Deletes a workflow, whatever its status.

        Its pointers, subscriptions and logged errors are deleted with it; its
        descendants, events and commands stay. Not retried after an attempt that may
        have been applied.

        Args:
            workflow_id: its id.
            expected_revision: delete only if this is the stored revision, 1 or higher;
                None: delete regardless of the stored revision.

        Raises:
            WorkflowNotFound: it does not exist.
            RevisionMismatch: it has another revision.
        """
        # Also if the call fails: it may have been applied.
        self._shared.memory.forget(self._space, workflow_id)
        await self._calls.unary(
            self._workflows.DeleteWorkflow,
            build(
                workflow_pb2.DeleteWorkflowRequest,
                id=workflow_id,
                expected_revision=expected_revision,
            ),
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
        """Deletes all workflows that ended before a time, and returns the counts.

        The earliest end is deleted first. Each is deleted with its pointers,
        subscriptions, logged errors and processed completion events, and only together
        with all its descendants in its tree, once those have ended before that time
        too.

        It makes as many calls as necessary, each with its own timeout, so it may take
        long. If it is interrupted, some have been deleted; calling it again continues.
        After lost responses the counts may be too low. `iter_purge_workflows` reports
        progress.

        Args:
            ended_before: the end is complete_time, or create_time if that is absent.
            statuses: COMPLETE, TERMINATED or both; empty: both.
            workflow_definition_id: only with this definition; empty: any. Their
                descendants are deleted whatever their definition.
            dry_run: only count what would be deleted.
            max_rows: maximum number of rows to delete per call, up to 100000; 0 means
                10000.
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
        """`purge_workflows` as an async iterator over the result of each call.

        The arguments are the same; the timeout applies to each call. Leaving the iteration
        stops the purge.
        """
        return self._calls.pages(
            self._workflows.PurgeWorkflows,
            build(
                workflow_pb2.PurgeWorkflowsRequest,
                ended_before=convert.timestamp("ended_before", ended_before),
                statuses=convert.statuses_to_proto(statuses),
                workflow_definition_id=workflow_definition_id,
                dry_run=dry_run,
                max_rows=max_rows,
            ),
            lambda page: [convert.purged_from_proto(page)],
        )


def _effects(
    held_lock_tokens: Iterable[str],
    enqueue: Iterable[QueueItem],
    acknowledge: Iterable[Acknowledgement],
    publish: Iterable[LifecycleEvent],
) -> workflow_pb2.CommitWorkflowRequest:
    """What every write of a workflow may come with."""
    return build(
        workflow_pb2.CommitWorkflowRequest,
        held_lock_tokens=list(held_lock_tokens),
        enqueue=convert.queue_items_to_proto("enqueue", enqueue),
        acknowledge=convert.acknowledgements_to_proto(acknowledge),
        publish=convert.lifecycle_events_to_proto("publish", publish),
    )
