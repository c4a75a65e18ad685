"""Very many namespaces, over three PostgreSQLs: what it costs to create them, that they are there,
to use all of them, and what servers do with all of them now and then.

To create a namespace takes a PostgreSQL a fifth of a second of the processor. So a server creates
only some: the first, the last, and between them, which is measured. The others are copied by SQL,
as `pg_dump` describes one that the server has created.

What servers do in the background is run in this process, on the same databases, as a server does
it: a look for retention policies, and one into each namespace, as it was done before; a look for
queues to sweep, where that is switched on; the deletion of old lifecycle events and changes in all
of them, once an hour; and a look at the whole directory, once a minute. Memory is that of the whole
process, or of all processes of a PostgreSQL.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.accounting import Accounted
from benchmarks.timing import cpu_seconds, percentile
from tests.support import binaries, make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st
from wfe_persistence.database import databases_from
from wfe_persistence.embedded import EmbeddedPostgres
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store import feeds, learning, namespace_list
from wfe_persistence.store.feeds import Feeds
from wfe_persistence.store.lifecycle import LifecycleEvents
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.occupied import occupied_stores
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.retention import RULES_TABLE
from wfe_persistence.store.retention_runner import Retention
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.sweep import Sweeper
from wfe_persistence.store.waiting import Kind, Waiters
from wfe_persistence.store.workflow_changes import WorkflowChanges

Figures = list[dict[str, Any]]

_NAMES: Final = ("home", "a", "b")
_AT_ONCE: Final = 12
_USED: Final = 1_000
_CALLERS: Final = 16
_IDLE_SECONDS: Final = 30.0

# How many are created by a server, in so many parts: the first, the last, and between them.
_CREATED: Final = 120
_PARTS: Final = 4

SIZES: Final = """
SELECT (SELECT count(*) FROM pg_class)::int, pg_database_size(current_database())::float8 / 1e6,
    pg_total_relation_size('pg_attribute')::float8 / 1e6
"""


class _Spread:
    """The servers, the PostgreSQLs, and what they have taken."""

    def __init__(self, directory: Path, started: Sequence[EmbeddedPostgres]) -> None:
        self._directory = directory
        self.urls = [each.url for each in started]
        self.accounted = [Accounted.at(each.url) for each in started]
        self.figures: Figures = []

    def server(self, number: int) -> AdminServer:
        """A server, not started yet."""
        options = ["--db-url", self.urls[0], "--max-namespaces", "1000000"]
        for name, url in zip(_NAMES[1:], self.urls[1:], strict=True):
            options += ["--database", f"{name}={url}"]
        # By default a server looks at the policies every five minutes; here it is done on purpose.
        options += ["--retention-seconds", "0"]
        return AdminServer(self._directory / f"log-{number}", *options)

    @contextmanager
    def measured(
        self, what: str, server: psutil.Process | None = None, **more: Any
    ) -> Iterator[dict[str, Any]]:
        """Add a figure: what something takes on the clock, of the server or this process, and of
        the PostgreSQLs."""
        figure: dict[str, Any] = {"what": what} | more
        own = server or psutil.Process()
        postgres, cpu, begun = self._postgres_cpu(), cpu_seconds(own), time.perf_counter()
        yield figure
        figure |= {
            "seconds": time.perf_counter() - begun,
            "server_cpu": cpu_seconds(own) - cpu,
            "postgres_cpu": self._postgres_cpu() - postgres,
            "server_rss_mb": own.memory_info().rss / 1e6,
        }
        self.figures.append(figure)
        print(f"{what}: {figure['seconds']:.2f} s", file=sys.stderr)

    def _postgres_cpu(self) -> float:
        return sum(each.cpu_seconds() for each in self.accounted)

    def postgres_memory(self, when: str) -> None:
        """Add what the PostgreSQLs have of memory."""
        found = [each.memory() for each in self.accounted]
        self.figures.append(
            {"memory": when}
            | {
                key: sum(getattr(each, key) for each in found)
                for key in ("processes", "pss", "uss")
            }
        )


def measure(count: int) -> Figures:
    """Create so many namespaces, and see."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-spread-")))
        directory.chmod(0o711)
        started = [stack.enter_context(EmbeddedPostgres(directory / name)) for name in _NAMES]
        spread = _Spread(directory, started)
        asyncio.run(_measure(spread, [f"n{number:05}" for number in range(count)]))
    return spread.figures


