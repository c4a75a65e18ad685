"""A namespace's tables in a database: their list, and the `Store` that runs SQL on them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Any, Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.columns import sql_list
from wfe_persistence.store.create_parts import is_stored
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS, Database
from wfe_persistence.store.postgres.pipeline import Command
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.reads import Reader
from wfe_persistence.store.queue_floors import Floors
from wfe_persistence.store.rows import Found, Param, PGresult
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.statement_names import statement_name
from wfe_persistence.store.together import MAX_BYTES, Each, Together

_OUTDATED: Final = ErrorReason.ERROR_REASON_SCHEMA_OUTDATED

MIGRATIONS_TABLE: Final = "wfe_migrations"
"""The table of applied migrations; a schema that has it is a namespace."""

STORE_TABLE: Final = "wfe_store"
"""The table of the one row that says whose store it is; see `owner.py`."""

PLACEMENTS_TABLE: Final = "placements"
"""The table of the namespaces that are not in the home database; see `placement.py`. Only that of
the default store has rows."""

SETS_TABLE: Final = "namespace_sets"
"""The table of the namespace sets; see `namespace_set.py`. Only that of the default store has
rows."""

TABLES: Final = (
    "workflows",
    "execution_pointers",
    "events",
    "event_subscriptions",
    "scheduled_commands",
    "queue_items",
    "queues",
    "execution_errors",
    "definition_sequences",
    "requests",
    "locks",
    "lifecycle_events",
    "lifecycle_feed",
    "workflow_changes",
    "workflow_feed",
    "sweeps",
    "retention_rules",
    "name_holders",
)
"""Every table that holds data, in the order in which they are locked: the same as writes lock them,
a workflow before its pointers."""


def qualified(*tables: str) -> str:
    """A list of tables in SQL, qualified with the default schema."""
    return sql_list(f"wfc.{table}" for table in tables)


# For the statements behind it in its transaction, so that it is nobody else's behind a PgBouncer.
WITHOUT_JIT: Final = """
SELECT set_config('jit', 'off', true)
"""


class Store:
    """A namespace's tables in a database; the functions of `store.*` run their SQL on it.

    `elsewhere`, called when the tables are not in the database where they were looked for: whether
    the namespace lives in another one now, having set that. `reads`: what is read from instead of
    the database, by a call that may use a replica.
    """

    def __init__(
        self,
        database: Database,
        schema: Schema,
        namespace: str,
        generation: int = 0,
        elsewhere: Callable[[Store, Database], Awaitable[bool]] | None = None,
        reads: Reader | None = None,
    ) -> None:
        self.database = database
        self.schema = schema
        self.namespace = namespace
        self.generation = generation
        """That of the row in the directory (`placement.py`); 0: there is none."""
        self.found_at = float("-inf")
        """When the directory had said where it is, by `time.monotonic`; -inf: it was not asked.
        A replica that does not have all since may have a copy that was not yet complete."""
        self._elsewhere = elsewhere
        self._reads = reads
        self.floors = Floors()
        """Where to begin in its queues."""
        self.patches_remembered = 0
        """How many patches with a request id there were, of which some forget old ones."""
        self._groups: dict[str, Together] = {}

    @property
    def reader(self) -> Reader:
        """What is read from: the database, or what a call reads from instead."""
        return self._reads or self.database

    def read_from(self, reads: Reader) -> Store:
        """The same tables, whose rows are read from a replica."""
        return Store(
            self.database, self.schema, self.namespace, self.generation, self._elsewhere, reads
        )

    async def read(self, sql: str, *params: Param) -> PGresult:
        """Run one statement that reads; it is run again if the connection breaks."""
        batch = [(self.schema.bind(sql), params)]
        database = self.database
        try:
            [result] = await self.reader.run(self.namespace, batch, write=False)
        except PersistenceError as exc:
            [result] = await self.run_elsewhere(exc, database, batch, write=False)
        return result

    async def run_elsewhere(
        self, error: PersistenceError, missed_in: Database, batch: Sequence[Command], **options: Any
    ) -> list[PGresult]:
        """Run again what has failed in a database, having changed nothing, because the namespace
        has moved. Raises the error if that was not the reason."""
        for _ in range(MAX_ATTEMPTS):  # it may move on meanwhile
            if not await self._has_moved(error, missed_in):
                raise error
            self._reads = None  # of the database where it was
            missed_in = self.database
            try:
                return await missed_in.run(self.namespace, batch, **options)
            except PersistenceError as exc:
                error = exc
        raise error

    async def _has_moved(self, error: PersistenceError, missed_in: Database) -> bool:
        return (
            error.reason == _OUTDATED
            and self._elsewhere is not None
            and await self._elsewhere(self, missed_in)
        )

    async def read_once(self, sql: str, *params: Param) -> PGresult:
        """Run a statement that reads without preparing it: it is seldom repeated, or its plan is
        better when the parameters are known."""
        batch = [(self._unprepared(sql), params)]
        database = self.database
        try:
            [result] = await self.reader.run(self.namespace, batch, write=False)
        except PersistenceError as exc:
            [result] = await self.run_elsewhere(exc, database, batch, write=False)
        return result

    async def read_if_there(self, sql: str, *params: Param) -> PGresult | None:
        """The same, in this database only; None: there is no such table, which is nothing to be
        logged."""
        batch = [(self._unprepared(sql), params)]
        try:
            [result] = await self.reader.run(
                self.namespace, batch, write=False, expected=(_OUTDATED,)
            )
        except PersistenceError as exc:
            if exc.reason == _OUTDATED:
                return None
            raise
        return result

    async def write_once(self, sql: str, *params: Param, jit: bool = True) -> PGresult:
        """Run one statement that writes in its own transaction, without preparing it.

        `jit` False: PostgreSQL does not compile it, however long it thinks that it will take.
        """
        batch = [(self._unprepared(sql), params)]
        if not jit:
            batch.insert(0, (self.schema.bind(WITHOUT_JIT), ()))
        database = self.database
        try:
            return (await database.run(self.namespace, batch, write=True))[-1]
        except PersistenceError as exc:
            return (await self.run_elsewhere(exc, database, batch, write=True))[-1]

    async def write_apart(self, sql: str, *params: Param) -> PGresult:
        """The same as `write`, for a statement that takes long: those have a part of the
        connections."""
        batch = [(self.schema.bind(sql), params)]
        database = self.database
        try:
            [result] = await database.run(self.namespace, batch, write=True, takes_long=True)
        except PersistenceError as exc:
            [result] = await self.run_elsewhere(exc, database, batch, write=True, takes_long=True)
        return result

    async def write(
        self, sql: str, *params: Param, final_constraints: Collection[str] = ()
    ) -> PGresult:
        """Run one statement that writes in its own transaction."""
        [result] = await self.write_all((sql, params), final_constraints=final_constraints)
        return result

    async def read_together(self, sql: str, *params: Param, each: Each) -> Found:
        """Run one statement that reads a row by its key, the first parameter, in one round trip
        with other calls of the same that come meanwhile. `each`: what is run then; it returns no
        row for what is large, as the answers to all of them are in memory at the same time."""
        return await self._together(sql, params, each, write=False)

    async def write_together(
        self,
        sql: str,
        *params: Param,
        each: Each | None = None,
        final_constraints: Collection[str] = (),
    ) -> Found:
        """Run one statement that writes, in one transaction with other calls of the same that come
        meanwhile, unless it is large. `each`: what is run then, instead of the same for each of
        them; it returns rows for what is simply done. What fails one of them, or makes it wait for
        longer than a moment, the others do not notice."""
        return await self._together(
            sql, params, each, write=True, final_constraints=final_constraints
        )

    async def _together(
        self,
        sql: str,
        params: Sequence[Param],
        each: Each | None,
        *,
        write: bool,
        final_constraints: Collection[str] = (),
    ) -> Found:
        group = self._groups.get(sql)
        if group is None:
            group = Together(self, sql, each, write, final_constraints)
            self._groups[sql] = group
        size = 0
        for param in params:
            if param:
                size += len(param)
        if size <= MAX_BYTES and (write or self._reads is None):
            key = (self.schema.name, self.schema.table_prefix, sql)
            found = await self.database.groups.run(key, group, params, size)
            if found is not None:
                return found
        [result] = await group.run([params])
        assert result is not None
        return result

    async def write_all(
        self, *commands: tuple[str, Sequence[Param]], final_constraints: Collection[str] = ()
    ) -> list[PGresult]:
        """Run several statements in one transaction and one round trip.

        A unique violation is retried, except of `final_constraints` (their names in the database):
        that raises UniqueViolation at once.
        """
        batch = [(self.schema.bind(sql), params) for sql, params in commands]
        database = self.database
        try:
            return await database.run(
                self.namespace, batch, write=True, final_constraints=final_constraints
            )
        except PersistenceError as exc:
            return await self.run_elsewhere(
                exc, database, batch, write=True, final_constraints=final_constraints
            )

    async def create(
        self,
        sql: str,
        *params: Param,
        exists: Callable[[], PersistenceError],
        taken: Callable[[], PersistenceError] | None = None,
        each: Each | None = None,
        check: Callable[[Found], None] | None = None,
    ) -> Found:
        """Run a create statement; it returns whether the row was created, whether the one that
        exists has the same content (NULL: none exists) and, with `taken`, whether another row has
        a value that must be unique. What it returns besides is for the caller. `each`: see
        `write_together`; None: it is run by itself. `check`: looks at what was returned if the row
        is not there.

        Raises `exists` if there is a row of other content, `taken` if another row has the value.
        """
        for _ in range(MAX_ATTEMPTS):
            row: Found = await (
                self.write_together(sql, *params, each=each) if each else self.write(sql, *params)
            )
            if is_stored(row, exists=exists, taken=taken):
                return row
            if check is not None:
                check(row)
        raise PersistenceError(
            ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
            "the create conflicted with concurrent transactions repeatedly",
            retry_after=0.1,
        )

    def stream(self, sql: str, *params: Param) -> AsyncGenerator[PGresult, None]:
        """Run one statement that reads and yield its rows one by one; see Database.stream."""
        return self._stream((self.schema.bind(sql), params))

    def stream_once(self, sql: str, *params: Param) -> AsyncGenerator[PGresult, None]:
        """The same, without preparing the statement."""
        return self._stream((self._unprepared(sql), params))

    def _stream(self, command: Command) -> AsyncGenerator[PGresult, None]:
        if self._elsewhere is None:
            return self.reader.stream(self.namespace, command)
        return self._stream_here_or_elsewhere(command)

    async def _stream_here_or_elsewhere(self, command: Command) -> AsyncGenerator[PGresult, None]:
        reader: Reader = self.reader
        for _ in range(MAX_ATTEMPTS):
            yielded = False
            database = self.database
            try:
                async with aclosing(reader.stream(self.namespace, command)) as rows:
                    async for row in rows:
                        yielded = True
                        yield row
            except PersistenceError as exc:
                error = exc
                if yielded or not await self._has_moved(exc, database):
                    raise
                reader = self.database
            else:
                return
        raise error

    def _unprepared(self, sql: str) -> Statement:
        return Statement.unprepared(self.schema.qualify(sql), statement_name(sql))
