"""A provider on a real server whose requests a test can see, and whose answers it can lose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tests.client.conftest import FAST
from wfe_persistence_client import PersistenceProvider


class Wire(grpc.aio.UnaryUnaryClientInterceptor):
    """Between a provider and its connection."""

    def __init__(self) -> None:
        #: What was sent, in order: the RPC and the request.
        self.sent: list[tuple[str, Any]] = []
        #: How many of the next answers to lose: the server has done the work by then.
        self.lose = 0
        #: Called before each request goes out.
        self.before: Callable[[str], Awaitable[None]] | None = None

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        method = client_call_details.method
        name = (method if isinstance(method, str) else method.decode()).rpartition("/")[2]
        self.sent.append((name, request))
        if self.before is not None:
            await self.before(name)
        call = await continuation(client_call_details, request)
        if self.lose > 0:
            self.lose -= 1
            await call.code()
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "lost")
        return call

    def take(self) -> list[str]:
        """The RPCs that were sent since the last time this was asked."""
        names = [name for name, _ in self.sent]
        self.sent.clear()
        return names

    @property
    def last(self) -> Any:
        """The request that was sent last."""
        return self.sent[-1][1]


def provider_on(
    target: str, wire: Wire | None = None, namespace: str | None = None, **options: Any
) -> PersistenceProvider:
    """A provider on a connection of its own, through the wire."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    interceptors: list[Any] = [] if wire is None else [wire]
    channel = grpc.aio.insecure_channel(
        target, [("grpc.enable_retries", 0), *limits], interceptors=interceptors
    )
    return PersistenceProvider(channel, namespace=namespace, timeout=60, retry=FAST, **options)
