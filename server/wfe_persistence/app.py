"""The wiring: connection pool, services, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Final, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from wfe_persistence.database import database_from
from wfe_persistence.errors import CannotServeError
from wfe_persistence.offload import Workers
from wfe_persistence.rpc.boundary import Boundary
from wfe_persistence.rpc.call import Environment
from wfe_persistence.rpc.health import Health
from wfe_persistence.rpc.services import SERVICES
from wfe_persistence.settings import Settings
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.readiness import Readiness
from wfe_persistence.store.schema import Schema

log = logging.getLogger(__name__)

VERSION: Final = version("wfe-persistence")

_WATCH_SECONDS = 1.0

# Requests above our own limit are received up to this factor, to be refused with a reason; beyond
# it gRPC refuses them itself.
_OVERSIZE_FACTOR = 4

_SERVER_OPTIONS: Final = (
    # Otherwise a second server would silently share the port, and get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_send_message_length", -1),
)


class Server:
    """A server, which listens inside its context.

    It listens at once, but reports NOT_SERVING until the database is reached and its schema is
    current.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = database_from(settings)
        namespaces = Namespaces(
            self._database,
            Schema(settings.schema, settings.table_prefix),
            migrate_on_use=settings.migrate,
            max_namespaces=settings.max_namespaces,
        )
        self._readiness = Readiness(
            namespaces.default, migrate=settings.migrate, allow_data_loss=settings.allow_data_loss
        )
        self._health = Health(namespaces)
        self._workers = Workers()
        self._server = grpc.aio.server(
            options=[
                *_SERVER_OPTIONS,
                ("grpc.max_receive_message_length", settings.max_message_bytes * _OVERSIZE_FACTOR),
            ]
        )
        boundary = Boundary(
            Environment(
                namespaces=namespaces,
                readiness=self._readiness,
                workers=self._workers,
                server_version=VERSION,
                max_message_bytes=settings.max_message_bytes,
                default_deadline=settings.default_deadline,
                max_deadline=settings.max_deadline,
                stall_seconds=settings.stall_seconds,
                allow_truncate=settings.allow_truncate,
                allow_create_namespace=settings.create_namespace_allowed,
                allow_delete_namespace=settings.allow_delete_namespace,
            )
        )
        self._server.add_generic_rpc_handlers([boundary.handlers(s) for s in SERVICES])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = [*(s.name for s in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)
        self._stack = AsyncExitStack()
        self.address = settings.listen
        """The listen address; inside the context, with the real port."""

    async def __aenter__(self) -> Self:
        try:
            port = self._server.add_insecure_port(self._settings.listen)
        except RuntimeError as exc:
            raise CannotServeError(f"can't listen on {self._settings.listen}: in use?") from exc
        if not self._settings.listen.startswith("unix:"):
            self.address = f"{self._settings.listen.rpartition(':')[0]}:{port}"
        self._stack.callback(self._workers.close)
        await self._health.start()
        await self._stack.enter_async_context(self._database)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # Health first, so that clients send no new calls; those in progress are finished.
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)
        await self._stack.aclose()

    def add_service(self, handlers: grpc.GenericRpcHandler) -> None:
        """Serve other handlers as well; call it before the context is entered."""
        self._server.add_generic_rpc_handlers([handlers])

    async def watch(self) -> None:
        """Migrate the store, then report its health for as long as the server runs.

        Raises CannotServeError if it can never be served by this server.
        """
        while True:
            state = await self._readiness.look()
            if state is not None and await self._health.report(serving=state.ready):
                if state.ready:
                    log.info("serving on %s", self.address)
                else:
                    log.warning("not serving: %s", state.why)
            await asyncio.sleep(_WATCH_SECONDS)
