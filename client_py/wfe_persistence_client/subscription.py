"""Subscriptions: workflows that wait for events, and who holds them."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from wfe.persistence.v1 import subscription_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE, Connection, new_id
from wfe_persistence_client.model import EventSubscription, SubscriptionClaim


class Subscriptions(Connection):
    """The operations on subscriptions."""

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        """Stores a new subscription, and answers its id; the workflow need not exist.

        An empty id is replaced by a new UUID. The same subscription again changes
        nothing, even if it was claimed since.

        Raises:
            SubscriptionAlreadyExists: the id is in use by other content.
        """
        message = convert.subscription_to_proto(subscription)
        message.id = message.id or new_id()
        answer = await self._calls.unary(
            self._subscriptions.CreateEventSubscription,
            subscription_pb2.CreateEventSubscriptionRequest(subscription=message),
        )
        return answer.id

    async def get_subscription(self, subscription_id: str) -> EventSubscription:
        """Answers one subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.GetSubscription,
            subscription_pb2.GetSubscriptionRequest(id=subscription_id),
        )
        return convert.subscription_from_proto(answer.subscription)

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> list[EventSubscription]:
        """Answers all open subscriptions of an event name and key, oldest first.

        Those with `subscribe_as_of` up to and including `as_of` that nobody holds.
        It reads page by page: one that is claimed meanwhile may be missing.
        """
        pages = self._in_one_go().iter_subscriptions(
            event_name, event_key, as_of, page_size=LARGEST_PAGE
        )
        return [subscription async for subscription in pages]

    def iter_subscriptions(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """`get_subscriptions`, with its arguments, page by page as they are wanted.

        Args:
            page_size: subscriptions a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._subscriptions.GetSubscriptions,
            subscription_pb2.GetSubscriptionsRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
                page_size=page_size,
            ),
            lambda page: map(convert.subscription_from_proto, page.subscriptions),
        )

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> EventSubscription | None:
        """Answers the first of `get_subscriptions`, or None; it does not claim it."""
        answer = await self._calls.unary(
            self._subscriptions.GetFirstOpenSubscription,
            subscription_pb2.GetFirstOpenSubscriptionRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
            ),
        )
        if not answer.HasField("subscription"):
            return None
        return convert.subscription_from_proto(answer.subscription)

    async def terminate_subscription(self, subscription_id: str) -> None:
        """Removes a subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        await self._calls.settle(
            self._subscriptions.TerminateSubscription,
            subscription_pb2.TerminateSubscriptionRequest(id=subscription_id),
        )

    async def set_subscription_token(
        self, subscription_id: str, token: str, worker_id: str, expiry: datetime | None
    ) -> bool:
        """Takes hold of a subscription; answers whether this worker holds it now.

        It succeeds if the subscription is open, or held with the same token and
        worker already: then the expiry becomes the given one.

        Args:
            subscription_id: its id.
            token: a text that only this worker knows, best a new UUID for each
                attempt; 1 to 512 bytes.
            worker_id: who takes it, for people who look.
            expiry: when the hold ends by itself, by the database's clock, in the
                future; None: it is held until cleared.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            subscription_pb2.SetSubscriptionTokenRequest(
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                expiry=convert.optional_timestamp("expiry", expiry),
            ),
        )
        return answer.acquired

    async def clear_subscription_token(self, subscription_id: str, token: str) -> None:
        """Lets go of a subscription, so that it is open again.

        Raises:
            TokenMismatch: it is not held with this token; nothing was changed.
            SubscriptionNotFound: it does not exist.
        """
        await self._clear_token(SubscriptionClaim(subscription_id=subscription_id, token=token))

    async def claim_subscription(
        self,
        subscription_id: str,
        *,
        duration: timedelta | None = timedelta(seconds=30),
        worker_id: str = "",
    ) -> SubscriptionClaim | None:
        """Takes hold of a subscription; None: somebody else holds it.

        It is `set_subscription_token` with a token of its own, an end by the database's
        clock, and an epoch that later holders of the subscription do not have.

        Args:
            subscription_id: its id.
            duration: how long the hold lasts from now on, by the database's clock, 1 ms
                to 24 h; None: until it is cleared.
            worker_id: who takes it, for people who look.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        token = new_id()
        answer = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            subscription_pb2.SetSubscriptionTokenRequest(
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                duration=convert.optional_duration(duration),
            ),
        )
        if not answer.acquired:
            return None
        return convert.claim_from_proto(subscription_id, token, answer)

    async def renew_subscription_token(
        self, claim: SubscriptionClaim, *, duration: timedelta | None = None
    ) -> SubscriptionClaim:
        """Holds a subscription for longer, and answers the claim with its new expiry.

        Args:
            claim: the hold, from `claim_subscription` or an earlier renewal, or made of
                a token given to `set_subscription_token`.
            duration: how long the hold lasts from now on, by the database's clock, 1 ms
                to 24 h; None: 30 s.

        Raises:
            TokenMismatch: it is not held so any more, or the hold has expired.
            SubscriptionNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._subscriptions.RenewSubscriptionToken,
            subscription_pb2.RenewSubscriptionTokenRequest(
                id=claim.subscription_id,
                token=claim.token,
                epoch=claim.epoch,
                duration=convert.optional_duration(duration),
            ),
        )
        return convert.claim_from_proto(claim.subscription_id, claim.token, answer)

    async def release_subscription(self, claim: SubscriptionClaim) -> None:
        """Lets go of a claimed subscription, so that it is open again.

        Raises:
            TokenMismatch: it is not held by this claim any more; nothing was changed.
            SubscriptionNotFound: it does not exist.
        """
        await self._clear_token(claim)

    async def _clear_token(self, claim: SubscriptionClaim) -> None:
        await self._calls.settle(
            self._subscriptions.ClearSubscriptionToken,
            subscription_pb2.ClearSubscriptionTokenRequest(
                id=claim.subscription_id, token=claim.token, epoch=claim.epoch
            ),
        )

    async def list_subscriptions(
        self,
        *,
        workflow_id: str = "",
        event_name: str = "",
        event_key: str | None = None,
        held: bool | None = None,
    ) -> list[EventSubscription]:
        """Answers subscriptions, open and held, by their ids.

        Args:
            workflow_id: of this workflow; empty: of any.
            event_name: waiting for this kind of event; empty: for any.
            event_key: waiting for this event key, with an `event_name`; None: for any.
            held: True: those that somebody holds; False: open ones; None: both.
        """
        pages = self._in_one_go().iter_all_subscriptions(
            workflow_id=workflow_id,
            event_name=event_name,
            event_key=event_key,
            held=held,
            page_size=LARGEST_PAGE,
        )
        return [subscription async for subscription in pages]

    def iter_all_subscriptions(
        self,
        *,
        workflow_id: str = "",
        event_name: str = "",
        event_key: str | None = None,
        held: bool | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[EventSubscription]:
        """`list_subscriptions`, with its arguments, page by page as they are wanted.

        Args:
            page_size: subscriptions a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._subscriptions.ListSubscriptions,
            subscription_pb2.ListSubscriptionsRequest(
                workflow_id=workflow_id,
                event_name=event_name,
                event_key=event_key,
                held=held,
                page_size=page_size,
            ),
            lambda page: map(convert.subscription_from_proto, page.subscriptions),
        )
