"""The file that the embedded PostgreSQL writes its log to, and how it stays small.

PostgreSQL keeps the file open for as long as it runs, and every process that uses it may look after
the file. So it is not renamed but copied and emptied: PostgreSQL appends, and goes on at the
beginning.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_SHOWN_BYTES: Final = 2000
_MAX_BYTES: Final = 16 * 2**20


class EmbeddedLog:
    """PostgreSQL's log: `path`, and what was in it before, beside it with the ending `.1`.

    Both are those of PostgreSQL's user, whom `give` makes the owner of a descriptor's file.
    """

    def __init__(self, path: Path, give: Callable[[int], None]) -> None:
        self.path = path
        self._give = give
        self._begin = 0

    def begin(self) -> int:
        """Return a descriptor for a PostgreSQL that is about to be started."""
        descriptor = self._open(self.path)
        self._begin = os.fstat(descriptor).st_size
        return descriptor

    def end(self) -> str:
        """The last lines since `begin`."""
        with suppress(OSError), open(self._open(self.path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = self._begin if self._begin <= size else 0  # it was emptied meanwhile
            file.seek(max(size - _SHOWN_BYTES, begin))
            return file.read().decode(errors="replace").strip()
        return ""

    def keep_small(self) -> None:
        """Begin again if it has 16 MiB. What is written while it is copied may be lost."""
        with suppress(OSError):  # without a log yet; or the disk is full, which others tell
            if os.stat(self.path, follow_symlinks=False).st_size < _MAX_BYTES:
                return
            with open(self._open(self.path), "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_size < _MAX_BYTES:
                    return  # another process was faster
                before = self.path.with_name(self.path.name + ".1")
                before.unlink(missing_ok=True)
                with open(self._open(before), "wb") as copy:
                    shutil.copyfileobj(file, copy)
                file.truncate(0)

    def _open(self, path: Path) -> int:
        # PostgreSQL's user owns the directory, and must not make root write elsewhere.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        self._give(descriptor)
        return descriptor
