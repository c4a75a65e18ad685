"""The wiring: pool, servicers, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Final, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from wfe.persistence.v1 import command_pb2, event_pb2, store_pb2, subscription_pb2, workflow_pb2
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc.boundary import Boundary
from wfe_persistence.rpc.command_service import ScheduledCommandService
from wfe_persistence.rpc.event_service import EventService
from wfe_persistence.rpc.health import NamespaceHealth
from wfe_persistence.rpc.store_service import StoreService
from wfe_persistence.rpc.subscription_service import SubscriptionService
from wfe_persistence.rpc.workflow_service import WorkflowService
from wfe_persistence.settings import Settings
from wfe_persistence.store import admin, migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

VERSION: Final = version("wfe-persistence")

SERVICES: Final = (
    workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"],
    event_pb2.DESCRIPTOR.services_by_name["EventService"],
    subscription_pb2.DESCRIPTOR.services_by_name["SubscriptionService"],
    command_pb2.DESCRIPTOR.services_by_name["ScheduledCommandService"],
    store_pb2.DESCRIPTOR.services_by_name["StoreService"],
)

# Health of the process itself, for a liveness probe: a database that is away is no reason to
# restart the server. The empty name and the services' names tell whether calls can succeed.
LIVENESS: Final = "liveness"

_WATCH_SECONDS = 1.0
_LOOK_SECONDS = 2.0

# Requests above our own limit are let in up to this factor, to be refused with a reason; beyond
# it gRPC refuses them itself.
_OVERSIZE_FACTOR = 4

_SERVER_OPTIONS: Final = (
    # Otherwise a second server would share the port without a word, and get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_send_message_length", -1),
)


class CannotServeError(Exception):
    """The server must not run as it was started; the message says why."""


class Server:
    """A server, listening inside its context.

    It listens at once and reports NOT_SERVING until the database answers and its schema is current.
    """

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._database = Database(
            config.db_url,
            pool_size=config.pool_size,
            pool_timeout=config.pool_timeout,
            prepare=config.prepare,
            max_prepared_bytes=config.max_prepared_mb * 1_000_000,
            max_waiting=config.max_waiting,
        )
        self._namespaces = Namespaces(
            self._database,
            Schema(config.schema, config.table_prefix),
            migrate_on_use=config.migrate,
        )
        self._boundary = Boundary(
            self._namespaces,
            max_message_bytes=config.max_message_bytes,
            default_deadline=config.default_deadline,
            is_starting=lambda: self._starting,
        )
        self._health = NamespaceHealth(self._namespaces, SERVICES)
        self._server = grpc.aio.server(
            options=[
                *_SERVER_OPTIONS,
                ("grpc.max_receive_message_length", config.max_message_bytes * _OVERSIZE_FACTOR),
            ]
        )
        self._stack = AsyncExitStack()
        self._examined = False
        # Until the store was brought up to date for the first time, or could not be.
        self._starting = config.migrate
        self._serving: bool | None = None
        self.address = config.listen
        """Where the server listens; with the real port once it does."""

    async def __aenter__(self) -> Self:
        self._add_servicers()
        try:
            port = self._server.add_insecure_port(self._config.listen)
        except RuntimeError as exc:
            raise CannotServeError(f"can't listen on {self._config.listen}: in use?") from exc
        if not self._config.listen.startswith("unix:"):
            self.address = f"{self._config.listen.rpartition(':')[0]}:{port}"
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._report(serving=False)
        await self._stack.enter_async_context(self._database)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # Health first, so that nobody sends new calls; those under way are finished.
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._config.drain_seconds)
        await self._stack.aclose()

    def _add_servicers(self) -> None:
        servicers = (
            WorkflowService(),
            EventService(),
            SubscriptionService(),
            ScheduledCommandService(),
            StoreService(
                server_version=VERSION,
                namespaces=self._namespaces,
                allow_truncate=self._config.allow_truncate,
                allow_delete_namespace=self._config.allow_delete_namespace,
                ensure=self._ensure,
            ),
        )
        self._server.add_generic_rpc_handlers(
            [
                self._boundary.handlers(service, servicer)
                for service, servicer in zip(SERVICES, servicers, strict=True)
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._config.reflection:
            names = [service.full_name for service in SERVICES]
            reflection.enable_server_reflection(
                [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
            )

    def add_service(self, handlers: grpc.GenericRpcHandler) -> None:
        """Serve something beside our services; before the server is started."""
        self._server.add_generic_rpc_handlers([handlers])

    async def watch(self) -> None:
        """Bring the store up to date, then report its health for as long as the server runs.

        Raises CannotServeError if it never can be served from here.
        """
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS if self._examined else None):
                    await self._look()
            except PersistenceError as exc:
                if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW:
                    raise CannotServeError(str(exc)) from exc
                if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                    self._starting = False
                if exc.reason != ErrorReason.ERROR_REASON_POOL_EXHAUSTED:
                    await self._report(serving=False, why=str(exc))
            except TimeoutError:
                # A server that is only busy goes on being healthy.
                if self._database.is_away:
                    await self._report(serving=False, why="the database can't be reached")
            await asyncio.sleep(_WATCH_SECONDS)

    async def _look(self) -> None:
        store = self._namespaces.default
        if not self._examined:
            await self._examine(store)
            self._examined = True
            self._starting = False
        version = await migrate.schema_version(store)
        migrate.check_not_newer(version)
        await self._report(
            serving=version == migrate.latest_version(),
            why=f"the store has schema version {version}, {migrate.latest_version()} is needed "
            "(wfe-persistence migrate up)",
        )

    async def _examine(self, store: Store) -> None:
        """Once, as soon as the database answers: may we use it, and is the store there?"""
        database = await admin.database_info(store)
        if objections := database.objections():
            raise CannotServeError("; ".join(objections))
        if not database.durable:
            if not self._config.allow_data_loss:
                raise CannotServeError(
                    "the database runs with fsync or synchronous_commit off, so it may lose what "
                    "was acknowledged; turn them on, or accept it with --allow-data-loss"
                )
            log.warning("the database may lose what was acknowledged (--allow-data-loss)")
        if self._config.migrate:
            await self._ensure(store)

    async def _ensure(self, store: Store) -> list[str]:
        applied = await migrate.migrate(self._database.conninfo, store.schema)
        for name in applied:
            log.info("schema %s: applied %s", store.schema.name, name)
        return applied

    async def _report(self, *, serving: bool, why: str = "") -> None:
        if serving == self._serving:
            return
        if serving:
            log.info("serving on %s", self.address)
        elif why:
            log.warning("not serving: %s", why)
        self._serving = serving
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *(service.full_name for service in SERVICES)):
            await self._health.set(name, status)
