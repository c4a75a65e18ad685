"""The faults by name. Each is injected into a stage under load, at times that the seed decides, and
lifted when its function returns; the service must resume by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import psycopg

from tests.faults.chaos.stage import Layout, Stage, backends
from tests.faults.chaos.tags import SHARED_WORKFLOWS

Inject = Callable[[Stage, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """What is broken, where, and how."""

    name: str
    what: str
    """One line for people."""
    layout: Layout
    inject: Inject


FAULTS: dict[str, Fault] = {}


def _fault(name: str, what: str, layout: Layout | None = None) -> Callable[[Inject], Inject]:
    def declare(inject: Inject) -> Inject:
        FAULTS[name] = Fault(name, what, layout or Layout(), inject)
        return inject

    return declare


NETWORK = Layout(through="network")
TWO = Layout(servers=2)


# Servers.


async def _restart_server(stage: Stage, number: int) -> None:
    server = stage.servers[number]
    await asyncio.to_thread(server.start)


@_fault("server-kill", "SIGKILL of the only server, which is started again")
async def server_kill(stage: Stage, random_: random.Random) -> None:
    await asyncio.to_thread(stage.servers[0].kill)
    await asyncio.sleep(random_.uniform(0, 0.5))
    await _restart_server(stage, 0)


@_fault("server-stop", "SIGTERM of the only server, which is started again")
async def server_stop(stage: Stage, random_: random.Random) -> None:
    code = await asyncio.to_thread(stage.servers[0].stop)
    if code != 0:
        raise AssertionError(f"the server ended with {code}:\n{stage.servers[0].log()[-2000:]}")
    await asyncio.sleep(random_.uniform(0, 0.5))
    await _restart_server(stage, 0)


@_fault("one-server-kill", "SIGKILL of one of two servers", TWO)
async def one_server_kill(stage: Stage, random_: random.Random) -> None:
    number = random_.randrange(len(stage.servers))
    await asyncio.to_thread(stage.servers[number].kill)
    await asyncio.sleep(random_.uniform(0.2, 1))
    await _restart_server(stage, number)


@_fault("one-server-stop", "SIGTERM of one of two servers", TWO)
async def one_server_stop(stage: Stage, random_: random.Random) -> None:
    number = random_.randrange(len(stage.servers))
    code = await asyncio.to_thread(stage.servers[number].stop)
    if code != 0:
        log = stage.servers[number].log()
        raise AssertionError(f"the server ended with {code}:\n{log[-2000:]}")
    await asyncio.sleep(random_.uniform(0, 0.5))
    await _restart_server(stage, number)


@_fault("clock-ahead", "the clock of one of two servers an hour ahead", replace(TWO, clock="+1h"))
async def clock_ahead(stage: Stage, random_: random.Random) -> None:
    await asyncio.sleep(random_.uniform(2, 3))


@_fault("clock-behind", "the clock of one of two servers an hour behind", replace(TWO, clock="-1h"))
async def clock_behind(stage: Stage, random_: random.Random) -> None:
    await asyncio.sleep(random_.uniform(2, 3))


@_fault("twice", "every write is sent twice at the same time", Layout(twice=True))
async def twice(stage: Stage, random_: random.Random) -> None:
    await asyncio.sleep(random_.uniform(2, 3))


@_fault(
    "twice-server-kill", "every write twice at the same time, and SIGKILL of one of two servers",
    replace(TWO, twice=True),
)  # fmt: skip
async def twice_server_kill(stage: Stage, random_: random.Random) -> None:
    await one_server_kill(stage, random_)


@_fault("client-kill", "SIGKILL of a client: what it held becomes free by itself")
async def client_kill(stage: Stage, random_: random.Random) -> None:
    assert stage.kill_client is not None
    stage.kill_client(random_)
    await asyncio.sleep(random_.uniform(1, 2))


# PostgreSQL.


async def _restart_postgres(stage: Stage) -> None:
    await asyncio.to_thread(stage.postgres.start)


@_fault("postgres-kill", "SIGKILL of the postmaster, which is started again")
async def postgres_kill(stage: Stage, random_: random.Random) -> None:
    await asyncio.to_thread(stage.postgres.end, signal.SIGKILL)
    await asyncio.sleep(random_.uniform(0, 2))
    await _restart_postgres(stage)


@_fault("postgres-stop", "SIGTERM of PostgreSQL (smart shutdown), then a fast one")
async def postgres_stop(stage: Stage, random_: random.Random) -> None:
    stage.postgres.send(signal.SIGTERM)
    await asyncio.sleep(random_.uniform(0.5, 2))
    await asyncio.to_thread(stage.postgres.end, signal.SIGINT)
    await _restart_postgres(stage)


@_fault("postgres-restarts", "20 quick restarts of PostgreSQL, fast and immediate")
async def postgres_restarts(stage: Stage, random_: random.Random) -> None:
    for _ in range(20):
        number = random_.choice((signal.SIGINT, signal.SIGQUIT))
        await asyncio.to_thread(stage.postgres.end, number)
        await asyncio.sleep(random_.choice((0, 0, random_.uniform(0, 0.5))))
        await _restart_postgres(stage)
        await asyncio.sleep(random_.uniform(0, 0.5))


@_fault("backend-kill", "SIGKILL of a backend, upon which PostgreSQL starts all of them anew")
async def backend_kill(stage: Stage, random_: random.Random) -> None:
    def kill() -> None:
        with contextlib.suppress(psycopg.Error), stage.postgres.connect() as outsider:
            os.kill(random_.choice(list(backends(outsider))), signal.SIGKILL)

    await asyncio.to_thread(kill)
    await asyncio.to_thread(_wait_until_gone, stage)
    await _restart_postgres(stage)


def _wait_until_gone(stage: Stage) -> None:
    """Until PostgreSQL has noticed, or a second has passed."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            stage.postgres.connect().close()
        except psycopg.Error:
            return


