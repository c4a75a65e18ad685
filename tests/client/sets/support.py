"""What tests of namespace sets need: ids by member, and counts of where things are."""

import itertools
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.client.sets.conftest import MEMBERS
from wfe_persistence_client import NamespaceSetProvider, PersistenceProvider, WorkflowInstance
from wfe_persistence_client.sets.routing import member_of


def new_id(index: int | None = None) -> str:
    """A new id, that belongs to a certain member."""
    for _ in itertools.count():
        id_ = str(uuid.uuid4())
        if index is None or member_of(id_, MEMBERS) == index:
            return id_
    raise AssertionError


def workflow(id_: str = "", **fields: Any) -> WorkflowInstance:
    """A workflow to create."""
    return WorkflowInstance(
        id=id_,
        **{
            "workflow_definition_id": "d",
            "version": 1,
            "data": None,
            "create_time": datetime(2026, 1, 1, tzinfo=UTC),
            **fields,
        },
    )


def member(orders: NamespaceSetProvider, index: int) -> PersistenceProvider:
    """The provider of one member."""
    return orders.with_namespace(f"orders_{index}")
