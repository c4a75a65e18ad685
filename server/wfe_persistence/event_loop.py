"""The event loop of the server: that of uvloop, which takes less CPU than asyncio's own.

Its clock (`loop.time()`) stands still while callbacks run, and has whole milliseconds. It is that
of `time.monotonic`, which is what measures anything short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
