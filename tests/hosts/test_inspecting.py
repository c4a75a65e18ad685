"""docs/inspecting.md: its commands, run as they stand there, print what stands there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.hosts.pages import ROOT, Command, attempt, commands, run
from tests.support.api import Api, connect
from tests.support.secured import Secured
from tests.support.server import ServerProcess
from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import QueueKind
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)

PAGE = ROOT / "docs" / "inspecting.md"

# What differs from server to server and from call to call, in buf's spelling and in grpcurl's.
_VARIES = re.compile(
    r'"(leaseToken|lease_token|leaseExpiry|lease_expiry|nextPageToken|serverVersion'
    r'|postgresVersion|schemaVersion|latestSchemaVersion|expiry|acquire_time|visible_time|oldest_waiting_age|epoch|external_token_epoch)"'
    r': *("[^"]*"|\d+)'
)

_TLS = re.compile(r" -?-cacert ")


def _at(text: str) -> Timestamp:
    time = Timestamp()
    time.FromJsonString(text)
    return time


def _workflow(id_: str, status: str, next_execution: str | None) -> WorkflowInstance:
    return WorkflowInstance(
        id=id_,
        workflow_definition_id="order",
        version=1,
        status=WorkflowStatus.Value(f"WORKFLOW_STATUS_{status}"),
        data_json='{"total": 12.50}',
        create_time=_at("2026-01-05T09:00:00Z"),
        next_execution=_at(next_execution).ToMilliseconds() if next_execution else None,
    )


async def _prepare(api: Api) -> None:
    """The store that the page speaks of."""
    stuck = _workflow("6f0c", "RUNNABLE", "2026-01-05T09:00:00Z")
    stuck.name = "order-42"
    stuck.execution_pointers.add(
        id="1",
        status=PointerStatus.POINTER_STATUS_COMPLETE,
        step_name="reserve",
        start_time=_at("2026-01-05T09:00:00Z"),
        end_time=_at("2026-01-05T09:00:01.250Z"),
        outcome_json="null",
    )
    stuck.execution_pointers.append(
        ExecutionPointer(
            id="2",
            step_id=1,
            active=True,
            status=PointerStatus.POINTER_STATUS_RUNNING,
            step_name="charge",
            retry_count=3,
            predecessor_id="1",
        )
    )
    await api.create_new_workflow(stuck)
    waiting = _workflow("77b2", "RUNNABLE", None)
    waiting.name = "order-43"
    await api.create_new_workflow(waiting)
    await api.create_new_workflow(_workflow("later", "RUNNABLE", "9000-01-01T00:00:00Z"))
    await api.create_new_workflow(_workflow("aside", "SUSPENDED", "2026-01-05T09:00:00Z"))
    for id_, workflow in (("s1", "77b2"), ("s2", "81d9")):
        await api.create_event_subscription(
            EventSubscription(
                id=id_,
                workflow_id=workflow,
                step_id=1,
                execution_pointer_id="2",
                event_name="order.paid",
                event_key="43",
                subscribe_as_of=_at("2026-01-05T09:00:00Z"),
            )
        )
    expiry = _at("9000-01-01T00:00:00Z")
    assert await api.set_subscription_token("s1", "token-of-a-worker", "worker-7", expiry)
    await api.create_event(
        Event(
            id="e1",
            event_name="order.paid",
            event_key="43",
            event_data_json='{"amount": 12.50}',
            event_time=_at("2026-01-05T10:00:00Z"),
        )
    )
    await api.schedule_command(
        ScheduledCommand(
            command_name=CommandName.COMMAND_NAME_PROCESS_EVENT,
            data="e1",
            execute_time=_at("2026-01-05T10:00:00Z").ToMilliseconds(),
        )
    )
    locked = await api.acquire_lock(
        "workflow/6f0c", owner="host-7", ttl=Duration(seconds=24 * 3600)
    )
    assert locked.acquired
    await api.configure_queue("workflow", QueueKind.QUEUE_KIND_WORKFLOW, max_attempts=1)
    await api.enqueue(QueueItem(queue="workflow", id="6f0c"))
    [taken] = (await api.dequeue(queues=["workflow"])).items
    await api.return_items(taken.receipt)
    await api.enqueue(QueueItem(queue="workflow", id="7a31"))
    assert await api.claim_commands(worker_id="worker-7", lease_duration=Duration(seconds=3600))
    await api.schedule_command(
        ScheduledCommand(
            command_name=CommandName.COMMAND_NAME_PROCESS_WORKFLOW,
            data="6f0c",
            execute_time=_at("2026-01-05T09:00:00Z").ToMilliseconds(),
        )
    )
    await api.persist_errors(
        *(
            ExecutionError(
                error_time=_at(time),
                workflow_id="6f0c",
                execution_pointer_id="2",
                message="card service: timed out",
            )
            for time in ("2026-01-05T09:00:05Z", "2026-01-05T09:00:35Z")
        )
    )


def path_with(tool: str, tmp_path: Path) -> str:
    """A PATH with that tool on it: where it is installed, or installed for this test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which(tool, path=path):
        return path
    if tool == "buf":
        pytest.skip("buf is not installed (it comes with the extra `lint`)")
    if not shutil.which("go"):
        pytest.skip("neither grpcurl nor go, to install it with, is here")
    env = subprocess.run(["go", "env", "GOPATH"], check=True, capture_output=True, text=True)
    installed = os.pathsep.join([str(Path(env.stdout.strip()) / "bin"), path])
    if shutil.which(tool, path=installed):
        return installed
    [install] = [c for c in commands(PAGE, "sh") if "cmd/grpcurl" in c.line]
    run(f"GOBIN={tmp_path} {install.line}", tmp_path)
    return os.pathsep.join([str(tmp_path), path])


