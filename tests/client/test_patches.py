"""A provider sends what changed, and what is stored is what it was given."""

from __future__ import annotations

import asyncio
import copy
import gc
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.fake_store import FakeStore, answers, broken, fails
from tests.client.wire import Wire, provider_on
from wfe.persistence.v1 import store_pb2, workflow_pb2
from wfe_persistence_client import (
    ABSENT,
    CommitOutcomeUnknown,
    EventSubscription,
    ExecutionPointer,
    NameTaken,
    PartialWorkflow,
    PersistenceProvider,
    PointerNotFound,
    PointerStatus,
    RevisionMismatch,
    TooLarge,
    Unimplemented,
    WorkflowInstance,
    WorkflowNotFound,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
    convert,
    patches,
)
from wfe_persistence_client.patches import Memory, Snapshot

Status = grpc.StatusCode
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def workflow(pointers: int = 0, **given: Any) -> WorkflowInstance:
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "workflow_definition_id": "d",
        "version": 1,
        # Nobody else's list of runnable ones.
        "status": WorkflowStatus.SUSPENDED,
        "data": {"b": 1, "a": [1.50, {"z": None, "y": "\u20ac"}]},
        "execution_pointers": [pointer(str(i)) for i in range(pointers)],
    }
    return WorkflowInstance(**(values | given))


def pointer(id_: str, **given: Any) -> ExecutionPointer:
    values: dict[str, Any] = {
        "id": id_,
        "step_id": 1,
        "status": PointerStatus.COMPLETE,
        "outcome": {"result": 1.0, "and": "more"},
        "extension_attributes": {"b": 1, "a": None},
    }
    return ExecutionPointer(**(values | given))


@dataclass
class Scene:
    """A provider on the real server, what it sends, and one that remembers nothing."""

    provider: PersistenceProvider
    wire: Wire
    witness: PersistenceProvider

    async def stored(self, instance: WorkflowInstance) -> WorkflowInstance:
        return await self.witness.get_workflow_instance(instance.id)

    async def created(self, instance: WorkflowInstance) -> WorkflowInstance:
        """Stores it, and loads it through the provider."""
        await self.provider.create_new_workflow(instance)
        loaded = await self.provider.get_workflow_instance(instance.id)
        self.wire.take()
        return loaded

    async def holds(self, instance: WorkflowInstance) -> None:
        """What is stored is exactly this."""
        assert await self.stored(instance) == replace(
            instance, name=instance.name or (await self.stored(instance)).name
        )


@pytest.fixture(scope="session")
async def scene(target: str) -> AsyncIterator[Scene]:
    wire = Wire()
    async with provider_on(target, wire) as provider, provider_on(target, remember=0) as witness:
        yield Scene(provider, wire, witness)


