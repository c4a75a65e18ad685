"""Where a new namespace is put, and how it comes to be there.

At home, the transaction that creates its schema counts, under a lock, how many there are. In
another database, the row of the directory comes first: in a transaction at home that counts under
the same lock, it is reserved for the namespace. Then the store is created there, without an owner;
then it is told whose it is; and at last the row says that the namespace exists. Whoever creates it
again goes on from where a server that died had come to.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import (
    migrate,
    migration_history,
    namespace_drop,
    namespace_list,
    owner,
    placement,
)
from wfe_persistence.store.administration import connect
from wfe_persistence.store.database_size import database_size
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.placement import CREATING, DELETED, Databases, Placement, Placements
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS, Database
from wfe_persistence.store.schema import HOME
from wfe_persistence.store.tables import MIGRATIONS_TABLE, PLACEMENTS_TABLE, STORE_TABLE, Store

log = logging.getLogger(__name__)

# How long (seconds) the size of a database is believed, how long one that was only estimated, and
# by how many bytes it grows with a namespace meanwhile.
_SIZE_SECONDS: Final = 5.0
_ESTIMATE_SECONDS: Final = 60.0
_NAMESPACE_BYTES: Final = 1_000_000

# Serializes the transactions that create a namespace of one owner, in all servers: each of them
# counts those that the ones before it have created.
LOCK_CREATION = """
SELECT pg_advisory_xact_lock(
    hashtextextended('wfe-persistence create ' || current_database() || %s, 0))
