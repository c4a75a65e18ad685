"""What surrounds every handler: identify → admit → decode → namespace → handle → encode → observe.

Handlers are registered with bytes on both sides, because gRPC itself reports undecodable requests
as UNKNOWN and shows internals, and because one wrapper per method is cheaper than a chain of
interceptors. Each step is one function; `_unary` and `_stream` call them in this order.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.rpc.call import Call, Environment
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.check.wire import require_few_items
from wfe_persistence.rpc.services import Method, Service
from wfe_persistence.rpc.status import (
    DETAILS_KEY,
    MAX_MESSAGE_BYTES,
    STATUS_OF,
    details,
    reason_name,
    shortened,
)
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

NAMESPACE_KEY = "wfe-namespace"

# A call with less time than this (seconds) before its deadline can't succeed, so nothing is begun
# for it. (Clients round short timeouts up to whole milliseconds.)
_MIN_SECONDS = 0.005

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call's metadata says about who calls, and for what."""

    namespace: str | None
    """None: the default namespace."""


class Boundary:
    """Wraps the methods of servicers; one for the whole server."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def handlers(self, service: Service) -> grpc.GenericRpcHandler:
        """gRPC's handlers for a service."""
        servicer = service.servicer()
        return grpc.method_handlers_generic_handler(
            service.name,
            {
                method.name: self._handler(method, getattr(servicer, method.name))
                for method in service.methods
            },
        )

    def _handler(self, method: Method, function: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        if method.descriptor.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, function))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, function))

    def _unary(
        self, method: Method, function: Callable[[Message, Call], Awaitable[Message]]
    ) -> Any:
        async def handle(data: bytes, context: Context) -> bytes:
            try:
                caller = _identify(context)
                async with asyncio.timeout(self._admit(data, context)):
                    self._env.workers.begin(len(data))
                    request, check = await offload.run(self._decode, data, method)
                    store = await self._namespace(caller, method)
                    response = await function(request, Call(store, check, self._env))
                    await offload.pause_if_large()
                data = self._encode(response)
                _observe(method, None)
            except Exception as exc:
                await self._fail(method, exc, context, data)
            return data

        return handle

    def _stream(
        self, method: Method, function: Callable[[Message, Call], AsyncIterator[Iterable[Message]]]
    ) -> Any:
        """A handler that yields pages of messages.

        A page is encoded at once, so that only its bytes are kept while the client reads.
        """

        async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                caller = _identify(context)
                async with asyncio.timeout(self._admit(data, context)):
                    self._env.workers.begin(len(data))
                    request, check = await offload.run(self._decode, data, method)
                    store = await self._namespace(caller, method)
                    call = Call(store, check, self._env)
                    async with aclosing(function(request, call)) as pages:  # type: ignore[type-var]
                        async for page in pages:
                            messages = deque(map(self._encode, page))
                            del page
                            await self._send(messages, context)
                _observe(method, None)
            except Exception as exc:
                await self._fail(method, exc, context, data)
            return
            yield b""  # an async generator, to gRPC; but only write() can be timed from here

        return handle

    def _admit(self, data: bytes, context: Context) -> float:
        """Whether a call may be tried at all; returns its timeout in seconds.

        The place for limits. Raises PersistenceError or TimeoutError for a call that is refused.
        """
        remaining = context.time_remaining()
        if remaining is not None and remaining < _MIN_SECONDS:
            raise TimeoutError
        if len(data) > self._env.max_message_bytes:
            raise self._too_large(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, "request", data)
        timeout = self._env.default_deadline if remaining is None else remaining
        return min(timeout, self._env.max_deadline)

    def _decode(self, data: bytes, method: Method) -> tuple[Message, Check]:
        """The request, and what is wrong with it so far."""
        require_few_items(data, method.descriptor.input_type)
        try:
            request = method.request_class.FromString(data)
        except DecodeError as exc:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_MALFORMED_MESSAGE,
                f"the request is not a valid {method.request_class.DESCRIPTOR.full_name}, or has "
                "text that is not valid UTF-8",
            ) from exc
        check = Check(len(data), self._env.max_message_bytes)
        if b"\0" in data:
            check.no_nul(request)
        return request, check

    async def _namespace(self, caller: Caller, method: Method) -> Store:
        """The store that a call is for."""
        return await self._env.namespaces.get(None if method.server_wide else caller.namespace)

    def _encode(self, response: Message) -> bytes:
        """The response's bytes, unless they are more than clients must be able to receive."""
        data = response.SerializeToString()
        if len(data) > self._env.max_message_bytes:
            raise self._too_large(ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE, "response", data)
        return data

    async def _send(self, messages: deque[bytes], context: Context) -> None:
        """Send messages as fast as the client reads; one that does not read on is not waited for.

        gRPC keeps the message it is sending, until the client reads on, cancels or disconnects.
        """
        try:
            while messages:
                async with asyncio.timeout(self._env.stall_seconds):
                    await context.write(messages.popleft())
        except TimeoutError as exc:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
                f"the client has not read on for {self._env.stall_seconds:g} s",
            ) from exc
        finally:
            messages.clear()  # the error's traceback refers to them

    async def _fail(
        self, method: Method, exc: Exception, context: Context, data: bytes
    ) -> NoReturn:
        """End a call, whose request is `data`, with the status of what was raised."""
        error = await self._explain(exc, context)
        if error.reason == ErrorReason.ERROR_REASON_INVALID_FIELD and not error.violations:
            error = _naming_a_field(error, method.request_class.FromString(data))
        _observe(method, error)
        await context.abort(
            STATUS_OF[error.reason],
            shortened(str(error), MAX_MESSAGE_BYTES),
            trailing_metadata=((DETAILS_KEY, details(error)),),
        )
        raise AssertionError("abort() raises")

    async def _explain(self, exc: Exception, context: Context) -> PersistenceError:
        """What the caller may know about a failure."""
        if isinstance(exc, PersistenceError):
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                return await self._explain_missing_tables(exc, _identify(context))
            return exc
        if isinstance(exc, TimeoutError):
            return PersistenceError(
                ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, "the deadline passed", retry_after=0.1
            )
        reference = uuid.uuid4().hex[:12]
        log.error("bug %s", reference, exc_info=exc)
        return PersistenceError(
            ErrorReason.ERROR_REASON_INTERNAL,
            f"internal error; the server logged it under {reference}",
        )

    async def _explain_missing_tables(
        self, error: PersistenceError, caller: Caller
    ) -> PersistenceError:
        """While the server starts and migrates, they will be created soon; later their absence may
        mean that the namespace was deleted."""
        if self._env.readiness.is_starting:
            return PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
                "the server is starting and migrating the store",
                retry_after=0.5,
            )
        if caller.namespace:
            self._env.namespaces.forget(caller.namespace)
            try:
                await self._env.namespaces.get(caller.namespace)
            except PersistenceError as exc:
                return exc
        return error

    def _too_large(self, reason: ErrorReason.ValueType, what: str, data: bytes) -> PersistenceError:
        limit = self._env.max_message_bytes
        return PersistenceError(
            reason,
            f"the {what} has {len(data)} bytes, the maximum is {limit}",
            metadata={"limit_bytes": str(limit)},
        )


def _identify(context: Context) -> Caller:
    """Who calls, and for which namespace, from the metadata. The place for authentication."""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            return Caller(value if isinstance(value, str) else value.decode())
    return Caller(None)


def _naming_a_field(error: PersistenceError, request: Message) -> PersistenceError:
    """The error of a value that only the database refused: the checks have a rule for every value
    of which that is known. It names the first field of the request, which has the rest in it."""
    log.warning("%s: %s", request.DESCRIPTOR.full_name, error.__cause__)
    for field, _ in request.ListFields():
        if field.name != "request_id":
            return invalid_field(
                field.name, FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT, str(error)
            )
    return error


def _observe(method: Method, error: PersistenceError | None) -> None:
    """Log the outcome of a call; None: it succeeded. The place for metrics."""
    if error is None:
        log.debug("%s: OK", method.name)
    else:
        log.debug("%s: %s: %s", method.name, reason_name(error.reason), error)
