"""Fixtures: a PostgreSQL, a server in a process of its own, and the API of it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

# Before gRPC is loaded: its fork handlers complain of the processes that tests start.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc
import psycopg
import pytest

from tests.support import binaries
from tests.support.binaries import Program
from tests.support.given import add_options, api, given_server, seed_ids
from tests.support.postgres import PgBouncer, PostgresServer
from tests.support.processes import Run
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe_persistence.embedded import EmbeddedPostgres
from wfe_persistence.redaction import forgetting


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)
    parser.addoption(
        "--previous-release",
        metavar="PYTHON",
        default=sys.executable,
        help="the Python of an environment with an earlier release, to be upgraded from; "
        "without it, that is this one",
    )
    parser.addoption(
        "--postgres",
        metavar="VERSION",
        type=int,
        choices=binaries.VERSIONS,
        help=f"run the conformance suite on this version of PostgreSQL: {binaries.VERSIONS}",
    )
    parser.addoption(
        "--pgbouncer",
        action="store_true",
        help="run the conformance suite through PgBouncer in transaction mode; $PGBOUNCER names "
        "another program than Debian's",
    )
    parser.addoption(
        "--debian",
        metavar="RELEASE",
        help="take PgBouncer from this release of Debian instead of the one that is installed",
    )


__all__ = ["api"]  # a fixture too

RUN: Final = pytest.StashKey[Run]()
RUN_DIR: Final = pytest.StashKey[Path]()
LEFT: Final = pytest.StashKey[list[str]]()
BINARIES: Final = pytest.StashKey[dict[str, Program]]()
VERSIONS: Final = pytest.StashKey[list[str]]()
BUILDS: Final = (
    *("tests/deploy/", "tests/examples/", "tests/hosts/", "tests/packages/"),
    "tests/faults/test_fleet.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run; before that, get what it needs and may not be to be had."""
    options = config.option
    wanted: dict[str, Program] = {}
    try:
        if options.postgres or options.pgbouncer:
            wanted["PostgreSQL"] = binaries.postgres(options.postgres or 18)
        if options.pgbouncer:
            wanted["PgBouncer"] = binaries.pgbouncer(options.debian)
        config.stash[BINARIES] = wanted
        config.stash[VERSIONS] = [f"{name} {program.version()}" for name, program in wanted.items()]
    except binaries.BinariesError as exc:
        raise pytest.UsageError(str(exc)) from exc
    if config.getoption("numprocesses", None) and options.target:
        raise pytest.UsageError(
            "-n would run tests at once that claim each other's work: no --target"
        )
    if worker := getattr(config, "workerinput", None):  # one of -n: its processes are the run's
        config.stash[RUN_DIR] = Path(worker["run_dir"], worker["workerid"])
        config.stash[RUN_DIR].mkdir(mode=0o711)
    else:
        config.stash[RUN] = Run()
        config.stash[RUN_DIR] = config.stash[RUN].directory
    signal.signal(signal.SIGTERM, _interrupt)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of -n where the data of the run is."""
    node.workerinput["run_dir"] = str(node.config.stash[RUN].directory)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n, a worker runs whole files, in the order of all tests, and one of them those that
    build in directories of the working tree."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "builds" if file.startswith(BUILDS) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does, so that fixtures clean up; even in the background, where a shell has
    SIGINT ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the conformance suite runs on, where that was chosen."""
    return config.stash[VERSIONS]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After all fixtures: the run fails if a process of its own is left."""
    if RUN not in session.config.stash:
        return
    session.config.stash[LEFT] = left = session.config.stash[RUN].end()
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name the processes that were left."""
    if left := config.stash[LEFT]:
        terminalreporter.section("processes of the run that were left", red=True)
        for line in left:
            terminalreporter.line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ids that can be made again."""
    seed_ids(item)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With these options only what speaks to a server over the wire makes sense."""
    chosen = any(config.getoption(name) for name in ("--target", "--postgres", "--pgbouncer"))
    if chosen and collection_path.parent == Path(__file__).parent:
        return collection_path.name not in ("conformance", "support", "__init__.py")
    return None


@pytest.fixture(autouse=True)
def _secrets_of_its_own() -> Iterator[None]:
    """What one test hides is not taken out of what the next one reads."""
    with forgetting():
        yield


@pytest.fixture
def data_dir(run_dir: Path) -> Iterator[Path]:
    """A directory for an embedded PostgreSQL: a short path (there is a socket in it), and none of
    pytest's own, which every other pytest on the machine closes to other users when it starts."""
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="data-") as path:
        Path(path).chmod(0o711)  # as that of an operator, which PostgreSQL's user may pass through
        yield Path(path)


@pytest.fixture(scope="session")
def run_dir(pytestconfig: pytest.Config) -> Path:
    """A directory for the session, which other users can get through."""
    return pytestconfig.stash[RUN_DIR]


@pytest.fixture(scope="session")
def postgres_url(run_dir: Path, pytestconfig: pytest.Config) -> Iterator[str]:
    """A PostgreSQL server for the session; its maintenance database."""
    postgres: PostgresServer | EmbeddedPostgres
    if program := pytestconfig.stash[BINARIES].get("PostgreSQL"):
        postgres = PostgresServer(program, run_dir / "postgres")
    else:
        postgres = EmbeddedPostgres(run_dir / "embedded")
    with postgres:
        yield postgres.url


@pytest.fixture(scope="session")
def pooler(
    postgres_url: str, run_dir: Path, pytestconfig: pytest.Config
) -> Iterator[PgBouncer | None]:
    """The PgBouncer for the session, with --pgbouncer."""
    program = pytestconfig.stash[BINARIES].get("PgBouncer")
    if program is None:
        yield None
        return
    with PgBouncer(program, run_dir / "pgbouncer", postgres=run_dir / "postgres") as pgbouncer:
        yield pgbouncer


_numbers = itertools.count(1)


@contextmanager
def _new_database(postgres_url: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield postgres_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database of the test's own."""
    with _new_database(postgres_url) as url:
        yield url


@pytest.fixture
def database_urls(postgres_url: str) -> Iterator[dict[str, str]]:
    """Three empty databases of the test's own, by the names that they have in a service."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_new_database(postgres_url)) for name in ("home", "a", "b")
        }


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
        with given_server(address, namespace):
            yield address
        return
    log = tmp_path_factory.mktemp("server") / "log"
    url = request.getfixturevalue("postgres_url")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE conformance")
    pooler: PgBouncer | None = request.getfixturevalue("pooler")
    options = [] if pooler is None or pooler.prepare else ["--no-prepare"]
    url = (pooler.url if pooler else url).replace("/postgres?", "/conformance?")
    with ServerProcess(
        log, "--db-url", url, "--allow-truncate", "--allow-delete-namespace", *options
    ) as server:
        if namespace:
            with grpc.insecure_channel(server.address) as channel:
                StoreServiceStub(channel).CreateNamespace(CreateNamespaceRequest(name=namespace))
        with given_server(server.address, namespace):
            yield server.address
        assert server.process.poll() is None, f"the server did not survive:\n{server.log()}"
    assert "bug" not in server.log(), server.log()
