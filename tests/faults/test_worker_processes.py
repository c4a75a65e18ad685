"""`--workers`: several processes that are one server to the outside, also when one of them dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.access.conftest import GuardedServer, bearer
from tests.support import make
from tests.support.api import Api
from tests.support.expect import eventually
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from tests.support.workers import Server, accepted, connections, several
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.store_pb2 import ListNamespacesRequest
from wfe_persistence_client import Event, connect


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[Server]:
    with several(tmp_path, database_url) as started:
        yield started
    assert "bug" not in started.log()
    assert "Traceback" not in started.log()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_all_workers_serve_one_address_evenly(
    tmp_path: Path, data_dir: Path, database_url: str, kind: str
) -> None:
    listen = ("--listen", f"unix:{data_dir}/socket") if kind == "unix" else ()
    with several(tmp_path, database_url, *listen) as server:

        async def is_even() -> bool:
            async with connections(server, 8) as apis:
                for api in apis:
                    await api.get_workflow_instances([])
                count = accepted(server)
            # (Not at the first attempt, if one got no time for a while, and so few connections.)
            return len(count) == 2 and 4 * min(count.values()) >= sum(count.values())

        await eventually(is_even, 60)
    assert not os.listdir(data_dir)


async def test_the_metrics_are_those_of_all_and_outlive_a_worker(server: Server) -> None:
    handled = 'grpc_server_handled_total{grpc_code="OK",grpc_method="CreateEvent"'
    seconds = 'grpc_server_handling_seconds_count{grpc_method="CreateEvent"'
    loaded = "wfe_persistence_pool_max_connections"
    async with connections(server, 6) as apis:
        for api in apis:
            for _ in range(5):
                await api.events.CreateEvent(CreateEventRequest(event=make.event()))
        await asyncio.to_thread(wait_for, lambda: server.metric(handled) == 30)
        assert server.metric(seconds) == 30
        assert server.metric('wfe_persistence_calls_in_progress{grpc_method="CreateEvent"') == 0
        assert server.metric(loaded) == 20
        assert server.metric('wfe_persistence_workers{state="ready"}') == 2
        assert server.metric("wfe_persistence_process_resident_memory_bytes") > 40_000_000
        assert server.metric("wfe_persistence_serving") == 1
    first = server.workers[0]
    first.kill()
    await asyncio.to_thread(wait_for, lambda: server.metric("wfe_persistence_worker_restarts") == 1)
    await asyncio.to_thread(server.wait_for, "/readyz", lambda answer: answer.status == 200)
    assert server.metric(handled) == 30  # it was asked just now, so nothing is lost
    assert server.metric(loaded) == 20
    assert server.metric("process_cpu_seconds_total") > 0


async def test_a_worker_that_is_killed_under_load_comes_back(server: Server) -> None:
    acknowledged: list[str] = []
    codes: set[grpc.StatusCode] = set()
    stopped = False

    async def write(api: Api) -> None:
        while not stopped:
            try:
                event = make.event()
                await api.events.CreateEvent(CreateEventRequest(event=event), timeout=10)
                acknowledged.append(event.id)
            except grpc.aio.AioRpcError as exc:
                codes.add(exc.code())

    async with connections(server, 6) as apis:
        load = [asyncio.create_task(write(api)) for api in apis]
        for _ in range(2):
            before = server.workers
            await asyncio.sleep(0.5)
            before[0].kill()
            count = len(acknowledged)
            await asyncio.to_thread(wait_for, lambda: len(acknowledged) > count + 20)  # noqa: B023
            await asyncio.to_thread(
                wait_for,
                lambda: len(server.workers) == 2 and server.get("/readyz").status == 200,
                30,
            )
            assert before[1].is_running()
            assert server.workers != before
        stopped = True
        await asyncio.gather(*load)
        assert codes <= {grpc.StatusCode.UNAVAILABLE}
        for event_id in acknowledged:
            assert await apis[0].events.GetEvent(GetEventRequest(id=event_id))
    said = re.findall(r"worker (\d) was ended by SIGKILL", server.log())
    assert sorted(said) == ["0", "1"]  # the one that has run for longest, each time


async def test_all_drain_under_load(tmp_path: Path, database_url: str) -> None:
    with several(tmp_path, database_url) as server:
        processes = [psutil.Process(server.process.pid), *server.workers]
        unexpected: list[Any] = []
        acknowledged: list[str] = []

        async def write(api: Api) -> None:
            while True:
                event = make.event()
                try:
                    await api.events.CreateEvent(CreateEventRequest(event=event), timeout=10)
                    acknowledged.append(event.id)
                except grpc.aio.AioRpcError as exc:
                    if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                        unexpected.append(exc)
                    return

        async with connections(server, 6) as apis:
            load = [asyncio.create_task(write(api)) for api in apis]
            await asyncio.to_thread(wait_for, lambda: len(acknowledged) > 50)
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.gather(*load)
        assert unexpected == []
        assert not any(process.is_running() for process in processes)
    with several(tmp_path, database_url) as server:
        async with connections(server, 1) as [api]:
            for event_id in acknowledged:
                assert await api.events.GetEvent(GetEventRequest(id=event_id))


async def test_the_channels_of_a_client_are_spread(server: Server) -> None:
    async with connect(server.address, channels=4) as provider:
        for _ in range(200):
            assert await provider.get_events("none", "none") == []
            await asyncio.sleep(0.05)
            if sum(accepted(server).values()) == 4:
                break
        # Two each, unless two came at the same moment or a process got no time for a while.
        assert len(accepted(server)) == 2
        handled = 'grpc_server_handled_total{grpc_code="OK",grpc_method="GetEvents"'
        before = server.metric(handled)
        for _ in range(40):
            await provider.get_events("none", "none")
        await asyncio.to_thread(wait_for, lambda: server.metric(handled) == before + 40)
        server.workers[0].kill()
        for number in range(100):  # it tries again where that is safe
            created = await provider.create_event(
                Event(event_name="paid", event_key=str(number), event_data=None)
            )
            assert (await provider.get_event(created)).event_key == str(number)


def refusal(url: str, *arguments: str) -> str:
    """What a server says that can't serve."""
    done = subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "serve", "--db-url", url, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stranger_on_the_port_is_refused(server: Server, database_url: str, workers: str) -> None:
    port = int(server.address.rpartition(":")[2])
    said = refusal(database_url, "--listen", server.address, "--workers", workers)
    assert f"can't listen on {server.address}" in said
    # Nor is one who would share it.
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
    assert server.get("/readyz").status == 200


