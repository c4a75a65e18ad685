"""Keeps the embedded PostgreSQL running: starts it again whenever it has ended."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Final, Self

from wfe_persistence.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    StartInterruptedError,
)

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_STABLE_SECONDS: Final = 60.0
_STOPPING_SECONDS: Final = 10.0  # who stops all processes at once lets us drain as well
_COMPLAINT: Final = re.compile(r"\b(FATAL|PANIC|ERROR): ")
_NUMBER: Final = re.compile(r"[0-9A-F]*\d[0-9A-F]*")


class Supervisor:
    """Starts `postgres` again whenever it has ended, while the context is entered.

    Each process that uses a PostgreSQL supervises it, so there is always one to do it. They agree
    by the lock for starting. The pause between two starts doubles up to 5 s, and is back at 0.2 s
    once PostgreSQL has run for a minute. Every end is logged with its reason; of starts that fail,
    the first, and each with another reason.
    """

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postgres-supervisor", daemon=True)
        self._pause = _LOOK_SECONDS
        self._failure = ""
        self._stopping_since = float("inf")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._postgres.interrupt()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                if self._postgres.running():
                    if time.monotonic() > started + _STABLE_SECONDS:
                        self._pause = _LOOK_SECONDS
                    self._hasten_if_stopping()
                    self._postgres.keep_log_small()
                    continue
                again = self._postgres.start_again(self._say_it_has_ended)
            except StartInterruptedError:
                return
            except (EmbeddedPostgresError, OSError) as exc:
                self._say_it_failed(str(exc))
            else:
                if not again:
                    continue
                log.warning("the embedded PostgreSQL runs again")
                self._failure = ""
            started = time.monotonic()
            self._stopping.wait(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    def _hasten_if_stopping(self) -> None:
        if not self._postgres.stopping():
            self._stopping_since = float("inf")
            return
        self._stopping_since = min(self._stopping_since, time.monotonic())
        if time.monotonic() > self._stopping_since + _STOPPING_SECONDS:
            log.warning("the embedded PostgreSQL was told to stop; ending its connections")
            self._postgres.hasten()
            self._stopping_since = float("inf")

    def _say_it_has_ended(self) -> None:
        if not self._failure:
            log.error(
                "the embedded PostgreSQL has ended; starting it again (%s)",
                self._postgres.last_words(),
            )

    def _say_it_failed(self, message: str) -> None:
        # What PostgreSQL complained of, without process ids and positions, which always differ.
        lines = [line for line in message.splitlines() if _COMPLAINT.search(line)]
        failure = _NUMBER.sub("", "\n".join(lines) or message)
        if failure != self._failure:
            log.error("the embedded PostgreSQL can't be started; trying again: %s", message)
            self._failure = failure
