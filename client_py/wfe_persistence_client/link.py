"""The channel of a provider: who may use it, whether it is connected and, if not, why."""

import asyncio
import logging
import os
import re
import time
import warnings
from typing import Final

import grpc
import grpc.aio

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
from wfe_persistence_client import fork
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import DeadlineExceeded, Unavailable

log = logging.getLogger(__package__)

_READY: Final = grpc.ChannelConnectivity.READY
_FAILING: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN: Final = grpc.ChannelConnectivity.SHUTDOWN

#: A call that changes nothing, whatever server gets it. While there is no connection, it
#: fails at once, and only the error of a call tells what gRPC knows of the cause.
_PROBE: Final = "/grpc.health.v1.Health/Check"
_PROBE_TIMEOUT: Final = 1.0

#: Between two looks at the state of a channel that is not connected, in seconds.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05

#: gRPC's schemes; a target with any other one is taken for the name of a host.
_SCHEMES: Final = {"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"}
#: What gRPC says if the peer ends the connection, as a server of TLS does that gets no
#: handshake.
_HUNG_UP: Final = ("Socket closed", "Connection reset", "Endpoint clos")
#: In gRPC's order; it reads only these, in lower case.
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")


class Stubs:
    """The generated stubs on a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # By default, the generated stubs are typed for a synchronous channel.
        self.workflows: workflow_pb2_grpc.WorkflowServiceAsyncStub = (
            workflow_pb2_grpc.WorkflowServiceStub(channel)
        )
        self.events: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(channel)
        self.subscriptions: subscription_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self.commands: command_pb2_grpc.ScheduledCommandServiceAsyncStub = (
            command_pb2_grpc.ScheduledCommandServiceStub(channel)
        )
        self.lifecycle: lifecycle_pb2_grpc.LifecycleServiceAsyncStub = (
            lifecycle_pb2_grpc.LifecycleServiceStub(channel)
        )
        self.locks: lock_pb2_grpc.LockServiceAsyncStub = lock_pb2_grpc.LockServiceStub(channel)
        self.queues: queue_pb2_grpc.QueueServiceAsyncStub = queue_pb2_grpc.QueueServiceStub(channel)
        self.store: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)
        self.transfer: transfer_pb2_grpc.TransferServiceAsyncStub = (
            transfer_pb2_grpc.TransferServiceStub(channel)
        )


class Link:
    """A channel and its stubs, shared by all copies of a provider.

    It belongs to one process and one event loop. Closing it also drops the channel: when
    the last one in the process is gone, gRPC ends its threads, and a fork is safe.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._target = ""
        self._encrypted = True
        fork.check_new_channel()
        self._process = os.getpid()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            # On the caller's channel, created before its loop runs: see `check`.
            self._loop = None
        self._channel: grpc.aio.Channel | None = channel
        self._stubs: Stubs | None = Stubs(channel)
        #: Who waits for another state than which.
        self._waits: dict[asyncio.Future[None], grpc.ChannelConnectivity] = {}
        self._next_look: asyncio.TimerHandle | None = None
        fork.note_channel(self)

    def own(self, target: str, *, encrypted: bool) -> None:
        """Says where the channel leads and how, and that nobody else will close it."""
        self._target = target
        self._encrypted = encrypted

    @property
    def stubs(self) -> Stubs:
        """The stubs; RuntimeError if the provider is closed."""
        if self._stubs is None:
            raise RuntimeError("the provider is closed")
        return self._stubs

    @property
    def released(self) -> bool:
        """Whether this link no longer holds a channel."""
        return self._channel is None

    @property
    def closed(self) -> bool:
        """Whether this link or its channel was closed."""
        return self._channel is None or self._channel.get_state() is _SHUTDOWN

    def check(self) -> None:
        """Raises RuntimeError unless a call may be made here and now."""
        if foreign := fork.refusal(self._process):
            raise RuntimeError(foreign)
        if self.closed:
            raise RuntimeError("the provider is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            raise RuntimeError(
                "this provider belongs to another event loop, the one in which it was "
                "connected: every loop needs a provider of its own"
            )

    async def close(self) -> None:
        """Closes the channel; does nothing in a forked process, which does not own it."""
        channel = self._channel
        if channel is None or os.getpid() != self._process:
            return
        if (
            self._loop is not None
            and self._loop is not asyncio.get_running_loop()
            and not self._loop.is_closed()
        ):
            raise RuntimeError("this provider belongs to another event loop: close it there")
        self._channel = self._stubs = None
        self._look(0)
        await channel.close()

    def __del__(self) -> None:
        if self._target and self._channel is not None and os.getpid() == self._process:
            warnings.warn(
                f"unclosed provider, connected to {self._target}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    async def ready(self, deadline: Deadline, *, fail_fast: bool) -> None:
        """Waits until there is a connection.

        This distinguishes a failure before the call is sent, after which trying again is
        always safe, from one after it, when a write may have been applied: gRPC reports
        both as UNAVAILABLE.

        Args:
            deadline: when to give up.
            fail_fast: give up when an attempt to connect fails, not only at the deadline.

        Raises:
            Unavailable: no connection could be made.
            DeadlineExceeded: the deadline passed before gRPC knew of a failure.
        """
        began = time.monotonic()
        why = ""
        while (channel := self._channel) is not None:
            state = channel.get_state(try_to_connect=True)
            if state is _READY:
                if why:
                    log.debug("connected to %s after %.1f s", self._name, time.monotonic() - began)
                return
            if state is _SHUTDOWN:
                break
            if state is _FAILING and not why:
                why = await self._why(channel, deadline)
                if not why:
                    continue
                log.debug("no connection to %s: %s", self._name, why)
                if fail_fast:
                    raise self._no_connection(why)
            if not await self._change(state, deadline):
                if self.closed:
                    break
                if not why:
                    raise DeadlineExceeded(
                        f"no connection to {self._name} in time: {_SILENT}",
                        reason="DEADLINE_EXCEEDED",
                    )
                if channel.get_state() is _FAILING:
                    # The cause may have changed since.
                    why = await self._why(channel, deadline) or why
                raise self._no_connection(why)
        raise closed_during_call()

    async def _change(self, state: grpc.ChannelConnectivity, deadline: Deadline) -> bool:
        """Waits until the state is another one; False: the deadline passed, or it was closed."""
        remaining = deadline.remaining()
        if remaining <= 0:
            return False
        change = asyncio.get_running_loop().create_future()
        self._waits[change] = state
        try:
            if self._next_look is None:
                self._look(_FIRST_PAUSE)
            async with asyncio.timeout(remaining):
                await change
        except TimeoutError:
            return False
        finally:
            del self._waits[change]
        return True

    def _look(self, pause: float) -> None:
        """Wakes those whose state has changed, and looks again after a pause.

        gRPC's own wait for a change does not reliably end when the channel is closed, and
        one that is cancelled keeps gRPC in use.
        """
        channel = self._channel
        state = _SHUTDOWN if channel is None else channel.get_state(try_to_connect=True)
        for change, old in self._waits.items():
            if state is not old and not change.done():
                change.set_result(None)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._waits and state is not _SHUTDOWN:
            loop = asyncio.get_running_loop()
            longer = min(2 * pause, _LONGEST_PAUSE)
            self._next_look = loop.call_later(pause, self._look, longer)

    @property
    def _name(self) -> str:
        return self._target or "the server"

    def _no_connection(self, why: str) -> Unavailable:
        return Unavailable(
            f"no connection to {self._name}: {why}{self._hint(why)}",
            reason="SERVER_UNREACHABLE",
        )

    def _hint(self, why: str) -> str:
        """What gRPC's message does not say, though it may well be the cause."""
        variable = next((name for name in _PROXIES if os.environ.get(name)), None)
        if variable is not None and not self._target.startswith("unix"):
            # gRPC's message has the address of the proxy as if it were the server's.
            return (
                f" (gRPC connects through the proxy that the environment variable {variable} "
                "names, except to the hosts in no_proxy)"
            )
        if not self._encrypted and any(text in why for text in _HUNG_UP):
            return " (it hung up: if it expects TLS, connect with tls)"
        return ""

    async def _why(self, channel: grpc.aio.Channel, deadline: Deadline) -> str:
        """What gRPC knows of why there is no connection; empty if there may be one by now."""
        # It fails at once, so a little time is enough, and none would be too little.
        timeout = min(_PROBE_TIMEOUT, max(deadline.remaining(), 0.1))
        try:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_PROBE)
            probe = method(b"", timeout=timeout)
        except grpc.aio.UsageError:
            # Closed in the meantime.
            return ""
        try:
            await probe
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return _SILENT if channel.get_state() is _FAILING else ""
            # Any other status is an answer of the server.
            if error.code() is grpc.StatusCode.UNAVAILABLE and channel.get_state() is not _READY:
                return error.details() or _SILENT
        except asyncio.CancelledError:
            # Closing the channel, too, ends calls this way.
            if not self.closed or is_cancelled():
                raise
        finally:
            probe.cancel()
        return ""


_SILENT: Final = "it does not answer"


def is_cancelled() -> bool:
    """Whether the current task was cancelled, by whomever but gRPC."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def closed_during_call() -> Unavailable:
    """The error of a call whose provider is closed while it is in progress."""
    return Unavailable("the provider was closed during the call", reason="SERVER_UNREACHABLE")


def check_target(target: str) -> None:
    """Rejects what gRPC would take for the name of a host and try to resolve for ever."""
    if not target or target.isspace():
        raise ValueError('target must not be empty: expected "HOST:PORT" or "unix:PATH"')
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", target)
    if scheme is not None and scheme[1].lower() not in _SCHEMES:
        raise ValueError(f'target must be "HOST:PORT" or "unix:PATH", not a URL: "{target}"')
