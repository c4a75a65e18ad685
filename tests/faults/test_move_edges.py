"""Moves when servers sleep, databases hang, and callers hang up twice.

In one process, so that each thing happens at one place of the move: `Mover` calls `at` there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.faults.move_faults import MOVE_FAULTS
from tests.faults.moves.driver import directory_of
from tests.faults.moves.stage import databases, settings_of
from tests.support import binaries, make
from tests.support.postgres import PostgresServer
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest
from wfe_persistence.database import databases_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import event, lock
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.moving import logical
from wfe_persistence.store.moving import mover as mover_module
from wfe_persistence.store.moving.mover import Mover
from wfe_persistence.store.moving.prerequisites import Way
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.placement import Databases
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

Servers = dict[str, PostgresServer]
At = Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def servers(run_dir: Path) -> Iterator[Servers]:
    """A home, and `b`."""
    directory = run_dir / "move-edges"
    directory.mkdir(0o711)
    with databases(directory) as found:
        yield found


@dataclass
class Service:
    """What a server consists of that has these databases, and where a move does what besides."""

    databases: Databases
    namespaces: Namespaces
    mover: Mover
    name: str
    at: dict[str, At] = field(default_factory=dict)

    async def store(self) -> Store:
        return await self.namespaces.get(self.name)

    async def move(self, to: str, way: Way = Way.LOGICAL) -> None:
        async for _ in self.mover.move(self.name, to, way):
            pass

    async def move_at_last(self, to: str) -> None:
        """Try until it is done, as an operator would."""
        for _ in range(10):
            with suppress(PersistenceError):
                await self.move(to)
                return
        await self.move(to)

    async def add_event(self) -> str:
        created = make.event()
        await event.create_event(await self.store(), created)
        return created.id

    async def claim(self, resource: str) -> int:
        """The epoch of a new lock."""
        request = AcquireLockRequest(resource=resource, owner="test")
        store = await self.store()
        return (await lock.acquire_lock(store, request, 60_000, 0.0, Waiters())).epoch

    async def events(self) -> set[str]:
        rows = await (await self.store()).read_once("SELECT id FROM wfc.events")
        return {(rows.get_value(i, 0) or b"").decode() for i in range(rows.ntuples)}


@asynccontextmanager
async def service(
    servers: Servers, name: str, grace: float = 0.0, **others: str
) -> AsyncIterator[Service]:
    """With a namespace at home. `others`: more databases, by name."""
    settings = settings_of(servers["home"].url, b=servers["b"].url, **others)
    async with databases_from(settings) as found:
        await migrate(found.home.source, Schema())
        namespaces = Namespaces(found, Schema(), migrate_on_use=False, max_namespaces=100)
        await namespaces.create_namespace(name, "home")

        async def at(place: str) -> None:
            if place in here.at:
                await here.at.pop(place)()

        mover = Mover(directory_of(found), found, grace=grace, at=at)
        here = Service(found, namespaces, mover, name)
        yield here


def rows_of(server: PostgresServer, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url) as connection:
        return connection.execute(query.encode()).fetchall()


async def sleep(servers: Servers, name: str) -> None:
    """A server sleeps while a namespace leaves a database, and wakes up while it comes back."""
    async with service(servers, name) as of, service(servers, name) as asleep:
        before, meanwhile = await of.add_event(), make.event()
        # It has looked, and then it falls asleep: what it thinks may be of any age.
        reader, writer = await asleep.store(), await asleep.namespaces.find(name)
        await of.move("b", Way.COPY)

        async def wake_up() -> None:
            assert reader.database.name == writer.database.name == "home"
            await event.create_event(writer, meanwhile)
            found = await event.get_event(reader, before)
            assert found.id == before
            assert reader.database.name == writer.database.name == "b"
            table = f"wfc_{name}.events"
            for statement in (
                f"SELECT count(*) FROM {table}",
                f"INSERT INTO {table} SELECT * FROM {table}",
                f"UPDATE {table} SET is_processed = TRUE",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
            ):
                # As a superuser, whom privileges would not stop.
                with pytest.raises(psycopg.errors.UndefinedTable):
                    rows_of(servers["home"], statement)

        of.at["copied"] = wake_up
        await of.move("home")
        assert not of.at
        assert await of.events() == {before, meanwhile.id}
        # Nothing of the guards is left, in neither.
        for server in servers.values():
            for left in (
                "SELECT relname FROM pg_class WHERE starts_with(relname, 'incoming')",
                "SELECT proname FROM pg_proc WHERE starts_with(proname, 'incoming')",
                "SELECT relname FROM pg_class WHERE 'autovacuum_enabled=false' = ANY (reloptions)",
            ):
                assert rows_of(server, left) == []


_IS_WAITED_FOR = """
SELECT 1 FROM pg_stat_activity
WHERE query LIKE '%confirmed_flush_lsn >= m.lsn%' AND pid <> pg_backend_pid()
"""


def follow(servers: Servers, how: str) -> None:
    """`DISABLE` or `ENABLE` the subscriptions of b."""
    with psycopg.connect(servers["b"].url, autocommit=True) as connection:
        names = connection.execute("SELECT subname FROM pg_subscription").fetchall()
        for (subscription,) in names:
            connection.execute(f'ALTER SUBSCRIPTION "{subscription}" {how}'.encode())


async def carry(servers: Servers, name: str) -> None:
    """A target is behind when it is to be switched to, and there are writes and claims."""
    async with service(servers, name) as of:
        written: set[str] = set()
        tasks: list[asyncio.Task[None]] = []
        switching = asyncio.Event()
        epoch = await of.claim("before")

        async def fall_behind() -> None:
            follow(servers, "DISABLE")
            written.update([await of.add_event() for _ in range(20)])

        async def catch_up_when_waited_for() -> None:
            async def catch_up() -> None:
                while not switching.is_set():
                    if rows_of(servers["home"], _IS_WAITED_FOR):
                        follow(servers, "ENABLE")
                        return
                    await asyncio.sleep(0.02)

            tasks.append(asyncio.create_task(catch_up()))

        async def write() -> None:
            switching.set()

            async def add() -> None:
                written.add(await of.add_event())

            follow(servers, "DISABLE")
            tasks.append(asyncio.create_task(add()))
            # It must wait for the switch, however long that takes.
            await asyncio.wait({tasks[-1]}, timeout=0.5)

        of.at = {"close": fall_behind, "held": catch_up_when_waited_for, "switching": write}
        # It may take too long for one attempt, on a slow machine.
        await of.move_at_last("b")
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        assert len(written) == 21
        assert await of.events() == written
        assert await of.claim("after") > epoch
        left = f"SELECT 1 FROM pg_namespace WHERE nspname = 'wfc_{name}'"
        assert rows_of(servers["home"], left) == []


async def hang_up(servers: Servers, name: str) -> None:
    """A caller hangs up behind the fence, and again while that is waited for."""
    async with service(servers, name) as of:
        fenced, go_on = asyncio.Event(), asyncio.Event()

        async def stop() -> None:
            fenced.set()
            await go_on.wait()

        of.at["fenced"] = stop
        moving = asyncio.create_task(of.move("b"))
        await fenced.wait()
        for _ in range(3):
            moving.cancel()
            await asyncio.wait({moving}, timeout=0.1)
        left_halfway = moving.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await moving
        assert not left_halfway
        # What is left is to be cleaned up; the namespace is in use already.
        entry = await directory_of(of.databases).read(name)
        assert entry is not None
        assert (entry.database, entry.phase) == ("b", "cleaning")
        await of.add_event()
        await of.move("b")


SCENARIOS = {"sleep": sleep, "carry": carry, "hang_up": hang_up}


async def test_a_server_that_slept_neither_reads_nor_writes_the_copy_that_is_made(
    servers: Servers,
) -> None:
    await sleep(servers, "slept")


async def test_a_switch_carries_all_over_and_leaves_nothing_that_can_be_written(
    servers: Servers,
) -> None:
    await carry(servers, "carried")


async def test_who_hangs_up_twice_leaves_a_switch_that_is_made(servers: Servers) -> None:
    await hang_up(servers, "hung_up")


async def test_all_of_it_on_the_oldest_postgresql(run_dir: Path) -> None:
    directory = run_dir / "oldest-move"
    directory.mkdir(0o711)
    with databases(directory, version=binaries.VERSIONS[0]) as servers:
        for name, scenario in SCENARIOS.items():
            await scenario(servers, f"{name}_oldest")


@pytest.mark.parametrize("fault", MOVE_FAULTS)
async def test_planted_fault_is_caught(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plant, scenario = MOVE_FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        await SCENARIOS[scenario](servers, f"planted_{list(MOVE_FAULTS).index(fault)}")


@contextmanager
def silent() -> Iterator[str]:
    """The connection string of a database that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"postgresql://wfe@127.0.0.1:{listening.getsockname()[1]}/wfe?connect_timeout=60"


