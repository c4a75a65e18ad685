"""Two servers that are restarted in turn while clients of several kinds call them.

Every attempt of every call is counted by its status, so that what a restart costs is seen.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import psycopg

from tests.faults.load import tagged
from tests.support import make
from tests.support.api import Api
from tests.support.expect import read_failure
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
    PersistWorkflowRequest,
)
from wfe_persistence_client import (
    Event,
    ExecutionError,
    PersistenceError,
    PersistenceProvider,
    connect,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

_TIMEOUT = 20.0
_RETRY_PAUSE = 0.01

_OPTIONS = [
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]


@dataclass
class Calls:
    """Clients that call for as long as `stop` was not called."""

    targets: list[str]
    """Where the clients connect to, in turn: one server, or several separated by commas."""
    clients: int = 8
    attempts: Counter[str] = field(default_factory=Counter)
    """By status and reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that failed although UNAVAILABLE, and nothing else, was tried again."""
    created: set[str] = field(default_factory=set)
    """The events and workflows that were acknowledged."""
    errors_stored: int = 0
    _stopped: bool = False

    async def run(self) -> None:
        """Call, with generated stubs and with the Python provider, until `stop()`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                target = self.targets[number % len(self.targets)]
                group.create_task(self._stubs(target))
            for target in self.targets:
                group.create_task(self._provider(target))

    def stop(self) -> None:
        """Let every client finish its call and end."""
        self._stopped = True

    async def _stubs(self, target: str) -> None:
        """A client that heeds no RetryInfo."""
        async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
            api = Api(channel)
            while not self._stopped:
                event = make.event()
                if await self._call(api.events.CreateEvent, CreateEventRequest(event=event)):
                    self.created.add(event.id)
                id_ = make.new_id("workflow")
                create = CreateNewWorkflowRequest(instance=tagged(id_, 0))
                if await self._call(api.workflows.CreateNewWorkflow, create):
                    self.created.add(id_)
                    await self._call(
                        api.workflows.PersistWorkflow,
                        PersistWorkflowRequest(instance=tagged(id_, 1)),
                    )
                    await self._call(
                        api.workflows.GetWorkflowInstance, GetWorkflowInstanceRequest(id=id_)
                    )

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TIMEOUT
        while True:
            try:
                await method(request, timeout=deadline - loop.time())
            except grpc.aio.AioRpcError as exc:
                failure = read_failure(exc)
                status = f"{exc.code().name} {failure.reason or '(no ErrorInfo)'}"
                self.attempts[status] += 1
                if exc.code() is not grpc.StatusCode.UNAVAILABLE or loop.time() > deadline - 1:
                    self.failed[f"{status}: {exc.details()}"] += 1
                    return False
                await asyncio.sleep(_RETRY_PAUSE)
            else:
                self.attempts["OK"] += 1
                return True

    async def _provider(self, target: str) -> None:
        """The Python provider, also with calls that it repeats only if nothing was written."""
        async with connect(target, timeout=_TIMEOUT) as provider:
            while not self._stopped:
                await self._through(provider)

    async def _through(self, provider: PersistenceProvider) -> None:
        try:
            event = Event(event_name="n", event_key="k", event_data=1)
            self.created.add(await provider.create_event(event))
            await provider.persist_errors(
                [ExecutionError(workflow_id="w", execution_pointer_id="p", message="rolling")]
            )
            self.errors_stored += 1
        except PersistenceError as error:
            self.failed[f"provider: {type(error).__name__} {error.reason}: {error}"] += 1


class Pair:
    """Two servers on one database, each with a port of its own that it keeps."""

    def __init__(self, directory: Path, url: str, *arguments: str) -> None:
        self.servers = [
            ServerProcess(
                directory / f"log{i}", "--db-url", url, "--listen", _free_address(), *arguments
            )
            for i in range(2)
        ]

    async def __aenter__(self) -> Pair:
        for server in self.servers:
            await asyncio.to_thread(server.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            await asyncio.to_thread(server.stop)

    @property
    def targets(self) -> list[str]:
        """Each server alone, and both."""
        first, second = (server.address for server in self.servers)
        return [f"ipv4:{first}", f"ipv4:{second}", f"ipv4:{first},{second}"]

    async def restart(self, number: int) -> int:
        """Stop one with SIGTERM and start it again; the exit status."""
        server = self.servers[number % 2]
        status = await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_until_serving)
        return status


async def roll(pair: Pair, calls: Calls, restarts: int, *, pause: float) -> list[int]:
    """Restart one after the other under load; their exit statuses."""
    running = asyncio.ensure_future(calls.run())
    statuses = []
    for number in range(restarts):
        await asyncio.sleep(pause)
        statuses.append(await pair.restart(number))
    await asyncio.sleep(pause)
    calls.stop()
    await running
    return statuses


def stored(url: str) -> tuple[set[str], int]:
    """The ids of all events and workflows in the database, and how many errors there are."""
    with psycopg.connect(url) as connection:
        ids = connection.execute("SELECT id FROM wfc.events UNION SELECT id FROM wfc.workflows")
        found = {id_ for (id_,) in ids}
        row = connection.execute("SELECT count(*) FROM wfc.execution_errors").fetchone()
    assert row is not None
    return found, row[0]


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