@_fault("backends-terminate", "pg_terminate_backend of a random backend, five times a second")
async def backends_terminate(stage: Stage, random_: random.Random) -> None:
    def terminate() -> None:
        with stage.postgres.connect() as outsider:
            for _ in range(15):
                if found := list(backends(outsider)):
                    outsider.execute("SELECT pg_terminate_backend(%s)", [random_.choice(found)])
                time.sleep(random_.uniform(0.1, 0.3))

    await asyncio.to_thread(terminate)


@_fault("connections-full", "somebody else takes all connections of PostgreSQL",
        Layout(max_connections=20))  # fmt: skip
async def connections_full(stage: Stage, random_: random.Random) -> None:
    def take() -> None:
        taken: list[psycopg.Connection[object]] = []
        deadline = time.monotonic() + random_.uniform(2, 3)
        try:
            while time.monotonic() < deadline:
                try:
                    taken.append(stage.postgres.connect())
                except psycopg.OperationalError:
                    time.sleep(0.02)
                    if own := [c.info.backend_pid for c in taken]:
                        with contextlib.suppress(psycopg.Error):
                            taken[0].execute(
                                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                                " WHERE backend_type = 'client backend' AND pid <> ALL (%s)",
                                [own],
                            )
        finally:
            for connection in taken:
                connection.close()

    await asyncio.to_thread(take)


@_fault("pool-full", "two connections, both in use by calls that wait for a row",
        Layout(options=("--pool-size", "2", "--pool-timeout", "0.3")))  # fmt: skip
async def pool_full(stage: Stage, random_: random.Random) -> None:
    await _hold_locks(stage, ROWS, random_.uniform(2, 3))


@_fault("data-disk-full", "the disk of the tables is full", Layout(disk="data"))
async def data_disk_full(stage: Stage, random_: random.Random) -> None:
    assert stage.disk is not None
    await asyncio.to_thread(stage.disk.fill)
    await asyncio.sleep(random_.uniform(2, 3))
    stage.disk.free()
    await _restart_postgres(stage)


@_fault("wal-disk-full", "the disk of the write-ahead log is full: PostgreSQL is down",
        Layout(disk="wal"))  # fmt: skip
async def wal_disk_full(stage: Stage, random_: random.Random) -> None:
    assert stage.disk is not None
    disk = stage.disk

    def until_down() -> None:
        deadline = time.monotonic() + 10
        while stage.postgres.running and time.monotonic() < deadline:
            disk.fill()
            # Use up what is left of the segments that exist.
            with contextlib.suppress(psycopg.Error), stage.postgres.connect() as outsider:
                outsider.execute("SELECT pg_switch_wal()")

    await asyncio.to_thread(until_down)
    await asyncio.sleep(random_.uniform(0.5, 2))
    disk.free()
    await _restart_postgres(stage)


