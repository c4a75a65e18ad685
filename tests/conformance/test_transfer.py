"""Exports and imports: everything is carried, exactly, once.

In namespaces of the tests' own: an export is that of a whole namespace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import hypothesis
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, Phase, given, settings

from tests.support import make, strategies
from tests.support.api import Api, connect
from tests.support.expect import fails, invalid
from tests.support.scene import create_namespace, delete_namespace, found
from tests.support.transfer import as_bytes, export, fill, import_, kinds
from wfe.persistence.v1.queue_pb2 import DequeueRequest, EnqueueRequest, ListQueueItemsRequest
from wfe.persistence.v1.store_pb2 import PersistErrorsRequest
from wfe.persistence.v1.subscription_pb2 import (
    ClearSubscriptionTokenRequest,
    SetSubscriptionTokenRequest,
)
from wfe.persistence.v1.transfer_pb2 import (
    ConflictPolicy,
    ExportRecordsRequest,
    Fence,
    ImportRecordsRequest,
    QueueItemRecord,
    Record,
    RecordKind,
    WorkflowRecord,
    WorkflowSelection,
)
from wfe.persistence.v1.workflow_pb2 import (
    DeleteWorkflowRequest,
    NextDefinitionSequenceRequest,
    WorkflowInstance,
    WorkflowStatus,
)

EVERYTHING = [
    "fence", "definition_sequence", "name_holder", "queue", "workflow", "subscription", "event",
    "error", "command", "queue_item", "retention_policy", "fence",
]  # fmt: skip


@pytest.fixture
async def own(api: Api, target: str) -> AsyncIterator[Api]:
    """A namespace of the test's own."""
    name = make.new_namespace()
    await create_namespace(api, name)
    async with connect(target, namespace=name) as channel:
        yield Api(channel)
    await delete_namespace(api, name)


@pytest.fixture
async def other(api: Api, target: str) -> AsyncIterator[Api]:
    """Another one."""
    name = make.new_namespace()
    await create_namespace(api, name)
    async with connect(target, namespace=name) as channel:
        yield Api(channel)
    await delete_namespace(api, name)


async def test_everything_is_exported_and_comes_back_the_same(own: Api, other: Api) -> None:
    await fill(own)
    exported = await export(own)
    assert kinds(exported) == EVERYTHING
    counts = await import_(other, exported)
    assert (counts.unchanged, counts.skipped) == (2, 0)  # fences are no records
    assert as_bytes(await export(other)) == as_bytes(exported)
    again = await import_(other, exported)
    assert (again.stored, again.skipped) == (0, 0)
    assert as_bytes(await export(other)) == as_bytes(exported)


async def test_no_records_are_nothing(api: Api) -> None:
    """Also in a store that others use."""
    answers = api.transfer.ImportRecords(iter([ImportRecordsRequest(), ImportRecordsRequest()]))
    assert [answer.stored async for answer in answers] == [0, 0]
    nobody = WorkflowSelection(ids=[make.new_id("workflow")])
    stream = api.transfer.ExportRecords(ExportRecordsRequest(workflows=nobody))
    records = [record async for response in stream for record in response.records]
    assert kinds(records) == ["fence"]


# Moments.


async def begun(own: Api, responses: int, **fields: Any) -> tuple[list[Record], str]:
    """What an export sends before it is cut off, and its last cursor."""
    stream = own.transfer.ExportRecords(ExportRecordsRequest(**fields))
    records: list[Record] = []
    cursor = ""
    async for response in stream:
        records += response.records
        cursor = response.cursor
        responses -= 1
        if not responses:
            break
    stream.cancel()
    return records, cursor


async def fill_for_a_break(own: Api) -> int:
    """More than is sent before a client hangs up: what was sent to its end is not held. How many
    records it is."""
    for n in range(12):
        await own.create(large(f"{n}"))
    return len(await export(own))


async def test_export_that_broke_goes_on_at_the_same_moment(own: Api) -> None:
    await fill_for_a_break(own)
    whole = as_bytes(await export(own))
    hold = Duration(seconds=60)
    for responses in range(1, 8):
        records, after = await begun(own, responses, hold=hold)
        added = make.instance(id=f"added{responses}")
        await own.create(added)
        await own.workflows.DeleteWorkflow(DeleteWorkflowRequest(id=added.id))
        again, later = await begun(own, 2, hold=hold, after=after)
        rest = await export(own, after=later)
        assert as_bytes([*records, *again, *rest])[:-1] == whole[:-1]  # the last fence has risen


