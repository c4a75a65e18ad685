"""Which databases the service has, and what each says of itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from wfe.persistence.v1.store_pb2 import Database as Listed
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.database_size import database_size
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import read_text
from wfe_persistence.store.tables import Store

_ANSWER_SECONDS: Final = 2.0

LIST_DATABASES = """
SELECT current_setting('server_version')
"""


async def list_databases(namespaces: Namespaces) -> list[Listed]:
    """The databases, the home first."""
    default = namespaces.default

    async def describe(database: Database) -> Listed:
        listed = Listed(
            name=database.name,
            labels=[f"{key}={value}" for key, value in sorted(database.labels.items())],
            accepts_new=database.accepts_new,
        )
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                store = Store(database, default.schema, default.namespace)
                row = await store.read_once(LIST_DATABASES)
        except (PersistenceError, TimeoutError):
            return listed
        listed.reachable = True
        listed.postgres_version = read_text(row.get_value(0, 0)).split()[0]
        with suppress(PersistenceError, TimeoutError):
            listed.size_bytes = (await database_size(store)).bytes
        return listed

    return await asyncio.gather(*map(describe, namespaces.databases))
