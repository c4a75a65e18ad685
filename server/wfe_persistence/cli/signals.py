"""SIGINT and SIGTERM, from the first line of a process to its last."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """SIGINT and SIGTERM, while a database is in use.

    They are remembered, and given to who handles them; they never raise. An exception that comes
    out of any line of any library may end there: a start was deaf to SIGTERM, because what it
    raised was swallowed in an import.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._handlers: list[Callable[[signal.Signals], None]] = [self.received.append]

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[Self]:
        """Takes both over, and gives them back."""
        signals = cls()
        before = [(number, signal.getsignal(number)) for number in _NUMBERS]
        for number in _NUMBERS:
            signal.signal(number, signals._on_signal)
        try:
            yield signals
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def handled(self, handler: Callable[[signal.Signals], None]) -> Iterator[None]:
        """Also call `handler` with each, in the main thread between two lines of Python, and with
        those that have come already."""
        self._handlers.append(handler)
        try:
            for number in list(self.received):
                handler(number)
            yield
        finally:
            self._handlers.remove(handler)

    def _on_signal(self, number: int, _: object) -> None:
        for handler in list(self._handlers):
            handler(signal.Signals(number))