async def test_what_is_written_during_an_export_is_not_in_it(own: Api) -> None:
    await own.create(make.instance(id="before"))
    stream = own.transfer.ExportRecords(ExportRecordsRequest())
    first = await anext(aiter(stream))
    assert first.cursor
    assert not first.records
    assert first.snapshot_time.seconds
    await own.create(make.instance(id="after"))
    await own.create_event(make.event())
    found = [record async for response in stream for record in response.records]
    assert kinds(found) == ["fence", "workflow", "fence"]


async def test_snapshot_ends_with_the_call_unless_it_is_held(own: Api) -> None:
    for hold in (None, Duration()):
        _, after = await begun(own, 1, hold=hold)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            await eventually_expired(own, after)


async def eventually_expired(own: Api, after: str) -> None:
    """The server may not have noticed yet that the call was cancelled."""
    for _ in range(200):
        await begun(own, 1, after=after)
        await asyncio.sleep(0.05)


async def test_hold_ends(own: Api) -> None:
    _, after = await begun(own, 1, hold=Duration(nanos=300_000_000))
    await asyncio.sleep(0.8)
    with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
        await eventually_expired(own, after)


async def test_cursor_is_one_of_the_same_export(own: Api, other: Api) -> None:
    number = await fill_for_a_break(own)
    _, after = await begun(own, 1, hold=Duration(seconds=20))
    with invalid("after", reason="FORMAT"):
        await export(other, after=after)
    with invalid("after", reason="FORMAT"):
        await export(own, after=after, kinds=[RecordKind.RECORD_KIND_EVENT])
    with invalid("after", reason="FORMAT"):
        await export(own, after=after[:-2])
    assert len(await export(own, after=after)) == number


async def test_too_many_exports_are_refused(own: Api) -> None:
    """Held snapshots count."""
    number = await fill_for_a_break(own)
    hold = Duration(seconds=20)
    cursors: list[str] = []
    with fails("RESOURCE_EXHAUSTED", "ADMINISTRATION_BUSY") as failure:
        while len(cursors) < 100:
            cursors.append((await begun(own, 1, hold=hold))[1])
    assert failure.retry_after is not None
    for after in cursors:  # each can be resumed all the same, and is not held any more then
        assert len(await export(own, after=after)) == number
    assert len(await export(own)) == number


async def test_kinds_have_no_duplicates(own: Api) -> None:
    kind = RecordKind.RECORD_KIND_EVENT
    with invalid("kinds[1]", reason="DUPLICATE"):
        await export(own, kinds=[kind, kind])


# Workflows of several records.


def large(id_: str, pointers: int = 600, **fields: Any) -> WorkflowInstance:
    """A workflow of several records."""
    return make.instance(
        id=id_,
        status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED,
        execution_pointers=[
            make.pointer(f"{n:05}", outcome_json=f'"{"x" * 1000}"') for n in range(pointers)
        ],
        **fields,
    )


async def test_large_workflow_is_several_records(own: Api, other: Api) -> None:
    await own.create(large("large"))
    await own.create(make.instance(id="small"))
    exported = await export(own)
    assert kinds(exported) == ["fence", "workflow", "execution_pointers", "workflow", "fence"]
    for batch in (1, 2, 100):
        await import_(other, exported, batch=batch)
        assert as_bytes(await export(other)) == as_bytes(exported)
    assert await other.get_workflow_instance("large") == await own.get_workflow_instance("large")


async def test_nothing_of_a_large_workflow_is_stored_before_its_end(own: Api, other: Api) -> None:
    await own.create(large("large"))
    exported = await export(own)
    await import_(other, exported[:3], batch=1)
    assert await found(other.get_workflow_instance("large")) is None
    await import_(other, exported)
    changed = [Record.FromString(record) for record in as_bytes(exported)]
    last = changed[-2].execution_pointers.execution_pointers
    last[-1].step_id = 77
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        await import_(other, changed)
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        del last[-1]
        await import_(other, changed)
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        changed[1].workflow.is_continued = False
        await import_(other, changed[:2])
    assert as_bytes(await export(other)) == as_bytes(exported)


