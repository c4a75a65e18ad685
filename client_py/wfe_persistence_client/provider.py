"""The engine's persistence provider, over the network."""

import asyncio

import grpc
import grpc.aio

from wfe_persistence_client import patches
from wfe_persistence_client.calls import RetryPolicy
from wfe_persistence_client.command import CommandHandler, Commands
from wfe_persistence_client.connection import DEFAULT_TIMEOUT, Token
from wfe_persistence_client.event import Events
from wfe_persistence_client.store import Store
from wfe_persistence_client.subscription import Subscriptions
from wfe_persistence_client.workflow import Workflows

__all__ = ["CommandHandler", "PersistenceProvider", "Token", "connect"]


class PersistenceProvider(Workflows, Events, Subscriptions, Commands, Store):
    """The operations of the engine's `PersistenceProvider` trait.

    Each of its bases has those of one aggregate; `Connection` has what they share. The
    way of a call: the method → `Calls` (calls.py) → the generated stub.

    What holds for every method:

    - It ends within `timeout` seconds, all attempts and pages together, with
      `DeadlineExceeded` at the latest (`with_timeout` sets another time).
    - It tries again by itself after failures that pass (`RetryPolicy`), but only
      where that is safe: reads; writes that are the same when made twice, or that the
      server knows again; and any write if it is certain that the attempt before wrote
      nothing.
    - It raises `PersistenceError`, besides those named with the method:
      `InvalidArgument` for what the store refuses, `Unavailable`,
      `CommitOutcomeUnknown` for a write that may or may not have been made,
      `ResourceExhausted`, `DeadlineExceeded`, `TransactionConflict`. What cannot
      be sent at all raises ValueError or TypeError.
    - It remembers digests of the workflows that it loaded or wrote last, and writes only
      what changed where it can; what is stored is the same as if it had sent all.
    - `as_at` and `as_of` of None mean now, by the database's clock; every datetime
      must have a timezone.
    - Cancelling it abandons the call; a write may have been made.
    """


def connect(
    target: str,
    *,
    namespace: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    token: Token | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    max_message_bytes: int | None = None,
    retry: RetryPolicy | None = None,
    strict: bool = False,
    remember: int = patches.DEFAULT_CAPACITY,
) -> PersistenceProvider:
    """A provider on a connection of its own.

    To be called where an event loop runs. The connection is made by the first
    call, and again after it broke. Close the provider, or use it as an async
    context manager:

        async with connect("localhost:50051") as provider:
            await provider.get_store_info()

    Args:
        target: `host:port`, `unix:/path/of/socket`, or any other gRPC target.
        namespace: the namespace all calls go to; None: the server's default.
        timeout: how long a call may take, all its attempts together, in seconds.
        token: sent as `authorization: Bearer …`. Without `credentials` it crosses
            the network in the clear: then only for a local server.
        credentials: of the TLS connection, for example
            `grpc.ssl_channel_credentials(...)`; None: no TLS.
        max_message_bytes: the largest answer to take; None: any size.
        retry: how often and how fast to try again; None: the defaults.
        strict: whether a workflow may replace only the revision that it was loaded or
            last written with; otherwise the last writer wins. See `persist_workflow`.
        remember: of how many execution pointers to remember what was loaded or written
            last, so that only what changes has to be sent; about 250 bytes each; the
            workflow used longest ago is forgotten first. 0: always send everything.
    """
    # A channel belongs to the loop it is made on; without one gRPC would pick some other.
    asyncio.get_running_loop()
    receive_limit = -1 if max_message_bytes is None else max_message_bytes
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", receive_limit),
        ("grpc.max_send_message_length", -1),
        # This adapter retries by itself: it knows what is safe to repeat.
        ("grpc.enable_retries", 0),
        # A connection whose other end vanished is found out while calls wait on it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnect within the span of the retries; gRPC's own default is up to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options)
    return PersistenceProvider(
        channel,
        namespace=namespace,
        timeout=timeout,
        token=token,
        retry=retry,
        strict=strict,
        remember=remember,
    )
