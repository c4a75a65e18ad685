"""Names of workflows in a namespace set, each had by one workflow at a time.

A name that is not the workflow's id is held in the member to which the name belongs, while the
workflow is in that of its id: two transactions. So a name is taken in three steps:

1. a lock in the workflow's member, on the workflow and the name;
2. the name, in its own member, under a new claim;
3. the write of the workflow, which the server refuses unless the lock is still held.

A host that dies in between leaves a name that no workflow has. Whoever wants it next finds the lock
free and the workflow absent (or with another name), and takes the name over, if the claim is still
the same. The host that was believed dead can't write any more: its lock is lost, and with a new one
it has to claim the name anew.
"""

import copy
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from typing import Final

from wfe_persistence_client.connection import new_id
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import NameTaken, PersistenceError, WorkflowNotFound
from wfe_persistence_client.model import (
    NameHolder,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.members import SetMembers

#: How long a host has from the lock to the write, and others wait for the name of one that died.
NAME_TTL: Final = timedelta(seconds=30)


def name_lock(workflow_id: str, name: str) -> str:
    """The resource that is locked, in the workflow's member, while a name is taken for it."""
    parts = [sha256(text.encode()).hexdigest()[:32] for text in (workflow_id, name)]
    return "wfe-set-name:" + ":".join(parts)


class SetNames(SetMembers):
    """Takes names and gives them up."""

    @asynccontextmanager
    async def _under_name(self, id_: str, name: str) -> AsyncGenerator[list[str], None]:
        """Inside the block the name is the workflow's; gives the tokens of the locks that must be
        held for the write. None for a name that need not be taken: no name, or the id."""
        if not name or name == id_:
            yield []
            return
        member = await self._of(id_)
        end = Deadline(self._calls.timeout)
        lock = None
        while lock is None:
            wait = timedelta(seconds=min(max(end.remaining(), 0.0), 60.0))
            lock = await member.acquire_lock(
                name_lock(id_, name), owner="name", ttl=NAME_TTL, wait=wait
            )
            if lock is None and end.remaining() <= 0:
                raise _taken()
        try:
            await self._take_name(name, id_)
            yield [lock.token]
            self._set.remember(id_, name)
        finally:
            # If that fails, it expires.
            with suppress(PersistenceError):
                await member.release_lock(lock.token)

    async def _take_name(self, name: str, workflow_id: str) -> None:
        keeper = await self._of(name)
        claim_id = new_id()
        before = ""
        while True:
            holder = await keeper.set_name_holder(
                name, workflow_id, claim_id=claim_id, expected_claim_id=before
            )
            if holder.claim_id == claim_id:
                return
            before = holder.claim_id
            if not holder.workflow_id or holder.workflow_id == workflow_id:
                # It has been given up, or is that of an earlier attempt for the same workflow.
                continue
            if not await self._is_abandoned(holder, name):
                raise _taken()

    async def _is_abandoned(self, holder: NameHolder, name: str) -> bool:
        """Whether a name can be taken over: its holder neither has it nor can get it any more,
        under the claim that was read before."""
        if not holder.claim_id:
            return False
        # A replica might have neither yet.
        member = (await self._of(holder.workflow_id)).with_reads("primary")
        # In this order: with the lock gone, what is not written will not be.
        resource = name_lock(holder.workflow_id, name)
        if await member.list_locks(resource_prefix=resource):
            return False
        return not await _has_name(member, holder.workflow_id, name)

    async def get_workflow_instance_by_name(
        self, name: str, *, view: WorkflowView = WorkflowView.FULL
    ) -> WorkflowInstance:
        """As of a single namespace; a name that a workflow took comes before an id."""
        keeper = await self._of(name)
        holder = await keeper.get_name_holder(name)
        if holder is not None:
            with suppress(WorkflowNotFound):
                member = await self._of(holder.workflow_id)
                instance = await member.get_workflow_instance(holder.workflow_id, view=view)
                if instance.name == name:
                    self._set.remember(instance.id, name)
                    return instance
        return await keeper.get_workflow_instance_by_name(name, view=view)

    async def delete_workflow(
        self, workflow_id: str, *, expected_revision: int | None = None
    ) -> None:
        """As of a single namespace; then its name is given up."""
        member = await self._of(workflow_id)
        with suppress(WorkflowNotFound):
            header = await member.get_workflow_instance(workflow_id, view=WorkflowView.HEADER)
            self._set.names.pop(workflow_id, None)
            await member.delete_workflow(workflow_id, expected_revision=expected_revision)
            if header.name != workflow_id:
                # Otherwise it is taken over by the next who wants it.
                with suppress(PersistenceError):
                    await self._give_up(header.name, workflow_id)
            return
        await member.delete_workflow(workflow_id, expected_revision=expected_revision)

    async def _give_up(self, name: str, workflow_id: str) -> None:
        """Gives a name up that a workflow had, unless it has been created again meanwhile, or is
        being: the same conditions as for taking it over, under the claim that was read first."""
        keeper = await self._of(name)
        holder = await keeper.with_reads("primary").get_name_holder(name)
        if holder is None or holder.workflow_id != workflow_id:
            return
        if await self._is_abandoned(holder, name):
            await keeper.set_name_holder(name, "", expected_claim_id=holder.claim_id)

    def _without_known_name(self, instance: WorkflowInstance) -> WorkflowInstance:
        """The workflow to write: without its name, which then stays, if it is known to have that.
        So it need not be taken, nor is one written that has been taken from it meanwhile."""
        given = copy.copy(instance)
        if self._set.names.get(given.id) == given.name:
            given.name = ""
        return given


async def _has_name(member: PersistenceProvider, workflow_id: str, name: str) -> bool:
    try:
        found = await member.get_workflow_instance(workflow_id, view=WorkflowView.HEADER)
    except WorkflowNotFound:
        return False
    return found.name == name


def _taken() -> NameTaken:
    return NameTaken(
        "another workflow of the namespace set has this name, or is being given it",
        reason="NAME_TAKEN",
        metadata={"field": "instance.name"},
    )
