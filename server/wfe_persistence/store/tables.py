"""One namespace's tables in a database: what every function of the store runs its SQL on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from psycopg import pq

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.db import MAX_ATTEMPTS, Database
from wfe_persistence.store.rows import Param, read_bool
from wfe_persistence.store.schema import Schema, Statement


class Store:
    """One namespace's tables in a database. What `store.*` functions run their SQL on."""

    def __init__(self, database: Database, schema: Schema, namespace: str) -> None:
        self.database = database
        self.schema = schema
        self.namespace = namespace

    async def read(self, sql: str, *params: Param) -> pq.abc.PGresult:
        """Run one reading statement; it is run again if the connection breaks."""
        batch = [(self.schema.bind(sql), params)]
        [result] = await self.database.run(self.namespace, batch, write=False)
        return result

    async def read_once(self, sql: str, *params: Param) -> pq.abc.PGresult:
        """Run a reading statement that is not worth preparing, because it hardly ever comes again,
        or is planned better with its parameters at hand."""
        batch = [(self._unprepared(sql), params)]
        [result] = await self.database.run(self.namespace, batch, write=False)
        return result

    async def write_once(self, sql: str, *params: Param) -> pq.abc.PGresult:
        """Run a writing statement that is not worth preparing, a transaction of its own."""
        batch = [(self._unprepared(sql), params)]
        [result] = await self.database.run(self.namespace, batch, write=True)
        return result

    async def write(self, sql: str, *params: Param) -> pq.abc.PGresult:
        """Run one writing statement, a transaction of its own."""
        batch = [(self.schema.bind(sql), params)]
        [result] = await self.database.run(self.namespace, batch, write=True)
        return result

    async def write_all(self, *commands: tuple[str, Sequence[Param]]) -> list[pq.abc.PGresult]:
        """Run several statements as one transaction, in one round trip."""
        batch = [(self.schema.bind(sql), params) for sql, params in commands]
        return await self.database.run(self.namespace, batch, write=True)

    async def create(
        self,
        sql: str,
        document: bytes,
        *,
        exists: PersistenceError,
        taken: PersistenceError | None = None,
    ) -> None:
        """Run a create statement; it returns whether the row was created, whether the one that
        exists has the same content (NULL: none exists) and, with `taken`, whether another row has
        a value that must be unique.

        Raises `exists` if there is a row of other content, `taken` if another row has the value.
        """
        for _ in range(MAX_ATTEMPTS):
            row = await self.write(sql, document)
            if read_bool(row.get_value(0, 0)):
                return
            same = row.get_value(0, 1)
            if same is not None:
                if read_bool(same):
                    return
                raise exists
            if taken is not None and read_bool(row.get_value(0, 2)):
                raise taken
            # The conflicting row was committed after the statement took its snapshot. The next
            # snapshot shows it, unless it has been deleted since.
        raise PersistenceError(
            ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
            "the create conflicted with concurrent transactions repeatedly",
            retry_after=0.1,
        )

    def stream(self, sql: str, *params: Param) -> AsyncGenerator[pq.abc.PGresult, None]:
        """Run one reading statement and answer row by row; see Database.stream."""
        return self.database.stream(self.namespace, (self.schema.bind(sql), params))

    def stream_once(self, sql: str, *params: Param) -> AsyncGenerator[pq.abc.PGresult, None]:
        """The same for a statement that is not worth preparing."""
        return self.database.stream(self.namespace, (self._unprepared(sql), params))

    def _unprepared(self, sql: str) -> Statement:
        return Statement(self.schema.qualify(sql).encode(), b"")
