"""Connections of clients when file descriptors run short: the idle ones make room for new ones.

gRPC closes a connection that has been idle for a fixed time, but can't close one sooner because
others need its place. So this looks at the sockets themselves: the ones that were accepted on the
server's port. Shutting one down is to gRPC as if the client had closed it; clients connect again
with their next call. On a Unix socket and outside Linux, only the fixed time applies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote

from wfe_persistence.recurring import RecurringWarnings

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

# Beside connections, of clients and to PostgreSQL (two each, as one may be cancelling the other):
# what every process has, gRPC's and the event loop's own, and some for looking at sockets.
_OTHER_DESCRIPTORS: Final = 32

_INTERVAL_SECONDS: Final = 1.0
_ALMOST_FULL: Final = 0.8
_ROOM_AFTERWARDS: Final = 0.7

# A connection that has just been made is not idle: its first call is on its way.
_MIN_IDLE_MILLISECONDS: Final = 1_000

# Linux's struct tcp_info: eight bytes, then 32-bit integers, of which these are the milliseconds
# since data was last sent and last received.
_TCP_INFO: Final = struct.Struct("8x36xI4xI")

_DESCRIPTORS: Final = "/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd"

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)

Peer = tuple[str, int]


def raise_descriptor_limit() -> None:
    """Allow this process as many file descriptors as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS has an additional limit
            log.debug("the limit of file descriptors stays at %d", soft)


def connections_allowed(wanted: int, pool_size: int, others: int = 0) -> int:
    """How many connections of clients the limit of file descriptors leaves room for, beside those
    to the database and `others`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    room = max(1, soft - _OTHER_DESCRIPTORS - 2 * pool_size - others)
    if room < wanted:
        log.warning("%d file descriptors leave room for %d client connections", soft, room)
    return min(wanted, room)


class IdleConnections:
    """Closes idle connections while there are almost as many as are allowed, the idlest first.

    `busy_peers` have calls in progress; their connections are never closed. `health_peers` ask for
    health or watch it, which anybody may, for as long as they like: theirs are closed last.
    """

    def __init__(
        self,
        allowed: int,
        busy_peers: Callable[[], set[str]],
        health_peers: Callable[[], set[str]],
    ) -> None:
        self._allowed = allowed
        self._busy_peers = busy_peers
        self._health_peers = health_peers

    async def watch(self, local_name: int | str) -> None:
        """Look every second at the connections to a port; a Unix socket's are left alone."""
        if isinstance(local_name, str) or not sys.platform.startswith("linux"):
            return
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            if _open_descriptors() > self._allowed * _ALMOST_FULL:
                busy = {_peer_of_name(name) for name in self._busy_peers()}
                health = {_peer_of_name(name) for name in self._health_peers()}
                closed, left = await asyncio.to_thread(self._close_idle, local_name, busy, health)
                if closed or left >= self._allowed:
                    warnings.warn(
                        "connections",
                        f"{left + closed} of at most {self._allowed} connections: closed "
                        f"{closed} idle ones",
                    )

    def _close_idle(self, port: int, busy: set[Peer], health: set[Peer]) -> tuple[int, int]:
        """Make room; returns how many connections were closed and how many are left."""
        count = 0
        idle: list[tuple[bool, int, Peer]] = []
        for connection, peer in _accepted(port):
            count += 1
            if peer not in busy:
                idle.append((peer not in health, _idle_milliseconds(connection), peer))
        if count <= self._allowed * _ALMOST_FULL:
            return 0, count
        most = count - int(self._allowed * _ROOM_AFTERWARDS)
        idle.sort(reverse=True)
        chosen = {peer for _, age, peer in idle[:most] if age >= _MIN_IDLE_MILLISECONDS}
        closed = sum(
            _shut_down(connection, peer) for connection, peer in _accepted(port) if peer in chosen
        )
        return closed, count - closed


