"""The persistence provider and how to connect it."""

import asyncio
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from wfe_persistence_client import fork, patches
from wfe_persistence_client.calls import RetryPolicy
from wfe_persistence_client.changes import Changes
from wfe_persistence_client.command import CommandHandler, Commands
from wfe_persistence_client.connection import DEFAULT_TIMEOUT
from wfe_persistence_client.credentials import Tls, Token, check_private, token_source
from wfe_persistence_client.event import Events
from wfe_persistence_client.hints import checked, checked_methods
from wfe_persistence_client.lifecycle import Lifecycle
from wfe_persistence_client.link import check_target
from wfe_persistence_client.lock import Locks
from wfe_persistence_client.pool import OWN_CONNECTION, ChannelPool
from wfe_persistence_client.retention import Retention
from wfe_persistence_client.store import Store
from wfe_persistence_client.subscription import Subscriptions
from wfe_persistence_client.transfer import Transfer
from wfe_persistence_client.worker import Workers

_MAX_CHANNELS: Final = 64

__all__ = ["CommandHandler", "PersistenceProvider", "Token", "connect"]


@checked_methods
class PersistenceProvider(
    Workers, Changes, Events, Subscriptions, Commands, Lifecycle, Locks, Store, Retention, Transfer
):
    """The operations of the engine's `PersistenceProvider` trait.

    Each base class has the operations of one aggregate; `Connection` has what they
    share. A call goes from the method through `Calls` (calls.py) to the generated stub.

    This holds for every method:

    - It ends within `timeout` seconds, including all attempts and pages, or raises
      `DeadlineExceeded` (`with_timeout` sets another timeout).
    - It retries transient failures (`RetryPolicy`), but only where that is safe: reads;
      writes that are idempotent or carry an idempotency key; and any write if the
      previous attempt certainly wrote nothing. While there is no connection to the
      server, it waits for one: an outage that ends within `timeout` goes unnoticed.
    - The `iter_…` methods fetch pages on demand; the timeout then applies to each page.
      `page_size` is the number of items per page, up to 1000; 0 means 100.
    - It raises subclasses of `PersistenceError`. Besides those listed with the method:
      `InvalidArgument` for invalid arguments, `Unavailable`, `CommitOutcomeUnknown` for
      a write that may or may not have been applied, `ResourceExhausted`,
      `DeadlineExceeded`, `TransactionConflict`.
    - Arguments that cannot be sent raise TypeError or ValueError before anything is sent,
      with the path of the field: `execution_pointers[3].children: expected a list of
      str, not str`. Types are those of the hints; bool is not accepted as int.
    - It remembers digests of the workflows that it loaded or wrote most recently, and
      sends patches where it can; the stored state is the same as if it had sent the
      full state.
    - `as_at` and `as_of` of None mean now, by the database's clock; every datetime
      must have a timezone.
    - If it is cancelled, a write may or may not have been applied.
    """


