"""Namespaces over several databases: where they are created and found, and what a move looks like
to a server that does not know of it yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.support import make
from tests.test_cli import run
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.database import databases_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store import database_size, event, namespace_list
from wfe_persistence.store.database_list import list_databases
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.migrate_all import migrate_all
from wfe_persistence.store.migration_files import latest_version
from wfe_persistence.store.migration_history import schema_version
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.paging import Cursor
from wfe_persistence.store.placement import CREATING, SWITCHING, Placement
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

A_LABELS = {"region": "east", "tier": "gold"}
B_LABELS = {"region": "west"}


@asynccontextmanager
async def serving(
    urls: Mapping[str, str], most: int = 100, **settings: Any
) -> AsyncIterator[Namespaces]:
    """A service over these databases, as one server sees it."""
    labels = {"a": A_LABELS, "b": B_LABELS}
    named = tuple(
        NamedDatabase(name=name, url=url, labels=labels[name])
        for name, url in urls.items()
        if name != "home"
    )
    arguments: dict[str, Any] = {"databases": named, "pool_size": 2, **settings}
    given = Settings(db_url=urls["home"], pool_timeout=5.0, **arguments)
    async with databases_from(given) as databases:
        yield Namespaces(databases, Schema(), migrate_on_use=True, max_namespaces=most)


@pytest.fixture
async def namespaces(database_urls: dict[str, str]) -> AsyncIterator[Namespaces]:
    async with serving(database_urls) as opened:
        await migrate(opened.databases.home, opened.default.schema)
        yield opened


@contextmanager
def refused(reason: str) -> Iterator[pytest.ExceptionInfo[PersistenceError]]:
    with pytest.raises(PersistenceError) as exc:
        yield exc
    assert reason_of(exc.value) == reason


def reason_of(exc: PersistenceError) -> str:
    return ErrorReason.Name(exc.reason).removeprefix("ERROR_REASON_")


async def schemas(url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'wfc') ORDER BY 1"
        )
        return [name async for (name,) in cursor]


async def execute(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_a_namespace_is_created_where_it_is_wanted_and_found_there(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    for name, wanted in (("x", "a"), ("y", "b"), ("z", "home")):
        migrated, database = await namespaces.create_namespace(name, wanted)
        assert (migrated.version, database) == (latest_version(), wanted)
        assert await namespaces.create_namespace(name) == (replace(migrated, applied=[]), wanted)
    assert await schemas(database_urls["home"]) == ["wfc", "wfc_z"]
    assert await schemas(database_urls["a"]) == ["wfc_x"]
    assert await schemas(database_urls["b"]) == ["wfc_y"]
    async with serving(database_urls) as others:
        for name, wanted in (("x", "a"), ("y", "b"), ("z", "home")):
            store = await namespaces.get(name)
            assert store.database.name == wanted
            stored = make.event()
            await event.create_event(store, stored)
            found = await others.get(name)
            assert found.database.name == wanted
            assert (await event.get_event(found, stored.id)).id == stored.id
    outcomes = await migrate_all(namespaces)
    assert set(outcomes) == {"default", "x", "y", "z"}
    assert not any(isinstance(outcome, PersistenceError) for outcome in outcomes.values())


async def test_wishes_that_can_not_be_met(namespaces: Namespaces) -> None:
    await namespaces.create_namespace("x", "a")
    await namespaces.create_namespace("z", "home")
    with refused("NAMESPACE_IN_OTHER_DATABASE") as exc:
        await namespaces.create_namespace("x", "b")
    assert exc.value.metadata == {"namespace": "x", "database": "a"}
    with refused("NAMESPACE_IN_OTHER_DATABASE"):
        await namespaces.create_namespace("x", labels=B_LABELS)
    with refused("NAMESPACE_IN_OTHER_DATABASE"):
        await namespaces.create_namespace("z", "b")
    for wish in (("nowhere", {}), ("", {"region": "north"}), ("b", {"region": "east"})):
        with refused("DATABASE_NOT_FOUND"):
            await namespaces.create_namespace("y", *wish)
    with refused("NAMESPACE_NOT_FOUND"):
        await namespaces.get("y")


async def test_without_a_wish_the_smallest_database_is_chosen(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    for url in (database_urls["home"], database_urls["a"]):
        await execute(
            url, "CREATE TABLE large AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
        )
    assert (await namespaces.create_namespace("x"))[1] == "b"
    assert (await namespaces.create_namespace("y", labels={"region": "east"}))[1] == "a"


async def test_those_that_come_at_once_are_not_all_put_into_the_same_database(
    namespaces: Namespaces,
) -> None:
    created = await asyncio.gather(*(namespaces.create_namespace(f"n{i}") for i in range(6)))
    assert {"a", "b"} <= {database for _, database in created}


async def test_databases_that_take_no_new_namespaces(database_urls: dict[str, str]) -> None:
    named = (
        NamedDatabase(name="home", accepts_new=False),
        NamedDatabase(name="a", url=database_urls["a"], accepts_new=False),
    )
    async with serving(database_urls, databases=named) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        with refused("DATABASE_NOT_FOUND"):
            await namespaces.create_namespace("x")
        assert (await namespaces.create_namespace("x", "a"))[1] == "a"
        assert (await namespaces.create_namespace("x"))[1] == "a"


async def test_the_limit_counts_those_in_all_databases(database_urls: dict[str, str]) -> None:
    async with serving(database_urls, most=3) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        outcomes = await asyncio.gather(
            *(namespaces.create_namespace(f"n{i}", ("home", "a", "b")[i % 3]) for i in range(9)),
            return_exceptions=True,
        )
        failed = [reason_of(each) for each in outcomes if isinstance(each, PersistenceError)]
        assert failed == ["TOO_MANY_NAMESPACES"] * 6
        for name in [each.name for each in (await listed(namespaces)) if each.name != "default"]:
            await namespaces.delete_namespace(name, force=False)
        assert [each.name for each in await listed(namespaces)] == ["default"]
        await namespaces.create_namespace("one", "b")


async def listed(namespaces: Namespaces, size: int = 1000) -> list[Any]:
    found: list[Any] = []
    after: Cursor | None = None
    while True:
        page = await namespace_list.list_all(namespaces, after, size)
        assert len(page.items) <= size
        found += page.items
        if page.next is None:
            return found
        after = page.next


async def test_lists_are_merged_in_order(namespaces: Namespaces) -> None:
    places = {f"n{i:02}": ("home", "a", "b")[i * 7 % 3] for i in range(12)}
    for name, database in places.items():
        await namespaces.create_namespace(name, database)
    expected = [("default", "home"), *places.items()]
    for size in (1, 2, 5, 13, 1000):
        found = await listed(namespaces, size)
        assert [(each.name, each.database) for each in found] == expected, size
    assert {each.schema_version for each in found} == {latest_version()}
    page = await namespace_list.list_all(namespaces, None, 100, lambda name: name in ("n03", "n04"))
    assert [each.name for each in page.items] == ["n03", "n04"]


async def test_a_server_that_does_not_know_the_database_says_so(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    await namespaces.create_namespace("x", "a")
    async with serving({"home": database_urls["home"]}) as single:
        with refused("DATABASE_NOT_CONFIGURED") as exc:
            await single.get("x")
        assert exc.value.metadata == {"namespace": "x", "database": "a"}
        with refused("DATABASE_NOT_CONFIGURED"):
            await single.create_namespace("x")
    del database_urls["a"]
    async with serving(database_urls) as others:
        [_, found] = await listed(others)
        assert (found.name, found.database, found.unavailable) == ("x", "a", True)


async def test_a_creation_that_broke_off_is_gone_on_with(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    reserved = Placement(namespace="x", database="a", generation=1, phase=CREATING)
    assert await namespaces.placements.add(reserved)
    with refused("NAMESPACE_NOT_FOUND"):
        await namespaces.get("x")
    # Its store was created, but not yet told whose it is.
    schema = namespaces.default.schema.for_namespace("x")
    await migrate(namespaces.databases.named("a"), schema, own_later=True)
    assert [each.name for each in await listed(namespaces)] == ["default"]
    assert (await namespaces.create_namespace("x"))[1] == "a"
    assert (await namespaces.get("x")).database.name == "a"

    # The same, but then it is wanted elsewhere.
    reserved = replace(reserved, namespace="y")
    assert await namespaces.placements.add(reserved)
    schema = namespaces.default.schema.for_namespace("y")
    await migrate(namespaces.databases.named("a"), schema, own_later=True)
    assert (await namespaces.create_namespace("y", "b"))[1] == "b"
    assert (await namespaces.get("y")).database.name == "b"
    assert await schemas(database_urls["a"]) == ["wfc_x", "wfc_y"]  # nobody's, and empty
    await namespaces.delete_namespace("y", force=False)
    assert (await namespaces.create_namespace("y", "a"))[1] == "a"


async def test_the_store_of_other_servers_is_left_alone(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """The home of another service may be one of the databases."""
    async with serving({"home": database_urls["a"]}) as others:
        await migrate(others.databases.home, others.default.schema)
        await others.create_namespace("x")
        with refused("STORE_NOT_OWNED"):
            await namespaces.create_namespace("x", "a")
        with refused("NAMESPACE_NOT_FOUND"):
            await namespaces.get("x")
        await namespaces.create_namespace("y", "a")
        with refused("NAMESPACE_NOT_FOUND"):
            await others.get("y")
        assert [each.name for each in await listed(others)] == ["default", "x"]


async def move(namespaces: Namespaces, store: Store, to: str, url: str, url_to: str) -> None:
    """What a move does at its end, but for the data: the store that is left is renamed, and the row
    of the directory says where the other one is."""
    seen = await namespaces.placements.read(store.namespace)
    assert seen is not None
    switching = await namespaces.placements.change(seen, phase=SWITCHING, moving_to=to)
    assert switching is not None
    name = store.schema.name
    await execute(url, f"ALTER SCHEMA {name} RENAME TO {name}__moved_{seen.generation}")
    await asyncio.sleep(0.3)
    await migrate(namespaces.databases.named(to), store.schema, own_later=True)
    await execute(
        url_to,
        f"INSERT INTO {name}.wfe_store (owner_schema, namespace, database, generation)"
        f" VALUES ('wfc', '{store.namespace}', '{to}', {seen.generation + 1})",
    )
    assert await namespaces.placements.change(
        switching, phase=None, moving_to=None, database=to, generation=seen.generation + 1
    )


async def test_the_store_that_a_move_has_left_is_not_created_anew(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """Otherwise a server that does not know of the move would go on in an empty one."""
    await namespaces.create_namespace("x", "a")
    store = await namespaces.get("x")
    seen = await namespaces.placements.read("x")
    assert seen is not None
    assert await namespaces.placements.change(seen, phase=SWITCHING, moving_to="b")
    name = store.schema.name
    await execute(database_urls["a"], f"ALTER SCHEMA {name} RENAME TO {name}__moved_1")
    for database in ("", "a"):
        with refused("ADMINISTRATION_BUSY"):
            await namespaces.create_namespace("x", database)
    with refused("SCHEMA_OUTDATED"):
        await migrate(store.database, store.schema, must_exist=True)
    assert (await schema_version(store)).number == 0
    # One that was deleted, so that only its row is left, is created again.
    switching = await namespaces.placements.read("x")
    assert switching is not None
    assert await namespaces.placements.change(switching, phase=None, moving_to=None)
    await namespaces.create_namespace("x", "a")
    assert (await schema_version(store)).number > 0


async def test_calls_of_a_server_that_knows_nothing_of_a_move_go_on(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """All of them, reads and writes, those in groups and streams, wait for the end of the move, and
    are then run where the namespace is."""
    await namespaces.create_namespace("x", "a")
    async with serving(database_urls) as others:
        store = await others.get("x")
        for _ in range(20):  # prepared on every connection
            await asyncio.gather(*(event.create_event(store, make.event()) for _ in range(4)))
        mover = asyncio.create_task(
            move(namespaces, store, "b", database_urls["a"], database_urls["b"])
        )
        while not mover.done():
            await asyncio.gather(*(event.create_event(store, make.event()) for _ in range(8)))
        await mover
        assert store.database.name == "b"
        assert store.generation == 2
        assert await others.get("x") is store
        stored = make.event()
        await event.create_event(store, stored)
        assert (await event.get_event(store, stored.id)).id == stored.id
        rows = [row async for row in store.stream("SELECT id FROM wfc.events")]
        assert rows
        # One that was idle meanwhile finds it by its next look.
        assert (await namespaces.get("x")).database.name == "b"
        # What was left there is not listed, and not found.
        assert [each.name for each in await listed(others)] == ["default", "x"]


async def test_a_stream_is_begun_again_where_the_namespace_is(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    await namespaces.create_namespace("x", "a")
    async with serving(database_urls) as others:
        store = await others.get("x")
        await move(namespaces, store, "b", database_urls["a"], database_urls["b"])
        assert store.database.name == "a"
        assert [row async for row in store.stream("SELECT id FROM wfc.events")] == []
        assert store.database.name == "b"


async def test_a_namespace_that_moves_on_while_it_is_looked_for_is_found(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """A write that has waited for one move comes to the target when the next one holds writes."""
    await namespaces.create_namespace("x", "a")
    databases = namespaces.databases
    looks = iter(["home", "b", "a"] * 2)

    async def look(store: Store, _: Database) -> bool:
        store.database = databases.named(next(looks))
        return True

    schema = Schema().for_namespace("x")
    stored = make.event()
    await event.create_event(Store(databases.named("b"), schema, "x", elsewhere=look), stored)
    store = Store(databases.named("b"), schema, "x", elsewhere=look)
    rows = [row async for row in store.stream("SELECT id FROM wfc.events")]
    assert len(rows) == 1
    assert store.database.name == "a"

    async def never(store: Store, _: Database) -> bool:
        store.database = databases.named("home")
        return True

    nowhere = Store(databases.named("b"), schema, "x", elsewhere=never)
    with refused("SCHEMA_OUTDATED"):
        await nowhere.read("SELECT id FROM wfc.events")
    with refused("SCHEMA_OUTDATED"):
        [row async for row in nowhere.stream("SELECT id FROM wfc.events")]


async def test_a_look_that_began_before_the_switch_is_no_answer(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """Calls that look for a namespace share a look, and the fence may come during it."""
    await namespaces.create_namespace("x", "a")
    async with serving(database_urls) as others:
        store = await others.get("x")
        seen = await namespaces.placements.read("x")
        assert seen is not None
        assert await namespaces.placements.change(seen, phase=SWITCHING, moving_to="b")
        old_looks = [seen, seen]
        read_placement = others._placement

        async def placement(name: str) -> Placement | None:
            return old_looks.pop() if old_looks else await read_placement(name)

        others._placement = placement  # type: ignore[method-assign]
        looking = asyncio.create_task(others.look_elsewhere(store, store.database))
        while old_looks:
            await asyncio.sleep(0.001)
        switching = await namespaces.placements.read("x")
        assert switching is not None
        assert await namespaces.placements.change(
            switching, phase=None, moving_to=None, database="b", generation=2
        )
        assert await looking
        assert store.database.name == "b"


async def test_a_copy_that_is_older_than_the_directory_is_not_used(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    """As after the restore of a database from before a move."""
    await namespaces.create_namespace("x", "a")
    await execute(database_urls["a"], "UPDATE wfc_x.wfe_store SET generation = 7")
    async with serving(database_urls) as others:
        with refused("NAMESPACE_NOT_FOUND"):
            await others.get("x")
        await execute(
            database_urls["a"], "UPDATE wfc_x.wfe_store SET generation = 1, state = 'incoming'"
        )
        with refused("NAMESPACE_NOT_FOUND"):
            await others.get("x")
        await execute(database_urls["a"], "UPDATE wfc_x.wfe_store SET state = 'active'")
        assert (await others.get("x")).database.name == "a"


async def test_the_migrate_commands_go_over_all_databases(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    for name, database in (("x", "a"), ("y", "b"), ("z", "home")):
        await namespaces.create_namespace(name, database)
    options = ["--db-url", database_urls["home"]]
    for name in ("a", "b"):
        options += ["--database", f"{name}={database_urls[name]}"]
    latest = latest_version()
    await execute(database_urls["a"], f"DELETE FROM wfc_x.wfe_migrations WHERE version = {latest}")
    status = await asyncio.to_thread(run, "migrate", "status", *options)
    assert status.returncode == 1
    assert "database a: 1 namespaces, behind: x" in status.stdout
    assert "database b: 1 namespaces, up to date" in status.stdout
    plan = await asyncio.to_thread(run, "migrate", "plan", *options)
    assert f"x: version {latest - 1} to {latest}" in plan.stdout
    assert f"y: version {latest}, nothing to do" in plan.stdout


async def test_what_migrate_up_can_not_reach_fails_and_nothing_else(
    namespaces: Namespaces, database_urls: dict[str, str]
) -> None:
    for name, database in (("x", "a"), ("y", "b")):
        await namespaces.create_namespace(name, database)
    away = database_urls["a"].replace("/test_", "/no_such_")
    options = ["--db-url", database_urls["home"], "--database", f"a={away}"]
    options += ["--database", f"b={database_urls['b']}"]
    done = await asyncio.to_thread(run, "migrate", "up", *options)
    assert done.returncode == 1
    assert "x: failed: the database a can't be reached" in done.stdout + done.stderr
    assert f"y: up to date (version {latest_version()})" in done.stdout + done.stderr
    status = await asyncio.to_thread(run, "migrate", "status", *options)
    assert status.returncode == 1
    assert "database a: can't be reached" in status.stdout
    down = await asyncio.to_thread(
        run, "migrate", "down", "--to", str(latest_version() - 1), *options
    )
    assert down.returncode == 1
    assert "can't be reached" in down.stdout + down.stderr


async def test_a_size_that_takes_long_to_tell_is_estimated(
    namespaces: Namespaces, database_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_size, "DATABASE_BYTES", "SELECT 1::bigint FROM pg_sleep(600)")
    monkeypatch.setattr(database_size, "_SECONDS", 0.05)
    await execute(
        database_urls["a"],
        "CREATE TABLE large AS SELECT repeat('x', 2000) AS x FROM generate_series(1, 2000)",
        "ANALYZE large",
    )
    listed = {each.name: each for each in await list_databases(namespaces)}
    assert all(each.reachable for each in listed.values())
    assert 4_000_000 < listed["a"].size_bytes - listed["b"].size_bytes < 8_000_000
    created = [(await namespaces.create_namespace(name))[1] for name in ("x", "y")]
    assert "a" not in created
