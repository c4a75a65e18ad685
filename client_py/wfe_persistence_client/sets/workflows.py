"""Workflows of a namespace set: each is in the member of its id, with what is written with it.

(Longer than 450 lines, as it has the methods of `WorkflowMethods`, each with its arguments.)
"""

import copy
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.bulk import BulkResult
from wfe_persistence_client.connection import new_id
from wfe_persistence_client.errors import (
    CommitOutcomeUnknown,
    EventNotFound,
    NamespaceFull,
    PersistenceError,
)
from wfe_persistence_client.model import (
    Acknowledgement,
    CommittedWorkflow,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    LifecycleEvent,
    ListOrder,
    PersistedWorkflow,
    PurgedWorkflows,
    QueueItem,
    ScheduledCommand,
    SubscriptionClaim,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.bulk import SetBulk
from wfe_persistence_client.sets.members import members_differ, routed, tagging
from wfe_persistence_client.sets.merging import by_time, together
from wfe_persistence_client.sets.names import SetNames
from wfe_persistence_client.sets.routing import home_of, member_of, tag, untag
from wfe_persistence_client.step import Step


class SetWorkflows(SetNames):
    """The operations on workflows."""

    wait_for_workflow = routed(PersistenceProvider.wait_for_workflow)
    next_definition_sequence = routed(PersistenceProvider.next_definition_sequence)
    set_name_holder = routed(PersistenceProvider.set_name_holder)
    get_name_holder = routed(PersistenceProvider.get_name_holder)

    async def create_new_workflow(
        self,
        instance: WorkflowInstance,
        *,
        enqueue: Iterable[QueueItem] = (),
        held_lock_tokens: Iterable[str] = (),
    ) -> str:
        """As of a single namespace. A name of its own takes three more calls."""
        given = copy.copy(instance)
        given.id = given.id or new_id()
        member, index, size = await self._place(given.id)
        tokens = self._locks_of(held_lock_tokens, index, size)
        async with self._under_name(given.id, given.name) as names:
            id_ = await tagging(
                index,
                member.create_new_workflow(
                    given, enqueue=enqueue, held_lock_tokens=[*tokens, *names]
                ),
            )
        instance.id, instance.name, instance.revision = given.id, given.name, given.revision
        return id_

    def create_workflows(
        self,
        instances: Iterable[WorkflowInstance] | AsyncIterable[WorkflowInstance],
        *,
        enqueue: Iterable[QueueItem] = (),
    ) -> AsyncIterator[BulkResult[WorkflowInstance]]:
        """As of a single namespace, with a stream for each member. Those with a name of their own
        are created one by one."""
        items = list(enqueue)
        return self._created(instances, items)

    async def _created(
        self,
        instances: Iterable[WorkflowInstance] | AsyncIterable[WorkflowInstance],
        enqueue: list[QueueItem],
    ) -> AsyncGenerator[BulkResult[WorkflowInstance], None]:
        members = await self._members()

        def place(instance: WorkflowInstance) -> int | None:
            if not instance.id:
                instance.id = new_id()
            is_named = instance.name not in ("", instance.id)
            return None if is_named else member_of(instance.id, len(members))

        async def alone(instance: WorkflowInstance) -> BulkResult[WorkflowInstance]:
            try:
                id_ = await self.create_new_workflow(instance, enqueue=enqueue)
            except PersistenceError as exc:
                if isinstance(exc, NamespaceFull | CommitOutcomeUnknown):
                    raise
                return BulkResult(instance, instance.id, exc)
            return BulkResult(instance, id_)

        bulk = SetBulk(
            "instances",
            WorkflowInstance,
            place,
            lambda index, some: members[index].create_workflows(some, enqueue=enqueue),
            alone,
        )
        async with aclosing(bulk.results(instances)) as results:
            async for result in results:
                yield result

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
        """As of a single namespace, for what is on the workflow's member (`MembersDiffer`)."""
        member, index, size = await self._place(instance.id)
        tokens = self._locks_of(held_lock_tokens, index, size)
        receipts = self._receipts_of(acknowledge, index, size)
        given = self._without_known_name(instance)
        async with self._under_name(given.id, given.name) as names:
            instance.revision = await tagging(
                index,
                member.persist_workflow(
                    given,
                    expected_revision=expected_revision,
                    strict=strict,
                    held_lock_tokens=[*tokens, *names],
                    enqueue=enqueue,
                    acknowledge=receipts,
                    publish=publish,
                ),
            )
        return instance.revision

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
        """As of a single namespace, for what is on the workflow's member (`MembersDiffer`)."""
        member, index, size = await self._place(instance.id)
        tokens = self._locks_of(held_lock_tokens, index, size)
        receipts = self._receipts_of(acknowledge, index, size)
        given = self._without_known_name(instance)
        async with self._under_name(given.id, given.name) as names:
            written = await tagging(
                index,
                member.persist_workflow_with_subscriptions(
                    given,
                    [_with_id(subscription, index) for subscription in subscriptions],
                    expected_revision=expected_revision,
                    strict=strict,
                    held_lock_tokens=[*tokens, *names],
                    enqueue=enqueue,
                    acknowledge=receipts,
                    publish=publish,
                ),
            )
        instance.revision = written.revision
        return replace(written, returned_receipts=_tagged(written.returned_receipts, index))

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
        skip_unawaited_events: bool = False,  # noqa: ARG002 - see below
        request_id: str | None = None,
    ) -> CommittedWorkflow:
        """As of a single namespace, for what is on the workflow's member (`MembersDiffer`).

        What it creates is stored there, too: events, subscriptions, commands, items. With
        `skip_unawaited_events` only subscriptions of this member would count, so it is ignored.
        """
        member, index, size = await self._place(state.id)
        effects = workflow_pb2.CommitWorkflowRequest(
            held_subscriptions=[convert.claim_to_proto(claim) for claim in held_subscriptions],
            held_lease_tokens=held_lease_tokens,
            held_lock_tokens=held_lock_tokens,
            terminate_subscription_ids=terminate_subscription_ids,
            processed_event_ids=processed_event_ids,
            complete_lease_tokens=complete_lease_tokens,
            acknowledge=convert.acknowledgements_to_proto(acknowledge),
        )
        claims = list(held_subscriptions)
        self._localize(effects, index, size)
        if isinstance(state, WorkflowInstance):
            given: WorkflowInstance | WorkflowPatch = self._without_known_name(state)
            name = self._without_known_name(state).name
        else:
            given, name = state, state.header.get("name", "")
        async with self._under_name(state.id, name) as names:
            committed = await self._committing(
                effects,
                index,
                size,
                member.commit_workflow(
                    given,
                    expected_revision=expected_revision,
                    held_subscriptions=claims,
                    held_lease_tokens=effects.held_lease_tokens,
                    held_lock_tokens=[*effects.held_lock_tokens, *names],
                    create_subscriptions=[_with_id(s, index) for s in create_subscriptions],
                    terminate_subscription_ids=effects.terminate_subscription_ids,
                    create_events=[_with_id(event, index) for event in create_events],
                    processed_event_ids=effects.processed_event_ids,
                    errors=errors,
                    schedule_commands=schedule_commands,
                    complete_lease_tokens=effects.complete_lease_tokens,
                    enqueue=enqueue,
                    acknowledge=[
                        Acknowledgement(receipt=given_.receipt, confirmed=given_.confirmed)
                        for given_ in effects.acknowledge
                    ],
                    publish=publish,
                    request_id=request_id,
                ),
            )
        if isinstance(state, WorkflowInstance):
            state.revision = committed.revision
        return committed

    def step(
        self,
        workflow: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> Step:
        """As of a single namespace, for what is on the workflow's member (`MembersDiffer`)."""

        async def commit(
            instance: WorkflowInstance, effects: workflow_pb2.CommitWorkflowRequest
        ) -> CommittedWorkflow:
            member, index, size = await self._place(instance.id)
            self._localize(effects, index, size)
            given = self._without_known_name(instance)
            inner = member.step(given, expected_revision=expected_revision, strict=strict)
            async with self._under_name(given.id, given.name) as names:
                effects.held_lock_tokens.extend(names)
                committed = await self._committing(
                    effects, index, size, inner._commit(given, effects)
                )
            instance.revision = given.revision
            return committed

        step = Step(workflow, commit)
        if self._set.members is not None:
            # So that the ids that the step makes up tell where they are.
            index = member_of(workflow.id, len(self._set.members))
            step._new_id = lambda: tag(new_id(), index)
        return step

    async def _committing(
        self,
        effects: workflow_pb2.CommitWorkflowRequest,
        index: int,
        size: int,
        call: Any,
    ) -> CommittedWorkflow:
        try:
            committed: CommittedWorkflow = await tagging(index, call)
        except EventNotFound as error:
            if any(home_of(id_, size) != index for id_ in effects.processed_event_ids):
                raise members_differ("processed_event_ids") from error
            raise
        return replace(committed, returned_receipts=_tagged(committed.returned_receipts, index))

    def _localize(self, effects: workflow_pb2.CommitWorkflowRequest, index: int, size: int) -> None:
        """Makes effects those of the workflow's member; raises MembersDiffer if they are not."""
        for field in ("held_lease_tokens", "held_lock_tokens", "complete_lease_tokens"):
            tokens = getattr(effects, field)
            tokens[:] = [
                self._bare(f"{field}[{at}]", token, index, size)[0]
                for at, token in enumerate(tokens)
            ]
        for at, acknowledged in enumerate(effects.acknowledge):
            path = f"acknowledge[{at}].receipt"
            acknowledged.receipt = self._bare(path, acknowledged.receipt, index, size)[0]
        ids = [
            (f"held_subscriptions[{at}]", claim.subscription_id)
            for at, claim in enumerate(effects.held_subscriptions)
        ]
        for field in ("terminate_subscription_ids", "processed_event_ids"):
            ids += [(f"{field}[{at}]", id_) for at, id_ in enumerate(getattr(effects, field))]
        for path, id_ in ids:
            if untag(id_, size)[1] not in (None, index):
                raise members_differ(path)
        # The subscriptions of other members would not count.
        effects.skip_unawaited_events = False

    async def _place(self, workflow_id: str) -> tuple[PersistenceProvider, int, int]:
        """The member of a workflow, its index, and how many members there are."""
        members = await self._members()
        index = member_of(workflow_id, len(members))
        return members[index], index, len(members)

    def _locks_of(self, tokens: Iterable[str], index: int, size: int) -> list[str]:
        return [
            self._bare(f"held_lock_tokens[{at}]", token, index, size)[0]
            for at, token in enumerate(tokens)
        ]

    def _receipts_of(
        self, acknowledge: Iterable[Acknowledgement], index: int, size: int
    ) -> list[Acknowledgement]:
        return [
            replace(
                given,
                receipt=self._bare(f"acknowledge[{at}].receipt", given.receipt, index, size)[0],
            )
            for at, given in enumerate(acknowledge)
        ]

    # Reads.

    async def get_workflow_instance(
        self, workflow_id: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """As of a single namespace."""
        member = await self._of(workflow_id)
        instance = await member.get_workflow_instance(workflow_id, view=view)
        self._set.remember(instance.id, instance.name)
        return instance

    async def get_workflow_instances(
        self, workflow_ids: Iterable[str], *, view: WorkflowView = WorkflowView.FULL
    ) -> list[WorkflowInstance]:
        """As of a single namespace; the members are asked at the same time."""
        asked = list(workflow_ids)
        members = await self._members()
        of_member: dict[int, list[str]] = {}
        for id_ in dict.fromkeys(asked):
            of_member.setdefault(member_of(id_, len(members)), []).append(id_)
        calls = [members[i].get_workflow_instances(ids, view=view) for i, ids in of_member.items()]
        found = {one.id: one for many in await together(calls) for one in many}
        given: set[str] = set()
        instances = []
        for id_ in asked:
            if (instance := found.get(id_)) is not None:
                # One that was asked for twice is not the same object.
                instances.append(copy.deepcopy(instance) if id_ in given else instance)
                given.add(id_)
        return instances

    def iter_runnable_instances(
        self,
        as_at: datetime | None = None,
        *,
        workflow_definition_ids: Iterable[str] = (),
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """As of a single namespace, in the order of all members."""
        definitions = list(workflow_definition_ids)
        return self._merged_ids(
            lambda member: member._keyed_runnable_instances(as_at, definitions, page_size)
        )

    def iter_execution_pointers(
        self,
        workflow_id: str,
        *,
        active_only: bool = False,
        expected_revision: int | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionPointer]:
        """As of a single namespace."""
        return self._of_one(
            workflow_id,
            lambda member: member.iter_execution_pointers(
                workflow_id,
                active_only=active_only,
                expected_revision=expected_revision,
                page_size=page_size,
            ),
        )

    async def _of_one(
        self, key: str, open_: Callable[[PersistenceProvider], AsyncIterator[Any]]
    ) -> AsyncGenerator[Any, None]:
        async for item in open_(await self._of(key)):
            yield item

    def iter_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
        page_size: int = 0,
    ) -> AsyncIterator[WorkflowInstance]:
        """As of a single namespace, in the order of all members."""
        return self._merged(
            lambda member: member.iter_workflows(
                filter, order=order, view=view, page_size=page_size
            ),
            by_time(lambda instance: instance.create_time),
            descending=order is ListOrder.NEWEST_FIRST,
        )

    async def count_workflows(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - the request's name for it
    ) -> dict[WorkflowStatus, int]:
        """As of a single namespace: the sum of all members."""
        total: dict[WorkflowStatus, int] = {}
        for counts in await self._each(lambda member: member.count_workflows(filter)):
            for status, count in counts.items():
                total[status] = total.get(status, 0) + count
        return dict(sorted(total.items(), key=lambda item: item[0].value))

    def iter_purge_workflows(
        self,
        ended_before: datetime,
        *,
        statuses: Collection[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[PurgedWorkflows]:
        """As of a single namespace, one member after the other. A tree of workflows of which one
        has not ended is only kept as far as it is on one member."""
        return self._one_after_another(
            lambda member: member.iter_purge_workflows(
                ended_before,
                statuses=statuses,
                workflow_definition_id=workflow_definition_id,
                dry_run=dry_run,
                max_rows=max_rows,
            )
        )


def _with_id(thing: Any, index: int) -> Any:
    """A subscription or event with an id that tells where it is, if it had none."""
    return thing if thing.id else replace(thing, id=tag(new_id(), index))


def _tagged(receipts: Iterable[str], index: int) -> list[str]:
    return [tag(receipt, index) for receipt in receipts]
