"""When a call must end."""

import time
from typing import Final

#: The longest timeout in seconds, a year: what is longer, infinity too, counts as this.
#: gRPC computes with integers, and a call without a timeout would get the server's default.
LONGEST: Final = 365 * 24 * 3600.0


class Deadline:
    """A point in time, by the monotonic clock, by which a call must end."""

    __slots__ = ("_end",)

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + min(timeout, LONGEST)

    def remaining(self) -> float:
        """Seconds left; negative when it has passed."""
        return self._end - time.monotonic()


def check_timeout(timeout: float) -> None:
    """Rejects what is not above 0; infinity is."""
    if not timeout > 0:
        raise ValueError("timeout must be positive")
