"""A call that waits keeps nothing of its request: ten thousand may."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1.command_pb2 import ClaimCommandsRequest
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest
from wfe.persistence.v1.queue_pb2 import DequeueRequest
from wfe.persistence.v1.workflow_pb2 import WaitForWorkflowRequest, WorkflowInstance
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.command_service import ScheduledCommandService
from wfe_persistence.rpc.lock_service import LockService
from wfe_persistence.rpc.named_field import NamingAField
from wfe_persistence.rpc.queue_service import QueueService
from wfe_persistence.rpc.workflow_service import WorkflowService
from wfe_persistence.store import command, dequeue, lock, workflow
from wfe_persistence.store.waiting import Waiter, Waiters

_WAIT = Duration(seconds=60)
CALLS: dict[str, tuple[Callable[..., Awaitable[Any]], Any]] = {
    "Dequeue": (QueueService().Dequeue, DequeueRequest(queues=["q"], wait=_WAIT)),
    "AcquireLock": (LockService().AcquireLock, AcquireLockRequest(resource="r", wait=_WAIT)),
    "ClaimCommands": (ScheduledCommandService().ClaimCommands, ClaimCommandsRequest(wait=_WAIT)),
    "WaitForWorkflow": (
        WorkflowService().WaitForWorkflow,
        WaitForWorkflowRequest(id="w", wait=_WAIT),
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_waits_lets_go_of_its_request(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def nothing(*_: object) -> list[Any]:
        return []

    async def a_workflow(*_: object) -> WorkflowInstance:
        return WorkflowInstance(id="w")

    async def not_acquired(*_: object) -> Any:
        return SimpleNamespace(acquired=False)

    paused = asyncio.Event()

    async def pause(*_: object) -> bool:
        paused.set()
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(dequeue._Ask, "claim", nothing)
    monkeypatch.setattr(command, "claim_commands", nothing)
    monkeypatch.setattr(lock, "_attempt", not_acquired)
    monkeypatch.setattr(workflow, "get_workflow_instance", a_workflow)
    monkeypatch.setattr(Waiter, "pause", pause)
    function, given = CALLS[name]
    request = type(given).FromString(given.SerializeToString())
    held = sys.getrefcount(request)
    call = _call(request)
    assert sys.getrefcount(request) > held
    task = asyncio.ensure_future(function(request, call))
    await paused.wait()
    assert sys.getrefcount(request) == held
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _call(request: Any) -> Call:
    place: Any = SimpleNamespace(rest=lambda: True, wake_up=lambda: None, deadline=float("inf"))
    env: Any = SimpleNamespace(waiters=Waiters(), max_message_bytes=1_000_000)
    nobody: Any = None
    store: Any = SimpleNamespace(namespace="default")
    return Call(store, Check(0, 1_000_000), env, nobody, place, NamingAField(request), nobody)


async def test_without_its_request_an_error_names_the_same_field() -> None:
    error = PersistenceError(ErrorReason.ERROR_REASON_INVALID_FIELD, "refused")
    kept, let_go = (NamingAField(DequeueRequest(worker_id="w", wait=_WAIT)) for _ in range(2))
    let_go.let_go()
    assert [
        [each.field for each in naming.named(error).violations] for naming in (kept, let_go)
    ] == [["worker_id"], ["worker_id"]]
