"""The server under test as a process of its own."""

from __future__ import annotations

import asyncio
import sys
from typing import Self

import psutil


class Served:
    """`bench_server.py` on a database; it ends with this process at the latest."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self._process = process
        self.address = address
        self.process = psutil.Process(process.pid)

    @classmethod
    async def start(cls, url: str, *options: str) -> Self:
        """Start it, and wait until it listens."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.bench_server", url, *options,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        return cls(process, (await process.stdout.readline()).decode().strip())

    async def stop(self) -> None:
        """End it, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
