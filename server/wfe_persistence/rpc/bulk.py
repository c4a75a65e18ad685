"""Streams whose requests have many items, each of which is checked, done and answered as if it were
a call of its own."""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from wfe.persistence.v1.event_pb2 import CreateEventsRequest, CreateEventsResponse
from wfe.persistence.v1.item_error_pb2 import ItemError
from wfe.persistence.v1.workflow_pb2 import CreateWorkflowsRequest, CreateWorkflowsResponse
from wfe_persistence import metrics, offload
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.named_field import NamingAField
from wfe_persistence.rpc.status import (
    MAX_MESSAGE_BYTES,
    MAX_PATH_BYTES,
    STATUS_OF,
    reason_name,
    shortened,
)
from wfe_persistence.store.request_key import new_id

R = TypeVar("R", bound=Message)
T = TypeVar("T")
A = TypeVar("A", CreateWorkflowsResponse, CreateEventsResponse)

# Of one item, as of one call.
_MAX_VIOLATIONS_BYTES: Final = 3500
# More than a result has beside its ids, and also of an item that the store refuses. (Only what the
# checks do not know of, and the database refuses, may have more.)
_REFUSAL_BYTES: Final = 192
# The tags and lengths of a result and what is in it.
_FRAMING_BYTES: Final = 10


async def answer(
    request: CreateWorkflowsRequest | CreateEventsRequest,
    items: Sequence[R],
    call: Call,
    check: Check,
    *,
    rpc: str,
    prepare: Callable[[R, Check, Callable[[], str]], None],
    store: Callable[[list[R]], Awaitable[Sequence[T | PersistenceError]]],
    created: Callable[[Any, R, T | None], None],
    response: type[A],
) -> A:
    """The answer to a request with items.

    `prepare` raises PersistenceError for one that is bad; it is given what makes the id of one
    without. `store` takes the others. `created` fills in the answer for one, with what the store
    returned for it, or before that is known the largest one.
    """
    if call.place.refuses:
        raise shutting_down()  # another server can go on

    field, max_bytes = request.DESCRIPTOR.fields[0].name, call.env.max_message_bytes
    room = max_bytes // 2 // max(len(items), 1)

    def prepare_all() -> dict[int, PersistenceError]:
        check.no_nul(type(request)(request_id=request.request_id))
        check.request_id(request.request_id)
        check.at_most("", field, items)
        check.done()
        request_id = uuid.UUID(request.request_id) if request.request_id else None
        refused: dict[int, PersistenceError] = {}
        for n, item in enumerate(items):
            own = Check(item.ByteSize(), max_bytes)
            try:
                if check.has_zero_byte:
                    own.no_nul(item)
                prepare(item, own, partial(new_id, request_id, field, n))
            except PersistenceError as exc:
                refused[n] = exc
        # Nothing is written whose answer can't be sent. It has ids of the request, each at most
        # twice, and new ones; only if that might be too much, it is measured.
        errors = sum(item_error(exc, room).ByteSize() for exc in refused.values())
        if errors + 2 * request.ByteSize() + _REFUSAL_BYTES * len(items) > max_bytes:
            largest = response()
            for n, item in enumerate(items):
                if n not in refused:
                    created(largest.results.add().created, item, None)
            measured = sum(max(each.ByteSize(), _REFUSAL_BYTES) for each in largest.results)
            check.bytes_fit(errors + measured + _FRAMING_BYTES * len(items))
        return refused

    refused = await offload.run(prepare_all)
    good = [item for n, item in enumerate(items) if n not in refused] if refused else list(items)
    outcomes = iter(await store(good) if good else ())
    answer = response()
    for n, item in enumerate(items):
        result = answer.results.add()
        outcome = refused.get(n) or next(outcomes)
        if isinstance(outcome, PersistenceError):
            refused[n] = error = NamingAField(item).named(outcome)
            result.error.CopyFrom(item_error(error, room))
        else:
            created(result.created, item, outcome)
    if len(items) > len(refused):
        metrics.BULK_ITEMS.add((rpc, "OK"), len(items) - len(refused))
    for error in refused.values():
        metrics.BULK_ITEMS.add((rpc, reason_name(error.reason)))
    return answer


def item_error(error: PersistenceError, violations_bytes: int) -> ItemError:
    """What a response says of an error of one of many items, whose violations may take so many
    bytes; the first one is always there."""
    found = ItemError(
        code=STATUS_OF[error.reason].value[0],
        reason=error.reason,
        message=shortened(str(error), MAX_MESSAGE_BYTES),
        metadata=error.metadata,
    )
    left = min(violations_bytes, _MAX_VIOLATIONS_BYTES)
    for violation in error.violations:
        added = found.field_violations.add(
            field=shortened(violation.field, MAX_PATH_BYTES),
            reason=violation.reason,
            description=violation.description,
        )
        left -= added.ByteSize()
        if left < 0:
            break
    if error.retry_after is not None:
        nanos, seconds = math.modf(error.retry_after)
        found.retry_delay.CopyFrom(Duration(seconds=int(seconds), nanos=int(nanos * 1e9)))
    return found
