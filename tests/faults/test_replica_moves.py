"""Reads from the replica of a database that a namespace has just been moved to."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import wfe_persistence_client
from tests.faults.test_replicas import MODULE, ask, create, export, wait_until_usable
from tests.support import binaries
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.replicas import Member, Standby
from tests.support.waiting import wait_for
from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.event_pb2 import GetEventRequest, ListEventsRequest
from wfe_persistence_client import Event

NAME = "moved"
IN_IT = {"wfe_namespace": NAME}

# The replica is left out of nothing because it lags, and what waits for it would wait for long.
SETTINGS = """
replica-max-lag = 600
replica-wait = 600

[databases.b]
url = "{b}"
read-urls = ["{standby}"]
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


# For the transaction, before anything is copied.
WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE state = 'active' AND query LIKE 'SELECT pg_create_logical_replication_slot%'
"""


async def listed(api: Api, **metadata: str) -> tuple[list[str], str | None]:
    """The events of the namespace, and where they were read."""
    answer, told = await ask(api.events.ListEvents, ListEventsRequest(), **IN_IT, **metadata)
    return [event.id for event in answer.events], told.get("wfe-read")


async def move_held_up(api: Api, home: Member) -> tuple[Any, psycopg.Connection[Any]]:
    """A move that has made the tables, and copies nothing as long as a transaction is open."""
    open_ = psycopg.connect(home.url)
    open_.execute("CREATE TABLE held_up (n int)")
    call: Any = api.store.MoveNamespace(pb.MoveNamespaceRequest(name=NAME, database="b"))
    async for response in call:
        if response.phase == pb.MOVE_PHASE_COPYING and home.execute(WAITS):
            return call, open_
    raise AssertionError("it did not wait")


async def test_what_was_moved_is_read_whole_and_old_positions_hold_nobody_up(
    directory: Path,
) -> None:
    """The replica has replayed the beginning of the copy, and not the switch. A position of the
    database that the namespace has left is none that a replica of the other one has."""
    program = binaries.postgres(18)
    logical = {"wal_level": "logical"}
    with (
        Member(program, directory / "home", logical) as home,
        Member(program, directory / "b", logical) as b,
        Standby(b, directory / "standby", logical) as standby,
    ):
        file = directory / "settings.toml"
        file.write_text(SETTINGS.format(b=b.url, standby=standby.url))
        # (No replica, but because of it the home tells positions.)
        urls = "--config", str(file), "--db-url", home.url, "--db-read-url", home.url
        with AdminServer(directory / "log", *urls, module=MODULE) as server:
            wait_until_usable(server, "b/1")
            async with (
                connect(server.address) as channel,
                wfe_persistence_client.connect(
                    server.address, namespace=NAME, reads="replica"
                ) as provider,
            ):
                api = Api(channel)
                create_request = pb.CreateNamespaceRequest(name=NAME, database="home")
                await api.store.CreateNamespace(create_request)
                id_, position = await create(api, **IN_IT)
                assert position.startswith("home.")
                event = Event(event_name="paid", event_key="k", event_data={})
                by_client = await provider.create_event(event)

                call, open_ = await move_held_up(api, home)
                with closing(open_):
                    end = b.execute("SELECT pg_current_wal_flush_lsn()")
                    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
                    await asyncio.to_thread(wait_for, lambda: standby.execute(replayed))
                    assert standby.execute(f"SELECT to_regclass('wfc_{NAME}.events')")
                    with standby.paused():
                        open_.rollback()
                        phases = [response.phase async for response in call]
                        assert phases[-1] == pb.MOVE_PHASE_MOVED
                        # (The first one finds out where it is.)
                        assert set((await listed(api))[0]) == {id_, by_client}
                        ids, source = await listed(api)
                        assert (set(ids), source) == ({id_, by_client}, "primary")
                        assert set(await export(api, **IN_IT)) >= {id_, by_client}
                        get = api.events.GetEvent, GetEventRequest(id=id_)
                        where = {"wfe_read": "replica", "wfe_lsn": position, **IN_IT}
                        answer, told = await ask(*get, **where)
                        assert (answer.event.id, told["wfe-read"]) == (id_, "primary")
                        assert (await provider.get_event(by_client)).id == by_client

                async with asyncio.timeout(60):
                    while (found := await listed(api))[1] != "replica":
                        assert set(found[0]) == {id_, by_client}
                assert set(found[0]) == {id_, by_client}
                later, position_there = await create(api, **IN_IT)
                assert position_there.startswith("b.")
                ids, source = await listed(api, wfe_lsn=position_there)
                assert (set(ids), source) == ({id_, by_client, later}, "replica")
                # It is not compared, however far the replica has come.
                assert (await listed(api, wfe_lsn=position))[1] == "primary"
            assert "bug" not in server.log(), server.log()
