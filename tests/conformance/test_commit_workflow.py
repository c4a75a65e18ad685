"""CommitWorkflow: one step of an engine, all of it or nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands, tokens
from tests.support.expect import Failure, eventually, fails, failure_of
from wfe.persistence.v1.command_pb2 import ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription, SetSubscriptionTokenRequest
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CommitWorkflowResponse,
    PointerStatus,
    SubscriptionClaim,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)

COMPLETE = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
HEADER_FIELDS = (
    "name", "root_workflow_id", "workflow_definition_id", "version", "description", "reference",
    "next_execution", "status", "data_json", "create_time", "complete_time",
    "extension_attributes_json",
)  # fmt: skip


@dataclass
class Step:
    """What a step starts from, and the commit that ends it."""

    own: OwnCommands
    instance: WorkflowInstance
    held: EventSubscription
    waited_for: EventSubscription
    """A subscription that ends with the step."""
    event: Event
    """An event that the step has processed."""
    claimed: ScheduledCommand
    lease: str
    kept: ScheduledCommand
    """A command that is scheduled already and gets a new time."""
    kept_lease: str
    request: CommitWorkflowRequest = field(default_factory=CommitWorkflowRequest)

    @property
    def api(self) -> Api:
        return self.own.api

    async def commit(self) -> CommitWorkflowResponse:
        return await self.api.workflows.CommitWorkflow(self.request)

    async def everything(self) -> dict[str, Any]:
        """All that the commit could touch, as it is stored."""
        request = self.request
        stored: dict[str, Any] = {
            "instance": await self.api.get_workflow_instance(self.instance.id)
        }
        subscriptions = [self.held, self.waited_for, *request.create_subscriptions]
        for subscription in subscriptions:
            if subscription.id:
                stored[subscription.id] = await _or_failure(
                    self.api.get_subscription(subscription.id)
                )
        for event in [self.event, *request.create_events]:
            if event.id:
                stored[event.id] = await _or_failure(self.api.get_event(event.id))
        stored["errors"] = (await self.api.list_errors(workflow_id=self.instance.id)).errors
        stored["renewed"] = await _or_failure(self.own.renew(self.lease, self.kept_lease))
        return stored


async def _or_failure(call: Any) -> Any:
    answer: list[Any] = []

    async def keep() -> None:
        answer.append(await call)

    failure = await failure_of(keep())
    return failure.reason if failure else answer[0]


@pytest.fixture
async def step(own: OwnCommands) -> Step:
    """A step with one of everything, not committed yet."""
    api = own.api
    instance = make.full_instance(execution_pointers=[make.pointer(i) for i in "abcd"])
    await api.create(instance)
    held, waited_for = (make.subscription(workflow_id=instance.id) for _ in range(2))
    for subscription in (held, waited_for):
        await api.create_event_subscription(subscription)
    claim = await api.subscriptions.SetSubscriptionToken(
        SetSubscriptionTokenRequest(
            id=held.id, token="mine", worker_id="w", duration=Duration(seconds=3600)
        )
    )
    event = make.event()
    await api.create_event(event)
    claimed, kept = await own.schedule(1), await own.schedule(2)
    leases = {c.command.data: c.lease_token for c in await own.claim()}
    lease, kept_lease = leases[claimed.data], leases[kept.data]
    request = CommitWorkflowRequest(
        patch=WorkflowPatch(
            id=instance.id,
            header=WorkflowInstance(status=COMPLETE),
            header_mask=FieldMask(paths=["status"]),
            execution_pointers=[make.pointer("b", active=False), make.pointer("e")],
            removed_pointer_ids=["c"],
        ),
        expected_revision=instance.revision,
        held_subscriptions=[
            SubscriptionClaim(subscription_id=held.id, token="mine", epoch=claim.epoch)
        ],
        held_lease_tokens=[lease, kept_lease],
        create_subscriptions=[make.subscription(workflow_id=instance.id) for _ in range(2)],
        terminate_subscription_ids=[waited_for.id],
        create_events=[make.event() for _ in range(2)],
        processed_event_ids=[event.id],
        errors=[make.error(workflow_id=instance.id, message=f"{i}") for i in range(3)],
        schedule_commands=[own.new(3), own.new(5, data=kept.data)],
        complete_lease_tokens=[lease],
        held_lock_tokens=[(await api.acquire_lock(make.new_id("resource"))).token],
    )
    return Step(own, instance, held, waited_for, event, claimed, lease, kept, kept_lease, request)


async def test_a_whole_step_is_stored(step: Step) -> None:
    answer = await step.commit()
    assert answer == CommitWorkflowResponse(
        revision=step.instance.revision + 1,
        subscription_ids=[s.id for s in step.request.create_subscriptions],
        event_ids=[e.id for e in step.request.create_events],
    )
    api = step.api
    stored = await api.get_workflow_instance(step.instance.id)
    expected = step.instance
    expected.status = COMPLETE
    expected.revision += 1
    del expected.execution_pointers[:]
    expected.execution_pointers.extend(
        [make.pointer("a"), make.pointer("b", active=False), make.pointer("d"), make.pointer("e")]
    )
    assert stored == expected
    for subscription in step.request.create_subscriptions:
        assert await api.get_subscription(subscription.id) == subscription
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.get_subscription(step.waited_for.id)
    for event in step.request.create_events:
        assert await api.get_event(event.id) == event
    assert (await api.get_event(step.event.id)).is_processed
    logged = await api.list_errors(workflow_id=step.instance.id)
    assert [e.message for e in logged.errors] == ["2", "1", "0"]
    # The completed command is gone, the one scheduled again stays claimed and survives completion.
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await api.release_commands(step.lease)
    assert [c.command for c in await step.own.claim()] == [step.request.schedule_commands[0]]
    await api.complete_commands(step.kept_lease)
    assert [c.command for c in await step.own.claim()] == [step.request.schedule_commands[1]]


async def test_a_whole_instance_is_stored_like_a_persist(step: Step) -> None:
    step.instance.execution_pointers.add(id="new", status=PointerStatus.POINTER_STATUS_PENDING)
    step.instance.execution_pointers[0].active = False
    step.request.instance.CopyFrom(step.instance)
    step.request.ClearField("expected_revision")
    step.instance.revision += 1
    assert (await step.commit()).revision == step.instance.revision
    assert await step.api.get_workflow_instance(step.instance.id) == step.instance
    assert (await step.api.get_event(step.event.id)).is_processed


async def test_ids_are_chosen_by_the_store_where_they_are_empty(step: Step) -> None:
    for subscription in step.request.create_subscriptions:
        subscription.id = ""
    for event in step.request.create_events:
        event.id = ""
    answer = await step.commit()
    ids = [*answer.subscription_ids, *answer.event_ids]
    assert len(set(ids)) == 4
    assert all(uuid.UUID(id_) for id_ in ids)
    for id_, subscription in zip(
        answer.subscription_ids, step.request.create_subscriptions, strict=True
    ):
        subscription.id = id_
        assert await step.api.get_subscription(id_) == subscription
    for id_, event in zip(answer.event_ids, step.request.create_events, strict=True):
        event.id = id_
        assert await step.api.get_event(id_) == event


# Whatever condition does not hold, the error names it, and nothing at all has changed.


def _unknown_claim(step: Step) -> None:
    step.request.held_subscriptions.add(subscription_id=make.new_id(), token="mine")


def _other_token(step: Step) -> None:
    step.request.held_subscriptions[0].token = "another"


def _other_epoch(step: Step) -> None:
    step.request.held_subscriptions[0].epoch += 1


def _open_claim(step: Step) -> None:
    step.request.held_subscriptions.add(subscription_id=step.waited_for.id, token="mine")


def _lost_held_lease(step: Step) -> None:
    step.request.held_lease_tokens[1] = step.kept_lease[:-32] + "0" * 32


def _lost_lease(step: Step) -> None:
    step.request.complete_lease_tokens.append("1.1." + "0" * 32)


def _lost_lock(step: Step) -> None:
    step.request.held_lock_tokens.append("1." + "0" * 32)


def _unknown_subscription(step: Step) -> None:
    step.request.terminate_subscription_ids.append(make.new_id())


def _unknown_event(step: Step) -> None:
    step.request.processed_event_ids.append(make.new_id())


def _event_exists(step: Step) -> None:
    step.request.create_events[1].CopyFrom(make.event(id=step.event.id, event_data_json="1"))


def _subscription_exists(step: Step) -> None:
    step.request.create_subscriptions[1].id = step.held.id


def _other_revision(step: Step) -> None:
    step.request.expected_revision += 6


def _unknown_pointer(step: Step) -> None:
    step.request.patch.removed_pointer_ids.append("x")


def _unknown_workflow(step: Step) -> None:
    step.request.patch.id = make.new_id()


CONDITIONS: list[tuple[Callable[[Step], None], str, str]] = [
    (_unknown_claim, "SUBSCRIPTION_NOT_FOUND", "held_subscriptions[1].subscription_id"),
    (_other_token, "TOKEN_MISMATCH", "held_subscriptions[0]"),
    (_other_epoch, "TOKEN_MISMATCH", "held_subscriptions[0]"),
    (_open_claim, "TOKEN_MISMATCH", "held_subscriptions[1]"),
    (_lost_held_lease, "LEASE_LOST", "held_lease_tokens[1]"),
    (_lost_lease, "LEASE_LOST", "complete_lease_tokens[1]"),
    (_lost_lock, "LEASE_LOST", "held_lock_tokens[1]"),
    (_unknown_subscription, "SUBSCRIPTION_NOT_FOUND", "terminate_subscription_ids[1]"),
    (_unknown_event, "EVENT_NOT_FOUND", "processed_event_ids[1]"),
    (_event_exists, "EVENT_ALREADY_EXISTS", "create_events[1].id"),
    (_subscription_exists, "SUBSCRIPTION_ALREADY_EXISTS", "create_subscriptions[1].id"),
    (_other_revision, "REVISION_MISMATCH", "expected_revision"),
    (_unknown_pointer, "POINTER_NOT_FOUND", "patch.removed_pointer_ids[1]"),
    (_unknown_workflow, "WORKFLOW_NOT_FOUND", "patch.id"),
]
CODES = {
    "LEASE_LOST": "FAILED_PRECONDITION",
    "TOKEN_MISMATCH": "FAILED_PRECONDITION",
    "REVISION_MISMATCH": "ABORTED",
    "EVENT_ALREADY_EXISTS": "ALREADY_EXISTS",
    "SUBSCRIPTION_ALREADY_EXISTS": "ALREADY_EXISTS",
}


@pytest.mark.parametrize(
    ("spoil", "reason", "at"), CONDITIONS, ids=[case[0].__name__[1:] for case in CONDITIONS]
)
async def test_nothing_changes_where_a_condition_does_not_hold(
    step: Step, spoil: Callable[[Step], None], reason: str, at: str
) -> None:
    before = await step.everything()
    spoil(step)
    with fails(CODES.get(reason, "NOT_FOUND"), reason) as failure:
        await step.commit()
    assert failure.metadata["field"] == at
    after = await step.everything()
    assert after == {key: before.get(key, after[key]) for key in after}
    assert await step.own.claim() == []


async def test_a_taken_name_changes_nothing(step: Step) -> None:
    other = make.full_instance()
    await step.api.create_new_workflow(other)
    before = await step.everything()
    step.request.patch.header.name = other.name
    step.request.patch.header_mask.paths.append("name")
    with fails("ALREADY_EXISTS", "NAME_TAKEN") as failure:
        await step.commit()
    assert failure.metadata["field"] == "patch.header.name"
    assert await step.everything() == before


async def test_a_host_whose_claim_was_taken_over_cannot_write(step: Step) -> None:
    """The token is the same, but it is not the same claim."""
    before = await step.api.get_workflow_instance(step.instance.id)
    await step.api.clear_subscription_token(step.held.id, "mine")
    assert await step.api.set_subscription_token(step.held.id, "mine", "w")
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await step.commit()
    assert await step.api.get_workflow_instance(step.instance.id) == before


async def test_a_host_whose_claim_has_expired_cannot_write(step: Step) -> None:
    """Even if nobody has taken it over yet."""
    short = SetSubscriptionTokenRequest(
        id=step.held.id, token="mine", worker_id="w", duration=Duration(nanos=1_000_000)
    )
    assert (await step.api.subscriptions.SetSubscriptionToken(short)).acquired

    async def is_open() -> bool:
        query = {"event_name": step.held.event_name, "event_key": step.held.event_key}
        return await step.api.get_first_open_subscription(**query) is not None

    await eventually(is_open)
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await step.commit()
    stored = await step.api.get_workflow_instance(step.instance.id)
    assert stored.revision == step.instance.revision


async def test_a_host_whose_lease_was_taken_over_cannot_write(own: OwnCommands, step: Step) -> None:
    await own.api.release_commands(step.kept_lease)
    [again] = await own.claim()
    assert again.command == step.kept
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await step.commit()
    assert failure.metadata["lease_tokens"] == step.kept_lease
    stored = await step.api.get_workflow_instance(step.instance.id)
    assert stored.revision == step.instance.revision


async def test_completed_and_scheduled_again_is_scheduled_without_the_lease(
    own: OwnCommands, step: Step
) -> None:
    again = own.new(7, data=step.claimed.data)
    request = CommitWorkflowRequest(
        instance=step.instance, schedule_commands=[again], complete_lease_tokens=[step.lease]
    )
    await own.api.workflows.CommitWorkflow(request)
    assert [c.command for c in await own.claim()] == [again]


async def test_a_command_rescheduled_by_others_survives_its_completion(
    own: OwnCommands, step: Step
) -> None:
    again = own.new(7, data=step.claimed.data)
    await own.api.schedule_command(again)
    await step.commit()
    assert again in [c.command for c in await own.claim()]


async def test_the_same_events_and_subscriptions_again_are_left_as_they_are(step: Step) -> None:
    await step.commit()
    event = step.request.create_events[0]
    await step.api.mark_event_processed(event.id)
    again = CommitWorkflowRequest(
        patch=WorkflowPatch(id=step.instance.id),
        expected_revision=step.instance.revision + 1,
        create_events=step.request.create_events,
        create_subscriptions=step.request.create_subscriptions,
    )
    answer = await step.api.workflows.CommitWorkflow(again)
    assert answer.revision == step.instance.revision + 2
    assert (await step.api.get_event(event.id)).is_processed


async def test_a_created_event_can_be_marked_processed_only_if_it_exists(step: Step) -> None:
    step.request.processed_event_ids.append(step.request.create_events[0].id)
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await step.commit()


# Patches.


async def _patched(api: Api, patch: WorkflowPatch, revision: int) -> WorkflowInstance:
    request = CommitWorkflowRequest(patch=patch, expected_revision=revision)
    assert (await api.workflows.CommitWorkflow(request)).revision == revision + 1
    return await api.get_workflow_instance(patch.id)


@pytest.mark.parametrize("changing", HEADER_FIELDS)
async def test_a_named_field_changes_and_no_other(api: Api, changing: str) -> None:
    instance, other = make.full_instance(), make.full_instance()
    other.next_execution = -(2**63)
    other.version, other.status = 0, WorkflowStatus.WORKFLOW_STATUS_TERMINATED
    other.create_time.CopyFrom(make.time(-7))
    other.complete_time.CopyFrom(make.time(77))
    for text in ("root_workflow_id", "workflow_definition_id", "description", "reference"):
        setattr(other, text, make.new_id())
    other.data_json = "null"
    other.extension_attributes_json["other"] = "1"
    await api.create(instance)
    patch = WorkflowPatch(id=instance.id, header=other, header_mask=FieldMask(paths=[changing]))
    stored = await _patched(api, patch, instance.revision)
    value = getattr(other, changing)
    if changing in ("create_time", "complete_time"):
        getattr(instance, changing).CopyFrom(value)
    elif changing == "extension_attributes_json":
        instance.extension_attributes_json.clear()
        instance.extension_attributes_json.update(value)
    else:
        setattr(instance, changing, value)
    instance.revision += 1
    assert stored == instance


@pytest.mark.parametrize(
    "field", ["root_workflow_id", "description", "reference", "next_execution", "complete_time"]
)
async def test_a_named_field_that_is_not_given_becomes_absent(api: Api, field: str) -> None:
    instance = make.full_instance()
    await api.create(instance)
    patch = WorkflowPatch(id=instance.id, header_mask=FieldMask(paths=[field]))
    stored = await _patched(api, patch, instance.revision)
    instance.ClearField(field)  # type: ignore[arg-type]
    instance.revision += 1
    assert stored == instance


async def test_an_empty_name_is_left_as_it_is(api: Api) -> None:
    instance = make.full_instance()
    await api.create(instance)
    patch = WorkflowPatch(id=instance.id, header_mask=FieldMask(paths=["name"]))
    stored = await _patched(api, patch, instance.revision)
    assert stored.name == instance.name


async def test_pointers_keep_their_places_and_new_ones_come_last(api: Api) -> None:
    instance = make.instance(execution_pointers=[make.full_pointer(i) for i in "dbac"])
    await api.create(instance)
    changed = make.full_pointer("a", outcome_json="null", children=[], scope=["x"])
    changed.ClearField("persistence_data_json")
    new = [make.pointer("y"), make.full_pointer("x")]
    patch = WorkflowPatch(
        id=instance.id,
        execution_pointers=[new[0], changed, new[1]],
        removed_pointer_ids=["b"],
    )
    stored = await _patched(api, patch, instance.revision)
    d, _, _, c = instance.execution_pointers
    assert list(stored.execution_pointers) == [d, changed, c, *new]
    # And behind those, those of the next patch.
    patch = WorkflowPatch(id=instance.id, execution_pointers=[make.pointer("b")])
    stored = await _patched(api, patch, instance.revision + 1)
    assert [p.id for p in stored.execution_pointers] == list("dacyxb")


async def test_all_pointers_can_be_removed_and_new_ones_added(api: Api) -> None:
    instance = make.full_instance()
    await api.create(instance)
    ids = [p.id for p in instance.execution_pointers]
    patch = WorkflowPatch(id=instance.id, removed_pointer_ids=ids)
    stored = await _patched(api, patch, instance.revision)
    assert not stored.execution_pointers
    patch = WorkflowPatch(id=instance.id, execution_pointers=[make.full_pointer(i) for i in "ba"])
    stored = await _patched(api, patch, instance.revision + 1)
    assert list(stored.execution_pointers) == list(patch.execution_pointers)


async def test_a_persist_after_a_patch_sets_the_order_anew(api: Api) -> None:
    instance = make.full_instance(execution_pointers=[make.pointer(i) for i in "abc"])
    await api.create(instance)
    patch = WorkflowPatch(id=instance.id, execution_pointers=[make.pointer("d")])
    stored = await _patched(api, patch, instance.revision)
    pointers = list(stored.execution_pointers)[::-1]
    del stored.execution_pointers[:]
    stored.execution_pointers.extend(pointers)
    assert stored.revision == instance.revision + 1
    assert await api.persist_workflow(stored, stored.revision) == stored.revision + 1
    again = await api.get_workflow_instance(instance.id)
    assert [p.id for p in again.execution_pointers] == list("dcba")


async def test_an_empty_patch_counts_the_revision_up(api: Api) -> None:
    instance = make.full_instance()
    await api.create(instance)
    stored = await _patched(api, WorkflowPatch(id=instance.id), instance.revision)
    instance.revision += 1
    assert stored == instance


# Many at once.


async def test_of_patches_of_one_revision_exactly_one_is_made(api: Api) -> None:
    instance = make.instance(execution_pointers=[make.pointer("a")])
    await api.create(instance)

    async def patch(n: int) -> Failure | None:
        request = CommitWorkflowRequest(
            patch=WorkflowPatch(id=instance.id, execution_pointers=[make.pointer(f"p{n}")]),
            expected_revision=instance.revision,
            create_events=[make.event(id=f"{instance.id}-{n}")],
        )
        return await failure_of(api.workflows.CommitWorkflow(request))

    failures = await asyncio.gather(*map(patch, range(20)))
    assert failures.count(None) == 1
    winner = failures.index(None)
    assert {f.reason for f in failures if f is not None} == {"REVISION_MISMATCH"}
    stored = await api.get_workflow_instance(instance.id)
    assert [p.id for p in stored.execution_pointers] == ["a", f"p{winner}"]
    for n in range(20):
        found = await failure_of(api.get_event(f"{instance.id}-{n}")) is None
        assert found == (n == winner)


async def test_commits_at_once_leave_one_whole_state_and_all_their_effects(api: Api) -> None:
    """Without a revision the last writer wins, whole; what they create is all there."""
    instance = make.instance(execution_pointers=[make.pointer("0")])
    first = await api.create(instance)
    states = [
        make.instance(
            id=instance.id,
            name=instance.id,
            data_json=f"{n}",
            execution_pointers=[make.pointer(f"{n}-{i}", retry_count=n) for i in range(n % 4 + 1)],
        )
        for n in range(20)
    ]
    events = [make.event() for _ in states]
    requests = [
        CommitWorkflowRequest(instance=state, create_events=[event])
        for state, event in zip(states, events, strict=True)
    ]
    answers = await asyncio.gather(*map(api.workflows.CommitWorkflow, requests))
    assert sorted(answer.revision for answer in answers) == list(range(first + 1, first + 21))
    last = max(range(20), key=lambda n: answers[n].revision)
    states[last].revision = first + 20
    assert await api.get_workflow_instance(instance.id) == states[last]
    for event in events:
        assert await api.get_event(event.id) == event


async def test_one_lease_completes_one_commit(own: OwnCommands) -> None:
    """Two hosts believe that the command is theirs; only one step happens."""
    instances = [make.instance() for _ in range(10)]
    for instance in instances:
        await own.api.create(instance)
    command = await own.schedule()
    [lease] = tokens(await own.claim())
    event = make.event()

    async def commit(instance: WorkflowInstance) -> Failure | None:
        request = CommitWorkflowRequest(
            instance=instance,
            complete_lease_tokens=[lease],
            errors=[ExecutionError(error_time=make.time(), workflow_id=command.data, message="x")],
            create_events=[make.event(event_key=event.event_key)],
        )
        return await failure_of(own.api.workflows.CommitWorkflow(request))

    failures = await asyncio.gather(*map(commit, instances))
    assert failures.count(None) == 1
    assert {f.reason for f in failures if f is not None} == {"LEASE_LOST"}
    logged = await own.api.list_errors(workflow_id=command.data)
    assert len(logged.errors) == 1
    found = await own.api.get_events(event_name="order.paid", event_key=event.event_key)
    assert len(found.event_ids) == 1
    stored = await own.api.get_workflow_instances([i.id for i in instances])
    winner = failures.index(None)
    for n, (instance, after) in enumerate(zip(instances, stored, strict=True)):
        assert after.revision == instance.revision + (n == winner)


async def test_a_subscription_ends_with_one_step_only(api: Api) -> None:
    """Commits of several workflows that all terminate the same subscriptions, in any order."""
    instances = [make.instance() for _ in range(10)]
    for instance in instances:
        await api.create_new_workflow(instance)
    subscriptions = [await api.create_event_subscription(make.subscription()) for _ in range(5)]

    async def commit(n: int) -> Failure | None:
        ids = subscriptions if n % 2 else subscriptions[::-1]
        request = CommitWorkflowRequest(instance=instances[n], terminate_subscription_ids=ids)
        return await failure_of(api.workflows.CommitWorkflow(request))

    failures = await asyncio.gather(*map(commit, range(10)))
    assert failures.count(None) == 1
    assert {f.reason for f in failures if f is not None} == {"SUBSCRIPTION_NOT_FOUND"}


async def test_a_claim_taken_over_meanwhile_stops_the_commit(api: Api) -> None:
    """A holder commits while others take its subscription over: either it was still the holder, and
    the taker came after it, or nothing was written."""
    for _ in range(10):
        instance = make.instance()
        first = await api.create(instance)
        subscription = await api.create_event_subscription(make.subscription())
        assert await api.set_subscription_token(subscription, "old", "w")
        request = CommitWorkflowRequest(
            patch=WorkflowPatch(id=instance.id),
            expected_revision=first,
            held_subscriptions=[SubscriptionClaim(subscription_id=subscription, token="old")],
            terminate_subscription_ids=[subscription],
        )

        async def take_over(id_: str = subscription) -> bool:
            await api.clear_subscription_token(id_, "old")
            return await api.set_subscription_token(id_, "new", "w2")

        committed, taken = await asyncio.gather(
            failure_of(api.workflows.CommitWorkflow(request)), failure_of(take_over())
        )
        revision = (await api.get_workflow_instance(instance.id)).revision
        if committed is None:
            assert revision == first + 1
            assert taken is not None
            assert taken.reason in ("SUBSCRIPTION_NOT_FOUND", "TOKEN_MISMATCH")
        else:
            assert (committed.reason, revision) == ("TOKEN_MISMATCH", first)
            assert taken is None