# Outsiders' locks.

_SHARED = ", ".join(f"'{id_}'" for id_ in SHARED_WORKFLOWS)
ROWS = f"SELECT FROM {{schema}}.workflows WHERE id IN ({_SHARED}) FOR UPDATE"


async def _hold_locks(stage: Stage, sql: str, seconds: float) -> None:
    def hold() -> None:
        with psycopg.connect(stage.postgres.url) as outsider:
            outsider.execute("SET lock_timeout = '5s'")
            outsider.execute(sql.format(schema=stage.schema).encode())
            time.sleep(seconds)
            outsider.rollback()

    await asyncio.to_thread(hold)


@_fault("table-lock", "somebody else holds an ACCESS EXCLUSIVE lock on one table")
async def table_lock(stage: Stage, random_: random.Random) -> None:
    table = random_.choice(("events", "scheduled_commands", "event_subscriptions", "workflows"))
    await _hold_locks(
        stage, f"LOCK TABLE {{schema}}.{table} IN ACCESS EXCLUSIVE MODE", random_.uniform(2, 4)
    )


@_fault("row-locks", "somebody else holds the rows that all clients write to")
async def row_locks(stage: Stage, random_: random.Random) -> None:
    await _hold_locks(stage, ROWS, random_.uniform(5.5, 7))


@_fault("long-transaction", "somebody else's transaction stays open, with an old snapshot")
async def long_transaction(stage: Stage, random_: random.Random) -> None:
    await _hold_locks(
        stage,
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"
        "INSERT INTO {schema}.execution_errors"
        " (error_time, workflow_id, execution_pointer_id, message) VALUES (now(), 'x', 'x', 'x')",
        random_.uniform(2, 4),
    )


# The network.


@_fault("half-open", "the network forwards nothing while connections stay up, then breaks", NETWORK)
async def half_open(stage: Stage, random_: random.Random) -> None:
    assert stage.network is not None
    stage.network.stall()
    await asyncio.sleep(random_.uniform(2, 6))
    stage.network.reset()
    stage.network.flow()


@_fault("stall", "the network forwards nothing for a while, then everything", NETWORK)
async def stall(stage: Stage, random_: random.Random) -> None:
    assert stage.network is not None
    stage.network.stall()
    await asyncio.sleep(random_.uniform(1, 4))
    stage.network.flow()


@_fault("reset", "all connections to PostgreSQL are reset, five times", NETWORK)
async def reset(stage: Stage, random_: random.Random) -> None:
    assert stage.network is not None
    for _ in range(5):
        stage.network.reset()
        await asyncio.sleep(random_.uniform(0.1, 0.6))


@_fault("answers-lost", "answers of PostgreSQL are lost after it has committed", NETWORK)
async def answers_lost(stage: Stage, random_: random.Random) -> None:
    assert stage.network is not None
    stage.network.lose_answers = 0.03
    await asyncio.sleep(random_.uniform(2, 3))
    stage.network.lose_answers = 0.0


@_fault("pgbouncer", "PgBouncer in transaction mode with two connections",
        Layout(servers=2, through="pgbouncer"))  # fmt: skip
async def pgbouncer(stage: Stage, random_: random.Random) -> None:
    await asyncio.sleep(random_.uniform(2, 3))


# All together.

# Of a group only one at a time: two would get in each other's way.
_TOGETHER = [
    [one_server_kill, one_server_stop],
    [postgres_kill, postgres_stop, backend_kill, backends_terminate],
    [table_lock, row_locks, long_transaction],
    [half_open, stall, reset, answers_lost],
]

ALL_TOGETHER = "all-together"


@_fault(ALL_TOGETHER, "two at a time, on two servers, one of which is an hour ahead",
        Layout(servers=2, through="network", clock="+1h"))  # fmt: skip
async def all_together(stage: Stage, random_: random.Random) -> None:
    for _ in range(3):
        first, second = (random_.choice(group) for group in random_.sample(_TOGETHER, 2))
        results = await asyncio.gather(
            first(stage, random_), second(stage, random_), return_exceptions=True
        )
        for result in results:
            # An outsider may be cut off by the other fault.
            if isinstance(result, BaseException) and not isinstance(result, psycopg.Error):
                raise result
        await _restart_postgres(stage)
        await asyncio.sleep(random_.uniform(0, 0.5))
