"""A namespace set over three databases, under load: members are moved, and a database goes away."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import binaries, make
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    CursorExpired,
    LifecycleEvent,
    LifecycleEventType,
    NamespaceSetProvider,
    NameTaken,
    QueueItem,
    RetryPolicy,
    Unavailable,
    Work,
    WorkerHooks,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    connect,
    connect_blocking,
)
from wfe_persistence_client.sets.routing import member_of

MEMBERS = 6
DATABASES = ("home", "b", "c")
LOGICAL = {"wal_level": "logical"}


@dataclass
class Service:
    """Three PostgreSQLs, and a server that knows them."""

    databases: dict[str, PostgresServer]
    server: ServerProcess


@pytest.fixture(scope="module")
def service(run_dir: Path) -> Iterator[Service]:
    directory = run_dir / "set-databases"
    directory.mkdir(0o711)
    program = binaries.postgres(18)
    with ExitStack() as stack:
        databases = {
            name: stack.enter_context(PostgresServer(program, directory / name, LOGICAL))
            for name in DATABASES
        }
        options = [f"--database={name}={databases[name].url}" for name in DATABASES[1:]]
        server = ServerProcess(
            directory / "log", "--db-url", databases["home"].url, *options, "--pool-timeout", "1"
        )
        stack.enter_context(server)
        with connect_blocking(server.address) as provider:
            provider.with_timeout(120).create_namespace_set("orders", MEMBERS)
        yield Service(databases, server)
        assert '"message": "bug' not in server.log(), server.log()


@asynccontextmanager
async def orders_of(service: Service, **options: Any) -> AsyncIterator[NamespaceSetProvider]:
    async with connect(service.server.address, namespace_set="orders", **options) as provider:
        assert isinstance(provider, NamespaceSetProvider)
        yield provider


async def places(provider: NamespaceSetProvider) -> dict[str, str]:
    """The databases of the members."""
    listed = await provider.with_namespace(None).list_namespaces()
    return {each.name: each.database for each in listed if each.name.startswith("orders_")}


def id_in(index: int) -> str:
    return next(id_ for id_ in iter(make.new_id, None) if member_of(id_, MEMBERS) == index)


def workflow(id_: str, definition: str, **fields: Any) -> WorkflowInstance:
    now = datetime.now(UTC)
    given = {"data": {"n": 0}, "create_time": now, "version": 1, **fields}
    return WorkflowInstance(id=id_, workflow_definition_id=definition, **given)


@dataclass
class Load:
    """Hosts that create workflows and take their steps, and readers that look whether all that was
    acknowledged is listed, whole and in order."""

    provider: NamespaceSetProvider
    definition: str = field(default_factory=make.new_id)
    #: Of each workflow whose creation was acknowledged, the step that was acknowledged last.
    stored: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    lists: int = 0
    written: Counter[int] = field(default_factory=Counter)
    stopped: bool = False

    async def write(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopped:
            name = f"name-{make.new_id()}" if chance.random() < 0.2 else ""
            instance = workflow(make.new_id(), self.definition, name=name)
            await self.provider.create_new_workflow(instance)
            self.stored[instance.id] = 0
            if name:
                self.names[name] = instance.id
            for step in range(1, 3):
                async with self.provider.step(instance, strict=True):
                    instance.data = {"n": step}
                self.stored[instance.id] = step
            self.written[member_of(instance.id, MEMBERS)] += 1

    async def read(self) -> None:
        wanted = WorkflowFilter(workflow_definition_id=self.definition)
        while not self.stopped:
            before = set(self.stored)
            found: list[WorkflowInstance] = []
            token = ""
            while True:
                page = await self.provider.list_workflows_page(
                    wanted, page_size=37, page_token=token
                )
                found += page.instances
                token = page.next_page_token
                if not token:
                    break
            keys = [(one.create_time, one.id.encode()) for one in found]
            assert keys == sorted(keys, reverse=True)
            assert len(set(keys)) == len(keys)
            assert before <= {one.id for one in found}
            counted = sum((await self.provider.count_workflows(wanted)).values())
            assert counted >= len(before)
            some = random.Random(self.lists).sample(sorted(before), min(len(before), 20))
            read = await self.provider.get_workflow_instances(some)
            assert [one.id for one in read] == some
            self.lists += 1

    async def reached(self, condition: Callable[[], bool], of: asyncio.Future[Any]) -> None:
        """Wait for the load to have come so far; raises what it fails with."""
        while not condition():
            assert not of.done(), await of
            await asyncio.sleep(0.02)


async def moved(provider: NamespaceSetProvider, name: str, database: str) -> None:
    async for _ in provider.with_timeout(120).move_namespace(name, database):
        pass


async def test_members_are_moved_under_the_load_of_the_set(service: Service) -> None:
    """To grow a set is to move whole members: nothing is lost, lists and counts stay whole, and
    names stay unique."""
    async with orders_of(service, timeout=60) as provider:
        was = await places(provider)
        assert Counter(was.values()) == dict.fromkeys(DATABASES, 2)
        moves = {"orders_0": "b", "orders_3": "c", "orders_4": "home"}
        assert all(was[name] != database for name, database in moves.items())
        load = Load(provider)
        running = asyncio.gather(*(load.write(seed) for seed in range(4)), load.read())
        try:
            await load.reached(lambda: load.lists > 0, running)
            for name, database in moves.items():
                await moved(provider, name, database)
            # What is written behind the moves, in all members, and a list that began afterwards.
            load.written.clear()
            lists = load.lists
            await load.reached(
                lambda: len(load.written) == MEMBERS and load.lists > lists + 1, running
            )
            load.stopped = True
            await running
        finally:
            load.stopped = True
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert await places(provider) == was | moves
        wanted = WorkflowFilter(workflow_definition_id=load.definition)
        stored = await provider.get_workflow_instances(load.stored)
        assert {one.id: one.data for one in stored} == {
            id_: {"n": step} for id_, step in load.stored.items()
        }
        assert len(await provider.list_workflows(wanted)) == len(load.stored)
        assert sum((await provider.count_workflows(wanted)).values()) == len(load.stored)
        assert load.names
        assert {member_of(name, MEMBERS) for name in load.names} >= {0, 3, 4}
    # (Another host, that remembers no names.)
    async with orders_of(service, timeout=60) as provider:
        for name, id_ in load.names.items():
            assert (await provider.get_workflow_instance_by_name(name)).id == id_
            if member_of(name, MEMBERS) in (0, 3, 4):
                other = workflow(make.new_id(), load.definition, name=name)
                with pytest.raises(NameTaken):
                    await provider.create_new_workflow(other)


async def read_to_the_end(feed: AsyncIterator[object]) -> None:
    async for _ in feed:
        pass


async def test_a_watcher_of_the_set_is_told_which_member_was_moved(service: Service) -> None:
    """And goes on from the cursor that it is given."""
    async with orders_of(service, timeout=60) as provider:
        definition = make.new_id()
        ids = [id_in(index) for index in range(MEMBERS)]

        async def publish() -> None:
            await provider.publish(
                LifecycleEvent(
                    type=LifecycleEventType.STARTED,
                    workflow_id=id_,
                    workflow_definition_id=definition,
                )
                for id_ in ids
            )

        feed = provider.watch_lifecycle(workflow_definition_id=definition)
        first = asyncio.ensure_future(anext(feed))
        while not first.done():
            await publish()
            await asyncio.wait([first], timeout=0.05)
        was = (await places(provider))["orders_1"]
        await moved(provider, "orders_1", "b" if was != "b" else "c")
        with pytest.raises(CursorExpired) as raised:
            await asyncio.wait_for(read_to_the_end(feed), 60)
        assert raised.value.metadata["namespace"] == "orders_1"
        again = provider.watch_lifecycle(
            workflow_definition_id=definition, after=raised.value.oldest_cursor
        )
        await publish()
        seen: set[str] = set()
        async with asyncio.timeout(60):
            while seen != set(ids):
                seen.add((await anext(again)).workflow_id)
        await again.aclose()  # type: ignore[attr-defined]


async def test_of_a_database_that_is_away_only_its_workflows_fail(service: Service) -> None:
    """Whoever asks all members is told which one did not answer; workers go on with the others, and
    what was begun goes on when it is back."""
    retry = RetryPolicy(max_attempts=2, initial_backoff=0.01, max_backoff=0.05)
    async with orders_of(service, timeout=30, retry=retry) as provider:
        at = await places(provider)
        away = {index for index in range(MEMBERS) if at[f"orders_{index}"] == "c"}
        there = set(range(MEMBERS)) - away
        assert away
        assert there
        definition, queue = make.new_id(), make.queue()
        wanted = WorkflowFilter(workflow_definition_id=definition)
        of_member = {index: workflow(id_in(index), definition) for index in range(MEMBERS)}
        for instance in of_member.values():
            item = QueueItem(queue=queue, id="", visible_time=None)
            await provider.create_new_workflow(instance, enqueue=[item])
        page = await provider.list_workflows_page(wanted, page_size=2)
        completed: set[int] = set()
        held, gone = asyncio.Event(), asyncio.Event()

        async def handle(work: Work) -> None:
            """The first one that is about to lose its database waits for that."""
            assert work.workflow is not None
            index = member_of(work.item.item.id, MEMBERS)
            if index in away and not gone.is_set():
                held.set()
                await gone.wait()
            async with work.commit() as step:
                work.workflow.data = {"n": 1}
                if not gone.is_set():
                    step.enqueue(QueueItem(queue=queue, id=""))
                else:
                    work.workflow.status = WorkflowStatus.COMPLETE
            if gone.is_set():
                completed.add(index)

        # One slot: if it waited for the member that is away, it would do nothing else.
        worker = provider.worker(
            queue, handle, wait=timedelta(milliseconds=300), lease_duration=timedelta(seconds=2),
            hooks=WorkerHooks(on_error=lambda *_: None, on_outage=lambda _: None),
        )  # fmt: skip
        working = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(60):
                await held.wait()
            await asyncio.to_thread(service.databases["c"].lose)
            gone.set()
            await until(lambda: there <= completed, working)
            ids = [of_member[index].id for index in there]
            assert len(await provider.get_workflow_instances(ids)) == len(ids)
            names = {f"orders_{index}" for index in away}
            answers = await asyncio.gather(
                *(provider.get_workflow_instance(of_member[index].id) for index in away),
                *asks(provider, wanted, page.next_page_token, queue),
                return_exceptions=True,
            )
            for answer in answers:
                assert isinstance(answer, Unavailable), answer
                assert answer.metadata["namespace"] in names
                assert f"in {answer.metadata['namespace']}, a member of the" in str(answer)
            # Work is handed out as far as there is some, and waits for more.
            assert (await provider.dequeue([queue], wait=timedelta(seconds=0.1))).items == []
            assert await provider.claim_commands(wait=timedelta(seconds=0.1)) == []
        finally:
            await asyncio.to_thread(service.databases["c"].recover)
        await until(lambda: len(completed) == MEMBERS, working)
        worker.stop()
        await working
        stored = await provider.get_workflow_instances(one.id for one in of_member.values())
        assert {one.status for one in stored} == {WorkflowStatus.COMPLETE}
        # The token is valid still.
        rest = await provider.list_workflows_page(
            wanted, page_size=100, page_token=page.next_page_token
        )
        assert len(rest.instances) == MEMBERS - 2
        assert not {one.id for one in rest.instances} & {one.id for one in page.instances}


def asks(
    provider: NamespaceSetProvider, wanted: WorkflowFilter, token: str, queue: str
) -> Iterator[Awaitable[object]]:
    """What asks all members."""
    yield provider.list_workflows(wanted)
    yield provider.list_workflows_page(wanted, page_size=2, page_token=token)
    yield provider.count_workflows(wanted)
    yield provider.get_runnable_instances()
    yield provider.get_events("paid", "k")
    yield provider.get_queue_stats([queue])
    yield provider.get_storage_report()


async def until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(90):
        while not condition():
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), 0.02)
                raise AssertionError("the worker has ended")
