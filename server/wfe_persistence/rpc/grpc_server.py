"""gRPC's own server, with the limits that it keeps: most refuse with a text of gRPC's own, so they
are beyond those of `intake.py`, which give a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from wfe_persistence.settings import Settings

# Requests above our own limit are received up to this factor, to be refused with a reason: a state
# that grows, or a batch, exceeds the limit by less at first. Beyond it gRPC refuses them itself,
# unreceived and with a text of its own.
_OVERSIZE_FACTOR: Final = 2

_OPTIONS: Final = (
    # Otherwise a second server would silently share the port, and get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_send_message_length", -1),
    # How much of a request a client may send before we receive it. Without the second option gRPC
    # would raise it to what the network carries per round trip, and so take in whole requests that
    # we have not admitted yet.
    ("grpc.http2.lookahead_bytes", 16_384),
    ("grpc.http2.bdp_probe", 0),
    # Calls that we have not looked at yet, to refuse them with a reason. What comes beyond, gRPC
    # ends with CANCELLED: at random from the first number on, always from the second. (A limit of
    # streams per connection would bound them too, but gRPC's clients answer that with UNAVAILABLE.
    # So that limit is out of their reach, see `_streams`.)
    ("grpc.server.max_pending_requests", 8000),
    ("grpc.server.max_pending_requests_hard_limit", 12_000),
)


class Handlers(grpc.GenericRpcHandler):
    """Those of all services, because gRPC asks one after the other, for each call."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """That of a method; None: there is no such method."""
        return self._handlers.get(handler_call_details.method)


def largest_request(settings: Settings) -> int:
    """Up to how many bytes a request is received at all."""
    return settings.max_message_bytes * _OVERSIZE_FACTOR


def grpc_server(settings: Settings, connections: int) -> grpc.aio.Server:
    """A server of gRPC, without handlers and ports, for at most so many connections."""
    return grpc.aio.server(
        options=[
            *_OPTIONS,
            ("grpc.max_receive_message_length", largest_request(settings)),
            ("grpc.max_concurrent_streams", _streams(settings.max_calls_per_connection)),
            ("grpc.max_allowed_incoming_connections", connections),
            ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle)),
            ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_grace)),
        ]
    )


def _streams(max_calls: int) -> int:
    """How many streams a connection may have: far more than calls, which are refused with a reason
    before. With any limit, gRPC defends itself against floods of calls that are reset at once."""
    return max(12_000, 2 * max_calls)


def _milliseconds(seconds: float) -> int:
    """For gRPC, which counts in 32 bits; the largest number means for ever."""
    return min(max(1, int(seconds * 1000)), 2**31 - 1)
