"""What a provider remembers of workflows, so that it can send only changes.

A `Snapshot` identifies a workflow's content at one revision without storing it: it has
a digest of each pointer and of each long text of the header. A patch against it, sent
with that revision as `expected_revision`, either produces exactly the intended state or
is rejected. So it does not matter who else has written, or how old the snapshot is.

Newer software may store fields that this client does not know. They are no part of the
comparison, so they do not make a pointer count as changed; and a patch that changes a
pointer returns its unknown fields as they were.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from sys import getsizeof
from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client.model import WorkflowView

#: Default capacity of the memory, in execution pointers.
DEFAULT_CAPACITY: Final = 200_000
#: The memory that counts as one execution pointer, in bytes: one with an id as long as
#: a UUID takes a little less. A workflow without pointers takes about three times that.
POINTER_BYTES: Final = 250

_DIGEST_BYTES = 16
# Text up to this length is kept verbatim: its digest would hardly be shorter.
_SHORT_TEXT = 16

_PLAIN: Final = ("name", "workflow_definition_id", "version", "status", "data_json")
_OPTIONAL: Final = ("root_workflow_id", "description", "reference", "next_execution")
_TIMES: Final = ("create_time", "complete_time")
_ATTRIBUTES: Final = "extension_attributes_json"
#: The header fields, in the order in which a snapshot has them.
_HEADER: Final = (*_PLAIN, *_OPTIONAL, *_TIMES, _ATTRIBUTES)

_SHARED: Final = frozenset((None, *range(257)))

_NONE: Final[Mapping[str, bytes]] = {}


@dataclass(slots=True, frozen=True)
class Snapshot:
    """The content of a workflow, or of a view of it, at one revision."""

    #: The revision that has this content; 0: not stored yet.
    revision: int
    #: The header fields, in the order of `_HEADER`; None: absent. An empty name means
    #: unknown.
    header: tuple[object, ...]
    #: The digest of each pointer by its id, in order.
    pointers: Mapping[str, bytes]
    #: False if an id is duplicated: such a snapshot cannot be compared.
    distinct: bool = True
    #: The workflow has fields that this client does not know.
    newer: bool = False
    #: The unknown fields of those pointers that have any, by the pointer's id.
    unknown: Mapping[str, bytes] = field(default_factory=lambda: _NONE)

    def stored(self, revision: int, base: "Snapshot | None") -> "Snapshot":
        """A copy marked as stored at a revision; `base`: the snapshot it was a patch to.

        None: it was stored in full.
        """
        header, newer, unknown = self.header, False, _NONE
        if base is not None:
            if not header[0]:
                # An empty name leaves the stored one.
                header = (base.header[0], *header[1:])
            newer = base.newer
            if base.unknown:
                unknown = {i: rest for i, rest in base.unknown.items() if i in self.pointers}
        return Snapshot(revision, header, self.pointers, self.distinct, newer, unknown)

    def size(self) -> int:
        """How much memory it takes, in bytes."""
        # None, and the numbers that Python keeps one object of, take no memory here.
        own = [part for part in (self.revision, *self.header) if part not in _SHARED]
        size = _sizes((self, self.header, *own))
        for digests in (self.pointers, self.unknown):
            if digests:
                size += getsizeof(digests) + _sizes(digests) + _sizes(digests.values())
        return size


def received(message: workflow_pb2.WorkflowInstance) -> Snapshot:
    """The snapshot of a message that was received; removes its unknown fields.

    It compares equal to the same message to be sent, because JSON is written the way
    the store writes it (see json_text). Where it is not, unchanged parts count as
    changed.
    """
    unknown = {
        pointer.id: _unknown(pointer)
        for pointer in message.execution_pointers
        if len(UnknownFieldSet(pointer))
    }
    newer = bool(unknown) or len(UnknownFieldSet(message)) > 0
    message.DiscardUnknownFields()
    return _snapshot(message, message.revision, newer, unknown or _NONE)


def snapshot(message: workflow_pb2.WorkflowInstance) -> Snapshot:
    """The snapshot of a message that is about to be sent."""
    return _snapshot(message, 0, newer=False, unknown=_NONE)


def _snapshot(
    message: workflow_pb2.WorkflowInstance,
    revision: int,
    newer: bool,
    unknown: Mapping[str, bytes],
) -> Snapshot:
    has = message.HasField
    header: list[object] = [_short(getattr(message, name)) for name in _PLAIN]
    header += [_short(getattr(message, name)) if has(name) else None for name in _OPTIONAL]
    for name in _TIMES:
        time = getattr(message, name)
        header.append(time.seconds * 10**9 + time.nanos if has(name) else None)
    header.append(_attributes(message.extension_attributes_json))
    pointers = {pointer.id: _digest(pointer) for pointer in message.execution_pointers}
    return Snapshot(
        revision=revision,
        header=tuple(header),
        pointers=pointers or _NONE,
        distinct=len(pointers) == len(message.execution_pointers),
        newer=newer,
        unknown=unknown,
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
    for name, before, value in zip(_HEADER, base.header, new.header, strict=True):
        if value == before or (name == "name" and not value):
            continue
        result.header_mask.paths.append(name)
        if value is None:
            continue
        if name == _ATTRIBUTES:
            result.header.extension_attributes_json.update(message.extension_attributes_json)
        elif name in _TIMES:
            getattr(result.header, name).CopyFrom(getattr(message, name))
        else:
            setattr(result.header, name, getattr(message, name))
    return result


def _changed(
    base: Snapshot, new: Snapshot, message: workflow_pb2.WorkflowInstance
) -> Iterator[workflow_pb2.ExecutionPointer]:
    for pointer in message.execution_pointers:
        if base.pointers.get(pointer.id) == new.pointers[pointer.id]:
            continue
        rest = base.unknown.get(pointer.id)
        if rest is None:
            yield pointer
        else:
            # Not in `message` itself, which may be stored in full at another revision.
            whole = workflow_pb2.ExecutionPointer()
            whole.CopyFrom(pointer)
            whole.MergeFromString(rest)
            yield whole


def _unknown(message: Message) -> bytes:
    """The fields of a message that this client does not know."""
    rest = type(message)()
    rest.CopyFrom(message)
    for known in message.DESCRIPTOR.fields:
        rest.ClearField(known.name)
    return rest.SerializeToString()


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > _SHORT_TEXT:
        return blake2b(value.encode(), digest_size=_DIGEST_BYTES).digest()
    return value


def _attributes(attributes: Mapping[str, str]) -> bytes | None:
    """Their digest, whatever their order; None: there are none."""
    if not attributes:
        return None
    texts = repr(sorted(attributes.items())).encode()
    return blake2b(texts, digest_size=_DIGEST_BYTES).digest()


def _digest(pointer: workflow_pb2.ExecutionPointer) -> bytes:
    # Deterministic, because map entries have no defined order.
    return blake2b(
        pointer.SerializeToString(deterministic=True), digest_size=_DIGEST_BYTES
    ).digest()


#: A workflow as it was loaded: namespace, id, view.
Key = tuple[str, str, WorkflowView]

# An entry of the cache without its key and its snapshot: the pair with its size, and
# its place in the tables of the OrderedDict, on average over how full they are.
_ENTRY_BYTES: Final = getsizeof((None, 0)) + getsizeof(1) + 140


class Memory:
    """An LRU cache of snapshots, bounded by the memory that it takes.

    A new snapshot always replaces the old one, even with a lower revision: the database
    may have been restored.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        """Bounds it to so many execution pointers of `POINTER_BYTES`; 0: remembers nothing."""
        if capacity < 0:
            raise ValueError("the number of remembered pointers must not be negative")
        self.capacity = capacity
        self._bound = capacity * POINTER_BYTES
        self._size = 0
        # With the size of each.
        self._snapshots: OrderedDict[Key, tuple[Snapshot, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def size(self) -> int:
        """How much memory it takes, in bytes."""
        return self._size

    def get(self, key: Key) -> Snapshot | None:
        """The remembered snapshot of a workflow, if any."""
        found = self._snapshots.get(key)
        if found is None:
            return None
        self._snapshots.move_to_end(key)
        return found[0]

    def put(self, key: Key, snapshot: Snapshot) -> None:
        """Adds a snapshot, and evicts the least recently used ones if the capacity is exceeded."""
        self._drop(key)
        # The namespace and the view are objects that all keys share.
        size = snapshot.size() + _sizes((key, key[1])) + _ENTRY_BYTES
        if size > self._bound:
            return
        self._snapshots[key] = (snapshot, size)
        self._size += size
        while self._size > self._bound:
            _, (_, oldest) = self._snapshots.popitem(last=False)
            self._size -= oldest

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
            self._size -= dropped[1]


def _sizes(values: Iterable[object]) -> int:
    return sum(map(getsizeof, values))
