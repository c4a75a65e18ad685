"""Workflows as people name them: by an id, or by a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider, WorkflowInstance, WorkflowView


async def find(
    provider: PersistenceProvider, name: str, view: WorkflowView | None = None
) -> WorkflowInstance:
    """The workflow with this id or, if there is none, with this name; by default its header.

    Raises WorkflowNotFound.
    """
    from wfe_persistence_client import WorkflowNotFound, WorkflowView

    view = view or WorkflowView.HEADER
    try:
        return await provider.get_workflow_instance(name, view=view)
    except WorkflowNotFound:
        pass
    try:
        return await provider.get_workflow_instance_by_name(name, view=view)
    except WorkflowNotFound as exc:
        raise WorkflowNotFound(
            f"no workflow has the id or the name {name!r}", reason=exc.reason, status=exc.status
        ) from None


def title_of(instance: WorkflowInstance) -> str:
    """What people know it by: its name, and its id if that is another."""
    return instance.name if instance.name == instance.id else f"{instance.name} ({instance.id})"
