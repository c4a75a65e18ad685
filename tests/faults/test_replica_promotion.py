"""A replica that becomes a primary, and servers that have only a standby."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.faults.test_crashes import status_of
from tests.faults.test_replicas import MODULE, ask, create, wait_until_usable
from tests.support import binaries, make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.expect import Failure, fails, read_failure
from tests.support.replicas import Member, Standby
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from tests.test_cli import run
from wfe.persistence.v1.event_pb2 import (
    CreateEventRequest,
    Event,
    GetEventRequest,
    ListEventsRequest,
)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def primary(directory: Path) -> Iterator[Member]:
    with Member(binaries.postgres(18), directory / "db1") as primary:
        yield primary


@pytest.fixture
def standby(directory: Path, primary: Member) -> Iterator[Standby]:
    with Standby(primary, directory / "db2") as standby:
        yield standby


def either(*members: Member) -> str:
    """A connection string that finds the one that is the primary."""
    hosts = ",".join(str(member.directory) for member in members)
    return f"host={hosts} user=postgres dbname=postgres target_session_attrs=read-write"


class Load:
    """Clients each of which writes, and reads what it has written from a replica."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stops = False
        self.rounds = 0
        self.replica_reads = 0
        self.failures: list[Failure] = []
        self.created: list[str] = []
        self.missed: list[str] = []

    async def run(self) -> None:
        position = ""
        while not self._stops:
            event = make.event()
            try:
                _, told = await ask(self._api.events.CreateEvent, CreateEventRequest(event=event))
            except grpc.aio.AioRpcError as exc:
                self.failures.append(read_failure(exc))
                await asyncio.sleep(0.05)
                continue
            position = told["wfe-lsn"]
            self.created.append(event.id)
            try:
                _, told = await ask(
                    self._api.events.GetEvent,
                    GetEventRequest(id=event.id),
                    wfe_read="replica",
                    wfe_lsn=position,
                )
            except grpc.aio.AioRpcError as exc:
                failure = read_failure(exc)
                self.failures.append(failure)
                if failure.reason == "EVENT_NOT_FOUND":
                    self.missed.append(event.id)
                continue
            self.replica_reads += told["wfe-read"] == "replica"
            self.rounds += 1

    async def goes_on(self, more: int = 50) -> None:
        """Until that many more have succeeded."""
        target = self.rounds + more
        async with asyncio.timeout(60):
            while self.rounds < target:
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._stops = True


async def test_a_replica_is_promoted_under_load_when_the_primary_is_lost(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """Nothing that was acknowledged is missed by whoever has written it, before or after: with a
    synchronous standby nothing is lost, and a position of the old timeline is not misread."""
    primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.name}'")
    primary.execute("SELECT pg_reload_conf()")
    # It comes back as the primary of nobody, as one that follows it would name both.
    urls = "--db-url", either(primary, standby), "--db-read-url", standby.url
    with AdminServer(directory / "log", *urls) as server:
        wait_until_usable(server)
        async with connect(server.address) as channel:
            api = Api(channel)
            _, before = await create(api)
            load = Load(api)
            clients = [asyncio.create_task(load.run()) for _ in range(4)]
            await load.goes_on()
            assert load.replica_reads, "nothing was read from the replica"
            await asyncio.to_thread(primary.crash)
            await asyncio.to_thread(standby.promote)
            standby.execute("ALTER SYSTEM RESET synchronous_standby_names")
            standby.execute("SELECT pg_reload_conf()")
            await load.goes_on()
            load.stop()
            await asyncio.gather(*clients)
            assert not load.missed
            _, after = await create(api)
            stored = {event.id async for event in _events(api)}
            assert set(load.created) <= stored
        reasons = {failure.reason for failure in load.failures}
        assert reasons <= {"COMMIT_OUTCOME_UNKNOWN", "DATABASE_UNAVAILABLE"}, reasons
        assert [each.split("/")[1] for each in (before, after)] == ["00000001", "00000002"]
        assert before < after
        wait_until_usable(server, usable=0)
        assert "replica home/1 is left out: it is no standby (any more)" in server.log()
        assert "bug" not in server.log()
    print(f"{len(load.created)} created, {load.replica_reads} read from the replica")


