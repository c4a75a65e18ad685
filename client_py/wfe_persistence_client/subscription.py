"""Operations on subscriptions: create, read, claim, renew, release, terminate."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from wfe.persistence.v1 import subscription_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE, Connection, new_id
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import EventSubscription, SubscriptionClaim


class Subscriptions(Connection):
    """The operations on subscriptions."""

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        """Stores a new subscription, and returns its id; the workflow need not exist.

        An empty id is replaced by a new UUID. Creating the same subscription again
        changes nothing, even if it has been claimed since.

        Raises:
            SubscriptionAlreadyExists: the id is in use with different content.
        """
        message = convert.subscription_to_proto(subscription)
        message.id = message.id or new_id()
        response = await self._calls.unary(
            self._subscriptions.CreateEventSubscription,
            subscription_pb2.CreateEventSubscriptionRequest(subscription=message),
        )
        return response.id

    async def get_subscription(self, subscription_id: str) -> EventSubscription:
        """Returns one subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        response = await self._calls.unary(
            self._subscriptions.GetSubscription,
            build(subscription_pb2.GetSubscriptionRequest, id=subscription_id),
        )
        return convert.subscription_from_proto(response.subscription)

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> list[EventSubscription]:
        """Returns all open subscriptions of an event name and key, oldest first.

        These are the ones with `subscribe_as_of` up to and including `as_of` that no
        worker holds. It reads page by page: a subscription that is claimed in the
        meantime may be missing.
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
        """`get_subscriptions` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._subscriptions.GetSubscriptions,
            build(
                subscription_pb2.GetSubscriptionsRequest,
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
        """Returns the first of `get_subscriptions`, or None; it does not claim it."""
        response = await self._calls.unary(
            self._subscriptions.GetFirstOpenSubscription,
            build(
                subscription_pb2.GetFirstOpenSubscriptionRequest,
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
            ),
        )
        if not response.HasField("subscription"):
            return None
        return convert.subscription_from_proto(response.subscription)

    async def terminate_subscription(self, subscription_id: str) -> None:
        """Removes a subscription, open or held.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        await self._calls.settle(
            self._subscriptions.TerminateSubscription,
            build(subscription_pb2.TerminateSubscriptionRequest, id=subscription_id),
        )

    async def set_subscription_token(
        self, subscription_id: str, token: str, worker_id: str, expiry: datetime | None
    ) -> bool:
        """Claims a subscription; returns whether this worker now holds it.

        It succeeds if the subscription is open, or already held with the same token and
        worker, in which case the expiry is replaced by the given one.

        Args:
            subscription_id: its id.
            token: a secret of this worker, preferably a new UUID for each claim; 1 to
                512 bytes.
            worker_id: the worker that claims it, for information only.
            expiry: when the claim expires, by the database's clock, in the future;
                None: held until cleared.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        response = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            build(
                subscription_pb2.SetSubscriptionTokenRequest,
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                expiry=convert.optional_timestamp("expiry", expiry),
            ),
        )
        return response.acquired

    async def clear_subscription_token(self, subscription_id: str, token: str) -> None:
        """Releases a subscription, so that it is open again.

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
        """Claims a subscription; returns None if another worker holds it.

        Like `set_subscription_token`, but it generates the token, takes a duration that
        counts from the database's clock, and returns the epoch (fencing token) of the
        claim.

        Args:
            subscription_id: its id.
            duration: how long the claim lasts from now, by the database's clock, 1 ms
                to 24 h; None: until it is cleared.
            worker_id: the worker that claims it, for information only.

        Raises:
            SubscriptionNotFound: it does not exist.
        """
        token = new_id()
        response = await self._calls.unary(
            self._subscriptions.SetSubscriptionToken,
            build(
                subscription_pb2.SetSubscriptionTokenRequest,
                id=subscription_id,
                token=token,
                worker_id=worker_id,
                duration=convert.optional_duration(duration),
            ),
        )
        if not response.acquired:
            return None
        return convert.claim_from_proto(subscription_id, token, response)

    async def renew_subscription_token(
        self, claim: SubscriptionClaim, *, duration: timedelta | None = None
    ) -> SubscriptionClaim:
        """Renews a claim on a subscription, and returns it with its new expiry.

        Args:
            claim: the claim, from `claim_subscription` or an earlier renewal, or
                constructed with a token given to `set_subscription_token`.
            duration: how long the claim lasts from now, by the database's clock, 1 ms
                to 24 h; None: 30 s.

        Raises:
            TokenMismatch: it is no longer held by this claim, or the claim has expired.
            SubscriptionNotFound: it does not exist.
        """
        convert.check_claim(claim)
        response = await self._calls.unary(
            self._subscriptions.RenewSubscriptionToken,
            build(
                subscription_pb2.RenewSubscriptionTokenRequest,
                id=claim.subscription_id,
                token=claim.token,
                epoch=claim.epoch,
                duration=convert.optional_duration(duration),
            ),
        )
        return convert.claim_from_proto(claim.subscription_id, claim.token, response)

    async def release_subscription(self, claim: SubscriptionClaim) -> None:
        """Releases a claimed subscription, so that it is open again.

        Raises:
            TokenMismatch: it is no longer held by this claim; nothing was changed.
            SubscriptionNotFound: it does not exist.
        """
        await self._clear_token(claim)

    async def _clear_token(self, claim: SubscriptionClaim) -> None:
        convert.check_claim(claim)
        await self._calls.settle(
            self._subscriptions.ClearSubscriptionToken,
            build(
                subscription_pb2.ClearSubscriptionTokenRequest,
                id=claim.subscription_id,
                token=claim.token,
                epoch=claim.epoch,
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
        """Returns subscriptions, open and held, ordered by id.

        Args:
            workflow_id: only of this workflow; empty: any.
            event_name: only for this event name; empty: any.
            event_key: only for this event key, requires `event_name`; None: any.
            held: True: only held ones; False: only open ones; None: both.
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
        """`list_subscriptions` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._subscriptions.ListSubscriptions,
            build(
                subscription_pb2.ListSubscriptionsRequest,
                workflow_id=workflow_id,
                event_name=event_name,
                event_key=event_key,
                held=held,
                page_size=page_size,
            ),
            lambda page: map(convert.subscription_from_proto, page.subscriptions),
        )
