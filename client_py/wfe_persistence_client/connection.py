"""What all operations of a provider share: the channel, the stubs and how calls are made."""

import copy
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc
import grpc.aio

from wfe.persistence.v1 import (
    command_pb2_grpc,
    event_pb2_grpc,
    store_pb2_grpc,
    subscription_pb2_grpc,
    workflow_pb2_grpc,
)
from wfe_persistence_client import patches
from wfe_persistence_client.calls import Calls, RetryPolicy
from wfe_persistence_client.hints import checked, is_async
from wfe_persistence_client.misfit import FieldTypeError

#: The bearer token to send: the token, or a function that returns the current one and
#: is called before every attempt.
Token = str | Callable[[], str]

DEFAULT_TIMEOUT: Final = 30.0
#: Maximum number of items per page.
LARGEST_PAGE: Final = 1000


@dataclass(slots=True)
class _Shared:
    """State that all copies of a provider share."""

    memory: patches.Memory
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
    ) -> None:
        """Creates a provider on the caller's channel; `connect` creates its own.

        Closing the provider closes the channel. The channel should have gRPC's own
        retries disabled (`grpc.enable_retries` = 0).
        """
        if is_async(token):
            raise FieldTypeError("token", "expected str or a plain function, not an async one")
        self._channel = channel
        self._token = token
        self._strict = strict
        self._shared = _Shared(patches.Memory(remember))
        self._bind(namespace, timeout, retry or RetryPolicy())
        # By default, the generated stubs are typed for a synchronous channel.
        self._workflows: workflow_pb2_grpc.WorkflowServiceAsyncStub = (
            workflow_pb2_grpc.WorkflowServiceStub(channel)
        )
        self._events: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(
            channel
        )
        self._subscriptions: subscription_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self._commands: command_pb2_grpc.ScheduledCommandServiceAsyncStub = (
            command_pb2_grpc.ScheduledCommandServiceStub(channel)
        )
        self._store: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)

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
        connection and are closed too.
        """
        await self._channel.close()

    def with_timeout(self, timeout: float) -> Self:
        """A provider on the same connection, with another timeout.

        For a single call: `await provider.with_timeout(5).get_event(event_id)`.

        Args:
            timeout: in seconds, greater than 0.
        """
        return self._copy(namespace=self._namespace, timeout=timeout)

    def with_namespace(self, namespace: str | None) -> Self:
        """A provider on the same connection, for another namespace.

        Args:
            namespace: its name; None: the server's default.
        """
        return self._copy(namespace=namespace, timeout=self._calls.timeout)

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
        self._calls = Calls(self._channel, timeout=timeout, retry=retry, metadata=self._metadata)

    def _metadata(self) -> list[tuple[str, str]]:
        metadata = []
        if self._namespace is not None:
            metadata.append(("wfe-namespace", self._namespace))
        if self._token is not None:
            token = self._token if isinstance(self._token, str) else self._token()
            if not isinstance(token, str):
                if inspect.iscoroutine(token):
                    # Else Python warns that nothing awaited it.
                    token.close()
                raise FieldTypeError(
                    "token", f"the function returned {type(token).__name__} instead of str"
                )
            _check_metadata("token", token)
            metadata.append(("authorization", f"Bearer {token}"))
        return metadata

    @property
    def _space(self) -> str:
        """The namespace's name, as in the keys of remembered workflows."""
        return self._namespace or "default"


def new_id() -> str:
    """A new UUID."""
    return str(uuid.uuid4())


def _check_metadata(name: str, value: str) -> None:
    # gRPC's own error names neither the cause nor the argument.
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} must be printable ASCII")
