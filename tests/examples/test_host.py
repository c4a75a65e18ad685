"""The example host: every effect once and everything complete, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from examples.python.definition import now
from examples.python.engine import Engine
from examples.python.order import OrderWorkflow, World
from tests.support.secured import Secured
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    PointerStatus,
    WorkflowStatus,
    connect,
)

ROOT = Path(__file__).parents[2]
STEPS = ["reserve_stock", "charge", "await_payment", "cool_off", "ship", "notify"]
EFFECTS = ["reserved", "charged", "shipped", "notified"]

#: Far more than any of it takes, also on a busy machine.
PATIENCE = 60.0


@dataclass
class Scene:
    """A server, the world outside, and the host processes of one test."""

    server: ServerProcess
    database_url: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def world(self) -> Path:
        return self.folder / "world.sqlite3"

    def ids(self, orders: int) -> list[str]:
        return [f"order-test-{number}" for number in range(1, orders + 1)]

    def host(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m examples.python.host`; its output goes to the scene's log."""
        command = [sys.executable, "-m", "examples.python.host", "--role", role]
        command += ["--target", self.server.address, "--batch", "test", "--world", str(self.world)]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def runs(self) -> list[tuple[str, bool, str]]:
        """What the steps noted: step key, whether it begins or ends, worker."""
        if not self.world.exists():
            return []
        with closing(sqlite3.connect(self.world, timeout=20)) as db:
            try:
                rows = db.execute("SELECT step_key, begins, worker FROM runs ORDER BY seq")
            except sqlite3.OperationalError:  # no such table, yet
                return []
            return [(key, bool(begins), worker) for key, begins, worker in rows]

    def count(self, table: str) -> int:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(f"SELECT count(*) FROM wfc.{table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for: {what}\n{self.log()}"
            await asyncio.sleep(0.005)

    async def ends_well(self, process: subprocess.Popen[bytes]) -> None:
        await self.until(lambda: process.poll() is not None, "the end of a host")
        assert process.returncode == 0, self.log()

    async def tidy(self) -> None:
        """What is left are items to look once more, some under the leases of the dead."""
        with closing(World(self.world)) as world:
            async with connect(self.server.address) as store, asyncio.TaskGroup() as tasks:
                orders = OrderWorkflow(world)
                engine = Engine(store, [orders.definition], orders.listeners, name="tidy")
                stop = asyncio.Event()
                tasks.create_task(engine.run(1, stop))
                await self.until(lambda: not self.count("queue_items"), "the end of all items")
                stop.set()


@pytest.fixture
def scene(database_url: str, tmp_path: Path) -> Iterator[Scene]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ServerProcess(
        tmp_path / "server-log", "--db-url", database_url, "--listen", f"127.0.0.1:{port}"
    )
    with server:
        scene = Scene(server, database_url, tmp_path)
        try:
            yield scene
        finally:
            for process in scene.processes:
                process.kill()
                process.wait()
    assert "Traceback" not in (scene.log() if scene.processes else "")
    assert "bug" not in server.log(), server.log()


def overlaps(scene: Scene, dead: list[int] = []) -> list[str]:  # noqa: B006
    """The steps that were begun while a living worker ran them."""
    found = []
    running: dict[str, str] = {}
    for key, begins, worker in scene.runs():
        if not begins:
            running.pop(key, None)
            continue
        holder = running.get(key)
        if holder is not None and not any(holder.endswith(f"-{pid}") for pid in dead):
            found.append(f"{key}: {holder} and {worker}")
        running[key] = worker
    return found


async def check(scene: Scene, ids: list[str], *, errors: bool = True) -> None:
    """All complete, every effect once, and nothing left behind."""
    with closing(World(scene.world)) as world:
        for order_id in ids:
            assert sorted(world.effects(order_id)) == sorted(EFFECTS)
    async with connect(scene.server.address) as store:
        orders = await store.get_workflow_instances(ids)
        assert [order.id for order in orders] == ids
        for order in orders:
            pointers = order.execution_pointers
            assert order.status is WorkflowStatus.COMPLETE
            assert order.next_execution is None
            assert order.complete_time is not None
            assert [pointer.step_name for pointer in pointers] == STEPS
            assert {pointer.status for pointer in pointers} == {PointerStatus.COMPLETE}
            assert not any(pointer.active for pointer in pointers)
            assert [pointer.retry_count for pointer in pointers] == [2, 0, 0, 0, 0, 0]
            assert [pointer.predecessor_id for pointer in pointers] == [None, *"12345"]
            assert pointers[2].event_published
            assert pointers[2].event_data == {"receipt": f"R-{order.id}"}
            assert cast(Any, order.data)["payment"] == {"receipt": f"R-{order.id}"}
            assert cast(Any, pointers[1].outcome)["cents"] == cast(Any, order.data)["cents"]
            if errors:
                logged = await store.list_errors(order.id)
                assert [error.execution_pointer_id for error in logged] == ["1", "1"]
                assert logged[1].message.startswith("attempt 1: OutOfStockError")
                assert logged[0].message.startswith("attempt 2: OutOfStockError")
        assert await store.get_runnable_instances() == []
        assert await store.get_runnable_events(now() + timedelta(days=1)) == []
    assert scene.count("event_subscriptions") == 0
    assert scene.count("queue_items") == 0


async def test_two_workers_complete_all_orders(scene: Scene) -> None:
    await scene.ends_well(scene.host("all", "--workers", "2", "--orders", "5"))
    await scene.tidy()
    await check(scene, scene.ids(5))
    assert overlaps(scene) == []
    # Nobody died, so nothing was done twice either.
    begun = [key for key, begins, _ in scene.runs() if begins]
    assert len(begun) == 5 * (len(STEPS) + 2 + 1 + 1)  # two retries, one wait, one sleep
    assert scene.log().count("complete  ") == 5


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_host_killed_again_and_again(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(5, 85), 4))
    arguments = ("--orders", "5", "--lease", "1.5")
    for moment in moments:
        host = scene.host("all", *arguments)
        await scene.until(lambda m=moment: len(scene.runs()) >= m, f"{moment} notes")  # type: ignore[misc]
        await asyncio.sleep(chance.uniform(0, 0.03))
        assert host.poll() is None, "it was to be killed in the middle"
        host.kill()
        host.wait()
    dead = [process.pid for process in scene.processes]
    await scene.ends_well(scene.host("all", *arguments))
    await scene.tidy()
    await check(scene, scene.ids(5))
    assert overlaps(scene, dead) == []


