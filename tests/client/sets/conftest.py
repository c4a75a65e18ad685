from collections.abc import AsyncIterator, Iterator

import pytest

from tests.client.conftest import FAST
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    NamespaceSetProvider,
    PersistenceProvider,
    connect,
    connect_blocking,
)

#: How many members the sets have.
MEMBERS = 4


@pytest.fixture(scope="session")
def set_server(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of these tests' own, with a set `orders` and a namespace `alone` to compare with."""
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE sets")
    url = postgres_url.replace("/postgres?", "/sets?")
    log = tmp_path_factory.mktemp("sets") / "log"
    with ServerProcess(log, "--db-url", url, "--allow-delete-namespace") as server:
        with connect_blocking(server.address) as provider:
            provider.with_timeout(120).create_namespace_set("orders", MEMBERS)
            provider.create_namespace("alone")
        yield server
    assert "bug" not in server.log(), server.log()


@pytest.fixture
async def orders(set_server: ServerProcess) -> AsyncIterator[NamespaceSetProvider]:
    async with connect(set_server.address, namespace_set="orders", retry=FAST) as provider:
        assert isinstance(provider, NamespaceSetProvider)
        yield provider


@pytest.fixture
async def alone(set_server: ServerProcess) -> AsyncIterator[PersistenceProvider]:
    async with connect(set_server.address, namespace="alone", retry=FAST) as provider:
        yield provider
