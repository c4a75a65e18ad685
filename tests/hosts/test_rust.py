"""The Rust crate's own tests, with the real engine in them, against a server started here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.pages import ROOT
from tests.support.server import ServerProcess

CRATE = ROOT / "client_rs"

#: A first build takes minutes; that it ends at all is all that is asked of it.
pytestmark = pytest.mark.timeout(1800)

#: How many tests there are at least, by binary and module: a macro that makes none, or a module
#: that is not compiled, would pass unnoticed. Those of `persistence` are the engine's own suite
#: (`wfe_core::persistence_suite!`) and some more.
AT_LEAST = {
    "lib": {"call": 11, "connect": 4, "convert": 10, "error": 7, "provider": 1, "saving": 5},
    "all": {
        "codegen": 1,
        "host": 8,
        "kill": 2,
        "mixed_fleet": 5,
        "persistence": 41,
        "saving": 5,
        "tls": 6,
        "token": 3,
    },
}
SELECT = {"lib": ["--lib"], "all": ["--test", "all"]}
OPTIONS = ["--locked", "--features", "tls"]

_PASSED = re.compile(r"^test (\w+)::\S+(?: - should panic)? \.\.\. ok$", re.MULTILINE)
_RESULT = re.compile(
    r"^test result: ok\. (\d+) passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;",
    re.MULTILINE,
)


def _cargo(*arguments: str, env: dict[str, str]) -> str:
    """Run cargo on the crate; what it printed. Whatever it has started is gone afterwards."""
    with subprocess.Popen(
        ["cargo", *arguments],
        cwd=CRATE,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"cargo {' '.join(arguments)}: {process.returncode}\n{out}"
    return out


def _need_rust() -> None:
    if missing := [tool for tool in ("cargo", "cc") if not shutil.which(tool)]:
        pytest.skip(f"the Rust crate needs {' and '.join(missing)}, not installed here")
    wanted = tomllib.loads((CRATE / "Cargo.toml").read_text())["package"]["rust-version"]
    said = subprocess.run(["cargo", "--version"], cwd=CRATE, capture_output=True, text=True)
    version = re.match(r"cargo (\d+)\.(\d+)", said.stdout)
    if version is None:
        pytest.skip(f"the Rust crate needs a cargo that works: {said.stderr.strip()}")
    if tuple(map(int, version.groups())) < tuple(map(int, wanted.split("."))):
        pytest.skip(f"the Rust crate needs Rust {wanted} or newer, here is {said.stdout.strip()}")


def _target_dir() -> Path:
    """Where cargo builds: where the user says, else in a cache that all clones of this project
    share, so that only the first run on a machine compiles the 300 crates below ours."""
    if said := os.environ.get("CARGO_TARGET_DIR"):
        return CRATE / said
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "wfe-persistence" / "client_rs-target"


@pytest.fixture(scope="module")
def cargo_env() -> Iterator[dict[str, str]]:
    """The environment for cargo, with the crate's tests built."""
    _need_rust()
    target = _target_dir()
    target.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CARGO_TARGET_DIR": str(target), "CARGO_INCREMENTAL": "0"}
    with (target / "wfe-persistence.lock").open("w") as lock:
        # Another clone would replace the tests while they run.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # To cargo, this crate is the same in each clone, and fresh if the last build of any of
        # them is younger than the sources of this one.
        _cargo("clean", "--locked", "-p", "wfe-persistence-client", "-p", "codegen", env=env)
        _cargo("test", "--no-run", *OPTIONS, "--lib", "--tests", env=env)
        yield env


@pytest.mark.parametrize("binary", SELECT)
def test_the_crates_tests_pass(
    binary: str, cargo_env: dict[str, str], tmp_path: Path, database_url: str, postgres_url: str
) -> None:
    allow = ("--allow-truncate", "--allow-delete-namespace")
    with ServerProcess(tmp_path / "log", "--db-url", database_url, *allow) as server:
        env = {
            **cargo_env,
            "WFE_PERSISTENCE_TARGET": server.address,
            # Databases of the tests' own are made here; sqlx wants a host before the path.
            "WFE_PERSISTENCE_TEST_POSTGRES": postgres_url.replace("@/", "@localhost/"),
            # Servers that the tests kill are started with this.
            "WFE_PERSISTENCE_COMMAND": str(Path(sys.executable).parent / "wfe-persistence"),
        }
        out = _cargo("test", *OPTIONS, *SELECT[binary], env=env)
    [passed] = _RESULT.findall(out)
    modules = Counter(_PASSED.findall(out))
    assert modules.total() == int(passed), out
    assert modules.keys() >= AT_LEAST[binary].keys(), out
    assert {m: n for m, n in AT_LEAST[binary].items() if modules[m] < n} == {}, modules
    assert "bug" not in server.log(), server.log()
