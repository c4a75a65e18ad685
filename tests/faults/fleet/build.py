"""The program of the hosts, the example `fleet` of `client_rs/engine-1.11`, built by cargo."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

CRATE = Path(__file__).parents[3] / "client_rs" / "engine-1.11"
PROFILES = {"dev": "debug", "bench": "release"}
"""Cargo's profiles, and where each puts what it builds. That for measuring is `bench`."""


class CannotBuildError(Exception):
    """The message says why."""


def target_dir() -> Path:
    """Cargo's target directory: the user's choice, else that of the client's own tests, which use
    the same dependencies."""
    if chosen := os.environ.get("CARGO_TARGET_DIR"):
        return CRATE / chosen
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "wfe-persistence" / "client_rs-target"


def build(directory: Path, *, profile: str = "dev", peers: bool = False) -> Path:
    """Build the program, and put it into this directory: another clone may build its own after
    that. `peers`: with what it is compared with. Raises CannotBuildError."""
    if missing := [tool for tool in ("cargo", "cc") if not shutil.which(tool)]:
        raise CannotBuildError(f"needs {' and '.join(missing)}, which is not installed")
    target = target_dir()
    target.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CARGO_TARGET_DIR": str(target), "CARGO_INCREMENTAL": "0"}
    with (target / "wfe-persistence.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Cargo takes what another clone has built for fresh, if it is newer than the sources.
        _cargo(env, "clean", "--locked", "--profile", profile, "-p", "wfe-persistence-client",
               "-p", "engine-1-11")  # fmt: skip
        _cargo(env, "build", "--locked", "--example", "fleet", "--profile", profile,
               *(["--features", "peers"] if peers else []))  # fmt: skip
        built = target / PROFILES[profile] / "examples" / "fleet"
        return Path(shutil.copy(built, directory / "fleet"))


def _cargo(env: dict[str, str], *arguments: str) -> None:
    done = subprocess.run(
        ["cargo", *arguments], cwd=CRATE, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotBuildError(f"cargo {' '.join(arguments)}: {done.returncode}\n{done.stdout}")
