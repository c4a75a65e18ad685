"""Limits of principals and namespaces, over the wire."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.access.conftest import FOREIGN, MODULE, OWN, POLICY, GuardedServer, bearer
from tests.support import make
from tests.support.api import Api, connect
from tests.support.bulk import create_events
from tests.support.expect import Failure, eventually, fails, failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest, CreateEventsRequest
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    GetStoreInfoRequest,
    ListNamespacesRequest,
)
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest
from wfe_persistence.access.policy import parse_policy
from wfe_persistence.rpc import limits as rpc_limits
from wfe_persistence.rpc.limits import Accounts


async def info(api: Api, token: str, namespace: str = OWN, **options: Any) -> Failure | None:
    """A call that costs little; how it failed."""
    metadata = [("wfe-namespace", namespace), bearer(token)]
    return await failure_of(
        api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=metadata, **options)
    )


async def limited(api: Api, token: str, namespace: str = OWN) -> bool:
    """Whether a call is refused because of a limit; it must not fail in another way."""
    failure = await info(api, token, namespace)
    assert failure is None or failure.reason == "CALLER_LIMITED", failure
    return failure is not None


@pytest.fixture
def api_url(guarded: GuardedServer) -> Iterator[str]:
    """The server's address; afterwards it has no limits."""
    yield guarded.server.address
    guarded.policy_file.write_text(POLICY)


def limit(guarded: GuardedServer, text: str) -> None:
    """Replace the limits; the server notices within about a second."""
    new = guarded.directory / "policy.new"
    new.write_text(f"{POLICY}\n{text}")
    new.replace(guarded.policy_file)


async def test_a_rate_is_kept_and_waiting_as_told_gets_every_call_through(
    guarded: GuardedServer, api_url: str
) -> None:
    rate, burst = 20, 5
    limit(
        guarded,
        f'[[limit]]\nprincipals = ["token:*"]\ncalls_per_second = {rate}\nburst = {burst}',
    )
    async with connect(api_url) as channel:
        api = Api(channel)
        reader, host = guarded.tokens["reader"], guarded.tokens["host"]
        await eventually(lambda: limited(api, host))
        # One at its limit takes nothing from another, who has all of its burst.
        calls = [info(api, host) for _ in range(4 * burst)] + [info(api, reader) for _ in range(3)]
        failures = await asyncio.gather(*calls)
        assert any(failures)
        assert failures[-3:] == [None] * 3
        # Whatever comes: never more than the rate and the burst.
        begin, admitted, refused = time.monotonic(), 0, 0
        while admitted < 30:
            failures = await asyncio.gather(*(info(api, host) for _ in range(10)))
            for failure in failures:
                if failure is None:
                    admitted += 1
                    continue
                refused += 1
                assert (failure.code, failure.reason) == (
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "CALLER_LIMITED",
                )
                assert failure.metadata == {
                    "limit": "calls_per_second",
                    "value": "20",
                    "principal": "token:host",
                }
                assert failure.retry_after is not None
                assert 0.01 <= failure.retry_after <= 1 / rate + 0.01
        assert admitted <= burst + rate * (time.monotonic() - begin) + 1
        assert refused
        # Who heeds RetryInfo is not refused again.
        for _ in range(3 * burst):
            failure = await info(api, reader)
            if failure is not None:
                assert failure.retry_after is not None
                await asyncio.sleep(failure.retry_after)
                assert await info(api, reader) is None


async def test_calls_in_progress_are_limited_for_each_principal_in_each_namespace_apart(
    guarded: GuardedServer, api_url: str
) -> None:
    limit(
        guarded,
        '[[limit]]\nprincipals = ["token:root"]\nnamespaces = ["*"]\nmax_calls = 2',
    )
    url = guarded.server_url
    async with connect(api_url) as channel:
        api = Api(channel)
        root = guarded.tokens["root"]
        expected = {"limit": "max_calls", "value": "2", "principal": "token:root", "namespace": OWN}

        async def at_limit(calls: int = 1) -> bool:
            failures = await asyncio.gather(*(info(api, root) for _ in range(calls)))
            found = [f for f in failures if f and f.metadata == expected]
            assert all(f.retry_after == 0.5 for f in found)
            return bool(found)

        await eventually(partial(at_limit, 20))  # the policy has been read again
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE wfc_own.workflows")
            request = make.instance()

            async def create() -> Failure | None:
                metadata = [("wfe-namespace", OWN), bearer(root)]
                return await failure_of(
                    api.workflows.CreateNewWorkflow(
                        CreateNewWorkflowRequest(instance=request), metadata=metadata, timeout=60
                    )
                )

            calls = [asyncio.create_task(create()) for _ in range(2)]
            await eventually(at_limit)
            # It has nothing to do with others, or with other namespaces.
            assert not await limited(api, root, FOREIGN)
            assert not await limited(api, guarded.tokens["host"])
            metadata = [("wfe-namespace", OWN), bearer(root)]
            await api.store.ListNamespaces(ListNamespacesRequest(), metadata=metadata)
            calls[0].cancel()  # a client that hangs up leaves its place, too

            async def free() -> bool:
                return not await limited(api, root)

            await eventually(free)
            connection.rollback()
            assert await calls[1] is None
        await eventually(free)


