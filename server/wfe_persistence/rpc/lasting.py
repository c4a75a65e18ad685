"""Streams that last: what is in a feed, sent for as long as the client reads on, and may.

Messages may have a `cursor`. Then what ends the stream tells that of the last message that gRPC has
taken, unless it says itself where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Final, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.deadlines import Deadlines
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.rpc.call import Call
from wfe_persistence.store.feed import Cursor, Entry
from wfe_persistence.store.feeds import Feed, Feeds

T = TypeVar("T")

# How often it is asked again, at most, whether the caller may still read.
IDENTIFY_SECONDS: Final = 5.0

# A response is sent before it becomes larger than this, unless a single item is.
_RESPONSE_BYTES: Final = 262_144
_FRAMING_BYTES: Final = 200


async def follow(
    feeds: Feeds[T],
    call: Call,
    after: Cursor | None,
    heartbeat: float,
    *,
    response: type[Any],
    items: str,
    item: Callable[[T, str], Any],
) -> AsyncIterator[Iterable[Any]]:
    """The responses of a stream of what is in a feed; without any items, a heartbeat.

    `items`: the field of the response that has them. `item`: what the client gets of an entry, with
    its cursor; None: nothing.
    """
    most_bytes = min(_RESPONSE_BYTES, call.env.max_message_bytes - _FRAMING_BYTES)
    loop = asyncio.get_running_loop()
    with feeds.follow(call.store) as feed:
        position = await feed.start(after)
        yield [response(cursor=feed.cursor(position))]
        sent = loop.time()
        while True:
            entries, position = await feed.read(
                position,
                sent + heartbeat - loop.time(),
                from_replica=call.replica_at is not None,
            )
            for filled in _responses(entries, feed, response, items, item, most_bytes):
                yield [filled]
                sent = loop.time()
            if loop.time() >= sent + heartbeat:
                yield [response(cursor=feed.cursor(position))]
                sent = loop.time()
            if entries:
                await asyncio.sleep(0)  # others come in between, however far behind this one is


def _responses(
    entries: Iterable[Entry[T]],
    feed: Feed[T],
    response: type[Any],
    items: str,
    item: Callable[[T, str], Any],
    most_bytes: int,
) -> Iterator[Any]:
    filled = response()
    size = 0
    for entry in entries:
        cursor = feed.cursor(entry.position)
        found = item(entry.item, cursor)
        if found is None:
            continue
        size += found.ByteSize()
        if filled.cursor and size > most_bytes:
            yield filled
            filled, size = response(), found.ByteSize()
        getattr(filled, items).append(found)
        filled.cursor = cursor
    if filled.cursor:
        yield filled


async def run(
    pages: AsyncIterator[Iterable[Any]],
    *,
    send: Callable[[Any], Awaitable[None]],
    identify: Callable[[], Awaitable[object]],
    deadlines: Deadlines,
) -> None:
    """Send the messages of a stream; `identify` raises PersistenceError if the caller must not have
    them any more."""
    loop = asyncio.get_running_loop()
    identified = loop.time()
    cursor = ""
    try:
        async with aclosing(pages):  # type: ignore[type-var]
            async for page in pages:
                if loop.time() - identified >= IDENTIFY_SECONDS:
                    await identify()
                    identified = loop.time()
                for message in page:
                    await send(message)
                    cursor = getattr(message, "cursor", "")
    except (PersistenceError, TimeoutError, asyncio.CancelledError) as exc:
        # (A deadline that passes is a cancellation here, in the midst of what it is for.)
        if not isinstance(exc, PersistenceError) and not deadlines.expired:
            raise
        error = exc if isinstance(exc, PersistenceError) else shutting_down()
        if error.reason != ErrorReason.ERROR_REASON_CURSOR_EXPIRED and cursor:
            error.metadata.setdefault("cursor", cursor)
        raise error from exc.__cause__
