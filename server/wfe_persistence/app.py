"""The wiring: connection pool, services, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
from grpc_health.v1 import health

from wfe_persistence import metrics
from wfe_persistence.access.access import Access, watched_policy
from wfe_persistence.access.role import Role
from wfe_persistence.database import databases_from
from wfe_persistence.drain import Drain
from wfe_persistence.errors import CannotServeError
from wfe_persistence.offload import Workers
from wfe_persistence.rpc.audit import Audit
from wfe_persistence.rpc.boundary import Boundary
from wfe_persistence.rpc.call import Environment
from wfe_persistence.rpc.call_log import CallLog
from wfe_persistence.rpc.calls import BulkStreams
from wfe_persistence.rpc.connections import IdleConnections, connections_allowed
from wfe_persistence.rpc.grpc_server import grpc_server, largest_request
from wfe_persistence.rpc.guard import Guard
from wfe_persistence.rpc.health import Health
from wfe_persistence.rpc.intake import Intake
from wfe_persistence.rpc.limits import Limits
from wfe_persistence.rpc.listener import Listener
from wfe_persistence.rpc.services import SERVICES
from wfe_persistence.rpc.shared_listener import Shared, SharedListener
from wfe_persistence.service_manager import Manager
from wfe_persistence.settings import Settings
from wfe_persistence.store import workflow_waiting
from wfe_persistence.store.feeds import Feeds
from wfe_persistence.store.learning import learn_placements
from wfe_persistence.store.lifecycle import LifecycleEvents
from wfe_persistence.store.lookout import Lookout
from wfe_persistence.store.moving.directory import Directory
from wfe_persistence.store.moving.mover import Mover
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.neighbours import Neighbours
from wfe_persistence.store.readiness import WATCH_SECONDS, Readiness, Service, State
from wfe_persistence.store.retention_runner import Retention
from wfe_persistence.store.schema import HOME, Schema
from wfe_persistence.store.statistics import watch_stores
from wfe_persistence.store.sweep import Sweeper
from wfe_persistence.store.tables import Store
from wfe_persistence.store.transfers import Transfers
from wfe_persistence.store.waiting import Kind, Waiters
from wfe_persistence.store.workflow_changes import WorkflowChanges
from wfe_persistence.tls import certificates_of
from wfe_persistence.versions import versions

if TYPE_CHECKING:
    from wfe_persistence.http.admin import CheckResult
    from wfe_persistence.http.server import HttpServer, Request, Response
    from wfe_persistence.rpc.traces import Traces

log = logging.getLogger(__name__)

VERSION: Final = version("wfe-persistence")

_LAG_SECONDS: Final = 0.25

# The connections of the admin port, its listener, and what opens while it makes room.
_ADMIN_DESCRIPTORS: Final = 68

# Both ends of its connection to this server, twice while a new one replaces it.
_CONSOLE_DESCRIPTORS: Final = 4


class Server:
    """A server, which listens inside its context.

    It listens at once, but reports NOT_SERVING until the database is reached and its schema is
    current. Leaving the context drains it, see `drain.py`; `hurry` cuts that short. The admin port
    shows the `configuration` (see `configuration.py`). `shared`: it is one of several processes.
    """

    def __init__(
        self,
        settings: Settings,
        hurry: asyncio.Event | None = None,
        configuration: dict[str, Any] | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._settings = settings
        self._configuration = configuration
        # Whether somebody wants to know what is counted at an interval; and what is in the stores.
        self._counts = shared.counts if shared else bool(settings.admin_listen)
        self._counts_stores = self._counts and (shared is None or shared.index == 0)
        self._databases = databases_from(settings)
        self._namespaces = namespaces = Namespaces(
            self._databases,
            Schema(settings.schema, settings.table_prefix),
            migrate_on_use=settings.migrate,
            migrate_seconds=settings.migrate_seconds,
            max_namespaces=settings.max_namespaces,
        )
        metrics.NAMESPACES_LOADED.read = lambda: [((), namespaces.count_loaded())]
        self._readiness = Readiness(
            namespaces.default,
            migrate=settings.migrate,
            migrate_seconds=settings.migrate_seconds,
            allow_data_loss=settings.allow_data_loss,
        )
        default = namespaces.default
        self._service = Service(
            self._readiness,
            HOME,
            [Store(each, default.schema, default.namespace) for each in self._databases.others],
            allow_data_loss=settings.allow_data_loss,
        )
        self._workers = Workers()
        self._waiters = waiters = Waiters()
        self._lookout = Lookout(waiters)
        self._neighbours = (
            Neighbours(namespaces.default, waiters, self._lookout) if settings.notify else None
        )
        self._feeds = Feeds(
            LifecycleEvents(),
            namespaces,
            settings.lifecycle_retention,
            waiters,
            Kind("lifecycle"),
        )
        self._changes = Feeds(
            WorkflowChanges(settings.max_message_bytes),
            namespaces,
            settings.watch_retention,
            waiters,
            Kind("changes"),
        )
        self._retention = Retention(
            namespaces,
            settings.retention_seconds,
            settings.retention_rows_per_second,
            self._purged,
        )
        self._mover = Mover(
            Directory(namespaces.default),
            self._databases,
            grace=settings.move_grace,
        )
        self._transfers = Transfers(settings.max_transfers, settings.export_seconds)
        connections = connections_allowed(
            settings.max_connections,
            settings.most_database_connections,
            (_ADMIN_DESCRIPTORS if settings.admin_listen else 0)
            + (_CONSOLE_DESCRIPTORS if settings.console else 0),
        )
        self._server = grpc_server(settings, connections)
        intake = Intake(
            max_calls=settings.max_calls,
            max_calls_per_connection=settings.max_calls_per_connection,
            max_message_bytes=settings.max_message_bytes,
            largest=largest_request(settings),
            memory=settings.max_request_mb * 1024 * 1024,
        )
        self._connections = IdleConnections(connections, intake.busy_peers, intake.health_peers)
        self._policy = watched_policy(settings)
        policy = self._policy
        self._access = Access(settings, policy) if policy and settings.authentication else None
        guard = Guard(self._access)
        self._limits = Limits((lambda: policy.value) if policy else None)
        self._health = Health(namespaces, intake, guard)
        self._audit = Audit(settings.audit_log) if settings.audit_log else None
        self._traces = self._spans() if settings.traces == "otlp" else None
        boundary = Boundary(
            Environment(
                namespaces=namespaces,
                readiness=self._readiness,
                workers=self._workers,
                waiters=waiters,
                feeds=self._feeds,
                changes=self._changes,
                retention=self._retention,
                mover=self._mover,
                transfers=self._transfers,
                bulk_streams=BulkStreams(settings.max_bulk_streams),
                server_version=VERSION,
                max_message_bytes=settings.max_message_bytes,
                default_deadline=settings.default_deadline,
                max_deadline=settings.max_deadline,
                stall_seconds=settings.stall_seconds,
                allow_truncate=settings.allow_truncate,
                allow_create_namespace=settings.create_namespace_allowed,
                allow_delete_namespace=settings.allow_delete_namespace,
            ),
            intake,
            guard,
            self._limits,
            CallLog(settings.slow_call),
            self._audit,
            self._traces,
        )
        self._server.add_generic_rpc_handlers(
            [boundary.handlers(SERVICES), self._health.handlers()]
        )
        if settings.reflection_enabled:
            from wfe_persistence.rpc.reflection import reflection_handlers

            names = [*(s.name for s in SERVICES), health.SERVICE_NAME]
            self._server.add_generic_rpc_handlers([reflection_handlers(names, guard)])
        self._certificates = certificates_of(settings)
        self._state: State | None = None
        self._learns = False
        self._stack = AsyncExitStack()
        self._admin = self._admin_port() if settings.admin_listen else None
        self._listener = (
            SharedListener(settings.listen, shared)
            if shared
            else Listener(settings.listen, settings.socket_permissions)
        )
        self._drain = Drain(
            self._health,
            intake,
            waiters,
            self._databases,
            self._listener,
            (self._feeds, self._changes),
            delay=settings.seconds_before_drain,
            seconds=settings.drain_seconds,
            hurry=hurry or asyncio.Event(),
        )

    @property
    def address(self) -> str:
        """The listen address; inside the context, with the real port."""
        return self._listener.address

    @property
    def admin_address(self) -> str:
        """The listen address of the admin port; inside the context, with the real port."""
        return self._admin.address if self._admin else ""

    def reopen_audit_log(self) -> None:
        """Go on in a new file, because the old one was renamed."""
        if self._audit:
            self._audit.reopen()

    async def __aenter__(self) -> Self:
        if self._audit:
            self._stack.callback(self._audit.close)
        if self._traces:
            self._stack.push_async_callback(self._traces.close)
        if self._admin:
            # First of all and until the end of the drain, so that probes are always answered.
            await self._admin.open()
            self._stack.push_async_callback(self._admin.close)
            scheme = "https" if self._certificates else "http"
            log.info("admin port: %s://%s", scheme, self._admin.address)
        if self._counts:
            self._in_background(_watch_loop())
        add_port = self._server.add_insecure_port
        if self._certificates:
            add_port = partial(
                self._server.add_secure_port,
                server_credentials=self._certificates.credentials(),
            )
        self._listener.open(add_port)
        if self._traces:
            self._traces.listening(self.address)
        self._stack.callback(self._listener.close)
        self._stack.callback(self._workers.close)
        if self._policy:
            self._in_background(self._policy.watch())
        if self._access:
            self._in_background(self._access.watch())
        await self._health.start()
        await self._stack.enter_async_context(self._databases)
        self._stack.push_async_callback(self._transfers.close)
        await self._server.start()
        self._listener.accept()
        self._in_background(self._limits.space.watch())
        self._in_background(self._lookout.run(len(self._databases)))
        if self._neighbours:
            self._in_background(self._neighbours.run())
        self._in_background(self._feeds.sweep())
        self._in_background(self._changes.sweep())
        if self._databases.others:
            self._in_background(self._service.watch())
        if self._settings.sweep_seconds:
            self._in_background(
                Sweeper(self._namespaces, self._waiters, self._settings.sweep_seconds).run()
            )
        if self._settings.retention_seconds:
            self._in_background(self._retention.run())
        if len(self._databases) > 1:
            self._in_background(self._mover.run())
        self._in_background(self._connections.watch(self._listener.local_name))
        if self._certificates:
            self._in_background(self._certificates.watch())
        return self

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it until the context is left."""
        self._stack.callback(asyncio.get_running_loop().create_task(work).cancel)

    def _purged(self, store: Store) -> None:
        """Tell who waits for workflows, or watches them, that some were deleted."""
        self._changes.published(store)
        workflow_waiting.stir_purged(store, self._waiters)

    def _admin_port(self) -> HttpServer:
        # Loaded on use: most servers of a sidecar have none.
        from wfe_persistence.http.admin import Admin, json_response
        from wfe_persistence.http.metrics import MetricsPage
        from wfe_persistence.http.server import HttpServer

        admin = Admin(self._access, self.checks, versions)
        admin.add("/metrics", Role.MONITOR, MetricsPage().answer)
        if shown := self._configuration:

            async def show(_: Request) -> Response:
                return json_response(shown)

            admin.add("/config", Role.OPERATOR, show)
        context = self._certificates.context if self._certificates else None
        posts = ""
        if self._settings.console:
            from wfe_persistence.http.console import CONSOLE_PATH, ConsolePages

            pages = ConsolePages(self._settings, lambda: self.address)
            admin.mount(posts := CONSOLE_PATH, pages.answer)
            self._stack.push_async_callback(pages.close)
        return HttpServer(self._settings.admin_listen, admin.answer, context, posts)

    def _spans(self) -> Traces:
        # Loaded on use: the packages are optional, and large.
        try:
            from wfe_persistence.rpc.traces import Traces
        except ImportError as exc:
            raise CannotServeError(
                f"traces: needs the extra otel (pip install 'wfe-persistence[server,otel]'): {exc}"
            ) from exc
        settings = self._settings
        names = {each.name: each.source.database_name() for each in self._databases}
        schema = Schema(settings.schema, settings.table_prefix)
        return Traces(VERSION, lambda name: names[self._namespaces.database_of(name)], schema)

    def checks(self) -> list[CheckResult]:
        """What readiness consists of, as last seen: a probe never waits for the database."""
        from wfe_persistence.http.admin import CheckResult

        states = self._service.states
        home = states[HOME]
        is_needed = self._state is None or not self._state.ready
        return [
            CheckResult("shutdown", "the server drains" if self._health.is_draining else ""),
            CheckResult("database", "" if home.reached else home.why, is_needed),
            CheckResult("store", "" if home.ready else home.why, is_needed),
            *(
                CheckResult(f"database-{name}", "" if state.ready else state.why, is_needed=False)
                for name, state in states.items()
                if name != HOME
            ),
        ]

    async def __aexit__(self, *_: object) -> None:
        await self._drain.run(self._server)
        await self._stack.aclose()

    def add_service(self, handlers: grpc.GenericRpcHandler) -> None:
        """Serve other handlers as well; call it before the context is entered."""
        self._server.add_generic_rpc_handlers([handlers])

    async def watch(self, manager: Manager | None = None) -> None:
        """Migrate the store, then report its health for as long as the server runs.

        Raises CannotServeError if the server is configured for one that it can't serve.
        """
        while True:
            state = await self._service.look()
            for name, each in self._service.states.items():
                await self._health.report_database(name, serving=each.ready)
            if state is not None and state != self._state:
                self._state = state
                await self._health.report(serving=state.ready)
                if manager:
                    manager.report(serving=state.ready, why=state.why)
                if state.ready:
                    if state.why:
                        log.warning("serving only what is in other databases: %s", state.why)
                    else:
                        log.info("serving on %s", self.address)
                    if not self._learns:
                        self._learns = True
                        self._in_background(learn_placements(self._namespaces))
                    if self._counts_stores:
                        self._counts_stores = False  # begun once
                        self._in_background(watch_stores(self._namespaces))
                else:
                    log.warning("not serving: %s", state.why)
            await asyncio.sleep(WATCH_SECONDS)


async def _watch_loop() -> None:
    """Measure how late the event loop is, for as long as the server runs."""
    while True:
        due = time.monotonic() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        metrics.LOOP_LAG.observe(max(0.0, time.monotonic() - due))
