"""The changes of workflows as a stream of events for a browser (Server-Sent Events)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_console import shapes
from wfe_persistence_console.link import Caller
from wfe_persistence_console.web import Refusal, Request

_HEARTBEAT: Final = Duration(seconds=5)

# A browser goes on behind the last change, so this only bounds what a forgotten one holds.
_LONGEST_SECONDS: Final = 600.0


def watch(
    caller: Caller, request: Request, is_over: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """The changes since `after`, or from now on. It ends when `is_over()`, and at the latest after
    ten minutes. An event has the changes of one response, and its id is the place behind them; an
    event `failed` says why the stream ends."""
    asked = workflow_pb2.WatchWorkflowsRequest(
        filter=workflow_pb2.WatchedWorkflows(
            workflow_id=request.text("id"),
            workflow_definition_id=request.text("definition"),
            root_workflow_id=request.text("root"),
        ),
        after=request.text("after"),
        heartbeat=_HEARTBEAT,
    )
    return _events(caller, asked, is_over)


async def _events(
    caller: Caller,
    asked: workflow_pb2.WatchWorkflowsRequest,
    is_over: Callable[[], bool],
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    until = loop.time() + _LONGEST_SECONDS
    yield b": begins\n\n"  # so that the browser knows that it is connected
    try:
        responses = caller.stream(caller.stubs.workflows.WatchWorkflows, asked)
        async with aclosing(responses):
            async for response in responses:
                if is_over() or loop.time() > until:
                    return
                changes = [
                    {**shapes.header(one.instance), "deleted": one.deleted}
                    for one in response.changes
                ]
                yield _event("changes", {"changes": changes, "cursor": response.cursor})
    except Refusal as exc:
        yield _event("failed", {"reason": exc.reason, "message": str(exc)})


def _event(kind: str, value: dict[str, Any]) -> bytes:
    # JSON has no line breaks of its own.
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()