async def test_limits_change_under_load_without_a_failed_call_of_others(
    guarded: GuardedServer, api_url: str
) -> None:
    host, reader = guarded.tokens["host"], guarded.tokens["reader"]
    async with connect(api_url) as channel:
        api = Api(channel)
        stopped = False

        async def load() -> None:
            while not stopped:
                assert await info(api, reader) is None

        async def bad_policy_is_told_of() -> bool:
            return "policy.toml: limit 1: max_calls: must be an" in guarded.server.log()

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(load())
            try:
                for _ in range(2):
                    limit(guarded, '[[limit]]\nprincipals = ["token:host"]\nmax_calls = 1')
                    await eventually(lambda: two_at_a_time_are_too_many(api, host))
                    limit(guarded, '[[limit]]\nprincipals = ["token:host"]\nmax_calls = 0')
                    await eventually(bad_policy_is_told_of)
                    assert await two_at_a_time_are_too_many(api, host)
                    limit(guarded, "")

                    async def unlimited() -> bool:
                        return not await two_at_a_time_are_too_many(api, host)

                    await eventually(unlimited)
            finally:
                stopped = True


async def two_at_a_time_are_too_many(api: Api, token: str) -> bool:
    return any(await asyncio.gather(*(limited(api, token) for _ in range(20))))


async def test_what_is_remembered_of_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_limits, "_MAX_REMEMBERED", 100)
    policy = parse_policy(b'[[limit]]\nprincipals = ["token:*"]\nmax_calls = 1')
    accounts = Accounts()
    contexts = []

    class Context:
        def add_done_callback(self, callback: Any) -> None:
            self.done = callback

    for i in range(1000):
        context: Any = Context()
        of_principal = policy.limits(f"token:{i}", "default").of_principal
        assert of_principal
        accounts.enter([((f"token:{i}", ""), of_principal)], context)
        if i % 10:
            context.done(None)
        else:
            contexts.append(context)
    assert len(accounts) <= 100 + len(contexts)
    for context in contexts:
        context.done(None)
    assert len(accounts) == 100


