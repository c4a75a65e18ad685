"""Two PostgreSQLs, a namespace that moves between them, and who uses it meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import psycopg

from tests.faults.moves.load import Load, Router
from tests.support import binaries, ports
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe_persistence.database import databases_from
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.schema import Schema

NAMESPACE: Final = "moved"

PLACES: Final = (
    "begun", "publication taken", "target empty", "target created", "published", "subscribed",
    "copied", "close", "held", "switching", "fenced", "activated", "switched", "cleaned",
)  # fmt: skip
"""Where whoever drives a move may end, in their order."""

PLACES_OF_COPY: Final = tuple(
    place for place in PLACES if place not in ("published", "subscribed", "close")
)

VICTIMS: Final = ("mover", "source", "target", "server")
"""Whoever drives the move, either PostgreSQL, and one of the servers, if there are any."""

_SECONDS: Final = 120.0
"""After this time an operator loses patience, and tries again."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A move, at last."""

    attempts: int
    pause: float | None
    """For how long writes were held (seconds); None: whoever held them did not live to tell."""


class Stage:
    """A home and another database, `b`."""

    def __init__(
        self,
        servers: dict[str, PostgresServer],
        routers: list[Router],
        real: Sequence[ServerProcess] = (),
    ) -> None:
        self.servers = servers
        self.routers = routers
        self.real = real
        """Servers in processes of their own."""
        self.at = "home"
        """Where the namespace is."""
        self._spare: asyncio.subprocess.Process | None = None
        self.said: list[str] = []
        """How the attempts at the latest move have ended."""

    @property
    def other(self) -> str:
        """Where the namespace is not."""
        return "b" if self.at == "home" else "home"

    async def driver(self, to: str, way: str, place: str) -> asyncio.subprocess.Process:
        """A process that drives a move to its end, or to a place."""
        driver = self._spare or await self._started()
        self._spare = await self._started()
        assert driver.stdin is not None
        driver.stdin.write(f"{to}\t{way}\t{place}\n".encode())
        return driver

    async def _started(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.moves.driver",
            self.servers["home"].url, self.servers["b"].url, NAMESPACE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def close(self) -> None:
        """End the process that is ready for the next move."""
        if self._spare is not None:
            self._spare.kill()
            await self._spare.wait()

    async def move(self, way: str, place: str = "", victim: str = "") -> Moved:
        """Move the namespace to the other database; at a place, somebody is killed. It is tried
        until it is done, as an operator would."""
        to = self.other
        attempts = 0
        self.said = []
        while True:
            attempts += 1
            said = await self._attempt(to, way, place if attempts == 1 else "", victim)
            self.said.append(said)
            await self.check_one_writable()
            if said.startswith("done"):
                break
            assert attempts < 20, self.said
            await asyncio.sleep(0.2)
        self.at = to
        pause = float(said.removeprefix("done "))
        return Moved(attempts, pause or None)

    async def begin_and_abort(self, way: str, place: str) -> bool:
        """Begin a move, kill who drives it at a place, and abort it; False: it was too late."""
        await self._attempt(self.other, way, place, "mover")
        said = ""
        for _ in range(10):
            said = await self._attempt("abort", way, "", "")
            await self.check_one_writable()
            if said.startswith("done") or "in use already" in said:
                break
        return said == "done True"

    async def _attempt(self, to: str, way: str, place: str, victim: str) -> str:
        driver = await self.driver(to, way, place)
        assert driver.stdout is not None
        assert driver.stdin is not None
        try:
            async with asyncio.timeout(_SECONDS):
                said = (await driver.stdout.readline()).decode().strip()
                if not said.startswith("at "):
                    return said
                await self.check_one_writable()
                if victim == "mover":
                    driver.kill()
                    return "killed"
                await asyncio.to_thread(self._kill, victim)
                driver.stdin.write(b"\n")
                return (await driver.stdout.readline()).decode().strip()
        except TimeoutError:
            return f"it takes too long; {await asyncio.to_thread(self._going_on)}"
        finally:
            with suppress(ProcessLookupError):
                driver.kill()
            await driver.wait()

    async def move_by_server(self, way: str, victim: str, after: float) -> Moved:
        """Have a server move the namespace, and kill somebody after so many seconds (`mover`: this
        server), wherever the move is then. It is tried, at one server after the other, until it is
        done."""
        to, attempts = self.other, 0
        self.said = []
        killing = asyncio.create_task(self._kill_later(victim, after))
        try:
            while True:
                server = self.real[attempts % len(self.real)]
                attempts += 1
                said = await _ask(server.address, to, way)
                self.said.append(said)
                await self.check_one_writable()
                if said.startswith("done"):
                    break
                assert attempts < 40, self.said
                await asyncio.sleep(0.5)
        finally:
            await killing
        self.at = to
        return Moved(attempts, float(said.removeprefix("done ")) or None)

    async def _kill_later(self, victim: str, after: float) -> None:
        source, target = self.at, self.other
        await asyncio.sleep(after)
        await asyncio.to_thread(self._kill, victim, source, target)

    def _kill(self, victim: str, source: str = "", target: str = "") -> None:
        """SIGKILL, or for a PostgreSQL a crash, and start it again."""
        if victim in ("server", "mover"):
            if self.real:
                server = self.real[0 if victim == "mover" else -1]
                server.kill()
                server.start()
        else:
            name = (source or self.at) if victim == "source" else (target or self.other)
            self.servers[name].crash()

    def _going_on(self) -> list[object]:
        """What the databases do, for whoever wants to know why nothing goes on."""
        found: list[object] = list(self.said)
        for name, server in self.servers.items():
            with psycopg.connect(server.url, connect_timeout=10) as connection:
                found += (
                    (name, *row)
                    for query in _GOING_ON
                    for row in connection.execute(query.encode()).fetchall()
                )
        return found

    async def check_one_writable(self) -> None:
        """At most one database has a schema of the namespace that can be written."""
        first, second = (server.url for server in self.servers.values())
        # The first one twice: a switch may come between two looks.
        for url in (first, second, first):
            if not await asyncio.to_thread(_is_writable, url):
                return
        raise AssertionError("the namespace can be written in both databases")

    def left(self) -> list[str]:
        """What of moves is left in the databases."""
        found = []
        for name, server in self.servers.items():
            with psycopg.connect(server.url) as connection:
                for what, query in _LEFT.items():
                    rows = connection.execute(query.encode()).fetchall()
                    found += [f"{what} {row[0]} in {name}" for row in rows]
        return found


_LEFT: Final = {
    "the publication": "SELECT pubname FROM pg_publication",
    "the slot": "SELECT slot_name FROM pg_replication_slots",
    "the subscription": "SELECT subname FROM pg_subscription",
    "the schema": "SELECT nspname FROM pg_namespace n WHERE nspname LIKE 'wfc%\\_moved%'"
    " AND obj_description(oid, 'pg_namespace') LIKE '%: incoming%'",
}

_GOING_ON: Final = (
    """SELECT pid, state, wait_event, now() - state_change, left(query, 80) FROM pg_stat_activity
        WHERE state <> 'idle' AND pid <> pg_backend_pid()""",
    "SELECT slot_name, active, wal_status, confirmed_flush_lsn FROM pg_replication_slots",
    "SELECT subname, subenabled FROM pg_subscription",
    "SELECT srrelid::regclass::text, srsubstate FROM pg_subscription_rel WHERE srsubstate <> 'r'",
    """SELECT query_to_xml('SELECT * FROM wfc.placements', TRUE, FALSE, '')::text
        WHERE to_regclass('wfc.placements') IS NOT NULL""",
)

_WRITABLE: Final = """
SELECT count(*) FROM pg_namespace
WHERE nspname = 'wfc_moved' AND obj_description(oid, 'pg_namespace') IS NULL
"""


async def _ask(address: str, to: str, way: str) -> str:
    """Have a server move the namespace; `done PAUSE`, or why not."""
    ways = {"logical": pb.MOVE_WAY_LOGICAL_REPLICATION, "copy": pb.MOVE_WAY_COPY}
    request = pb.MoveNamespaceRequest(name=NAMESPACE, database=to, way=ways[way])
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            seconds = 0.0
            stream = StoreServiceStub(channel).MoveNamespace(request, timeout=_SECONDS)
            async for response in stream:
                seconds = response.pause.ToMilliseconds() / 1000
        except grpc.aio.AioRpcError as exc:
            return f"failed {exc.code().name} {exc.details()}"
    return f"done {seconds:.4f}"


def _is_writable(url: str) -> bool:
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
            return connection.execute(_WRITABLE.encode()).fetchone() == (1,)


@contextmanager
def databases(
    directory: Path, version: int = 18, **settings: str
) -> Iterator[dict[str, PostgresServer]]:
    """Two PostgreSQLs of a major version, between which namespaces can be moved."""
    options = {
        "wal_level": "logical",
        "max_replication_slots": "20",
        "max_worker_processes": "16",
        "max_logical_replication_workers": "8",
        "max_sync_workers_per_subscription": "6",
        **settings,
    }
    program = binaries.postgres(version)
    with (
        PostgresServer(program, directory / "home", options) as home,
        PostgresServer(program, directory / "b", options) as b,
    ):
        yield {"home": home, "b": b}


@asynccontextmanager
async def stage(directory: Path, real: int = 0, **settings: str) -> AsyncIterator[Stage]:
    """Two PostgreSQLs, with a namespace at home; `real`: how many servers there are."""
    with databases(directory, 18, **settings) as servers:
        config = settings_of(servers["home"].url, b=servers["b"].url)
        async with databases_from(config) as first, databases_from(config) as second:
            schema = Schema()
            await migrate(first.home.source, schema)
            await migrate(first.home.source, schema.for_namespace(NAMESPACE))
            routers = [
                Router(
                    Namespaces(databases, schema, migrate_on_use=False, max_namespaces=10),
                    NAMESPACE,
                )
                for databases in (first, second)
            ]
            with ExitStack() as stack:
                started = [
                    stack.enter_context(
                        ServerProcess(
                            directory / f"server-{n}.log",
                            *("--listen", f"127.0.0.1:{ports.free_port()}"),
                            *("--db-url", servers["home"].url),
                            *("--database", f"b={servers['b'].url}"),
                            *("--pool-size", "4", "--move-grace", "0"),
                        )
                    )
                    for n in range(real)
                ]
                on = Stage(servers, routers, started)
                try:
                    yield on
                finally:
                    await on.close()


def settings_of(home: str, **others: str) -> Settings:
    """The settings of a server with several databases."""
    named = tuple(NamedDatabase(name=name, url=url) for name, url in others.items())
    return Settings(db_url=home, databases=named, pool_size=6)


async def check(on: Stage, load: Load) -> None:
    """That nothing acknowledged was lost, once the load has ended."""
    found = [*await load.judge(on.routers[0]), *on.left()]
    assert not found, found
    assert load.calls