async def test_a_copy_that_can_never_be_finished_begins_anew(servers: Servers) -> None:
    """As PostgreSQL leaves one if it breaks down between two of its steps: the slot of a table's
    copy is gone, but that the copy is done was not committed."""
    async with service(servers, "slotless") as of:
        before = await of.add_event()

        async def lose() -> None:
            async with (
                await psycopg.AsyncConnection.connect(servers["home"].url, autocommit=True) as here,
                await psycopg.AsyncConnection.connect(servers["b"].url, autocommit=True) as there,
            ):
                found = await there.execute(
                    "SELECT s.subname FROM pg_subscription s JOIN pg_subscription_rel r"
                    " ON r.srsubid = s.oid WHERE r.srrelid = 'wfc_slotless.events'::regclass"
                )
                [(name,)] = await found.fetchall()
                move = name.removeprefix(logical.name_of(""))
                assert (await logical.state(here, there, move)).is_whole
                await there.execute(
                    "UPDATE pg_subscription_rel SET srsubstate = 'f'"
                    " WHERE srrelid = 'wfc_slotless.events'::regclass"
                )
                assert not (await logical.state(here, there, move)).is_whole
            raise ConnectionError("the mover is gone")

        of.at["copied"] = lose
        with pytest.raises(ConnectionError):
            await of.move("b")
        await of.move_at_last("b")
        assert await of.events() == {before}
        assert (await of.store()).database.name == "b"


