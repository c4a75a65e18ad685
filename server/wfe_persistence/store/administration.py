"""Connections for administration, outside the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg

from wfe_persistence.store.postgres.reachability import unavailable, why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.postgres.sqlstate import refusal

# What the role or the database may have set, and a migration must not depend on: it may take long,
# and its functions are those of PostgreSQL. For this transaction only; the names that this
# PostgreSQL has.
INDEPENDENT = """
SELECT set_config(name, value, true)
FROM pg_settings JOIN (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'), ('lock_timeout', '0'),
    ('search_path', 'pg_catalog'), ('standard_conforming_strings', 'on')) AS wanted (name, value)
    USING (name)
"""


LOCK_SECONDS: Final = 1.0
"""How long a migration waits for the lock of a table, and others for it, before it gives way."""

LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %s, true)"


async def wait_briefly(connection: psycopg.AsyncConnection[Any]) -> None:
    """From now on, to the end of the transaction, a lock that is not to be had soon is an error."""
    await connection.execute(LOCK_TIMEOUT, [f"{LOCK_SECONDS * 1000:.0f}"])


@asynccontextmanager
async def connect(connector: Connector) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection for administration, outside the pool.

    PostgreSQL's errors on connecting and within the block become PersistenceErrors, unless only a
    bug or an object that is in the way explains them.
    """
    try:
        connection = await connector.connect(
            psycopg.AsyncConnection.connect, autocommit=True, prepare_threshold=None
        )
    except psycopg.Error as exc:
        raise unavailable(why(exc)) from exc
    # Not that of the role: who has waited for a lock must see what was committed meanwhile.
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    async with connection:
        try:
            yield connection
        except psycopg.Error as exc:
            lost = "08000" if isinstance(exc, psycopg.OperationalError) else ""
            if error := refusal(exc.sqlstate or lost, why(exc)):
                raise error from exc
            raise
