"""Streams that last: sent for as long as the client reads on, and may.

Each message has a `cursor`. What ends the stream tells that of the last message that gRPC has
taken, unless it says itself where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.rpc.deadlines import Deadlines

# How often it is asked again, at most, whether the caller may still read.
_IDENTIFY_SECONDS: Final = 5.0


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
                if loop.time() - identified >= _IDENTIFY_SECONDS:
                    await identify()
                    identified = loop.time()
                for message in page:
                    await send(message)
                    cursor = message.cursor
    except (PersistenceError, TimeoutError) as exc:
        if isinstance(exc, TimeoutError) and not deadlines.expired:
            raise
        error = shutting_down() if isinstance(exc, TimeoutError) else exc
        if error.reason != ErrorReason.ERROR_REASON_CURSOR_EXPIRED and cursor:
            error.metadata.setdefault("cursor", cursor)
        raise error from exc.__cause__
