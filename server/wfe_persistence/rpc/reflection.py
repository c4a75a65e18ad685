"""Server reflection, for callers who have proved who they are; they need no role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc.guard import Guard
from wfe_persistence.rpc.status import abort

Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse
Context = grpc.aio.ServicerContext[Any, Any]


def reflection_handlers(services: Sequence[str], guard: Guard) -> grpc.GenericRpcHandler:
    """gRPC's handlers for the library's reflection of these services, behind the guard."""
    servicer: Any = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME])

    async def info(requests: AsyncIterator[Request], context: Context) -> AsyncIterator[Response]:
        try:
            await guard.identify(context)
        except PersistenceError as exc:
            await abort(context, exc)
        async for response in servicer.ServerReflectionInfo(requests, context):
            yield response

    handler: Any = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=Request.FromString,
        response_serializer=Response.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": handler}
    )
