"""The life of the native sidecar in deploy/kubernetes, as a kubelet leads it: probes and signals in
their order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.support import make
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, GetWorkflowInstanceRequest
from wfe.persistence.v1.workflow_pb2_grpc import WorkflowServiceStub

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"


class Sidecar:
    """The container of that name, without Kubernetes: its variables, its command, its probes."""

    def __init__(self, directory: Path, database_url: str) -> None:
        patch = yaml.safe_load((KUBERNETES / "sidecar/sidecar.yaml").read_text())
        [container] = patch["spec"]["template"]["spec"]["initContainers"]
        self.probes: dict[str, list[str]] = {
            name: container[f"{name}Probe"]["exec"]["command"][1:]
            for name in ("startup", "liveness")
        }
        self.socket = directory / "socket" / "wfe.sock"
        self.socket.parent.mkdir()
        (directory / "url").write_text(database_url)
        variables = [
            line
            for name in ("base", "sidecar")
            for generated in yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text())[
                "configMapGenerator"
            ]
            for line in generated["literals"]
        ]
        # What is mounted elsewhere, and the migration, which is the job's.
        here = dict(line.split("=", 1) for line in variables) | {
            "WFE_PERSISTENCE_DB_URL_FILE": str(directory / "url"),
            "WFE_PERSISTENCE_LISTEN": f"unix:{self.socket}",
        }
        self.env = {**os.environ, **here}
        self.server = ServerProcess(
            directory / "log", "--listen", f"unix:{self.socket}", env=self.env
        )

    def probe(self, name: str) -> bool:
        return self.run(*self.probes[name]).returncode == 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wfe_persistence", *arguments],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture
def sidecar(tmp_path: Path, database_url: str) -> Sidecar:
    return Sidecar(tmp_path, database_url)


@pytest.fixture
def engine(sidecar: Sidecar) -> Callable[[str], str]:
    """The engine writes a workflow and reads it back."""

    def write(id_: str) -> str:
        with grpc.insecure_channel(f"unix:{sidecar.socket}") as channel:
            stub: Any = WorkflowServiceStub(channel)
            created = stub.CreateNewWorkflow(
                CreateNewWorkflowRequest(instance=make.instance(id=id_)), timeout=20
            )
            read = stub.GetWorkflowInstance(GetWorkflowInstanceRequest(id=created.id), timeout=20)
            return str(read.instance.id)

    return write


def test_from_the_first_probe_to_the_last_signal(
    sidecar: Sidecar, engine: Callable[[str], str]
) -> None:
    assert not sidecar.probe("startup")
    sidecar.server.start()
    try:
        # The store is not migrated yet: alive, but the engine may not start.
        assert sidecar.probe("liveness")
        assert not sidecar.probe("startup")
        assert sidecar.run("migrate", "up").returncode == 0
        wait_for(lambda: sidecar.probe("startup"))
        assert engine("first") == "first"
        # The kubelet ends the engine first. It writes to its last moment, and knows of no drain.
        assert engine("last") == "last"
        assert sidecar.probe("liveness")
    finally:
        exit_code = sidecar.server.stop()
    assert exit_code == 0
    assert not sidecar.socket.exists()


def test_a_killed_sidecar_is_started_again_in_the_same_volume(
    sidecar: Sidecar, engine: Callable[[str], str]
) -> None:
    assert sidecar.run("migrate", "up").returncode == 0
    with sidecar.server as server:
        assert engine("before") == "before"
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert sidecar.socket.exists()
        assert not sidecar.probe("liveness")
        server.start()
        server.wait_until_serving()
        assert sidecar.probe("startup")
        assert engine("after") == "after"