@pytest.fixture(scope="module")
def open_server(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server without authentication that limits namespaces."""
    directory = tmp_path_factory.mktemp("open")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE limits_open")
    policy = directory / "policy.toml"
    policy.write_text(
        '[[limit]]\nnamespaces = ["rows", "rows_too"]\nmax_rows = 50\n'
        '[[limit]]\nnamespaces = ["bytes"]\nmax_mb = 2\n'
        '[[limit]]\nnamespaces = ["rate"]\ncalls_per_second = 0.01\n'
    )
    server = ServerProcess(
        directory / "log", "--policy-file", str(policy), "--allow-truncate",
        module=MODULE,
        env={
            **os.environ,
            "WFE_PERSISTENCE_DB_URL": postgres_url.replace("/postgres?", "/limits_open?"),
        },
    )  # fmt: skip
    with server:
        yield server
    assert '"message": "bug ' not in server.log(), server.log()


async def create_namespace(api: Api, name: str) -> None:
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))


async def test_a_namespace_that_is_full_of_rows_takes_writes_again_after_deletes(
    open_server: ServerProcess,
) -> None:
    async with (
        connect(open_server.address) as own,
        connect(open_server.address, namespace="rows") as channel,
    ):
        await create_namespace(Api(own), "rows")
        api = Api(channel)
        ids: list[str] = []

        async def is_full() -> bool:
            workflow = make.instance()
            failure = await failure_of(api.create(workflow))
            if failure is None:
                ids.append(workflow.id)
                return False
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert failure.reason == "NAMESPACE_FULL"
            assert failure.metadata == {"namespace": "rows", "limit": "max_rows", "value": "50"}
            assert failure.retry_after is None
            return True

        await eventually(is_full, 60)
        assert len(ids) >= 20  # a workflow and a pointer each
        with fails("RESOURCE_EXHAUSTED", "NAMESPACE_FULL"):
            await api.create_event(make.event())
        with fails("RESOURCE_EXHAUSTED", "NAMESPACE_FULL"):
            await create_events(api, [make.event()])
        await api.get_workflow_instance(ids[0])
        await api.get_runnable_instances()
        await Api(own).create(make.instance())  # other namespaces go on
        for id_ in ids:
            await api.delete_workflow(id_)

        async def has_space() -> bool:
            return not await is_full()

        await eventually(has_space, 60)


async def test_a_stream_of_bulk_requests_ends_when_its_namespace_is_full(
    open_server: ServerProcess,
) -> None:
    answered = 0

    async def requests() -> AsyncIterator[CreateEventsRequest]:
        while True:
            events = [CreateEventRequest(event=make.event()) for _ in range(5)]
            yield CreateEventsRequest(events=events)
            await asyncio.sleep(0.3)

    async with (
        connect(open_server.address) as own,
        connect(open_server.address, namespace="rows_too") as channel,
    ):
        await create_namespace(Api(own), "rows_too")
        with fails("RESOURCE_EXHAUSTED", "NAMESPACE_FULL"):
            async for answer in Api(channel).events.CreateEvents(requests(), timeout=90):
                answered += len(answer.results)
        listed = await Api(channel).list_events(page_size=1000)
        assert len(listed.events) == answered >= 50


async def test_a_stream_of_bulk_requests_keeps_the_rate(
    guarded: GuardedServer, api_url: str
) -> None:
    """It is held up, rather than refused."""
    rate, burst, count = 10, 2, 12
    limit(
        guarded,
        f'[[limit]]\nprincipals = ["token:host"]\ncalls_per_second = {rate}\nburst = {burst}',
    )
    async with connect(api_url) as channel:
        api = Api(channel)
        host = guarded.tokens["host"]

        async def is_limited() -> bool:
            return any(await asyncio.gather(*(info(api, host) for _ in range(2 * burst))))

        await eventually(is_limited)
        await asyncio.sleep(1 / rate + 0.05)  # for the call itself
        begin = time.monotonic()
        parts = [[make.event(is_processed=True)] for _ in range(count)]
        metadata = [("wfe-namespace", OWN), bearer(host)]
        results = await create_events(api, *parts, metadata=metadata)
        assert len(results) == count
        assert time.monotonic() - begin >= (count - burst - 1) / rate


async def test_a_namespace_that_is_full_of_bytes_takes_writes_again_when_they_are_given_back(
    open_server: ServerProcess,
) -> None:
    async with (
        connect(open_server.address) as own,
        connect(open_server.address, namespace="bytes") as channel,
    ):
        await create_namespace(Api(own), "bytes")
        api = Api(channel)

        async def is_full() -> bool:
            noise = os.urandom(100_000).hex()
            failure = await failure_of(api.create_event(make.event(event_data_json=f'"{noise}"')))
            assert failure is None or failure.metadata == {
                "namespace": "bytes", "limit": "max_mb", "value": "2",
            }, failure  # fmt: skip
            return failure is not None

        async def has_space() -> bool:
            return not await is_full()

        await eventually(is_full, 60)
        await api.truncate_all()
        await eventually(has_space, 60)


async def test_without_authentication_a_namespace_has_its_rate(open_server: ServerProcess) -> None:
    async with (
        connect(open_server.address) as own,
        connect(open_server.address, namespace="rate") as channel,
    ):
        await create_namespace(Api(own), "rate")
        api = Api(channel)
        await api.get_store_info()
        with fails("RESOURCE_EXHAUSTED", "CALLER_LIMITED") as failure:
            await api.get_store_info()
        assert failure.metadata == {
            "limit": "calls_per_second", "value": "0.01", "namespace": "rate",
        }  # fmt: skip
        assert failure.retry_after is not None
        assert 50 < failure.retry_after <= 100.1
        await Api(own).get_store_info()


def test_grants_without_authentication_are_refused_at_the_start(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    server = ServerProcess(
        tmp_path / "log", "--policy-file", str(policy), "--db-url", "postgresql://x@127.0.0.1:1/x"
    )
    with pytest.raises(AssertionError, match="have no effect without authentication"):
        server.start()
