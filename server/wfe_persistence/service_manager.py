"""What a server tells the service manager that started it: systemd with `Type=notify`.

The protocol is that of sd_notify(3): datagrams of `NAME=value` to the Unix socket that
$NOTIFY_SOCKET names. Without that variable nobody is told anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final, Protocol

log = logging.getLogger(__name__)


class Manager(Protocol):
    """Who is told how the server is: a service manager, or the supervisor of worker processes."""

    def report(self, *, serving: bool, why: str) -> None:
        """Say whether calls can succeed, and if not, why."""

    def stopping(self) -> None:
        """Say that the server drains."""

    async def keep_alive(self) -> None:
        """Say, for as long as the event loop turns, that this process is not hung."""


class ServiceManager:
    """The service manager of this process, if it has one.

    It takes its variables out of the environment: they are not meant for children, and PostgreSQL
    would use them as well.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract address.
        self._address: Final = f"\0{address[1:]}" if address.startswith("@") else address
        interval = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        watched = interval.isdecimal() and process == str(os.getpid())
        self.watchdog_seconds: Final = int(interval) / 1e6 if watched else 0.0
        """How often it wants to hear from this process, or it restarts it; 0: it does not."""
        self._ready = False
        self.is_alive = True
        """Whether all is well with what this process stands for, too."""

    def starting(self, what: str) -> None:
        """Say what the start takes its time for."""
        self._notify(f"STATUS={what}")

    def report(self, *, serving: bool, why: str) -> None:
        """Say whether calls can succeed, and if not, why. The first time that they can, the start
        is over."""
        if not serving:
            self._notify(f"STATUS=not serving: {why}")
            return
        self._notify("STATUS=serving" if self._ready else "READY=1\nSTATUS=serving")
        self._ready = True

    def stopping(self) -> None:
        """Say that the server drains."""
        self._notify("STOPPING=1\nSTATUS=draining")

    async def keep_alive(self) -> None:
        """Tell it, for as long as the event loop turns, that this process is not hung."""
        while self._address and self.watchdog_seconds:
            if self.is_alive:
                self._notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 3)

    def _notify(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)
                to.sendto(message.encode(), self._address)
        except OSError as exc:
            log.warning("the service manager was not told %r: %s", message, exc)
