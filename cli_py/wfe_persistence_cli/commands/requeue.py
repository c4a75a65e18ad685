"""`wfe-persistence requeue`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wfe_persistence_cli import names
from wfe_persistence_cli.calling import Caller, calls_server, confirm
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.progress import Progress
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import EPILOG, INTERRUPTED, NOT_FOUND
from wfe_persistence_cli.text import counted

if TYPE_CHECKING:
    from wfe_persistence_client import PersistenceProvider

# Of one call.
_MOST = 1000


@click.command(
    cls=ClientCommand, epilog=EPILOG, short_help="Have dead or delayed items tried again."
)
@click.argument("queue", shell_complete=names.queues)
@click.argument("ids", nargs=-1, metavar="[ID]…", shell_complete=names.items("DEAD", "DELAYED"))
@calls_server
@click.option("--dead", is_flag=True, help="All dead items of the queue.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def requeue(call: Caller, *, queue: str, ids: tuple[str, ...], dead: bool, yes: bool) -> None:
    """Have dead or delayed items of QUEUE handled now, as if they had not been tried before.

    \b
    Examples:
      wfe-persistence requeue workflow 6f0c
      wfe-persistence requeue workflow --dead
    """
    if bool(ids) == dead:
        raise click.UsageError("give the IDs of items, or --dead")
    if dead:
        [stats] = call.run(lambda provider: provider.get_queue_stats([queue]))
        if not stats.dead:
            tell(f"the queue {queue} has no dead items")
            return
        confirm(f"Requeue {counted(stats.dead, 'dead item')} of the queue {queue}?", yes=yes)
    done = 0

    async def body(provider: PersistenceProvider) -> None:
        nonlocal done
        with Progress("requeueing", stats.dead if dead else len(ids), what="items") as bar:
            if dead:
                while requeued := await provider.requeue_items(queue, max_dead=_MOST):
                    done += requeued
                    bar.at(done)
                    if requeued < _MOST:
                        break
            for i in range(0, len(ids), _MOST):
                done += await provider.requeue_items(queue, dict.fromkeys(ids[i : i + _MOST]))
                bar.at(done)

    try:
        call.run(body)
    except KeyboardInterrupt:
        tell(f"interrupted; requeued: {counted(done, 'item')} or more")
        sys.exit(INTERRUPTED)
    tell(f"{queue}: {counted(done, 'item')} requeued")
    if not dead and done < len(set(ids)):
        tell(f"{counted(len(set(ids)) - done, 'item')}: not there, or neither dead nor delayed")
        sys.exit(NOT_FOUND)
