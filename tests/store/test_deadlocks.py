"""Transactions that write several rows never wait for each other in a ring.

Everything that writes several rows at once runs against everything else, on the same few rows, each
time in another order. PostgreSQL counts the deadlocks of the test's own database.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import Any, Final

import psycopg
import pytest

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import CreateEventRequest, Event
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe.persistence.v1.queue_pb2 import DequeueRequest, ReturnedItem
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_persistence.database import database_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import Settings
from wfe_persistence.store import (
    bulk,
    command,
    commit,
    dequeue,
    error_log,
    event,
    lock,
    purge,
    queue,
    queue_settling,
    subscription,
    workflow,
)
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres import database
from wfe_persistence.store.postgres.sqlstate import Retry, retry, sqlstate
from wfe_persistence.store.queue_parts import KEY_ORDER
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

WORKERS: Final = 12
COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE

# Waits are so short here that PostgreSQL should look for a ring soon.
PREPARE: Final = "ALTER DATABASE {} SET deadlock_timeout = '20ms'"
DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"

WORKFLOWS: Final = [f"w{i}" for i in range(8)]
SUBSCRIPTIONS: Final = [f"s{i:02}" for i in range(20)]
EVENTS: Final = [f"e{i:02}" for i in range(20)]
ITEMS: Final = [(f"q{i % 2}", f"i{i:02}") for i in range(20)]
COMMANDS: Final = [f"c{i:02}" for i in range(40)]
RESOURCES: Final = [f"r{i:02}" for i in range(20)]

# What a write may be refused for, since others remove what it names.
EXPECTED: Final = {
    getattr(ErrorReason, f"ERROR_REASON_{name}")
    for name in (
        "WORKFLOW_NOT_FOUND",
        "WORKFLOW_ALREADY_EXISTS",
        "NAME_TAKEN",
        "SUBSCRIPTION_NOT_FOUND",
        "EVENT_NOT_FOUND",
        "LEASE_LOST",
        "TRANSACTION_CONFLICT",
    )
}


class Mix:
    """The writes, each of a few rows chosen at random."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.waiters = Waiters()
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.tokens: list[str] = []

    def some(self, ids: list[str]) -> list[str]:
        """About half of them, in any order."""
        return self.random.sample(ids, len(ids) // 2)

    def instance(self) -> WorkflowInstance:
        id_ = self.random.choice(WORKFLOWS)
        status = self.random.choice([COMPLETE, WorkflowStatus.WORKFLOW_STATUS_RUNNABLE])
        pointers = [make.pointer(p) for p in self.some(list("abcdef"))]
        return make.instance(
            id=id_, name=id_, status=status, complete_time=make.time(), execution_pointers=pointers
        )

    def subscriptions(self) -> list[EventSubscription]:
        return [
            make.subscription(id=id_, workflow_id=WORKFLOWS[int(id_[1:]) % 2], event_key=id_)
            for id_ in self.some(SUBSCRIPTIONS)
        ]

    def events(self) -> list[Event]:
        """Some are completion events, which a purge of their workflow deletes."""
        return [
            make.event(
                id=id_,
                event_name="wfe.workflow.completed",
                event_key=WORKFLOWS[int(id_[1:]) % 8],
                is_processed=True,
            )
            for id_ in self.some(EVENTS)
        ]

    async def create(self) -> None:
        await workflow.create_new_workflow(self.store, self.instance())

    async def commit(self, *, leases: tuple[str, ...] = (), **fields: Any) -> None:
        request = CommitWorkflowRequest(
            instance=self.instance(),
            complete_lease_tokens=leases,
            request_id=make.request_id(),
            **fields,
        )
        await commit.commit_workflow(self.store, request, RequestKey(request))

    def new(self, kind: str) -> list[str]:
        """Ids that nobody has created yet, but several are about to create."""
        self.calls[kind] += 1
        return [
            f"{kind}{self.calls[kind] // WORKERS}-{i:02}" for i in self.random.sample(range(40), 40)
        ]

    async def commit_new_commands(self) -> None:
        await self.commit(
            schedule_commands=[make.command(data=data, execute_time=0) for data in self.new("c")]
        )

    async def commit_new_events(self) -> None:
        await self.commit(
            create_events=[make.event(id=id_, event_key=id_) for id_ in self.new("e")]
        )

    async def commit_new_subscriptions(self) -> None:
        await self.commit(
            create_subscriptions=[
                make.subscription(id=id_, workflow_id="w", event_key=id_) for id_ in self.new("s")
            ],
            errors=[make.error()],
        )

    async def commit_all(self) -> None:
        tokens = await self.claimed()
        await self.commit(
            leases=tuple(tokens),
            create_subscriptions=self.subscriptions(),
            create_events=self.events(),
            schedule_commands=self.scheduled(),
            errors=[make.error(workflow_id=id_) for id_ in WORKFLOWS],
        )

    async def commit_commands(self) -> None:
        await self.commit(schedule_commands=self.scheduled())

    async def commit_completions(self) -> None:
        """Of some leases, and of other commands schedule them anew."""
        await self.commit(leases=tuple(await self.claimed()), schedule_commands=self.scheduled())

    async def commit_events(self) -> None:
        await self.commit(create_events=self.events())

    async def commit_processed(self) -> None:
        await self.commit(processed_event_ids=self.some(EVENTS)[:3])

    async def commit_subscriptions(self) -> None:
        await self.commit(create_subscriptions=self.subscriptions(), schedule_commands=[])

    def items(self) -> list[QueueItem]:
        return [make.item(queue_, id=id_) for queue_, id_ in self.random.sample(ITEMS, 10)]

    async def step(self) -> None:
        """What a host does: settle what it holds, enqueue it and others, under locks."""
        taken = await self.dequeued()
        await self.commit(
            acknowledge=[
                Acknowledgement(receipt=receipt, confirmed=self.random.random() < 0.5)
                for receipt in taken
            ],
            enqueue=self.items(),
            held_lock_tokens=(await self.locked(1000))[:3],
            publish=[make.lifecycle_event()],
        )

    async def step_with_effects(self) -> None:
        """The same with rows of all kinds."""
        taken = await self.dequeued()
        await self.commit(
            leases=tuple(await self.claimed()),
            create_subscriptions=self.subscriptions(),
            create_events=self.events(),
            schedule_commands=self.scheduled(),
            acknowledge=[Acknowledgement(receipt=receipt) for receipt in taken],
            enqueue=self.items(),
            held_lock_tokens=(await self.locked(1000))[:3],
        )

    async def step_new_items(self) -> None:
        await self.commit(enqueue=[make.item("q0", id=id_) for id_ in self.new("i")])

    async def create_and_enqueue(self) -> None:
        instance = self.instance()
        instance.id = instance.name = make.new_id("workflow")
        await workflow.create_new_workflow(self.store, instance, self.items())

    async def create_event_and_enqueue(self) -> None:
        id_ = self.new("e")[0]
        new = make.event(id=id_, event_key=id_)
        await event.create_event(self.store, new, self.items())

    async def create_many(self) -> None:
        """Some that are there, others that several are about to create."""
        instances = [self.instance() for _ in range(3)]
        for id_ in self.new("w"):
            instances.append(make.instance(id=id_, name=id_, status=COMPLETE))
            instances[-1].complete_time.CopyFrom(make.time())
        requests = [CreateNewWorkflowRequest(instance=instance) for instance in instances]
        requests[0].enqueue.extend(self.items())
        await bulk.create_workflows(self.store, requests)

    async def create_many_events(self) -> None:
        events = [*self.events(), *(make.event(id=id_, event_key=id_) for id_ in self.new("e"))]
        requests = [CreateEventRequest(event=event) for event in events]
        for request, item in zip(requests, self.items(), strict=False):
            request.enqueue.append(item)
        await bulk.create_events(self.store, requests)

    async def commit_terminations(self) -> None:
        await self.commit(
            terminate_subscription_ids=self.some(SUBSCRIPTIONS)[:3],
            processed_event_ids=self.some(EVENTS)[:2],
        )

    def scheduled(self) -> list[Any]:
        return [make.command(data=data, execute_time=0) for data in self.some(COMMANDS)]

    async def claimed(self) -> list[str]:
        """Lease tokens, in any order."""
        claims = await command.claim_commands(
            self.store, None, 10, 60_000, "worker", answer_bytes=1_000_000
        )
        return self.random.sample([c.lease_token for c in claims], len(claims))

    async def locked(self, ttl_ms: int = 50) -> list[str]:
        """Tokens of locks, in any order, as many as there are to be had of some."""
        tokens = []
        for resource in self.some(RESOURCES):
            request = AcquireLockRequest(resource=resource)
            answer = await lock.acquire_lock(self.store, request, ttl_ms, 0, Waiters())
            if answer.acquired:
                tokens.append(answer.token)
        return self.random.sample(tokens, len(tokens))

    async def lock(self) -> None:
        tokens = await self.locked()
        await lock.renew_locks(self.store, tokens, 50)
        for token in tokens[::2]:
            await lock.release_lock(self.store, token, Waiters())

    async def commit_locks(self) -> None:
        await self.commit(
            held_lock_tokens=await self.locked(1000), schedule_commands=self.scheduled()
        )

    async def renew_same_locks(self) -> None:
        """All of them, by everybody at once."""
        if not self.tokens:
            self.tokens = ["taken"]
            self.tokens = await self.all_locked()
        elif self.tokens != ["taken"]:
            tokens = self.random.sample(self.tokens, len(self.tokens))
            await lock.renew_locks(self.store, tokens, 3_600_000)

    async def all_locked(self) -> list[str]:
        """Tokens of locks that last."""
        tokens = []
        for n in range(20):
            request = AcquireLockRequest(resource=f"s{n}")
            answer = await lock.acquire_lock(self.store, request, 3_600_000, 0, Waiters())
            tokens.append(answer.token)
        return tokens

    async def complete(self) -> None:
        await command.complete_commands(self.store, await self.claimed())

    async def release(self) -> None:
        tokens = await self.claimed()
        await command.renew_commands(self.store, tokens, 60_000)
        await command.release_commands(self.store, tokens[::-1])

    async def schedule(self) -> None:
        for data in self.some(COMMANDS)[:3]:
            await command.schedule_command(self.store, make.command(data=data, execute_time=0))

    async def enqueue(self) -> None:
        await queue.enqueue(self.store, self.items(), self.waiters)

    async def enqueue_new(self) -> None:
        items = [make.item("q0", id=id_) for id_ in self.new("i")]
        await queue.enqueue(self.store, items, self.waiters)

    async def dequeued(self) -> list[str]:
        """Receipts, in any order."""
        request = DequeueRequest(queues=["q0", "q1"], worker_id="worker")
        items = (
            await dequeue.dequeue(self.store, request, 10, 60_000, 1_000_000, 0.0, self.waiters)
        ).items
        return self.random.sample([item.receipt for item in items], len(items))

    async def settle(self) -> None:
        taken = await self.dequeued()
        await queue.renew_items(self.store, taken, 60_000)
        half = len(taken) // 2
        request = DequeueRequest(
            queues=["q1", "q0"],
            acknowledge=[Acknowledgement(receipt=receipt) for receipt in taken[:half]],
            return_items=[ReturnedItem(receipt=receipt) for receipt in taken[half:]],
        )
        await dequeue.dequeue(self.store, request, 3, 1, 1_000_000, 0.0, self.waiters)

    async def acknowledge(self) -> None:
        taken = [Acknowledgement(receipt=receipt) for receipt in await self.dequeued()]
        await queue_settling.acknowledge(self.store, taken, self.waiters)

    async def tidy_queue(self) -> None:
        ids = [id_ for _, id_ in self.random.sample(ITEMS, 5)]
        await queue.requeue_items(self.store, "q0", ids, 5, self.waiters)
        await queue.delete_items(self.store, "q1", ids, 5)

    async def persist_with_subscriptions(self) -> None:
        subscriptions = self.subscriptions()
        request = PersistWorkflowWithSubscriptionsRequest(
            instance=self.instance(), subscriptions=subscriptions
        )
        await commit.persist_workflow(self.store, request, subscriptions, RequestKey(request))

    async def terminate(self) -> None:
        await subscription.terminate_subscription(
            self.store, self.random.choice(SUBSCRIPTIONS), None, None
        )

    async def mark(self) -> None:
        id_ = self.random.choice(EVENTS)
        await event.mark_event_unprocessed(self.store, id_)
        await event.mark_event_processed(self.store, id_)

    async def log(self) -> None:
        await error_log.persist_errors(
            self.store, [make.error(workflow_id=id_) for id_ in self.some(WORKFLOWS)]
        )

    async def delete(self) -> None:
        await purge.delete_workflow(self.store, self.random.choice(WORKFLOWS), None)

    async def purge_workflows(self) -> None:
        await purge.purge_workflows(self.store, (), make.time(1000), "", None, 1000, dry_run=False)

    async def purge_events(self) -> None:
        await purge.purge_events(
            self.store, make.time(1000), "", None, 7, include_unprocessed=True, dry_run=False
        )


ALL: Final = [name for name, value in vars(Mix).items() if asyncio.iscoroutinefunction(value)]
# Helpers of the others; and what ended is created anew often enough.
HELPERS: Final = ("commit", "claimed", "locked", "all_locked", "dequeued")
WRITES: Final = [name for name in ALL if name not in HELPERS] + ["create"] * 4


@pytest.fixture
async def busy(database_url: str) -> AsyncIterator[Store]:
    """A store with a connection for each of the workers."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute("SELECT current_database()").fetchone()
        assert row
        connection.execute(PREPARE.format(row[0]).encode())
    async with database_from(Settings(db_url=database_url, pool_size=WORKERS)) as pool:
        await migrate(pool.source, Schema())
        yield Store(pool, Schema(), "default")


async def run(mix: Mix, writes: list[str], turns: int) -> None:
    """All workers do these writes."""

    async def worker() -> None:
        for _ in range(turns):
            name = mix.random.choice(writes)
            write: Callable[[], Awaitable[None]] = getattr(mix, name)
            try:
                await write()
                mix.done[name] += 1
            except PersistenceError as exc:
                if exc.reason not in EXPECTED:
                    raise

    await asyncio.gather(*(worker() for _ in range(WORKERS)))


async def deadlocks(store: Store, url: str) -> int:
    """How many there were: the backends tell it at the latest when they end."""
    await store.database.__aexit__()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for _ in range(100):
            row = await (await connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )).fetchone()  # fmt: skip
            if row == (1,):
                break
            await asyncio.sleep(0.02)
        row = await (await connection.execute(DEADLOCKS)).fetchone()
    assert row is not None
    found: int = row[0]
    return found


async def test_all_writes_at_once(busy: Store, database_url: str) -> None:
    mix = Mix(busy, 11)
    await run(mix, WRITES, 90)
    assert set(mix.done) == set(WRITES), mix.done
    assert await deadlocks(busy, database_url) == 0


# The test can fail: without an order each of these kinds of writes ends in a ring.

COMMITS: Final = ("COMMIT_WORKFLOW",)
STEPS: Final = ("PERSIST_WORKFLOW_STEP", "COMMIT_WORKFLOW_STEP")
# One row after the other, so that several insert at the same time.
SLOWLY: Final = "AND pg_sleep(0.001)::text IS NOT NULL\n"
FAULTS: Final[dict[str, tuple[ModuleType, tuple[str, ...], str, str, list[str]]]] = {
    # name: (module, statements, what is taken out, what comes in its place, writes that show it)
    "subscriptions created in any order": (
        commit, ("COMMIT_WORKFLOW", "PERSIST_WORKFLOW", "PERSIST_WORKFLOW_ONCE"),
        "ORDER BY s.id\n", SLOWLY, ["commit_new_subscriptions"],
    ),
    "events created in any order": (
        commit, COMMITS, "ORDER BY e.id\n", SLOWLY, ["commit_new_events"],
    ),
    "commands scheduled anew in any order": (
        commit, COMMITS, "ORDER BY s.command_name, s.data\n", SLOWLY,
        ["commit_new_commands"],
    ),
    "commands locked in any order": (
        commit, COMMITS, "ORDER BY id FOR UPDATE\n), conditions", "), conditions",
        ["commit_commands", "complete"],
    ),
    "events locked in any order": (
        commit, COMMITS, "ORDER BY id FOR NO KEY UPDATE", "ORDER BY random() FOR NO KEY UPDATE",
        ["commit_events", "commit_processed"],
    ),
    "the workflow locked last": (
        commit, COMMITS, "WHERE id = $1 FOR NO KEY UPDATE", "WHERE id = $1",
        ["commit_events", "commit_processed"],
    ),
    "subscriptions deleted in any order": (
        purge, ("DELETE_WORKFLOW",), "ORDER BY id FOR UPDATE", "ORDER BY random() FOR UPDATE",
        ["commit_terminations", "persist_with_subscriptions", "create", "delete"],
    ),
    "leases in any order": (
        command, ("COMPLETE_COMMANDS", "RELEASE_COMMANDS", "RENEW_COMMANDS"),
        "ORDER BY id", "ORDER BY random()", ["release", "commit_commands"],
    ),
    "locks in any order": (
        lock, ("RENEW_LOCKS",), "ORDER BY resource FOR", "ORDER BY random() FOR",
        ["renew_same_locks"],
    ),
    "items enqueued in any order": (
        queue, ("ENQUEUE",), "l.id = g.id)\nORDER BY queue, id",
        "l.id = g.id)\n    AND pg_sleep(0.001)::text IS NOT NULL", ["enqueue_new"],
    ),
    "items locked in any order": (
        queue, ("ENQUEUE",), "FROM given ORDER BY queue, id", "FROM given ORDER BY random()",
        ["enqueue"],
    ),
    "items of steps created in any order": (
        commit, STEPS, "ORDER BY queue, id\n), published",
        "AND pg_sleep(0.001)::text IS NOT NULL\n), published", ["step_new_items"],
    ),
    "items of steps locked in any order": (
        commit, STEPS, f"ORDER BY {KEY_ORDER} FOR UPDATE", "ORDER BY random() FOR UPDATE",
        ["step", "enqueue"],
    ),
    "items enqueued with creations in any order": (
        workflow, ("CREATE_NEW_WORKFLOW_ENQUEUE",), f"ORDER BY {KEY_ORDER} FOR UPDATE",
        "ORDER BY random() FOR UPDATE", ["create_and_enqueue", "enqueue"],
    ),
    "many workflows created in any order": (
        bulk, ("CREATE_WORKFLOWS", "CREATE_WORKFLOWS_ENQUEUE"), "ORDER BY g.id\n", SLOWLY,
        ["create_many"],
    ),
    "many events created in any order": (
        bulk, ("CREATE_EVENTS", "CREATE_EVENTS_ENQUEUE"), "ORDER BY g.id\n", SLOWLY,
        ["create_many_events"],
    ),
    "items enqueued with many creations in any order": (
        bulk, ("CREATE_EVENTS_ENQUEUE",), f"ORDER BY {KEY_ORDER} FOR UPDATE",
        "ORDER BY random() FOR UPDATE", ["create_many_events", "enqueue"],
    ),
    "receipts in any order": (
        queue_settling, ("ACKNOWLEDGE", "SETTLE_ITEMS"), f"ORDER BY {KEY_ORDER}",
        "ORDER BY random()", ["acknowledge", "settle", "enqueue"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_without_an_order_there_are_deadlocks(
    busy: Store, database_url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, statements, old, new, writes = FAULTS[fault]
    for name in statements:
        sql: str = getattr(module, name)
        assert old in sql, f"{name} has changed: plant the fault anew"
        monkeypatch.setattr(module, name, sql.replace(old, new))
    found = False

    def noticed(error: Any) -> Retry:
        nonlocal found
        found = found or sqlstate(error) == "40P01"
        return retry(error)

    monkeypatch.setattr(database, "retry", noticed)
    mix = Mix(busy, 11)
    await run(mix, ["create"], 5)
    for _ in range(40):
        if found:
            break
        await run(mix, writes, 4)
    assert await deadlocks(busy, database_url) > 0
