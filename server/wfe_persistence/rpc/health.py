"""grpc.health.v1 for the server, and for each namespace under `NAME/SERVICE`.

A namespace is only looked at when it is asked for, so that a thousand of them cost nothing. The
health of the server is for everybody, that of a namespace for those who may read in it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.access.role import Role
from wfe_persistence.deadlines import Deadlines
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.rpc.guard import Caller, Guard
from wfe_persistence.rpc.intake import Intake
from wfe_persistence.rpc.services import SERVICES
from wfe_persistence.rpc.status import abort
from wfe_persistence.store.namespace import Namespaces

LIVENESS: Final = "liveness"
"""The name of the health of the process itself, for liveness probes: an unreachable database is no
reason to restart the server. The empty name and those of services tell whether calls can succeed.
"""

_WATCH_SECONDS = 1.0

OF_A_DATABASE: Final = "database:"
"""What the name of the health of one of the service's databases begins with; its name follows."""

_NAMES: Final = frozenset(service.name for service in SERVICES)

Context = grpc.aio.ServicerContext[Any, Any]
Response = health_pb2.HealthCheckResponse


class Health(health.aio.HealthServicer):
    """The library's servicer for the server as a whole; ours for namespaces."""

    def __init__(self, namespaces: Namespaces, intake: Intake, guard: Guard) -> None:
        super().__init__()
        self._namespaces = namespaces
        self._intake = intake
        self._guard = guard
        self._serving: bool | None = None
        self._draining = False
        self._databases: dict[str, bool] = {}
        self._watches = Deadlines()
        self.watches = 0
        """How many clients watch the health of something."""
        metrics.SERVING.read = lambda: [((), float(bool(self._serving)))]

    async def start(self) -> None:
        """Report that the process is alive, but not serving yet."""
        await self.set(LIVENESS, Response.SERVING)
        await self.report(serving=False)

    async def report(self, *, serving: bool) -> bool:
        """Set the health of the server and of its services; returns whether it has changed."""
        if serving == self._serving or self._draining:
            return False
        self._serving = serving
        for name in ("", *_NAMES):
            await self.set(name, Response.SERVING if serving else Response.NOT_SERVING)
        return True

    async def report_database(self, name: str, *, serving: bool) -> None:
        """Set the health of one of the databases."""
        if serving == self._databases.get(name) or self._draining:
            return
        self._databases[name] = serving
        status = Response.SERVING if serving else Response.NOT_SERVING
        await self.set(OF_A_DATABASE + name, status)

    def handlers(self) -> grpc.GenericRpcHandler:
        """gRPC's handlers. They get the request from the intake: gRPC would take in large ones from
        anybody, and any number of them."""

        async def check(_: object, context: Context) -> health_pb2.HealthCheckResponse:
            return await self.Check(await self._request(context, limited=False), context)

        async def watch(_: object, context: Context) -> None:
            await self.Watch(await self._request(context, limited=True), context)

        encode = Response.SerializeToString
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=encode),
                "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=encode),
            },
        )

    async def _request(self, context: Context, *, limited: bool) -> health_pb2.HealthCheckRequest:
        try:
            data = await self._intake.attend(context, limited=limited)
        except PersistenceError as exc:
            await abort(context, exc)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError as gone:  # its client has hung up
            raise asyncio.CancelledError from gone
        request = health_pb2.HealthCheckRequest()
        try:
            request.ParseFromString(data)
        except DecodeError:
            error = "the request is not a valid grpc.health.v1.HealthCheckRequest"
            await abort(
                context, PersistenceError(ErrorReason.ERROR_REASON_MALFORMED_MESSAGE, error)
            )
        return request

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the health of one service."""
        if "/" not in request.service:
            response: Response = await super().Check(request, context)
            return response
        try:
            status = await self._status(request.service, await self._guard.identify(context))
        except PersistenceError as exc:
            await abort(context, exc)
        if status == Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return Response(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Send the health of one service, and again whenever it changes."""
        self.watches += 1
        try:
            with self._watches.until(None):
                await self._watch(request, context)
        except TimeoutError:
            await abort(context, shutting_down())
        finally:
            self.watches -= 1

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        if "/" not in request.service:
            await super().Watch(request, context)
            return
        last = None
        while True:
            try:
                # Again each time: who may see it may change.
                status = await self._status(request.service, await self._guard.identify(context))
            except PersistenceError as exc:
                await abort(context, exc)
            if status != last:
                await context.write(Response(status=status))
                last = status
            await asyncio.sleep(_WATCH_SECONDS)

    @property
    def is_draining(self) -> bool:
        """Whether the server has begun to stop."""
        return self._draining

    async def enter_graceful_shutdown(self) -> None:
        """From now on nothing but the process is SERVING."""
        await self.report(serving=False)
        for name in self._databases:
            await self.report_database(name, serving=False)
        self._draining = True

    def end_watches(self) -> None:
        """End what clients watch, as UNAVAILABLE: they shall watch another server."""
        self._watches.expire()

    async def _status(self, name: str, caller: Caller) -> int:
        """The health of a service in a namespace. Raises ACCESS_DENIED."""
        namespace, _, service = name.partition("/")
        self._guard.require(caller, Role.READER, namespace, "Health")
        if service not in _NAMES:
            return Response.SERVICE_UNKNOWN
        if self._draining:
            return Response.NOT_SERVING
        try:
            current = await self._namespaces.is_current(namespace)
        except PersistenceError as exc:
            if exc.reason in (
                ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
                ErrorReason.ERROR_REASON_INVALID_NAMESPACE,
            ):
                return Response.SERVICE_UNKNOWN
            return Response.NOT_SERVING
        return Response.SERVING if current else Response.NOT_SERVING