"""

TABLE_EXISTS = "SELECT to_regclass(%s) IS NOT NULL"


class Creation:
    """Creates namespaces; one for a server. `most`: how many there may be besides `default`."""

    def __init__(
        self, default: Store, databases: Databases, placements: Placements, most: int
    ) -> None:
        self._default = default
        self._databases = databases
        self._placements = placements
        self._most = most
        # By database: its bytes, and until when they are believed, on the event loop's clock; and
        # by how many it is thought to have grown in all, also while others ask for its size.
        self._sizes: dict[str, tuple[float, int]] = {}
        self._grown: Counter[str] = Counter()

    async def place(self, at_home: Store, name: str, labels: Mapping[str, str]) -> Placement | None:
        """Where a namespace is, or where it is to be created; None: at home. `at_home`: the store
        that it would have there. `name` of the database, and `labels`: see `create_namespace`."""
        wanted = self._wanted(name, labels)
        namespace = at_home.namespace
        if len(self._databases) == 1:
            found = await self._placements.read(namespace)
            if found is None or found.phase != DELETED:
                return None
        for _ in range(MAX_ATTEMPTS):
            found = await self._placements.read(namespace)
            if found is not None and found.is_there:
                _require(found.database, wanted, namespace)
                return found
            if found is None and await _exists(at_home):
                _require(HOME, wanted, namespace)
                return None
            was_deleted = found is not None and found.phase == DELETED
            if found is not None and not was_deleted and found.database in _names(wanted):
                return found
            chosen = await self._choose(wanted)
            if chosen is not self._databases.home or was_deleted:
                # The row of one that was deleted has what remains of it, so it is used again.
                if reserved := await self._reserve(at_home, chosen, found):
                    return reserved
            elif found is None:
                return None
            else:
                await self._placements.remove(found)
        raise _conflict(namespace)

    def _wanted(self, name: str, labels: Mapping[str, str]) -> Sequence[Database]:
        """The databases that a namespace may be created in."""
        found = self._databases.with_labels(labels)
        if name:
            found = [each for each in found if each.name == name]
        elif not labels:
            # Namespaces that are there already may be in those that take no new ones.
            return found
        if not found:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_NOT_FOUND,
                "the service has no database with this name and these labels",
            )
        return found

    async def _choose(self, wanted: Sequence[Database]) -> Database:
        """The smallest of these databases, of those that answer."""
        if len(wanted) == 1:
            return wanted[0]
        candidates = [each for each in wanted if each.accepts_new]
        if not candidates:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_NOT_FOUND,
                "none of the databases takes new namespaces that do not name it",
            )
        sizes = await asyncio.gather(*map(self._bytes, candidates))
        answers = {
            each: size + self._grown[each.name]
            for each, size in zip(candidates, sizes, strict=True)
            if size is not None
        }
        if not answers:
            raise candidates[0].reachability.unavailable()
        smallest = min(answers, key=lambda each: answers[each])
        self._grown[smallest.name] += _NAMESPACE_BYTES
        return smallest

    async def _bytes(self, database: Database) -> int | None:
        """The size of a database, without what it is thought to have grown by since this server has
        started; None: it does not answer."""
        now = asyncio.get_running_loop().time()
        until, size = self._sizes.get(database.name, (0.0, 0))
        if until > now:
            return size
        store = Store(database, self._default.schema, self._default.namespace)
        grown = self._grown[database.name]
        try:
            found = await database_size(store)
        except (PersistenceError, TimeoutError):
            return None
        seconds = _ESTIMATE_SECONDS if found.is_estimated else _SIZE_SECONDS
        size = found.bytes - grown
        self._sizes[database.name] = now + seconds, size
        return size

    async def _reserve(
        self, at_home: Store, database: Database, seen: Placement | None
    ) -> Placement | None:
        """Reserve a row for a namespace that is about to be created in a database; None: something
        has changed."""
        default = self._default
        reserved = Placement(
            namespace=at_home.namespace,
            database=database.name,
            generation=seen.generation + 1 if seen else 1,
            phase=CREATING,
        )
        async with connect(default.database) as connection, connection.transaction():
            await connection.execute(LOCK_CREATION, [default.schema.name])
            await _require_directory(connection, default)
            found = await placement.read_for_update(connection, default, reserved.namespace)
            if (found and (found.database, found.generation, found.phase)) != (
                seen and (seen.database, seen.generation, seen.phase)
            ):
                return None
            cursor = await connection.execute(
                TABLE_EXISTS, [at_home.schema.qualify(f"wfc.{MIGRATIONS_TABLE}")]
            )
            if await cursor.fetchone() == (True,) and await _exists(at_home):
                return None
            if found is None or found.phase == DELETED:
                await self._require_room(connection)
            await placement.reserve(connection, default, reserved)
        return reserved

    async def admit(self, connection: psycopg.AsyncConnection[Any], namespace: str) -> None:
        """Called in the transaction that creates a namespace at home; raises what forbids it."""
        default = self._default
        await connection.execute(LOCK_CREATION, [default.schema.name])
        if await _has_directory(connection, default):
            found = await placement.read_for_update(connection, default, namespace)
            if found is not None and (found.database != HOME or not found.is_there):
                self._databases.named(found.database, namespace)
                raise _conflict(namespace)
            if found is not None and found.phase:
                raise is_being_moved(namespace)
        await self._require_room(connection)

    async def admit_placed(self, seen: Placement) -> None:
        """Called in the transaction that creates the store of a row; raises what forbids it.

        A move renames the schema that it leaves, after it has written its phase into the row. So
        one that is not there, while the row is what it was, was never created, or deleted.
        """
        found = await self._placements.read(seen.namespace)
        if found is not None and found.is_there and found.phase:
            raise is_being_moved(seen.namespace)
        if found is None or (found.database, found.generation, found.phase) != (
            seen.database,
            seen.generation,
            seen.phase,
        ):
            raise _conflict(seen.namespace)

    async def _require_room(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Raise TOO_MANY_NAMESPACES if there are as many as may be, besides `default`."""
        most = self._most
        placed = 0
        if await _has_directory(connection, self._default):
            placed = await placement.count_placed(connection, self._default)
        if placed >= most or await namespace_list.count_at_most(self._default, most - placed) >= (
            most - placed
        ):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_TOO_MANY_NAMESPACES,
                f"there are {most} namespaces, as many as the server allows (--max-namespaces)",
                metadata={"limit": str(most)},
            )

    async def check_target(self, store: Store, reserved: Placement) -> None:
        """Raise STORE_NOT_OWNED if the schema, in another database than the home, has a store that
        is not that of the row: one of other servers, or a copy that has been left there. What a
        creation that failed has left is empty, and has no owner."""
        async with connect(store.database) as connection:
            cursor = await connection.execute(
                TABLE_EXISTS, [store.schema.qualify(f"wfc.{MIGRATIONS_TABLE}")]
            )
            if await cursor.fetchone() != (True,):
                return
            cursor = await connection.execute(
                TABLE_EXISTS, [store.schema.qualify(f"wfc.{STORE_TABLE}")]
            )
            whose: Owner | None = None
            if await cursor.fetchone() == (True,):
                whose = await migration_history.owner_of(connection, store.schema)
            if whose is not None:
                if whose.is_of(store) and whose.generation == reserved.generation:
                    return
                if not whose.is_of(store):
                    owner.raise_foreign(store.schema, whose)
            if not await namespace_drop.is_empty(connection, store):
                owner.raise_foreign(store.schema, whose)

    async def finish(self, store: Store, reserved: Placement) -> None:
        """Make a namespace exist whose store has been created."""
        async with connect(store.database) as connection:
            try:
                done = await placement.set_identity(connection, store, reserved)
            except psycopg.errors.UndefinedTable:
                raise _conflict(reserved.namespace) from None  # deleted meanwhile
        if not done:
            owner.raise_foreign(store.schema, None)
        if reserved.phase == CREATING:
            changed = await self._placements.change(reserved, phase=None)
            if changed is None:
                found = await self._placements.read(reserved.namespace)
                if found is None or not found.is_there or found.database != reserved.database:
                    raise _conflict(reserved.namespace)
            log.info("namespace %s: created in the database %s", store.namespace, reserved.database)


