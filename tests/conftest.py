"""Fixtures: a PostgreSQL, a server in a process of its own, and the API of it."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path

# Before gRPC is loaded: its fork handlers complain of the processes that tests start.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc
import psycopg
import pytest

from tests.support import make
from tests.support.api import Api, all_channels_in, connect
from tests.support.server import ServerProcess, delete_a_workflow
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe_persistence.embedded import EmbeddedPostgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target",
        metavar="HOST:PORT",
        help="run the conformance suite against this server instead of one of its own",
    )
    parser.addoption(
        "--namespace",
        metavar="NAME",
        help="run the conformance suite in this namespace, which a given target must have",
    )
    parser.addoption(
        "--id-seed",
        metavar="N",
        type=int,
        help="make the same ids and names as every run of the same tests with this number",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test has ids of its own, so that how many the one before took does not matter."""
    number: int | None = item.config.getoption("--id-seed")
    if number is not None:
        make.seed(f"{number} {item.nodeid}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --target only what speaks to a server over the wire makes sense."""
    if config.getoption("--target") and collection_path.parent == Path(__file__).parent:
        return collection_path.name not in ("conformance", "support", "__init__.py")
    return None


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for an embedded PostgreSQL: a short path (there is a socket in it), and none of
    pytest's own, which every other pytest on the machine closes to other users when it starts."""
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the session; its maintenance database."""
    with (
        tempfile.TemporaryDirectory(prefix="wfe-") as path,
        EmbeddedPostgres(Path(path)) as postgres,
    ):
        yield postgres.url


_numbers = itertools.count(1)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database of the test's own."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield postgres_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the server under test: that of --target, or one started for the session.

    With --namespace, all calls to it go there.
    """
    address: str | None = request.config.getoption("--target")
    namespace: str | None = request.config.getoption("--namespace")
    if address:
        with all_channels_in(address, namespace) if namespace else nullcontext():
            delete_a_workflow(address)
            yield address
        return
    log = tmp_path_factory.mktemp("server") / "log"
    url = request.getfixturevalue("postgres_url")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE conformance")
    url = url.replace("/postgres?", "/conformance?")
    with ServerProcess(
        log, "--db-url", url, "--allow-truncate", "--allow-delete-namespace"
    ) as server:
        if namespace:
            with grpc.insecure_channel(server.address) as channel:
                StoreServiceStub(channel).CreateNamespace(CreateNamespaceRequest(name=namespace))
        with all_channels_in(server.address, namespace) if namespace else nullcontext():
            delete_a_workflow(server.address)
            yield server.address
        assert server.process.poll() is None, f"the server did not survive:\n{server.log()}"
    assert "bug" not in server.log(), server.log()


@pytest.fixture(scope="session")
async def api(target: str) -> AsyncIterator[Api]:
    """The API of the server under test."""
    async with connect(target) as channel:
        yield Api(channel)
