"""`wfe-persistence release`: take a hold away from a worker that is gone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wfe_persistence_cli import names, times
from wfe_persistence_cli.calling import Caller, calls_server, confirm
from wfe_persistence_cli.commands.lists import COMMANDS, holder
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.status import CONFLICT, EPILOG, NOT_FOUND
from wfe_persistence_cli.times import ago

if TYPE_CHECKING:
    from wfe_persistence_client import (
        EventSubscription,
        ListedCommand,
        ListedQueueItem,
        Lock,
        PersistenceProvider,
    )


@click.group(short_help="Take a hold from a worker that is gone.")
def release() -> None:
    """Take a lock, the lease on an item of a queue or on a command, or the token of a subscription
    away from a worker that is gone for good.

    A worker that is not gone learns of it when it next uses what it held, and its writes under it
    are refused. The server's audit log says who did it.

    \b
    Example: wfe-persistence release subscription s2
    """


_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@release.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("resource", shell_complete=names.locks)
@calls_server
@click.option(
    "--epoch",
    type=click.IntRange(min=1),
    help="Only if the lock has this epoch, as `locks` shows it.",
)
@_yes_option
def lock(call: Caller, *, resource: str, epoch: int | None, yes: bool) -> None:
    """Release the lock on RESOURCE, whoever holds it. Whoever waits for it gets it.

    \b
    Example: wfe-persistence release lock 6f0c
    """

    async def look(provider: PersistenceProvider) -> Lock | None:
        async for found in provider.iter_locks(resource_prefix=resource, page_size=1):
            return found if found.resource == resource else None
        return None

    held = call.run(look)
    if held is None:
        tell(f"nobody holds the lock on {resource}")
        sys.exit(NOT_FOUND)
    if epoch is not None and held.epoch != epoch:
        tell(f"the lock on {resource} has the epoch {held.epoch} by now; nothing was changed")
        sys.exit(CONFLICT)
    since = ago(held.acquire_time, times.now())
    confirm(
        f"{held.owner or 'Somebody'} has held the lock on {resource} for {since}. Release it?",
        yes=yes,
    )
    # With its epoch, so that the next holder's is not released instead.
    broken = call.run(lambda provider: provider.break_lock(resource, epoch=held.epoch))
    if broken is None:
        tell(f"{resource}: it was released by itself, or has another holder; nothing was changed")
        sys.exit(CONFLICT)
    tell(f"{resource}: released, was held by {broken.owner or 'somebody'} (epoch {broken.epoch})")


@release.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("id_", metavar="ID", shell_complete=names.held_subscriptions)
@calls_server
@_yes_option
def subscription(call: Caller, *, id_: str, yes: bool) -> None:
    """Open the subscription ID again, so that another worker can deliver the event.

    \b
    Example: wfe-persistence release subscription s2
    """
    from wfe_persistence_client import SubscriptionClaim

    found: EventSubscription = call.run(lambda provider: provider.get_subscription(id_))
    token = found.external_token
    if token is None:
        tell(f"nobody holds the subscription {id_}")
        return
    by = holder(found, times.now()).text
    confirm(f"{by} holds the subscription {id_} to {found.event_name}. Release it?", yes=yes)
    # The claim that was shown, and not one that has come since.
    claim = SubscriptionClaim(
        subscription_id=id_, token=token, epoch=found.external_token_epoch or None
    )
    call.run(lambda provider: provider.release_subscription(claim))
    tell(f"{id_}: released, was held by {by}")


@release.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("queue", shell_complete=names.queues)
@click.argument("id_", metavar="ID", shell_complete=names.items("LEASED"))
@calls_server
@_yes_option
def item(call: Caller, *, queue: str, id_: str, yes: bool) -> None:
    """Have the item ID of QUEUE handled by another worker than the one that holds its lease.

    \b
    Example: wfe-persistence release item workflow 6f0c
    """
    found: list[ListedQueueItem] = call.run(
        lambda provider: provider.with_reads("primary").list_queue_items(queue, item_id=id_)
    )
    if not found:
        tell(f"the queue {queue} has no item {id_}")
        sys.exit(NOT_FOUND)
    lease = found[0].lease
    if lease is None:
        tell(f"nobody holds a lease on {id_}: it is {found[0].state.name}")
        return
    worker = lease.worker_id or "A worker without a name"
    expiry = ago(lease.expiry, times.now())
    confirm(
        f"{worker} holds {id_} of the queue {queue}, under a lease that expires {expiry}. "
        "Release it?",
        yes=yes,
    )
    # With its epoch, so that the next worker's is not taken instead.
    done = call.run(lambda provider: provider.requeue_items(queue, [id_], break_epoch=lease.epoch))
    if not done:
        tell(f"{id_}: nobody holds it by now, or another worker; nothing was changed")
        sys.exit(CONFLICT)
    tell(f"{id_}: released, was held by {worker}")


@release.command(cls=ClientCommand, epilog=EPILOG)
@click.argument("name", type=click.Choice(COMMANDS, case_sensitive=False))
@click.argument("data", metavar="ID", shell_complete=names.leased_commands)
@calls_server
@_yes_option
def command(call: Caller, *, name: str, data: str, yes: bool) -> None:
    """Have the command NAME for the workflow or event ID handled by another worker than the one
    that holds its lease.

    \b
    Example: wfe-persistence release command process_workflow 6f0c
    """
    from wfe_persistence_client import CommandName

    named = CommandName[name.upper()]
    title = f"the command {named.name} of {data}"
    found: list[ListedCommand] = call.run(
        lambda provider: provider.with_reads("primary").list_commands(command_name=named, data=data)
    )
    if not found:
        tell(f"there is no command {named.name} of {data}")
        sys.exit(NOT_FOUND)
    lease = found[0].lease
    if lease is None:
        tell(f"nobody holds a lease on {title}")
        return
    worker = lease.worker_id or "A worker without a name"
    expiry = ago(lease.expiry, times.now())
    confirm(f"{worker} holds {title}, under a lease that expires {expiry}. Release it?", yes=yes)
    broken = call.run(lambda provider: provider.break_command_lease(named, data, epoch=lease.epoch))
    if broken is None:
        tell(f"{title}: nobody holds it by now, or another worker; nothing was changed")
        sys.exit(CONFLICT)
    tell(f"{title}: released, was held by {broken.worker_id or 'somebody'}")