async def test_records_of_a_large_workflow_follow_each_other(own: Api, other: Api) -> None:
    await own.create(large("large"))
    fence, first, second, *rest = await export(own)
    cases = {
        "records[0].execution_pointers.workflow_id": [second],
        "records[1].record": [first, fence],
        "records[2].execution_pointers.workflow_id": [first, second, second],
    }
    second.execution_pointers.is_continued = False
    for path, records in cases.items():
        with invalid(path, reason="FORMAT"):
            await import_(other, records)
    with invalid("records[0].execution_pointers.workflow_id", reason="FORMAT"):
        second.execution_pointers.workflow_id = "other"
        await import_(other, [first, second], batch=1)
    with invalid("records[0].execution_pointers.execution_pointers", reason="DUPLICATE"):
        second.execution_pointers.workflow_id = "large"
        second.execution_pointers.execution_pointers[0].id = "00000"
        await import_(other, [first, second], batch=1)
    with invalid("records[0].execution_pointers.execution_pointers", reason="REQUIRED"):
        del second.execution_pointers.execution_pointers[:]
        await import_(other, [first, second], batch=1)
    assert rest
    assert len(await export(other)) == 2


# What holds after an import.


async def test_claims_and_their_epochs_go_on(own: Api, other: Api) -> None:
    await fill(own)
    await import_(other, await export(own))
    held = await other.get_subscription("held")
    assert held == await own.get_subscription("held")
    await other.create_event_subscription(make.subscription(id="new"))
    claim = await other.subscriptions.SetSubscriptionToken(
        SetSubscriptionTokenRequest(id="new", token="new")
    )
    # Higher than all that there ever were, also those of leases that are not exported.
    leased = await own.queues.ListQueueItems(ListQueueItemsRequest(queue="work"))
    assert claim.epoch > max(item.lease.epoch for item in leased.items)
    assert claim.epoch > held.external_token_epoch > 0
    await other.subscriptions.ClearSubscriptionToken(
        ClearSubscriptionTokenRequest(id="held", token="token", epoch=held.external_token_epoch)
    )


async def test_epochs_never_go_back(own: Api) -> None:
    async def claim() -> int:
        subscription = make.subscription()
        await own.create_event_subscription(subscription)
        answer = await own.subscriptions.SetSubscriptionToken(
            SetSubscriptionTokenRequest(id=subscription.id, token="t")
        )
        return answer.epoch

    before = await claim()
    await import_(own, [Record(fence=Fence(epoch=before + 100))])
    assert await claim() == before + 101
    await import_(own, [Record(fence=Fence(epoch=before + 50))])
    assert await claim() == before + 102
    # Without a fence, the epoch of a claim does.
    held = make.subscription(external_token="t", external_token_epoch=before + 200)
    await import_(own, [Record(subscription=held)])
    assert await claim() == before + 201


async def test_revisions_never_come_again(own: Api, other: Api) -> None:
    await fill(own)
    await import_(other, await export(own))
    assert (await other.get_workflow_instance("changed")).revision == 3
    created = await other.create(make.instance(id="gone"))
    assert created > 21  # it had been written 20 times


async def test_revision_is_higher_where_workflows_were_deleted(own: Api, other: Api) -> None:
    await fill(own)  # with a floor of 21
    instance = make.instance(id="moved")
    await other.create(instance)
    exported = await export(other)
    counts = await import_(own, exported)
    assert counts.stored == 1
    moved = await own.get_workflow_instance("moved")
    assert moved.revision > 21
    assert (await import_(own, exported)).stored == 0
    # But not one whose revision is lower than the export's.
    await import_(other, [Record(fence=Fence(revision=1000))])
    later = make.instance(id="later")
    await other.create(later)
    exported = await export(other)
    await own.create(later)
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        await import_(own, exported)


async def test_repeated_create_is_recognized(own: Api, other: Api) -> None:
    instance, event, subscription = make.full_instance(), make.event(), make.subscription()
    revision = (await own.create_new_workflow(instance)).revision
    await own.create_event(event)
    await own.create_event_subscription(subscription)
    await import_(other, await export(own))
    assert (await other.create_new_workflow(instance)).revision == revision
    await other.create_event(event)
    await other.create_event_subscription(subscription)
    # Without the hash it is refused.
    bare = make.event()
    await import_(other, [Record(event=bare)])
    with fails("ALREADY_EXISTS", "EVENT_ALREADY_EXISTS"):
        await other.create_event(bare)


