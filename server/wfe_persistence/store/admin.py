"""The store as a whole: is the database fit, and empty the store."""

from __future__ import annotations

from dataclasses import dataclass

from wfe_persistence.store.rows import read_bool, read_int4, read_text
from wfe_persistence.store.tables import Store

OLDEST_POSTGRES = 14


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What matters of a PostgreSQL server."""

    version: str
    version_number: int
    encoding: str
    durable: bool

    def objections(self) -> list[str]:
        """Why this server can't use it: what would break, and what would lose acknowledged data."""
        found = []
        if self.version_number < OLDEST_POSTGRES * 10_000:
            found.append(f"PostgreSQL {self.version} is older than {OLDEST_POSTGRES}")
        if self.encoding != "UTF8":
            found.append(f"the database's encoding is {self.encoding}, it must be UTF8")
        return found


DATABASE_INFO = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('server_encoding'),
    current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'
"""


async def database_info(store: Store) -> DatabaseInfo:
    """Ask the database what it is."""
    row = await store.read(DATABASE_INFO)
    return DatabaseInfo(
        read_text(row.get_value(0, 0)).split()[0],
        read_int4(row.get_value(0, 1)),
        read_text(row.get_value(0, 2)),
        read_bool(row.get_value(0, 3)),
    )


TRUNCATE_ALL = """
TRUNCATE wfc.execution_errors, wfc.execution_pointers, wfc.event_subscriptions, wfc.events,
    wfc.scheduled_commands, wfc.definition_sequences, wfc.requests, wfc.workflows CASCADE
"""


async def truncate_all(store: Store) -> None:
    """Empty every table of the store."""
    await store.write(TRUNCATE_ALL)
