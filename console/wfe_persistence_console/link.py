"""The console's connection to the server, and how calls are made over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from wfe_persistence_client import PersistenceError, PersistenceProvider, RetryPolicy
from wfe_persistence_client.errors import from_rpc_error
from wfe_persistence_client.link import Stubs
from wfe_persistence_console.web import Refusal

_CALL_SECONDS: Final = 20.0
_FAILING: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE

# How long a channel must have failed before another one takes its place: the server's certificate
# may be a new one.
_RENEW_SECONDS: Final = 5.0

_HTTP_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

_RequestT = TypeVar("_RequestT", contravariant=True)
_ResponseT = TypeVar("_ResponseT")


class _Unary(Protocol[_RequestT, _ResponseT]):
    def __call__(
        self, request: _RequestT, *, timeout: float, metadata: Any
    ) -> grpc.aio.UnaryUnaryCall[Any, _ResponseT]: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """In whose name calls are made, in which namespace."""

    link: Link
    token: str
    """Empty: the server asks for none."""
    namespace: str
    """Empty: the server's default."""

    @property
    def stubs(self) -> Stubs:
        """What can be called."""
        return self.link.stubs()

    def metadata(self) -> list[tuple[str, str]]:
        """What goes with each call."""
        metadata = []
        if self.namespace:
            metadata.append(("wfe-namespace", self.namespace))
        if self.token:
            metadata.append(("authorization", f"Bearer {self.token}"))
        return metadata

    async def call(self, method: _Unary[_RequestT, _ResponseT], request: _RequestT) -> _ResponseT:
        """One attempt at a call: whoever looks tries again. Raises Refusal."""
        try:
            return await method(request, timeout=_CALL_SECONDS, metadata=self.metadata())
        except grpc.aio.AioRpcError as exc:
            raise refusal(from_rpc_error(exc)) from exc

    async def stream(self, method: Any, request: Any) -> AsyncGenerator[Any, None]:
        """The responses of a stream, until the server or the reader ends it. Raises Refusal."""
        stream = method(request, metadata=self.metadata())
        try:
            async for response in stream:
                yield response
        except grpc.aio.AioRpcError as exc:
            raise refusal(from_rpc_error(exc)) from exc
        finally:
            stream.cancel()

    def provider(self) -> PersistenceProvider:
        """A provider on the same connection, for writes: it knows how to repeat them."""
        return PersistenceProvider(
            self.link.channel(),
            namespace=self.namespace or None,
            token=self.token or None,
            timeout=_CALL_SECONDS,
            retry=RetryPolicy(max_attempts=3),
            remember=0,
        )


class Link:
    """The connection of a console, which `make` opens."""

    def __init__(self, make: Callable[[], grpc.aio.Channel]) -> None:
        self._make = make
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._failing_since: float | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """The channel, a new one if the last has failed for a while."""
        now = asyncio.get_running_loop().time()
        if self._channel is not None:
            if self._channel.get_state(try_to_connect=True) is not _FAILING:
                self._failing_since = None
            elif self._failing_since is None:
                self._failing_since = now
            elif now - self._failing_since > _RENEW_SECONDS:
                self._replace()
        if self._channel is None:
            self._channel = self._make()
            self._stubs = Stubs(self._channel)
            self._failing_since = None
        return self._channel

    def stubs(self) -> Stubs:
        """What can be called on it."""
        self.channel()
        assert self._stubs is not None
        return self._stubs

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._replace()
        if self._closing:
            await asyncio.wait(self._closing)

    def _replace(self) -> None:
        assert self._channel is not None
        task = asyncio.get_running_loop().create_task(self._channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._channel = self._stubs = None


def refusal(error: PersistenceError) -> Refusal:
    """An error of the server, for the browser. Its text says nothing that the caller's own client
    would not be told."""
    status = HTTPStatus.BAD_GATEWAY
    if error.status is not None:
        status = _HTTP_STATUS.get(error.status, status)
    elif error.reason == "SERVER_UNREACHABLE":
        status = HTTPStatus.SERVICE_UNAVAILABLE
    message = str(error)
    if error.violations:
        message = "; ".join(f"{one.field}: {one.description}" for one in error.violations[:10])
    return Refusal(status, error.reason or "UNKNOWN", message)
