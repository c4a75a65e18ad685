"""A client among newer and older software: it erases nothing that it does not know."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, fails
from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import (
    ExecutionPointer,
    InvalidArgument,
    PersistenceProvider,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
    connect,
    convert,
)

CHANGED = ("WorkflowInstance", "ExecutionPointer")


def newer(file: FileDescriptorProto) -> None:
    """The protos of a later version: workflows and pointers have a note."""
    for message in file.message_type:
        if message.name in CHANGED:
            message.field.add(
                name="note",
                number=500,
                type=FieldDescriptorProto.TYPE_STRING,
                label=FieldDescriptorProto.LABEL_OPTIONAL,
            )


def older(file: FileDescriptorProto) -> None:
    """The protos of an earlier version: pointers have no step_name, workflows no reference.

    They have them with other numbers, which is the same on the wire.
    """
    for message in file.message_type:
        for field in message.field:
            if message.name in CHANGED and field.name in ("step_name", "reference"):
                field.name, field.json_name = f"old_{field.name}", f"old{field.name}"
                field.number += 500


Protos = Callable[[str], Any]


def protos(change: Callable[[FileDescriptorProto], None]) -> Protos:
    """The message classes of another version, by name."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        if file.name == workflow_pb2.DESCRIPTOR.name:
            change(proto)
        pool.Add(proto)

    add(workflow_pb2.DESCRIPTOR)
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"wfe.persistence.v1.{name}")
    )


NEWER, OLDER = protos(newer), protos(older)


class Server:
    """A server of another version that stores one workflow."""

    def __init__(self, store: FakeStore, of_version: Protos, instance: WorkflowInstance) -> None:
        self.store = store
        self._protos = of_version
        #: What is stored, in the messages of its version.
        self.stored = of_version("WorkflowInstance")()
        self._store(convert.workflow_to_proto(instance), 1)
        store.on("GetWorkflowInstance", self._get)
        store.on("PersistWorkflow", self._persist)
        store.on("CommitWorkflow", self._commit)

    def by_others(self, change: Callable[[Any], None]) -> None:
        """A write by another host, of the server's version."""
        change(self.stored)
        self.stored.revision += 1

    def patches(self) -> list[Any]:
        """The patches that came since the last call, and nothing but patches."""
        assert self.store.count("PersistWorkflow") == 0
        return [request.patch for request in self.store.requests.pop("CommitWorkflow", [])]

    def notes(self) -> dict[str, str]:
        return {pointer.id: pointer.note for pointer in self.stored.execution_pointers}

    def _store(self, message: Any, revision: int) -> None:
        self.stored = self._protos("WorkflowInstance").FromString(message.SerializeToString())
        # It has no column for what it does not know.
        self.stored.DiscardUnknownFields()
        self.stored.revision = revision
        self.stored.name = self.stored.name or self.stored.id

    async def _get(self, request: Any, _context: Any) -> Any:
        answer = self._protos("GetWorkflowInstanceResponse")(instance=self.stored)
        if request.view == workflow_pb2.WORKFLOW_VIEW_ACTIVE:
            active = [p for p in self.stored.execution_pointers if p.active]
            del answer.instance.execution_pointers[:]
            answer.instance.execution_pointers.extend(active)
            answer.instance.view = request.view
        return answer

    async def _persist(self, request: Any, _context: Any) -> Any:
        self._store(request.instance, self.stored.revision + 1)
        return workflow_pb2.PersistWorkflowResponse(revision=self.stored.revision)

    async def _commit(self, request: Any, context: Any) -> Any:
        if request.expected_revision != self.stored.revision:
            found = {"revision": str(self.stored.revision)}
            await fails(grpc.StatusCode.ABORTED, "REVISION_MISMATCH", metadata=found)(
                request, context
            )
        patch = self._protos("WorkflowPatch").FromString(request.patch.SerializeToString())
        patch.DiscardUnknownFields()
        for path in patch.header_mask.paths:
            if path not in patch.header.DESCRIPTOR.fields_by_name:
                await fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")(request, context)
            self.stored.ClearField(path)
        self.stored.MergeFrom(patch.header)
        there = {pointer.id: pointer for pointer in self.stored.execution_pointers}
        there |= {pointer.id: pointer for pointer in patch.execution_pointers}
        left = [p for p in there.values() if p.id not in patch.removed_pointer_ids]
        pointers = [type(p).FromString(p.SerializeToString()) for p in left]
        del self.stored.execution_pointers[:]
        self.stored.execution_pointers.extend(pointers)
        self.stored.revision += 1
        return workflow_pb2.CommitWorkflowResponse(revision=self.stored.revision)


def workflow(pointers: int) -> WorkflowInstance:
    return WorkflowInstance(
        id=str(uuid.uuid4()),
        workflow_definition_id="d",
        version=1,
        data={"a": 1},
        reference="r",
        execution_pointers=[
            ExecutionPointer(id=str(n), step_id=n, step_name=f"s{n}", active=n % 2 == 0)
            for n in range(pointers)
        ],
    )


def annotated(store: FakeStore, pointers: int) -> Server:
    """A newer server, with a workflow to which a newer host has added notes."""
    server = Server(store, NEWER, workflow(pointers))
    server.stored.note = "of the workflow"
    for pointer in server.stored.execution_pointers:
        pointer.note = f"of {pointer.id}"
    return server


@pytest.mark.parametrize("pointers", [0, 1, 2, 20])
async def test_a_write_without_changes_changes_nothing(
    store: FakeStore, provider: PersistenceProvider, pointers: int
) -> None:
    server = annotated(store, pointers)
    before = server.stored.SerializeToString(deterministic=True)
    instance = await provider.get_workflow_instance(server.stored.id)
    for _ in range(3):
        await provider.persist_workflow(instance)
        assert server.patches() == [workflow_pb2.WorkflowPatch(id=instance.id)]
    server.stored.revision = 1
    assert server.stored.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("pointers", [0, 1, 2, 20])
