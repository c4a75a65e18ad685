"""Stopping a statement in the middle, so that somebody can be killed there."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg

from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from tests.support.server import ServerProcess

_LOCK = 20_261_123


async def kill_before(
    server: ServerProcess,
    url: str,
    effect: tuple[str, str],
    victim: str,
    call: Callable[[Api], Awaitable[Any]],
) -> None:
    """Kill the server, or PostgreSQL, while a call is right before an effect: a table and what is
    done to it. Both are back afterwards."""
    table, operation = effect
    channel: grpc.aio.Channel
    async with connect(server.address) as channel:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            _stop_before(connection, table, operation)
            calling = asyncio.create_task(failure_of(call(Api(channel))))
            backend = await stopped_backend(url)
            if victim == "server":
                await asyncio.to_thread(server.kill)
            else:
                os.kill(backend, signal.SIGKILL)
            failure = await calling
            assert failure is not None
            assert failure.code == grpc.StatusCode.UNAVAILABLE, failure
    # Gone; or, with the test's lock released, done with a statement that nobody waits for any more.
    await eventually(lambda: _ended(url, backend))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TRIGGER stop_here ON wfc.{table}".encode())
    if victim == "server":
        await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.wait_until_serving)
    async with connect(server.address) as channel:
        # It may still be serving from before the kill, and about to find its connections broken.
        await eventually(lambda: _reaches_the_database(Api(channel)))


async def _reaches_the_database(api: Api) -> bool:
    failure = await failure_of(api.get_event("no such event"))
    return failure is not None and failure.code == grpc.StatusCode.NOT_FOUND


@contextmanager
def stopped_before(url: str, effect: tuple[str, str]) -> Iterator[None]:
    """Inside, statements stop right before an effect: a table and what is done to it."""
    table, operation = effect
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        _stop_before(connection, table, operation)
        try:
            yield
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
            connection.execute(f"DROP TRIGGER stop_here ON wfc.{table}".encode())


def _stop_before(connection: psycopg.Connection[Any], table: str, operation: str) -> None:
    """Let the next statement that does this wait for the test's advisory lock."""
    connection.execute(
        f"""
        CREATE OR REPLACE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock({_LOCK});
            RETURN coalesce(NEW, OLD);
        END $$;
        CREATE TRIGGER stop_here BEFORE {operation} ON wfc.{table}
            FOR EACH ROW EXECUTE FUNCTION stop_here();
        """.encode()
    )


async def stopped_backend(url: str) -> int:
    """The process of PostgreSQL that waits for the lock."""
    found: list[int] = []

    async def waits() -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ).fetchall()
        found.extend(pid for (pid,) in rows)
        return bool(found)

    await eventually(waits)
    return found[0]


async def _ended(url: str, backend: int) -> bool:
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [backend]
            ).fetchone()
    except psycopg.OperationalError:
        return False
    return row == (0,)
