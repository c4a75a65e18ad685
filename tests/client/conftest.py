from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.client.fake_store import FakeStore
from tests.support.server import ServerProcess, delete_a_workflow
from wfe_persistence_client import PersistenceProvider, RetryPolicy, connect

#: Fast, so that tests do not wait; long enough to fail by itself and not by time.
FAST = RetryPolicy(max_attempts=5, initial_backoff=0.001, max_backoff=0.002)


@pytest.fixture(scope="session")
def target(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of these tests' own: they leave commands behind, which the claims of the conformance
    suite would come across."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE client")
    url = postgres_url.replace("/postgres?", "/client?")
    log = tmp_path_factory.mktemp("client") / "log"
    with ServerProcess(log, "--db-url", url, "--allow-delete-namespace") as server:
        delete_a_workflow(server.address)
        yield server.address
    assert "bug" not in server.log(), server.log()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FakeStore]:
    fake = FakeStore()
    await fake.start(f"unix:{tmp_path}/store.sock")
    yield fake
    await fake.stop()


@pytest.fixture
async def provider(store: FakeStore) -> AsyncIterator[PersistenceProvider]:
    async with connect(store.target, timeout=10, retry=FAST) as connected:
        yield connected
