"""Exports and imports of a namespace, and a namespace with something of everything in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from wfe.persistence.v1.queue_pb2 import (
    ConfigureQueueRequest,
    DequeueRequest,
    EnqueueRequest,
    QueueKind,
)
from wfe.persistence.v1.store_pb2 import (
    PersistErrorsRequest,
    RetentionPolicy,
    SetRetentionPolicyRequest,
    WorkflowRetention,
)
from wfe.persistence.v1.subscription_pb2 import (
    CreateEventSubscriptionRequest,
    SetSubscriptionTokenRequest,
)
from wfe.persistence.v1.transfer_pb2 import (
    ExportRecordsRequest,
    ImportRecordsRequest,
    ImportRecordsResponse,
    Record,
)
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    DeleteWorkflowRequest,
    NextDefinitionSequenceRequest,
    SetNameHolderRequest,
    WorkflowStatus,
)

BATCH = 100


async def export(api: Api, **fields: Any) -> list[Record]:
    """The records of a namespace."""
    stream = api.transfer.ExportRecords(ExportRecordsRequest(**fields))
    return [record async for response in stream for record in response.records]


def kinds(records: Iterable[Record]) -> list[str | None]:
    """What the records are, each kind once."""
    found: list[str | None] = []
    for record in records:
        kind = record.WhichOneof("record")
        if not found or found[-1] != kind:
            found.append(kind)
    return found


def as_bytes(records: Iterable[Record]) -> list[bytes]:
    """Records for comparison: maps have no order of their own."""
    return [record.SerializeToString(deterministic=True) for record in records]


async def import_(
    api: Api, records: Iterable[Record], *, batch: int = BATCH, **fields: Any
) -> ImportRecordsResponse:
    """Import records; what became of them, all together."""
    iterator = iter(records)

    async def requests() -> AsyncIterator[ImportRecordsRequest]:
        some: Sequence[Record] = list(islice(iterator, batch))
        while some:
            yield ImportRecordsRequest(records=some, **fields)
            some = list(islice(iterator, batch))

    total = ImportRecordsResponse()
    async for response in api.transfer.ImportRecords(requests()):
        total.stored += response.stored
        total.unchanged += response.unchanged
        total.skipped += response.skipped
    return total


async def fill(api: Api) -> None:
    """Put something of everything into an empty namespace."""
    for instance in (
        make.full_instance(),
        make.instance(status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE, complete_time=make.time(9)),
        make.instance(id="\u00c5 'quoted' \U0010ffff", data_json="[1.10, 1e400, -0.0, null]"),
        make.instance(id="Z"),
        make.instance(id="a"),
        make.instance(id="\u00e9"),
    ):
        await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
    changed = make.instance(id="changed")
    await api.create(changed)
    changed.data_json = '"new"'
    await api.persist_workflow(changed)
    await api.persist_workflow(changed)
    gone = make.instance(id="gone")
    await api.create(gone)
    for _ in range(20):
        await api.persist_workflow(gone)
    await api.workflows.DeleteWorkflow(DeleteWorkflowRequest(id="gone"))
    for id_ in ("free", "held", "B"):
        subscription = make.subscription(id=id_, workflow_id="a", subscription_data_json="[1.0]")
        await api.subscriptions.CreateEventSubscription(
            CreateEventSubscriptionRequest(subscription=subscription)
        )
    await api.subscriptions.SetSubscriptionToken(
        SetSubscriptionTokenRequest(
            id="held", token="token", worker_id="worker", expiry=make.LAST_TIME
        )
    )
    for event in (make.event(), make.event(is_processed=True), make.event(event_key="")):
        await api.create_event(event)
    errors = [make.error(workflow_id="a"), make.error(workflow_id="b", message="\u2028\n\x01")]
    await api.store.PersistErrors(PersistErrorsRequest(errors=[*errors, *errors, errors[0]]))
    for data in ("a", "b", "\U0001f469"):
        await api.schedule_command(make.command(data=data, execute_time=-(2**63)))
    for name in ("invoice", "\u00c5 name"):
        holder = SetNameHolderRequest(name=name, workflow_id="elsewhere", claim_id="claim")
        await api.workflows.SetNameHolder(holder)
    await api.queues.ConfigureQueue(
        ConfigureQueueRequest(queue="work", kind=QueueKind.QUEUE_KIND_PLAIN, max_attempts=1)
    )
    await api.queues.ConfigureQueue(
        ConfigureQueueRequest(queue="idle", kind=QueueKind.QUEUE_KIND_WORKFLOW)
    )
    items = [
        make.item("work", id="dead", visible_time=make.FIRST_TIME),
        make.item("work", id="leased", visible_time=make.time()),
        make.item("z", id="z", payload_json='{"a": 1.0}', visible_time=make.time(1)),
        make.item("a", id="a", blocked_by=["lock", 'x,y"z'], visible_time=make.time(1)),
    ]
    await api.queues.Enqueue(EnqueueRequest(items=items))
    dequeue = DequeueRequest(queues=["work"], max_items=1, lease_duration=Duration(nanos=1_000_000))
    await api.queues.Dequeue(dequeue)
    dequeue.lease_duration.FromSeconds(3600)
    await api.queues.Dequeue(dequeue)
    for definition in ("a", "b", "a"):
        await api.workflows.NextDefinitionSequence(
            NextDefinitionSequenceRequest(definition_id=definition)
        )
    await api.store.SetRetentionPolicy(
        SetRetentionPolicyRequest(
            policy=RetentionPolicy(
                workflows=[
                    WorkflowRetention(
                        workflow_definition_id=definition, complete_age=make.LONGEST_AGE
                    )
                    for definition in ("z", "", "B", "a")
                ],
                error_age=make.LONGEST_AGE,
            )
        )
    )


WORKFLOWS = """
INSERT INTO SCHEMA.workflows (id, name, definition_id, version, status, data, create_time)
SELECT md5(n::text), 'name ' || n, 'order', 1, 'Complete',
    jsonb_build_object('n', n, 'text', repeat('x', n % 200)), '2026-01-01'
FROM generate_series(1, COUNT) n
"""
POINTERS = """
INSERT INTO SCHEMA.execution_pointers (id, workflow_id, step_id, active, status, outcome)
SELECT p::text, md5(n::text), p, FALSE, 'Complete', to_jsonb(n)
FROM generate_series(1, COUNT) n, generate_series(1, 2) p
"""


def fill_with_workflows(url: str, count: int, schema: str = "wfc") -> None:
    """Put many workflows into a store, each with two pointers, by SQL: it takes less time."""
    import psycopg  # which the conformance suite for others has not

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (WORKFLOWS, POINTERS, "ANALYZE SCHEMA.workflows"):
            text = statement.replace("SCHEMA", schema).replace("COUNT", str(count))
            connection.execute(text.encode())