async def test_queue_items_keep_their_order_attempts_and_fate(own: Api, other: Api) -> None:
    at = make.time()
    names = [f"{n * 7 % 50}" for n in range(50)]
    items = [make.item("work", id=name, visible_time=at) for name in names]
    await own.queues.Enqueue(EnqueueRequest(items=items))
    await import_(other, await export(own), batch=7)
    taken = await other.queues.Dequeue(DequeueRequest(queues=["work"], max_items=50))
    assert [each.item.id for each in taken.items] == names
    dead = QueueItemRecord(item=make.item("dead", id="d", visible_time=at), is_dead=True)
    tried = QueueItemRecord(item=make.item("dead", id="t", visible_time=at), attempt=4)
    await import_(other, [Record(queue_item=dead), Record(queue_item=tried)])
    [again] = (await other.queues.Dequeue(DequeueRequest(queues=["dead"], max_items=9))).items
    assert (again.item.id, again.attempt) == ("t", 5)


async def test_an_imported_item_wakes_who_waits(own: Api) -> None:
    waiting = asyncio.ensure_future(
        own.queues.Dequeue(DequeueRequest(queues=["work"], max_items=1, wait=Duration(seconds=30)))
    )
    await asyncio.sleep(0.2)
    item = make.item("work", visible_time=make.time())
    await import_(own, [Record(queue_item=QueueItemRecord(item=item))])
    [taken] = (await waiting).items
    assert taken.item.id == item.id


async def test_sequences_and_errors_are_merged(own: Api, other: Api) -> None:
    await fill(own)
    for _ in range(5):
        await other.workflows.NextDefinitionSequence(
            NextDefinitionSequenceRequest(definition_id="b")
        )
    extra = make.error()
    await other.store.PersistErrors(PersistErrorsRequest(errors=[extra]))
    exported = await export(own)
    for _ in range(2):
        await import_(other, exported)
        numbers = {
            record.definition_sequence.definition_id: record.definition_sequence.last_number
            for record in await export(other)
            if record.HasField("definition_sequence")
        }
        assert numbers == {"a": 2, "b": 5}
        assert len((await other.list_errors()).errors) == 6


# Conflicts.


async def test_a_request_with_a_conflict_stores_nothing(own: Api, other: Api) -> None:
    await fill(own)
    exported = await export(own)
    await import_(other, exported)
    before = as_bytes(await export(other))
    changes: list[Callable[[Record], object]] = [
        lambda r: setattr(r.workflow.instance, "data_json", '"else"'),
        lambda r: setattr(r.workflow.instance, "status", 4),
        lambda r: r.workflow.instance.execution_pointers.append(make.pointer("one more")),
        lambda r: setattr(r.workflow.instance, "revision", 1000),
        lambda r: r.workflow.instance.extension_attributes_json.update({"x": "1"}),
        lambda r: setattr(r.subscription, "external_token_epoch", 10**6),
        lambda r: setattr(r.subscription, "subscription_data_json", "[1.00]"),
        lambda r: setattr(r.event, "is_processed", not r.event.is_processed),
        lambda r: setattr(r.command, "execute_time", 5),
        lambda r: setattr(r.queue, "max_attempts", 7),
        lambda r: setattr(r.queue_item, "attempt", 9),
        lambda r: setattr(r.queue_item.item, "payload_json", "1"),
        lambda r: r.retention_policy.error_age.FromSeconds(3600),
    ]
    for n, change in enumerate(changes):
        probe = Record()
        change(probe)
        kind = probe.WhichOneof("record")
        record = next(each for each in exported if each.WhichOneof("record") == kind)
        changed = Record.FromString(record.SerializeToString())
        change(changed)
        added = make.event()
        with fails("ALREADY_EXISTS", "RECORD_CONFLICT") as failure:
            await import_(other, [Record(event=added), changed])
        assert failure.metadata == {"field": "records[1]", "conflicts": "1"}, n
        assert await found(other.get_event(added.id)) is None
        skip = ConflictPolicy.CONFLICT_POLICY_SKIP
        counts = await import_(other, [record, changed][1:], on_conflict=skip)
        assert (counts.stored, counts.unchanged, counts.skipped) == (0, 0, 1), n
    after = as_bytes(await export(other))
    assert after[1:] == before[1:]  # an epoch that was refused may have been skipped