def _commands(tool: str) -> list[Command]:
    """The commands of the page that begin with that tool."""
    return [c for c in commands(PAGE, "console") if c.line.startswith(f"{tool} ")]


def _comparable(output: str) -> object:
    """An output without what varies: JSON as its values (how it is spaced differs from one version
    of a tool to the next), anything else as lines."""
    text = _VARIES.sub(r'"\1": "…"', output).strip()
    documents = []
    try:
        while text:
            document, end = json.JSONDecoder().raw_decode(text)
            documents.append(document)
            text = text[end:].strip()
    except ValueError:
        return text.splitlines()
    return documents


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tool", ["grpcurl", "buf"])
async def test_commands_print_what_the_page_says(
    tool: str, tmp_path: Path, database_url: str
) -> None:
    path = await asyncio.to_thread(path_with, tool, tmp_path)
    shown = [c for c in _commands(tool) if not _TLS.search(c.line)]
    assert shown
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        async with connect(server.address) as channel:
            await _prepare(Api(channel))
        for command in shown:
            printed = await asyncio.to_thread(run, command.line, ROOT, server.address, path, 60)
            assert _comparable(printed) == _comparable(command.output), command.line
    assert "bug" not in server.log(), server.log()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tool", ["grpcurl", "buf"])
def test_commands_over_tls_print_what_the_page_says(
    tool: str, tmp_path: Path, database_url: str
) -> None:
    path = path_with(tool, tmp_path)
    [command] = [c for c in _commands(tool) if _TLS.search(c.line)]
    secured = Secured(tmp_path, database_url)
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    for file in (secured.authority.ca_file, secured.client.cert, secured.client.key):
        (tmp_path / file.name).symlink_to(file)
    with secured.server as server:
        for token in (secured.token, "not-a-token"):
            (tmp_path / "headers").write_text(f"authorization: Bearer {token}\n")
            env = {**os.environ, "WFE_TOKEN": token}
            exit_code, printed, errors = attempt(
                command.line, tmp_path, server.address, path, 60, env
            )
            if token is secured.token:
                assert exit_code == 0, errors
                assert _comparable(printed) == _comparable(command.output)
            else:
                assert exit_code != 0
                assert "unauthenticated" in errors.lower()
    assert "bug" not in server.log(), server.log()


def test_every_command_of_the_page_is_run() -> None:
    assert all(re.search(r"^(grpcurl|buf) ", c.line) for c in commands(PAGE, "console"))