@checked
def connect(
    target: str,
    *,
    namespace: str | None = None,
    namespace_set: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    token: Token | None = None,
    token_file: str | Path | None = None,
    allow_insecure_token: bool = False,
    tls: Tls | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    max_message_bytes: int | None = None,
    channels: int = 1,
    retry: RetryPolicy | None = None,
    strict: bool = False,
    remember: int = patches.DEFAULT_CAPACITY,
    reads: str | None = None,
) -> PersistenceProvider:
    """Creates a provider with its own connection.

    Call it where an event loop is running: the provider belongs to that loop, and to this
    process (see "Processes" in the package's documentation). The first call opens the
    connection; it is reopened after a failure. Close the provider, or use it as an async
    context manager:

        async with connect("localhost:50052") as provider:
            await provider.get_store_info()

    Args:
        target: `host:port`, `unix:/path/of/socket`, or any other gRPC target. gRPC
            connects through an HTTP proxy if the environment variable `http_proxy` names
            one, except to the hosts in `no_proxy`, and never with a token in plain text.
        namespace: the namespace of all calls; None: the server's default.
        namespace_set: the namespace set over which all calls are spread, instead of a
            namespace. The first call asks the server which members it has; see
            `NamespaceSetProvider` for what differs.
        timeout: maximum duration of a call, including all attempts and the wait for a
            connection, in seconds; infinity counts as a year.
        token: sent as `authorization: Bearer …`: the token, or a function that returns the
            current one. The function is called before every attempt, and must not block: get
            tokens in a task of their own.
        token_file: a file with the token, instead of `token`. It is read again before every
            attempt, so that tokens can be replaced, as Kubernetes does; while it cannot be
            read, the last token stays in use. A call that is rejected as `Unauthenticated` is
            retried once, if the file (or function) has another token by then.
        allow_insecure_token: whether a token may be sent in plain text over a network, for
            networks that encrypt everything themselves. By default, it is sent with TLS,
            to a loopback address, or over a Unix socket only.
        tls: to connect with TLS: `Tls(ca=…)`, with a client certificate `Tls(ca=…, cert=…,
            key=…)`; None: no TLS, unless there are `credentials`.
        credentials: gRPC's own, instead of `tls`.
        max_message_bytes: maximum size of a response; None: unlimited.
        channels: number of connections, over which the calls are spread, from 1 to 64. More
            than one make sense if one host keeps several processes of a server busy
            (`--workers`), or several servers behind one address: a connection stays with one.
        retry: how often and how fast to retry; None: the defaults.
        strict: whether a write may replace only the revision with which the workflow
            was loaded or last written; otherwise the last writer wins. See
            `persist_workflow`.
        remember: the size of the LRU cache of loaded and written workflows, against
            which patches are computed, in units of 250 bytes. An execution pointer takes
            about one, a workflow about three more; what they really take is counted. 0:
            always send the full state.
        reads: where the server reads, if its database has replicas: "replica", for what may be
            stale by a moment, or "primary"; None: lists, counts, exports and what is behind in
            feeds from a replica, all else from the primary. Whatever this provider (with those
            made from it) has written, its reads contain; what others have written may be missing
            for up to 2 s, or as the server is set up. Not for hosts: what they load to write it
            should be current.

    Raises:
        ValueError: an argument is invalid, or a token would be sent in plain text.
        OSError: a file cannot be read.
    """
    check_target(target)
    if namespace is not None and namespace_set is not None:
        raise ValueError("give namespace or namespace_set, not both")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise ValueError(f"channels must be from 1 to {_MAX_CHANNELS}")
    source = token_source(token, token_file)
    options: list[tuple[str, int | str]] = []
    if tls is not None:
        if credentials is not None:
            raise ValueError("give tls or credentials, not both")
        credentials = tls.credentials()
        options += tls.options()
    if source is not None and credentials is None and not allow_insecure_token:
        check_private(target)
        # A proxy would be somewhere else.
        options.append(("grpc.enable_http_proxy", 0))
    fork.check_new_channel()
    # A channel belongs to the event loop on which it is created; without one, gRPC
    # would choose another.
    asyncio.get_running_loop()
    receive_limit = -1 if max_message_bytes is None else max_message_bytes
    options += [
        ("grpc.max_receive_message_length", receive_limit),
        ("grpc.max_send_message_length", -1),
        # This client retries itself: it knows which calls are safe to repeat.
        ("grpc.enable_retries", 0),
        # Detects a dead connection while calls are waiting on it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnect within the duration of the retries; gRPC's default backoff is up to
        # 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if channels > 1:
        options.append(OWN_CONNECTION)
    made: list[grpc.aio.Channel] = [
        grpc.aio.insecure_channel(target, options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options)
        for _ in range(channels)
    ]
    channel = made[0] if channels == 1 else ChannelPool(made)
    provider = PersistenceProvider(
        channel,
        namespace=namespace,
        timeout=timeout,
        token=source,
        retry=retry,
        strict=strict,
        remember=remember,
        reads=reads,
    )
    provider._link.own(target, encrypted=credentials is not None)
    if namespace_set is not None:
        # (It is a subclass.)
        from wfe_persistence_client.sets.provider import NamespaceSetProvider

        return NamespaceSetProvider.over(provider, namespace_set)
    return provider
