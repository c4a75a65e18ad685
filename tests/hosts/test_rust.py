"""The Rust crate's own tests, which run the real engine, against a server started here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.pages import ROOT
from tests.support import binaries
from tests.support.admin import AdminServer
from tests.support.replicas import Member, Standby
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for

CRATE = ROOT / "client_rs"

#: The first build takes minutes.
pytestmark = pytest.mark.timeout(1800)

#: The minimum number of tests, by binary and module: a macro that generates none, or a module that
#: is not compiled, would go unnoticed otherwise. Those of `persistence` include the engine's own
#: suite (`wfe_core::persistence_suite!`); `suites` are all of the engine's, for a host.
AT_LEAST = {
    "lib": {
        "cache": 2,
        "call": 17,
        "connect": 5,
        "convert": 11,
        "error": 9,
        "host": 20,
        "patch": 3,
        "positions": 5,
        "rpc": 1,
        "token": 2,
    },
    "all": {
        "codegen": 1,
        "ended": 4,
        "host": 8,
        "hosts": 13,
        "kill": 2,
        "mixed_fleet": 5,
        "newer": 2,
        "persistence": 41,
        "saving": 7,
        "suites": 39,
        "tls": 7,
        "token": 4,
    },
    # The same on the newest version of the engine.
    "newest": {"hosts": 13, "subscribers_of_the_trait_receive_events": 1, "suites": 39},
}
#: Where cargo runs, and what.
CRATES = {"lib": CRATE, "all": CRATE, "newest": CRATE / "engine-1.11"}
SELECT = {
    "lib": ["--features", "tls", "--lib"],
    "all": ["--features", "tls", "--test", "all"],
    "newest": ["--test", "all"],
}

_PASSED = re.compile(r"^test (\w+)(?:::\S+)?(?: - should panic)? \.\.\. ok$", re.MULTILINE)
_RESULT = re.compile(
    r"^test result: ok\. (\d+) passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;",
    re.MULTILINE,
)


def _cargo(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    """Run cargo in a crate and return its output. No process that it started outlives it."""
    with subprocess.Popen(
        ["cargo", *arguments],
        cwd=cwd,
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
        pytest.skip(f"the Rust crate needs {' and '.join(missing)}, which is not installed")
    wanted = tomllib.loads((CRATE / "Cargo.toml").read_text())["package"]["rust-version"]
    found = subprocess.run(["cargo", "--version"], cwd=CRATE, capture_output=True, text=True)
    version = re.match(r"cargo (\d+)\.(\d+)", found.stdout)
    if version is None:
        pytest.skip(f"the Rust crate needs a working cargo: {found.stderr.strip()}")
    if tuple(map(int, version.groups())) < tuple(map(int, wanted.split("."))):
        pytest.skip(f"the Rust crate needs Rust {wanted} or newer; found {found.stdout.strip()}")


def target_dir() -> Path:
    """Return cargo's target directory: the user's choice, else a cache shared by all clones of
    this project, so that only the first run on a machine compiles the 300 crates that ours
    depends on."""
    if chosen := os.environ.get("CARGO_TARGET_DIR"):
        return CRATE / chosen
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "wfe-persistence" / "client_rs-target"


@pytest.fixture(scope="module")
def cargo_env() -> Iterator[dict[str, str]]:
    """The environment for cargo, with the crate's tests built."""
    _need_rust()
    target = target_dir()
    target.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CARGO_TARGET_DIR": str(target), "CARGO_INCREMENTAL": "0"}
    with (target / "wfe-persistence.lock").open("w") as lock:
        # Another clone would replace the test binaries while they run.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Cargo does not distinguish the clones: it considers this crate fresh if any clone was
        # built after the sources of this one were changed.
        ours = ("-p", "wfe-persistence-client")
        _cargo("clean", "--locked", *ours, "-p", "codegen", cwd=CRATE, env=env)
        _cargo("clean", "--locked", *ours, "-p", "engine-1-11", cwd=CRATES["newest"], env=env)
        build = ("test", "--no-run", "--locked")
        _cargo(*build, "--features", "tls", "--lib", "--tests", cwd=CRATE, env=env)
        _cargo(*build, *SELECT["newest"], cwd=CRATES["newest"], env=env)
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
            # The tests create their own databases here; sqlx requires a host before the path.
            "WFE_TEST_POSTGRES": postgres_url.replace("@/", "@localhost/"),
            # The tests start the servers that they kill with this command.
            "WFE_TEST_COMMAND": str(Path(sys.executable).parent / "wfe-persistence"),
        }
        out = _cargo("test", "--locked", *SELECT[binary], cwd=CRATES[binary], env=env)
    [passed] = _RESULT.findall(out)
    modules = Counter(_PASSED.findall(out))
    assert modules.total() == int(passed), out
    assert modules.keys() >= AT_LEAST[binary].keys(), out
    assert {m: n for m, n in AT_LEAST[binary].items() if modules[m] < n} == {}, modules
    assert "bug" not in server.log(), server.log()


def test_the_provider_reads_from_a_replica(cargo_env: dict[str, str]) -> None:
    """The crate's own test of that, which needs a replica."""
    with (
        # (PostgreSQL is another user, if this one is root.)
        tempfile.TemporaryDirectory(prefix="wfe-") as path,
        Member(binaries.postgres(18), _open(Path(path)) / "primary") as primary,
        Standby(primary, Path(path) / "standby") as standby,
        AdminServer(
            Path(path) / "log", "--db-url", primary.url, "--db-read-url", standby.url,
            "--replica-max-lag", "600",
        ) as server,
    ):  # fmt: skip
        usable = 'wfe_persistence_replica_usable{standby="home/1"} 1'
        wait_for(lambda: usable in server.get("/metrics").text)
        env = {
            **cargo_env,
            "WFE_TEST_REPLICATED": server.address,
            "WFE_TEST_REPLICA": standby.url.replace("@/", "@localhost/"),
        }
        out = _cargo("test", "--locked", *SELECT["all"], "replicas::", cwd=CRATE, env=env)
        assert "test result: ok. 1 passed" in out, out
        assert re.search(
            r'replica_reads_total{outcome="replica",standby="home/1"} [1-9]',
            server.get("/metrics").text,
        ), server.get("/metrics").text


def _open(directory: Path) -> Path:
    directory.chmod(0o755)
    return directory
