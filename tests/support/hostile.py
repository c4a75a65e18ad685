"""Requests that are hard to judge: about as large as they may be, and of many small parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from tests.support import make
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import ExecutionError, PersistErrorsRequest
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    GetWorkflowInstancesRequest,
    ListWorkflowsRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    PointerStatus,
    WorkflowInstance,
    WorkflowPatch,
)

Encode = Callable[[], bytes]

BYTES: Final = 4_150_000
"""A little less than the largest request."""


def filled(item: str, size: int = BYTES) -> str:
    """As many items in a row as make a text of this size."""
    return item * (size // len(item.encode()))


def _list(item: str, size: int = BYTES) -> str:
    return f"[{filled(item + ',', size)}{item}]"


LISTS: Final = {
    "typical": '{"id":7,"name":"step 1","data":{"a":1.5,"b":[1,null],"done":true},"note":"a\\nb"}',
    "numbers": "1",
    "large exponents": "1e99",
    "escapes": '"\\u0041\\u003C"',
    "lists": "[]",
    "texts": '"a text of some length, without an escape"',
}
"""What long lists may be made of."""

JSON: Final[dict[str, Callable[[], str]]] = {
    "numbers": lambda: _list("1"),
    "decimals": lambda: _list("1.25"),
    "600 kB of large numbers": lambda: _list("1e999", 600_000),
    "different exponents": lambda: f"[{','.join(f'{i}e{i % 99}' for i in range(400_000))}]",
    "long numbers": lambda: _list("7" * 1999),
    "one number": lambda: filled("7"),
    "escaped letters": lambda: f'"{filled(chr(92) + "u0041")}"',
    "escaped brackets": lambda: f'"{filled(chr(92) + "u003C")}"',
    "surrogate pairs": lambda: f'"{filled(chr(92) + "ud83d" + chr(92) + "ude00")}"',
    "a lone surrogate at the end": lambda: f'"{filled(chr(92) + "u0041")}{chr(92)}ud800"',
    "backslashes": lambda: f'"{filled(chr(92) * 2)}"',
    "lists": lambda: _list("[]"),
    "objects": lambda: _list('{"":0}'),
    "100 levels": lambda: _list("[" * 99 + "]" * 99),
    "texts": lambda: _list('""'),
    "one text": lambda: f'"{filled("x")}"',
    "whitespace": lambda: filled(" ") + "1",
    "open brackets": lambda: filled("["),
}
"""Documents, good and bad."""


def _tag(number: int, wire_type: int = 2) -> bytes:
    tag = number << 3 | wire_type
    return bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])


def _field(number: int, value: bytes) -> bytes:
    length = b""
    size = len(value)
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return _tag(number) + length + bytes([size]) + value


def _number(message: type[Message], field: str) -> int:
    return message.DESCRIPTOR.fields_by_name[field].number


def _persist(pointers: bytes) -> bytes:
    """A request to persist a workflow that does not exist, with these pointers on the wire."""
    instance = make.instance(id="unknown").SerializeToString() + pointers
    return _field(_number(PersistWorkflowRequest, "instance"), instance)


def _in_pointer(field: str, value: bytes) -> bytes:
    """A workflow with a pointer that has this field as often as fits in."""
    item = _field(_number(ExecutionPointer, field), value)
    pointer = make.pointer("1").SerializeToString() + item * (BYTES // len(item))
    return _persist(_field(_number(WorkflowInstance, "execution_pointers"), pointer))


def _pointers(pointer: bytes = b"", size: int = BYTES) -> bytes:
    item = _field(_number(WorkflowInstance, "execution_pointers"), pointer)
    return _persist(item * (size // len(item)))


def _small_pointers(count: int = 190_000) -> bytes:
    return PersistWorkflowRequest(
        instance=make.instance(
            id="unknown",
            execution_pointers=[
                ExecutionPointer(
                    id=f"{i:x}", status=PointerStatus.POINTER_STATUS_PENDING, outcome_json="1"
                )
                for i in range(count)
            ],
        )
    ).SerializeToString()


def _attributes() -> bytes:
    pointer = make.pointer("1", extension_attributes_json={f"{i:x}": "1" for i in range(99_000)})
    return PersistWorkflowRequest(
        instance=make.instance(id="unknown", execution_pointers=[pointer])
    ).SerializeToString()


def _attributes_with_request_id() -> bytes:
    attributes = {f"{i:x}": "1" for i in range(30_000)}
    pointers = [make.pointer(f"{i}", extension_attributes_json=attributes) for i in range(10)]
    return PersistWorkflowRequest(
        instance=make.instance(id="unknown", execution_pointers=pointers),
        request_id="6a1f1f3e-54f7-4d1c-8d3f-0d4c7b3a2f10",
    ).SerializeToString()


def _subscriptions() -> bytes:
    template = make.subscription().SerializeToString()
    create: list[EventSubscription] = []
    for i in range(BYTES // (len(template) + 4)):
        create.append(EventSubscription.FromString(template))
        create[-1].id = f"{i:x}"
    return PersistWorkflowWithSubscriptionsRequest(
        instance=make.instance(id="unknown"), subscriptions=create
    ).SerializeToString()


def _removed() -> bytes:
    ids = [f"{i:x}" for i in range(199_000)]
    patch = WorkflowPatch(id="unknown", removed_pointer_ids=ids)
    return CommitWorkflowRequest(patch=patch, expected_revision=1).SerializeToString()


def _header_mask() -> bytes:
    patch = WorkflowPatch(id="unknown")
    patch.header_mask.paths.extend(["data_json"] * (BYTES // 11))
    return CommitWorkflowRequest(patch=patch, expected_revision=1).SerializeToString()


def _bad_errors() -> bytes:
    return _field(_number(PersistErrorsRequest, "errors"), b"") * (BYTES // 2)


def _errors() -> bytes:
    error: ExecutionError = make.error(message="x")
    item = _field(_number(PersistErrorsRequest, "errors"), error.SerializeToString())
    bad = _field(_number(PersistErrorsRequest, "errors"), b"")
    return item * (BYTES // len(item)) + bad  # it is judged, but never stored


_WORKFLOWS: Final = "/wfe.persistence.v1.WorkflowService/"
_STORE: Final = "/wfe.persistence.v1.StoreService/"
_EVENTS: Final = "/wfe.persistence.v1.EventService/"
_PERSIST: Final = f"{_WORKFLOWS}PersistWorkflow"

_MESSAGES: Final[dict[str, tuple[str, Encode]]] = {
    "200 kB of empty pointers": (_PERSIST, lambda: _pointers(size=200_000)),
    "4 MB of empty pointers": (_PERSIST, _pointers),
    "small pointers": (_PERSIST, _small_pointers),
    "children": (_PERSIST, lambda: _in_pointer("children", b"a")),
    "children that are too long": (_PERSIST, lambda: _in_pointer("children", b"a" * 513)),
    "repeated times": (_PERSIST, lambda: _in_pointer("start_time", b"")),
    "attributes": (_PERSIST, _attributes),
    "attributes, hashed": (_PERSIST, _attributes_with_request_id),
    "zero bytes": (_PERSIST, lambda: _in_pointer("scope", b"\0")),
    "zero bytes in pointers": (_PERSIST, lambda: _pointers(_field(1, b"\0"), 290_000)),
    "unknown numbers": (_PERSIST, lambda: _persist(b"") + _unknown(0, b"\1")),
    "unknown texts": (_PERSIST, lambda: _persist(b"") + _unknown(2, b"\0")),
    "unknown groups": (_PERSIST, lambda: _persist(b"") + _unknown(3, _tag(99, 4))),
    "subscriptions": (f"{_WORKFLOWS}PersistWorkflowWithSubscriptions", _subscriptions),
    "removed pointers": (f"{_WORKFLOWS}CommitWorkflow", _removed),
    "header mask": (f"{_WORKFLOWS}CommitWorkflow", _header_mask),
    "empty errors": (f"{_STORE}PersistErrors", _bad_errors),
    "errors": (f"{_STORE}PersistErrors", _errors),
    "statuses": (
        f"{_WORKFLOWS}ListWorkflows",
        lambda: _field(_number(ListWorkflowsRequest, "filter"), _field(1, b"\1" * BYTES)),
    ),
    "page token": (
        f"{_WORKFLOWS}ListWorkflows",
        lambda: ListWorkflowsRequest(page_token="A" * BYTES).SerializeToString(),
    ),
    "long ids": (
        f"{_WORKFLOWS}GetWorkflowInstances",
        lambda: GetWorkflowInstancesRequest(ids=["x" * 513] * (BYTES // 516)).SerializeToString(),
    ),
}


def _unknown(wire_type: int, value: bytes) -> bytes:
    item = _tag(99, wire_type) + value
    return item * (BYTES // len(item))


def _of_event(document: Callable[[], str]) -> Encode:
    def encode() -> bytes:
        event = make.event(event_data_json=document(), event_name="")
        return CreateEventRequest(event=event).SerializeToString()

    return encode


REQUESTS: Final[dict[str, tuple[str, Encode]]] = {
    f"JSON: {name}": (f"{_EVENTS}CreateEvent", _of_event(document))
    for name, document in JSON.items()
} | _MESSAGES
"""The path of an RPC, and what makes a request. None of them stores anything: where there is no
other reason for a refusal, something is missing or does not exist."""
