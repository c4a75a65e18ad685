"""What all operations of a provider share: the channel, the stubs and how calls are made."""

import copy
import uuid
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc.aio

from wfe_persistence_client import patches
from wfe_persistence_client.calls import Calls, RetryPolicy
from wfe_persistence_client.credentials import Token, check_token, current_token
from wfe_persistence_client.hints import checked
from wfe_persistence_client.link import Link
from wfe_persistence_client.positions import Positions, Reading
from wfe_persistence_client.tracing import trace_context

if TYPE_CHECKING:
    from wfe.persistence.v1 import (
        command_pb2_grpc,
        event_pb2_grpc,
        lifecycle_pb2_grpc,
        lock_pb2_grpc,
        queue_pb2_grpc,
        store_pb2_grpc,
        subscription_pb2_grpc,
        transfer_pb2_grpc,
        workflow_pb2_grpc,
    )

DEFAULT_TIMEOUT: Final = 30.0
#: Maximum number of items per page.
LARGEST_PAGE: Final = 1000


@dataclass(slots=True)
class _Shared:
    """State that all copies of a provider share."""

    memory: patches.Memory
    positions: Positions
    #: False: the server is too old to support CommitWorkflow.
    commits: bool = True


class Connection:
    """A channel to the server, and the namespace, timeout and token of its calls.

    A call goes from a method of one of the aggregates to `_calls`, which adds deadline,
    metadata, retries and typed errors, and from there to one of the stubs created here.
    """

    @checked
    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        namespace: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
        strict: bool = False,
        remember: int = patches.DEFAULT_CAPACITY,
        reads: str | None = None,
    ) -> None:
        """Creates a provider on the caller's channel; `connect` creates its own.

        Closing the provider closes the channel. The channel should have gRPC's own
        retries disabled (`grpc.enable_retries` = 0), and be encrypted if there is a token.
        """
        check_token(token)
        self._token = token
        self._strict = strict
        self._shared = _Shared(patches.Memory(remember), Positions())
        self._link = Link(channel)
        self._reads = reads
        self._bind(namespace, timeout, retry or RetryPolicy())

    async def __aenter__(self) -> Self:
        """The provider itself."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in progress fail.

        Providers created from this one by `with_timeout` and `with_namespace` share the
        connection and are closed too. In a process that was forked from the provider's
        own, this does nothing.
        """
        await self._link.close()

    def with_timeout(self, timeout: float) -> Self:
        """A provider on the same connection, with another timeout.

        For a single call: `await provider.with_timeout(5).get_event(event_id)`.

        Args:
            timeout: in seconds, greater than 0; infinity counts as a year.
        """
        return self._copy(namespace=self._namespace, timeout=timeout)

    def with_namespace(self, namespace: str | None) -> Self:
        """A provider on the same connection, for another namespace.

        Args:
            namespace: its name; None: the server's default.
        """
        return self._copy(namespace=namespace, timeout=self._calls.timeout)

    def with_reads(self, reads: str | None) -> Self:
        """A provider on the same connection, whose reads go elsewhere.

        For a single call: `await provider.with_reads("primary").list_events()`.

        Args:
            reads: see `connect`.
        """
        other = copy.copy(self)
        other._reads = reads
        return other._copy(namespace=self._namespace, timeout=self._calls.timeout)

    def _in_one_go(self) -> Self:
        """A copy of the provider in which all calls share one deadline, which starts now."""
        other = copy.copy(self)
        other._calls = self._calls.in_one_go()
        return other

    def _copy(self, *, namespace: str | None, timeout: float) -> Self:
        # Shares the stubs, so that a copy for a single call is cheap.
        other = copy.copy(self)
        other._bind(namespace, timeout, self._calls.retry)
        return other

    def _bind(self, namespace: str | None, timeout: float, retry: RetryPolicy) -> None:
        if namespace is not None:
            _check_metadata("namespace", namespace)
        self._namespace = namespace
        # Refers to neither this provider nor its link: without a cycle, one that nobody
        # closes is noticed at once.
        metadata = partial(_metadata, namespace, self._token)
        reading = Reading(self._shared.positions, self._space, self._reads)
        self._calls = Calls(
            self._link, timeout=timeout, retry=retry, metadata=metadata, reading=reading
        )

    @property
    def _workflows(self) -> "workflow_pb2_grpc.WorkflowServiceAsyncStub":
        return self._link.stubs.workflows

    @property
    def _events(self) -> "event_pb2_grpc.EventServiceAsyncStub":
        return self._link.stubs.events

    @property
    def _subscriptions(self) -> "subscription_pb2_grpc.SubscriptionServiceAsyncStub":
        return self._link.stubs.subscriptions

    @property
    def _commands(self) -> "command_pb2_grpc.ScheduledCommandServiceAsyncStub":
        return self._link.stubs.commands

    @property
    def _lifecycle(self) -> "lifecycle_pb2_grpc.LifecycleServiceAsyncStub":
        return self._link.stubs.lifecycle

    @property
    def _locks(self) -> "lock_pb2_grpc.LockServiceAsyncStub":
        return self._link.stubs.locks

    @property
    def _queues(self) -> "queue_pb2_grpc.QueueServiceAsyncStub":
        return self._link.stubs.queues

    @property
    def _store(self) -> "store_pb2_grpc.StoreServiceAsyncStub":
        return self._link.stubs.store

    @property
    def _transfer(self) -> "transfer_pb2_grpc.TransferServiceAsyncStub":
        return self._link.stubs.transfer

    @property
    def _space(self) -> str:
        """The namespace's name, as in the keys of remembered workflows."""
        return self._namespace or "default"


def new_id() -> str:
    """A new UUID."""
    return str(uuid.uuid4())


def _metadata(namespace: str | None, token: Token | None) -> list[tuple[str, str]]:
    metadata = []
    if namespace is not None:
        metadata.append(("wfe-namespace", namespace))
    if token is not None:
        current = current_token(token)
        _check_metadata("token", current)
        metadata.append(("authorization", f"Bearer {current}"))
    return metadata + trace_context()


def _check_metadata(name: str, value: str) -> None:
    # gRPC's own error names neither the cause nor the argument.
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} must be printable ASCII")
