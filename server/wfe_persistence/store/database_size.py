"""How many bytes a database has.

PostgreSQL asks the file system for the size of each file, which takes seconds where there are
hundreds of thousands, as with thousands of namespaces. Then what its catalog says has to do: what
each table had when it was last vacuumed or analyzed.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from wfe_persistence.store.rows import read_int8
from wfe_persistence.store.tables import Store

# How long (seconds) each answer may take.
_SECONDS: Final = 1.0
_ESTIMATE_SECONDS: Final = 2.0

DATABASE_BYTES: Final = "SELECT pg_database_size(current_database())"

ESTIMATED_BYTES: Final = """
SELECT coalesce(sum(greatest(relpages, 0)), 0)::bigint * current_setting('block_size')::bigint
FROM pg_class
"""


class Size(NamedTuple):
    """The size of a database."""

    bytes: int
    is_estimated: bool


async def database_size(store: Store) -> Size:
    """The size of the database of a store. Raises PersistenceError, or TimeoutError if there is no
    answer."""
    try:
        async with asyncio.timeout(_SECONDS):
            rows = await store.read_once(DATABASE_BYTES)
        return Size(read_int8(rows.get_value(0, 0)), is_estimated=False)
    except TimeoutError:
        pass
    async with asyncio.timeout(_ESTIMATE_SECONDS):
        rows = await store.read_once(ESTIMATED_BYTES)
    return Size(read_int8(rows.get_value(0, 0)), is_estimated=True)
