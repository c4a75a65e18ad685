"""What it costs to know who calls, and what those cost who are refused.

The same read is called on servers without authentication, with a token and with a JWT: the time of
the caller, and the processor time of the server. Then with a token while others send 10,000 bad
credentials a minute, half unknown tokens and half forged JWTs. The ratios are to the first row.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from benchmarks.timing import percentile, timed_with_cpu
from tests.support.api import Api, connect
from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import GetRunnableInstancesRequest
from wfe_persistence.access.tokens import create_token

Figures = list[dict[str, Any]]
Metadata = list[tuple[str, str]]

_CALLERS: Final = 4
_ROUNDS: Final = 3
_BAD_PER_SECOND: Final = 10_000 / 60


async def measure(url: str, seconds: float) -> Figures:
    """Measures calls on a server that asks nobody, and on one that wants to know who calls."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        issuer = Issuer(directory / "jwks.json", "RS256")
        _, token = create_token(directory / "tokens.json", "bench", None)
        policy = directory / "policy.toml"
        policy.write_text(
            '[[grant]]\nprincipals = ["token:bench", "jwt:bench"]\nrole = "host"\n'
            'namespaces = ["default"]\n'
        )
        with (
            ServerProcess(directory / "open", "--db-url", url) as anybody,
            ServerProcess(
                directory / "guarded", "--db-url", url, "--policy-file", str(policy),
                "--token-file", str(directory / "tokens.json"), "--jwt-issuer", ISSUER,
                "--jwt-audience", AUDIENCE, "--jwt-jwks", str(issuer.file),
            ) as guarded,
        ):  # fmt: skip
            by_token, by_jwt = _bearer(token), _bearer(issuer.token("bench"))
            forged = itertools.cycle([_bearer("x" * 40), _bearer(issuer.tampered("bench"))])
            ways: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
                "nobody asks": lambda: _calls(anybody, [], seconds),
                "token": lambda: _calls(guarded, by_token, seconds),
                "JWT": lambda: _calls(guarded, by_jwt, seconds),
                "token, 10,000 bad ones a minute": lambda: _calls(
                    guarded, by_token, seconds, forged
                ),
            }
            # In turns, because what else the machine does changes; the best of each.
            tries: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(_ROUNDS):
                for way, run in ways.items():
                    tries[way].append(await run())
    best = {way: {key: min(t[key] for t in each) for key in each[0]} for way, each in tries.items()}
    first = best["nobody asks"]
    return [
        {"way": way} | figures
        | {f"{key}_ratio": value / first[key] for key, value in figures.items()}
        for way, figures in best.items()
    ]  # fmt: skip


def _bearer(token: str) -> Metadata:
    return [("authorization", f"Bearer {token}")]


async def _calls(
    server: ServerProcess,
    metadata: Metadata,
    seconds: float,
    bad: itertools.cycle[Metadata] | None = None,
) -> dict[str, float]:
    """Calls for so long: how long they took, and how long the server's processor did for each."""
    process = psutil.Process(server.process.pid)
    request = GetRunnableInstancesRequest(page_size=1)
    async with connect(server.address) as channel, _flood(server.address, bad):
        api = Api(channel)

        async def call(_: int) -> object:
            return await api.workflows.GetRunnableInstances(request, metadata=metadata)

        await call(0)
        took, microseconds = await timed_with_cpu(call, _CALLERS, seconds, process)
    return {
        "p50_ms": percentile(took, 50) * 1e3,
        "p99_ms": percentile(took, 99) * 1e3,
        "server_us": microseconds,
    }


@asynccontextmanager
async def _flood(address: str, bad: itertools.cycle[Metadata] | None) -> AsyncIterator[None]:
    """Bad credentials at a steady rate, until the context is left."""
    if bad is None:
        yield
        return
    async with connect(address) as channel:
        call = Api(channel).workflows.GetRunnableInstances
        request = GetRunnableInstancesRequest()
        pending: set[asyncio.Task[None]] = set()

        async def one(metadata: Metadata) -> None:
            with suppress(grpc.aio.AioRpcError):
                await call(request, metadata=metadata)

        async def send() -> None:
            begin, sent = time.perf_counter(), 0
            while True:
                while sent < (time.perf_counter() - begin) * _BAD_PER_SECOND:
                    task = asyncio.create_task(one(next(bad)))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                    sent += 1
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send())
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(*pending)


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = [f"{'':34}{'p50 ms':>14}{'p99 ms':>14}{'server µs/call':>18}"]
    for row in figures:
        cells = [f"{row[key]:.2f} (x{row[f'{key}_ratio']:.2f})" for key in ("p50_ms", "p99_ms")]
        server = f"{row['server_us']:.0f} (x{row['server_us_ratio']:.2f})"
        lines.append(f"{row['way']:34}{cells[0]:>14}{cells[1]:>14}{server:>18}")
    return "\n".join(lines)
