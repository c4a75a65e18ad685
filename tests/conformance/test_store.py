"""StoreService: the error log, what the store is, creating and emptying it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import make
from tests.support.api import Api, connect, pages
from tests.support.expect import fails
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import ExecutionError

MIB = 1024 * 1024

# PersistErrors, ListErrors.


async def _logged(api: Api, workflow_id: str, **fields: Any) -> list[ExecutionError]:
    """All errors of a workflow."""
    answers = await pages(api.list_errors, workflow_id=workflow_id, **fields)
    return [error for answer in answers for error in answer.errors]


def _errors(count: int, **fields: Any) -> list[ExecutionError]:
    """So many errors of one new workflow."""
    workflow = make.new_id("workflow")
    return [
        make.error(**({"workflow_id": workflow, "message": f"error {n}"} | fields))
        for n in range(count)
    ]


async def test_error_is_logged_with_every_field(api: Api) -> None:
    """Among them the workflow, which need not exist."""
    error = make.error(execution_pointer_id="pointer 7", message="no\nmore 'disk' \\ ☃")
    await api.persist_errors(error)
    assert await _logged(api, error.workflow_id) == [error]


async def test_empty_pointer_and_message_are_fine(api: Api) -> None:
    error = make.error(execution_pointer_id="", message="")
    await api.persist_errors(error)
    assert await _logged(api, error.workflow_id) == [error]


async def test_no_errors_are_fine(api: Api) -> None:
    await api.persist_errors()


async def test_last_logged_comes_first_within_a_call_and_between_calls(api: Api) -> None:
    """Whatever their error_time says."""
    errors = _errors(6)
    for n, error in enumerate(errors):
        error.error_time.CopyFrom(make.time((n * 7) % 5))
    await api.persist_errors(*errors[:4])
    await api.persist_errors(*errors[4:])
    assert await _logged(api, errors[0].workflow_id) == errors[::-1]


async def test_same_errors_again_are_logged_again(api: Api) -> None:
    [error] = _errors(1)
    for _ in range(2):
        await api.persist_errors(error)
    assert await _logged(api, error.workflow_id) == [error, error]


async def test_one_bad_error_keeps_all_out(api: Api) -> None:
    errors = _errors(3)
    errors[1].ClearField("error_time")
    with fails("INVALID_ARGUMENT", "INVALID_FIELD"):
        await api.persist_errors(*errors)
    assert await _logged(api, errors[0].workflow_id) == []


async def test_errors_are_listed_by_workflow_or_all(api: Api) -> None:
    first, second = _errors(2), _errors(2)
    await api.persist_errors(first[0], second[0], first[1], second[1])
    assert await _logged(api, first[0].workflow_id) == first[::-1]
    own = [e for e in await _logged(api, "", page_size=1000) if e in [*first, *second]]
    assert own == [second[1], first[1], second[0], first[0]]
    assert await _logged(api, make.new_id()) == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 6, 7])
async def test_pages_of_errors_are_complete_and_in_order(api: Api, page_size: int) -> None:
    errors = _errors(6)
    await api.persist_errors(*errors)
    answers = await pages(api.list_errors, workflow_id=errors[0].workflow_id, page_size=page_size)
    assert all(len(answer.errors) <= page_size for answer in answers)
    assert [e for answer in answers for e in answer.errors] == errors[::-1]


async def test_errors_logged_between_two_pages_shift_nothing(api: Api) -> None:
    errors = _errors(4)
    workflow = errors[0].workflow_id
    await api.persist_errors(*errors)
    first = await api.list_errors(workflow_id=workflow, page_size=2)
    await api.persist_errors(*_errors(3, workflow_id=workflow))
    rest = await pages(api.list_errors, first.next_page_token, workflow_id=workflow, page_size=2)
    assert [*first.errors, *(e for answer in rest for e in answer.errors)] == errors[::-1]


async def test_default_and_maximum_page_size(api: Api) -> None:
    errors = _errors(1001)
    await api.persist_errors(*errors)
    for workflow in (errors[0].workflow_id, ""):
        for page_size, length in ((0, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
            answer = await api.list_errors(workflow_id=workflow, page_size=page_size)
            assert len(answer.errors) == length
            assert answer.next_page_token
    assert await _logged(api, errors[0].workflow_id) == errors[::-1]


async def test_page_is_shorter_where_the_next_error_does_not_fit_into_a_message(
    api: Api, target: str
) -> None:
    """Through a channel with gRPC's own limit of 4 MiB a message."""
    errors = _errors(5, message="x" * (3 * MIB // 2))
    for error in errors:
        await api.persist_errors(error)
    async with grpc.aio.insecure_channel(target) as channel:
        assert await _logged(Api(channel), errors[0].workflow_id) == errors


# GetStoreInfo.


async def test_store_info(api: Api, pytestconfig: pytest.Config) -> None:
    info = await api.get_store_info()
    if not pytestconfig.getoption("--target"):  # another one may go without
        assert info.capabilities.scheduled_commands
    assert re.match(r"\d+\.\d+\.\d+", info.server_version)
    assert int(info.postgres_version.split(".")[0]) >= 14
    assert info.namespace == (pytestconfig.getoption("--namespace") or "default")
    assert info.schema
    assert info.schema_version == info.latest_schema_version > 0
    assert info.max_message_bytes >= 4 * MIB


# EnsureStoreExists.


async def test_ensure_of_a_store_that_exists_changes_nothing(api: Api) -> None:
    workflow = make.full_instance()
    await api.create(workflow)
    info = await api.get_store_info()
    for _ in range(2):
        answer = await api.ensure_store_exists()
        assert answer.schema_version == info.schema_version
        assert not answer.applied_migrations
    assert await api.get_workflow_instance(workflow.id) == workflow


async def test_ensure_by_eight_at_once(api: Api) -> None:
    answers = await asyncio.gather(*(api.ensure_store_exists() for _ in range(8)))
    assert len({answer.schema_version for answer in answers}) == 1
    assert not any(answer.applied_migrations for answer in answers)


# What would be in the way of others needs a server and a database of the test's own.


@asynccontextmanager
async def _server(url: str, log: Path, *arguments: str, serving: bool = True) -> AsyncIterator[Api]:
    """A server of the test's own."""
    server = ServerProcess(log, "--db-url", url, *arguments)
    server.start()
    try:
        if serving:
            server.wait_until_serving()
        async with connect(server.address) as channel:
            yield Api(channel)
    finally:
        server.stop()


@pytest.mark.white_box
async def test_ensure_creates_the_store_once_for_eight_at_once(
    database_url: str, tmp_path: Path
) -> None:
    async with _server(database_url, tmp_path / "log", "--no-migrate", serving=False) as api:
        info = await api.get_store_info()
        assert info.schema_version == 0
        with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED"):
            await api.create_new_workflow(make.instance())
        answers = await asyncio.gather(*(api.ensure_store_exists() for _ in range(8)))
        assert {a.schema_version for a in answers} == {info.latest_schema_version}
        applied = [name for answer in answers for name in answer.applied_migrations]
        assert len(applied) == len(set(applied)) == info.latest_schema_version
        assert (await api.get_store_info()).schema_version == info.latest_schema_version
        await api.create_new_workflow(make.full_instance())


async def _filled(api: Api) -> dict[str, Any]:
    """Something in every table, and how it is looked up."""
    workflow = make.full_instance()
    event, subscription, error = make.event(), make.subscription(), make.error()
    definition = make.new_id("definition")
    await api.create_new_workflow(workflow)
    await api.create_event(event)
    await api.create_event_subscription(subscription)
    await api.schedule_command(make.command())
    await api.persist_errors(error)
    await api.next_definition_sequence(definition)
    return {
        "workflow": workflow.id,
        "event": event.id,
        "subscription": subscription.id,
        "error": error.workflow_id,
        "definition": definition,
    }


@pytest.mark.white_box
async def test_truncate_all_empties_every_table(database_url: str, tmp_path: Path) -> None:
    async with _server(database_url, tmp_path / "log", "--allow-truncate") as api:
        assert (await api.get_store_info()).capabilities.truncate_all
        ids = await _filled(api)
        for _ in range(2):  # an empty store too
            await api.truncate_all()
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.get_workflow_instance(ids["workflow"])
        with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
            await api.get_event(ids["event"])
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.get_subscription(ids["subscription"])
        assert await api.claim_commands() == []
        assert await _logged(api, "") == []
        assert await api.next_definition_sequence(ids["definition"]) == 1
        info = await api.get_store_info()
        assert info.schema_version == info.latest_schema_version
        await _filled(api)


@pytest.mark.white_box
async def test_truncate_all_is_refused_unless_the_server_was_started_for_it(
    database_url: str, tmp_path: Path
) -> None:
    async with _server(database_url, tmp_path / "log") as api:
        assert not (await api.get_store_info()).capabilities.truncate_all
        ids = await _filled(api)
        with fails("FAILED_PRECONDITION", "TRUNCATE_NOT_ALLOWED"):
            await api.truncate_all()
        await api.get_workflow_instance(ids["workflow"])
