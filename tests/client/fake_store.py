"""A server that answers as each test tells it to, over a real gRPC connection.

It keeps nothing. For each RPC a test gives the steps to take, one a call; the last
one is taken again for all further calls.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lifecycle_pb2,
    lock_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    transfer_pb2,
    workflow_pb2,
)

SERVICES = [
    service
    for file in (
        workflow_pb2,
        event_pb2,
        subscription_pb2,
        command_pb2,
        lifecycle_pb2,
        lock_pb2,
        queue_pb2,
        store_pb2,
        transfer_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
}
STREAMING = {
    "GetWorkflowInstances",
    "Watch",
    "WatchWorkflows",
    "ExportRecords",
    "MoveNamespace",
    # Of one request, in the tests.
    "ImportRecords",
    "CreateWorkflows",
    "CreateEvents",
}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Step: TypeAlias = Callable[[Any, Context], Awaitable[Message | Sequence[Message]]]


class FakeStore(grpc.GenericRpcHandler):
    """The server; `target` is its address."""

    def __init__(self, options: Sequence[tuple[str, int]] = ()) -> None:
        self.target = ""
        #: The requests that came, by RPC.
        self.requests: dict[str, list[Any]] = {}
        #: The metadata of the last request.
        self.metadata: dict[str, str | bytes] = {}
        self._steps: dict[str, list[Step]] = {}
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self,))

    def on(self, rpc: str, *steps: Step) -> None:
        assert any(method.name == rpc for method in METHODS.values()), rpc
        self._steps[rpc] = list(steps)

    def count(self, rpc: str) -> int:
        return len(self.requests.get(rpc, []))

    async def called(self, *rpcs: str) -> None:
        """Waits until each of them was called."""
        while not all(self.count(rpc) for rpc in rpcs):
            await asyncio.sleep(0.001)

    async def start(self, address: str) -> None:
        port = self._server.add_insecure_port(address)
        self.target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = METHODS.get(handler_call_details.method)
        if method is None:
            return None
        name = method.name

        async def unary(request: Any, context: Context) -> Any:
            return await self._step(name, request, context)

        async def stream(request: Any, context: Context) -> None:
            for message in await self._step(name, request, context):
                await context.write(message)

        request_class = message_factory.GetMessageClass(method.input_type)
        if name in STREAMING:
            return grpc.unary_stream_rpc_method_handler(
                stream,
                request_deserializer=request_class.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        return grpc.unary_unary_rpc_method_handler(
            unary,
            request_deserializer=request_class.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    async def _step(self, name: str, request: Any, context: Context) -> Any:
        self.requests.setdefault(name, []).append(request)
        self.metadata = dict(context.invocation_metadata() or ())
        steps = self._steps.get(name)
        if not steps:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the test gave no step")
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        return await step(request, context)


def answers(answer: Message | Sequence[Message]) -> Step:
    async def step(request: Any, context: Context) -> Message | Sequence[Message]:
        return answer

    return step


def fails(
    code: grpc.StatusCode,
    reason: str | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[tuple[str, str, str]] = (),
    retry_after: float | None = None,
    domain: str = "wfe.persistence",
) -> Step:
    """An error as the server makes it; without a reason as gRPC itself does."""
    details: list[Any] = []
    if reason is not None:
        info = error_details_pb2.ErrorInfo(
            reason=reason, domain=domain, metadata=dict(metadata or {})
        )
        details.append(info)
    bad = [
        error_details_pb2.BadRequest.FieldViolation(field=field, reason=why, description=text)
        for field, why, text in violations
    ]
    if bad:
        details.append(error_details_pb2.BadRequest(field_violations=bad))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message="words for people")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()

    async def step(request: Any, context: Context) -> Message:
        await context.abort(code, "words for people", trailing)

    return step


def hangs() -> Step:
    async def step(request: Any, context: Context) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    return step


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
#: The database was away: nothing was written.
not_written = fails(UNAVAILABLE, "DATABASE_UNAVAILABLE")
#: The connection broke while the call was under way: nobody knows.
broken = fails(UNAVAILABLE)


class Forwarder:
    """A TCP connection to the fake that can be cut while a call is under way."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = self._store.target.removeprefix("unix:")
        far_reader, far_writer = await asyncio.open_unix_connection(path)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()
