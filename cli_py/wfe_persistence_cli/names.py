"""Completion of names that a server knows, for the shells: soon, or not at all.

Nothing is said when the server is away, refuses, or is slow: whoever types goes on typing. What is
offered is put on a command line as it is, and shells read more into a line than letters; so only
names are offered that no shell takes for anything else.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from wfe_persistence_cli.target import resolve_begun
from wfe_persistence_cli.text import harmless

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider

_SECONDS: Final = 1.0
"""For the call, the connection included, if no --timeout is on the line."""
_MOST: Final = 50

# (No colon, equals sign or at sign: bash ends words there.)
_PLAIN: Final = re.compile(r"\w[\w.%+/-]*")

Found = AsyncIterator[tuple[str, str]]
"""Names, each with what is said beside it."""
Ask = Callable[["PersistenceProvider", click.Context, str], Found]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completed_by(ask: Ask) -> Complete:
    """How a parameter is completed: with what `ask` finds for what has been typed so far."""

    def complete(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
        # gRPC tells the terminal what it thinks of a server that is away.
        os.environ["GRPC_VERBOSITY"] = "NONE"
        import wfe_persistence_client  # noqa: F401 — takes its time, but waits for nobody

        chosen = context.get_parameter_source("timeout") is ParameterSource.COMMANDLINE
        seconds: float = context.params["timeout"] if chosen else _SECONDS
        # Whatever happens, such as a name that is not resolved, the shell has its prompt back.
        end = threading.Timer(2 * seconds, os._exit, [0])
        end.daemon = True
        end.start()
        found: list[CompletionItem] = []
        # What is wrong with the server, the options or a file is said when the command is run.
        try:
            with suppress(Exception):
                asyncio.run(_ask(ask, context, begun, seconds, found))
        finally:
            end.cancel()
        return found

    return complete


async def _ask(
    ask: Ask, context: click.Context, begun: str, seconds: float, found: list[CompletionItem]
) -> None:
    target = replace(resolve_begun(context), timeout=seconds)
    async with asyncio.timeout(seconds), target.connect() as provider:
        seen = set()
        async for name, said in ask(provider, context, begun):
            if name.startswith(begun) and name not in seen and _PLAIN.fullmatch(name):
                seen.add(name)
                found.append(CompletionItem(name, help=harmless(said) or None))
                if len(found) == _MOST:
                    return


def workflows(*statuses: str) -> Complete:
    """The names of workflows with one of these statuses, the newest first; none: with any."""

    async def ask(provider: PersistenceProvider, _: click.Context, begun: str) -> Found:
        from wfe_persistence_client import WorkflowFilter, WorkflowStatus

        chosen = WorkflowFilter(
            name_prefix=begun, statuses=[WorkflowStatus[status] for status in statuses]
        )
        async for each in provider.iter_workflows(chosen, page_size=_MOST):
            yield each.name, f"{each.status.name}, {each.workflow_definition_id}"

    return completed_by(ask)


async def _namespaces(provider: PersistenceProvider, _: click.Context, __: str) -> Found:
    for each in await provider.list_namespaces():
        yield each.name, ""


async def _queues(provider: PersistenceProvider, _: click.Context, __: str) -> Found:
    for each in await provider.get_queue_stats():
        yield each.queue, f"{each.waiting} waiting, {each.leased} leased, {each.dead} dead"


async def _locks(provider: PersistenceProvider, _: click.Context, begun: str) -> Found:
    async for each in provider.iter_locks(resource_prefix=begun, page_size=_MOST):
        yield each.resource, each.owner


async def _held_subscriptions(provider: PersistenceProvider, _: click.Context, __: str) -> Found:
    async for each in provider.iter_all_subscriptions(held=True, page_size=1000):
        yield each.id, f"{each.event_name} {each.event_key}"


async def _leased_commands(provider: PersistenceProvider, context: click.Context, _: str) -> Found:
    from wfe_persistence_client import CommandName

    name = CommandName[context.params["name"].upper()]
    async for each in provider.iter_commands(command_name=name, leased=True, page_size=1000):
        yield each.command.data, each.lease.worker_id if each.lease else ""


def items(*states: str) -> Complete:
    """The ids of items of the queue that is named before, in one of these states."""

    async def ask(provider: PersistenceProvider, context: click.Context, _: str) -> Found:
        from wfe_persistence_client import QueueItemState

        for state in states:
            async for each in provider.iter_queue_items(
                context.params["queue"], state=QueueItemState[state], page_size=1000
            ):
                yield each.item.id, each.state.name

    return completed_by(ask)


namespaces: Final = completed_by(_namespaces)
"""The names of namespaces."""
queues: Final = completed_by(_queues)
"""The names of queues."""
locks: Final = completed_by(_locks)
"""The resources of locks that are held."""
held_subscriptions: Final = completed_by(_held_subscriptions)
"""The ids of subscriptions that are held."""
leased_commands: Final = completed_by(_leased_commands)
"""The data of commands under a lease, of the name that stands before."""
