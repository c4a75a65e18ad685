"""`wfe-persistence namespace move`: calls to a server."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.progress import Progress, progress_option
from wfe_persistence_cli.status import EPILOG, INTERRUPTED

if TYPE_CHECKING:
    from wfe.persistence.v1.store_pb2 import MoveNamespaceRequest, MoveNamespaceResponse

_LINE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 2.0
_ATTEMPTS: Final = 30


@click.command(cls=ClientCommand, epilog=EPILOG)
@calls_server
@click.argument("name")
@click.option("--to", "database", metavar="DATABASE", help="The database to move it to.")
@click.option(
    "--way",
    type=click.Choice(["logical", "copy"]),
    help="By logical replication, or by a copy while writes are held. "
    "By default as it is possible.",
)
@click.option("--dry-run", is_flag=True, help="Only say what it would be like.")
@click.option("--yes", is_flag=True, help="Do not ask, however long writes will be held.")
@click.option("--abort", is_flag=True, help="Give up a move that has not switched yet.")
@progress_option
def move(
    call: Caller,
    *,
    name: str,
    database: str | None,
    way: str | None,
    dry_run: bool,
    yes: bool,
    abort: bool,
    progress: bool | None,
) -> None:
    """Move a namespace to another database while it is used.

    Says beforehand how, and for how long writes will be held. If it is interrupted, the namespace
    stays in use where it is and the move waits: the same command goes on with it, and --abort
    gives it up.

    \b
    Examples:
      wfe-persistence namespace move orders --to b --dry-run
      wfe-persistence namespace move orders --to b
      wfe-persistence namespace move orders --abort
    """
    from wfe.persistence.v1 import store_pb2

    if abort == bool(database):
        raise click.UsageError("say where to move it (--to DATABASE), or --abort")
    if abort:
        request = store_pb2.AbortMoveNamespaceRequest(name=name)
        answer = call("AbortMoveNamespace", request, at_least=60)
        click.echo("the move was given up" if answer.aborted else "it was not being moved")
        return
    ways = {
        None: store_pb2.MOVE_WAY_UNSPECIFIED,
        "logical": store_pb2.MOVE_WAY_LOGICAL_REPLICATION,
        "copy": store_pb2.MOVE_WAY_COPY,
    }
    wanted = store_pb2.MoveNamespaceRequest(
        name=name, database=database or "", way=ways[way], dry_run=True
    )
    plan = _last(call, wanted)
    _say_plan(name, wanted.database, plan)
    if dry_run or plan.phase == store_pb2.MOVE_PHASE_MOVED:
        return
    if plan.phase == store_pb2.MOVE_PHASE_PLANNED and plan.way == store_pb2.MOVE_WAY_COPY:
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("writes will be held for that long: say --yes")
        if not yes:
            click.confirm("Move it?", abort=True)
    wanted.dry_run = False
    _follow(call, wanted, progress)


def _last(call: Caller, request: MoveNamespaceRequest) -> MoveNamespaceResponse:
    from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub

    with call.channel() as channel:
        stream = StoreServiceStub(channel).MoveNamespace(
            request, timeout=max(call.timeout, 30), metadata=call.metadata
        )
        return list(stream)[-1]


def _say_plan(name: str, database: str, plan: MoveNamespaceResponse) -> None:
    from wfe.persistence.v1 import store_pb2

    if plan.phase == store_pb2.MOVE_PHASE_MOVED:
        click.echo(f"{name} is in {database} already")
        return
    if plan.phase != store_pb2.MOVE_PHASE_PLANNED:
        click.echo(f"{name}: its move to {database} has begun, and goes on")
        return
    for obstacle in plan.obstacles:
        click.echo(f"not by logical replication: {obstacle}")
    by = "logical replication"
    if plan.way == store_pb2.MOVE_WAY_COPY:
        by = "a copy of its tables, during which writes are held"
    seconds = plan.pause.ToMilliseconds() / 1000
    click.echo(
        f"{name} will be moved to {database} by {by}: {_size(plan.total_bytes)}; "
        f"writes will wait for about {seconds:.0f} s"
    )


def _follow(call: Caller, request: MoveNamespaceRequest, shown: bool | None) -> None:
    """Move it, however often the connection breaks, and say how far it is."""
    import grpc

    from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub

    said = _Said(shown)
    lost = 0
    try:
        with said:
            while True:
                try:
                    with call.channel() as channel:
                        stub = StoreServiceStub(channel)
                        for response in stub.MoveNamespace(request, metadata=call.metadata):
                            said.at(response)
                            lost = 0
                except grpc.RpcError as exc:
                    error: Any = exc
                    lost += 1
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or lost == _ATTEMPTS:
                        raise
                    click.echo(f"{error.details()}; going on", err=True)
                    time.sleep(_AGAIN_SECONDS)
                    continue
                return
    except KeyboardInterrupt:
        click.echo(_left(said.phase, request), err=True)
        sys.exit(INTERRUPTED)


def _left(phase: int, request: MoveNamespaceRequest) -> str:
    """What becomes of a move that its caller leaves in a phase."""
    from wfe.persistence.v1 import store_pb2

    again = f"`namespace move {request.name} --to {request.database}`"
    if phase >= store_pb2.MOVE_PHASE_SWITCHING:
        return (
            "interrupted: the servers finish the switch, unless it had not really begun; "
            f"{again} says which, and goes on"
        )
    return (
        f"interrupted: {request.name} stays in use where it is, and the move waits. Go on with "
        f"{again}, or give it up with `--abort`: until then the old database keeps its write-ahead "
        "log"
    )


class _Said:
    """Says how far a move is: each phase, and within it once in a while; of the copy, a bar on a
    terminal. As a context manager. `shown`: False: nothing of the copy."""

    def __init__(self, shown: bool | None) -> None:
        self.phase = 0
        self._shown = shown
        self._time = 0.0
        self._stack = ExitStack()
        self._copying: Progress | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def at(self, now: MoveNamespaceResponse) -> None:
        """It is so far."""
        from wfe.persistence.v1 import store_pb2

        is_new = now.phase != self.phase
        self.phase = now.phase
        if now.phase == store_pb2.MOVE_PHASE_COPYING:
            if self._copying is None:
                bar = Progress("copying", shown=self._shown, in_bytes=True)
                self._copying = self._stack.enter_context(bar)
            if self._copying.is_bar:
                behind = f"copying, {_size(now.lag_bytes)} behind"
                self._copying.at(now.copied_bytes, now.total_bytes, behind)
                return
        else:
            self._stack.close()
        if not is_new and time.monotonic() < self._time + _LINE_SECONDS:
            return
        self._time = time.monotonic()
        if now.phase == store_pb2.MOVE_PHASE_COPYING:
            if self._shown is not False:
                copied, total = _size(now.copied_bytes), _size(now.total_bytes)
                click.echo(
                    f"copying: {copied} of about {total}, {_size(now.lag_bytes)} behind", err=True
                )
        elif now.phase == store_pb2.MOVE_PHASE_SWITCHING:
            copied = f": {_size(now.copied_bytes)}" if now.copied_bytes and not is_new else ""
            click.echo(f"switching, writes wait{copied}", err=True)
        elif now.phase == store_pb2.MOVE_PHASE_MOVED:
            held = ""
            if now.HasField("pause"):
                held = f"; writes waited for {now.pause.ToMilliseconds() / 1000:.2f} s"
            click.echo(f"moved{held}")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
