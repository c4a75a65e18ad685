"""A shop's workflows, as an operator finds them at noon of 5 January 2026: the store of the tests
of the command line, and of docs/cli.md."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from wfe_persistence_client import (
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    QueueKind,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
)

NOON: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)


def before_noon(**ago: float) -> datetime:
    """So long before noon."""
    return NOON - timedelta(**ago)


def milliseconds(at: datetime) -> int:
    """A time as `next_execution` has it."""
    return int(at.timestamp() * 1000)


def pointer(id_: str, name: str, status: PointerStatus, **fields: object) -> ExecutionPointer:
    """The pointer of a step."""
    return ExecutionPointer(
        id=id_,
        step_id=int(id_.partition("-")[0]),
        step_name=name,
        status=status,
        **fields,  # type: ignore[arg-type]
    )


async def play(provider: PersistenceProvider) -> None:
    """Store it all."""
    for instance in workflows():
        await provider.create_new_workflow(instance)
    await provider.create_event_subscription(
        EventSubscription(
            id="s1",
            workflow_id="77b2",
            step_id=2,
            execution_pointer_id="2",
            event_name="order.paid",
            event_key="43",
            subscribe_as_of=before_noon(hours=3),
        )
    )
    await provider.create_event_subscription(
        EventSubscription(
            id="s2",
            workflow_id="81d9",
            step_id=2,
            execution_pointer_id="2",
            event_name="order.paid",
            event_key="44",
            subscribe_as_of=before_noon(hours=26),
        )
    )
    await provider.set_subscription_token("s2", "token-of-worker-7", "worker-7", None)
    await provider.create_event(
        Event(
            id="e1",
            event_name="order.paid",
            event_key="44",
            event_data={"amount": 20},
            event_time=before_noon(hours=2),
        )
    )
    await provider.create_event(
        Event(
            id="e0",
            event_name="order.paid",
            event_key="41",
            event_data={"amount": 8},
            event_time=before_noon(hours=4),
            is_processed=True,
        )
    )
    await provider.persist_errors(
        [
            ExecutionError(
                error_time=before_noon(minutes=minutes),
                workflow_id="6f0c",
                execution_pointer_id="2",
                message="card service: 503 Service Unavailable",
            )
            for minutes in (171, 168, 162)
        ]
    )
    await provider.schedule_command(
        ScheduledCommand(
            command_name=CommandName.PROCESS_WORKFLOW,
            data="6f0c",
            execute_time=milliseconds(before_noon(hours=2, minutes=40)),
        )
    )
    await provider.configure_queue("workflow", QueueKind.WORKFLOW, max_attempts=1)
    await provider.enqueue([QueueItem(queue="workflow", id="6f0c")])
    # Handed out as often as it may be, and given back: it is dead.
    [dequeued] = (await provider.dequeue(["workflow"])).items
    await provider.return_items([dequeued.receipt])


def workflows() -> list[WorkflowInstance]:
    """The workflows, the oldest first."""
    done = PointerStatus.COMPLETE
    return [
        WorkflowInstance(
            id="55aa",
            name="order-41",
            workflow_definition_id="order",
            version=1,
            reference="C-1041",
            status=WorkflowStatus.COMPLETE,
            data={"total": 8},
            create_time=before_noon(days=2),
            complete_time=before_noon(days=1, hours=20),
            execution_pointers=[
                pointer(
                    "1", "reserve", done,
                    start_time=before_noon(days=2), end_time=before_noon(days=2, seconds=-1.25),
                ),
                pointer(
                    "2", "charge", done,
                    start_time=before_noon(days=1, hours=21),
                    end_time=before_noon(days=1, hours=20), predecessor_id="1",
                ),
            ],
        ),
        WorkflowInstance(
            id="81d9",
            name="order-44",
            workflow_definition_id="order",
            version=1,
            reference="C-1044",
            data={"total": 20},
            create_time=before_noon(hours=26),
            execution_pointers=_waiting("44", before_noon(hours=26)),
        ),
        WorkflowInstance(
            id="90ce",
            name="order-45",
            workflow_definition_id="order",
            version=1,
            reference="C-1045",
            status=WorkflowStatus.SUSPENDED,
            data={"total": 99.95},
            create_time=before_noon(hours=5),
            next_execution=milliseconds(before_noon(hours=4)),
        ),
        WorkflowInstance(
            id="6f0c",
            name="order-42",
            workflow_definition_id="order",
            version=1,
            reference="C-1042",
            data={"total": 12.5, "items": [{"sku": "tea", "count": 2}]},
            create_time=before_noon(hours=3),
            next_execution=milliseconds(before_noon(hours=2, minutes=40)),
            execution_pointers=[
                pointer(
                    "1", "reserve", done,
                    start_time=before_noon(hours=3), end_time=before_noon(hours=3, seconds=-1.25),
                    outcome={"reserved": True},
                ),
                pointer(
                    "2", "charge", PointerStatus.RUNNING,
                    active=True, retry_count=3, predecessor_id="1",
                    start_time=before_noon(minutes=171), children=["2-1", "2-2"],
                ),
                pointer(
                    "2-1", "authorize", done,
                    scope=["2"], start_time=before_noon(minutes=171),
                    end_time=before_noon(minutes=170),
                ),
                pointer("2-2", "capture", PointerStatus.FAILED, scope=["2"]),
                pointer("3", "ship", PointerStatus.PENDING_PREDECESSOR, predecessor_id="2"),
            ],
        ),
        WorkflowInstance(
            id="77b2",
            name="order-43",
            workflow_definition_id="order",
            version=1,
            reference="C-1043",
            data={"total": 7},
            create_time=before_noon(hours=3),
            execution_pointers=_waiting("43", before_noon(hours=3)),
        ),
        WorkflowInstance(
            id="c0de",
            name="nightly-2026-01-05",
            workflow_definition_id="nightly-report",
            version=3,
            data=None,
            create_time=before_noon(minutes=90),
            next_execution=milliseconds(before_noon(hours=-10)),
        ),
    ]  # fmt: skip


def _waiting(key: str, since: datetime) -> list[ExecutionPointer]:
    """Reserved, and now waiting for the payment."""
    return [
        pointer(
            "1", "reserve", PointerStatus.COMPLETE,
            start_time=since, end_time=since + timedelta(seconds=1.25),
        ),
        pointer(
            "2", "await payment", PointerStatus.WAITING_FOR_EVENT,
            active=True, predecessor_id="1", start_time=since,
            event_name="order.paid", event_key=key,
        ),
    ]  # fmt: skip
