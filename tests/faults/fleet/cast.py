"""The processes of a fleet, beside the servers and PostgreSQL, which are those of `chaos.stage`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass
class Life:
    """One process of a host, from its start to its death, in nanoseconds of the monotonic clock."""

    journal: Path
    begin: int
    end: int | None = None
    frozen: list[tuple[int, int]] = field(default_factory=list)
    """When it was stopped without being told, and for how long."""
    killed: bool = False


class HostProcess:
    """A host. Who kills it starts it again, and so does `keep_alive` if it ended by itself."""

    def __init__(self, program: Path, options: list[str], directory: Path, name: str) -> None:
        self._program = program
        self._options = options
        self._directory = directory
        self.name = name
        self.lives: list[Life] = []
        self.up = False
        """Whether it should run."""
        self.exits = 0
        """How often it ended though nobody told it to."""
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        journal = self._directory / f"{self.name}-{len(self.lives)}.jsonl"
        with (self._directory / f"{self.name}.log").open("ab") as log:
            self.lives.append(Life(journal, time.monotonic_ns()))
            self._process = subprocess.Popen(
                [self._program, "host", *self._options, "--journal", journal],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.up = True

    def kill(self) -> None:
        self.up = False
        self._process.kill()
        self._process.wait()
        self._died(killed=True)

    def _died(self, *, killed: bool) -> None:
        life = self.lives[-1]
        life.end = time.monotonic_ns()
        life.killed = killed

    async def freeze(self, seconds: float) -> None:
        """Stop it for a while without its knowledge, as a paused virtual machine is: in the middle
        of a step, if it comes to one soon."""
        for _ in range(300):
            begin = time.monotonic_ns()
            self._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.005)  # until all of its threads have stopped
            if self._is_in_a_step():
                break
            self._process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.01)
        try:
            self._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            self._process.send_signal(signal.SIGCONT)
            self.lives[-1].frozen.append((begin, time.monotonic_ns()))

    def _is_in_a_step(self) -> bool:
        """Whether the last thing that it wrote is that a step begins. It runs one at a time."""
        journal = self.lives[-1].journal
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        return bool(lines) and b'"begin"' in lines[-1]

    async def keep_alive(self) -> None:
        """Start it again whenever it has ended by itself, as a supervisor does."""
        while True:
            if self.up and self._process.poll() is not None:
                self._died(killed=False)
                self.exits += 1
                await asyncio.sleep(0.5)
                self.start()
            await asyncio.sleep(0.1)

    async def stop(self, seconds: float = 30) -> bool:
        """SIGTERM, and wait; whether that was enough."""
        self.up = False
        if self._process.poll() is not None:
            return True
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._died(killed=False)
        return True


class Feed:
    """The client of the fleet: it starts workflows and publishes events, and is never killed."""

    def __init__(self, program: Path, options: list[str], directory: Path) -> None:
        self._command = [str(program), "feed", *options]
        self._log = directory / "feed.log"
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]
        self._ready = asyncio.Event()
        self.started: set[int] = set()
        self.published: set[str] = set()
        self.failures = 0
        """Attempts that failed, and were repeated."""

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._reader = asyncio.create_task(self._read())
        async with asyncio.timeout(60):
            await self._ready.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("ab") as log:
            async for line in self._process.stdout:
                match line.decode().split():
                    case ["ready"]:
                        self._ready.set()
                    case ["started", number, _]:
                        self.started.add(int(number))
                    case ["published", workflow]:
                        self.published.add(workflow)
                    case _:
                        self.failures += 1
                        log.write(line)

    async def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader


class Redis:
    """Debian's `redis-server`, which writes every command to its disk within a second."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "redis"
        self._directory.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir",
                 str(self._directory), "--appendonly", "yes", "--save", ""],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while self.ask("PING") != "+PONG":
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.02)

    def ask(self, command: str) -> str:
        """The answer to an inline command, as far as it comes at once; empty: none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"{command}\r\n".encode())
                return connection.recv(65536).decode().strip()
        except OSError:
            return ""

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
