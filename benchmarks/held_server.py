"""A bare server of grpc.aio that holds every call until its client hangs up: what gRPC itself takes
for calls that wait. Prints its address."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

HOLD = "/bench.Hold/Hold"


async def _hold(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.read()
    await asyncio.get_running_loop().create_future()
    return b""


async def _main() -> None:
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 12_000)])
    behavior: Any = _hold
    hold: dict[str, Any] = {"Hold": grpc.stream_unary_rpc_method_handler(behavior)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Hold", hold)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main())
