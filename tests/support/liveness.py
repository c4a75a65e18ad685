"""How long other callers wait while a request is being judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe_persistence.rpc.health import LIVENESS


class Wait(NamedTuple):
    """What a request took, and the longest that others had to wait meanwhile, in seconds."""

    request: float
    health: float
    write: float


async def wait_of_others(address: str, path: str, data: bytes, *, times: int = 1) -> Wait:
    """Send a request so many times at once, and call on other channels until all are answered."""
    async with connect(address) as hostile, connect(address) as health, connect(address) as other:
        stub: Any = health_pb2_grpc.HealthStub(health)
        check = health_pb2.HealthCheckRequest(service=LIVENESS)
        events = Api(other).events

        def write() -> Awaitable[object]:
            return events.CreateEvent(CreateEventRequest(event=make.event()))

        await asyncio.gather(stub.Check(check), write())
        send: Any = hostile.unary_unary(path)
        begin = time.perf_counter()
        sent = asyncio.gather(*(_answered(send(data, timeout=100)) for _ in range(times)))
        health_wait, write_wait = await asyncio.gather(
            _longest(lambda: stub.Check(check), sent), _longest(write, sent)
        )
        await sent
        return Wait(time.perf_counter() - begin, health_wait, write_wait)


async def _longest(call: Callable[[], Awaitable[object]], until: asyncio.Future[Any]) -> float:
    longest = 0.0
    while not until.done():
        begin = time.perf_counter()
        await call()
        longest = max(longest, time.perf_counter() - begin)
        await asyncio.sleep(0.003)
    return longest


async def _answered(call: Awaitable[object]) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        if exc.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            raise
