"""Two namespaces of one server pass the conformance suite at once, with the same ids and names.

Left out is what costs much and stores little, or what others store as well: refused requests (bad
input, raw bytes), limits, page tokens, health; whatever may be in a message (round trip), and large
batches. So is what is about the namespaces of the server itself, which two runs that make the same
names can't have each to itself (namespaces, isolation).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub

CONFORMANCE = Path(__file__).parents[1] / "conformance"

MODULES = (
    "create_workflow", "persist_workflow", "runnable_instances", "concurrency", "events",
    "subscriptions", "subscription_tokens", "commands", "store", "values", "traps",
    "commit_workflow", "request_id", "views", "lists", "purge",
)  # fmt: skip

LEAST_PASSED = 500

# Tables with an id, and how many ids both namespaces must have for the runs to prove anything.
SAME_IDS = {"workflows": 1000, "events": 1000, "event_subscriptions": 500}


class Outcome:
    """How a run of the suite ended."""

    def __init__(self, namespace: str, process: subprocess.Popen[str]) -> None:
        self.said, _ = process.communicate(timeout=540)
        self.exit_code = process.returncode
        counted = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", self._last)}
        self.passed = counted.get("passed", 0)
        self._namespace = namespace

    @property
    def _last(self) -> str:
        return self.said.strip().rpartition("\n")[2]

    def __str__(self) -> str:
        return f"in {self._namespace}: exit code {self.exit_code}, {self._last}"


def run_at_once(
    address: str, namespaces: Sequence[str], modules: Sequence[str], *options: str
) -> list[Outcome]:
    """Run the modules in each namespace at once, all with the same ids."""
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short",
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
        "--target", address, "--id-seed", "7",
        *options,
        *(str(CONFORMANCE / f"test_{module}.py") for module in modules),
    ]  # fmt: skip
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [*command, "--namespace", namespace],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=CONFORMANCE.parents[1],
            )
            for namespace in namespaces
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        # One after the other. What the second says meanwhile fits into its pipe, or it waits.
        return [Outcome(name, run) for name, run in zip(namespaces, processes, strict=True)]


@pytest.fixture
def namespaces() -> tuple[str, str]:
    """Two names that are as different as a careless comparison would make them equal."""
    return "twin", "twin_"


@pytest.fixture
def server(tmp_path: Path, database_url: str, namespaces: tuple[str, str]) -> ServerProcess:
    """A server for both, not started yet."""
    return ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--allow-truncate", "--allow-delete-namespace"
    )


def create(address: str, namespaces: Sequence[str]) -> None:
    with grpc.insecure_channel(address) as channel:
        for name in namespaces:
            StoreServiceStub(channel).CreateNamespace(CreateNamespaceRequest(name=name))


def ids_in_both(url: str, namespaces: tuple[str, str], table: str) -> int:
    first, second = (f'"wfc_{name}".{table}' for name in namespaces)
    with psycopg.connect(url) as connection:
        row = connection.execute(
            f"SELECT count(*) FROM {first} JOIN {second} USING (id)".encode()
        ).fetchone()
    assert row
    count: int = row[0]
    return count


@pytest.mark.timeout(600)
def test_both_pass_the_suite_at_once_with_the_same_ids(
    server: ServerProcess, database_url: str, namespaces: tuple[str, str]
) -> None:
    with server:
        create(server.address, namespaces)
        outcomes = run_at_once(server.address, namespaces, MODULES)
        for outcome in outcomes:
            assert outcome.exit_code == 0, f"{outcome}\n\n{outcome.said}"
        first, second = outcomes
        assert first.passed == second.passed > LEAST_PASSED, f"{first}\n{second}"
        same = {table: ids_in_both(database_url, namespaces, table) for table in SAME_IDS}
        assert all(same[table] >= least for table, least in SAME_IDS.items()), same
        with psycopg.connect(database_url) as connection:
            row = connection.execute("SELECT count(*) FROM wfc.workflows").fetchone()
        assert row == (0,), "a call went to the namespace default"
    assert "bug" not in server.log(), server.log()


@pytest.mark.timeout(300)
def test_two_runs_in_one_namespace_disturb_each_other(
    server: ServerProcess, namespaces: tuple[str, str]
) -> None:
    """That is: the test above would notice namespaces that are not kept apart."""
    name, _ = namespaces
    with server:
        create(server.address, [name])
        outcomes = run_at_once(server.address, [name, name], ["create_workflow", "events"], "-x")
    assert any(outcome.exit_code == 1 for outcome in outcomes), [str(each) for each in outcomes]
