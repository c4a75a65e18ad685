"""grpc.health.v1 for the server, and for each namespace under `NAME/SERVICE`.

The namespaces are looked at when they are asked for, so that a thousand of them cost nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.namespace import Namespaces

_WATCH_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Response = health_pb2.HealthCheckResponse


class NamespaceHealth(health.aio.HealthServicer):
    """The library's servicer for the services of the server; ours for those of namespaces."""

    def __init__(self, namespaces: Namespaces, services: Iterable[ServiceDescriptor]) -> None:
        super().__init__()
        self._namespaces = namespaces
        self._services = frozenset(service.full_name for service in services)
        self._draining = False

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer the health of one service."""
        if "/" not in request.service:
            answer: health_pb2.HealthCheckResponse = await super().Check(request, context)
            return answer
        status = await self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return Response(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Send the health of one service, and again whenever it changes."""
        if "/" not in request.service:
            await super().Watch(request, context)
            return
        last = None
        while True:
            status = await self._status(request.service)
            if status != last:
                await context.write(Response(status=status))
                last = status
            await asyncio.sleep(_WATCH_SECONDS)

    async def enter_graceful_shutdown(self) -> None:
        """From now on nothing is SERVING."""
        self._draining = True
        await super().enter_graceful_shutdown()

    async def _status(self, name: str) -> int:
        namespace, _, service = name.partition("/")
        if service not in self._services:
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
