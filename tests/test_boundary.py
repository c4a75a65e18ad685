"""What the boundary makes of a call that gRPC has ended already, and of the same refusal over and
over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import recurring
from wfe_persistence.errors import PersistenceError
from wfe_persistence.offload import Workers
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.rpc.boundary import Boundary
from wfe_persistence.rpc.call_log import CallLog
from wfe_persistence.rpc.guard import Guard
from wfe_persistence.rpc.intake import Intake
from wfe_persistence.rpc.limits import Limits
from wfe_persistence.rpc.services import SERVICES

INTAKE: dict[str, int] = {
    "max_calls": 10,
    "max_calls_per_connection": 10,
    "max_message_bytes": 1000,
    "largest": 2000,
    "memory": 100_000,
}


class GoneContext:
    """The context of a call whose client has hung up, as gRPC noticed only just now."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        pass

    async def read(self) -> bytes:
        return self._request

    async def write(self, _: bytes) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")

    async def abort(self, *_: object, **__: object) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


class SilentContext(GoneContext):
    """The context of a stream whose client sends nothing more, and waits."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        raise AbortedError(await self.ended)

    async def abort(self, *said: object, **_: object) -> None:
        self.ended.set_result(said[0])
        raise grpc.aio.AbortError


class AbortedError(Exception):
    """How a read ends when its call was ended."""


class NoEnvironment:
    """An environment in which every handler fails."""

    default_deadline = 30.0
    max_deadline = 300.0
    max_message_bytes = 1000

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.workers = Workers()

    @property
    def namespaces(self) -> Any:
        raise self.error


@pytest.mark.parametrize("name", ["GetEvent", "GetWorkflowInstances"])
@pytest.mark.parametrize(
    "error",
    [
        grpc.aio.InternalError("Failed execute_batch"),
        PersistenceError(ErrorReason.ERROR_REASON_EVENT_NOT_FOUND, "no such event"),
    ],
    ids=["in a write", "in the answer of an error"],
)
async def test_call_whose_client_has_gone_ends_without_a_word(
    caplog: pytest.LogCaptureFixture, name: str, error: Exception
) -> None:
    env: Any = NoEnvironment(error)
    boundary = Boundary(env, Intake(**INTAKE), Guard(None), Limits(None), CallLog(0))
    [(service, method)] = [(s, m) for s in SERVICES for m in s.methods if m.name == name]
    handler: Any = boundary._handler(method, getattr(service.servicer(), name))
    function = handler.stream_unary or handler.stream_stream
    # What gRPC ends quietly.
    with pytest.raises(asyncio.CancelledError):
        await function(None, GoneContext(b""))
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize(
    ("patience", "remaining", "code"),
    [
        (0.05, float("inf"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (60.0, 0.05, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=["longer than we wait", "to its deadline"],
)
async def test_a_stream_on_which_nothing_more_is_sent_ends_with_the_reason(
    patience: float, remaining: float, code: grpc.StatusCode
) -> None:
    """Its client may hear of it before it notices that its own deadline has passed."""
    intake, context = Intake(**INTAKE), SilentContext()
    silent: Any = context
    ends = asyncio.get_running_loop().time() + remaining
    with (
        intake.admit(silent, ends, lasts=True) as place,
        pytest.raises(AbortedError),
    ):
        await intake.receive_next(place, patience, ends)
    assert context.ended.result() is code


async def test_warnings_of_one_reason_are_one_line_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurring, "_INTERVAL_SECONDS", 0.2)
    warnings = RecurringWarnings(logging.getLogger(make.new_id()))
    for number in range(500):
        warnings.warn("busy", f"busy {number}")
    warnings.warn("full", "full")
    assert [record.getMessage() for record in caplog.records] == ["busy 0", "full"]
    await asyncio.sleep(0.3)
    assert [record.getMessage() for record in caplog.records[2:]] == [
        "busy 499 (499 times in a minute)"
    ]
    await asyncio.sleep(0.5)
    assert len(caplog.records) == 3
    warnings.warn("busy", "busy again")
    assert caplog.records[3].getMessage() == "busy again"


async def test_warnings_of_many_callers_share_a_line_once_they_are_too_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warnings = RecurringWarnings(logging.getLogger(make.new_id()))
    for _ in range(2):
        for number in range(1000):
            warnings.warn_each("denied", f"caller {number}", f"denied: caller {number}")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"denied: caller {number}" for number in range(recurring._MAX_LINES + 1)]