async def _events(api: Api) -> AsyncIterator[Event]:
    request = ListEventsRequest(page_size=1000)
    while True:
        page, _ = await ask(api.events.ListEvents, request, wfe_read="primary")
        for event in page.events:
            yield event
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def test_a_replica_that_is_promoted_beside_its_primary_is_left_out(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """It goes its own way: positions of the one, however low, say nothing about the other."""
    urls = "--db-url", primary.url, "--db-read-url", standby.url
    with AdminServer(directory / "log", *urls) as server:
        wait_until_usable(server)
        async with connect(server.address) as channel:
            api = Api(channel)
            load = Load(api)
            clients = [asyncio.create_task(load.run()) for _ in range(4)]
            await load.goes_on()
            assert load.replica_reads, "nothing was read from the replica"
            await asyncio.to_thread(standby.promote)
            # Its WAL goes far beyond that of the primary.
            standby.execute("CREATE TABLE own AS SELECT repeat('x', 1000) FROM "
                            "generate_series(1, 100000)")  # fmt: skip
            await load.goes_on()
            load.stop()
            await asyncio.gather(*clients)
            assert not load.missed
            assert not load.failures
            id_, _ = await create(api)
            _, told = await ask(api.events.ListEvents, ListEventsRequest())
            assert told["wfe-read"] == "primary"
            assert id_ in {event.id async for event in _events(api)}
        wait_until_usable(server, usable=0)


async def test_positions_of_writes_that_were_lost_with_the_primary(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """No standby had received them, so nobody has them. What is read with their positions has all
    that is left, and waits for nothing for ever."""
    with (
        # (Of the standby, so that it follows where that leads.)
        Standby(standby, directory / "db3") as follower,
        AdminServer(
            directory / "log", "--db-url", either(primary, standby),
            "--db-read-url", follower.url, "--replica-max-lag", "600",
        ) as server,
    ):  # fmt: skip
        wait_until_usable(server)
        async with connect(server.address) as channel:
            api = Api(channel)

            async def get(id_: str, position: str) -> str:
                request = GetEventRequest(id=id_)
                metadata = {"wfe_read": "replica", "wfe_lsn": position}
                answer, told = await ask(api.events.GetEvent, request, **metadata)
                assert answer.event.id == id_
                return told["wfe-read"]

            kept, _ = await create(api)
            end = primary.execute("SELECT pg_current_wal_flush_lsn()")
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
            await asyncio.to_thread(wait_for, lambda: standby.execute(replayed))
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            standby.execute("SELECT pg_reload_conf()")
            receivers = "SELECT count(*) FROM pg_stat_wal_receiver"
            await asyncio.to_thread(wait_for, lambda: standby.execute(receivers) == 0)
            # Far beyond the place where the new timeline begins.
            fill = "CREATE TABLE own AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)"
            primary.execute(fill)
            lost, at_lost = await create(api)
            await asyncio.to_thread(primary.crash)
            await asyncio.to_thread(standby.promote)
            async with asyncio.timeout(60):
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        new, at_new = await create(api)
                        break
                    await asyncio.sleep(0.05)
            # So clients keep the new one, though its number is lower.
            assert at_new > at_lost
            assert at_new.split("/")[2] < at_lost.split("/")[2]
            await asyncio.to_thread(wait_until_usable, server)
            assert [await get(each, at_lost) for each in (kept, new)] == ["primary"] * 2
            with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
                await get(lost, at_lost)
            # Once the new timeline has come so far, it is a position as any other.
            standby.execute(fill)
            newer, at_newer = await create(api)
            assert at_newer.split("/")[2] > at_lost.split("/")[2]
            end = standby.execute("SELECT pg_current_wal_flush_lsn()")
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
            await asyncio.to_thread(wait_for, lambda: follower.execute(replayed))
            await asyncio.to_thread(wait_until_usable, server)
            assert [await get(each, at_lost) for each in (kept, newer)] == ["replica"] * 2
        assert "bug" not in server.log(), server.log()


LAST_LOOK = """
SELECT max(query_start) FROM pg_stat_activity
WHERE application_name = 'wfe-persistence' AND query LIKE '%hot_standby_feedback%'
"""
"""When a server has begun its last look at a replica."""


async def test_a_replica_of_an_older_timeline_lacks_what_is_on_the_new(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """The old primary's other standby has stayed behind, on a WAL that has gone further."""
    with Standby(primary, directory / "db3") as behind:
        with ServerProcess(directory / "first", "--db-url", primary.url) as server:
            async with connect(server.address) as channel:
                await Api(channel).create_event(make.event())
        wait_for(
            lambda: (
                primary.execute(
                    "SELECT count(*) FROM pg_stat_replication "
                    "WHERE replay_lsn = pg_current_wal_flush_lsn()"
                )
                == 2
            )
        )
        standby.promote()
        primary.execute("CREATE TABLE own AS SELECT repeat('x', 1000) FROM "
                        "generate_series(1, 10000)")  # fmt: skip
        wait_for(lambda: behind.execute("SELECT to_regclass('own')"))
        urls = "--db-url", standby.url, "--db-read-url", behind.url
        with AdminServer(
            directory / "log", *urls, "--replica-max-lag", "600", module=MODULE
        ) as server:
            async with connect(server.address) as channel:
                api = Api(channel)
                id_, position = await create(api)
                lsn = behind.execute("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
                assert int(position.split("/")[2], 16) < lsn
                # It is looked at, and so would be usable at the next look at the latest.
                known = 'replica_lag_bytes{standby="home/1"}'
                await asyncio.to_thread(wait_for, lambda: known in server.get("/metrics").text)
                for _ in range(2):
                    seen = behind.execute(LAST_LOOK)
                    await asyncio.to_thread(wait_for, lambda: behind.execute(LAST_LOOK) != seen)  # noqa: B023
                for _ in range(20):
                    answer, told = await ask(
                        api.events.GetEvent,
                        GetEventRequest(id=id_),
                        wfe_read="replica",
                        wfe_lsn=position,
                    )
                    assert (answer.event.id, told["wfe-read"]) == (id_, "primary")


async def test_a_replica_that_dies_is_left_out(
    directory: Path, primary: Member, standby: Standby
) -> None:
    urls = "--db-url", primary.url, "--db-read-url", standby.url
    with AdminServer(directory / "log", *urls) as server:
        wait_until_usable(server)
        async with connect(server.address) as channel:
            api = Api(channel)
            load = Load(api)
            clients = [asyncio.create_task(load.run()) for _ in range(4)]
            await load.goes_on()
            await asyncio.to_thread(standby.crash)
            begun = time.monotonic()
            await asyncio.to_thread(wait_until_usable, server, usable=0)
            print(f"left out after {time.monotonic() - begun:.1f} s")
            await load.goes_on()
            load.stop()
            await asyncio.gather(*clients)
        assert not load.failures
        # Each reason once: connections that break off, are refused, and find no socket any more.
        said = [json.loads(line)["message"] for line in server.log().splitlines()]
        reasons = [each for each in said if "can't connect to the database home/1" in each]
        assert len(reasons) == len(set(reasons)) <= 5, reasons


async def test_a_server_that_has_only_a_standby_is_not_serving(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """It says why once, answers reads, and serves as soon as it can write."""
    with ServerProcess(directory / "first", "--db-url", primary.url) as server:
        async with connect(server.address) as channel:
            event = make.event()
            await Api(channel).create_event(event)
    wait_for(lambda: standby.execute("SELECT count(*) FROM wfc.events") == 1)
    server = ServerProcess(
        directory / "log", "--db-url", standby.url, "--no-migrate", module=MODULE
    )
    await asyncio.to_thread(server.start)
    try:
        why = "not serving: the database is a standby, which takes no writes until it is promoted"
        await asyncio.to_thread(
            wait_for, lambda: _said(server, why) or status_of(server.address) == "SERVING"
        )
        assert run("health", "--target", server.address).stdout == "NOT_SERVING\n"
        assert _said(server, why)
        async with connect(server.address) as channel:
            api = Api(channel)
            assert (await api.get_event(event.id)).id == event.id
            with fails("UNAVAILABLE", "DATABASE_UNAVAILABLE"):
                await api.create_event(make.event())
            await asyncio.sleep(3)  # several looks
            assert _said(server, "not serving") == 1
            await asyncio.to_thread(standby.promote)
            await asyncio.to_thread(server.wait_until_serving)
            await api.create_event(make.event())
    finally:
        await asyncio.to_thread(server.stop)


def _said(server: ServerProcess, text: str) -> int:
    """How many messages of the log have a text in them."""
    with suppress(ValueError):
        return sum(text in json.loads(line)["message"] for line in server.log().splitlines())
    return 0