async def _exists(store: Store) -> bool:
    """Whether a store is there, and is used by servers with this schema."""
    version = await migration_history.schema_version(store)
    if not version.number:
        return False
    whose = await owner.read_owner(store, version.number)
    return whose is None or whose.is_of(store)


def _names(databases: Sequence[Database]) -> set[str]:
    return {each.name for each in databases}


def _require(database: str, wanted: Sequence[Database], namespace: str) -> None:
    """Raise NAMESPACE_IN_OTHER_DATABASE if a namespace is not where it is wanted."""
    if database not in _names(wanted):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_NAMESPACE_IN_OTHER_DATABASE,
            f"the namespace exists, in the database {database}",
            metadata={"namespace": namespace, "database": database},
        )


async def _has_directory(connection: psycopg.AsyncConnection[Any], default: Store) -> bool:
    cursor = await connection.execute(
        TABLE_EXISTS, [default.schema.qualify(f"wfc.{PLACEMENTS_TABLE}")]
    )
    return await cursor.fetchone() == (True,)


async def _require_directory(connection: psycopg.AsyncConnection[Any], default: Store) -> None:
    if not await _has_directory(connection, default):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
            "the default store has no directory of namespaces yet: it must be migrated first",
        )


def _conflict(namespace: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the namespace was created or deleted elsewhere at the same time",
        metadata={"namespace": namespace},
        retry_after=0.1,
    )


def is_being_moved(namespace: str) -> PersistenceError:
    """The error of what can't be done to a namespace while it is moved."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_ADMINISTRATION_BUSY,
        "the namespace is being moved to another database",
        metadata={"namespace": namespace},
        retry_after=5.0,
    )


async def migrated_store(
    store: Store,
    migrate_seconds: float,
    admit: migrate.Admission | None = None,
    *,
    own_later: bool = False,
    must_exist: bool = False,
) -> Migrated:
    """Migrate; an error of PostgreSQL becomes one that names the namespace."""
    try:
        return await migrate.migrate(
            store.database,
            store.schema,
            admit=admit,
            unattended=migrate_seconds,
            own_later=own_later,
            must_exist=must_exist,
        )
    except PersistenceError as exc:
        if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED and isinstance(
            exc.__cause__, psycopg.Error
        ):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
                "the namespace's migration failed; see the server's log",
                metadata={"namespace": store.namespace},
            ) from exc
        raise
