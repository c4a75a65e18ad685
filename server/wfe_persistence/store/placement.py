"""Where namespaces live: the databases of a service, and the directory that says which is in which.

The directory is a table in the default store, which is in the home database. It has a row for each
namespace that is in another one, or is being moved; all others are at home. So a service with one
database has no rows, and nobody looks for any.

A store says itself which it is (`owner.py`): its namespace, the name of its database, and its
generation, which is that of its row. So a server whose knowledge is out of date notices. When a
namespace moves, the schema that it leaves is renamed: the statements of such a server fail, having
changed nothing, and it looks here and runs them again (`Store.elsewhere`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Final, Self, TypeVar

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    integer,
    read_int8,
    read_json,
    read_text,
    text,
)
from wfe_persistence.store.tables import Store

T = TypeVar("T")

CREATING: Final = "creating"
"""The phase of a namespace whose store is not there yet: there is no such namespace."""

DELETED: Final = "deleted"
"""The phase of a namespace that was deleted, and of which something remains that is to be dropped:
what its moves have left in other databases. There is no such namespace."""

SWITCHING: Final = "switching"
"""The phase of a namespace between two databases: those who call it wait."""


class Databases:
    """The databases of a service, by name: the home and others. As a context manager, their pools
    are open inside, whether or not they can be reached."""

    def __init__(self, home: Database, *others: Database) -> None:
        self.home = home
        self.others: Final = others
        self._all: Final = {database.name: database for database in (home, *others)}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for database in self:
            await self._stack.enter_async_context(database)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def stop_statements(self, seconds: float) -> None:
        """See `Database.stop_statements`."""
        await asyncio.gather(*(each.stop_statements(seconds) for each in self))

    def __iter__(self) -> Iterator[Database]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def named(self, name: str, namespace: str = "") -> Database:
        """The database with a name. Raises DATABASE_NOT_CONFIGURED: a namespace is in one that this
        server was not told of, others may have been."""
        found = self._all.get(name)
        if found is None:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_NOT_CONFIGURED,
                f"the namespace is in the database {name}, which this server is not configured for",
                metadata={"namespace": namespace, "database": name},
                retry_after=1.0,
            )
        return found

    def with_labels(self, labels: Mapping[str, str]) -> list[Database]:
        """Those that have all of these labels, among others."""
        return [each for each in self if labels.items() <= each.labels.items()]


def away(database: str, databases: Databases) -> PersistenceError:
    """The error of what is in a database that does not answer, or is unknown."""
    try:
        return databases.named(database).reachability.unavailable()
    except PersistenceError as exc:
        return exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A row of the directory."""

    namespace: str
    database: str
    """The name of the database."""
    generation: int
    """That of the store there."""
    moving_to: str | None = None
    """The name of the database to which it is being moved."""
    phase: str | None = None
    """None: the namespace can be used, and nothing is going on."""
    detail: str | None = None
    """What whoever moves it must remember, as JSON."""

    @property
    def is_there(self) -> bool:
        """Whether the namespace exists."""
        return self.phase not in (CREATING, DELETED)


_COLUMNS: Final = "namespace, database, generation, moving_to, move_phase, move_detail"

READ_PLACEMENT = f"SELECT {_COLUMNS} FROM wfc.placements WHERE namespace = $1"

LIST_PLACEMENTS = f"""
SELECT {_COLUMNS} FROM wfc.placements WHERE namespace > $1 ORDER BY namespace LIMIT $2
"""

ADD_PLACEMENT = """
INSERT INTO wfc.placements (namespace, database, generation, moving_to, move_phase, move_detail)
VALUES ($1, $2, $3::bigint, $4, $5, $6::jsonb)
ON CONFLICT DO NOTHING
"""

CHANGE_PLACEMENT = """
UPDATE wfc.placements SET database = $2, generation = $3::bigint, moving_to = $4, move_phase = $5,
    move_detail = coalesce($6::jsonb, move_detail), changed = now()
WHERE namespace = $1 AND database = $7 AND generation = $8::bigint
    AND move_phase IS NOT DISTINCT FROM $9
"""

