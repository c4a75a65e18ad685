"""What the console is looked at with: a shop with orders, some of which are stuck, and what
strangers store to do harm. `python -m tests.console.scene HOST:PORT` makes it in a server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from wfe_persistence_client import (
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    NameTaken,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    QueueKind,
    RetentionPolicy,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowRetention,
    WorkflowStatus,
    connect,
)

ROOT: Final = Path(__file__).parents[2]

LARGE_POINTERS: Final = 10_000

SHOP: Final = "shop"
"""The namespace of which pictures are taken: tests write nothing to it."""

SCRIPT: Final = (
    "<script>document.title='harmed'</script><img src=x onerror=\"document.title='harmed'\">"
)
TURNED: Final = "\u202egpj.exe\u202c \u05e9\u05dc\u05d5\u05dd \u200b\u2066x\u2069"
LONGEST_ID: Final = "<b>" + "x" * 499 + "&quot;'/.."
assert len(LONGEST_ID) == 512

_S = PointerStatus


def _pointer(number: int, name: str, status: PointerStatus, **more: Any) -> ExecutionPointer:
    after = more.pop("after", number - 1 if number else None)
    return ExecutionPointer(
        id=f"p{number}",
        step_id=number,
        step_name=name,
        status=status,
        predecessor_id=None if after is None else f"p{after}",
        **more,
    )


def _ran(number: int, name: str, begin: datetime, seconds: float, **more: Any) -> ExecutionPointer:
    return _pointer(
        number, name, more.pop("status", _S.COMPLETE),
        start_time=begin, end_time=begin + timedelta(seconds=seconds), **more,
    )  # fmt: skip


def stuck_order(now: datetime) -> WorkflowInstance:
    """Has waited for its payment for two days."""
    begin = now - timedelta(days=2)
    return WorkflowInstance(
        id="order-1042", name="order-1042", workflow_definition_id="order", version=3,
        reference="customer-17", description="A kettle and two cups",
        status=WorkflowStatus.RUNNABLE, create_time=begin,
        data={
            "customer": {"id": 17, "name": "Zoë Ångström", "vip": False},
            "lines": [
                {"article": "kettle", "count": 1, "cents": 2995},
                {"article": "cup", "count": 2, "cents": 650},
            ],
            "total": 42.95, "number": 12345678901234567890123,
            "notes": None, "paid": False,
        },
        execution_pointers=[
            _ran(0, "validate", begin, 0.2, outcome={"ok": True}),
            _ran(1, "reserve stock", begin + timedelta(seconds=1), 3.5, retry_count=2,
                 outcome={"shelf": "A-17"}),
            _ran(2, "charge", begin + timedelta(seconds=5), 1.2, outcome="pay-77120"),
            _pointer(3, "await payment", _S.WAITING_FOR_EVENT, active=True,
                     start_time=begin + timedelta(seconds=7), event_name="payment.confirmed",
                     event_key="order-1042"),
            _ran(4, "print label", begin + timedelta(seconds=6), 0.9, after=2),
            _pointer(5, "reminder", _S.SLEEPING, active=True, after=3,
                     start_time=begin + timedelta(seconds=8),
                     sleep_until=now + timedelta(hours=3), retry_count=4),
            _pointer(6, "ship", _S.PENDING_PREDECESSOR, after=3),
            _pointer(7, "notify", _S.PENDING, after=6),
        ],
    )  # fmt: skip


def _shop(now: datetime) -> Iterable[WorkflowInstance]:
    yield stuck_order(now)
    begin = now - timedelta(hours=5)
    yield WorkflowInstance(
        id="order-1043", name="order-1043", workflow_definition_id="order", version=3,
        reference="customer-99", status=WorkflowStatus.SUSPENDED, create_time=begin,
        data={"total": 18.5}, execution_pointers=[
            _ran(0, "validate", begin, 0.1),
            _ran(1, "reserve stock", begin, 9, status=_S.FAILED, retry_count=5),
            _ran(2, "release stock", begin + timedelta(seconds=9), 1, status=_S.COMPENSATED),
        ],
    )  # fmt: skip
    for n in range(3):
        due = now - timedelta(minutes=50 * (n + 1))
        yield WorkflowInstance(
            id=f"invoice-{n}", name=f"invoice-2026-{n}", workflow_definition_id="invoice",
            version=1, reference="month-end", create_time=due, data={"n": n},
            next_execution=int(due.timestamp() * 1000),
        )  # fmt: skip
    for n in range(40):
        done = now - timedelta(minutes=3 * n)
        yield WorkflowInstance(
            id=f"mail-{n}", name=f"mail-{n}", workflow_definition_id="mail", version=1 + n % 2,
            status=WorkflowStatus.TERMINATED if n % 9 == 8 else WorkflowStatus.COMPLETE,
            create_time=done - timedelta(seconds=20 + n), complete_time=done, data={"n": n},
        )  # fmt: skip
    # A tree: a campaign with parts, which have parts.
    for id_, root in (
        ("campaign", None), ("campaign-north", "campaign"), ("campaign-south", "campaign"),
        ("campaign-north-1", "campaign-north"), ("campaign-north-2", "campaign-north"),
    ):  # fmt: skip
        yield WorkflowInstance(
            id=id_, name=id_, workflow_definition_id="campaign", version=1, root_workflow_id=root,
            data={}, create_time=now - timedelta(hours=1),
        )  # fmt: skip


def large(now: datetime) -> WorkflowInstance:
    """Ten thousand steps: a loop that fans out, again and again, as the engine stores it."""
    begin = now - timedelta(hours=2)
    pointers = []
    for n in range(LARGE_POINTERS):
        turn, place = divmod(n, 25)
        container = f"p{turn * 25}"
        after = None if n == 0 else (turn * 25 if place else (turn - 1) * 25)
        start = begin + timedelta(seconds=turn * 10 + place / 4)
        pointers.append(
            _ran(
                n, f"item {turn}.{place}", start, 1 + place % 7, after=after,
                status=_S.FAILED if n % 997 == 996 else _S.COMPLETE,
                outcome={"item": n, "sum": n * 1.5}, persistence_data={"turn": turn},
                scope=[container] if place else [],
                children=[] if place else [f"p{n + each}" for each in range(1, 25)],
            )
        )  # fmt: skip
    return WorkflowInstance(
        id="batch-10000", name="batch-10000", workflow_definition_id="batch", version=1,
        create_time=begin, data={"items": LARGE_POINTERS}, execution_pointers=pointers,
    )  # fmt: skip


def hostile(now: datetime) -> WorkflowInstance:
    """Whatever a stranger might put where text is shown."""
    document: Any = {SCRIPT: SCRIPT, TURNED: [TURNED, {"</script>": SCRIPT}], "__proto__": {"x": 1}}
    return WorkflowInstance(
        id=LONGEST_ID, name=SCRIPT + TURNED, workflow_definition_id=SCRIPT, version=1,
        reference=TURNED, description=SCRIPT + "\n" + TURNED * 50, data=document,
        create_time=now - timedelta(minutes=5),
        execution_pointers=[
            ExecutionPointer(
                id=SCRIPT, step_id=0, step_name=SCRIPT, status=_S.WAITING_FOR_EVENT,
                event_name=SCRIPT, event_key=TURNED, outcome=document, start_time=now,
                children=["__proto__", SCRIPT], predecessor_id=SCRIPT,
                extension_attributes={SCRIPT: SCRIPT},
            ),
            ExecutionPointer(
                id="__proto__", step_id=1, step_name=TURNED, status=_S.RUNNING, start_time=now,
                predecessor_id="constructor", scope=[SCRIPT],
            ),
        ],
        extension_attributes={SCRIPT: [SCRIPT]},
    )  # fmt: skip


def heavy(now: datetime) -> WorkflowInstance:
    """A document of a megabyte: many members, deep ones, and a long text."""
    deep: Any = "bottom"
    for _ in range(90):
        deep = [deep]
    return WorkflowInstance(
        id="heavy", name="heavy", workflow_definition_id="heavy", version=1,
        create_time=now - timedelta(minutes=4),
        data={
            "deep": deep, "text": "x" * 300_000,
            "members": {f"member {n}": [n, str(n) * 5] for n in range(25_000)},
        },
    )  # fmt: skip


async def _create(store: PersistenceProvider, workflows: Iterable[WorkflowInstance]) -> None:
    for workflow in workflows:
        with suppress(NameTaken):
            await store.create_new_workflow(workflow)


async def make_shop(store: PersistenceProvider) -> None:
    """The shop, as it is now."""
    now = datetime.now(UTC)
    await _create(store, _shop(now))
    await store.create_event_subscription(
        EventSubscription(
            id="sub-1042", workflow_id="order-1042", step_id=3, execution_pointer_id="p3",
            event_name="payment.confirmed", event_key="order-1042",
            subscribe_as_of=now - timedelta(days=2), subscription_data={"reminders": 2},
        )
    )  # fmt: skip
    await store.create_event_subscription(
        EventSubscription(
            id="sub-held", workflow_id="order-1043", step_id=1, execution_pointer_id="p1",
            event_name="stock.arrived", event_key="kettle", subscribe_as_of=now,
        )
    )  # fmt: skip
    await store.claim_subscription("sub-held", duration=timedelta(hours=3), worker_id="worker-7")
    await store.create_event(
        Event(
            id="ev-1", event_name="payment.failed", event_key="order-1042",
            event_data={"code": 51, "text": "insufficient funds"},
            event_time=now - timedelta(days=1),
        )
    )  # fmt: skip
    await store.create_event(
        Event(id="ev-2", event_name="stock.arrived", event_key="cup", event_data=None,
              is_processed=True)
    )  # fmt: skip
    texts = [
        "TimeoutError: the bank did not answer within 30 s",
        "ValueError: no price for article 'teapot'\n  at reserve_stock (order.py:112)",
    ]
    await store.persist_errors(
        [
            ExecutionError(
                error_time=now - timedelta(minutes=7 * n), execution_pointer_id=f"p{1 + n % 2}",
                workflow_id=("order-1042", "order-1043")[n % 2], message=texts[n % 2],
            )
            for n in range(6)
        ]
    )  # fmt: skip
    await store.configure_queue("orders", kind=QueueKind.WORKFLOW, max_attempts=3)
    await store.enqueue(
        [QueueItem(queue="orders", id=f"invoice-{n}", payload={"n": n}) for n in range(3)]
        + [QueueItem(queue="mails", id=f"mail-{n}") for n in range(12)]
        + [QueueItem(queue="mails", id="later", visible_time=now + timedelta(hours=1))]
    )
    await store.dequeue(
        ["mails"], worker_id="worker-3", max_items=2, lease_duration=timedelta(hours=1)
    )
    for id_ in ("order-1042", "order-1043", "invoice-1"):
        await store.schedule_command(
            ScheduledCommand(
                command_name=CommandName.PROCESS_WORKFLOW, data=id_,
                execute_time=int((now - timedelta(minutes=3)).timestamp() * 1000),
            )
        )  # fmt: skip
    await store.claim_commands(limit=1, worker_id="worker-1", lease_duration=timedelta(hours=2))
    await store.acquire_lock("workflow/order-1042", owner="worker-7", ttl=timedelta(hours=2))
    await store.acquire_lock("nightly-report", owner="cron", ttl=timedelta(hours=1))
    await store.set_retention_policy(
        RetentionPolicy(
            workflows=[
                WorkflowRetention(complete_age=timedelta(days=30)),
                WorkflowRetention(
                    workflow_definition_id="mail",
                    complete_age=timedelta(days=2), terminated_age=timedelta(days=7),
                ),
            ],
            error_age=timedelta(days=90),
        )
    )  # fmt: skip


async def make_hostile(store: PersistenceProvider) -> None:
    """What strangers would store."""
    now = datetime.now(UTC)
    await _create(store, [hostile(now), heavy(now)])
    await store.persist_errors(
        [
            ExecutionError(
                workflow_id=LONGEST_ID, message=SCRIPT + TURNED, execution_pointer_id=SCRIPT
            )
        ]
    )
    await store.create_event_subscription(
        EventSubscription(
            id="hostile", workflow_id=LONGEST_ID, step_id=0, execution_pointer_id=SCRIPT,
            event_name=SCRIPT, event_key=TURNED, subscribe_as_of=now, subscription_data=SCRIPT,
        )
    )  # fmt: skip
    await store.create_event(
        Event(id=SCRIPT, event_name=SCRIPT, event_key=TURNED, event_data={SCRIPT: TURNED})
    )
    await store.enqueue([QueueItem(queue="hostile", id=LONGEST_ID, payload=SCRIPT)])
    await store.acquire_lock(SCRIPT, owner=TURNED, ttl=timedelta(hours=1))


def run_orders(target: str, directory: Path) -> None:
    """Orders of the example engine, from their beginning to their end."""
    subprocess.run(
        [
            sys.executable, "-m", "examples.python.host", "--target", target, "--orders", "4",
            "--batch", "shop", "--world", str(directory / "world.sqlite3"),
        ],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip


async def make(target: str, directory: Path, *, everything: bool = True) -> None:
    """The shop, in a namespace of its own; and with `everything` also in the default one, with what
    is large and hostile."""
    async with connect(target) as store:
        await store.create_namespace(SHOP)
    async with connect(target, namespace=SHOP) as store:
        await make_shop(store)
    if not everything:
        return
    await asyncio.to_thread(run_orders, target, directory)
    async with connect(target) as store:
        await make_shop(store)
        await make_hostile(store)
        await _create(store, [large(datetime.now(UTC))])


if __name__ == "__main__":
    asyncio.run(make(sys.argv[1], Path(sys.argv[2])))
    print(json.dumps({"target": sys.argv[1]}))
