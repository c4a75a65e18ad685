"""Errors as clients see them: status, reason, bad fields, retry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass
class Failure:
    """How a call failed."""

    code: grpc.StatusCode | None = None
    message: str = ""
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)
    """Field path → reason."""
    retry_after: float | None = None


def read_failure(exc: grpc.aio.AioRpcError) -> Failure:
    """The failure that an error of a stub tells of."""
    failure = Failure(exc.code(), exc.details() or "")
    trailing: Any = exc.trailing_metadata() or ()
    for key, value in trailing:
        if key != "grpc-status-details-bin":
            continue
        for packed in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                assert info.domain == "wfe.persistence"
                failure.reason = info.reason
                failure.metadata = dict(info.metadata)
            elif packed.Unpack(bad):
                failure.violations = {v.field: v.reason for v in bad.field_violations}
            elif packed.Unpack(retry):
                failure.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return failure


@contextmanager
def fails(code: str, reason: str) -> Iterator[Failure]:
    """The calls inside must fail with this status and reason; what else they tell is filled in."""
    failure = Failure()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield failure
    found = read_failure(caught.value)
    failure.__dict__.update(found.__dict__)
    assert failure.code is not None
    assert (failure.code.name, failure.reason) == (code, reason), failure


@contextmanager
def invalid(*paths: str, reason: str | None = None) -> Iterator[Failure]:
    """The call inside must be refused for exactly these fields (and this reason, if given)."""
    with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
        yield failure
    assert set(failure.violations) == set(paths), failure
    if reason is not None:
        assert set(failure.violations.values()) == {reason}, failure


async def failure_of(call: Awaitable[Any]) -> Failure | None:
    """How a call failed; None: it did not."""
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return read_failure(exc)
    return None


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    """What is checked must become true within so many seconds."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.02)
