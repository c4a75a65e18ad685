"""gRPC and `os.fork`: a clear error where gRPC itself would hang or crash.

A child of `fork` inherits gRPC's memory without its threads. If gRPC was in use at that
moment, it can never be used in the child. If every channel had been closed and released,
and gRPC had ended its threads, it starts anew in the child.
"""

import ctypes
import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Final, Protocol

#: The name of the Python thread that gRPC's asyncio API runs as long as there is a channel or a
#: server in the process.
_POLLER: Final = "_poll_wrapper"
#: The names of gRPC's own threads. They end shortly after the last channel: milliseconds, but on a
#: busy machine a test has seen a second pass.
_NATIVE: Final = ("grpc_", "event_engine", "lifeguard")
_SETTLE_SECONDS: Final = 5.0


class _Holder(Protocol):
    @property
    def released(self) -> bool:
        """Whether it no longer holds a channel."""


class _Forks:
    """What this process knows about gRPC at the time of forks."""

    def __init__(self) -> None:
        #: The process that this one was forked from while gRPC was in use there.
        self.spoilt_by: int | None = None
        #: Whether gRPC's thread was not found in spite of a channel: this version of gRPC
        #: calls it something else, so from the first channel on gRPC counts as in use.
        self.blind = False
        #: What holds the channels of this process.
        self.holders: weakref.WeakSet[_Holder] = weakref.WeakSet()
        #: Whether gRPC may still be ending its threads.
        self.unsettled = False
        self._in_use = False
        self._forking = 0

    def before(self) -> None:
        self._forking = os.getpid()
        if _poller_runs() and all(holder.released for holder in self.holders):
            # Errors of calls are cycles with the frames that refer to a channel.
            gc.collect()
        self._in_use = self.blind or _poller_runs()
        if self.unsettled and not self._in_use:
            self._in_use = self.unsettled = not _settle()

    def after_in_child(self) -> None:
        self.unsettled = False
        if not self._in_use:
            return
        if self.spoilt_by is None:
            self.spoilt_by = self._forking
        # Releasing a channel that was inherited hangs or crashes, at the latest when the
        # interpreter ends, so nothing may ever release it.
        for holder in list(self.holders):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))


_forks: Final = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forks.before, after_in_child=_forks.after_in_child)


def check_new_channel() -> None:
    """Raises RuntimeError if gRPC cannot be used in this process."""
    if _forks.spoilt_by is not None:
        raise RuntimeError(
            f"gRPC cannot be used in this process: process {_forks.spoilt_by} forked it while "
            "using gRPC. Connect only after the fork, or close all providers before it, or "
            'start the process with "spawn" or "forkserver" instead of "fork"'
        )


def note_channel(holder: _Holder) -> None:
    """Must be called when a channel has been created, with the object that holds it."""
    _forks.blind = not _poller_runs()
    _forks.unsettled = True
    _forks.holders.add(holder)


def refusal(process: int) -> str:
    """Why this process may not use a provider that another one created; else empty."""
    if os.getpid() == process:
        return ""
    return (
        f"this provider belongs to process {process}, from which this process ({os.getpid()}) "
        "was forked; a connection does not survive a fork: every process needs a provider of "
        "its own, connected after the fork"
    )


def _poller_runs() -> bool:
    return any(_POLLER in thread.name for thread in threading.enumerate())


def _settle() -> bool:
    """Waits until gRPC, which is not in use any more, has ended its threads; False: in vain."""
    end = time.monotonic() + _SETTLE_SECONDS
    while _native_threads_run():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _native_threads_run() -> bool:
    for task in Path("/proc/self/task").glob("*/comm"):
        try:
            name = task.read_text()
        except OSError:
            # It has just ended.
            continue
        if name.startswith(_NATIVE):
            return True
    return False
