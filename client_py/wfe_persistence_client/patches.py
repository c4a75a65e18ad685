"""What a provider remembers of workflows, so that it can send only changes.

A `Snapshot` identifies a workflow's content at one revision without storing it: it has
a digest of each pointer and of each long text of the header. A patch against it, sent
with that revision as `expected_revision`, either produces exactly the intended state or
is rejected. So it does not matter who else has written, or how old the snapshot is.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client.model import WorkflowView

#: Default capacity of the memory, in execution pointers; each workflow counts as one
#: more. About 250 bytes each.
DEFAULT_CAPACITY: Final = 200_000

_DIGEST_BYTES = 16
# Text up to this length is kept verbatim: its digest would hardly be shorter.
_SHORT_TEXT = 64

_PLAIN: Final = ("name", "workflow_definition_id", "version", "status", "data_json")
_OPTIONAL: Final = ("root_workflow_id", "description", "reference", "next_execution")
_TIMES: Final = ("create_time", "complete_time")


@dataclass(slots=True, frozen=True)
class Snapshot:
    """The content of a workflow, or of a view of it, at one revision."""

    #: The revision that has this content; 0: not stored yet.
    revision: int
    #: The header fields by name; None: absent. An empty name means unknown.
    header: Mapping[str, object]
    #: The digest of each pointer by its id, in order.
    pointers: Mapping[str, bytes]
    #: False if an id is duplicated: such a snapshot cannot be compared.
    distinct: bool = True

    def stored(self, revision: int, base: "Snapshot | None") -> "Snapshot":
        """A copy marked as stored at a revision; `base` is the snapshot it replaced, if known."""
        header = self.header
        if not header["name"] and base is not None:
            # An empty name leaves the stored one.
            header = {**header, "name": base.header["name"]}
        return Snapshot(revision, header, self.pointers, self.distinct)


def snapshot(message: workflow_pb2.WorkflowInstance, revision: int = 0) -> Snapshot:
    """The snapshot of a message that was received, or that is about to be sent.

    A received message compares equal to the same one to be sent, because JSON is
    written the way the store writes it (see json_text). Where it is not, unchanged
    parts count as changed.
    """
    header: dict[str, object] = {name: _short(getattr(message, name)) for name in _PLAIN}
    for optional in _OPTIONAL:
        present = message.HasField(optional)
        header[optional] = _short(getattr(message, optional)) if present else None
    for moment in _TIMES:
        time = getattr(message, moment)
        header[moment] = (time.seconds, time.nanos) if message.HasField(moment) else None
    pointers = {pointer.id: _digest(pointer) for pointer in message.execution_pointers}
    return Snapshot(
        revision=revision,
        header=header,
        pointers=pointers,
        distinct=len(pointers) == len(message.execution_pointers),
    )


def patch(
    base: Snapshot, new: Snapshot, message: workflow_pb2.WorkflowInstance
) -> workflow_pb2.WorkflowPatch | None:
    """The patch that turns `base` into `message`; None: no patch can.

    A patch keeps the order of existing pointers and appends new ones. `new` is the
    snapshot of the message.
    """
    if not new.distinct or not base.distinct:
        return None
    kept = [id_ for id_ in base.pointers if id_ in new.pointers]
    if any(id_ != there for id_, there in zip(kept, new.pointers, strict=False)):
        return None
    result = workflow_pb2.WorkflowPatch(
        id=message.id,
        execution_pointers=_changed(base, new, message),
        removed_pointer_ids=[id_ for id_ in base.pointers if id_ not in new.pointers],
    )
    for name, value in new.header.items():
        if value == base.header[name] or (name == "name" and not value):
            continue
        result.header_mask.paths.append(name)
        if value is None:
            continue
        if name in _TIMES:
            getattr(result.header, name).CopyFrom(getattr(message, name))
        else:
            setattr(result.header, name, getattr(message, name))
    return result


def _changed(
    base: Snapshot, new: Snapshot, message: workflow_pb2.WorkflowInstance
) -> Iterator[workflow_pb2.ExecutionPointer]:
    for pointer in message.execution_pointers:
        if base.pointers.get(pointer.id) != new.pointers[pointer.id]:
            yield pointer


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > _SHORT_TEXT:
        return blake2b(value.encode(), digest_size=_DIGEST_BYTES).digest()
    return value


def _digest(pointer: workflow_pb2.ExecutionPointer) -> bytes:
    # Deterministic, because map entries have no defined order.
    return blake2b(
        pointer.SerializeToString(deterministic=True), digest_size=_DIGEST_BYTES
    ).digest()


#: A workflow as it was loaded: namespace, id, view.
Key = tuple[str, str, WorkflowView]


class Memory:
    """An LRU cache of snapshots, bounded by their number of pointers plus one each.

    A new snapshot always replaces the old one, even with a lower revision: the workflow
    may have been deleted and created again.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 0:
            raise ValueError("the number of remembered pointers must not be negative")
        self.capacity = capacity
        self._size = 0
        self._snapshots: OrderedDict[Key, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def size(self) -> int:
        """How many pointers are remembered, plus one per snapshot."""
        return self._size

    def get(self, key: Key) -> Snapshot | None:
        """The remembered snapshot of a workflow, if any."""
        found = self._snapshots.get(key)
        if found is not None:
            self._snapshots.move_to_end(key)
        return found

    def put(self, key: Key, snapshot: Snapshot) -> None:
        """Adds a snapshot, and evicts the least recently used ones if the capacity is exceeded."""
        self._drop(key)
        if _weight(snapshot) > self.capacity:
            return
        self._snapshots[key] = snapshot
        self._size += _weight(snapshot)
        while self._size > self.capacity:
            _, oldest = self._snapshots.popitem(last=False)
            self._size -= _weight(oldest)

    def forget(self, namespace: str, workflow_id: str) -> None:
        """Removes a workflow."""
        for view in WorkflowView:
            self._drop((namespace, workflow_id, view))

    def forget_namespace(self, namespace: str) -> None:
        """Removes all workflows of a namespace."""
        for key in [key for key in self._snapshots if key[0] == namespace]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        dropped = self._snapshots.pop(key, None)
        if dropped is not None:
            self._size -= _weight(dropped)


def _weight(snapshot: Snapshot) -> int:
    return 1 + len(snapshot.pointers)
