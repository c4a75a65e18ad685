"""The server under test: ours plus an echo service. Prints its address."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")  # as the real one

import grpc

from wfe_persistence import collector
from wfe_persistence.app import Server
from wfe_persistence.event_loop import run
from wfe_persistence.settings import NamedDatabase, Settings

ECHO = "/bench.Echo/Echo"


async def _echo(request: bytes, _: object) -> bytes:
    return request


async def _main(url: str, max_prepared_mb: int, databases: list[str]) -> None:
    settings = Settings(
        max_namespaces=1_000_000,
        db_url=url,
        listen="127.0.0.1:0",
        allow_truncate=True,
        max_prepared_mb=max_prepared_mb,
        databases=tuple(map(NamedDatabase.from_text, databases)),
    )
    server = Server(settings)
    behavior: Any = _echo
    echo: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(behavior)}
    server.add_service(grpc.method_handlers_generic_handler("bench.Echo", echo))
    async with server:
        collector.resume()
        print(server.address, flush=True)
        watch = asyncio.create_task(server.watch())
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        watch.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--max-prepared-mb", type=int, default=Settings().max_prepared_mb)
    parser.add_argument("--database", action="append", default=[])
    arguments = parser.parse_args()
    run(_main(arguments.url, arguments.max_prepared_mb, arguments.database))