async def test_a_name_that_another_workflow_has_is_a_conflict(own: Api, other: Api) -> None:
    await own.create(make.instance(id="a", name="the one"))
    await other.create(make.instance(id="b", name="the one"))
    exported = await export(own)
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        await import_(other, exported)
    counts = await import_(other, exported, on_conflict=ConflictPolicy.CONFLICT_POLICY_SKIP)
    assert counts.skipped == 1
    assert await found(other.get_workflow_instance("a")) is None


async def test_json_is_compared_as_it_is_stored(own: Api) -> None:
    event = make.event(event_data_json='{"b": [1,2],   "a":1.0}')
    assert (await import_(own, [Record(event=event)])).stored == 1
    assert (await import_(own, [Record(event=event)])).unchanged == 1
    event.event_data_json = '{"a": 1.0, "b": [1, 2]}'
    assert (await import_(own, [Record(event=event)])).unchanged == 1
    event.event_data_json = '{"a": 1.00, "b": [1, 2]}'
    with fails("ALREADY_EXISTS", "RECORD_CONFLICT"):
        await import_(own, [Record(event=event)])


# What is refused.


async def test_a_record_is_something_and_of_no_id_two(own: Api) -> None:
    with invalid("records[0].record", reason="REQUIRED"):
        await import_(own, [Record()])
    event = Record(event=make.event())
    with invalid("records[1].event.id", reason="DUPLICATE"):
        await import_(own, [event, event])
    with invalid("records", reason="NUMBER_RANGE"):
        await import_(own, [event] * 1001, batch=1001)
    with invalid("records[0].creation_hash", reason="FORMAT"):
        await import_(own, [Record(event=make.event(), creation_hash=b"short")])
    with invalid("records[0].creation_hash", reason="FORMAT"):
        await import_(own, [Record(command=make.command(), creation_hash=bytes(32))])
    assert len(await export(own)) == 2


async def test_what_a_create_may_leave_out_an_import_may_not(own: Api) -> None:
    instance = make.instance(id="a", revision=1)
    for path, record in {
        "records[0].workflow.instance": Record(workflow=WorkflowRecord(first_revision=1)),
        "records[0].workflow.instance.name": Record(
            workflow=WorkflowRecord(instance=instance, first_revision=1)
        ),
        "records[0].event.id": Record(event=make.event(id="")),
        "records[0].subscription.id": Record(subscription=make.subscription(id="")),
        "records[0].queue_item.item.visible_time": Record(
            queue_item=QueueItemRecord(item=make.item("work"))
        ),
    }.items():
        with invalid(path, reason="REQUIRED"):
            await import_(own, [record])
    instance.name = "a"
    for revision in (0, -1):
        instance.revision = revision
        with invalid("records[0].workflow.instance.revision", reason="NUMBER_RANGE"):
            record = Record(workflow=WorkflowRecord(instance=instance, first_revision=1))
            await import_(own, [record])


async def test_each_request_has_its_answer_and_those_before_an_error_are_stored(own: Api) -> None:
    events = [make.event() for _ in range(3)]

    async def requests() -> AsyncIterator[ImportRecordsRequest]:
        yield ImportRecordsRequest(records=[Record(event=events[0])])
        yield ImportRecordsRequest()
        yield ImportRecordsRequest(records=[Record(event=events[1]), Record()])
        yield ImportRecordsRequest(records=[Record(event=events[2])])

    answers = []
    with fails("INVALID_ARGUMENT", "INVALID_FIELD"):
        async for answer in own.transfer.ImportRecords(requests()):
            answers.append(answer)
    assert [answer.stored for answer in answers] == [1, 0]
    assert await found(own.get_event(events[0].id)) is not None
    assert await found(own.get_event(events[1].id)) is None
    assert await found(own.get_event(events[2].id)) is None
    with fails("INVALID_ARGUMENT", "MALFORMED_MESSAGE"):
        async for _ in own.transfer.ImportRecords(iter([])):
            pass


# Any values.


async def test_any_records_come_back_the_same(own: Api, other: Api) -> None:
    skip = ConflictPolicy.CONFLICT_POLICY_SKIP
    for seed in range(3):
        records = odd_records(seed)
        await import_(own, records, on_conflict=skip)
        exported = await export(own)
        assert len(exported) > len(records) // 2
        await import_(other, exported, batch=13)
        assert as_bytes(await export(other)) == as_bytes(exported)


def odd_records(seed: int) -> list[Record]:
    """Records with odd values in all fields, the same for the same number."""
    found: list[Record] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=60,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategies.records())
    def collect(record: Record) -> None:
        found.append(record)

    collect()
    return found
