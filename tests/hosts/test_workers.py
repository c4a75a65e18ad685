"""The workers in examples/: a step is two calls, and nothing is lost, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.hosts.pages import ROOT, run
from tests.support import make
from tests.support.admin import AdminServer
from wfe_persistence_client import (
    PersistenceProvider,
    QueueItem,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)

TOOLS = {"typescript": ("node", "npm"), "go": ("go",), "java": ("java", "mvn")}
#: How each is built, into a directory of the test if there is none for it, and started.
BUILD = {
    "typescript": "{ [ -d node_modules ] || npm ci --silent; } && npm run build --silent",
    "go": "go build -o {built} .",
    "java": "mvn --quiet --batch-mode compile",
}
START = {
    "typescript": "exec node dist/src/count.js {arguments}",
    "go": "exec {built} worker {arguments}",
    "java": "exec mvn --quiet --batch-mode exec:java -Dexec.mainClass=wfe.examples.Count"
    " -Dexec.args='{arguments}'",
}
#: What watches the workflows, and prepares them: all else are calls of the worker.
OURS = {"CreateNewWorkflow", "ListWorkflows", "ListQueueItems", "Check"}

pytestmark = pytest.mark.timeout(600)

PATIENCE = 90.0


class Workers:
    """A server, and the worker processes of one language."""

    def __init__(self, language: str, built: Path, folder: Path, database_url: str) -> None:
        self._language = language
        self._example = ROOT / "examples" / language
        self._built = built
        self._log = folder / "workers"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.queue = make.queue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.server = AdminServer(folder / "log", "--db-url", database_url, "--listen", address)

    def start(self, lease_ms: int = 30_000) -> subprocess.Popen[bytes]:
        arguments = f"--target {self.server.address} --queue {self.queue} --lease-ms {lease_ms}"
        line = START[self._language].format(built=self._built, arguments=arguments)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                line, shell=True, cwd=self._example, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def said(self) -> str:
        if not self._log.exists():
            return ""
        return re.sub(r"\x1b\[\d*m", "", self._log.read_text())  # Maven colours it

    async def until(self, condition: Callable[[], Awaitable[object]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not await condition():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"waited in vain for {what}\n{self.said()}\n{self.server.log()}")

    async def says(self, line: str) -> None:
        async def said() -> bool:
            return line in self.said().splitlines()

        await self.until(said, line)

    async def stops(self, process: subprocess.Popen[bytes]) -> None:
        """In order, when it is told to."""
        process.send_signal(signal.SIGTERM)

        async def ended() -> bool:
            return process.poll() is not None

        await self.until(ended, "the end of the worker")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        for process in self._processes:
            self.kill(process)

    async def create(
        self, store: PersistenceProvider, steps: int, work_ms: int = 0
    ) -> WorkflowInstance:
        workflow = WorkflowInstance(
            id=make.new_id("workflow"),
            workflow_definition_id=self.queue,
            version=1,
            data={"left": steps, "work_ms": work_ms},
        )
        item = QueueItem(queue=self.queue, id="")
        await store.create_new_workflow(workflow, enqueue=[item])
        return workflow

    async def complete(self, store: PersistenceProvider, number: int) -> None:
        async def all_are() -> bool:
            workflows = await store.list_workflows(
                WorkflowFilter(statuses=[WorkflowStatus.COMPLETE])
            )
            return len(workflows) == number

        await self.until(all_are, f"the end of {number} workflows")

    def calls(self) -> dict[str, int]:
        """How many calls of each RPC have ended, except our own."""
        calls: Counter[str] = Counter()
        for family in text_string_to_metric_families(self.server.get("/metrics").text):
            for sample in family.samples:
                if sample.name == "grpc_server_handled_total":
                    calls[sample.labels["grpc_method"]] += int(sample.value)
        return {rpc: count for rpc, count in calls.items() if count and rpc not in OURS}


@pytest.fixture(scope="module", params=list(TOOLS))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A language, and where the program is, if that is not in its example."""
    language = request.param
    if missing := [tool for tool in TOOLS[language] if not shutil.which(tool)]:
        pytest.skip(f"the {language} worker needs {' and '.join(missing)}, not installed here")
    program = tmp_path_factory.mktemp(language) / "worker"
    run(BUILD[language].replace("{built}", str(program)), ROOT / "examples" / language)
    return language, program


@pytest.fixture
def workers(built: tuple[str, Path], tmp_path: Path, database_url: str) -> Iterator[Workers]:
    workers = Workers(*built, tmp_path, database_url)
    with workers.server as server:
        try:
            yield workers
        finally:
            workers.close()
    assert "bug" not in server.log(), server.log()


async def test_a_step_is_two_calls(workers: Workers) -> None:
    async with connect(workers.server.address) as store:
        for _ in range(4):
            await workers.create(store, steps=3)
        process = workers.start()
        await workers.complete(store, 4)
        await workers.stops(process)
        assert await store.list_queue_items(workers.queue) == []
    calls = workers.calls()
    assert calls.pop("Dequeue") >= 12  # and those that found nothing
    assert calls == {"CommitWorkflow": 12}
    assert workers.said().count("end ") == 12


async def test_nothing_is_lost(workers: Workers) -> None:
    async with connect(workers.server.address) as store:
        # A worker dies in the middle of a step: another one finishes it.
        first = await workers.create(store, steps=2, work_ms=1000)
        killed = workers.start(lease_ms=1000)
        await workers.says(f"begin {first.id} 2")
        workers.kill(killed)
        living = workers.start(lease_ms=1000)
        await workers.complete(store, 1)
        assert workers.said().splitlines().count(f"begin {first.id} 2") == 2

        # The server is restarted in the middle of it.
        second = await workers.create(store, steps=4, work_ms=300)
        await workers.says(f"end {second.id} 3")
        workers.server.kill()
        await asyncio.to_thread(workers.server.start)
        await workers.complete(store, 2)
        assert (await store.get_workflow_instance(second.id)).data == {"left": 0, "work_ms": 300}

        # A lease is lost in the middle of a step: the step is not stored.
        third = await workers.create(store, steps=1, work_ms=3000)
        await workers.says(f"begin {third.id} 1")
        assert await store.delete_items(workers.queue, [third.id]) == 1
        await workers.says(f"lost {third.id}")
        await workers.stops(living)
        assert (await store.get_workflow_instance(third.id)).data == {"left": 1, "work_ms": 3000}
        assert await store.list_queue_items(workers.queue) == []
