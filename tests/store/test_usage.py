"""How much a namespace stores is known well enough for its limit."""

from __future__ import annotations

import psycopg

from wfe_persistence.store.tables import Store
from wfe_persistence.store.usage import MAX_COUNTED_ROWS, usage

INSERT_LOCKS = b"INSERT INTO wfc.locks (resource) SELECT n FROM generate_series(1, 40) AS n"


async def test_a_wrong_estimate_does_not_make_a_namespace_full(
    store: Store, database_url: str
) -> None:
    """ANALYZE counts rows whose writer has not reported them, and then they are reported."""
    assert (await usage(store, 1)).rows == 0
    async with (
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as writer,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as vacuum,
    ):
        await writer.execute(INSERT_LOCKS)
        await vacuum.execute(b"ANALYZE wfc.locks")
        await writer.execute(b"SELECT pg_stat_force_next_flush()")
        await writer.execute(b"SELECT")
        assert (await usage(store, None)).rows == 80
        assert (await usage(store, MAX_COUNTED_ROWS + 1)).rows == 80
        assert (await usage(store, 60)).rows == 40
        assert (await usage(store, 40)).rows == 40
        assert (await usage(store, 30)).rows == 30  # no more is counted than needed
