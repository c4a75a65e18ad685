"""Several connections to one server, which the client uses as if they were one channel.

A connection stays with one process of a server, and with one pod behind a Service of Kubernetes; so
a host with one channel uses one core of its servers at a time. Calls take turns.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

_READY: Final = grpc.ChannelConnectivity.READY
_IDLE: Final = grpc.ChannelConnectivity.IDLE
_CONNECTING: Final = grpc.ChannelConnectivity.CONNECTING
_FAILING: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN: Final = grpc.ChannelConnectivity.SHUTDOWN

# The state of all together: that of the best.
_BEST_FIRST: Final = (_READY, _CONNECTING, _IDLE, _FAILING, _SHUTDOWN)

#: Channels with the same target and options would share one connection without it.
OWN_CONNECTION: Final = ("grpc.use_local_subchannel_pool", 1)


class ChannelPool(grpc.aio.Channel):
    """A channel that makes each call on the next of several, of those that are connected.

    It is ready when one of them is; the others connect meanwhile, one after the other, because a
    server of several processes spreads evenly what does not come at the same moment.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._next = 0

    def _choose(self) -> int:
        """The index of the channel for the next call."""
        self._connect()
        count = len(self._channels)
        for offset in range(count):
            index = (self._next + offset) % count
            if self._channels[index].get_state() is _READY:
                break
        else:
            index = self._next
        self._next = (index + 1) % count
        return index

    def _connect(self) -> None:
        """Have the next channel connect that is not, unless one does so already."""
        for channel in self._channels:
            state = channel.get_state()
            if state is _CONNECTING:
                return
            if state is _IDLE:
                channel.get_state(try_to_connect=True)
                return

    def _turns(self, callables: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return callables[self._choose()](*args, **kwargs)

        return call

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As of a channel."""
        return self._turns([channel.unary_unary(*args, **kwargs) for channel in self._channels])

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As of a channel."""
        return self._turns([channel.unary_stream(*args, **kwargs) for channel in self._channels])

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As of a channel."""
        return self._turns([channel.stream_unary(*args, **kwargs) for channel in self._channels])

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As of a channel."""
        return self._turns([channel.stream_stream(*args, **kwargs) for channel in self._channels])

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The best state of all."""
        if try_to_connect:
            self._connect()
        states = {channel.get_state() for channel in self._channels}
        return next(state for state in _BEST_FIRST if state in states)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Not for a pool: its users look by themselves."""
        raise NotImplementedError

    async def channel_ready(self) -> None:
        """Not for a pool, either."""
        raise NotImplementedError

    async def close(self, grace: float | None = None) -> None:
        """Close all."""
        for channel in self._channels:
            await channel.close(grace)

    async def __aenter__(self) -> "ChannelPool":
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all."""
        await self.close()
