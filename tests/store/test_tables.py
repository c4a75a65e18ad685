"""The list of tables is the one that the migrations create."""

from __future__ import annotations

from wfe_persistence.store.rows import read_text
from wfe_persistence.store.tables import (
    MIGRATIONS_TABLE,
    PLACEMENTS_TABLE,
    SETS_TABLE,
    STORE_TABLE,
    TABLES,
    Store,
)

CREATED_TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'wfc'::regnamespace AND c.relkind IN ('r', 'p')
"""


async def test_tables_are_those_that_the_migrations_create(store: Store) -> None:
    rows = await store.read(CREATED_TABLES)
    created = [read_text(rows.get_value(i, 0)) for i in range(rows.ntuples)]
    assert sorted(created) == sorted(
        [MIGRATIONS_TABLE, STORE_TABLE, PLACEMENTS_TABLE, SETS_TABLE, *TABLES]
    )
