"""What surrounds every handler: identify → authorize → limit → admit → receive → decode →
namespace → handle → encode → observe.

Handlers are registered with bytes on both sides, because gRPC itself reports undecodable requests
as UNKNOWN and shows internals, and because one wrapper per method is cheaper than a chain of
interceptors. To gRPC, all requests are streams (the wire is the same), because those it leaves to
the handler to receive, while it would receive the single request of a call that is not admitted.
Each step is one function; `_unary` and `_stream` take them in this order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics, offload
from wfe_persistence.errors import PersistenceError, too_large
from wfe_persistence.rpc import lasting, reading
from wfe_persistence.rpc.audit import Audit, Entry
from wfe_persistence.rpc.call import Call, Environment
from wfe_persistence.rpc.call_log import CallLog
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.check.wire import require_few_items
from wfe_persistence.rpc.failing import Context, Failures, note_outcome
from wfe_persistence.rpc.grpc_server import Handlers
from wfe_persistence.rpc.guard import Caller, Guard
from wfe_persistence.rpc.intake import Intake, Place
from wfe_persistence.rpc.limits import Limits
from wfe_persistence.rpc.named_field import NamingAField
from wfe_persistence.rpc.observed import Observed
from wfe_persistence.rpc.services import Method, Service
from wfe_persistence.store.namespace_set import members_of
from wfe_persistence.store.tables import Store
from wfe_persistence.time_spent import measured

if TYPE_CHECKING:
    from wfe_persistence.rpc.traces import Traces

# A call with less time than this (seconds) before its deadline can't succeed, so nothing is begun
# for it. (Clients round short timeouts up to whole milliseconds.)
_MIN_SECONDS = 0.005


class Boundary:
    """Wraps the methods of servicers; one for the whole server."""

    def __init__(
        self,
        env: Environment,
        intake: Intake,
        guard: Guard,
        limits: Limits,
        call_log: CallLog,
        audit: Audit | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._env = env
        self._intake = intake
        self._guard = guard
        self._limits = limits
        self._call_log = call_log
        self._audit = audit
        self._traces = traces
        self._failures = Failures(env, intake.deadlines)

    def handlers(self, services: Iterable[Service]) -> grpc.GenericRpcHandler:
        """gRPC's handlers for all these services."""
        handlers = {}
        for service in services:
            servicer = service.servicer()
            for method in service.methods:
                function = getattr(servicer, method.name)
                handlers[f"/{service.name}/{method.name}"] = self._handler(method, function)
        return Handlers(handlers)

    def _handler(self, method: Method, function: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        # From the beginning, so that the first call is seen as an increase.
        metrics.CALLS.add((*method.labels, "OK"), 0)
        if method.descriptor.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._exchange(method, function))
        if method.lasts:
            return grpc.stream_stream_rpc_method_handler(self._lasting(method, function))
        if method.descriptor.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, function))
        return grpc.stream_unary_rpc_method_handler(self._unary(method, function))

    def _unary(
        self, method: Method, function: Callable[[Message, Call], Awaitable[Message]]
    ) -> Any:
        async def answer(context: Context, entry: Entry) -> bytes:
            caller = await self._identify(context, method, entry)
            self._limits.admit(context, caller, method)
            deadline = self._deadline(context)
            if self._intake.refuses:
                await self._intake.refuse(context)
            with self._intake.admit(context, deadline) as place:
                data = await place.receive()
                metrics.RECEIVED_BYTES.add(method.labels, len(data))
                with self._intake.deadlines.until(deadline):
                    request, call = await self._open(data, caller, method, entry, place, context)
                    answering = function(request, call)
                    del data, request  # a call that waits lets go of them
                    with call.naming:
                        response = await answering
                    entry.names(response)
                    if offload.has_read_much():
                        await offload.pause_if_large()
                    await reading.tell(context, call, method)
            return self._encode(response)

        async def handle(_: object, context: Context) -> bytes:
            with self._observed(method, context) as entry:
                try:
                    data = await answer(context, entry)
                    metrics.SENT_BYTES.add(method.labels, len(data))
                    note_outcome(None, entry)
                except Exception as exc:
                    await self._failures.end(method, exc, context, entry)
            return data

        return handle

    def _stream(
        self, method: Method, function: Callable[[Message, Call], AsyncIterator[Iterable[Message]]]
    ) -> Any:
        """A handler that yields pages of messages.

        A page is encoded at once, so that only its bytes are kept while the client reads.
        """

        async def answer(context: Context, entry: Entry) -> None:
            caller = await self._identify(context, method, entry)
            self._limits.admit(context, caller, method)
            deadline = self._deadline(context)
            if self._intake.refuses:
                await self._intake.refuse(context)
            with self._intake.admit(context, deadline) as place:
                data = await place.receive()
                metrics.RECEIVED_BYTES.add(method.labels, len(data))
                with self._intake.deadlines.until(deadline):
                    request, call = await self._open(data, caller, method, entry, place, context)
                    del data
                    async with aclosing(function(request, call)) as pages:  # type: ignore[type-var]
                        with call.naming:
                            async for page in pages:
                                messages = deque(map(self._encode, page))
                                del page
                                metrics.SENT_BYTES.add(method.labels, sum(map(len, messages)))
                                await self._send(
                                    messages, context, ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
                                )
                    await reading.tell(context, call, method)

        return self._streaming(method, answer)

    def _lasting(
        self, method: Method, function: Callable[[Message, Call], AsyncIterator[Iterable[Message]]]
    ) -> Any:
        """A handler of a stream that goes on until the client ends it, or its own deadline."""

        async def answer(context: Context, entry: Entry) -> None:
            caller = await self._identify(context, method, entry)
            self._limits.admit(context, caller, method)
            deadline = self._deadline(context)
            if self._intake.refuses:
                await self._intake.refuse(context)
            with self._intake.admit(context, deadline, lasts=True) as place:
                data = await place.receive()
                metrics.RECEIVED_BYTES.add(method.labels, len(data))
                with self._intake.deadlines.until(deadline):
                    request, call = await self._open(data, caller, method, entry, place, context)
                del data
                place.release()
                remaining = context.time_remaining()
                loop = asyncio.get_running_loop()
                with self._intake.deadlines.until(
                    None if remaining is None else loop.time() + remaining
                ):
                    await lasting.run(
                        function(request, call),
                        send=partial(send, context),
                        identify=partial(self._identify, context, method, entry),
                        deadlines=self._intake.deadlines,
                    )

        async def send(context: Context, message: Message) -> None:
            data = self._encode(message)
            metrics.SENT_BYTES.add(method.labels, len(data))
            await self._send(deque([data]), context, ErrorReason.ERROR_REASON_READER_TOO_SLOW)

        return self._streaming(method, answer)

    def _exchange(
        self,
        method: Method,
        function: Callable[[Call], AbstractAsyncContextManager[Callable[[Any, Check], Any]]],
    ) -> Any:
        """A handler that answers each request of a stream, which goes on until the client ends it.

        The function gives, for as long as the stream lasts, what answers a request.
        """

        async def answer(context: Context, entry: Entry) -> None:
            loop = asyncio.get_running_loop()
            caller = await self._identify(context, method, entry)
            self._limits.admit(context, caller, method)
            deadline = self._deadline(context)
            if self._intake.refuses:
                await self._intake.refuse(context)
            remaining = context.time_remaining()
            ends = float("inf") if remaining is None else loop.time() + remaining
            with self._intake.admit(context, deadline, lasts=True) as place:
                data: bytes | None = await place.receive()
                with self._intake.deadlines.until(deadline):
                    store = await self._namespace(caller, method)
                naming = NamingAField(method.request_class())
                call = Call(store, Check(0, 0), self._env, caller, place, naming, store.database)
                identified = loop.time()
                async with function(call) as handle:
                    while data is not None:
                        if loop.time() - identified >= lasting.IDENTIFY_SECONDS:
                            await self._identify(context, method, entry)
                            identified = loop.time()
                        metrics.RECEIVED_BYTES.add(method.labels, len(data))
                        self._limits.space.note(store, method)
                        until = min(ends, loop.time() + self._env.max_deadline)
                        with self._intake.deadlines.until(until):
                            response = self._encode(
                                await self._answer_one(data, method, entry, handle)
                            )
                        metrics.SENT_BYTES.add(method.labels, len(response))
                        del data
                        place.release()
                        await self._send(
                            deque([response]), context, ErrorReason.ERROR_REASON_READER_TOO_SLOW
                        )
                        data = await self._intake.receive_next(place, self._env.stall_seconds, ends)
                        if data is not None:
                            self._limits.require_space(caller, method)
                            with self._intake.deadlines.until(
                                min(ends, loop.time() + self._env.max_deadline)
                            ):
                                await self._limits.pace(caller, method)
                with self._intake.deadlines.until(min(ends, loop.time() + self._env.max_deadline)):
                    await reading.tell(context, call, method)

        return self._streaming(method, answer)

    async def _answer_one(
        self,
        data: bytes,
        method: Method,
        entry: Entry,
        handle: Callable[[Message, Check], Awaitable[Message]],
    ) -> Message:
        """The answer to one request of a stream."""
        self._env.workers.begin(len(data))
        request, check = await offload.run(self._decode, data, method)
        entry.names(request)
        with NamingAField(request):
            response = await handle(request, check)
        entry.names(response)
        return response

    def _streaming(
        self, method: Method, answer: Callable[[Context, Entry], Awaitable[None]]
    ) -> Any:
        async def handle(_: object, context: Context) -> None:
            with self._observed(method, context) as entry:
                try:
                    await answer(context, entry)
                    note_outcome(None, entry)
                except Exception as exc:
                    await self._failures.end(method, exc, context, entry)

        return handle

    def _observed(self, method: Method, context: Context) -> Observed:
        return Observed(self._audit, self._call_log, self._traces, method, context)

    async def _identify(self, context: Context, method: Method, entry: Entry) -> Caller:
        """Who calls; raises PersistenceError unless they may make this call, as far as that does
        not depend on the request."""
        entry.caller = caller = await self._guard.identify(context)
        namespace = None if method.server_wide else caller.namespace
        self._guard.require(caller, method.required_role, namespace, method.name)
        return caller

    def _deadline(self, context: Context) -> float:
        """When a call must end, on the event loop's clock. Raises TimeoutError if that is now."""
        remaining = context.time_remaining()
        if remaining is None:
            remaining = self._env.default_deadline
        elif remaining < _MIN_SECONDS:
            raise TimeoutError
        return monotonic() + min(remaining, self._env.max_deadline)

    async def _open(
        self,
        data: bytes,
        caller: Caller,
        method: Method,
        entry: Entry,
        place: Place,
        context: Context,
    ) -> tuple[Message, Call]:
        """What a handler takes: the decoded request, and its call in the caller's namespace."""
        if self._env.workers.begin(len(data)):
            request, check = await offload.run(self._decode, data, method)
        else:
            request, check = self._decode(data, method)
        entry.names(request)
        if method.namespace_field:
            namespace = getattr(request, method.namespace_field)
            self._guard.require(caller, method.required_role, namespace, method.name)
        if method.set_field:
            [member] = members_of(getattr(request, method.set_field), 1)
            self._guard.require(caller, method.required_role, member, method.name)
        store = await self._namespace(caller, method)
        self._limits.space.note(store, method)
        database, at = store.database, None
        if database.replicas is not None:
            if method.lasts:
                at = reading.position_for_replica(method, context)
            else:
                store = reading.store_to_read(store, database.replicas, method, context)
        call = Call(store, check, self._env, caller, place, NamingAField(request), database, at)
        return request, call

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
            check.has_zero_byte = True
            if not method.is_bulk:
                check.no_nul(request)
        return request, check

    async def _namespace(self, caller: Caller, method: Method) -> Store:
        """The store that a call is for."""
        return await self._env.namespaces.get(None if method.server_wide else caller.namespace)

    def _encode(self, response: Message) -> bytes:
        """The response's bytes, unless they are more than clients must be able to receive."""
        data = response.SerializeToString()
        if len(data) > self._env.max_message_bytes:
            raise too_large(
                ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
                "response",
                len(data),
                self._env.max_message_bytes,
            )
        return data

    async def _send(
        self, messages: deque[bytes], context: Context, too_slow: ErrorReason.ValueType
    ) -> None:
        """Send messages as fast as the client reads; one that does not read on is not waited for:
        `too_slow` is raised.

        gRPC keeps the message it is sending, until the client reads on, cancels or disconnects.
        """
        try:
            while messages:
                async with asyncio.timeout(self._env.stall_seconds):
                    with measured("sending"):
                        await context.write(messages.popleft())
        except TimeoutError as exc:
            raise PersistenceError(
                too_slow,
                f"the client has not read on for {self._env.stall_seconds:g} s",
            ) from exc
        finally:
            messages.clear()  # the error's traceback refers to them