async def _measure(spread: _Spread, names: list[str]) -> None:
    with spread.server(0) as server:
        process = psutil.Process(server.process.pid)
        async with connect(server.address) as channel:
            api = Api(channel)
            spread.postgres_memory("before")
            model = names[0]
            await api.store.CreateNamespace(st.CreateNamespaceRequest(name=model, database="home"))
            left = names[1:]
            size = min(_CREATED, len(left)) // _PARTS
            gap = -(-(len(left) - size * _PARTS) // (_PARTS - 1))
            for first in range(0, len(left), size + gap):
                part, rest = left[first : first + size], left[first + size : first + size + gap]
                with spread.measured("created", process, number=len(part), before=first):
                    await _create(api, part)
                with spread.measured("copied", process, number=len(rest)):
                    await _copy(spread.urls, model, rest)
            spread.postgres_memory("created")
            await _listed(spread, api, process, len(names))
    await _used(spread, names)


async def _used(spread: _Spread, names: list[str]) -> None:
    """A new server on all of them, and what servers do in the background."""
    _sizes(spread)
    with ExitStack() as stack:
        with spread.measured("start") as figure:
            server = stack.enter_context(spread.server(1))
            process = psutil.Process(server.process.pid)
            figure["own_cpu"] = cpu_seconds(process)
            figure["own_rss_mb"] = process.memory_info().rss / 1e6
        async with connect(server.address) as channel:
            api = Api(channel)
            await _health(spread, channel, process, names)
            chosen = random.sample(names, min(_USED, len(names)))
            for what in ("first call", "second call", "third call"):
                await _called(spread, what, api, process, chosen)
            for what in ("first call to all", "second call to all"):
                await _called(spread, what, api, process, names)
            with spread.measured("/metrics", process) as page:
                page["bytes"] = len(server.get("/metrics").text)
            with spread.measured("idle", process):
                await asyncio.sleep(_IDLE_SECONDS)
            spread.postgres_memory("all called")
    await _background(spread, names)


async def _create(api: Api, names: list[str]) -> None:
    left = iter(names)

    async def create() -> None:
        for name in left:
            await api.store.CreateNamespace(st.CreateNamespaceRequest(name=name))

    await asyncio.gather(*(create() for _ in range(_AT_ONCE)))


async def _copy(urls: list[str], model: str, names: list[str]) -> None:
    """Make namespaces in all databases in turn, as that one is, which is in the first."""
    program = binaries.postgres(18)
    said = await asyncio.create_subprocess_exec(
        program.path.with_name("pg_dump"), "--schema-only", "--schema", f"wfc_{model}", urls[0],
        stdout=subprocess.PIPE, env=program.env,
    )  # fmt: skip
    ddl = (await said.communicate())[0].decode()
    # psql's own commands, and what would outlive the transaction.
    ddl = re.sub(r"(?m)^(\\.*|SET \w+ = .*;|SELECT pg_catalog\.set_config.*)$", "", ddl)
    await asyncio.gather(
        *(
            asyncio.to_thread(_copy_to, urls[0], url, name, ddl, model, names[at :: len(urls)])
            for at, (name, url) in enumerate(zip(_NAMES, urls, strict=True))
        )
    )


def _copy_to(
    home_url: str, url: str, database: str, ddl: str, model: str, names: list[str]
) -> None:
    with (
        psycopg.connect(home_url, autocommit=True) as home,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        applied = home.execute("SELECT * FROM wfc.wfe_migrations ORDER BY version").fetchall()
        row = ", ".join(["%s"] * len(applied[0]))
        for name in names:
            placed = database != _NAMES[0]
            with connection.transaction():
                connection.execute(ddl.replace(f"wfc_{model}", f"wfc_{name}").encode())
                connection.cursor().executemany(
                    f"INSERT INTO wfc_{name}.wfe_migrations VALUES ({row})".encode(), applied
                )
                connection.execute(
                    f"INSERT INTO wfc_{name}.wfe_store"
                    " (owner_schema, namespace, database, generation)"
                    " VALUES ('wfc', %s, %s, %s)".encode(),
                    [name, database, int(placed)],
                )
            if placed:
                home.execute(
                    "INSERT INTO wfc.placements (namespace, database, generation)"
                    " VALUES (%s, %s, 1)",
                    [name, database],
                )


async def _listed(spread: _Spread, api: Api, process: psutil.Process, count: int) -> None:
    found: Counter[str] = Counter()
    with spread.measured("ListNamespaces, all", process) as figure:
        request = st.ListNamespacesRequest(page_size=1000)
        while True:
            page = await api.store.ListNamespaces(request)
            found.update(each.database for each in page.namespaces)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        figure["databases"] = found
    assert found.total() == count + 1, found  # and the default one
    with spread.measured("ListNamespaces, 100", process):
        await api.store.ListNamespaces(st.ListNamespacesRequest(page_size=100))


def _sizes(spread: _Spread) -> None:
    for name, url in zip(_NAMES, spread.urls, strict=True):
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(SIZES.encode()).fetchone()
        assert row
        spread.figures.append(
            {"size of": name, "relations": row[0], "mb": row[1], "pg_attribute_mb": row[2]}
        )


async def _health(
    spread: _Spread, channel: grpc.aio.Channel, process: psutil.Process, names: list[str]
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for what, services in (
        ("health of the server, 100", [""] * 100),
        (
            "health of 100 namespaces",
            [f"{name}/wfe.persistence.v1.EventService" for name in random.sample(names, 100)]
            if len(names) >= 100
            else [],
        ),
    ):
        with spread.measured(what, process):
            for service in services:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


async def _called(
    spread: _Spread, what: str, api: Api, process: psutil.Process, names: list[str]
) -> None:
    """A CreateEvent in each of these namespaces."""
    took: list[float] = []
    left = iter(names)

    async def caller() -> None:
        for name in left:
            begun = time.perf_counter()
            await api.events.CreateEvent(
                e.CreateEventRequest(event=make.event()), metadata=(("wfe-namespace", name),)
            )
            took.append(time.perf_counter() - begun)

    with spread.measured(what, process, number=len(names)) as figure:
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        figure["p50_ms"] = percentile(took, 50) * 1e3
        figure["p99_ms"] = percentile(took, 99) * 1e3


async def _background(spread: _Spread, names: list[str]) -> None:
    """What servers do with all namespaces, in this process."""
    others = tuple(
        NamedDatabase(name=name, url=url)
        for name, url in zip(_NAMES[1:], spread.urls[1:], strict=True)
    )
    settings = Settings(db_url=spread.urls[0], databases=others)
    async with databases_from(settings) as databases:
        namespaces = Namespaces(
            databases, Schema(), migrate_on_use=True, max_namespaces=settings.max_namespaces
        )
        waiters = Waiters()
        lifecycle = Feeds(LifecycleEvents(), namespaces, 3600, waiters, Kind("lifecycle"))
        changes = Feeds(
            WorkflowChanges(settings.max_message_bytes), namespaces, 3600, waiters, Kind("changes")
        )
        feeds._SWEEP_PAUSE_SECONDS = 0.0  # type: ignore[misc]  # between two namespaces
        retention = Retention(namespaces, 300, 1000, lambda _: None)
        sweeper = Sweeper(namespaces, waiters, 60)
        with spread.measured("the directory, all", number=len(names)):
            await learning._learn(namespaces)
        with spread.measured("the directory, one by one", number=len(names)):
            for name in names:
                await namespaces.placements.read(name)
        with spread.measured("list of all", number=len(names)):
            everywhere, _ = await namespace_list.all_namespaces(namespaces)
        for what in ("policies, first look", "policies"):
            with spread.measured(what, number=len(names)):
                stores = await occupied_stores(namespaces, RULES_TABLE)
                await side_by_side(stores, retention._apply)
        with spread.measured("queues to sweep", number=len(names)):
            await side_by_side(await occupied_stores(namespaces, "queues"), sweeper._sweep)
        for what, feeds_ in (("old lifecycle events", lifecycle), ("old changes", changes)):
            with spread.measured(what, number=len(names)):
                stores = await occupied_stores(namespaces, feeds_._source.table)
                await side_by_side(stores, feeds_._sweep)
        with spread.measured("policies, each namespace", number=len(names)):
            await side_by_side(everywhere, retention._apply)
        spread.postgres_memory("policies, each namespace")


def table(figures: Figures) -> str:
    """The figures as text."""
    heads = f"{'':30}{'number':>8}{'s':>9}{'server CPU s':>14}{'PostgreSQL CPU s':>18}"
    lines = [f"{heads}{'RSS MB':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    for figure in figures:
        if "what" in figure:
            times = "".join(
                f"{figure[key]:>9.1f}" if key in figure else f"{'':9}"
                for key in ("p50_ms", "p99_ms")
            )
            lines.append(
                f"{figure['what']:30}{figure.get('number', ''):>8}{figure['seconds']:>9.2f}"
                f"{figure['server_cpu']:>14.3f}{figure['postgres_cpu']:>18.3f}"
                f"{figure['server_rss_mb']:>9.1f}{times}"
            )
        else:
            lines.append(
                ", ".join(
                    f"{key} {value:,.0f}" if isinstance(value, (int, float)) else f"{key} {value}"
                    for key, value in figure.items()
                )
            )
    return "\n".join(lines)
