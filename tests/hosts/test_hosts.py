"""The hosts in examples/, each run by the one command of its README, and what they have stored."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.hosts.pages import ROOT, attempt, commands, run
from tests.support.api import Api, connect, pages
from tests.support.expect import fails
from tests.support.secured import Secured
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import PointerStatus, WorkflowStatus

TOOLS = {
    "go": ("go",),
    "typescript": ("node", "npm"),
    "java": ("java", "mvn"),
}
LARGEST = 2**63 - 1
SMALLEST = -(2**63)
NEXT_EXECUTIONS = [SMALLEST, -(2**53 + 1), 0, 2**53 + 1, LARGEST]
LAST_TIME = Timestamp(seconds=253402300799)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", TOOLS)
async def test_host_does_what_it_says(language: str, tmp_path: Path, database_url: str) -> None:
    if missing := [tool for tool in TOOLS[language] if not shutil.which(tool)]:
        pytest.skip(f"the {language} host needs {' and '.join(missing)}, not installed here")
    example = ROOT / "examples" / language
    [command] = commands(example / "README.md", "sh")
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        printed = await asyncio.to_thread(run, command.line, example, server.address)
        async with connect(server.address) as channel:
            await _check_store(Api(channel), language, printed.splitlines())
    assert "bug" not in server.log(), server.log()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", TOOLS)
async def test_host_is_let_in_by_certificate_and_token(
    language: str, tmp_path: Path, database_url: str
) -> None:
    if missing := [tool for tool in TOOLS[language] if not shutil.which(tool)]:
        pytest.skip(f"the {language} host needs {' and '.join(missing)}, not installed here")
    example = ROOT / "examples" / language
    [command] = commands(example / "README.md", "sh")
    line = command.line
    if (example / "node_modules").exists():  # the test before has installed it
        line = line.replace("npm ci && ", "")
    secured = Secured(tmp_path, database_url)
    env = secured.environment()
    with secured.server as server:
        printed = await asyncio.to_thread(run, line, example, server.address, env=env)
        async with secured.channel() as channel:
            await _check_store(Api(channel), language, printed.splitlines())
        secured.token_file.write_text("not-a-token\n")
        exit_code, out, errors = await asyncio.to_thread(
            attempt, line, example, server.address, env=env
        )
        assert exit_code != 0
        assert "health: SERVING" in out  # everybody may know that
        assert "unauthenticated" in (out + errors).lower()
    assert "bug" not in server.log(), server.log()
    for secret in ("not-a-token", secured.token):
        assert secret not in out + errors + "".join(printed) + server.log()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", TOOLS)
def test_host_says_in_one_line_why_it_ends(language: str) -> None:
    """Without a server at once, not when a deadline has passed, and for an argument it ignored."""
    if missing := [tool for tool in TOOLS[language] if not shutil.which(tool)]:
        pytest.skip(f"the {language} host needs {' and '.join(missing)}, not installed here")
    example = ROOT / "examples" / language
    [command] = commands(example / "README.md", "sh")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens: every connection is refused
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        exit_code, printed, errors = attempt(command.line, example, target)
    [line] = [line for line in errors.splitlines() if target in line]
    assert f"no connection to {target}: " in line  # Maven colours it
    assert "refused" in line.lower()
    assert exit_code == 1
    assert "    at " not in errors  # no stack trace
    assert "health" not in printed

    exit_code, printed, errors = attempt(command.line.replace("--target ", ""), example, target)
    assert "usage: " in errors
    # Maven has an exit code of its own, and `go run` too.
    assert exit_code != 0
    assert "health" not in printed


async def _check_store(api: Api, language: str, printed: list[str]) -> None:
    assert any(line.endswith("health: SERVING") for line in printed), printed
    assert any("revision 1 is out of date, 2 is stored: again" in line for line in printed)
    for number in (*NEXT_EXECUTIONS, LARGEST):
        assert any(line.endswith(f"next_execution {number}") for line in printed), printed
    for reason in ("WORKFLOW_NOT_FOUND", "NAME_TAKEN", "INVALID_FIELD", "LEASE_LOST"):
        assert any(line.startswith(f"refused: {reason}") for line in printed), printed
    assert any("instance.execution_pointers[1].outcome_json" in line for line in printed)
    [summary] = [json.loads(line) for line in printed if line.startswith("{")]

    order = await _check_workflow(api, summary, language)
    await _check_event(api, summary, order)
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.get_subscription(summary["subscription_id"])
    waiting = await api.get_subscriptions(event_name="order.paid", event_key=order, as_of=LAST_TIME)
    assert not waiting.subscriptions
    assert await api.claim_commands(as_of=LAST_TIME) == []
    await _check_batch(api, summary["batch_ids"])


async def _check_workflow(api: Api, summary: dict[str, Any], language: str) -> str:
    """The workflow of the order; the order's number."""
    workflow = await api.get_workflow_instance(summary["workflow_id"])
    assert workflow.name.startswith(f"{language}-")
    assert workflow.status == WorkflowStatus.WORKFLOW_STATUS_COMPLETE
    assert workflow.HasField("complete_time")
    assert workflow.revision == int(summary["revision"]) == 5
    assert workflow.next_execution == SMALLEST  # what the other host wrote in between
    assert json.loads(workflow.data_json, parse_float=Decimal) == {
        "serial": 2**53 + 1,
        "total": Decimal("12.50"),
        "paid": True,
    }
    assert "12.50" in workflow.data_json
    first, second = workflow.execution_pointers
    assert (first.id, first.outcome_json) == ("2", "null")
    assert not second.HasField("outcome_json")
    assert (second.id, second.step_id, second.predecessor_id) == ("1", 1, "2")
    assert (second.event_name, second.event_key) == ("order.paid", workflow.name)
    assert second.status == PointerStatus.POINTER_STATUS_COMPLETE
    assert second.event_published
    assert not second.active
    assert second.event_data_json == '{"amount": 12.50}'
    return workflow.name


async def _check_event(api: Api, summary: dict[str, Any], order: str) -> None:
    event = await api.get_event(summary["event_id"])
    assert (event.event_name, event.event_key) == ("order.paid", order)
    assert event.is_processed
    assert not (await api.get_runnable_events(as_at=LAST_TIME)).event_ids


async def _check_batch(api: Api, ids: list[str]) -> None:
    batch = await api.get_workflow_instances(ids)
    assert [workflow.next_execution for workflow in batch] == NEXT_EXECUTIONS
    assert {workflow.revision for workflow in batch} == {1}
    runnable = await pages(api.get_runnable_instances, page_size=2)
    assert [id_ for page in runnable for id_ in page.instance_ids] == ids[:3]
