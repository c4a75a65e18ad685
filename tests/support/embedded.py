"""The processes of an embedded PostgreSQL."""

from __future__ import annotations

from pathlib import Path


def postmaster(data_dir: Path) -> int:
    [pid_file] = data_dir.glob("*/postmaster.pid")
    return int(pid_file.read_text().split()[0])


def postgres_processes(data_dir: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            program = command.partition(b"\0")[0]
            if program.endswith(b"/postgres") and str(data_dir).encode() in command:
                found.append(int(process.name))
    return found