async def test_writes_are_held_when_the_target_is_close(servers: Servers) -> None:
    """And not only as it was before its statistics were made, which may take long."""
    async with service(servers, "close") as of:
        order: list[str] = []

        async def fall_behind() -> None:
            follow(servers, "DISABLE")
            await of.add_event()
            order.append("behind")
            asyncio.get_running_loop().call_later(1.0, catch_up)

        def catch_up() -> None:
            order.append("follows")
            follow(servers, "ENABLE")

        async def held() -> None:
            order.append("held")

        of.at = {"copied": fall_behind, "held": held}
        await of.move("b")
        assert order == ["behind", "follows", "held"]


async def test_a_database_that_hangs_holds_up_no_other(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_module, "_FINISH_EACH_SECONDS", 1.0)
    with silent() as url:
        async with service(servers, "held_up", c=url) as of:
            await of.move("b")
            # Three that are to be dropped in the one that hangs, and come first.
            for n in range(3):
                rows_of(
                    servers["home"],
                    "INSERT INTO wfc.placements (namespace, database, generation, move_detail,"
                    f" changed) VALUES ('hangs_{n}', 'home', 2, "
                    '\'{"remains": [{"database": "c", "schema": "x", "until": 0}]}\','
                    " now() - interval '1 day') RETURNING 1",
                )
            archives = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'wfc_held_up__moved%'"
            assert len(rows_of(servers["home"], archives)) == 1
            async with asyncio.timeout(30):
                while rows_of(servers["home"], archives):
                    await of.mover.finish()
        rows_of(servers["home"], "DELETE FROM wfc.placements WHERE namespace ~ '^hang' RETURNING 1")


async def test_what_a_deleted_namespace_has_left_elsewhere_is_dropped(servers: Servers) -> None:
    archives = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'wfc_deleted__moved%'"
    async with service(servers, "deleted", grace=86_400.0) as of:
        # Of a server that was killed while it looked whether a move is possible.
        with psycopg.connect(servers["home"].url) as connection:
            connection.execute("CREATE PUBLICATION wfe_move_check_2147483647")
        await of.move("b")
        assert rows_of(servers["home"], "SELECT pubname FROM pg_publication") == []
        await of.move("home")
        await of.mover.finish()
        assert len(rows_of(servers["home"], archives)) == 1
        assert len(rows_of(servers["b"], archives)) == 1
        await of.namespaces.delete_namespace("deleted", force=True)
        with pytest.raises(PersistenceError) as failure:
            await of.namespaces.get("deleted")
        assert failure.value.reason == ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND
        with pytest.raises(PersistenceError) as failure:
            await of.move("b")
        assert failure.value.reason == ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND
        # Created anew meanwhile, at home: that one stays.
        _, database = await of.namespaces.create_namespace("deleted", "home")
        assert database == "home"
        kept = await of.add_event()
        await of.mover.finish()
        assert rows_of(servers["home"], archives) == []
        assert rows_of(servers["b"], archives) == []
        assert await of.events() == {kept}
        await of.namespaces.delete_namespace("deleted", force=True)
        row = "SELECT move_phase FROM wfc.placements WHERE namespace = 'deleted'"
        assert rows_of(servers["home"], row) == []