class Disconnection:
    """Ends all connections that were accepted on a port, or on a Unix socket's path, for good.

    gRPC can only do so with CANCELLED for calls that are on their way. This is to their clients as
    if the network did it: UNAVAILABLE.
    """

    def __init__(self, local_name: int | str) -> None:
        self._local_name = local_name
        # What gRPC gets instead of its listener: nothing ever comes from there.
        self._nowhere, self._silent = socket.socketpair()

    def close_listener(self) -> None:
        """Refuse new connections. gRPC does not notice, and still has a descriptor to close."""
        for descriptor, _ in self._sockets(listening=True):
            os.dup2(self._nowhere.fileno(), descriptor, inheritable=False)

    def close_connections(self) -> int:
        """Close the connections; returns how many gRPC has not closed on its side yet."""
        count = 0
        for _, connection in self._sockets(listening=False):
            count += 1
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)
        return count

    def close(self) -> None:
        """Free what is left, once gRPC has stopped."""
        self._nowhere.close()
        self._silent.close()

    def _sockets(self, *, listening: bool) -> Iterator[tuple[int, socket.socket]]:
        return _sockets(self._local_name, listening=listening)


def count_accepted(local_name: int | str) -> int:
    """How many connections there are that were accepted on a port, or a Unix socket's path."""
    return sum(1 for _ in _sockets(local_name, listening=False))


def listening_descriptor(name: bytes) -> int:
    """The descriptor of what listens on an abstract name."""
    [(descriptor, _)] = _sockets(name, listening=True)
    return descriptor


def _sockets(
    local_name: int | str | bytes, *, listening: bool
) -> Iterator[tuple[int, socket.socket]]:
    for name in os.listdir(_DESCRIPTORS):
        # With a descriptor of our own it remains the same socket, whatever gRPC does meanwhile.
        with suppress(OSError), _duplicate(int(name)) as ours:
            address = ours.getsockname()
            if ours.family in _INTERNET:
                address = address[1]
            listens = bool(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            if address == local_name and listens == listening:
                yield int(name), ours


def _duplicate(descriptor: int) -> socket.socket:
    """The socket of a descriptor, under another one. Raises OSError if it is none."""
    ours = os.dup(descriptor)
    try:
        return socket.socket(fileno=ours)
    except OSError:
        os.close(ours)
        raise


def _open_descriptors() -> int:
    return len(os.listdir(_DESCRIPTORS))


def _accepted(port: int) -> Iterator[tuple[socket.socket, Peer]]:
    """The connections accepted on a port, and their peers.

    The sockets are gRPC's, which may close them meanwhile: only look at them, and only until the
    next one is asked for.
    """
    for name in os.listdir(_DESCRIPTORS):
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket, or closed meanwhile
        try:
            if connection.family in _INTERNET and connection.getsockname()[1] == port:
                yield connection, _peer_of_address(connection.getpeername())
        except OSError:
            continue  # the listener, or no longer connected
        finally:
            connection.detach()


def _shut_down(connection: socket.socket, peer: Peer) -> bool:
    """Shut a connection down if it is still the one to this peer."""
    # With a descriptor of our own it remains the same connection between the look and the act.
    with suppress(OSError), connection.dup() as ours:
        if _peer_of_address(ours.getpeername()) == peer:
            ours.shutdown(socket.SHUT_RDWR)
            return True
    return False


def _idle_milliseconds(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    sent, received = _TCP_INFO.unpack(info)
    return int(min(sent, received))


def _peer_of_address(address: Any) -> Peer:
    return _host(address[0]), address[1]


def _peer_of_name(name: str) -> Peer:
    """The peer that gRPC names `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    host, _, port = unquote(name).partition(":")[2].rpartition(":")
    return (_host(host.strip("[]")), int(port)) if port.isdecimal() else ("", 0)


def _host(address: str) -> str:
    """An address in the form that two spellings of it have in common."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)
