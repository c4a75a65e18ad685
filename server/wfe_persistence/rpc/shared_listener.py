"""Sockets on which several processes accept.

gRPC for Python binds its sockets itself, and takes none that others have bound. But what it does to
accept is no more than: wait until its listener is readable, then accept from that descriptor until
there is nothing left. So it gets a listener of its own, on an abstract name that nobody knows, and
then the shared socket takes the place of its descriptor. The listener of its own is kept under
another descriptor, which keeps gRPC waiting for it; when a connection waits at the shared one, it
is poked: it becomes readable, and gRPC accepts from the shared socket.

With SO_REUSEPORT instead, a hung process would go on getting its share of new connections, those
that wait at one that is killed would be lost, anybody with the same user id could join in, and few
connections would be spread badly; and for Unix sockets it does not exist.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import socket
import struct
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from wfe_persistence.rpc.connections import count_accepted, listening_descriptor
from wfe_persistence.rpc.listener import AddPort, Listener, local_name_of

# For how long a process that has more connections than another leaves a new one to that.
_GIVES_WAY_SECONDS: Final = 0.05

_NUMBER: Final = struct.Struct("I")
_NOBODY: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Shared:
    """What one of several processes has of the server that they are together."""

    index: int
    """Which of them it is, from 0."""
    sockets: tuple[int, ...]
    """The descriptors of the listening sockets."""
    counts: bool
    """Whether the metrics are shown."""
    board: int
    """The descriptor of the `Board`."""


class SharedListener(Listener):
    """The listen address of a server, bound already."""

    def __init__(self, address: str, shared: Shared) -> None:
        self.address = address
        self._shared = [socket.socket(fileno=descriptor) for descriptor in shared.sockets]
        self._board = Board(shared.board)
        self._index = shared.index
        self._pokes: list[_Poke] = []

    def open(self, add_port: AddPort) -> None:
        """Have gRPC accept from the shared sockets once it is started, and `accept` is called."""
        for shared in self._shared:
            shared.setblocking(False)
            self._pokes.append(_Poke(add_port, shared, self._gives_way))

    def _gives_way(self) -> bool:
        """Whether another process has fewer connections."""
        own = count_accepted(self.local_name)
        self._board.write(self._index, own)
        return own > self._board.least()

    def accept(self) -> None:
        """Begin to accept, after the server was started."""
        self._board.write(self._index, 0)
        for poke in self._pokes:
            poke.start()

    def stop_accepting(self) -> None:
        """Leave new connections to the other processes."""
        if not self._shared:
            return
        self._board.write(self._index, None)
        self._board.close()
        for poke in self._pokes:
            poke.stop()
        self._pokes.clear()
        for shared in self._shared:
            shared.close()
        self._shared.clear()

    @property
    def local_name(self) -> int | str:
        """As of any listener."""
        return local_name_of(self.address)

    def close(self) -> None:
        """Do nothing more: the address belongs to the supervisor."""
        self.stop_accepting()


class _Poke:
    """Tells gRPC that connections wait at a shared socket."""

    def __init__(
        self, add_port: AddPort, shared: socket.socket, gives_way: Callable[[], bool]
    ) -> None:
        self._shared = shared
        self._gives_way = gives_way
        self._timer: asyncio.TimerHandle | None = None
        name = f"wfe-persistence-{uuid.uuid4()}"
        self._name = f"\0{name}"
        add_port(f"unix-abstract:{name}")
        descriptor = listening_descriptor(self._name.encode())
        self._own = socket.socket(fileno=os.dup(descriptor))
        self._own.setblocking(False)
        os.dup2(shared.fileno(), descriptor, inheritable=False)

    def start(self) -> None:
        """Begin to look."""
        asyncio.get_running_loop().add_reader(self._shared, self._readable)

    def stop(self) -> None:
        """Stop looking. gRPC no longer waits for anything then."""
        asyncio.get_running_loop().remove_reader(self._shared)
        if self._timer:
            self._timer.cancel()
        self._own.close()

    def _readable(self) -> None:
        if not self._gives_way():
            self._poke()
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._shared)  # it would be called all the time
        self._timer = loop.call_later(_GIVES_WAY_SECONDS, self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        loop = asyncio.get_running_loop()
        self._poke()
        loop.add_reader(self._shared, self._readable)

    def _poke(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as poke, suppress(BlockingIOError):
            poke.setblocking(False)
            poke.connect(self._name)
        # These, gRPC would not accept any more: it asks the shared socket.
        while True:
            try:
                self._own.accept()[0].close()
            except BlockingIOError:
                return


class Board:
    """Memory that all processes share, where each writes how many connections it has."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Opens that of a descriptor, or makes one."""
        if descriptor is None:
            descriptor = os.memfd_create("connections")
            os.truncate(descriptor, mmap.PAGESIZE)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    def write(self, index: int, count: int | None) -> None:
        """Write the number of a process; None: it does not accept any."""
        # (0 is what nobody has written.)
        number = _NOBODY if count is None else count + 1
        _NUMBER.pack_into(self._memory, index * _NUMBER.size, number)

    def least(self) -> int:
        """The smallest number."""
        written = (number for (number,) in _NUMBER.iter_unpack(self._memory) if number)
        return min(written, default=1) - 1

    def close(self) -> None:
        """Free it."""
        self._memory.close()
        os.close(self.descriptor)


class SharedSockets:
    """Binds an address for all processes of a server; `bind` is what a `Listener` opens it with."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def bind(self, address: str) -> int:
        """Listen there, and return the port. Raises RuntimeError, as gRPC does."""
        try:
            if address.startswith("unix:"):
                self._listen(socket.AF_UNIX, address.removeprefix("unix:"))
                return 0
            return self._bind_port(address)
        except OSError as exc:
            self.close()
            raise RuntimeError(str(exc)) from exc

    def _bind_port(self, address: str) -> int:
        host, _, text = address.rpartition(":")
        host, port = host.strip("[]"), int(text)
        if host in ("0.0.0.0", "::"):  # noqa: S104 - as gRPC: both mean all addresses of both kinds
            with suppress(OSError):
                return self._listen(socket.AF_INET6, ("::", port))
            host = "0.0.0.0"  # noqa: S104
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, name in found:
            try:
                port = self._listen(family, (str(name[0]), port))
            except OSError as exc:
                # `localhost` may have an address of a kind that this machine has not.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not self.sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no such address here")
        return port

    def _listen(self, family: int, name: str | tuple[str, int]) -> int:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family != socket.AF_UNIX:
                # What gRPC sets on those of its own; the connections inherit it.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name[0] != "::")
            listener.bind(name)
            listener.listen(socket.SOMAXCONN)
        except BaseException:
            listener.close()
            raise
        self.sockets.append(listener)
        return 0 if family == socket.AF_UNIX else int(listener.getsockname()[1])

    def close(self) -> None:
        """Close this process's descriptors; the others go on."""
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()
