"""Where a server listens: a TCP port, or a Unix socket that no other server can take over."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from wfe_persistence.errors import CannotServeError

log = logging.getLogger(__name__)

AddPort = Callable[[str], int]
"""Binds to an address as gRPC spells it and returns the port; RuntimeError: that failed."""

# The longest path that the kernel takes, as an attribute of a socket, and what it is bound to.
_MAX_SOCKET_PATH: Final = 107
_NEW: Final = ".new"
_LOCK: Final = ".lock"

# Permissions while a socket is bound; the ones that are set follow once it is.
_PRIVATE_UMASK: Final = 0o177


class Listener:
    """The listen address of one server: `HOST:PORT` or `unix:PATH`.

    `socket_mode`: the permissions of a Unix socket. `close` it after the server has stopped.
    """

    def __init__(self, address: str, socket_mode: int) -> None:
        self.address = address
        """After `open` with the real port."""
        self._socket = (
            _UnixSocket(_path_of(address), socket_mode) if address.startswith("unix:") else None
        )

    def open(self, add_port: AddPort) -> None:
        """Bind with `add_port`, before the server starts. Raises CannotServeError."""
        if self._socket is not None:
            self._socket.open(add_port)
            return
        port = _bind(add_port, self.address, self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"

    @property
    def local_name(self) -> int | str:
        """What the connections that were accepted here have in common: the port, or the path that
        the Unix socket was bound to."""
        return local_name_of(self.address)

    def accept(self) -> None:
        """Begin to accept, after the server was started: gRPC does so by itself."""

    def stop_accepting(self) -> None:
        """Leave new connections to others; here there are none."""

    def close(self) -> None:
        """Remove the Unix socket, unless it is no longer ours."""
        if self._socket is not None:
            self._socket.close()


class _UnixSocket:
    """A path in the file system that belongs to one server from `open` to `close`.

    The server holds a lock on PATH.lock, which ends with the process however that ends; the file
    itself means nothing. gRPC unlinks what it is told to bind to, before and afterwards, whosever
    it is. So it gets PATH.new, which only the holder of the lock uses, and once the permissions are
    right, the socket is renamed to PATH: whoever finds it there can use it.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._lock = -1
        self._identity: tuple[int, int] | None = None

    @property
    def bound_path(self) -> str:
        """What the socket was bound to, which stays its name for the kernel."""
        return _bound_path(self._path)

    def open(self, add_port: AddPort) -> None:
        """Take the path over from nobody but the dead. Raises CannotServeError."""
        if len(os.fsencode(self.bound_path)) > _MAX_SOCKET_PATH:
            raise CannotServeError(
                f"can't listen on {self._path}: a path may have at most "
                f"{_MAX_SOCKET_PATH - len(_NEW)} bytes"
            )
        try:
            self._take_lock()
            self._require_unused()
            self._bind(add_port)
        except OSError as exc:
            self.close()
            raise CannotServeError(f"can't listen on {self._path}: {exc.strerror}") from exc
        except CannotServeError:
            self.close()
            raise

    def _bind(self, add_port: AddPort) -> None:
        umask = os.umask(_PRIVATE_UMASK)
        try:
            _bind(add_port, f"unix:{self.bound_path}", self._path)
        finally:
            os.umask(umask)
        os.chmod(self.bound_path, self._mode)
        self._identity = _identity(self.bound_path)
        os.rename(self.bound_path, self._path)

    def close(self) -> None:
        """Remove the socket if it is ours, then let go of the path."""
        with suppress(OSError):
            if self._identity is not None and _identity(self._path) == self._identity:
                os.unlink(self._path)
        if self._lock >= 0:
            # While it is locked: nobody else can hold a lock on this file and believe in it.
            with suppress(OSError):
                os.unlink(self._path + _LOCK)
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        path = self._path + _LOCK
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(lock)
                if _identity(path) == (found.st_dev, found.st_ino):
                    os.ftruncate(lock, 0)
                    os.write(lock, f"{os.getpid()}\n".encode())
                    self._lock = lock
                    return
            except BlockingIOError as exc:
                holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
                os.close(lock)
                raise CannotServeError(
                    f"can't listen on {self._path}: another server"
                    f"{f' (process {holder})' if holder.isdecimal() else ''} does"
                ) from exc
            except BaseException:
                os.close(lock)
                raise
            # The one who had it has removed the file in the meantime.
            os.close(lock)

    def _require_unused(self) -> None:
        """Raise CannotServeError unless the path is free, or a socket on which nobody listens."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise CannotServeError(f"can't listen on {self._path}: it exists and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            result = probe.connect_ex(self._path)
        if result in (errno.ECONNREFUSED, errno.ENOENT):
            log.info("replacing %s, which a server left behind that was killed", self._path)
            return
        if result in (0, errno.EAGAIN):  # the latter: its backlog is full
            raise CannotServeError(f"can't listen on {self._path}: another program does")
        raise CannotServeError(f"can't listen on {self._path}: {os.strerror(result)}")


def local_name_of(address: str) -> int | str:
    """What the connections that are accepted at an address have in common, see `Listener`."""
    if address.startswith("unix:"):
        return _bound_path(_path_of(address))
    return int(address.rpartition(":")[2])


def _path_of(address: str) -> str:
    path = address.removeprefix("unix:")
    # unix:///absolute is a URL without a host.
    return path.removeprefix("//") if path.startswith("///") else path


def _bound_path(path: str) -> str:
    return path + _NEW


def _bind(add_port: AddPort, address: str, name: str) -> int:
    try:
        return add_port(address)
    except RuntimeError as exc:
        raise CannotServeError(f"can't listen on {name}: in use?") from exc


def _identity(path: str) -> tuple[int, int] | None:
    """Which file is at a path; None: none is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
