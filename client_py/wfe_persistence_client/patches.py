"""What a provider remembers of workflows, so that it can send only what changed.

A `Snapshot` says what a workflow's content was at one revision, without keeping it: a
digest for each pointer, and one for each long text of the header. A patch against it,
sent with that revision as `expected_revision`, makes exactly the state it was made
from, or is refused. So it does not matter who else wrote, nor how old the memory is.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client.model import WorkflowView

#: How much is remembered unless `connect` says otherwise, in execution pointers; a
#: workflow counts as one more. About 250 bytes each.
DEFAULT_CAPACITY: Final = 200_000

_DIGEST_BYTES = 16
# Text up to this length is kept as it is: its digest would hardly be shorter.
_SHORT_TEXT = 64

_PLAIN: Final = ("name", "workflow_definition_id", "version", "status", "data_json")
_OPTIONAL: Final = ("root_workflow_id", "description", "reference", "next_execution")
_TIMES: Final = ("create_time", "complete_time")


@dataclass(slots=True, frozen=True)
class Snapshot:
    """A workflow's content at one revision, or that of a part of it."""

    #: The revision that has this content; 0: not stored yet.
    revision: int
    #: The header fields by name; None: absent. An empty name is one not known.
    header: Mapping[str, object]
    #: The digest of each pointer by its id, in their order.
    pointers: Mapping[str, bytes]
    #: False if an id stands there twice: then it compares with nothing.
    distinct: bool = True

    def stored(self, revision: int, base: "Snapshot | None") -> "Snapshot":
        """The same, known to be stored now; `base` is what it replaced, if known."""
        header = self.header
        if not header["name"] and base is not None:
            # An empty name leaves the stored one.
            header = {**header, "name": base.header["name"]}
        return Snapshot(revision, header, self.pointers, self.distinct)


def snapshot(message: workflow_pb2.WorkflowInstance, revision: int = 0) -> Snapshot:
    """What a message says that was answered, or that is about to be sent.

    An answered one compares with one to be sent, because JSON is written as the store
    writes it (see json_text). Where it is not, more is taken for changed than is.
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
    """What makes `message` of what `base` says; None: no patch can.

    A patch keeps the order of the pointers that stay and puts new ones behind them.
    `new` is the snapshot of the message.
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
    # Deterministic, since the entries of a map have no order of their own.
    return blake2b(
        pointer.SerializeToString(deterministic=True), digest_size=_DIGEST_BYTES
    ).digest()


#: A workflow as far as it was loaded: namespace, id, view.
Key = tuple[str, str, WorkflowView]


class Memory:
    """The snapshots used last, up to a number of pointers (a snapshot counts as one more).

    What comes last replaces what was there, even with a lower revision: the workflow
    may have been deleted and created anew.
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
        """How many pointers are remembered, a snapshot counted as one more."""
        return self._size

    def get(self, key: Key) -> Snapshot | None:
        """What is remembered of a workflow."""
        found = self._snapshots.get(key)
        if found is not None:
            self._snapshots.move_to_end(key)
        return found

    def put(self, key: Key, snapshot: Snapshot) -> None:
        """Remembers it, and forgets what was not used for longest if that is too much."""
        self._drop(key)
        if _weight(snapshot) > self.capacity:
            return
        self._snapshots[key] = snapshot
        self._size += _weight(snapshot)
        while self._size > self.capacity:
            _, oldest = self._snapshots.popitem(last=False)
            self._size -= _weight(oldest)

    def forget(self, namespace: str, workflow_id: str) -> None:
        """Forgets a workflow."""
        for view in WorkflowView:
            self._drop((namespace, workflow_id, view))

    def forget_namespace(self, namespace: str) -> None:
        """Forgets all workflows of a namespace."""
        for key in [key for key in self._snapshots if key[0] == namespace]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        dropped = self._snapshots.pop(key, None)
        if dropped is not None:
            self._size -= _weight(dropped)


def _weight(snapshot: Snapshot) -> int:
    return 1 + len(snapshot.pointers)