@pytest.fixture(autouse=True)
async def _afresh(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    yield
    if "scene" in request.fixturenames:
        scene = request.getfixturevalue("scene")
        scene.wire.sent.clear()
        scene.wire.lose = 0
        scene.wire.before = None


# What is sent


async def test_one_pointer_of_a_thousand(scene: Scene) -> None:
    instance = await scene.created(workflow(1000))
    first = instance.revision
    instance.execution_pointers[500].retry_count = 7
    instance.status = WorkflowStatus.COMPLETE
    assert await scene.provider.persist_workflow(instance) == first + 1
    ((rpc, request),) = scene.wire.sent
    assert rpc == "CommitWorkflow"
    patch = request.patch
    assert [p.id for p in patch.execution_pointers] == ["500"]
    assert list(patch.header_mask.paths) == ["status"]
    assert request.expected_revision == first
    # The ids of the workflow and of the request, and a few bytes around.
    assert request.ByteSize() < patch.execution_pointers[0].ByteSize() + 150
    await scene.holds(instance)
    # From now on it is compared with what was written.
    instance.execution_pointers[3].active = True
    instance.execution_pointers.append(pointer("new"))
    del instance.execution_pointers[7]
    assert await scene.provider.persist_workflow(instance) == first + 2
    patch = scene.wire.last.patch
    assert [p.id for p in patch.execution_pointers] == ["3", "new"]
    assert list(patch.removed_pointer_ids) == ["7"]
    assert list(patch.header_mask.paths) == []
    await scene.holds(instance)


async def test_what_was_created_is_known_too(scene: Scene) -> None:
    instance = workflow(50)
    await scene.provider.create_new_workflow(instance)
    scene.wire.take()
    instance.execution_pointers[0].active = True
    await scene.provider.persist_workflow(instance)
    assert [p.id for p in scene.wire.last.patch.execution_pointers] == ["0"]
    await scene.holds(instance)


@pytest.mark.parametrize("remember", [0, 1000])
async def test_a_created_object_is_as_stored(target: str, scene: Scene, remember: int) -> None:
    async with provider_on(target, remember=remember, strict=True) as provider:
        for name in ("", str(uuid.uuid4())):
            instance = workflow(3, id="", name=name)
            id_ = await provider.create_new_workflow(instance)
            assert (instance.id, instance.name) == (id_, name or id_)
            assert await scene.stored(instance) == instance
            first = instance.revision
            # So it can be changed and stored, without loading it.
            instance.data = "more"
            assert await provider.persist_workflow(instance) == first + 1


async def test_a_failed_create_leaves_the_object_as_it_was(target: str, scene: Scene) -> None:
    name = str(uuid.uuid4())
    await scene.provider.create_new_workflow(workflow(name=name))
    instance = workflow(id="", name=name)
    before = copy.deepcopy(instance)
    with pytest.raises(NameTaken):
        await scene.provider.create_new_workflow(instance)
    assert instance == before


async def test_nothing_changed_is_still_a_write(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    first = instance.revision
    assert await scene.provider.persist_workflow(instance) == first + 1
    assert scene.wire.last.patch == workflow_pb2.WorkflowPatch(id=instance.id)
    await scene.holds(instance)


async def test_every_header_field_can_change(scene: Scene) -> None:
    full = workflow(
        20,
        name=str(uuid.uuid4()),
        description="d" * 100,
        reference="r",
        root_workflow_id="x",
        next_execution=0,
        complete_time=NOW,
    )
    instance = await scene.created(full)
    changes: list[dict[str, Any]] = [
        {"name": str(uuid.uuid4())},
        {"description": "D" * 100},
        {"description": ""},
        {"description": None},
        {"reference": None, "root_workflow_id": None, "next_execution": None},
        {"reference": "", "root_workflow_id": "", "next_execution": -(2**63)},
        {"complete_time": None},
        {"complete_time": NOW + timedelta(microseconds=1)},
        {"workflow_definition_id": "e", "version": 0},
        {"status": WorkflowStatus.TERMINATED},
        {"data": None},
        {"data": "x" * 1000},
    ]
    for change in changes:
        instance = replace(instance, **change)
        await scene.provider.persist_workflow(instance)
        names = {"data_json" if name == "data" else name for name in change}
        assert set(scene.wire.last.patch.header_mask.paths) == names
        await scene.holds(instance)
    assert set(scene.wire.take()) == {"CommitWorkflow"}


async def test_an_empty_name_leaves_the_stored_one(scene: Scene) -> None:
    name = str(uuid.uuid4())
    instance = await scene.created(workflow(5, name=name))
    instance.name = ""
    await scene.provider.persist_workflow(instance)
    assert (await scene.stored(instance)).name == name
    # Somebody renames it; then we write it all without saying a name.
    other = await scene.witness.get_workflow_instance(instance.id)
    other.name = str(uuid.uuid4())
    await scene.witness.persist_workflow(other)
    await scene.provider.persist_workflow(instance)
    assert (await scene.stored(instance)).name == other.name
    # The old name is news again, then.
    instance.name = name
    await scene.provider.persist_workflow(instance)
    assert (await scene.stored(instance)).name == name


async def test_another_order_is_sent_as_a_whole(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    instance.execution_pointers.reverse()
    await scene.provider.persist_workflow(instance)
    assert scene.wire.take() == ["PersistWorkflow"]
    await scene.holds(instance)
    instance.execution_pointers.insert(0, pointer("new"))
    await scene.provider.persist_workflow(instance)
    assert scene.wire.take() == ["PersistWorkflow"]
    await scene.holds(instance)


async def test_what_changes_altogether_is_sent_as_a_whole(scene: Scene) -> None:
    instance = await scene.created(workflow(3))
    new = workflow(
        3, id=instance.id, create_time=instance.create_time, status=WorkflowStatus.RUNNABLE
    )
    for p in new.execution_pointers:
        p.step_id = 2
    new.next_execution = 2**62
    new.data = 1
    new.description = new.reference = new.root_workflow_id = new.name = str(uuid.uuid4())
    new.workflow_definition_id, new.version, new.complete_time = "e", 2, NOW
    await scene.provider.persist_workflow(new)
    assert scene.wire.take() == ["PersistWorkflow"]
    await scene.holds(new)


async def test_without_memory_everything_is_sent(target: str, scene: Scene) -> None:
    wire = Wire()
    async with provider_on(target, wire, remember=0) as provider:
        instance = workflow(20)
        await provider.create_new_workflow(instance)
        await provider.get_workflow_instance(instance.id)
        await provider.persist_workflow(instance)
        assert wire.take() == ["CreateNewWorkflow", "GetWorkflowInstance", "PersistWorkflow"]


async def test_with_subscriptions(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    first = instance.revision
    instance.execution_pointers[0].active = True
    wanted = subscription(instance)
    answer = await scene.provider.persist_workflow_with_subscriptions(instance, [wanted])
    assert scene.wire.take() == ["CommitWorkflow"]
    assert answer.revision == first + 1
    (id_,) = answer.subscription_ids
    assert await scene.witness.get_subscription(id_) == replace(wanted, id=id_)
    await scene.holds(instance)


def subscription(instance: WorkflowInstance) -> EventSubscription:
    return EventSubscription(
        workflow_id=instance.id,
        step_id=1,
        execution_pointer_id="0",
        event_name=str(uuid.uuid4()),
        event_key="k",
        subscribe_as_of=NOW,
    )


async def test_copies_share_the_memory_and_namespaces_do_not(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    instance = workflow(20)
    known = workflow_pb2.GetWorkflowInstanceResponse(instance=convert.workflow_to_proto(instance))
    known.instance.revision = 5
    store.on("GetWorkflowInstance", answers(known))
    store.on("CommitWorkflow", answers(workflow_pb2.CommitWorkflowResponse(revision=6)))
    store.on("PersistWorkflow", answers(workflow_pb2.PersistWorkflowResponse(revision=6)))
    await provider.with_timeout(5).get_workflow_instance(instance.id)
    await provider.with_namespace("n").persist_workflow(instance)
    assert (store.count("PersistWorkflow"), store.count("CommitWorkflow")) == (1, 0)
    # The default namespace, by its name.
    await provider.with_namespace("default").persist_workflow(instance)
    assert (store.count("PersistWorkflow"), store.count("CommitWorkflow")) == (1, 1)


async def test_a_workflow_deleted_and_created_anew(scene: Scene) -> None:
    old = await scene.created(workflow(20))
    await scene.witness.delete_workflow(old.id)
    # Nothing tells them apart but the revision.
    new = workflow(
        0,
        id=old.id,
        create_time=old.create_time,
        workflow_definition_id="another",
        execution_pointers=[pointer("x", step_name="new"), pointer("1", step_name="new")],
    )
    await scene.witness.create_new_workflow(new)
    assert new.revision == old.revision + 1
    old.execution_pointers[0].active = True
    # A strict write finds out; otherwise the last writer wins, with the whole state.
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(old, strict=True)
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(old, expected_revision=old.revision)
    with pytest.raises(RevisionMismatch):
        await scene.provider.commit_workflow(
            WorkflowPatch(id=old.id, execution_pointers=old.execution_pointers[:1]),
            expected_revision=old.revision,
        )
    await scene.holds(new)
    await scene.provider.get_workflow_instance(old.id)
    await scene.provider.persist_workflow(old)
    await scene.holds(old)


async def test_a_part_of_a_workflow_that_was_deleted_and_created_anew(scene: Scene) -> None:
    await scene.created(whole := workflow(20))
    part = await scene.provider.get_workflow_instance(whole.id, view=WorkflowView.HEADER)
    await scene.witness.delete_workflow(whole.id)
    new = workflow(20, id=whole.id, create_time=part.create_time, data="new")
    await scene.witness.create_new_workflow(new)
    part.status = WorkflowStatus.COMPLETE
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(part)
    await scene.holds(new)


async def test_a_deleted_workflow_is_forgotten(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    await scene.provider.delete_workflow(instance.id)
    with pytest.raises(WorkflowNotFound):
        await scene.provider.persist_workflow(instance)
    assert scene.wire.take() == ["DeleteWorkflow", "PersistWorkflow"]


async def test_a_patch_of_the_callers(scene: Scene) -> None:
    instance = await scene.created(workflow(3))
    answer = await scene.provider.commit_workflow(
        WorkflowPatch(
            id=instance.id,
            header={"data": {"n": 1}, "reference": "r", "complete_time": NOW},
            execution_pointers=[pointer("new")],
            removed_pointer_ids=["1"],
        ),
        expected_revision=instance.revision,
    )
    assert answer.revision == instance.revision + 1
    stored = await scene.stored(instance)
    assert (stored.data, stored.reference, stored.complete_time) == ({"n": 1}, "r", NOW)
    assert [p.id for p in stored.execution_pointers] == ["0", "2", "new"]
    with pytest.raises(PointerNotFound) as caught:
        await scene.provider.commit_workflow(
            WorkflowPatch(id=instance.id, removed_pointer_ids=["1"]),
            expected_revision=answer.revision,
        )
    assert caught.value.field == "patch.removed_pointer_ids[0]"


# What is stored is what was given, whatever came before

JSONS: list[Any] = [
    ABSENT,
    None,
    "",
    {},
    [],
    0,
    False,
    10**40,
    Decimal("1.10"),
    Decimal("1E+5"),
    {"b": 1, "a": [None, {"\u20ac": "\U0010ffff"}], "": "'; DROP"},
    "x" * 300,
]
TEXTS: list[Any] = [None, "", "a", "\x01\u2028'\"\\", "\ufeff\U0001f469" * 50]
MOMENTS: list[Any] = [None, NOW, datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]
LISTS: list[Any] = [[], ["b", "a"], ["a", "b"], ["\u20ac"]]
POINTER_VALUES: dict[str, list[Any]] = {
    "step_id": [0, 2**31 - 1],
    "status": [status for status in PointerStatus if status is not PointerStatus.UNKNOWN],
    "active": [True, False],
    "sleep_until": MOMENTS,
    "persistence_data": JSONS,
    "start_time": MOMENTS,
    "end_time": MOMENTS,
    "event_name": TEXTS[:4],
    "event_key": TEXTS[:4],
    "event_published": [True, False],
    "event_data": JSONS,
    "step_name": TEXTS,
    "retry_count": [0, 1, 2**31 - 1],
    "children": LISTS,
    "context_item": JSONS,
    "predecessor_id": TEXTS[:4],
    "outcome": JSONS,
    "scope": LISTS,
    "extension_attributes": [{}, {"b": 1, "a": None}, {"a": None, "b": 1}, {"": "\u20ac"}],
}
HEADER_VALUES: dict[str, list[Any]] = {
    "name": ["", "changed"],
    "root_workflow_id": TEXTS[:4],
    "workflow_definition_id": ["d", "e"],
    "version": [0, 2**31 - 1],
    "description": TEXTS,
    "reference": TEXTS,
    "next_execution": [None, 2**63 - 1, 2**62],
    "status": [WorkflowStatus.SUSPENDED, WorkflowStatus.COMPLETE, WorkflowStatus.TERMINATED],
    "data": JSONS[1:],
    "create_time": MOMENTS[1:],
    "complete_time": MOMENTS,
    # A write in full without any keeps the stored ones.
    "extension_attributes": [{"b": 1, "a": None}, {"a": None, "b": 1}, {"": "\u20ac"}],
}


def test_the_changes_are_of_every_field() -> None:
    assert {"id", *POINTER_VALUES} == {f.name for f in fields(ExecutionPointer)}
    others = {"id", "execution_pointers", "revision", "view"}
    assert {*others, *HEADER_VALUES} == {f.name for f in fields(WorkflowInstance)}


def change_header(instance: WorkflowInstance, which: int, value: int, serial: str) -> None:
    name = list(HEADER_VALUES)[which % len(HEADER_VALUES)]
    new = HEADER_VALUES[name][value % len(HEADER_VALUES[name])]
    setattr(instance, name, f"{instance.id} {serial}" if new == "changed" else new)


def change_pointer(instance: WorkflowInstance, which: int, value: int, serial: str) -> None:
    pointers = instance.execution_pointers
    if pointers:
        name = list(POINTER_VALUES)[value % len(POINTER_VALUES)]
        new = POINTER_VALUES[name][value // 20 % len(POINTER_VALUES[name])]
        setattr(pointers[which % len(pointers)], name, new)


def remove_pointer(instance: WorkflowInstance, which: int, value: int, serial: str) -> None:
    if instance.execution_pointers:
        instance.execution_pointers.pop(which % len(instance.execution_pointers))


def add_pointer(instance: WorkflowInstance, which: int, value: int, serial: str) -> None:
    # Mostly at the end, as engines do.
    at = which % (len(instance.execution_pointers) + 1) if value % 4 == 0 else 10**6
    instance.execution_pointers.insert(at, pointer(f"n{serial}"))


def move_pointer(instance: WorkflowInstance, which: int, value: int, serial: str) -> None:
    pointers = instance.execution_pointers
    if pointers:
        moved = pointers.pop(which % len(pointers))
        pointers.insert(value % (len(pointers) + 1), moved)


CHANGES = st.tuples(
    st.sampled_from(
        [change_header, change_pointer, change_pointer, remove_pointer, add_pointer, move_pointer]
    ),
    st.integers(0, 255),
    st.integers(0, 255),
)
#: Who writes, whether it loads first, whether another one then deletes the workflow and
#: creates it anew, whether it writes strictly, and what it changes.
ROUNDS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.booleans(),
        st.sampled_from([False, False, True]),
        st.booleans(),
        st.lists(CHANGES, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(pointers=st.integers(0, 8), rounds=ROUNDS)
async def test_any_changes_by_any_writers(
    target: str, scene: Scene, pointers: int, rounds: list[Any]
) -> None:
    writers = [scene.provider, another(target), scene.witness]
    await scene.provider.create_new_workflow(current := workflow(pointers))
    highest = current.revision
    for turn, (who, loads, anew, strict, changes) in enumerate(rounds):
        if loads:
            current = await writers[who].get_workflow_instance(current.id)
        if anew:
            await writers[who - 1].delete_workflow(current.id)
            other = workflow(3, id=current.id, create_time=current.create_time, data=turn)
            await writers[who - 1].create_new_workflow(other)
            assert other.revision > highest
        for step, (change, which, value) in enumerate(changes):
            change(current, which, value, f"{turn}-{step}")
        before = await scene.stored(current)
        given = copy.deepcopy(current)
        if anew and strict and loads:
            with pytest.raises(RevisionMismatch):
                await writers[who].persist_workflow(current, strict=True)
            assert await scene.stored(current) == before
        revision = await writers[who].persist_workflow(
            current, strict=strict and loads and not anew
        )
        highest = revision
        assert revision == before.revision + 1
        given = replace(given, name=given.name or before.name, revision=revision)
        assert await scene.stored(current) == given


_others: dict[str, PersistenceProvider] = {}


def another(target: str) -> PersistenceProvider:
    """A second provider that remembers, one for all examples."""
    if target not in _others:
        _others[target] = provider_on(target)
    return _others[target]


@pytest.fixture(scope="session", autouse=True)
async def _close_others() -> AsyncIterator[None]:
    yield
    for provider in _others.values():
        await provider.close()


async def test_what_was_only_loaded_and_written_again_is_not_sent(scene: Scene) -> None:
    every: list[Any] = [
        "".join(map(chr, range(1, 256))),
        "\u2028\ufeff\U0010ffff",
        {"a" * 9: 1, "b": [[], {}]},
    ]
    every += [-0.0, 1e-7, 5e300, Decimal("-1.000"), Decimal("1E-20"), 10**400, [1.5, True]]
    for data in JSONS[1:] + every:
        first = workflow(0, data=data, execution_pointers=[pointer("a", outcome=data)])
        first.execution_pointers[0].extension_attributes = {"a": data, "": {"x": data}}
        instance = await scene.created(first)
        await scene.provider.persist_workflow(instance)
        assert scene.wire.last.patch == workflow_pb2.WorkflowPatch(id=instance.id), data


# Writers at the same time


def painted(instance: WorkflowInstance, colour: str) -> WorkflowInstance:
    """A whole state of which every part says whose it is."""
    new = copy.deepcopy(instance)
    new.data = colour
    for index, p in enumerate(new.execution_pointers):
        if index % 10 == 0:
            p.step_name = colour
    return new


@pytest.mark.parametrize("providers", [1, 2])
async def test_the_last_writer_wins_whole(target: str, scene: Scene, providers: int) -> None:
    writers = [scene.provider, another(target)][:providers]
    instance = await scene.created(workflow(100))
    for writer in writers:
        await writer.get_workflow_instance(instance.id)
    for turn in range(20):
        states = [painted(instance, f"{turn}-{n}") for n in range(4)]
        revisions = await asyncio.gather(
            *(writers[n % providers].persist_workflow(state) for n, state in enumerate(states))
        )
        stored = await scene.stored(instance)
        last = max(range(4), key=lambda n: revisions[n])
        assert len(set(revisions)) == 4
        assert stored == replace(states[last], revision=max(revisions))
    # It was about patches, and about their refusals.
    assert {"CommitWorkflow", "PersistWorkflow"} <= set(scene.wire.take())


async def test_a_state_that_changes_during_the_call(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    instance.data = "given"

    async def meddle(rpc: str) -> None:
        instance.data = "later"
        instance.execution_pointers[5].active = True

    scene.wire.before = meddle
    await scene.provider.persist_workflow(instance)
    assert (await scene.stored(instance)).data == "given"
    scene.wire.before = None
    # What changed in between is news for the next write.
    await scene.provider.persist_workflow(instance)
    assert [p.id for p in scene.wire.last.patch.execution_pointers] == ["5"]
    await scene.holds(instance)


# Strict


async def test_strict_refuses_an_outdated_state(target: str, scene: Scene) -> None:
    async with provider_on(target, strict=True) as strict:
        await scene.provider.create_new_workflow(first := workflow(20))
        mine = await strict.get_workflow_instance(first.id)
        theirs = await scene.provider.get_workflow_instance(first.id)
        theirs.data = "theirs"
        await scene.provider.persist_workflow(theirs)
        assert theirs.revision == mine.revision + 1
        mine.data = "mine"
        with pytest.raises(RevisionMismatch) as caught:
            await strict.persist_workflow(mine)
        assert caught.value.revision == theirs.revision
        assert not caught.value.maybe_written
        # As a whole just so.
        mine.execution_pointers.reverse()
        with pytest.raises(RevisionMismatch):
            await strict.persist_workflow(mine)
        with pytest.raises(RevisionMismatch):
            await strict.persist_workflow_with_subscriptions(mine, [subscription(mine)])
        with pytest.raises(RevisionMismatch):
            async with strict.step(mine):
                mine.data = "mine again"
        assert (await scene.stored(first)).data == "theirs"
        # Only for this call not.
        await strict.persist_workflow(mine, strict=False)
        await scene.holds(mine)


async def test_strict_for_one_call(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    first = instance.revision
    theirs = await scene.witness.get_workflow_instance(instance.id)
    await scene.witness.persist_workflow(theirs)
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(instance, strict=True)
    assert await scene.provider.persist_workflow(instance) == first + 2
    assert instance.revision == first + 2
    assert await scene.provider.persist_workflow(instance, strict=True) == first + 3


async def test_strict_tells_two_tasks_of_one_provider_apart(target: str, scene: Scene) -> None:
    async with provider_on(target, strict=True) as strict:
        await scene.provider.create_new_workflow(first := workflow(20))
        one = await strict.get_workflow_instance(first.id)
        two = await strict.get_workflow_instance(first.id)
        one.data, two.data = "one", "two"
        await strict.persist_workflow(one)
        # The provider remembers what `one` wrote; `two` is based on what was before.
        with pytest.raises(RevisionMismatch):
            await strict.persist_workflow(two)
        await strict.persist_workflow(one)
        await scene.holds(one)


async def test_strict_needs_a_revision(target: str, scene: Scene) -> None:
    instance = workflow()
    await scene.provider.create_new_workflow(instance)
    first = instance.revision
    # The one it created it with.
    instance.revision = 0
    await scene.provider.persist_workflow(instance, strict=True)
    async with provider_on(target, strict=True) as strict:
        with pytest.raises(ValueError, match="revision is not known"):
            await strict.persist_workflow(replace(instance, revision=0))
        revision = await strict.persist_workflow(instance, expected_revision=first + 1)
        assert revision == first + 2


@pytest.mark.parametrize("providers", [1, 2])
async def test_strict_counts_right(target: str, scene: Scene, providers: int) -> None:
    await scene.provider.create_new_workflow(first := workflow(20, data=0))
    strict = [provider_on(target, strict=True) for _ in range(providers)]
    conflicts = 0

    async def count(provider: PersistenceProvider) -> None:
        nonlocal conflicts
        for _ in range(10):
            while True:
                mine = await provider.get_workflow_instance(first.id)
                assert isinstance(mine.data, int)
                mine.data += 1
                try:
                    await provider.persist_workflow(mine)
                except RevisionMismatch:
                    conflicts += 1
                else:
                    break

    await asyncio.gather(*(count(strict[n % providers]) for n in range(4)))
    stored = await scene.stored(first)
    assert (stored.data, stored.revision) == (40, first.revision + 40)
    assert conflicts
    for provider in strict:
        await provider.close()


async def test_an_expected_revision_of_the_callers(scene: Scene) -> None:
    instance = await scene.created(workflow(20))
    first = instance.revision
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(instance, expected_revision=first + 8)
    assert await scene.provider.persist_workflow(instance, expected_revision=first) == first + 1
    assert scene.wire.take() == ["PersistWorkflow", "CommitWorkflow"]
    await scene.witness.persist_workflow(instance)
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(instance, expected_revision=first + 1)
    # Not sent again as a whole: that would be another question.
    assert scene.wire.take() == ["CommitWorkflow"]


# Parts


@pytest.fixture
async def long_one(scene: Scene) -> WorkflowInstance:
    """A workflow with 20 pointers, 3 of them active."""
    instance = workflow(20)
    for index in (3, 7, 19):
        instance.execution_pointers[index].active = True
    await scene.provider.create_new_workflow(instance)
    scene.wire.take()
    return instance


async def test_the_active_part_is_stored_as_a_change(
    scene: Scene, long_one: WorkflowInstance
) -> None:
    first = long_one.revision
    part = await scene.provider.get_workflow_instance(long_one.id, view=WorkflowView.ACTIVE)
    assert part.view is WorkflowView.ACTIVE
    assert [p.id for p in part.execution_pointers] == ["3", "7", "19"]
    part.execution_pointers[0].active = False
    part.execution_pointers[1].outcome = "seven"
    part.execution_pointers.append(pointer("new", active=True))
    part.reference = "r"
    assert await scene.provider.persist_workflow(part) == first + 1
    assert scene.wire.take() == ["GetWorkflowInstance", "CommitWorkflow"]
    # What is inactive by now still belongs to the part in hand.
    part.execution_pointers[0].step_name = "three"
    del part.execution_pointers[1]
    assert await scene.provider.persist_workflow(part) == first + 2
    expected = copy.deepcopy(long_one)
    expected.reference, expected.revision, expected.name = "r", first + 2, expected.id
    expected.execution_pointers[3].active = False
    expected.execution_pointers[3].step_name = "three"
    expected.execution_pointers.append(pointer("new", active=True))
    del expected.execution_pointers[7]
    assert await scene.stored(long_one) == expected
    # And the whole is known as ever, if not as of now.
    expected.data = "whole"
    await scene.provider.persist_workflow(expected)
    await scene.holds(expected)


async def test_the_header_is_stored_as_a_change(scene: Scene, long_one: WorkflowInstance) -> None:
    part = await scene.provider.get_workflow_instance_by_name(long_one.id, view=WorkflowView.HEADER)
    assert (part.view, part.execution_pointers) == (WorkflowView.HEADER, [])
    part.status = WorkflowStatus.COMPLETE
    await scene.provider.persist_workflow_with_subscriptions(part, [subscription(part)])
    async with scene.provider.step(part) as step:
        part.data = "stepped"
    assert step.revision == part.revision == long_one.revision + 2
    stored = await scene.stored(long_one)
    assert (stored.status, stored.data) == (WorkflowStatus.COMPLETE, "stepped")
    assert stored.execution_pointers == long_one.execution_pointers


async def never_whole(call: Callable[[], Any], scene: Scene, stored: WorkflowInstance) -> None:
    before = await scene.stored(stored)
    scene.wire.take()
    with pytest.raises(PartialWorkflow):
        await call()
    assert scene.wire.take() == []
    assert await scene.stored(stored) == before


async def test_a_part_is_never_stored_as_a_whole(
    target: str, scene: Scene, long_one: WorkflowInstance
) -> None:
    provider, active = scene.provider, WorkflowView.ACTIVE
    part = await provider.get_workflow_instance(long_one.id, view=active)
    await never_whole(lambda: provider.create_new_workflow(part), scene, long_one)
    await never_whole(lambda: provider.commit_workflow(part), scene, long_one)
    # Not with another revision than it was loaded with.
    other_revision = part.revision + 1
    await never_whole(
        lambda: provider.persist_workflow(part, expected_revision=other_revision), scene, long_one
    )
    # Not in another order, not by a provider that does not remember.
    backwards = replace(part, execution_pointers=part.execution_pointers[::-1])
    await never_whole(lambda: provider.persist_workflow(backwards), scene, long_one)
    for options in ({}, {"remember": 0}, {"strict": True}):
        async with provider_on(target, **options) as other:
            for method in (other.persist_workflow, other.create_new_workflow):
                await never_whole(lambda m=method: m(part), scene, long_one)  # type: ignore[misc]
    # Not if it comes from a list.
    (listed,) = await scene.witness.get_workflow_instances([long_one.id], view=WorkflowView.HEADER)
    await never_whole(lambda: scene.witness.persist_workflow(listed), scene, long_one)
    # The part of one view says nothing of another's.
    header = replace(part, view=WorkflowView.HEADER)
    await never_whole(lambda: provider.persist_workflow(header), scene, long_one)


async def test_a_part_is_refused_if_somebody_else_has_written(
    scene: Scene, long_one: WorkflowInstance
) -> None:
    part = await scene.provider.get_workflow_instance(long_one.id, view=WorkflowView.ACTIVE)
    await scene.witness.persist_workflow(long_one)
    with pytest.raises(RevisionMismatch):
        await scene.provider.persist_workflow(part)
    assert "PersistWorkflow" not in scene.wire.take()


async def test_two_parts_of_one_provider(scene: Scene, long_one: WorkflowInstance) -> None:
    one = await scene.provider.get_workflow_instance(long_one.id, view=WorkflowView.ACTIVE)
    two = await scene.provider.get_workflow_instance(long_one.id, view=WorkflowView.ACTIVE)
    del one.execution_pointers[0]
    one.execution_pointers.append(pointer("new", active=True))
    await scene.provider.persist_workflow(one)
    with pytest.raises(RevisionMismatch) as caught:
        await scene.provider.persist_workflow(two)
    assert caught.value.revision == long_one.revision + 1
    assert [p.id for p in (await scene.stored(long_one)).execution_pointers] == [
        *(p.id for p in long_one.execution_pointers if p.id != "3"),
        "new",
    ]


async def test_one_too_large_for_a_message_is_read_in_pages(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    whole = workflow(5)
    message = convert.workflow_to_proto(whole)
    message.revision = 4
    reads = 0

    async def read(request: Any, context: Any) -> Any:
        nonlocal reads
        reads += 1
        if request.view != workflow_pb2.WORKFLOW_VIEW_HEADER:
            await fails(Status.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE")(request, context)
        answer = workflow_pb2.GetWorkflowInstanceResponse(instance=message)
        del answer.instance.execution_pointers[:]
        answer.instance.view = workflow_pb2.WORKFLOW_VIEW_HEADER
        return answer

    async def page(request: Any, context: Any) -> Any:
        assert request.expected_revision == 4
        if store.count("ListExecutionPointers") == 2:
            await fails(Status.ABORTED, "REVISION_MISMATCH")(request, context)
        at = int(request.page_token or 0)
        return workflow_pb2.ListExecutionPointersResponse(
            execution_pointers=message.execution_pointers[at : at + 2],
            next_page_token=str(at + 2) if at + 2 < 5 else "",
            revision=4,
        )

    store.on("GetWorkflowInstance", read)
    store.on("ListExecutionPointers", page)
    loaded = await provider.get_workflow_instance(whole.id)
    assert loaded == replace(whole, revision=4)
    # Written once meanwhile: read again from the start.
    assert (reads, store.count("ListExecutionPointers")) == (3, 5)


async def test_one_that_grew_too_large_for_a_message(scene: Scene) -> None:
    limit = (await scene.provider.get_store_info()).max_message_bytes
    large = [pointer(str(n), outcome="x" * (limit // 8), active=n == 9) for n in range(10)]
    instance, small = workflow(0, execution_pointers=large[:5]), workflow(1)
    await scene.provider.create_new_workflow(small)
    await scene.provider.create_new_workflow(instance)
    first = instance.revision
    instance.execution_pointers += large[5:]
    assert await scene.provider.persist_workflow(instance) == first + 1
    for loaded in (
        await scene.provider.get_workflow_instance(instance.id),
        await scene.provider.get_workflow_instance_by_name(instance.id),
        (await scene.provider.get_workflow_instances([small.id, instance.id]))[1],
    ):
        assert loaded == replace(instance, name=instance.id)
    scene.wire.take()
    loaded.execution_pointers[0].active = True
    await scene.provider.persist_workflow(loaded)
    assert [p.id for p in scene.wire.last.patch.execution_pointers] == ["0"]
    part = await scene.provider.get_workflow_instance(instance.id, view=WorkflowView.ACTIVE)
    assert [p.id for p in part.execution_pointers] == ["0", "9"]
    # By others it can be written as a whole only.
    await scene.witness.commit_workflow(WorkflowPatch(id=instance.id), expected_revision=first + 2)
    with pytest.raises(TooLarge):
        await scene.provider.persist_workflow(loaded)
    await scene.provider.delete_workflow(instance.id)


# Lost answers


@pytest.mark.parametrize("mode", [False, True])
async def test_a_write_is_made_once_however_many_answers_are_lost(
    target: str, scene: Scene, mode: bool
) -> None:
    wire = Wire()
    async with provider_on(target, wire, strict=mode) as provider:
        await provider.create_new_workflow(first := workflow(20))
        instance = await provider.get_workflow_instance(first.id)
        wire.take()
        instance.data = "patch"
        wire.lose = 3
        assert await provider.persist_workflow(instance) == first.revision + 1
        assert wire.take() == ["CommitWorkflow"] * 4
        instance.execution_pointers.reverse()
        wire.lose = 3
        assert await provider.persist_workflow(instance) == first.revision + 2
        assert wire.take() == ["PersistWorkflow"] * 4
        wanted = subscription(instance)
        wire.lose = 2
        answer = await provider.persist_workflow_with_subscriptions(instance, [wanted])
        assert answer.revision == first.revision + 3
        instance.execution_pointers.reverse()
        wire.lose = 2
        answer = await provider.persist_workflow_with_subscriptions(instance, [wanted])
        assert answer.revision == first.revision + 4
        await scene.holds(instance)


async def test_what_others_wrote_after_a_lost_answer_stays(target: str, scene: Scene) -> None:
    wire = Wire()
    async with provider_on(target, wire) as provider:
        await provider.create_new_workflow(first := workflow(20))
        instance = await provider.get_workflow_instance(first.id)
        theirs = await scene.witness.get_workflow_instance(first.id)
        for whole in (False, True):
            if whole:
                instance.execution_pointers.reverse()
            attempts = 0

            async def somebody_writes(rpc: str) -> None:
                nonlocal attempts
                attempts += 1
                if attempts == 2:
                    await scene.witness.persist_workflow(theirs)

            wire.before, wire.lose = somebody_writes, 1
            instance.data, theirs.data = "ours", "theirs"
            await provider.persist_workflow(instance)
            wire.before = None
            # Ours was first, and the second attempt is not another write.
            assert attempts == 2
            assert (await scene.stored(first)).data == "theirs"
            instance = await provider.get_workflow_instance(first.id)


async def test_refused_after_a_lost_answer_is_refused(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    mismatch = fails(Status.ABORTED, "REVISION_MISMATCH", metadata={"revision": "7"})
    instance = workflow(id="w")
    # The server knows its own writes again, so this one was not made.
    info = store_pb2.GetStoreInfoResponse(request_retention=convert.duration(timedelta(hours=1)))
    store.on("PersistWorkflow", broken, mismatch)
    store.on("GetStoreInfo", answers(info))
    with pytest.raises(RevisionMismatch) as caught:
        await provider.persist_workflow(instance, expected_revision=5)
    assert (caught.value.revision, caught.value.maybe_written) == (7, False)
    store.on("CommitWorkflow", broken, mismatch)
    with pytest.raises(RevisionMismatch) as caught:
        await provider.commit_workflow(instance, expected_revision=5)
    assert (caught.value.revision, caught.value.maybe_written) == (7, False)
    # An older server does not.
    store.on("PersistWorkflow", broken, mismatch)
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse()))
    with pytest.raises(CommitOutcomeUnknown):
        await provider.persist_workflow(instance, expected_revision=5)


# Servers that are older, or wrong


async def remembered(store: FakeStore, provider: PersistenceProvider) -> WorkflowInstance:
    """A workflow the provider knows at revision 5."""
    instance = workflow(20)
    known = workflow_pb2.GetWorkflowInstanceResponse(instance=convert.workflow_to_proto(instance))
    known.instance.revision = 5
    store.on("GetWorkflowInstance", answers(known))
    store.on("PersistWorkflow", answers(workflow_pb2.PersistWorkflowResponse(revision=6)))
    return await provider.get_workflow_instance(instance.id)


async def test_a_server_without_commits(store: FakeStore, provider: PersistenceProvider) -> None:
    instance = await remembered(store, provider)
    # The fake says UNIMPLEMENTED to what it was given no step for.
    await provider.persist_workflow(instance)
    assert (store.count("CommitWorkflow"), store.count("PersistWorkflow")) == (1, 1)
    await provider.persist_workflow(instance)
    await provider.with_timeout(5).persist_workflow(instance)
    assert (store.count("CommitWorkflow"), store.count("PersistWorkflow")) == (1, 3)
    assert store.requests["PersistWorkflow"][0].instance == convert.workflow_to_proto(
        replace(instance, revision=0)
    )
    with pytest.raises(Unimplemented):
        async with provider.step(instance):
            pass


async def test_strict_with_a_server_without_commits(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    instance = await remembered(store, provider)
    await provider.persist_workflow(instance, strict=True)
    assert store.requests["PersistWorkflow"][0].expected_revision == 5


async def test_a_pointer_that_is_not_there(store: FakeStore, provider: PersistenceProvider) -> None:
    instance = await remembered(store, provider)
    store.on("CommitWorkflow", fails(Status.NOT_FOUND, "POINTER_NOT_FOUND"))
    del instance.execution_pointers[0]
    assert await provider.persist_workflow(instance) == 6
    assert len(store.requests["PersistWorkflow"][0].instance.execution_pointers) == 19


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Status.NOT_FOUND, "WORKFLOW_NOT_FOUND", WorkflowNotFound),
        (Status.ALREADY_EXISTS, "NAME_TAKEN", NameTaken),
    ],
)
async def test_other_refusals_of_a_patch_are_final(
    store: FakeStore,
    provider: PersistenceProvider,
    code: grpc.StatusCode,
    reason: str,
    kind: type[Exception],
) -> None:
    instance = await remembered(store, provider)
    store.on("CommitWorkflow", fails(code, reason))
    with pytest.raises(kind):
        await provider.persist_workflow(instance)
    assert store.count("PersistWorkflow") == 0
    assert instance.revision == 5


# The memory


def remembered_as(revision: int, pointers: int) -> Snapshot:
    return Snapshot(revision, (), {str(i): b"" for i in range(pointers)})


def key(name: str, view: WorkflowView = WorkflowView.FULL) -> patches.Key:
    return ("default", name, view)


def size_of(pointers: int) -> int:
    """What one workflow takes."""
    memory = Memory()
    memory.put(key("a"), remembered_as(1, pointers))
    return memory.size


def test_the_memory_forgets_what_was_not_used_for_longest() -> None:
    memory = Memory(-(-3 * size_of(9) // patches.POINTER_BYTES))
    for name in "abc":
        memory.put(key(name), remembered_as(1, 9))
    assert (len(memory), memory.size) == (3, 3 * size_of(9))
    assert memory.get(key("a")) is not None
    memory.put(key("d"), remembered_as(1, 0))
    assert memory.get(key("b")) is None
    assert all(memory.get(key(name)) is not None for name in "acd")
    memory.put(key("a"), remembered_as(2, 0))
    assert (len(memory), memory.size) == (3, size_of(9) + 2 * size_of(0))
    memory.put(key("e"), remembered_as(1, 100))
    assert memory.get(key("e")) is None, "too large for it, and no reason to forget others"
    assert len(memory) == 3


@pytest.mark.parametrize("pointers", [0, 1, 10, 100])
def test_the_memory_takes_what_is_documented(pointers: int) -> None:
    """Filled over and over, it takes no more than its bound, and not much less."""
    capacity = 4000
    memory = Memory(capacity)
    bound = capacity * patches.POINTER_BYTES
    messages = [
        convert.workflow_to_proto(
            workflow(
                name=str(uuid.uuid4()),
                description="d" * 100,
                next_execution=1000 + number,
                data={"a": "x" * 100},
                execution_pointers=[pointer(str(uuid.uuid4())) for _ in range(pointers)],
            )
        )
        for number in range(2 * capacity // (2 + pointers))
    ]
    # Or objects from before would be used again, which tracemalloc does not see.
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for message in messages:
            memory.put(key(message.id), patches.snapshot(message).stored(1000, None))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(memory) < len(messages)
    assert bound * 0.9 < memory.size <= bound
    assert 0.8 < (after - before) / memory.size < 1.1
    each = memory.size / len(memory)
    # As documented: about one unit a pointer, and about three a workflow.
    assert 0.6 < each / patches.POINTER_BYTES / (3 + pointers) < 1.4


def test_what_comes_last_counts() -> None:
    memory = Memory()
    memory.put(key("a"), remembered_as(9, 1))
    memory.put(key("a"), remembered_as(2, 1))
    found = memory.get(key("a"))
    assert found is not None
    assert found.revision == 2


def test_forgetting() -> None:
    memory = Memory()
    for view in WorkflowView:
        memory.put(key("a", view), remembered_as(1, 1))
    memory.put(key("b"), remembered_as(1, 1))
    memory.put(("other", "a", WorkflowView.FULL), remembered_as(1, 1))
    memory.forget("default", "a")
    assert (len(memory), memory.size) == (2, 2 * size_of(1))
    memory.forget_namespace("default")
    assert (len(memory), memory.size) == (1, size_of(1))
    memory.forget("other", "a")
    assert (len(memory), memory.size) == (0, 0)
    with pytest.raises(ValueError, match="negative"):
        Memory(-1)


async def test_a_provider_s_memory_is_bounded(target: str, scene: Scene) -> None:
    wire = Wire()
    two_of_three = -(-2 * size_of(20) // patches.POINTER_BYTES) + 5
    async with provider_on(target, wire, remember=two_of_three) as provider:
        instances = [workflow(20) for _ in range(3)]
        for instance in instances:
            await provider.create_new_workflow(instance)
        wire.take()
        for instance in instances:
            await provider.persist_workflow(instance)
        # Each pushes out the one that would be next.
        assert wire.take() == ["PersistWorkflow"] * 3
        await provider.persist_workflow(instances[2])
        assert wire.take() == ["CommitWorkflow"]
