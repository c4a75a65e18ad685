"""Warnings that may come with every call: a line a minute says as much as a thousand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_INTERVAL_SECONDS: Final = 60.0
_MAX_LINES: Final = 50


class RecurringWarnings:
    """Logs the first warning for a reason at once, and then at most one line a minute for it, with
    the latest message and the number of warnings since the line before.

    `warn` must be called from an event loop. There must not be an unlimited number of reasons.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._minutes: dict[str, _Minute] = {}

    def warn(self, reason: str, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Log a warning, or count it for the next line.

        `fields`: what a log for programs has beside the message.
        """
        minute = self._minutes.get(reason)
        if minute and time.monotonic() < minute.end:
            minute.warnings += 1
            minute.message = message
        else:
            self._log.warning("%s", message, extra={"fields": fields})
            self._begin(reason)

    def warn_each(self, reason: str, who: str, message: str) -> None:
        """The same with a line for each `who`, of whom there may be any number: many at a time
        share one line."""
        own = f"{reason} {who}"
        self.warn(
            own if own in self._minutes or len(self._minutes) < _MAX_LINES else reason, message
        )

    def _begin(self, reason: str) -> None:
        minute = self._minutes[reason] = _Minute(time.monotonic() + _INTERVAL_SECONDS)
        asyncio.get_running_loop().call_later(_INTERVAL_SECONDS, self._end, reason, minute)

    def _end(self, reason: str, minute: _Minute) -> None:
        if self._minutes.get(reason) is not minute:
            return
        del self._minutes[reason]
        if minute.warnings:
            self._log.warning("%s (%d times in a minute)", minute.message, minute.warnings)
            self._begin(reason)


@dataclass(slots=True, eq=False)
class _Minute:
    """The minute after a line, and what was not logged in it."""

    end: float
    warnings: int = 0
    message: str = ""
