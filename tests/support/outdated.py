"""A store that a newer release has migrated, so that the servers of this one may not use it."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from tests.support.server import ServerProcess


async def outdate(server: ServerProcess, connection: psycopg.Connection[Any]) -> None:
    """Migrate the default namespace's store, and wait until this server refuses calls."""
    connection.execute("""
        INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server)
        VALUES (9999, '9999_newer', '', 9999)
    """)
    async with connect(server.address) as channel:
        api = Api(channel)

        async def is_refused() -> bool:
            return await failure_of(api.list_workflows()) is not None

        await eventually(is_refused, 60)
