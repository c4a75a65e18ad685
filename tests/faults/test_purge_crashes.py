"""Deletes and purges whose process is killed between any two of their effects: a workflow is there
with all that belongs to it, or gone with all of it, and the same call again finishes the work."""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stopping import kill_before
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.subscription_pb2 import ListSubscriptionsRequest
from wfe.persistence.v1.workflow_pb2 import (
    DeleteWorkflowRequest,
    ListExecutionPointersRequest,
    PersistWorkflowRequest,
    PurgeWorkflowsRequest,
    WorkflowStatus,
)
from wfe_persistence.embedded import EmbeddedPostgres

TABLES = ["execution_pointers", "event_subscriptions", "execution_errors", "requests", "workflows"]
ALL = 4
"""How many kinds of things belong to a workflow, itself counted; see belongings()."""

COMPLETED = "wfe.workflow.completed"


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that the test may kill."""
    with EmbeddedPostgres(data_dir) as postgres:
        yield postgres


async def ended_workflow(api: Api) -> str:
    """A workflow that has ended, with everything that can belong to it."""
    instance = make.instance(
        status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
        complete_time=make.time(),
        execution_pointers=[make.pointer(i) for i in "abc"],
    )
    await api.create_new_workflow(instance)
    await api.workflows.PersistWorkflow(
        PersistWorkflowRequest(instance=instance, request_id=str(uuid.uuid4()))
    )
    await api.create_event_subscription(make.subscription(workflow_id=instance.id))
    await api.persist_errors(make.error(workflow_id=instance.id))
    await api.create_event(
        make.event(event_name=COMPLETED, event_key=instance.id, is_processed=True)
    )
    return instance.id


async def belongings(api: Api, id_: str) -> int:
    """How many kinds of things of a workflow are there, itself counted."""
    pointers = ListExecutionPointersRequest(workflow_id=id_)
    subscriptions = await api.subscriptions.ListSubscriptions(
        ListSubscriptionsRequest(workflow_id=id_)
    )
    answer: list[Any] = []

    async def list_pointers() -> None:
        answer.extend((await api.workflows.ListExecutionPointers(pointers)).execution_pointers)

    is_there = await failure_of(list_pointers()) is None
    errors = await api.list_errors(workflow_id=id_)
    return sum(map(bool, (is_there, answer, subscriptions.subscriptions, errors.errors)))


async def delete(api: Api, id_: str) -> None:
    await api.workflows.DeleteWorkflow(DeleteWorkflowRequest(id=id_))


async def purge(api: Api, id_: str) -> None:
    await api.workflows.PurgeWorkflows(PurgeWorkflowsRequest(ended_before=make.time(1)))


async def killed_within(
    server: ServerProcess,
    url: str,
    effect: tuple[str, str],
    victim: str,
    call: Callable[[Api, str], Awaitable[None]],
) -> int:
    """What is there of a workflow after a kill; then the call is made again."""
    async with connect(server.address) as channel:
        id_ = await ended_workflow(Api(channel))
    await kill_before(server, url, effect, victim, lambda api: call(api, id_))
    async with connect(server.address) as channel:
        api = Api(channel)
        left = await belongings(api, id_)
        await failure_of(call(api, id_))
        assert await belongings(api, id_) == 0
    return left


@pytest.mark.parametrize("victim", ["server", "postgres"])
@pytest.mark.parametrize("call", [delete, purge])
async def test_killed_between_any_two_effects(
    tmp_path: Path,
    postgres: EmbeddedPostgres,
    call: Callable[[Api, str], Awaitable[None]],
    victim: str,
) -> None:
    tables = [*TABLES, "events"] if call is purge else TABLES
    with ServerProcess(tmp_path / "log", "--db-url", postgres.url) as server:
        for table in tables:
            left = await killed_within(server, postgres.url, (table, "DELETE"), victim, call)
            assert left in (0, ALL), (table, left)
            if victim == "postgres":
                assert left == ALL, table


async def test_a_delete_in_two_transactions_is_caught(
    tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    """That the test above can fail: with this planted fault a part is gone."""
    with ServerProcess(
        tmp_path / "log",
        "--db-url",
        postgres.url,
        module="tests.faults.faulty_server",
        env={**os.environ, "FAULT": "a delete in two transactions"},
    ) as server:
        effect = ("execution_errors", "DELETE")
        left = await killed_within(server, postgres.url, effect, "postgres", delete)
    assert 0 < left < ALL


async def test_a_claim_after_a_crash_has_a_higher_epoch(
    tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    """PostgreSQL is killed in the middle of a claim; no number is given twice."""
    with ServerProcess(tmp_path / "log", "--db-url", postgres.url) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            command = make.command(execute_time=0)
            await api.schedule_command(command)
            epochs = []
            for _ in range(3):
                [claim] = await api.claim_commands(limit=10)
                epochs.append(claim.epoch)
                await api.release_commands(claim.lease_token)
        await kill_before(
            server,
            postgres.url,
            ("scheduled_commands", "UPDATE"),
            "postgres",
            lambda api: api.claim_commands(limit=10),
        )
        async with connect(server.address) as channel:
            [claim] = await Api(channel).claim_commands(limit=10)
            epochs.append(claim.epoch)
    assert epochs == sorted(set(epochs))
