"""Two PostgreSQLs, a namespace that moves between them, and who uses it meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from tests.faults.moves.load import Load, Router
from tests.support import binaries
from tests.support.postgres import PostgresServer
from wfe_persistence.database import databases_from
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.schema import Schema

NAMESPACE: Final = "moved"

PLACES: Final = (
    "begun", "publication taken", "target empty", "target created", "published", "subscribed",
    "copied", "held", "switching", "fenced", "activated", "switched", "cleaned",
)  # fmt: skip
"""Where whoever drives a move may end, in their order."""

PLACES_OF_COPY: Final = tuple(place for place in PLACES if place not in ("published", "subscribed"))

VICTIMS: Final = ("mover", "source", "target")

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

    def __init__(self, servers: dict[str, PostgresServer], routers: list[Router]) -> None:
        self.servers = servers
        self.routers = routers
        self.at = "home"
        """Where the namespace is."""

    async def driver(self, to: str, way: str, place: str) -> asyncio.subprocess.Process:
        """A process that drives a move to its end, or to a place."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.moves.driver",
            self.servers["home"].url, self.servers["b"].url, NAMESPACE, to, way, place,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def move(self, way: str, place: str = "", victim: str = "") -> Moved:
        """Move the namespace to the other database; at a place, somebody is killed. It is tried
        until it is done, as an operator would."""
        to = "b" if self.at == "home" else "home"
        attempts = 0
        while True:
            attempts += 1
            said = await self._attempt(to, way, place if attempts == 1 else "", victim)
            self.check_one_writable()
            if said.startswith("done"):
                break
            assert attempts < 20, said
            await asyncio.sleep(0.2)
        self.at = to
        pause = float(said.removeprefix("done "))
        return Moved(attempts, pause or None)

    async def begin_and_abort(self, way: str, place: str) -> bool:
        """Begin a move, kill who drives it at a place, and abort it; False: it was too late."""
        to = "b" if self.at == "home" else "home"
        await self._attempt(to, way, place, "mover")
        said = ""
        for _ in range(10):
            said = await self._attempt("abort", way, "", "")
            self.check_one_writable()
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
                self.check_one_writable()
                if victim == "mover":
                    driver.kill()
                    return "killed"
                other = "b" if self.at == "home" else "home"
                killed = self.servers[self.at if victim == "source" else other]
                await asyncio.to_thread(killed.crash)
                driver.stdin.write(b"\n")
                return (await driver.stdout.readline()).decode().strip()
        except TimeoutError:
            return "it takes too long"
        finally:
            with suppress(ProcessLookupError):
                driver.kill()
            await driver.wait()

    def check_one_writable(self) -> None:
        """At most one database has a schema of the namespace that can be written."""
        writable = [name for name, server in self.servers.items() if _is_writable(server.url)]
        assert len(writable) <= 1, f"the namespace can be written in {writable}"

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

_WRITABLE: Final = """
SELECT count(*) FROM pg_namespace
WHERE nspname = 'wfc_moved' AND obj_description(oid, 'pg_namespace') IS NULL
"""


def _is_writable(url: str) -> bool:
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
            return connection.execute(_WRITABLE.encode()).fetchone() == (1,)


@asynccontextmanager
async def stage(directory: Path, **settings: str) -> AsyncIterator[Stage]:
    """Two PostgreSQLs, with a namespace at home."""
    options = {"wal_level": "logical", "max_replication_slots": "20", **settings}
    program = binaries.postgres(18)
    with (
        PostgresServer(program, directory / "home", options) as home,
        PostgresServer(program, directory / "b", options) as b,
    ):
        config = settings_of(home.url, b.url)
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
            yield Stage({"home": home, "b": b}, routers)


def settings_of(home: str, b: str) -> Settings:
    """The settings of a server with two databases."""
    return Settings(db_url=home, databases=(NamedDatabase(name="b", url=b),), pool_size=6)


async def check(on: Stage, load: Load) -> None:
    """That nothing acknowledged was lost, once the load has ended."""
    found = [*await load.judge(on.routers[0]), *on.left()]
    assert not found, found
    assert load.calls
