"""`wfe-persistence suspend | resume | terminate | delete`: what an operator does to workflows.

Each workflow is one transaction: it is written as it was read (`expected_revision`), and not while
a host runs it, which would write back what it had read before. What happened is published in the
same transaction.
"""

from __future__ import annotations

import asyncio
import getpass
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from wfe_persistence_cli import times
from wfe_persistence_cli.calling import Caller, calls_server, confirm
from wfe_persistence_cli.diagnosis import first
from wfe_persistence_cli.finding import find, title_of
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import CONFLICT, EPILOG
from wfe_persistence_cli.target import ClientCommand
from wfe_persistence_cli.text import counted

if TYPE_CHECKING:
    from wfe_persistence_client import (
        HeaderChanges,
        PersistenceProvider,
        QueueItem,
        WorkflowInstance,
    )

# How long the lock on a workflow is held at most, if this program is killed.
_LOCK_SECONDS: Final = 30
# How often it is looked whether a worker has ended.
_LOOK_SECONDS: Final = 0.2
_ENDED: Final = ("COMPLETE", "TERMINATED")


class _RefusedError(Exception):
    """A workflow is not changed; the message says why."""


def _changes_workflows(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the workflows that it changes, and how."""

    @wraps(command)
    def with_arguments(**arguments: Any) -> None:
        command(**arguments)

    for option in (
        click.option(
            "--force",
            is_flag=True,
            help="Also if a host is running it: what that writes may undo the change.",
        ),
        click.option(
            "--wait",
            type=click.FloatRange(0, 60),
            default=5.0,
            show_default=True,
            help="How long to wait for a host that is running it (seconds).",
        ),
    ):
        with_arguments = option(with_arguments)
    return click.argument("workflows", nargs=-1, required=True, metavar="WORKFLOW…")(
        calls_server(with_arguments)
    )


_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Suspend workflows.")
@_changes_workflows
def suspend(call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float) -> None:
    """Suspend workflows (ids or names), so that no host runs them until they are resumed.

    \b
    Example: wfe-persistence suspend order-42
    """

    def header(instance: WorkflowInstance) -> HeaderChanges | None:
        from wfe_persistence_client import WorkflowStatus

        _refuse_ended(instance, "suspended")
        if instance.status is WorkflowStatus.SUSPENDED:
            return None
        return {"status": WorkflowStatus.SUSPENDED}

    _change(call, workflows, "SUSPENDED", header, force=force, wait=wait)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Resume suspended workflows.")
@_changes_workflows
def resume(call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float) -> None:
    """Resume suspended workflows (ids or names): hosts go on with them.

    One that has no time to be run is to be run now, so that a host looks at it. Where there are
    queues for workflows, it is enqueued there, too.

    \b
    Example: wfe-persistence resume order-42
    """

    def header(instance: WorkflowInstance) -> HeaderChanges | None:
        from wfe_persistence_client import WorkflowStatus

        _refuse_ended(instance, "resumed")
        if instance.status is WorkflowStatus.RUNNABLE:
            return None
        changes: HeaderChanges = {"status": WorkflowStatus.RUNNABLE}
        if instance.next_execution is None:
            changes["next_execution"] = int(times.now().timestamp() * 1000)
        return changes

    _change(call, workflows, "RESUMED", header, force=force, wait=wait, enqueues=True)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="End workflows for good.")
@_changes_workflows
@_yes_option
def terminate(
    call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float, yes: bool
) -> None:
    """End workflows (ids or names) for good, as they are. Steps are not undone; what they wait for
    stays until the workflow is deleted.

    \b
    Example: wfe-persistence terminate order-42
    """
    found = call.run(lambda provider: _find_all(provider, workflows))
    confirm(f"Terminate {_named(found)}?", yes=yes)

    def header(instance: WorkflowInstance) -> HeaderChanges | None:
        from wfe_persistence_client import WorkflowStatus

        if instance.status is WorkflowStatus.TERMINATED:
            return None
        _refuse_ended(instance, "terminated")
        return {"status": WorkflowStatus.TERMINATED, "complete_time": times.now()}

    ids = [instance.id for instance in found]
    _change(call, ids, "TERMINATED", header, force=force, wait=wait)


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Delete workflows.")
@_changes_workflows
@_yes_option
def delete(
    call: Caller, *, workflows: tuple[str, ...], force: bool, wait: float, yes: bool
) -> None:
    """Delete workflows (ids or names), whatever their status, with their execution pointers,
    subscriptions and logged errors. Workflows below them, events and commands stay.

    \b
    Example: wfe-persistence delete order-41
    """
    found = call.run(lambda provider: _find_all(provider, workflows))
    confirm(f"Delete {_named(found)}? It can't be undone.", yes=yes)

    async def body(provider: PersistenceProvider) -> None:
        for instance in found:
            async with _Lock(provider, instance, force=force, wait=wait):
                # Only what was shown: not one that has been changed since.
                await provider.delete_workflow(instance.id, expected_revision=instance.revision)
            tell(f"{title_of(instance)}: deleted")

    _refusals_shown(call, body)


def _refuse_ended(instance: WorkflowInstance, what: str) -> None:
    if instance.status.name in _ENDED:
        raise _RefusedError(f"is {instance.status.name}, and can't be {what}")


async def _find_all(
    provider: PersistenceProvider, names: tuple[str, ...]
) -> list[WorkflowInstance]:
    """The workflows, each once. Raises WorkflowNotFound before anything is changed."""
    found = {}
    for name in names:
        instance = await find(provider, name)
        found[instance.id] = instance
    return list(found.values())


def _named(found: list[WorkflowInstance]) -> str:
    """What is asked about: the first few by their names, with their statuses."""
    few = ", ".join(f"{title_of(each)}, which is {each.status.name}" for each in found[:3])
    if len(found) <= 3:
        return few
    return f"{counted(len(found), 'workflow')}: {few}, …"


def _change(
    call: Caller,
    names: tuple[str, ...] | list[str],
    event: str,
    header: Callable[[WorkflowInstance], HeaderChanges | None],
    *,
    force: bool,
    wait: float,
    enqueues: bool = False,
) -> None:
    """Change workflows. `header`: the changes of one; None: it is so already."""

    async def body(provider: PersistenceProvider) -> None:
        found = await _find_all(provider, tuple(names))
        queues = await _queues(provider) if enqueues else []
        for instance in found:
            await _change_one(provider, instance.id, event, header, queues, force, wait)

    _refusals_shown(call, body)


async def _change_one(
    provider: PersistenceProvider,
    id_: str,
    event: str,
    header: Callable[[WorkflowInstance], HeaderChanges | None],
    queues: list[str],
    force: bool,
    wait: float,
) -> None:
    from wfe_persistence_client import (
        LifecycleEvent,
        LifecycleEventType,
        QueueItem,
        WorkflowPatch,
    )

    instance = await find(provider, id_)
    title = title_of(instance)
    async with _Lock(provider, instance, force=force, wait=wait) as token:
        # Read again: a host may have gone on with it until it released the lock.
        instance = await find(provider, id_)
        try:
            changes = header(instance)
        except _RefusedError as exc:
            raise _RefusedError(f"{title} {exc}") from None
        if changes is None:
            tell(f"{title}: is {instance.status.name} already")
            return
        happened = LifecycleEvent(
            type=LifecycleEventType[event],
            workflow_id=instance.id,
            workflow_definition_id=instance.workflow_definition_id,
            version=instance.version,
            reference=instance.reference,
            message=f"by {_me()}",
        )
        items: list[QueueItem] = [QueueItem(queue=queue, id=instance.id) for queue in queues]
        await provider.commit_workflow(
            WorkflowPatch(id=instance.id, header=changes),
            expected_revision=instance.revision,
            held_lock_tokens=[token] if token else [],
            enqueue=items,
            publish=[happened],
        )
    tell(f"{title}: {instance.status.name} → {changes['status'].name}")


async def _queues(provider: PersistenceProvider) -> list[str]:
    """The queues whose items stand for workflows."""
    from wfe_persistence_client import QueueKind, Unimplemented

    try:
        stats = await provider.get_queue_stats()
    except Unimplemented:
        return []
    return [each.queue for each in stats if each.kind is QueueKind.WORKFLOW]


class _Lock:
    """The lock on a workflow, as a host holds it that runs it; with `force`, only if it is free.
    As a context manager, whose value is its token; None: it is not held.

    Hosts that take their work from the server's queues hold no lock while they run a workflow, but
    its item under a lease; so that has to have ended, too.
    """

    def __init__(
        self, provider: PersistenceProvider, instance: WorkflowInstance, *, force: bool, wait: float
    ) -> None:
        # A replica might not know yet who runs it.
        self._provider = provider.with_reads("primary")
        self._id = instance.id
        self._title = title_of(instance)
        self._force = force
        self._wait = 0.0 if force else wait
        self._token: str | None = None

    async def __aenter__(self) -> str | None:
        from wfe_persistence_client import Unimplemented

        until = time.monotonic() + self._wait
        try:
            acquired = await self._provider.acquire_lock(
                self._id,
                owner=_me(),
                ttl=timedelta(seconds=_LOCK_SECONDS + self._wait),
                wait=timedelta(seconds=self._wait),
            )
        except Unimplemented:
            return None  # a server without locks and queues
        if acquired is None:
            if self._force:
                return None
            held = await first(self._provider.iter_locks(resource_prefix=self._id, page_size=1))
            self._refuse(held[0].owner if held else "", "the lock on it")
        self._token = acquired.token
        try:
            # What is counted there takes time, so only once.
            queues = [] if self._force else await _queues(self._provider)
            while (worker := await self._worker(queues)) is not None:
                if time.monotonic() >= until:
                    self._refuse(worker, "its item of a queue")
                await asyncio.sleep(_LOOK_SECONDS)
        except BaseException:
            await self.__aexit__()
            raise
        return self._token

    async def __aexit__(self, *_: object) -> None:
        if self._token is not None:
            await self._provider.release_lock(self._token)

    async def _worker(self, queues: list[str]) -> str | None:
        """Who runs it; None: nobody."""
        for queue in queues:
            for listed in await self._provider.list_queue_items(queue, item_id=self._id):
                if listed.lease is not None:
                    return listed.lease.worker_id
        return None

    def _refuse(self, holder: str, what: str) -> NoReturn:
        raise _RefusedError(
            f"{self._title} is being run: {holder or 'somebody'} holds {what}. It was not changed; "
            "--force changes it all the same"
        )


def _refusals_shown(call: Caller, body: Callable[[PersistenceProvider], Any]) -> None:
    try:
        call.run(body)
    except _RefusedError as exc:
        tell(str(exc))
        sys.exit(CONFLICT)


def _me() -> str:
    """Who does it, for those who look at locks and lifecycle events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = "somebody"
    return f"wfe-persistence: {user}@{socket.gethostname()}"
