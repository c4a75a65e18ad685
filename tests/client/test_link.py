"""A provider and its connection: why there is none, how long it waits, and whose it is."""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import wfe_persistence_client
from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, answers, fails, hangs
from tests.client.test_calls import EVENT
from tests.support.ports import free_port
from wfe.persistence.v1 import event_pb2, store_pb2, workflow_pb2
from wfe_persistence_client import (
    CommitOutcomeUnknown,
    DeadlineExceeded,
    PersistenceProvider,
    RetryPolicy,
    Unavailable,
    WorkflowView,
    connect,
    connect_blocking,
)

INFO = answers(store_pb2.GetStoreInfoResponse(namespace="n"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def server_that_says(reply: bytes) -> AsyncIterator[str]:
    """Something that is no gRPC server: it replies the same to whatever it reads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def error_at(target: str, credentials: grpc.ChannelCredentials | None = None) -> Unavailable:
    async with connect(target, timeout=0.5, credentials=credentials) as provider:
        with pytest.raises(Unavailable) as caught:
            await provider.persist_errors([])
    error = caught.value
    assert type(error) is Unavailable
    assert error.reason == "SERVER_UNREACHABLE"
    assert not error.maybe_written
    assert str(error).startswith(f"SERVER_UNREACHABLE: no connection to {target}: ")
    return error


# Why there is no connection


async def test_a_refused_port() -> None:
    target = f"127.0.0.1:{free_port()}"
    assert "Connection refused" in str(await error_at(target))


async def test_an_unknown_name() -> None:
    target = "no-such-host.invalid:50052"
    error = str(await error_at(target))
    assert "resol" in error or "lookup" in error


async def test_a_socket_that_does_not_exist(tmp_path: Path) -> None:
    assert "No such file" in str(await error_at(f"unix:{tmp_path}/none.sock"))


async def test_a_server_of_http_1() -> None:
    reply = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    async with server_that_says(reply) as target:
        assert "http1" in str(await error_at(target))


async def test_plaintext_against_tls() -> None:
    # A fatal alert, unexpected_message, as TLS servers answer what is no handshake.
    async with server_that_says(b"\x15\x03\x01\x00\x02\x02\x0a") as target:
        assert "TLS" in str(await error_at(target))


async def test_tls_against_plaintext(store: FakeStore) -> None:
    error = await error_at(store.target, grpc.ssl_channel_credentials())
    assert "handshake failed" in str(error).lower()


async def test_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    error = str(await error_at("server.invalid:50052"))
    assert f"127.0.0.1:{port}" in error
    assert "http_proxy" in error
    assert "secret" not in error


@pytest.mark.parametrize(
    "target", ["http://localhost:50052", "https://example.com", "grpc://x:1", "tcp://x:1", "", " "]
)
async def test_what_is_no_target_is_refused_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        connect(target)


@pytest.mark.parametrize("scheme", ["unix:", "unix://"])
async def test_the_targets_of_grpc_are_targets(store: FakeStore, scheme: str) -> None:
    store.on("GetStoreInfo", INFO)
    async with connect(store.target.replace("unix:", scheme), timeout=10) as provider:
        assert (await provider.get_store_info()).namespace == "n"


# How long it waits


async def test_while_nothing_was_sent_the_deadline_decides(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/late.sock"
    late = FakeStore()
    late.on("PersistErrors", answers(store_pb2.PersistErrorsResponse()))
    # Connecting fails more often than the policy allows attempts.
    async with connect(target, timeout=60, retry=RetryPolicy(max_attempts=2)) as provider:
        call = asyncio.create_task(provider.persist_errors([]))
        failures = 0
        while failures < 4:
            # gRPC's own backoff begins with 0.1 s.
            await asyncio.sleep(0.2)
            failures += 1
            assert not call.done()
        await late.start(target)
        await call
    assert late.count("PersistErrors") == 1
    await late.stop()


async def test_a_server_that_restarts_is_reconnected(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/again.sock"
    async with connect(target, timeout=60) as provider:
        for _ in range(3):
            server = FakeStore()
            server.on("GetStoreInfo", INFO)
            call = asyncio.create_task(provider.get_store_info())
            await asyncio.sleep(0.05)
            await server.start(target)
            await call
            assert (await provider.get_store_info()).namespace == "n"
            await server.stop()


async def test_without_retries_the_first_failure_to_connect_is_final() -> None:
    target = f"127.0.0.1:{free_port()}"
    async with connect(target, timeout=3600, retry=RetryPolicy(max_attempts=1)) as provider:
        with pytest.raises(Unavailable, match=target):
            await provider.get_store_info()


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 1e300, 2**70])
async def test_any_long_timeout_works(store: FakeStore, timeout: float) -> None:  # noqa: ASYNC109
    store.on("GetStoreInfo", INFO)
    async with connect(store.target, timeout=timeout) as provider:
        assert (await provider.get_store_info()).namespace == "n"
        assert (await provider.with_timeout(timeout).get_store_info()).namespace == "n"


async def test_the_real_server_takes_any_long_timeout(target: str) -> None:
    async with connect(target, timeout=float("inf")) as provider:
        workflow_ids = await provider.get_runnable_instances()
        assert isinstance(workflow_ids, list)
        assert await provider.get_workflow_instances(["none"]) == []
        await provider.persist_errors([])


async def test_closing_ends_the_wait_for_a_connection() -> None:
    provider = connect(f"127.0.0.1:{free_port()}", timeout=3600)
    calls = [asyncio.create_task(provider.persist_errors([])) for _ in range(3)]
    await asyncio.sleep(0.1)
    await provider.close()
    for call in calls:
        with pytest.raises(Unavailable, match="closed"):
            await call


async def test_closing_while_it_waits_after_a_lost_answer_does_not_hide_the_outcome(
    tmp_path: Path,
) -> None:
    server = FakeStore()
    server.on("CreateEvent", hangs())
    await server.start(f"unix:{tmp_path}/gone.sock")
    provider = connect(server.target, timeout=3600)
    call = asyncio.create_task(provider.create_event(EVENT))
    await server.called("CreateEvent")
    await server.stop()
    await asyncio.sleep(0.3)
    assert not call.done()
    await provider.close()
    with pytest.raises(CommitOutcomeUnknown):
        await call


# Nothing is left behind


Read = Callable[[PersistenceProvider], Awaitable[object]]


@pytest.mark.parametrize(
    ("rpc", "read"),
    [
        ("GetWorkflowInstances", lambda p: p.get_workflow_instances(["w"])),
        ("GetWorkflowInstance", lambda p: p.get_workflow_instance("w", view=WorkflowView.HEADER)),
        ("GetEvents", lambda p: p.get_events("n", "k")),
    ],
)
async def test_cancelled_calls_leave_no_tasks(
    store: FakeStore, provider: PersistenceProvider, rpc: str, read: Read
) -> None:
    store.on(rpc, hangs())
    store.on("GetStoreInfo", INFO)
    await provider.get_store_info()
    before = asyncio.all_tasks()
    patient = provider.with_timeout(3600)
    for turns in range(30):
        calls = [asyncio.ensure_future(read(patient)) for _ in range(10)]
        for _ in range(turns % 10):
            await asyncio.sleep(0)
        if turns >= 10:
            await asyncio.sleep(0.001 * (turns - 10))
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
    async with asyncio.timeout(10):
        # The fake has tasks too, on the same loop: those of its calls end when they do.
        while [task for task in asyncio.all_tasks() - before if "AioServer" not in repr(task)]:
            await asyncio.sleep(0.01)


async def test_a_stream_cancelled_just_when_it_begins_leaves_no_task(
    store: FakeStore, provider: PersistenceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begins(request: Any, context: Any) -> Any:
        await context.write(workflow_pb2.GetWorkflowInstancesResponse())
        await asyncio.Event().wait()

    store.on("GetWorkflowInstances", begins)
    store.on("GetStoreInfo", INFO)
    await provider.get_store_info()
    stub = provider._workflows
    method = stub.GetWorkflowInstances

    def cancelled_when_it_begins(*args: Any, **options: Any) -> Any:
        stream: Any = method(*args, **options)
        reader = asyncio.current_task()
        assert reader is not None
        # In the one turn of the loop between this and the reader's next step, gRPC takes no
        # notice of a cancellation.
        stream._preparation.add_done_callback(lambda _: reader.cancel())
        return stream

    monkeypatch.setattr(stub, "GetWorkflowInstances", cancelled_when_it_begins)
    before = asyncio.all_tasks()
    errors = []
    for _ in range(20):
        with pytest.raises(asyncio.CancelledError) as caught:
            await asyncio.create_task(provider.with_timeout(3600).get_workflow_instances(["w"]))
        # Kept, as those of `gather` may be: the call is not released.
        errors.append(caught.value)
    async with asyncio.timeout(10):
        while [task for task in asyncio.all_tasks() - before if "AioServer" not in repr(task)]:
            await asyncio.sleep(0.01)


async def test_cancelled_waits_for_a_connection_leave_no_tasks() -> None:
    async with connect(f"127.0.0.1:{free_port()}", timeout=3600) as provider:
        before = asyncio.all_tasks()
        for turns in range(20):
            calls = [asyncio.ensure_future(provider.get_store_info()) for _ in range(10)]
            await asyncio.sleep(0.005 * turns)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        async with asyncio.timeout(10):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0.01)


async def test_an_unclosed_provider_warns() -> None:
    provider = connect("localhost:1")
    copy = provider.with_timeout(5)
    del provider
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
        assert caught == []
        del copy
        gc.collect()
    [warning] = [w for w in caught if w.category is ResourceWarning]
    assert "localhost:1" in str(warning.message)


def test_an_unclosed_blocking_provider_warns_and_ends_its_thread() -> None:
    import threading

    before = set(threading.enumerate())
    provider = connect_blocking("localhost:1")
    [thread] = [t for t in set(threading.enumerate()) - before if "client" in t.name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del provider
        gc.collect()
        thread.join(10)
    assert not thread.is_alive()
    [warning] = [w for w in caught if w.category is ResourceWarning]
    assert "localhost:1" in str(warning.message)


async def test_a_closed_provider_does_not_warn(store: FakeStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with connect(store.target):
            pass
        # On the caller's channel, it is the caller who closes.
        channel = grpc.aio.insecure_channel(store.target)
        PersistenceProvider(channel)
        gc.collect()
        await channel.close()


# Whose it is


def test_another_event_loop_is_told() -> None:
    async def make() -> PersistenceProvider:
        return connect("localhost:1", timeout=1)

    provider = asyncio.run(make())
    for call in (provider.get_store_info, provider.with_timeout(1).list_namespaces):
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            asyncio.run(call())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(provider.get_workflow_instances(["w"]))
    # Its own loop is gone, so any other may close it.
    asyncio.run(provider.close())


async def test_another_event_loop_must_not_close_it(store: FakeStore) -> None:
    async with connect(store.target) as provider:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(provider.close()))


# What it logs


async def test_retries_and_reconnects_are_logged(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="wfe_persistence_client")
    passes = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EXHAUSTED")
    store.on("CreateEvent", passes, answers(event_pb2.CreateEventResponse(id="e")))
    async with connect(store.target, timeout=10, retry=FAST, token="secret") as provider:
        await provider.create_event(EVENT)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("wfe_persistence_client", logging.DEBUG)
    assert "CreateEvent: attempt 1 failed" in record.getMessage()
    assert "POOL_EXHAUSTED" in record.getMessage()

    caplog.clear()
    target = f"unix:{tmp_path}/late.sock"
    late = FakeStore()
    late.on("GetStoreInfo", INFO)
    async with connect(target, timeout=60, token="secret") as provider:
        call = asyncio.create_task(provider.get_store_info())
        await asyncio.sleep(0.1)
        await late.start(target)
        await call
    await late.stop()
    lost, found = (record.getMessage() for record in caplog.records)
    assert lost.startswith(f"no connection to {target}: ")
    assert found.startswith(f"connected to {target} after ")
    assert "secret" not in caplog.text


def test_the_version() -> None:
    assert wfe_persistence_client.__version__ == version("wfe-persistence")


# Signal handlers


def test_a_call_from_a_signal_handler_that_interrupts_one_is_refused() -> None:
    program = """
import signal, sys, threading, time
from wfe_persistence_client import connect_blocking

refused = []
done = threading.Event()
main = threading.get_ident()

def interrupt():
    # The main thread itself, so that what it waits for is interrupted.
    while not done.wait(0.002):
        signal.pthread_kill(main, signal.SIGUSR1)

with connect_blocking(sys.argv[1], timeout=0.02) as provider:
    def handler(*_):
        # Within a call of another handler there is nothing to try.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            provider.get_store_info()
        except Exception as exc:
            refused.append(str(exc))
        signal.signal(signal.SIGUSR1, handler)

    signal.signal(signal.SIGUSR1, handler)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    end = time.monotonic() + 40
    while time.monotonic() < end and sum("signal handler" in text for text in refused) < 20:
        try:
            provider.get_store_info()
        except Exception as exc:
            assert "no connection" in str(exc) or "no time" in str(exc), exc
    done.set()
    interrupting.join()
    # It works on.
    try:
        provider.get_store_info()
    except Exception as exc:
        assert "no connection" in str(exc), exc
print(sum("signal handler" in text for text in refused) >= 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, f"127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_help_of_connect_blocking_is_its_own() -> None:
    text = connect_blocking.__doc__
    assert text is not None
    assert "async" not in text
    assert "event loop is running" not in text
    assert "with connect_blocking(" in text
    # The arguments are those of `connect`.
    assert connect.__doc__ is not None
    assert text.endswith(connect.__doc__.partition("Args:")[2])


async def test_a_deadline_without_a_failure_says_where(store: FakeStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        async with connect(target, timeout=0.1) as provider:
            with pytest.raises(DeadlineExceeded, match=target):
                await provider.get_store_info()