def test_the_port_of_a_single_server_is_refused_too(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as single:
        said = refusal(database_url, "--listen", single.address, "--workers", "2")
    assert f"can't listen on {single.address}" in said


async def test_a_hung_worker_is_named_and_gets_no_connections(server: Server) -> None:
    hung = server.workers[0]
    hung.suspend()
    try:
        async with connections(server, 4) as apis:
            for api in apis:
                await api.get_workflow_instances([])
        answer = await asyncio.to_thread(server.wait_for, "/livez", lambda a: a.status == 503)
        assert "[-]worker-" in answer.text
        text = server.get("/readyz?verbose").text
        assert "it has said nothing for" in text
        assert text.count("[-]worker-") == 1
    finally:
        hung.resume()
    await asyncio.to_thread(server.wait_for, "/readyz", lambda a: a.status == 200)


def test_none_is_left_when_the_supervisor_is_killed(server: Server) -> None:
    workers = server.workers
    server.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert "the supervisor has ended" in server.log()
    server.start()  # the port is free again
    server.wait_until_serving()


def test_what_one_can_not_serve_none_can(tmp_path: Path, database_url: str) -> None:
    said = refusal(
        database_url, "--workers", "2", "--listen", "127.0.0.1:0",
        *("--token-file", str(tmp_path / "none"), "--policy-file", str(tmp_path / "none")),
    )  # fmt: skip
    assert "can't serve" in said


def test_a_hangup_reaches_all(tmp_path: Path, database_url: str) -> None:
    audit = tmp_path / "audit"

    async def write(server: Server) -> None:
        async with connections(server, 6) as apis:
            for api in apis:
                await api.events.CreateEvent(CreateEventRequest(event=make.event()))

    with several(tmp_path, database_url, "--audit-log", str(audit)) as server:
        asyncio.run(write(server))
        wait_for(lambda: audit.read_text().count("CreateEvent") == 6)
        audit.rename(tmp_path / "audit.1")
        server.process.send_signal(signal.SIGHUP)
        wait_for(audit.exists)
        time.sleep(0.2)
        asyncio.run(write(server))
        wait_for(lambda: audit.read_text().count("CreateEvent") == 6)
        assert len(server.workers) == 2
    assert (tmp_path / "audit.1").read_text().count("\n") == 6
    assert all(json.loads(line) for line in audit.read_text().splitlines())


async def test_new_tokens_are_good_at_all_of_them(tmp_path: Path, database_url: str) -> None:
    files = GuardedServer(tmp_path)
    # The admin port wants credentials, too, and has them anew.
    server = several(tmp_path, database_url, *files.arguments)
    server.start()
    try:
        headers = {"authorization": f"Bearer {files.tokens['root']}"}
        server.wait_for("/readyz", lambda answer: answer.status == 200)
        assert server.get("/metrics").status == 401
        assert server.get("/metrics", headers).status == 200
        late = files.create("reader")
        async with connections(server, 6) as apis:
            for api in apis:

                async def allowed(api: Api = api) -> bool:
                    call = api.store.ListNamespaces(
                        ListNamespacesRequest(), metadata=[bearer(late)]
                    )
                    return await call.code() is grpc.StatusCode.OK

                await eventually(allowed, 30)
    finally:
        assert server.stop() == 0


def test_one_worker_is_no_supervisor(tmp_path: Path, database_url: str) -> None:
    names = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    log = tmp_path / "log"
    with ServerProcess(log, "--db-url", database_url, "--workers", "1", env=names) as server:
        assert psutil.Process(server.process.pid).children() == []
    assert "wfe_persistence.app" in server.log()
    assert "wfe_persistence.processes" not in server.log()


def test_the_embedded_database_is_one(tmp_path: Path, data_dir: Path) -> None:
    arguments = ("--data-dir", str(data_dir), "--workers", "2")
    with Server(tmp_path / "log", *arguments) as server:
        assert len(server.workers) == 2
        assert len(list(data_dir.glob("*/postmaster.pid"))) == 1
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert server.stop() == 0
        assert not any(process.is_running() for process in processes)


async def test_the_service_manager_hears_of_all(tmp_path: Path, database_url: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(30)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            server = several(tmp_path, database_url)
            server.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        told = ""
        try:
            while "READY=1" not in told:
                told += end.recv(4096).decode() + "\n"
            assert server.get("/readyz").status == 200
        finally:
            assert server.stop() == 0
        end.settimeout(1)
        assert "STOPPING=1" in end.recv(4096).decode()
    assert told.count("READY=1") == 1
