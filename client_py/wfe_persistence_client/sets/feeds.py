"""Feeds of a namespace set: those of all members, each in its own order, with one cursor."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

from wfe.persistence.v1 import lifecycle_pb2, workflow_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import DEFAULT_HEARTBEAT
from wfe_persistence_client.errors import CursorExpired, PersistenceError
from wfe_persistence_client.misfit import FieldValueError, build
from wfe_persistence_client.model import (
    LifecycleEvent,
    LifecycleEventType,
    WorkflowChange,
    WorkflowStatus,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.members import SetMembers, naming
from wfe_persistence_client.sets.routing import member_of


class SetFeeds(SetMembers):
    """Publishes and watches."""

    async def publish(self, events: Iterable[LifecycleEvent]) -> None:
        """As of a single namespace; all or nothing in each member. In order for each workflow."""
        members = await self._members()
        of_member: dict[int, list[LifecycleEvent]] = {}
        for event in events:
            of_member.setdefault(member_of(event.workflow_id, len(members)), []).append(event)
        for index, some in of_member.items():
            await members[index].publish(some)

    def watch_lifecycle(
        self,
        *,
        after: str = "",
        workflow_id: str = "",
        workflow_definition_id: str = "",
        types: Iterable[LifecycleEventType] = (),
        heartbeat: timedelta = DEFAULT_HEARTBEAT,
    ) -> AsyncIterator[LifecycleEvent]:
        """As of a single namespace: the events of all members, in the order of the commits within
        each of them."""
        wanted = list(types)

        def open_(member: PersistenceProvider, cursor: str) -> AsyncGenerator[Any, None]:
            request = build(
                lifecycle_pb2.WatchRequest,
                after=cursor,
                workflow_id=workflow_id,
                workflow_definition_id=workflow_definition_id,
                types=[convert.lifecycle_event_type_to_proto(type_) for type_ in wanted],
                heartbeat=convert.duration(heartbeat),
            )
            return member._calls.watch(member._lifecycle.Watch, request, heartbeat)

        return self._watched_all(
            after,
            open_,
            lambda response: map(convert.watched_event_from_proto, response.events),
        )

    def watch_workflows(
        self,
        *,
        after: str = "",
        workflow_id: str = "",
        statuses: Iterable[WorkflowStatus] = (),
        workflow_definition_id: str = "",
        version: int | None = None,
        reference: str | None = None,
        name_prefix: str = "",
        root_workflow_id: str = "",
        heartbeat: timedelta = DEFAULT_HEARTBEAT,
    ) -> AsyncIterator[WorkflowChange]:
        """As of a single namespace: the changes of all members, in the order of the commits within
        each of them."""
        wanted = list(statuses)

        def open_(member: PersistenceProvider, cursor: str) -> AsyncGenerator[Any, None]:
            request = build(
                workflow_pb2.WatchWorkflowsRequest,
                filter=build(
                    workflow_pb2.WatchedWorkflows,
                    workflow_id=workflow_id,
                    statuses=convert.statuses_to_proto(wanted),
                    workflow_definition_id=workflow_definition_id,
                    version=version,
                    reference=reference,
                    name_prefix=name_prefix,
                    root_workflow_id=root_workflow_id,
                ),
                after=cursor,
                heartbeat=convert.duration(heartbeat),
            )
            return member._calls.watch(member._workflows.WatchWorkflows, request, heartbeat)

        return self._watched_all(
            after, open_, lambda response: map(convert.change_from_proto, response.changes)
        )

    async def _watched_all(
        self,
        after: str,
        open_: Callable[[PersistenceProvider, str], AsyncGenerator[Any, None]],
        items: Callable[[Any], Iterable[Any]],
    ) -> AsyncGenerator[Any, None]:
        members = await self._members()
        cursors = _cursors(after, len(members))
        arrived: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(len(members))

        async def follow(index: int, member: PersistenceProvider) -> None:
            try:
                async with aclosing(open_(member, cursors[index])) as responses:
                    async for response in responses:
                        await arrived.put((index, response))
            except CursorExpired as error:
                oldest = [*cursors]
                oldest[index] = error.metadata.get("oldest_cursor", "")
                # Before all feeds have begun, nothing has been handed out: from now on, then.
                cursor = _cursor(oldest) if all(oldest) else ""
                error.metadata = {**error.metadata, "oldest_cursor": cursor}
                await arrived.put((index, naming(error, member._namespace)))
            except PersistenceError as error:
                await arrived.put((index, naming(error, member._namespace)))
            except Exception as error:
                await arrived.put((index, error))

        tasks = [asyncio.create_task(follow(*each)) for each in enumerate(members)]
        held: list[Any] = []
        try:
            while True:
                index, response = await arrived.get()
                if isinstance(response, Exception):
                    raise response
                found = list(items(response))
                if not all(cursors):
                    # A cursor has a place in every feed, so nothing comes before all have begun.
                    # (The first response is where one begins, and what it has comes again.)
                    cursors[index] = cursors[index] or response.cursor
                    held += [(index, item) for item in found]
                    if not all(cursors):
                        continue
                    found, pending = [], held
                else:
                    pending = [(index, item) for item in found]
                for at, item in pending:
                    cursors[at] = item.cursor
                    yield replace(item, cursor=_cursor(cursors))
                held = []
                cursors[index] = response.cursor
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _cursor(cursors: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(cursors)).encode()).decode()


def _cursors(cursor: str, members: int) -> list[str]:
    """The places in the feeds of all members; empty: from now."""
    if not cursor:
        return [""] * members
    try:
        cursors = json.loads(base64.b64decode(cursor, b"-_", validate=True))
    except ValueError:
        cursors = None
    if (
        not isinstance(cursors, list)
        or len(cursors) != members
        or not all(isinstance(place, str) and place for place in cursors)
    ):
        raise FieldValueError("after", "is not a cursor of this namespace set")
    return cursors
