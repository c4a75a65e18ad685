from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.fake_store import FakeStore
from wfe_persistence_client import PersistenceProvider, RetryPolicy, connect

#: Fast, so that tests do not wait; long enough to fail by itself and not by time.
FAST = RetryPolicy(max_attempts=5, initial_backoff=0.001, max_backoff=0.002)


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
