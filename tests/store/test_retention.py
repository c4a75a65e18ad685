"""Batches of retention beside other servers: one at a time, from where the last one ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC
from typing import Any, Final

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from wfe.persistence.v1.store_pb2 import RetentionPolicy, TableStorage, WorkflowRetention
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus
from wfe_persistence.store import event, retention, storage, workflow
from wfe_persistence.store.retention import Batch, Rule
from wfe_persistence.store.rows import text
from wfe_persistence.store.tables import Store

MINUTE: Final = Duration(seconds=60)
POLICY: Final = RetentionPolicy(
    workflows=[WorkflowRetention(complete_age=MINUTE)],
    processed_event_age=MINUTE,
    error_age=MINUTE,
    overdue_command_age=MINUTE,
)


@pytest.fixture
async def other(store: Store, database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of somebody else."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


async def delete(store: Store, rule: Rule, most: int = 1000, per_row: float = 0) -> Batch:
    turn = (text(rule.id), b"3600", repr(per_row).encode())
    return await retention.batch(store, rule, most, *turn)


async def the_rule(store: Store, kind: str) -> Rule:
    [rule] = [rule for rule in await retention.rules(store, due=False) if rule.kind == kind]
    return rule


async def ended(store: Store, number: int) -> None:
    for n in range(number):
        await workflow.create_new_workflow(
            store,
            make.instance(
                status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE, complete_time=make.time(n)
            ),
        )


@pytest.mark.parametrize("kind", ["Complete", "Event", "Error", "Command"])
async def test_one_server_at_a_time_has_the_turn(
    store: Store, other: psycopg.AsyncConnection[Any], kind: str
) -> None:
    await ended(store, 3)
    await event.create_event(store, make.event(is_processed=True))
    await retention.set_retention_policy(store, POLICY)
    rule = await the_rule(store, kind)
    async with other.transaction():
        # As another server does within its batch.
        await other.execute("SELECT FROM wfc.retention_rules WHERE kind = %s FOR UPDATE", [kind])
        beside = await delete(store, rule)
        assert (beside.rows, beside.is_last) == (0, True)
    alone = await delete(store, rule)
    assert alone.rows == {"Complete": 3, "Event": 1}.get(kind, 0)
    # The pass is over, and the next one is due in an hour.
    assert kind not in {each.kind for each in await retention.rules(store, due=True)}
    await ended(store, 1)
    assert (await delete(store, await the_rule(store, kind))).rows == 0


async def test_a_pass_goes_on_where_another_server_ended(store: Store) -> None:
    await ended(store, 5)
    await retention.set_retention_policy(store, POLICY)
    first = await the_rule(store, "Complete")
    assert (await delete(store, first, 2)).rows == 2
    stale = await delete(store, first, 2)  # by a server that has not seen that
    assert (stale.rows, stale.is_last) == (0, True)
    second = await the_rule(store, "Complete")
    assert second.after is not None
    done = await delete(store, second)
    assert (done.rows, done.is_last) == (3, True)
    assert (await the_rule(store, "Complete")).after is None
    assert (await retention.get_retention_policy(store)).deleted_rows == 5


async def test_the_next_batch_must_wait_for_as_long_as_the_budget_says(store: Store) -> None:
    await ended(store, 5)
    await retention.set_retention_policy(store, POLICY)
    rule = await the_rule(store, "Complete")
    batch = await delete(store, rule, 2, per_row=1000)
    assert (batch.rows, batch.is_last) == (2, False)
    early = await delete(store, replace(rule, after=batch.next), 2)
    assert (early.rows, early.is_last) == (0, True)
    await retention.run_retention(store)
    assert (await delete(store, await the_rule(store, "Complete"))).rows == 3


async def test_a_rule_that_was_replaced_deletes_nothing(store: Store) -> None:
    await ended(store, 2)
    await retention.set_retention_policy(store, POLICY)
    rule = await the_rule(store, "Complete")
    await retention.set_retention_policy(store, POLICY)
    assert (await delete(store, rule)).rows == 0
    assert (await delete(store, await the_rule(store, "Complete"))).rows == 2


async def test_bloat_is_what_rows_that_have_gone_leave_once_it_is_known(
    store: Store, other: psycopg.AsyncConnection[Any]
) -> None:
    await ended(store, 100)

    async def workflows() -> TableStorage:
        report = await storage.get_storage_report(store, 1)
        [found] = [each for each in report.tables if each.name == "workflows"]
        return found

    await other.execute("DELETE FROM pg_statistic WHERE starelid = 'wfc.workflows'::regclass")
    assert not (await workflows()).HasField("bloat_bytes")
    await other.execute("ANALYZE wfc.workflows")
    full = await workflows()
    assert full.estimated_rows == 100
    last = make.time(9).ToDatetime(UTC)
    await other.execute("DELETE FROM wfc.workflows WHERE complete_time > %s", [last])
    await other.execute("ANALYZE wfc.workflows")
    empty = await workflows()
    assert empty.estimated_rows == 10
    assert full.bloat_bytes < full.table_bytes / 2 < empty.bloat_bytes <= empty.table_bytes
