"""A name that another workflow has: the error names the field, with a table prefix too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.workflow_pb2 import CommitWorkflowRequest, WorkflowInstance
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import commit, workflow
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


@pytest.fixture(params=["", "mine_"])
async def names(request: pytest.FixtureRequest, database: Database) -> Store:
    schema = Schema(table_prefix=request.param)
    await migrate(database.source, schema)
    return Store(database, schema, "default")


def whole(instance: WorkflowInstance) -> CommitWorkflowRequest:
    return CommitWorkflowRequest(instance=instance)


def patch(instance: WorkflowInstance) -> CommitWorkflowRequest:
    request = CommitWorkflowRequest(expected_revision=1)
    request.patch.id = instance.id
    request.patch.header.name = instance.name
    request.patch.header_mask.paths.append("name")
    return request


@pytest.mark.parametrize(
    ("request_with", "field"), [(whole, "instance.name"), (patch, "patch.header.name")]
)
async def test_taken_name_is_the_error_of_its_field(
    names: Store, request_with: Callable[[WorkflowInstance], CommitWorkflowRequest], field: str
) -> None:
    first, second = make.instance(name="first"), make.instance(name="second")
    for instance in (first, second):
        await workflow.create_new_workflow(names, instance)
    second.name = first.name
    request = request_with(second)
    with pytest.raises(PersistenceError) as caught:
        await commit.commit_workflow(names, request, RequestKey(request))
    assert caught.value.reason == ErrorReason.ERROR_REASON_NAME_TAKEN
    assert caught.value.metadata == {"field": field}
