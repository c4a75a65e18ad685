"""The command as the first process of a container, which inherits everybody's orphans.

PostgreSQL, killed, leaves orphans behind, and so does the shell of a health check. Who is process 1
has to reap them. A server that did would take away the children of `subprocess` and `asyncio`;
so process 1 does nothing else, and the command runs in a child of it.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_FORWARDED: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_SI_KERNEL: Final = 0x80  # from the terminal, which sends it to the whole group


def become_init() -> None:
    """Go on in a child. This process passes signals on, reaps, and exits as the child does.

    Must be called before there are other threads.
    """
    waited = {*_FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited)
        return
    while True:
        info = signal.sigwaitinfo(waited)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                os._exit(status if status >= 0 else 128 - status)
        elif info.si_code != _SI_KERNEL:
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Reap all that have ended; the exit code of `child` if it is among them."""
    exit_code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return exit_code
        if pid == 0:
            return exit_code
        if pid == child:
            exit_code = os.waitstatus_to_exitcode(status)
