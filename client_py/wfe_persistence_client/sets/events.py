"""Events, subscriptions and commands of a namespace set.

An event is stored once: alone, in the member of its id; with a workflow, in that workflow's. A
subscription is in the member of its workflow. Who asks for either by name and key asks all members.
So nothing has to be copied, an event is found by subscriptions that come after it, and none is
handled twice that would not be in a single namespace.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from wfe_persistence_client.bulk import BulkResult
from wfe_persistence_client.connection import LARGEST_PAGE, new_id
from wfe_persistence_client.errors import EventNotFound, SubscriptionNotFound
from wfe_persistence_client.model import (
    ClaimedCommand,
    CommandLease,
    CommandName,
    Event,
    EventSubscription,
    ListedCommand,
    ListOrder,
    QueueItem,
    ScheduledCommand,
    SubscriptionClaim,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.bulk import SetBulk
from wfe_persistence_client.sets.members import SetMembers, found, tagging
from wfe_persistence_client.sets.merging import all_of, by_time, together
from wfe_persistence_client.sets.racing import SetTaking, brief
from wfe_persistence_client.sets.routing import home_of, member_of, tag

_MOST_COMMANDS: Final = 100

_OLDEST_FIRST: Final = by_time(lambda subscription: subscription.subscribe_as_of)


class SetEvents(SetMembers):
    """The operations on events."""

    get_event = found(PersistenceProvider.get_event, EventNotFound)
    mark_event_processed = found(PersistenceProvider.mark_event_processed, EventNotFound)
    mark_event_unprocessed = found(PersistenceProvider.mark_event_unprocessed, EventNotFound)

    async def create_event(self, event: Event, *, enqueue: Iterable[QueueItem] = ()) -> str:
        """As of a single namespace. Its items are stored with it."""
        given = event if event.id else replace(event, id=new_id())
        members = await self._members()
        return await members[home_of(given.id, len(members))].create_event(given, enqueue=enqueue)

    def create_events(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        enqueue: Iterable[QueueItem] = (),
    ) -> AsyncIterator[BulkResult[Event]]:
        """As of a single namespace, with a stream for each member."""
        return self._created_events(events, list(enqueue))

    async def _created_events(
        self, events: Iterable[Event] | AsyncIterable[Event], enqueue: list[QueueItem]
    ) -> AsyncGenerator[BulkResult[Event], None]:
        members = await self._members()

        def place(event: Event) -> int:
            # Without an id: wherever; it is told by the id that it gets.
            return home_of(event.id or new_id(), len(members))

        def stream(index: int, some: AsyncIterable[Event]) -> AsyncIterator[BulkResult[Event]]:
            return _as_given(members[index], index, some, enqueue)

        bulk: SetBulk[Event] = SetBulk("events", Event, place, stream, lambda _: None)
        async with aclosing(bulk.results(events)) as results:
            async for result in results:
                yield result

    def iter_runnable_events(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """As of a single namespace, in the order of all members."""
        return self._merged_ids(lambda member: member._keyed_runnable_events(as_at, page_size))

    def iter_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        event_time_from: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """As of a single namespace, in the order of all members."""
        return self._merged_ids(
            lambda member: member._keyed_events(
                event_name, event_key, as_of, event_time_from, page_size
            )
        )

    def iter_all_events(
        self,
        *,
        event_name: str = "",
        event_key: str | None = None,
        is_processed: bool | None = None,
        event_time_from: datetime | None = None,
        event_time_before: datetime | None = None,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        page_size: int = 0,
    ) -> AsyncIterator[Event]:
        """As of a single namespace, in the order of all members."""
        return self._merged(
            lambda member: member.iter_all_events(
                event_name=event_name,
                event_key=event_key,
                is_processed=is_processed,
                event_time_from=event_time_from,
                event_time_before=event_time_before,
                order=order,
                page_size=page_size,
            ),
            by_time(lambda event: event.event_time),
            descending=order is ListOrder.NEWEST_FIRST,
        )

    def iter_purge_events(
        self,
        event_time_before: datetime,
        *,
        event_name: str = "",
        include_unprocessed: bool = False,
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[int]:
        """As of a single namespace, one member after the other."""
        return self._one_after_another(
            lambda member: member.iter_purge_events(
                event_time_before,
                event_name=event_name,
                include_unprocessed=include_unprocessed,
                dry_run=dry_run,
                max_rows=max_rows,
            )
        )


async def _as_given(
    member: PersistenceProvider, index: int, events: AsyncIterable[Event], enqueue: list[QueueItem]
) -> AsyncGenerator[BulkResult[Event], None]:
    """Creates events; those without an id get one that tells where they are."""
    given: list[Event] = []

    async def with_ids() -> AsyncGenerator[Event, None]:
        async for event in events:
            given.append(event)
            yield event if event.id else replace(event, id=tag(new_id(), index))

    at = 0
    async for result in member.create_events(with_ids(), enqueue=enqueue):
        yield BulkResult(given[at], result.id, result.error)
        at += 1


class SetSubscriptions(SetMembers):
    """The operations on subscriptions."""

    get_subscription = found(PersistenceProvider.get_subscription, SubscriptionNotFound)
    terminate_subscription = found(PersistenceProvider.terminate_subscription, SubscriptionNotFound)
    set_subscription_token = found(PersistenceProvider.set_subscription_token, SubscriptionNotFound)
    clear_subscription_token = found(
        PersistenceProvider.clear_subscription_token, SubscriptionNotFound
    )
    claim_subscription = found(PersistenceProvider.claim_subscription, SubscriptionNotFound)

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        """As of a single namespace, in the member of its workflow."""
        members = await self._members()
        index = member_of(subscription.workflow_id, len(members))
        given = subscription
        if not given.id:
            given = replace(subscription, id=tag(new_id(), index))
        return await members[index].create_event_subscription(given)

    async def renew_subscription_token(
        self, claim: SubscriptionClaim, *, duration: timedelta | None = None
    ) -> SubscriptionClaim:
        """As of a single namespace."""
        return await self._find(
            claim.subscription_id,
            SubscriptionNotFound,
            lambda member: member.renew_subscription_token(claim, duration=duration),
        )

    async def release_subscription(self, claim: SubscriptionClaim) -> None:
        """As of a single namespace."""
        await self._find(
            claim.subscription_id,
            SubscriptionNotFound,
            lambda member: member.release_subscription(claim),
        )

    def iter_subscriptions(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """As of a single namespace, in the order of all members."""
        return self._merged(
            lambda member: member.iter_subscriptions(
                event_name, event_key, as_of, page_size=page_size
            ),
            _OLDEST_FIRST,
        )

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> EventSubscription | None:
        """As of a single namespace: the first of all members."""
        firsts = await self._each(
            lambda member: member.get_first_open_subscription(event_name, event_key, as_of)
        )
        return min(filter(None, firsts), key=_OLDEST_FIRST, default=None)

    def iter_all_subscriptions(
        self,
        *,
        workflow_id: str = "",
        event_name: str = "",
        event_key: str | None = None,
        held: bool | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """As of a single namespace, in the order of all members."""
        return self._merged(
            lambda member: member.iter_all_subscriptions(
                workflow_id=workflow_id,
                event_name=event_name,
                event_key=event_key,
                held=held,
                page_size=page_size,
            ),
            lambda subscription: subscription.id.encode(),
        )


class SetCommands(SetTaking):
    """The operations on commands: each is in the member of its data, which is the id of a workflow
    or an event; those of a commit are with the workflow."""

    async def supports_scheduled_commands(self) -> bool:
        """As of a single namespace."""
        return await (await self._members())[0].supports_scheduled_commands()

    async def schedule_command(self, command: ScheduledCommand) -> None:
        """As of a single namespace."""
        members = await self._members()
        await members[home_of(command.data, len(members))].schedule_command(command)

    async def claim_commands(
        self,
        as_of: datetime | None = None,
        *,
        limit: int = 0,
        lease_duration: timedelta | None = None,
        worker_id: str = "",
        command_name: CommandName | None = None,
        wait: timedelta | None = None,
    ) -> list[ClaimedCommand]:
        """As of a single namespace. The members are asked in turn, each call beginning with another
        one; soonest first within each of them."""

        async def claim(
            member: PersistenceProvider, index: int, most: int, wait: timedelta | None
        ) -> list[ClaimedCommand]:
            commands = await member.claim_commands(
                as_of,
                limit=most,
                lease_duration=brief(lease_duration, wait),
                worker_id=worker_id,
                command_name=command_name,
                wait=wait,
            )
            return [replace(c, lease_token=tag(c.lease_token, index)) for c in commands]

        async def keep(command: ClaimedCommand) -> ClaimedCommand:
            expiry = await self.renew_commands([command.lease_token], lease_duration=lease_duration)
            return replace(command, lease_expiry=expiry or command.lease_expiry)

        return await self._take(
            claim,
            lambda commands: self.release_commands([c.lease_token for c in commands]),
            keep,
            min(limit, LARGEST_PAGE) or _MOST_COMMANDS,
            wait,
        )

    async def complete_commands(self, lease_tokens: Iterable[str]) -> None:
        """As of a single namespace; all or nothing in each member."""
        parts = await self._by_member("lease_tokens", lease_tokens)
        await all_of([tagging(i, member.complete_commands(bare)) for i, member, bare in parts])

    async def release_commands(self, lease_tokens: Iterable[str]) -> None:
        """As of a single namespace; all or nothing in each member."""
        parts = await self._by_member("lease_tokens", lease_tokens)
        await all_of([tagging(i, member.release_commands(bare)) for i, member, bare in parts])

    async def renew_commands(
        self, lease_tokens: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """As of a single namespace; all or nothing in each member. The first of their expiries."""
        parts = await self._by_member("lease_tokens", lease_tokens)
        expiries = await together(
            [
                tagging(i, member.renew_commands(bare, lease_duration=lease_duration))
                for i, member, bare in parts
            ]
        )
        return min(filter(None, expiries), default=None)

    async def break_command_lease(
        self, command_name: CommandName, data: str, *, epoch: int | None = None
    ) -> CommandLease | None:
        """As of a single namespace; in the first member that has such a lease."""
        for member in await self._members():
            broken = await member.break_command_lease(command_name, data, epoch=epoch)
            if broken is not None:
                return broken
        return None

    def iter_commands(
        self,
        *,
        command_name: CommandName | None = None,
        data: str | None = None,
        due_before: datetime | None = None,
        leased: bool | None = None,
        worker_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[ListedCommand]:
        """As of a single namespace, soonest first of all members."""
        return self._merged(
            lambda member: member.iter_commands(
                command_name=command_name,
                data=data,
                due_before=due_before,
                leased=leased,
                worker_id=worker_id,
                page_size=page_size,
            ),
            lambda listed: listed.command.execute_time,
        )
