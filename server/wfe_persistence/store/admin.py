"""The store as a whole: whether the database can be used, and truncating the store."""

from __future__ import annotations

from dataclasses import dataclass

from wfe_persistence.store.command import DUE_COMMAND
from wfe_persistence.store.lock import FREE_LOCK
from wfe_persistence.store.queue_waiting import QUEUE
from wfe_persistence.store.rows import read_bool, read_int4, read_text
from wfe_persistence.store.tables import TABLES, Store, qualified
from wfe_persistence.store.waiting import Waiters
from wfe_persistence.store.workflow_waiting import STATUS_KIND

OLDEST_POSTGRES = 14


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """The properties of a PostgreSQL server that matter to the store."""

    version: str
    version_number: int
    encoding: str
    durable: bool

    def objections(self) -> list[str]:
        """The reasons why the store can't use this PostgreSQL server; empty: it can."""
        found = []
        if self.version_number < OLDEST_POSTGRES * 10_000:
            found.append(f"PostgreSQL {self.version} is older than {OLDEST_POSTGRES}")
        if self.encoding != "UTF8":
            found.append(f"the database's encoding is {self.encoding}; it must be UTF8")
        return found


DATABASE_INFO = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('server_encoding'),
    current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'
"""


async def database_info(store: Store) -> DatabaseInfo:
    """Read the properties of the database."""
    row = await store.read(DATABASE_INFO)
    return DatabaseInfo(
        read_text(row.get_value(0, 0)).split()[0],
        read_int4(row.get_value(0, 1)),
        read_text(row.get_value(0, 2)),
        read_bool(row.get_value(0, 3)),
    )


READ_ONLY = "SELECT pg_is_in_recovery()"


async def why_read_only(store: Store) -> str:
    """Why the database takes no writes; empty: it is no standby. (Whether it is read-only by a
    setting, the sessions that are there would say only as it was when they began.)"""
    row = await store.read(READ_ONLY)
    if read_bool(row.get_value(0, 0)):
        return "the database is a standby, which takes no writes until it is promoted"
    return ""


TRUNCATE_ALL = f"""
TRUNCATE {qualified(*TABLES)}
    CASCADE
"""


async def truncate_all(store: Store) -> None:
    """Truncate every table of the store."""
    # It waits for all calls in progress, so only few connections of the pool may do it at once.
    async with store.database.lane.turn(store.schema.name):
        await store.write(TRUNCATE_ALL)


def stir_emptied(namespace: str, waiters: Waiters) -> None:
    """Have those looked at who wait in a namespace, after it was emptied or deleted."""
    waiters.stir_all(namespace, QUEUE, FREE_LOCK, DUE_COMMAND, *STATUS_KIND.values())
