"""The command line as a program: run in a pipe or on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AT_NOON = [sys.executable, "-m", "tests.cli.at_noon"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment that says nothing about servers, colours or contexts."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WFE_PERSISTENCE_") and name not in ("NO_COLOR", "COLUMNS", "LINES")
    }
    return {**kept, "XDG_CONFIG_HOME": str(home), "TERM": "xterm-256color", **more}


def run(
    arguments: Sequence[str], env: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it where nothing is a terminal."""
    return subprocess.run(
        [*AT_NOON, *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
        input=stdin if stdin is not None else "",
    )  # fmt: skip


def on_terminal(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    columns: int = 80,
    program: Sequence[str] = AT_NOON,
    answers: Sequence[tuple[str, str | Callable[[], str]]] = (),
    seconds: float = 60,
) -> tuple[int, str]:
    """Run it on a terminal; its exit status, and all that was written there.

    `answers`: what to type, or what returns that, when what is written has a text, each after the
    one before.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execvpe(program[0], [*program, *arguments], env)
    written = b""
    seen = 0
    waiting = list(answers)
    interrupted = False
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if waiting and (at := written.find(waiting[0][0].encode(), seen)) >= 0:
                seen = at + len(waiting[0][0])
                answer = waiting.pop(0)[1]
                typed = answer if isinstance(answer, str) else answer()
                os.write(terminal, typed.encode())
                interrupted = typed == "\x03"
            if not select.select([terminal], [], [], 5.0 if interrupted else 0.1)[0]:
                if interrupted:
                    # Python does not notice it between its last look and its wait for a key. Who
                    # sits there presses it again.
                    os.write(terminal, b"\x03")
                continue
            try:
                part = os.read(terminal, 65536)
            except OSError:  # the other end has gone
                part = b""
            if not part:
                break
            written += part
        else:
            raise AssertionError(f"it does not end: {written.decode()}")
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), written.decode().replace("\r\n", "\n")
