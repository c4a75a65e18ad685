"""The processes of a test run: they end with it, whatever ends it, and it fails if one is left.

Whatever a test starts inherits the mark of the run in its environment, and so does what that
starts in turn. Two look for the mark: the run itself at its end, and a watchdog, a small process
that outlives the run if that is killed. (Run as a program, this module is the watchdog.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

_MARKS: Final = "WFE_TEST_RUNS"
# What a process has to end after whoever used it, and after a signal. So long it is only waited
# where something is left.
_GRACE_SECONDS: Final = 3.0
_SIGNAL_SECONDS: Final = 10.0


class Run:
    """A run of tests, from its first process to its last.

    `directory` is for its data: other users can get through it, and the watchdog deletes it.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.directory = Path(tempfile.mkdtemp(prefix="wfe-"))
        self.directory.chmod(0o711)
        # In a session of its own, so that Ctrl-C in the terminal does not reach it. It learns from
        # the end of its input that the run has ended.
        self._watchdog = subprocess.Popen(
            [sys.executable, __file__, self._mark, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        # A run within a run belongs to both.
        outer = os.environ.get(_MARKS)
        os.environ[_MARKS] = f"{outer} {self._mark}" if outer else self._mark

    def end(self) -> list[str]:
        """End what is left of the run; returns a line about each process."""
        # What was forked, as opposed to started, has no environment of its own to read.
        children = psutil.Process().children(recursive=True)
        found = {*marked(self._mark), *children} - {psutil.Process(self._watchdog.pid)}
        # Some may be about to end, after whoever used them.
        _, left = psutil.wait_procs(found, _GRACE_SECONDS)
        lines = end_all(left)
        with suppress(BrokenPipeError):
            self._watchdog.communicate(timeout=60)
        return lines


def marked(mark: str) -> set[psutil.Process]:
    """The processes with this mark, except those that have ended and wait for their parent."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ().get(_MARKS, "").split():
                found.add(process)
    return found


def end_all(processes: Sequence[psutil.Process], seconds: float = _SIGNAL_SECONDS) -> list[str]:
    """End processes, by SIGKILL where SIGTERM does not help in time; returns a line about each."""
    lines = {process: _line(process) for process in processes}
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, deaf = psutil.wait_procs(processes, seconds)
    for process in deaf:
        lines[process] += " (was not ended by SIGTERM)"
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(deaf, seconds)
    return list(lines.values())


def _line(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process.pid)


def _watch(mark: str, directory: Path) -> None:
    """Wait for the end of the run; then end its processes and delete its directory."""
    sys.stdin.buffer.read()
    # More than once, as one of them may just have been starting another.
    while left := marked(mark):
        end_all([*left])
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
