"""What the writes of clients look like, so that what is stored tells which were made.

Every write to a workflow has a tag of its own, which the workflow's data and all its pointers
carry. A commit also creates an event with its item and a command with the tag and, unless the
workflow is shared, replaces its subscription by one with the tag. So what is stored tells which
writes were made, and whether as a whole.
"""

from __future__ import annotations

import json

from tests.support import make
from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, WorkflowInstance

SHARED_WORKFLOWS = [f"shared-{i}" for i in range(3)]
"""Every client commits to these, so that commits collide."""
SHARED_SUBSCRIPTIONS = [f"held-{i}" for i in range(3)]
"""Every client wants to hold these."""
SHARED_RESOURCES = [f"locked-{i}" for i in range(3)]
"""Every client wants to lock these."""
EVENT_NAME = "chaos"
QUEUE = "chaos"


def tagged(id_: str, tag: str, pointers: int) -> WorkflowInstance:
    """A workflow that carries a tag everywhere."""
    return make.instance(
        id=id_, data_json=json.dumps(tag), execution_pointers=tagged_pointers(tag, pointers)
    )


def tagged_pointers(tag: str, number: int) -> list[ExecutionPointer]:
    return [make.pointer(f"p{i}", outcome_json=json.dumps(tag)) for i in range(number)]


def tags_of(instance: WorkflowInstance) -> list[str]:
    """The different tags that a workflow carries: one, unless it is a mix."""
    texts = {instance.data_json, *(p.outcome_json for p in instance.execution_pointers)}
    return sorted(json.loads(text) for text in texts)
