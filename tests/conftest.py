"""Fixtures: a PostgreSQL, a server in a process of its own, and the API of it."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

# Before gRPC is loaded: its fork handlers complain of the processes that tests start.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import psycopg
import pytest

from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from wfe_persistence.embedded import EmbeddedPostgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target",
        metavar="HOST:PORT",
        help="run the conformance suite against this server instead of one of its own",
    )


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
    """The address of the server under test: that of --target, or one started for the session."""
    address: str | None = request.config.getoption("--target")
    if address:
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
        yield server.address
        assert server.process.poll() is None, f"the server did not survive:\n{server.log()}"
    assert "bug" not in server.log(), server.log()


@pytest.fixture(scope="session")
async def api(target: str) -> AsyncIterator[Api]:
    """The API of the server under test."""
    async with connect(target) as channel:
        yield Api(channel)
