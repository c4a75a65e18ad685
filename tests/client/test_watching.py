"""Watching a real server through the adapter."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from tests.client.conftest import FAST
from tests.support import make
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    LEFT_OUT,
    LifecycleEvent,
    LifecycleEventType,
    PersistenceProvider,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
    connect,
    connect_blocking,
)

Item = TypeVar("Item")


def workflow(definition: str, **fields: Any) -> WorkflowInstance:
    fields.setdefault("status", WorkflowStatus.SUSPENDED)
    fields.setdefault("data", {"a": 1})
    return WorkflowInstance(
        id=make.new_id("workflow"), workflow_definition_id=definition, version=1, **fields
    )


async def following(items: AsyncIterator[Item]) -> Item:
    async with asyncio.timeout(30):
        return await anext(items)


async def start_of_changes(provider: PersistenceProvider) -> str:
    """A cursor from which on everything comes that is written from now on."""
    marker = workflow(make.new_id("definition"))
    async with aclosing(provider.watch_workflows(workflow_id=marker.id)) as changes:  # type: ignore[type-var]
        first = asyncio.ensure_future(anext(changes))
        while not first.done():  # the stream may begin later than the first of these
            if marker.revision:
                await provider.persist_workflow(marker)
            else:
                await provider.create_new_workflow(marker)
                marker.revision = 1
            await asyncio.wait([first], timeout=0.1)
        return first.result().cursor


async def test_lifecycle_events_come_as_they_were_published(target: str) -> None:
    id_ = make.new_id("workflow")
    events = [
        LifecycleEvent(type=type_, workflow_id=id_, workflow_definition_id="d", step_id=n)
        for n, type_ in enumerate(LifecycleEventType)
        if type_ is not LifecycleEventType.UNKNOWN
    ]
    async with connect(target, timeout=10, retry=FAST) as provider:
        async with aclosing(provider.watch_lifecycle(workflow_id=id_)) as stream:  # type: ignore[type-var]
            first = asyncio.ensure_future(anext(stream))
            while not first.done():  # the stream may begin later than the first of these
                await provider.publish(events[:1])
                await asyncio.wait([first], timeout=0.1)
            cursor = first.result().cursor
        async with aclosing(  # type: ignore[type-var]
            provider.watch_lifecycle(workflow_id=id_, after=cursor)
        ) as stream:
            await provider.publish(events)
            found: list[LifecycleEvent] = []
            while found[-len(events) :] != events:
                found.append(await following(stream))
        assert all(each == events[0] for each in found[: -len(events)])


async def test_changes_of_workflows_come_filtered(target: str) -> None:
    definition = make.new_id("definition")
    async with connect(target, timeout=10, retry=FAST) as provider:
        assert (await provider.get_store_info()).capabilities.watch_workflows
        cursor = await start_of_changes(provider)
        one = workflow(definition, status=WorkflowStatus.RUNNABLE, reference="r")
        other = workflow(definition)
        for each in (one, other):
            await provider.create_new_workflow(each)
        options: dict[str, Any] = {
            "workflow_definition_id": definition,
            "statuses": [WorkflowStatus.RUNNABLE],
            "version": 1,
            "reference": "r",
        }
        async with aclosing(provider.watch_workflows(after=cursor, **options)) as changes:  # type: ignore[type-var]
            created = await following(changes)
            assert (created.instance.id, created.passes, created.deleted) == (one.id, True, False)
            assert created.instance.data == {"a": 1}
            assert created.instance.view is WorkflowView.HEADER
            one.status = WorkflowStatus.COMPLETE
            await provider.persist_workflow(one)
            left = await following(changes)
            assert (left.instance.status, left.passes) == (WorkflowStatus.COMPLETE, False)
        async with aclosing(  # type: ignore[type-var]
            provider.watch_workflows(after=left.cursor, workflow_id=one.id)
        ) as changes:
            await provider.delete_workflow(one.id)
            gone = await following(changes)
            assert (gone.deleted, gone.instance.reference) == (True, "r")
            assert gone.instance.data is LEFT_OUT


async def test_a_blocking_watch_ends_when_it_is_left(target: str) -> None:
    definition = make.new_id("definition")
    async with connect(target, timeout=10, retry=FAST) as provider:
        cursor = await start_of_changes(provider)
        ids = []
        for _ in range(3):
            await provider.create_new_workflow(instance := workflow(definition))
            ids.append(instance.id)

    def follow() -> list[str]:
        with connect_blocking(target, timeout=10, retry=FAST) as blocking:
            changes = blocking.watch_workflows(after=cursor, workflow_definition_id=definition)
            return [change.instance.id for change in itertools.islice(changes, 3)]

    assert await asyncio.to_thread(follow) == ids


async def test_a_watch_goes_on_when_the_server_was_killed(
    tmp_path: Path, database_url: str
) -> None:
    """Without an error, and without leaving out what was written meanwhile through another one."""
    listen = f"unix:{tmp_path}/socket"
    with (
        ServerProcess(tmp_path / "log", "--db-url", database_url, "--listen", listen) as server,
        ServerProcess(tmp_path / "other", "--db-url", database_url) as other,
    ):
        async with (
            connect(listen, timeout=30, retry=FAST) as provider,
            connect(other.address, timeout=30, retry=FAST) as writer,
        ):
            cursor = await start_of_changes(writer)
            async with aclosing(provider.watch_workflows(after=cursor)) as changes:  # type: ignore[type-var]
                for _ in range(2):
                    await writer.create_new_workflow(before := workflow("d"))
                    while (await following(changes)).instance.id != before.id:
                        pass
                    server.kill()
                    await writer.create_new_workflow(meanwhile := workflow("d"))
                    server.start()
                    while (await following(changes)).instance.id != meanwhile.id:
                        pass
