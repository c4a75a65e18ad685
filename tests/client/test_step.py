"""A step is stored as one: all of it or nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests.client.fake_store import FakeStore, answers, fails
from tests.client.test_patches import NOW, pointer, subscription, workflow
from tests.client.wire import Wire, provider_on
from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import (
    BlockingPersistenceProvider,
    ClaimedCommand,
    CommandName,
    Event,
    EventNotFound,
    ExecutionError,
    LeaseLost,
    PersistenceProvider,
    RequestIdReused,
    RevisionMismatch,
    ScheduledCommand,
    Step,
    SubscriptionClaim,
    SubscriptionNotFound,
    TokenMismatch,
    WorkflowInstance,
    connect_blocking,
    convert,
)

Status = grpc.StatusCode


def event() -> Event:
    return Event(event_name=str(uuid.uuid4()), event_key="k", event_data={"n": 1}, event_time=NOW)


def command(data: str) -> ScheduledCommand:
    # Earlier than anything else that may be scheduled, so that it is claimed first.
    return ScheduledCommand(
        command_name=CommandName.PROCESS_WORKFLOW, data=data, execute_time=-(2**63)
    )


@dataclass
class Work:
    """A workflow, and everything that a step of it may touch."""

    provider: PersistenceProvider
    wire: Wire
    instance: WorkflowInstance
    waiting: str
    come: str
    claimed: ClaimedCommand
    claim: SubscriptionClaim
    held: str
    first: int
    """The revision that the workflow was created with."""

    def everything(self, step: Step) -> dict[str, str]:
        """Puts one of everything into a step."""
        self.instance.execution_pointers[0].active = True
        self.instance.execution_pointers.append(pointer("new"))
        ids = {
            "subscription": step.create_subscription(subscription(self.instance)),
            "event": step.create_event(event()),
        }
        step.terminate_subscription(self.waiting)
        step.mark_event_processed(self.come)
        step.log_error(ExecutionError(workflow_id=self.instance.id, message="tried"))
        step.schedule_command(command(f"next {self.instance.id}"))
        step.complete(self.claimed)
        step.hold(self.claim)
        return ids

    async def stored(self) -> dict[str, Any]:
        """Everything that a step of it changes."""
        p = self.provider
        workflow = await p.with_timeout(30).get_workflow_instance(self.instance.id)
        mine = await p.list_subscriptions(workflow_id=self.instance.id)
        return {
            "workflow": workflow,
            "subscriptions": {s.id for s in mine},
            "processed": (await p.get_event(self.come)).is_processed,
            "errors": [e.message for e in await p.list_errors(self.instance.id)],
        }

    async def commands(self) -> set[str]:
        """The commands of this workflow that are scheduled and not claimed; claims them."""
        claimed = await self.provider.claim_commands(limit=1000)
        ours = {c.command.data for c in claimed if self.instance.id in c.command.data}
        await self.provider.release_commands(
            c.lease_token for c in claimed if c.command.data not in ours
        )
        return ours


@pytest.fixture
async def work(target: str) -> AsyncIterator[Work]:
    wire = Wire()
    async with provider_on(target, wire) as provider:
        await provider.create_new_workflow(first := workflow(20))
        waiting = await provider.create_event_subscription(subscription(first))
        held = await provider.create_event_subscription(subscription(first))
        claim = await provider.claim_subscription(held)
        assert claim is not None
        come = await provider.create_event(event())
        await provider.schedule_command(command(first.id))
        claimed = [c for c in await provider.claim_commands(limit=10) if c.command.data == first.id]
        instance = await provider.get_workflow_instance(first.id)
        wire.take()
        yield Work(provider, wire, instance, waiting, come, claimed[0], claim, held, first.revision)


async def test_everything_in_one_call(work: Work) -> None:
    async with work.provider.step(work.instance) as step:
        ids = work.everything(step)
        assert work.wire.sent == []
    ((rpc, request),) = work.wire.sent
    assert rpc == "CommitWorkflow"
    assert [p.id for p in request.patch.execution_pointers] == ["0", "new"]
    assert uuid.UUID(request.request_id)
    assert step.revision == work.instance.revision == work.first + 1
    assert step.subscription_ids == [ids["subscription"]]
    assert step.event_ids == [ids["event"]]
    after = await work.stored()
    assert after["workflow"] == work.instance
    assert after["subscriptions"] == {work.held, ids["subscription"]}
    assert after["processed"]
    assert after["errors"] == ["tried"]
    assert await work.commands() == {f"next {work.instance.id}"}
    with pytest.raises(LeaseLost):
        await work.provider.complete_commands([work.claimed.lease_token])
    assert not (await work.provider.get_event(ids["event"])).is_processed


async def test_a_block_that_raises_stores_nothing(work: Work) -> None:
    before = await work.stored()
    work.wire.take()
    step = work.provider.step(work.instance)
    with pytest.raises(ZeroDivisionError):
        async with step:
            work.instance.data = work.everything(step)["event"], 1 / 0
    assert work.wire.sent == []
    assert await work.stored() == before
    with pytest.raises(RuntimeError, match="not been stored"):
        _ = step.revision


async def spoil(work: Work, how: str) -> None:
    p = work.provider
    match how:
        case "lease":
            await p.release_commands([work.claimed.lease_token])
        case "claim":
            await p.release_subscription(work.claim)
        case "subscription":
            await p.terminate_subscription(work.waiting)
        case "event":
            work.come = str(uuid.uuid4())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("lease", LeaseLost),
        ("claim", TokenMismatch),
        ("subscription", SubscriptionNotFound),
        ("event", EventNotFound),
    ],
)
async def test_what_does_not_hold_stores_nothing(
    work: Work, how: str, kind: type[Exception], whole: bool
) -> None:
    real_event = work.come
    await spoil(work, how)
    work.come, missing = real_event, work.come
    before = await work.stored()
    work.come = missing
    if whole:
        work.instance.execution_pointers.reverse()
    work.wire.take()
    with pytest.raises(kind):
        async with work.provider.step(work.instance) as step:
            work.everything(step)
    assert work.wire.take() == ["CommitWorkflow"]
    work.come = real_event
    after = await work.stored()
    assert after == before
    assert f"next {work.instance.id}" not in await work.commands()


async def test_a_claim_taken_over_is_lost_even_with_the_same_token(work: Work) -> None:
    await work.provider.release_subscription(work.claim)
    assert await work.provider.set_subscription_token(work.held, work.claim.token, "", None)
    with pytest.raises(TokenMismatch):
        async with work.provider.step(work.instance) as step:
            step.hold(work.claim)
    async with work.provider.step(work.instance) as step:
        step.hold(SubscriptionClaim(subscription_id=work.held, token=work.claim.token))


async def test_a_lease_can_be_held_and_not_completed(work: Work) -> None:
    async with work.provider.step(work.instance) as step:
        step.hold(work.claimed)
    assert list(work.wire.last.held_lease_tokens) == [work.claimed.lease_token]
    async with work.provider.step(work.instance) as step:
        step.complete(work.claimed.lease_token)
    with pytest.raises(LeaseLost):
        async with work.provider.step(work.instance) as step:
            step.hold(work.claimed)


async def test_the_last_writer_wins_with_everything_of_his_step(target: str, work: Work) -> None:
    async with provider_on(target, remember=0) as other:
        theirs = await other.get_workflow_instance(work.instance.id)
        theirs.data = "theirs"
        await other.persist_workflow(theirs)
    async with work.provider.step(work.instance) as step:
        work.everything(step)
    patch, whole = (request for _, request in work.wire.sent)
    assert (patch.WhichOneof("state"), whole.WhichOneof("state")) == ("patch", "instance")
    assert patch.request_id != whole.request_id
    after = await work.stored()
    assert after["workflow"] == work.instance
    assert after["errors"] == ["tried"]
    assert step.revision == work.first + 2


@pytest.mark.parametrize("whole", [False, True])
async def test_a_strict_step_is_refused_with_everything(
    target: str, work: Work, whole: bool
) -> None:
    async with provider_on(target, remember=0) as other:
        await other.persist_workflow(await other.get_workflow_instance(work.instance.id))
    mine = replace(work.instance)
    before = await work.stored()
    if whole:
        mine.execution_pointers.reverse()
    with pytest.raises(RevisionMismatch):
        async with work.provider.step(mine, strict=True) as step:
            work.everything(step)
    assert await work.stored() == before


async def test_answers_lost_store_the_step_once(work: Work) -> None:
    work.wire.lose = 3
    async with work.provider.step(work.instance, strict=True) as step:
        ids = work.everything(step)
    assert work.wire.take() == ["CommitWorkflow"] * 4
    after = await work.stored()
    assert after["errors"] == ["tried"]
    assert step.revision == after["workflow"].revision == work.first + 1
    assert step.subscription_ids == [ids["subscription"]]


async def test_steps_at_the_same_time(work: Work) -> None:
    """Each strict step is whole: its state, its error and its event together, or nothing."""

    async def worker(name: str) -> int:
        done = 0
        while done < 5:
            mine = await work.provider.get_workflow_instance(work.instance.id)
            assert isinstance(mine.data, dict)
            mine.data = {**mine.data, "last": f"{name}{done}"}
            try:
                async with work.provider.step(mine, strict=True) as step:
                    step.log_error(ExecutionError(workflow_id=mine.id, message=f"{name}{done}"))
            except RevisionMismatch:
                continue
            done += 1
        return done

    assert sum(await asyncio.gather(*map(worker, "abcd"))) == 20
    after = await work.stored()
    assert after["workflow"].revision == work.first + 20
    assert sorted(after["errors"]) == sorted(f"{n}{i}" for n in "abcd" for i in range(5))
    assert after["errors"][0] == after["workflow"].data["last"]


async def test_a_step_ends_once(work: Work) -> None:
    async with work.provider.step(work.instance) as step:
        pass
    with pytest.raises(RuntimeError, match="ended"):
        step.mark_event_processed("e")
    with pytest.raises(RuntimeError, match="ended"):
        async with step:
            pass
    assert work.wire.take() == ["CommitWorkflow"]


async def test_what_cannot_be_sent_is_told_at_once(work: Work) -> None:
    with pytest.raises(ValueError, match="event_time"):
        async with work.provider.step(work.instance) as step:
            step.create_event(replace(event(), event_time=NOW.replace(tzinfo=None)))
    assert work.wire.sent == []


async def test_the_blocking_step(work: Work, target: str) -> None:
    def run() -> None:
        with connect_blocking(target) as provider:
            mine = provider.get_workflow_instance(work.instance.id)
            with provider.step(mine, strict=True) as step:
                mine.data = "blocking"
                created = step.create_event(event())
            assert step.revision == mine.revision == work.first + 1
            assert step.event_ids == [created]
            with pytest.raises(ZeroDivisionError), provider.step(mine) as step:
                mine.data = 1 / 0
            theirs = replace(mine, revision=work.first)
            with pytest.raises(RevisionMismatch), provider.step(theirs, strict=True):
                pass

    await asyncio.to_thread(run)
    assert (await work.stored())["workflow"].data == "blocking"
    assert isinstance(BlockingPersistenceProvider.step.__doc__, str)


async def test_commit_workflow(work: Work) -> None:
    wanted, happened = subscription(work.instance), event()
    request_id = str(uuid.uuid4())
    arguments: dict[str, Any] = {
        "held_subscriptions": [work.claim],
        "held_lease_tokens": [work.claimed.lease_token],
        "create_subscriptions": [replace(wanted, id=str(uuid.uuid4()))],
        "terminate_subscription_ids": [work.waiting],
        "create_events": [replace(happened, id=str(uuid.uuid4()))],
        "processed_event_ids": [work.come],
        "errors": [ExecutionError(workflow_id=work.instance.id, message="m", error_time=NOW)],
        "schedule_commands": [command(f"next {work.instance.id}")],
        "request_id": request_id,
    }
    first = await work.provider.commit_workflow(work.instance, **arguments)
    assert first.revision == work.instance.revision == work.first + 1
    again = await work.provider.commit_workflow(work.instance, **arguments)
    assert again == first
    assert (await work.stored())["errors"] == ["m"]
    with pytest.raises(RequestIdReused):
        await work.provider.commit_workflow(work.instance, request_id=request_id)
    # It is what the next patch is made against.
    work.instance.execution_pointers[1].active = True
    await work.provider.persist_workflow(work.instance)
    assert [p.id for p in work.wire.last.patch.execution_pointers] == ["1"]


async def test_commit_workflow_sends_what_it_is_given(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on(
        "CommitWorkflow",
        answers(workflow_pb2.CommitWorkflowResponse(revision=8, event_ids=["e"])),
    )
    claim = SubscriptionClaim(subscription_id="s", token="t", epoch=3)
    instance = workflow(1)
    sent_instance = convert.workflow_to_proto(instance)
    answer = await provider.commit_workflow(
        instance,
        expected_revision=7,
        held_subscriptions=[claim],
        held_lease_tokens=["a"],
        complete_lease_tokens=["b"],
    )
    assert (answer.revision, answer.event_ids, answer.subscription_ids) == (8, ["e"], [])
    (request,) = store.requests["CommitWorkflow"]
    assert request == workflow_pb2.CommitWorkflowRequest(
        instance=sent_instance,
        expected_revision=7,
        held_subscriptions=[convert.claim_to_proto(claim)],
        held_lease_tokens=["a"],
        complete_lease_tokens=["b"],
        request_id=request.request_id,
    )


async def test_other_errors_of_a_step_are_not_tried_as_a_whole(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    instance = workflow(20)
    known = workflow_pb2.GetWorkflowInstanceResponse(instance=convert.workflow_to_proto(instance))
    known.instance.revision = 5
    store.on("GetWorkflowInstance", answers(known))
    store.on("CommitWorkflow", fails(Status.FAILED_PRECONDITION, "LEASE_LOST"))
    loaded = await provider.get_workflow_instance(instance.id)
    with pytest.raises(LeaseLost):
        async with provider.step(loaded) as step:
            step.complete("gone")
    assert store.count("CommitWorkflow") == 1


# Claims


async def test_the_life_of_a_claim(work: Work) -> None:
    p = work.provider
    assert await p.claim_subscription(work.held) is None
    renewed = await p.renew_subscription_token(work.claim, duration=timedelta(hours=1))
    assert work.claim.expiry is not None
    assert renewed.expiry is not None
    assert renewed.expiry > work.claim.expiry
    assert (renewed.token, renewed.epoch) == (work.claim.token, work.claim.epoch)
    stored = await p.get_subscription(work.held)
    assert (stored.external_token_epoch, stored.external_token_expiry) == (
        renewed.epoch,
        renewed.expiry,
    )
    await p.release_subscription(renewed)
    second = await p.claim_subscription(work.held, duration=None, worker_id="me")
    assert second is not None
    assert second.expiry is None
    assert second.epoch is not None
    assert second.epoch > (renewed.epoch or 0)
    assert (await p.get_subscription(work.held)).external_worker_id == "me"
    for stale in (p.renew_subscription_token, p.release_subscription):
        with pytest.raises(TokenMismatch):
            await stale(work.claim)
    # Whoever has the token, but of an earlier claim.
    with pytest.raises(TokenMismatch):
        await p.release_subscription(replace(second, epoch=renewed.epoch))
    await p.release_subscription(second)
    assert await p.list_subscriptions(workflow_id=work.instance.id, held=True) == []


async def test_leases_are_renewed(work: Work) -> None:
    token = work.claimed.lease_token
    expiry = await work.provider.renew_commands([token], lease_duration=timedelta(hours=1))
    assert expiry is not None
    assert expiry > work.claimed.lease_expiry
    assert await work.provider.renew_commands([]) is None
    await work.provider.release_commands([token])
    (again,) = [
        c
        for c in await work.provider.claim_commands(limit=1000)
        if c.command.data == work.instance.id
    ]
    assert again.epoch > work.claimed.epoch > 0
    with pytest.raises(LeaseLost):
        await work.provider.renew_commands([token])