# What remains of moves is dropped at once, whatever its grace was: it has the data, too.
REMOVE_PLACEMENT = f"""
WITH seen AS (
    SELECT namespace, coalesce(jsonb_array_length(move_detail -> 'remains'), 0) > 0 AS remains
    FROM wfc.placements
    WHERE namespace = $1 AND database = $2 AND generation = $3::bigint
        AND move_phase IS NOT DISTINCT FROM $4
    FOR UPDATE
), kept AS (
    UPDATE wfc.placements p
    SET move_phase = '{DELETED}', moving_to = NULL, generation = generation + 1, changed = now(),
        move_detail = jsonb_build_object('remains', (
            SELECT jsonb_agg(r || '{{"until": 0}}')
            FROM jsonb_array_elements(move_detail -> 'remains') r))
    FROM seen WHERE p.namespace = seen.namespace AND remains
    RETURNING 1
), removed AS (
    DELETE FROM wfc.placements p USING seen WHERE p.namespace = seen.namespace AND NOT remains
    RETURNING 1
)
SELECT 1 FROM kept UNION ALL SELECT 1 FROM removed
"""

COUNT_PLACEMENTS = f"""
SELECT count(*) FROM wfc.placements
WHERE database <> 'home' AND move_phase IS DISTINCT FROM '{DELETED}'
"""


def put_last(cache: OrderedDict[str, T], name: str, value: T, max_size: int) -> None:
    """Make an entry the most recently used one; evict the least recently used beyond `max_size`."""
    cache[name] = value
    cache.move_to_end(name)
    if len(cache) > max_size:
        cache.popitem(last=False)


class Found:
    """When the directory had first said where a namespace is: of so many it is remembered. 0: there
    is one database, so nothing is asked."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def at(self, store: Store) -> float:
        """See `Store.found_at`: now, unless it is remembered, as each move is another generation.
        (At home namespaces have none that the directory knows.)"""
        if not self._most:
            return float("-inf")
        if not store.generation:
            return monotonic()
        place = store.database.name, store.generation
        known = self._known.get(store.namespace)
        since = known[2] if known and known[:2] == place else monotonic()
        put_last(self._known, store.namespace, (*place, since), self._most)
        return since


class Placements:
    """The directory, in the default store. All changes are compare-and-set: they say what they have
    seen, and do nothing if that is no longer so. So any server may go on with what another began.

    A store of a schema version before 14 has no directory: all namespaces are at home.
    """

    def __init__(self, default: Store) -> None:
        self._default = default

    async def read(self, namespace: str) -> Placement | None:
        """Where a namespace is; None: at home, and not being moved, or it does not exist."""
        rows = await self._default.read_if_there(READ_PLACEMENT, text(namespace))
        return _placement(rows, 0) if rows is not None and rows.ntuples else None

    async def page(self, after: str, most: int) -> list[Placement]:
        """The next rows by name, at most so many."""
        rows = await self._default.read_if_there(LIST_PLACEMENTS, text(after), integer(most))
        return [_placement(rows, row) for row in range(rows.ntuples)] if rows is not None else []

    async def add(self, placement: Placement) -> bool:
        """Add a row; False: there is one."""
        done = await self._default.write_once(ADD_PLACEMENT, *_params(placement))
        return bool(done.command_tuples)

    async def change(self, seen: Placement, **changes: Any) -> Placement | None:
        """Change a row, if its database, generation and phase are still those that were seen;
        returns what it is now, or None: it was changed meanwhile, or is gone."""
        changed = replace(seen, **changes)
        done = await self._default.write_once(
            CHANGE_PLACEMENT, *_params(changed), *_params(seen)[1:3], _optional(seen.phase)
        )
        return changed if done.command_tuples else None

    async def remove(self, seen: Placement) -> bool:
        """Remove a row, under the same condition; if something remains of moves, it is kept as that
        of a namespace that was deleted, until that is dropped (`moving/mover.py`)."""
        done = await self._default.write_once(
            REMOVE_PLACEMENT, *_params(seen)[:3], _optional(seen.phase)
        )
        return bool(done.ntuples)


READ_FOR_UPDATE = f"SELECT {_COLUMNS} FROM wfc.placements WHERE namespace = %s FOR UPDATE"

RESERVE_PLACEMENT = """
INSERT INTO wfc.placements (namespace, database, generation, move_phase)
VALUES (%s, %s, %s, 'creating')
ON CONFLICT (namespace) DO UPDATE SET database = excluded.database,
    generation = excluded.generation, move_phase = excluded.move_phase, changed = now()
