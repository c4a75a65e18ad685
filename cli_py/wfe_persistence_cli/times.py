"""Times and durations, as people type and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_TIMES: Final = (
    "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z",
)  # fmt: skip


def now() -> datetime:
    """The time, by the clock of this machine."""
    return datetime.now(UTC)


class Age(click.ParamType):  # type: ignore[type-arg]
    """A duration: `90s`, `15m`, `2h30m`, `30d`, `2w`; a `timedelta`."""

    name = "AGE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The duration that the text names."""
        if isinstance(value, timedelta):
            return value
        if not _AGE.fullmatch(value):
            self.fail("must be like 90s, 15m, 2h30m, 30d or 2w", param, ctx)
        seconds = sum(
            int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", value)
        )
        if seconds > 1_000_000 * 86_400:
            self.fail("must be at most 1000000d", param, ctx)
        return timedelta(seconds=seconds)


class Since(click.ParamType):  # type: ignore[type-arg]
    """A moment: how long ago it was (`2h`), or when (`2026-01-31`, `2026-01-31T12:00:00Z`; UTC
    unless it says otherwise); a `datetime`."""

    name = "AGE|TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The moment that the text names."""
        if isinstance(value, datetime):
            return value
        if _AGE.fullmatch(value):
            try:
                return now() - Age().convert(value, param, ctx)
            except OverflowError:
                self.fail("is before the year 1", param, ctx)
        for form in _TIMES:
            try:
                at = datetime.strptime(value, form)  # noqa: DTZ007 — see the next line
            except ValueError:
                continue
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        self.fail("must be like 2h, 30d, 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)
        return None


def brief(duration: timedelta) -> str:
    """A duration in at most two units: `0.25s`, `12s`, `5m3s`, `2d4h`, `3y40d`."""
    seconds = duration.total_seconds()
    if seconds < 0:
        return "-" + brief(-duration)
    if seconds < 10:
        return f"{seconds:.3g}s" if seconds >= 0.001 else f"{seconds * 1e6:.0f}µs"
    whole = int(seconds)
    for unit, size, lower, lower_size in (
        ("y", 31_536_000, "d", 86_400),
        ("d", 86_400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // lower_size
            return f"{whole // size}{unit}" + (f"{rest}{lower}" if rest else "")
    return f"{whole}s"


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago it was, or in how long it will be; empty: no time."""
    if at is None:
        return ""
    passed = now - at
    return brief(passed) if passed >= timedelta(0) else "in " + brief(-passed)


def stamp(at: datetime) -> str:
    """A time to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def is_at_once(milliseconds: int) -> bool:
    """Whether a `next_execution` says "at once", and nothing of when that was: an engine's is 0."""
    return milliseconds <= 0


def from_ms(milliseconds: int) -> datetime | None:
    """What a field in milliseconds since 1970 means; None: no year from 1 to 9999."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
