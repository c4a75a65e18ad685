"""A file that is read again when it changes, while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from wfe_persistence.errors import CannotServeError

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_BYTES: Final = 16 * 1024 * 1024


def read_file(path: Path) -> bytes:
    """What a file has in it. Raises ValueError if that can't be had or can't be trusted."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ValueError("anybody may write to it (chmod o-w)")
            data = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise ValueError(exc.strerror) from exc
    if len(data) > _MAX_BYTES:
        raise ValueError(f"has more than {_MAX_BYTES} bytes")
    return data


_LOOK_SECONDS: Final = 1.0


class WatchedFile(Generic[T]):
    """What a file says. If it comes to say what can't be understood, what it said before stays.

    It is compared by its content, so it does not matter how it is replaced: in place, by a rename,
    or by another target of a symbolic link, as Kubernetes does it.
    """

    value: T

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        self.path = path
        self._parse = parse
        self._data: bytes | None = None
        self._problem = ""

    def load(self) -> None:
        """Read it for the first time. Raises CannotServeError, naming the file."""
        try:
            data = read_file(self.path)
            self.value = self._parse(data)
        except ValueError as exc:
            raise CannotServeError(f"{self.path}: {exc}") from exc
        self._data = data

    async def look(self) -> None:
        """Read it again if it has changed."""
        try:
            data = await asyncio.to_thread(read_file, self.path)
            if data == self._data:
                changed = False
            else:
                self.value = await asyncio.to_thread(self._parse, data)
                changed = True
        except Exception as exc:  # whatever is wrong with it, it is looked at again
            if str(exc) != self._problem:
                self._problem = str(exc)
                log.warning("%s: %s; what it said before stays in force", self.path, exc)
            return
        self._data = data
        if changed or self._problem:
            log.info("%s: read again", self.path)
        self._problem = ""

    async def watch(self) -> None:
        """Look at it every second, for as long as the server runs."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)
