"""Tokens, policies and keys that change under load: no call with good credentials fails, and what
is no longer good is refused soon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.access.conftest import OWN, POLICY, GuardedServer, bearer, running
from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe_persistence.access import tokens


async def allowed(api: Api, token: str) -> bool:
    """Whether a call with this token gets through."""
    failure = await failure_of(
        api.store.GetStoreInfo(
            GetStoreInfoRequest(), metadata=[("wfe-namespace", OWN), bearer(token)]
        )
    )
    if failure is None:
        return True
    assert failure.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return False


class Load:
    """Calls without pause, each with the token that is the current one at its start."""

    def __init__(self, api: Api, token: Callable[[], str]) -> None:
        self._api = api
        self._token = token
        self.calls = 0
        self.failures: list[str] = []
        self.stopped = False

    async def run(self) -> None:
        while not self.stopped:
            token = self._token()
            if not await allowed(self._api, token):
                self.failures.append(token)
            self.calls += 1

    async def more(self, calls: int = 200) -> None:
        """Wait for so many calls more."""
        until = self.calls + calls
        await eventually(lambda: _true(self.calls >= until), 60)


async def _true(value: bool) -> bool:
    return value


@asynccontextmanager
async def load(api: Api, token: Callable[[], str]) -> AsyncIterator[Load]:
    """Four clients that call all the time; none of their calls may fail."""
    running = Load(api, token)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(running.run())
        try:
            await running.more()
            yield running
            await running.more()
        finally:
            running.stopped = True
    assert running.failures == []


async def refused(api: Api, token: str) -> None:
    """Wait until a token does not get through any more."""

    async def is_refused() -> bool:
        return not await allowed(api, token)

    await eventually(is_refused)


async def accepted(api: Api, token: str) -> None:
    """Wait until a token gets through."""
    await eventually(lambda: allowed(api, token))


async def logged(guarded: GuardedServer, text: str, level: str) -> None:
    """Wait until the server has said something."""

    async def said() -> bool:
        entries = [json.loads(line) for line in guarded.server.log().splitlines()]
        return any(text in e["message"] and e["level"] == level for e in entries)

    await eventually(said)


async def test_tokens_are_replaced_one_after_the_other(guarded: GuardedServer) -> None:
    async with connect(guarded.server.address) as channel:
        api = Api(channel)
        current = guarded.create("host")
        await accepted(api, current)
        async with load(api, lambda: current) as running:
            for _ in range(3):
                old, new = current, guarded.create("host")
                await accepted(api, new)
                current = new
                entry = tokens.parse_tokens(guarded.token_file.read_bytes()).find(old)
                assert entry is not None
                await running.more(20)  # those with the old one, too, are finished
                tokens.revoke_tokens(guarded.token_file, [entry.id])
                await refused(api, old)


async def test_a_token_file_that_is_broken_changes_nothing_and_is_told_of_once(
    guarded: GuardedServer,
) -> None:
    good = guarded.token_file.read_bytes()
    async with connect(guarded.server.address) as channel:
        api = Api(channel)
        async with load(api, lambda: guarded.tokens["host"]) as running:
            for broken in (b"", b"{}", good[: len(good) // 2]):
                guarded.token_file.write_bytes(broken)
                await running.more()
            await logged(guarded, "tokens.json: is not valid JSON", "warning")
            new = guarded.directory / "tokens.new"
            new.write_bytes(good)
            new.replace(guarded.token_file)
            added = guarded.create("host")
            await accepted(api, added)
    lines = [line for line in guarded.server.log().splitlines() if "what it said before" in line]
    assert 1 <= len(lines) <= 3
    assert len(lines) == len(set(map(_message, lines)))


def _message(line: str) -> str:
    return str(json.loads(line)["message"])


async def test_a_policy_by_symbolic_links_as_kubernetes_does_it(
    postgres_url: str, tmp_path: Path
) -> None:
    """`policy.toml → ..data/policy.toml`, and `..data` goes from one directory to the next."""
    guarded = GuardedServer(tmp_path)
    versions = iter(range(100))

    def publish(text: str) -> None:
        directory = tmp_path / f"..{next(versions)}"
        directory.mkdir()
        (directory / "policy.toml").write_text(text)
        new = tmp_path / "..data_tmp"
        new.symlink_to(directory.name)
        new.replace(tmp_path / "..data")

    publish(POLICY)
    guarded.policy_file.unlink()
    guarded.policy_file.symlink_to("..data/policy.toml")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE access_links")
    with running(guarded, postgres_url.replace("/postgres?", "/access_links?")) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            stranger = guarded.tokens["stranger"]
            async with load(api, lambda: guarded.tokens["reader"]):
                assert not await allowed(api, stranger)
                publish(POLICY.replace('"token:reader"', '"token:reader", "token:stranger"'))
                await accepted(api, stranger)
                publish("[[grant]]\nprincipals = [")
                await logged(guarded, "policy.toml: is not valid TOML", "warning")
                assert await allowed(api, stranger)
                publish(POLICY)
                await refused(api, stranger)


async def test_keys_of_the_issuer_are_replaced(guarded: GuardedServer) -> None:
    """A key is published and used at once, so that calls come before the server knows of it."""
    issuer = guarded.issuer
    async with connect(guarded.server.address) as channel:
        api = Api(channel)
        async with load(api, lambda: issuer.token("host")) as running:
            for _ in range(3):
                issuer.rotate()
                await running.more()
            last = issuer.keys[-2]
            old = issuer.token("host", key=last)
            assert await allowed(api, old)
            issuer.keys.remove(last)
            issuer.publish()
            await refused(api, old)
            issuer.file.write_text("{")
            await logged(guarded, "jwks.json: is not valid JSON", "warning")
            assert await allowed(api, issuer.token("host"))
            issuer.publish()


@pytest.fixture(autouse=True)
def _fresh(guarded: GuardedServer) -> None:
    """Every test begins with the files of the first."""
    guarded.policy_file.write_text(POLICY)
    guarded.issuer.publish()
