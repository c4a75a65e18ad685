"""What stands around every handler: bytes to message, namespace, deadline, errors to statuses.

Handlers are registered with raw bytes on both sides, because what gRPC itself says of undecodable
bytes is UNKNOWN and shows internals, and because one wrapper per method is cheaper than a chain of
interceptors.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.status import (
    DETAILS_KEY,
    MAX_MESSAGE_BYTES,
    STATUS_OF,
    details,
    reason_name,
    shortened,
)
from wfe_persistence.store.namespace import Namespaces

log = logging.getLogger(__name__)

NAMESPACE_KEY = "wfe-namespace"

# The requests of calls that go to the server as a whole, whatever namespace the client is set to.
_WHOLE_SERVER = frozenset(
    {"CreateNamespaceRequest", "ListNamespacesRequest", "DeleteNamespaceRequest"}
)

# A call whose deadline is closer than this can't be answered in time: nothing is begun for it.
# (Clients round short timeouts up to whole milliseconds.)
_LEAST_SECONDS = 0.005

Context = grpc.aio.ServicerContext[Any, Any]


class Boundary:
    """Wraps the methods of servicers; one for the whole server."""

    def __init__(
        self,
        namespaces: Namespaces,
        *,
        max_message_bytes: int,
        default_deadline: float,
        is_starting: Callable[[], bool],
    ) -> None:
        self._namespaces = namespaces
        self._max_message_bytes = max_message_bytes
        self._default_deadline = default_deadline
        self._is_starting = is_starting

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """gRPC's handlers for a service."""
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {method.name: self._handler(method, servicer) for method in service.methods},
        )

    def _handler(
        self, method: MethodDescriptor, servicer: object
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        request_class = GetMessageClass(method.input_type)
        function = getattr(servicer, method.name)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(function, request_class))
        return grpc.unary_unary_rpc_method_handler(self._unary(function, request_class))

    def _unary(
        self, function: Callable[[Message, Call], Awaitable[Message]], request_class: type[Message]
    ) -> Any:
        async def handle(data: bytes, context: Context) -> bytes:
            try:
                async with asyncio.timeout(self._seconds(context)):
                    request, call = await self._open(data, request_class, context)
                    answer = await function(request, call)
                return self._serialized(answer)
            except Exception as exc:
                await self._abort(context, exc)

        return handle

    def _stream(
        self,
        function: Callable[[Message, Call], AsyncIterator[Message]],
        request_class: type[Message],
    ) -> Any:
        async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                async with asyncio.timeout(self._seconds(context)):
                    request, call = await self._open(data, request_class, context)
                    async with aclosing(function(request, call)) as answers:  # type: ignore[type-var]
                        async for answer in answers:
                            await context.write(self._serialized(answer))
            except Exception as exc:
                await self._abort(context, exc)
            return
            yield b""  # an async generator, to gRPC; but only write() can be timed from here

        return handle

    def _serialized(self, answer: Message) -> bytes:
        data = answer.SerializeToString()
        if len(data) > self._max_message_bytes:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
                f"the answer has {len(data)} bytes, the limit is {self._max_message_bytes}",
                metadata={"limit_bytes": str(self._max_message_bytes)},
            )
        return data

    def _seconds(self, context: Context) -> float:
        """How long the call may take."""
        remaining = context.time_remaining()
        if remaining is None:
            return self._default_deadline
        if remaining < _LEAST_SECONDS:
            raise TimeoutError
        return remaining

    async def _open(
        self, data: bytes, request_class: type[Message], context: Context
    ) -> tuple[Message, Call]:
        if len(data) > self._max_message_bytes:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE,
                f"the request has {len(data)} bytes, the limit is {self._max_message_bytes}",
                metadata={"limit_bytes": str(self._max_message_bytes)},
            )
        try:
            request = request_class.FromString(data)
        except DecodeError as exc:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_MALFORMED_MESSAGE,
                f"the request is no {request_class.DESCRIPTOR.full_name}, or has text that is "
                "no UTF-8",
            ) from exc
        check = Check(len(data), self._max_message_bytes)
        if b"\0" in data:
            check.no_nul(request)
        namespace = None if request_class.DESCRIPTOR.name in _WHOLE_SERVER else _namespace(context)
        store = await self._namespaces.get(namespace)
        return request, Call(store, check, self._max_message_bytes)

    async def _abort(self, context: Context, exc: Exception) -> NoReturn:
        """End the call with the status of what went wrong."""
        if isinstance(exc, PersistenceError):
            error = await self._explained(context, exc)
        elif isinstance(exc, TimeoutError):
            error = PersistenceError(
                ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, "the deadline passed", retry_after=0.1
            )
        else:
            reference = uuid.uuid4().hex[:12]
            log.error("bug %s", reference, exc_info=exc)
            error = PersistenceError(
                ErrorReason.ERROR_REASON_INTERNAL,
                f"internal error; the server's log has it under {reference}",
            )
        log.debug("%s: %s", reason_name(error.reason), error)
        await context.abort(
            STATUS_OF[error.reason],
            shortened(str(error), MAX_MESSAGE_BYTES),
            trailing_metadata=((DETAILS_KEY, details(error)),),
        )
        raise AssertionError("abort() raises")

    async def _explained(self, context: Context, error: PersistenceError) -> PersistenceError:
        """Tables that are missing will come soon, while the server starts and migrates; later they
        may mean that the whole namespace was deleted."""
        namespace = _namespace(context)
        if error.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED and self._is_starting():
            return PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
                "the server is starting and brings the store up to date",
                retry_after=0.5,
            )
        if error.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED and namespace:
            self._namespaces.forget(namespace)
            try:
                await self._namespaces.get(namespace)
            except PersistenceError as exc:
                return exc
        return error


def _namespace(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            return value if isinstance(value, str) else value.decode()
    return None
