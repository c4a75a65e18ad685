"""What asks a process to stop, and what happens if it does not."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

# Supervisors, and terminals together with them, often send a signal twice.
_SAME_SIGNAL_SECONDS: Final = 1.0

# How much longer than its settings say a stop may take (5 s are normal). As the process has taken
# SIGTERM over, one that hangs would be deaf to it, and never say why.
HUNG_SECONDS: Final = 20.0


class Stop:
    """The stop of a process, in its event loop: `asked` once it is to begin, and `hurry` once it is
    not to wait for anything any more. `begins` is called at its beginning."""

    def __init__(self, begins: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._begins = begins
        self.asked: asyncio.Future[Any] = self._loop.create_future()
        self.hurry = asyncio.Event()

    def on_signal(self, number: signal.Signals) -> None:
        """Take SIGTERM or SIGINT; from a signal handler."""
        self._loop.call_soon_threadsafe(self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.asked.done():
            log.info("%s: draining", number.name)
            self.begin()
        elif (
            self._loop.time() - self.asked.result() >= _SAME_SIGNAL_SECONDS
            and not self.hurry.is_set()
        ):
            log.info("%s again: ending the calls in progress", number.name)
            self.hurry.set()

    def begin(self) -> None:
        """Begin, unless it has begun."""
        if not self.asked.done():
            self.asked.set_result(self._loop.time())
            self._begins()


def end_if_hung(seconds: float) -> None:
    """If the stop is not done by then, say what it waits for, and exit with status 1."""

    def say() -> None:
        tasks = sorted({task.get_coro().__qualname__ for task in asyncio.all_tasks()})  # type: ignore[union-attr]
        log.error("not stopped after %g s, giving up; unfinished: %s", seconds, ", ".join(tasks))

    asyncio.get_running_loop().call_later(seconds, say)
    # In a thread of its own that needs no GIL: it writes what each thread is doing, and exits.
    faulthandler.dump_traceback_later(seconds + 1, exit=True)
