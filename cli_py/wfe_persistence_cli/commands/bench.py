"""`wfe-persistence bench`: how fast a server is from here."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, aiter_of, output_option
from wfe_persistence_cli.progress import Progress, progress_option
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import EPILOG, INTERRUPTED
from wfe_persistence_cli.table import Column
from wfe_persistence_cli.text import counted

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider

DEFINITION = "wfe-persistence-bench"
"""The definition of its workflows. They are SUSPENDED, so no host runs them."""


@click.command(cls=ClientCommand, epilog=EPILOG, short_help="Measure a server from here.")
@calls_server
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="For how long.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="How many calls at a time.",
)
@click.option(
    "--pointers",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="How many execution pointers a workflow has.",
)
@progress_option
@output_option
def bench(
    call: Caller,
    *,
    seconds: float,
    concurrency: int,
    pointers: int,
    progress: bool | None,
    output: Output,
) -> None:
    """Measure a server from here: create, read, write and delete workflows, and count the calls.

    It works in the namespace that is given, beside whatever is there, with suspended workflows of
    the definition wfe-persistence-bench, and deletes them again; also after Ctrl-C. What it
    measures is all of it: this machine and program, the network, the server and its database.

    \b
    Examples:
      wfe-persistence bench --target db.example:50052 --tls-ca ca.pem --namespace test
      wfe-persistence bench --seconds 60 --concurrency 64 -o json
    """
    measured = _Measured()

    async def body(provider: PersistenceProvider) -> None:
        with Progress("measuring", shown=progress, what="calls") as bar:
            users = [_User(provider, measured, pointers) for _ in range(concurrency)]
            until = time.monotonic() + seconds
            try:
                async with asyncio.TaskGroup() as group:
                    for user in users:
                        group.create_task(user.run(until))
                    group.create_task(_tell(bar, measured, until))
            finally:
                # Also if it was interrupted: nothing is left behind.
                for user in users:
                    await user.clean()

    began = time.monotonic()
    interrupted = False
    try:
        call.run(body)
    except KeyboardInterrupt:
        interrupted = True
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    took = min(time.monotonic() - began, seconds)
    rows = measured.rows(took)
    if output.is_data:
        output.one({"seconds": round(took, 3), "concurrency": concurrency, "calls": rows})
    else:

        async def write(_: PersistenceProvider) -> None:
            await output.list(aiter_of(rows), _COLUMNS, limit=0, what="calls")

        call.run(write)
        tell(f"{counted(measured.calls, 'call')} in {took:.1f} s, {concurrency} at a time")
    if interrupted:
        tell("interrupted; its workflows are deleted")
        sys.exit(INTERRUPTED)


_COLUMNS: list[Column[dict[str, Any]]] = [
    Column("CALL", lambda each: each["call"]),
    Column("CALLS", lambda each: each["count"], right=True),
    Column("PER SECOND", lambda each: f"{each['per_second']:,.0f}", right=True),
    Column("MEDIAN", lambda each: f"{each['median_ms']:.1f} ms", right=True),
    Column("95 %", lambda each: f"{each['p95_ms']:.1f} ms", right=True),
    Column("99 %", lambda each: f"{each['p99_ms']:.1f} ms", right=True),
    Column("LONGEST", lambda each: f"{each['max_ms']:.1f} ms", right=True),
]


class _Measured:
    """How long calls took, by their names."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self.calls = 0

    async def time(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """What a call returns; how long it took is remembered."""
        began = time.perf_counter()
        result = await call()
        self._seconds.setdefault(name, []).append(time.perf_counter() - began)
        self.calls += 1
        return result

    def rows(self, seconds: float) -> list[dict[str, Any]]:
        """What is shown."""
        return [
            {
                "call": name,
                "count": len(taken),
                "per_second": round(len(taken) / seconds, 1),
                "median_ms": round(statistics.median(taken) * 1000, 3),
                "p95_ms": round(_percentile(taken, 95) * 1000, 3),
                "p99_ms": round(_percentile(taken, 99) * 1000, 3),
                "max_ms": round(max(taken) * 1000, 3),
            }
            for name, taken in self._seconds.items()
        ]


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


class _User:
    """One of those that call at the same time."""

    def __init__(self, provider: PersistenceProvider, measured: _Measured, pointers: int) -> None:
        self._provider = provider
        self._measured = measured
        self._pointers = pointers
        self._id: str | None = None

    async def run(self, until: float) -> None:
        """Create, read, write and delete, one workflow after the other."""
        from wfe_persistence_client import ExecutionPointer, WorkflowInstance, WorkflowStatus

        measured, provider = self._measured, self._provider
        while time.monotonic() < until:
            instance = WorkflowInstance(
                id=str(uuid.uuid4()),
                workflow_definition_id=DEFINITION,
                version=1,
                status=WorkflowStatus.SUSPENDED,
                data={"made by": DEFINITION, "text": "x" * 200},
                execution_pointers=[
                    ExecutionPointer(id=str(i), step_id=i) for i in range(self._pointers)
                ],
            )
            self._id = instance.id
            await measured.time("create", lambda made=instance: provider.create_new_workflow(made))  # type: ignore[misc]
            read: WorkflowInstance = await measured.time(
                "get", lambda: provider.get_workflow_instance(str(self._id))
            )
            read.data = {"made by": DEFINITION, "text": "y" * 200}
            await measured.time("persist", lambda made=read: provider.persist_workflow(made))  # type: ignore[misc]
            await measured.time("delete", lambda: provider.delete_workflow(str(self._id)))
            self._id = None

    async def clean(self) -> None:
        """Delete what is left of an interrupted round."""
        from wfe_persistence_client import WorkflowNotFound

        if self._id is not None:
            with suppress(WorkflowNotFound):
                await self._provider.delete_workflow(self._id)
            self._id = None


async def _tell(bar: Progress, measured: _Measured, until: float) -> None:
    while time.monotonic() < until:
        bar.at(measured.calls)
        await asyncio.sleep(0.1)
