"""Commands as the pages of the documentation show them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: The address that the pages speak of.
ADDRESS = "127.0.0.1:50052"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page, and what the page says it prints."""

    line: str
    output: str


def commands(page: Path, language: str) -> list[Command]:
    """The commands of a page's fences of that language: `sh`, each fence one command, or `console`,
    where commands come after `$ ` and their output follows."""
    found = []
    for name, text in _FENCE.findall(page.read_text()):
        if name != language:
            continue
        if language == "sh":
            found.append(Command(text.strip(), ""))
            continue
        assert text.startswith("$ "), f"{page}: a console without a command:\n{text}"
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(i for i, line in enumerate(lines) if not line.endswith("\\")) + 1
            found.append(Command("\n".join(lines[:end]), "\n".join(lines[end:])))
    return found


def run(
    line: str,
    cwd: Path,
    address: str = ADDRESS,
    path: str | None = None,
    seconds: float = 500,
    env: Mapping[str, str] = os.environ,
) -> str:
    """Run a command of a page against a server at that address; what it printed. Whatever it has
    started is gone afterwards."""
    exit_code, out, err = attempt(line, cwd, address, path, seconds, env)
    assert exit_code == 0, f"{line}\nended with {exit_code}:\n{out}\n{err}"
    return out


def attempt(
    line: str,
    cwd: Path,
    address: str,
    path: str | None = None,
    seconds: float = 500,
    env: Mapping[str, str] = os.environ,
) -> tuple[int, str, str]:
    """The same for a command that may fail: its exit code, what it printed, and its errors."""
    env = {**env, "PATH": path or os.environ["PATH"]}
    with subprocess.Popen(
        line.replace(ADDRESS, address),
        shell=True,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err
