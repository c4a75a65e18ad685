"""Servers of several processes (`--workers`)."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from tests.support.admin import AdminServer
from tests.support.api import Api, connect

# Their command lines have one of these.
_WORKERS = ("wfe_persistence.cli.worker", "tests.faults.faulty_workers")


class Server(AdminServer):
    """A server of several processes, all of which serve inside its context."""

    def __enter__(self) -> Server:
        super().__enter__()
        with self._killed_on_failure():
            self.wait_for("/readyz", lambda answer: answer.status == 200)
        return self

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that serve, in the order of their start."""
        found = [
            child
            for child in psutil.Process(self.process.pid).children()
            if any(module in child.cmdline() for module in _WORKERS)
        ]
        return sorted(found, key=lambda child: child.create_time())

    def metric(self, line: str) -> float:
        """The sum of the samples that begin like this."""
        found = re.findall(rf"^{re.escape(line)}.* (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))


def several(
    tmp_path: Path, url: str, *more: str, workers: int = 2, module: str = "wfe_persistence"
) -> Server:
    """A server of several processes on this database."""
    log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}"
    return Server(log, "--db-url", url, "--workers", str(workers), *more, module=module)


@asynccontextmanager
async def connections(server: Server, count: int, namespace: str = "") -> AsyncIterator[list[Api]]:
    """As many connections, which do not share any."""
    async with AsyncExitStack() as stack:
        apis = []
        for _ in range(count):
            own = [("grpc.use_local_subchannel_pool", 1)]
            channel = connect(server.address, own, namespace=namespace)
            await stack.enter_async_context(channel)
            apis.append(Api(channel))
            await asyncio.wait_for(channel.channel_ready(), 20)
        yield apis


def accepted(server: Server) -> Counter[int]:
    """How many client connections each worker has."""
    path = server.address.removeprefix("unix:")
    count: Counter[int] = Counter()
    for worker in server.workers:
        if server.address.startswith("unix:"):
            count[worker.pid] = (
                sum(
                    str(each.laddr).startswith(path) and each.status != "LISTEN"
                    for each in worker.net_connections("unix")
                )
                - 1
            )  # its own end of the listener
        else:
            port = int(server.address.rpartition(":")[2])
            count[worker.pid] = sum(
                each.laddr.port == port and each.status == "ESTABLISHED"
                for each in worker.net_connections("tcp")
            )
    return count
