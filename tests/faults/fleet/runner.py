"""Runs one fleet: hosts, a server pair (or Redis) and PostgreSQL, which are killed while clients
start workflows and publish events; then waits until all is done, or nothing happens any more."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.chaos.stage import Layout, Stage
from tests.faults.fleet.cast import Feed, HostProcess, Redis
from tests.faults.fleet.judge import STARTED, Verdict, judge

PROVIDERS = {
    "grpc": "this server alone",
    "valkey": "wfe-postgres, wfe-valkey on Redis",
}
"""What hosts can stand on."""

_STEP_MS = 20
"""How long a step takes at most."""

_PATIENCE_SECONDS = 75
"""How long nothing may happen before a run is over: longer than any lease, lock or backoff."""
_BETWEEN_KILLS = (0.2, 1.6)
_WEIGHTS = {"host": 5, "server": 3, "postgres": 2}


@dataclass
class Plan:
    """What is to be done."""

    providers: str
    hosts: int
    workflows: int
    kills: int
    seed: int
    freezes: int = 0
    """How many hosts are frozen for longer than their leases last."""
    lease: float = 30.0
    kill_redis: bool = False


@dataclass
class Result:
    """What came of it."""

    plan: Plan
    kills: Counter[str] = field(default_factory=Counter)
    frozen: int = 0
    seconds: float = 0.0
    started: int = 0
    published: int = 0
    exits: int = 0
    """Processes of hosts that ended by themselves."""
    failures: int = 0
    """Attempts of clients that failed and were repeated."""
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def passed(self) -> bool:
        return not self.verdict.lost and self.verdict.complete > 0

    def as_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "verdict"}
        verdict = vars(self.verdict) | {"notes": self.verdict.notes[:50]}
        return own | {"plan": vars(self.plan), "passed": self.passed, "verdict": verdict}


class Fleet:
    """A fleet at work. As a context manager, all of it runs inside."""

    def __init__(self, plan: Plan, program: Path, run_dir: Path) -> None:
        self.plan = plan
        self._program = program
        self._run_dir = run_dir
        self._random = random.Random(f"{plan.providers} {plan.hosts} {plan.seed}")
        self._restarts: set[asyncio.Task[None]] = set()
        self._down: set[str] = set()
        self.directory = Path()
        self.stage: Stage
        self.redis: Redis | None = None
        self.hosts: list[HostProcess] = []
        self.feed: Feed
        self.result = Result(plan)

    @property
    def ours(self) -> bool:
        return self.plan.providers == "grpc"

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        layout = Layout(
            servers=2 if self.ours else 0, max_connections=100, options=("--default-deadline", "10")
        )
        async with AsyncExitStack() as stack:
            self.stage = await stack.enter_async_context(Stage(layout, self._random, self._run_dir))
            self.directory = self._run_dir / f"fleet-{self.plan.providers}-{self.plan.hosts}"
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir()
            if not self.ours:
                self.redis = stack.enter_context(Redis(self.directory))
            # The first that connects makes the tables.
            self.feed = Feed(self._program, self._options(0), self.directory)
            await self.feed.start()
            stack.push_async_callback(self.feed.stop)
            for number in range(self.plan.hosts):
                host = HostProcess(
                    self._program, self._options(number), self.directory, f"host{number}"
                )
                host.start()
                stack.push_async_callback(host.stop)
                self.hosts.append(host)
                alive = asyncio.create_task(host.keep_alive())
                stack.callback(alive.cancel)
            yield

    def _options(self, number: int) -> list[str]:
        options = ["--providers", self.plan.providers, "--ms", str(_STEP_MS)]
        if self.ours:
            addresses = self.stage.addresses
            target = addresses[number % len(addresses)]
            lease = str(round(self.plan.lease * 1000))
            return [*options, "--target", target, "--lease-ms", lease, "--lifecycle", "1"]
        assert self.redis is not None
        url = f"postgres://postgres@localhost/postgres?host={self.stage.postgres.directory}"
        return [*options, "--db", url, "--redis", self.redis.url]

    async def run(self) -> Result:
        begin = time.monotonic()
        async with self.at_work():
            publisher = asyncio.create_task(self._publish())
            await self._start_and_kill()
            while self._restarts:
                await asyncio.wait(self._restarts)
            await self._settle()
            publisher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publisher
            for host in self.hosts:
                if not await host.stop():
                    self.result.verdict.violation("stuck", f"{host.name} does not stop")
            await self._leases_end()
            self.result.seconds = time.monotonic() - begin
            self._judge()
        return self.result

    async def _start_and_kill(self) -> None:
        """Between two kills, clients start their share of the workflows."""
        plan = self.plan
        kills = ["kill"] * plan.kills + ["freeze"] * plan.freezes
        self._random.shuffle(kills)
        number = 0
        for count, what in enumerate(kills, 1):
            while number < plan.workflows * count / len(kills):
                await self.feed.say(f"start {STARTED[number % len(STARTED)]} {number}")
                number += 1
            if what == "freeze":  # while there is something to do
                await self._harm(what)
            await asyncio.sleep(self._random.uniform(*_BETWEEN_KILLS))
            if what == "kill":
                await self._harm(what)

    async def _harm(self, what: str) -> None:
        victims = {f"host {number}": _WEIGHTS["host"] / self.plan.hosts
                   for number in range(self.plan.hosts)}  # fmt: skip
        if what == "kill":
            for number in range(len(self.stage.servers)):
                victims[f"server {number}"] = _WEIGHTS["server"] / len(self.stage.servers)
            if self.plan.kill_redis:
                victims["redis 0"] = _WEIGHTS["server"]
            victims["postgres 0"] = _WEIGHTS["postgres"]
        while not (
            up := {name: weight for name, weight in victims.items() if name not in self._down}
        ):
            await asyncio.wait(self._restarts, return_when=asyncio.FIRST_COMPLETED)
        [victim] = self._random.choices(list(up), list(up.values()))
        self._down.add(victim)
        restart = asyncio.create_task(self._kill(what, victim, self._random.uniform(0, 0.5)))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)
        await asyncio.sleep(0)

    async def _kill(self, what: str, victim: str, pause: float) -> None:
        kind, number = victim.split()
        if what == "freeze":
            self.result.frozen += 1
            await self.hosts[int(number)].freeze(self.plan.lease * 1.5)
        else:
            self.result.kills[kind] += 1
            if kind == "host":
                host = self.hosts[int(number)]
                host.kill()
                await asyncio.sleep(pause)
                host.start()
            elif kind == "server":
                server = self.stage.servers[int(number)]
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(pause)
                await asyncio.to_thread(server.start)
            elif kind == "redis":
                assert self.redis is not None
                await asyncio.to_thread(self.redis.kill)
                await asyncio.sleep(pause)
                await asyncio.to_thread(self.redis.start)
            else:
                await asyncio.to_thread(self.stage.postgres.end, signal.SIGKILL)
                await asyncio.sleep(pause)
                await asyncio.to_thread(self.stage.postgres.start)
        self._down.discard(victim)

    async def _publish(self) -> None:
        """An event for each workflow that waits for one, once."""
        told: set[str] = set()
        while True:
            for (workflow,) in await self._rows(
                "SELECT workflow_id FROM wfc.event_subscriptions WHERE event_name = 'gate'"
            ):
                if workflow not in told:
                    told.add(workflow)
                    await self.feed.say(f"event {workflow}")
            await asyncio.sleep(0.2)

    async def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Its rows; none, while PostgreSQL is down."""

        def ask() -> list[tuple[Any, ...]]:
            try:
                with self.stage.postgres.connect() as connection:
                    return connection.execute(statement).fetchall()
            except psycopg.Error:
                return []

        return await asyncio.to_thread(ask)

    async def _settle(self) -> None:
        """Until everything that was started is done, or nothing has happened for long."""
        if not self.ours:
            # A connection of `wfe-valkey` that broke is broken for good: who runs it restarts it.
            for host in self.hosts:
                await host.stop()
                host.start()
        state: Any = None
        since = time.monotonic()
        while time.monotonic() - since < _PATIENCE_SECONDS:
            found = await self._rows(
                "SELECT count(*), count(*) FILTER (WHERE status <> 'Complete'),"
                " (SELECT count(*) FROM wfc.events WHERE NOT is_processed),"
                " (SELECT sum(length(data::text)) FROM wfc.workflows) FROM wfc.workflows"
            )
            queued = (
                await self._rows("SELECT count(*) FROM wfc.queue_items") if self.ours else [(0,)]
            )
            if found and queued:
                _, open_, unprocessed, _ = found[0]
                done = len(self.feed.started) == self.plan.workflows
                if done and (open_, unprocessed, queued[0][0]) == (0, 0, 0):
                    return
            now = (found, queued)
            if now != state:
                state, since = now, time.monotonic()
            await asyncio.sleep(0.2)

    async def _leases_end(self) -> None:
        """Wait for what dead hosts held, which is not what is left over."""
        if self.ours:
            end = time.monotonic() + self.plan.lease
            while time.monotonic() < end and await self._rows(
                "SELECT FROM wfc.locks WHERE expiry > now()"
            ):
                await asyncio.sleep(0.1)

    def _judge(self) -> None:
        result = self.result
        result.started, result.published = len(self.feed.started), len(self.feed.published)
        result.failures = self.feed.failures
        result.exits = sum(host.exits for host in self.hosts)
        lives = [life for host in self.hosts for life in host.lives]
        before = result.verdict
        with self.stage.postgres.connect() as connection:
            result.verdict = judge(
                connection, lives, self.feed.started, self.feed.published, ours=self.ours
            )
        result.verdict.lost += before.lost
        result.verdict.notes += before.notes
        if result.started < self.plan.workflows:
            missing = self.plan.workflows - result.started
            result.verdict.violation("stuck", f"{missing} workflows could not be started")
