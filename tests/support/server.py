"""A server process of the tests' own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from wfe.persistence.v1.store_pb2 import DeleteNamespaceRequest, ListNamespacesRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    DeleteWorkflowRequest,
    PersistWorkflowRequest,
)
from wfe.persistence.v1.workflow_pb2_grpc import WorkflowServiceStub

# On SIGABRT a process says what each of its threads is doing, and ends.
_TRACEBACKS = {"PYTHONFAULTHANDLER": "1"}

_LISTENS = re.compile(r"listens on (\S+?)[\"\s]")


class ServerProcess:
    """`wfe-persistence serve` as its users start it. As a context manager it is SERVING inside."""

    def __init__(
        self,
        log_file: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        module: str = "wfe_persistence",
        python: str = sys.executable,
        under: Sequence[str] = (),
    ) -> None:
        self._log_file = log_file
        self._arguments = arguments
        self._env = env
        self._module = module
        self._python = python
        self._under = under  # a program that runs the server
        self.credentials: grpc.ChannelCredentials | None = None
        """What a client needs to connect, if the server serves TLS."""
        self.process: subprocess.Popen[bytes]
        self.address = ""

    def __enter__(self) -> Self:
        self.start()
        with self._killed_on_failure():
            self.wait_until_serving()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        arguments = self._arguments
        if "--listen" not in arguments:
            arguments = ("--listen", "127.0.0.1:0", *arguments)
        with self._log_file.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [*self._under, self._python, "-m", self._module, "serve", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=(os.environ if self._env is None else self._env) | _TRACEBACKS,
            )
        with self._killed_on_failure():
            self._wait_until_listening(begin)

    def _wait_until_listening(self, begin: int) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            said = self._log_file.read_bytes()[begin:].decode()
            if match := _LISTENS.search(said):
                self.address = match[1]
                return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended ({self.process.returncode}):\n{said}")
            time.sleep(0.02)
        raise AssertionError(f"the server does not listen:\n{self.log()}")

    @contextmanager
    def _killed_on_failure(self) -> Iterator[None]:
        """Whoever can't start the server has nothing to stop."""
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def wait_until_serving(self, seconds: float = 60) -> None:
        """Wait for health to say SERVING."""
        deadline = time.monotonic() + seconds
        with (
            grpc.secure_channel(self.address, self.credentials)
            if self.credentials
            else grpc.insecure_channel(self.address)
        ) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < deadline:
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.RpcError:
                    pass
                else:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.02)
        raise AssertionError(f"the server is not SERVING:\n{self.log()}")

    def stop(self) -> int:
        """SIGTERM, and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired as exc:
            self.process.send_signal(signal.SIGABRT)  # so that it says what it is doing
            self.process.wait()
            raise AssertionError(f"the server does not end:\n{self.log()}") from exc
        except BaseException:  # Ctrl-C: the next test does not wait for it either
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        """What the process has said so far, in whole lines: the last one may be half written."""
        said = self._log_file.read_text()
        return said[: said.rfind("\n") + 1] or said


def delete_a_workflow(address: str) -> None:
    """Leave the server with a store from which a workflow was deleted, as any store but a new one
    is. New workflows no longer start at revision 1 there, so that no test comes to count on it."""
    instance = make.instance(id=str(uuid.uuid4()))
    with grpc.insecure_channel(address) as channel:
        workflows = WorkflowServiceStub(channel)
        workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
        workflows.PersistWorkflow(PersistWorkflowRequest(instance=instance))
        workflows.DeleteWorkflow(DeleteWorkflowRequest(id=instance.id))


def delete_own_namespaces(address: str) -> list[str]:
    """Delete what is left of the namespaces that tests have made here; returns their names."""
    found: list[str] = []
    with grpc.insecure_channel(address) as channel:
        store = StoreServiceStub(channel)
        request = ListNamespacesRequest()
        while True:
            page = store.ListNamespaces(request, timeout=30)
            found += [each.name for each in page.namespaces if make.is_new_namespace(each.name)]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        for name in found:
            store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True), timeout=30)
    return found