"""


async def read_for_update(
    connection: psycopg.AsyncConnection[Any], default: Store, namespace: str
) -> Placement | None:
    """The row of a namespace, locked to the end of the transaction."""
    cursor = await connection.execute(default.schema.qualify(READ_FOR_UPDATE).encode(), [namespace])
    row = await cursor.fetchone()
    if row is None:
        return None
    name, database, generation, moving_to, phase, _ = row
    return Placement(
        namespace=name,
        database=database,
        generation=generation,
        moving_to=moving_to,
        phase=phase,
    )


async def reserve(
    connection: psycopg.AsyncConnection[Any], default: Store, placement: Placement
) -> None:
    """Write the row of a namespace that is about to be created."""
    await connection.execute(
        default.schema.qualify(RESERVE_PLACEMENT).encode(),
        [placement.namespace, placement.database, placement.generation],
    )


async def count_placed(connection: psycopg.AsyncConnection[Any], default: Store) -> int:
    """How many namespaces are in other databases than the home."""
    cursor = await connection.execute(default.schema.qualify(COUNT_PLACEMENTS).encode())
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


SET_IDENTITY = """
INSERT INTO wfc.wfe_store AS o (owner_schema, namespace, database, generation, state)
VALUES (%s, %s, %s, %s, 'active')
ON CONFLICT (only_row) DO UPDATE SET generation = excluded.generation, state = 'active'
    WHERE (o.owner_schema, o.namespace, o.database, o.state)
        = (excluded.owner_schema, excluded.namespace, excluded.database, 'active')
"""


async def set_identity(
    connection: psycopg.AsyncConnection[Any], store: Store, placement: Placement
) -> bool:
    """Have a store say that it is the one of a row of the directory; False: it is another one's."""
    schema = store.schema
    cursor = await connection.execute(
        schema.qualify(SET_IDENTITY).encode(),
        [schema.owner, schema.namespace, placement.database, placement.generation],
    )
    return cursor.rowcount == 1


def _params(placement: Placement) -> list[Param]:
    return [
        text(placement.namespace),
        text(placement.database),
        integer(placement.generation),
        _optional(placement.moving_to),
        _optional(placement.phase),
        _optional(placement.detail),
    ]


def _optional(value: str | None) -> Param:
    return None if value is None else text(value)


def _read_optional(value: bytes | None) -> str | None:
    return None if value is None else read_text(value)


def _placement(rows: PGresult, row: int) -> Placement:
    detail = rows.get_value(row, 5)
    return Placement(
        namespace=read_text(rows.get_value(row, 0)),
        database=read_text(rows.get_value(row, 1)),
        generation=read_int8(rows.get_value(row, 2)),
        moving_to=_read_optional(rows.get_value(row, 3)),
        phase=_read_optional(rows.get_value(row, 4)),
        detail=None if detail is None else read_json(detail),
    )


async def side_by_side(
    stores: Iterable[Store], work: Callable[[Store], Awaitable[T]]
) -> list[tuple[Store, T]]:
    """Do work on stores, one after the other in each database, so that one that is slow or away
    holds up only its own. Raises the first error, when the work in the other databases is done."""
    parts: dict[Database, list[Store]] = {}
    for store in stores:
        parts.setdefault(store.database, []).append(store)

    async def do(part: list[Store]) -> list[tuple[Store, T]]:
        return [(store, await work(store)) for store in part]

    done: list[tuple[Store, T]] = []
    errors: list[BaseException] = []
    for result in await asyncio.gather(*map(do, parts.values()), return_exceptions=True):
        if isinstance(result, BaseException):
            errors.append(result)
        else:
            done += result
    if errors:
        raise errors[0]
    return done