@pytest.mark.parametrize("view", [WorkflowView.FULL, WorkflowView.ACTIVE])
async def test_only_what_the_caller_changed_changes(
    store: FakeStore, provider: PersistenceProvider, pointers: int, view: WorkflowView
) -> None:
    server = annotated(store, pointers)
    instance = await provider.get_workflow_instance(server.stored.id, view=view)
    notes = server.notes()
    for turn in range(3):
        instance.data = {"turn": turn}
        added = ExecutionPointer(id=f"new {turn}", step_id=1, active=True)
        instance.execution_pointers.append(added)
        changed = instance.execution_pointers[0]
        changed.status, changed.retry_count = PointerStatus.RUNNING, turn
        async with provider.step(instance):
            pass
        (patch,) = server.patches()
        assert {p.id for p in patch.execution_pointers} == {changed.id, f"new {turn}"}
        assert list(patch.header_mask.paths) == ["data_json"]
        # Also those of the pointer that was changed.
        assert server.notes() == notes | {f"new {n}": "" for n in range(turn + 1)}
        assert server.stored.note == "of the workflow"
    stored = await provider.get_workflow_instance(instance.id, view=view)
    assert stored.execution_pointers == instance.execution_pointers


async def test_a_patch_larger_than_the_full_state_is_still_a_patch(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    server = annotated(store, 1)
    instance = await provider.get_workflow_instance(server.stored.id)
    instance.description, instance.next_execution, instance.version = "d", 1, 2
    instance.workflow_definition_id, instance.reference, instance.data = "e", None, 1
    instance.root_workflow_id, instance.status = "x", WorkflowStatus.SUSPENDED
    instance.execution_pointers[0].retry_count = 1
    await provider.persist_workflow(instance)
    (patch,) = server.patches()
    assert patch.ByteSize() > convert.workflow_to_proto(instance).ByteSize()
    assert (server.stored.note, server.notes()) == ("of the workflow", {"0": "of 0"})


async def test_the_notes_of_a_removed_pointer_go_with_it(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    server = annotated(store, 20)
    instance = await provider.get_workflow_instance(server.stored.id)
    again = instance.execution_pointers.pop(3)
    await provider.persist_workflow(instance)
    assert "3" not in server.notes()
    instance.execution_pointers.append(again)
    await provider.persist_workflow(instance)
    assert len(server.patches()) == 2
    assert server.notes() == {str(n): f"of {n}" for n in range(20) if n != 3} | {"3": ""}


async def test_what_others_write_meanwhile(store: FakeStore, provider: PersistenceProvider) -> None:
    """Strictly, their notes stay: the caller loads the workflow again."""
    server = annotated(store, 20)
    instance = await provider.get_workflow_instance(server.stored.id)

    def note(stored: Any) -> None:
        stored.execution_pointers[0].note = "later"

    server.by_others(note)
    instance = await provider.get_workflow_instance(server.stored.id)
    instance.status = WorkflowStatus.COMPLETE
    instance.execution_pointers[0].active = False
    await provider.persist_workflow(instance, strict=True)
    assert len(server.patches()) == 1
    assert server.notes() == {str(n): f"of {n}" for n in range(20)} | {"0": "later"}


async def test_only_the_full_state_erases_what_is_unknown(store: FakeStore) -> None:
    """As the docs say: it is all of the state, as the client knows it."""

    def reorder(instance: WorkflowInstance) -> None:
        instance.execution_pointers.reverse()

    def nothing(_instance: WorkflowInstance) -> None:
        pass

    for remember, change in ((0, nothing), (1000, reorder)):
        server = annotated(store, 3)
        async with connect(store.target, retry=FAST, remember=remember) as provider:
            instance = await provider.get_workflow_instance(server.stored.id)
            change(instance)
            await provider.persist_workflow(instance)
            assert store.requests.pop("PersistWorkflow")
            assert set(server.notes().values()) == {""}
            # From then on there is nothing unknown to keep.
            instance.execution_pointers.reverse()
            await provider.persist_workflow(instance)
            assert store.requests.pop("PersistWorkflow")


# The client is the newer one


async def test_an_older_server_does_not_store_what_it_does_not_know(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    server = Server(store, OLDER, workflow(20))
    instance = await provider.get_workflow_instance(server.stored.id)
    assert {p.step_name for p in instance.execution_pointers} == {None}
    await provider.persist_workflow(instance)
    assert server.patches() == [workflow_pb2.WorkflowPatch(id=instance.id)]
    instance.execution_pointers[0].step_name = "new"
    instance.execution_pointers[1].retry_count = 2
    await provider.persist_workflow(instance)
    (patch,) = server.patches()
    assert [p.id for p in patch.execution_pointers] == ["0", "1"]
    # Sent once: it is not a change any more.
    await provider.persist_workflow(instance)
    assert server.patches() == [workflow_pb2.WorkflowPatch(id=instance.id)]
    again = await provider.get_workflow_instance(instance.id)
    instance.execution_pointers[0].step_name = None
    assert again == instance


async def test_an_older_server_refuses_a_patch_of_a_field_that_it_does_not_know(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    server = Server(store, OLDER, workflow(20))
    instance = await provider.get_workflow_instance(server.stored.id)
    before = server.stored.SerializeToString()
    with pytest.raises(InvalidArgument):
        await provider.persist_workflow(replace(instance, reference="new"))
    assert server.stored.SerializeToString() == before
