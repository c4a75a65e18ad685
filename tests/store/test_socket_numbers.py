"""The number of a broken connection's socket is that of another one at once."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
import uvloop

from tests.faults.chaos.network import Network
from wfe_persistence.store.postgres.connection import Connection
from wfe_persistence.store.postgres.pipeline import ConnectionLostError, Exchange
from wfe_persistence.store.postgres.prepared import Statement

_MOST = 100


async def _use(conninfo: str, reset: Callable[[], None]) -> None:
    connection = await Connection.connect(conninfo, autocommit=True)
    exchange = Exchange(connection)
    exchange.send([(Statement.unprepared("SELECT pg_sleep(60)", "sleep"), ())])
    reset()
    with pytest.raises(ConnectionLostError):
        async with asyncio.timeout(30):
            await exchange.complete()
    # Nobody has closed the connection yet. libpq has closed its socket.
    with ExitStack() as stack:
        for _ in range(_MOST):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            if connection.fd in (ours.fileno(), theirs.fileno()):
                break
        else:
            raise AssertionError("the socket's number is not free")
        if theirs.fileno() == connection.fd:
            ours, theirs = theirs, ours
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        loop.add_writer(ours, lambda: None)  # as connecting does
        loop.remove_writer(ours)
        loop.add_reader(ours, lambda: heard.put_nowait(ours.recv(1)))
        async with asyncio.timeout(30):
            theirs.send(b"a")
            assert await heard.get() == b"a"
            # And it is not this one's any more: whoever has it now is still told.
            await connection.close()
            theirs.send(b"b")
            assert await heard.get() == b"b"
        loop.remove_reader(ours)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_the_number_of_a_broken_socket_is_free_at_once(
    database_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    parts = urlparse(database_url)
    [behind] = parse_qs(parts.query)["host"]
    async with Network(Path(behind), random.Random(1)) as network:
        conninfo = (
            f"host=127.0.0.1 port={network.port} dbname={parts.path.lstrip('/')} "
            f"user={parts.username or 'postgres'} sslmode=disable gssencmode=disable"
        )
        here = asyncio.get_running_loop()

        def use() -> None:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(_use(conninfo, lambda: _call(here, network.reset)))

        await asyncio.to_thread(use)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Have it called in another thread's loop, a moment later."""
    loop.call_soon_threadsafe(loop.call_later, 0.2, what)
