"""Requests are remembered for as long as promised, and not for ever."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from tests.support import make
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    WorkflowPatch,
)
from wfe_persistence.store import commit, workflow
from wfe_persistence.store.request_key import REQUEST_RETENTION_SECONDS, RequestKey
from wfe_persistence.store.tables import Store

REMEMBER = """
INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision, create_time)
SELECT 'another', gen_random_uuid(), '', 1, now() - %s * interval '1 second'
FROM generate_series(1, %s)
"""


def remembered(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM wfc.requests").fetchone()
    assert row
    count: int = row[0]
    return count


async def persist(store: Store, id_: str) -> None:
    request = PersistWorkflowRequest(instance=make.instance(id=id_), request_id=str(uuid.uuid4()))
    await commit.persist_workflow(store, request, (), RequestKey(request))


async def test_old_requests_are_forgotten_faster_than_new_ones_come(
    store: Store, database_url: str
) -> None:
    instance = make.instance()
    await workflow.create_new_workflow(store, instance)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(REMEMBER.encode(), [REQUEST_RETENTION_SECONDS + 1, 10])
    for _ in range(5):
        await persist(store, instance.id)
    assert remembered(database_url) == 5
    await persist(store, instance.id)
    assert remembered(database_url) == 6


async def test_requests_of_the_promised_time_are_remembered(
    store: Store, database_url: str
) -> None:
    instance = make.instance()
    await workflow.create_new_workflow(store, instance)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(REMEMBER.encode(), [REQUEST_RETENTION_SECONDS - 60, 10])
    for _ in range(5):
        await persist(store, instance.id)
    assert remembered(database_url) == 15


@pytest.mark.parametrize("enqueue", [(), [QueueItem(queue="q", id="i")]], ids=["patch", "step"])
async def test_one_of_many_patches_forgets_for_all(
    store: Store, database_url: str, enqueue: list[QueueItem]
) -> None:
    """The first of all and then every 32nd, 64 each: twice as many as patches add."""
    instance = make.instance()
    revision = await workflow.create_new_workflow(store, instance)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(REMEMBER.encode(), [REQUEST_RETENTION_SECONDS + 1, 100])
        connection.execute(REMEMBER.encode(), [REQUEST_RETENTION_SECONDS - 60, 10])

    async def patch(request_id: str) -> None:
        nonlocal revision
        request = CommitWorkflowRequest(
            patch=WorkflowPatch(id=instance.id),
            expected_revision=revision,
            enqueue=enqueue,
            request_id=request_id,
        )
        revision = (await commit.commit_workflow(store, request, RequestKey(request))).revision

    await patch(str(uuid.uuid4()))
    assert remembered(database_url) == 110 - 64 + 1
    await patch("")
    for _ in range(31):
        await patch(str(uuid.uuid4()))
    assert remembered(database_url) == 110 - 64 + 32
    await patch(str(uuid.uuid4()))
    assert remembered(database_url) == 10 + 33