async def test_the_server_killed_and_restarted(scene: Scene) -> None:
    host = scene.host("all", "--orders", "5", "--lease", "1.5")
    for moment in (12, 55):
        await scene.until(lambda m=moment: len(scene.runs()) >= m, f"{moment} notes")  # type: ignore[misc]
        assert host.poll() is None, "the server was to be killed in the middle"
        scene.server.kill()
        await asyncio.to_thread(scene.server.start)
    await scene.ends_well(host)
    await scene.tidy()
    await check(scene, scene.ids(5))


async def test_two_competing_processes_never_run_a_step_at_once(scene: Scene) -> None:
    workers = [scene.host("worker", "--work", "0.05") for _ in range(2)]
    await scene.ends_well(scene.host("client", "--orders", "6"))
    for worker in workers:
        worker.terminate()
    for worker in workers:
        await scene.ends_well(worker)
    assert overlaps(scene) == []
    by = {worker for _, _, worker in scene.runs()}
    assert {f"{socket.gethostname()}-{worker.pid}" for worker in workers} == by, "both took part"
    await scene.tidy()
    await check(scene, scene.ids(6))


async def test_a_worker_frozen_for_longer_than_its_lease_changes_nothing(scene: Scene) -> None:
    arguments = ("--lease", "2", "--work", "0.3")
    frozen = scene.host("worker", "--workers", "1", *arguments)
    client = scene.host("client", "--orders", "1")

    def charges() -> bool:
        worker = f"{socket.gethostname()}-{frozen.pid}"
        return scene.runs()[-1:] == [("order-test-1/2", True, worker)]

    await scene.until(charges, "the step to be frozen in")
    frozen.send_signal(signal.SIGSTOP)
    assert charges(), "it was to be frozen in the middle of the step"
    scene.host("worker", *arguments)
    await scene.ends_well(client)
    frozen.send_signal(signal.SIGCONT)
    await scene.until(lambda: "discarded" in scene.log(), "its late result refused")
    frozen.terminate()
    await scene.ends_well(frozen)
    # The one step that two workers ran at once is the one that was frozen in.
    assert [overlap.partition(":")[0] for overlap in overlaps(scene)] == ["order-test-1/2"]
    await scene.tidy()
    await check(scene, scene.ids(1), errors=False)


# What is wrong is said in one line


def refused(*arguments: str) -> str:
    """The only line that the host prints; its exit code is 1."""
    ended = subprocess.run(
        [sys.executable, "-m", "examples.python.host", *arguments],
        cwd=ROOT,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    (line,) = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize("role", ["all", "worker", "client"])
def test_no_server(role: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        line = refused("--role", role, "--target", target, "--world", str(tmp_path / "world"))
    assert target in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["stray"], "stray"),
        (["--unknown", "1"], "--unknown"),
        (["--workers", "0"], "--workers"),
        (["--workers", "abc"], "--workers"),
        (["--orders", "-1"], "--orders"),
        (["--lease", "nan"], "--lease"),
        (["--lease", "x"], "--lease"),
        (["--work", "inf"], "--work"),
        (["--role", "boss"], "--role"),
        (["--target"], "--target"),
        (["--target", "http://127.0.0.1:1/"], "http://127.0.0.1:1/"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str) -> None:
    assert named in refused(*arguments)


def test_a_world_that_cannot_be_opened(scene: Scene, tmp_path: Path) -> None:
    world = str(tmp_path / "nowhere" / "world")
    assert world in refused("--target", scene.server.address, "--world", world)


async def test_the_server_goes_away_for_good(scene: Scene) -> None:
    host = scene.host("all", "--orders", "1", "--patience", "1")
    await scene.until(lambda: "ordered" in scene.log(), "an order")
    scene.server.kill()
    await scene.until(lambda: host.poll() is not None, "the end of the host")
    assert host.returncode == 1
    last = scene.log().splitlines()[-1]
    assert scene.server.address in last


def test_a_host_is_let_in_by_certificate_and_token(tmp_path: Path, database_url: str) -> None:
    secured = Secured(tmp_path, database_url)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "examples.python.host", "--target", secured.server.address,
             "--orders", "1", "--work", "0.001", "--world", tmp_path / "world"],
            cwd=ROOT, env=secured.environment(), capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    with secured.server:
        done = run()
        assert done.returncode == 0, done.stderr
        assert "complete" in done.stdout.splitlines()[-1]
        secured.token_file.write_text("not-a-token")
        refused = run()
        assert refused.returncode == 1
        [line] = refused.stderr.splitlines()
        assert "CREDENTIALS_INVALID" in line
        secured.token_file.unlink()
        missing = run()
        assert missing.returncode == 1
        [line] = missing.stderr.splitlines()
        assert str(secured.token_file) in line
    for secret in ("not-a-token", secured.token):
        assert secret not in done.stdout + refused.stdout + refused.stderr + secured.server.log()
