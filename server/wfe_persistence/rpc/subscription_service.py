"""SubscriptionService."""

from __future__ import annotations

import uuid

from wfe.persistence.v1.subscription_pb2 import (
    ClearSubscriptionTokenRequest,
    ClearSubscriptionTokenResponse,
    CreateEventSubscriptionRequest,
    CreateEventSubscriptionResponse,
    EventSubscription,
    GetFirstOpenSubscriptionRequest,
    GetFirstOpenSubscriptionResponse,
    GetSubscriptionRequest,
    GetSubscriptionResponse,
    GetSubscriptionsRequest,
    GetSubscriptionsResponse,
    ListSubscriptionsRequest,
    ListSubscriptionsResponse,
    RenewSubscriptionTokenRequest,
    RenewSubscriptionTokenResponse,
    SetSubscriptionTokenRequest,
    SetSubscriptionTokenResponse,
    TerminateSubscriptionRequest,
    TerminateSubscriptionResponse,
)
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.rpc.check import Check, R
from wfe_persistence.store import subscription
from wfe_persistence.store.paging import START


class SubscriptionService:
    """Event subscriptions and their tokens."""

    async def CreateEventSubscription(
        self, request: CreateEventSubscriptionRequest, call: Call
    ) -> CreateEventSubscriptionResponse:
        """Store a new subscription."""
        check = call.check
        if check.present(request, "subscription"):
            check.subscription(request.subscription, "subscription")
        check.done()
        request.subscription.id = request.subscription.id or str(uuid.uuid4())
        check.fits(call.size, call.max_message_bytes, lambda: [page_of_one(request.subscription)])
        await subscription.create_event_subscription(call.store, request.subscription)
        return CreateEventSubscriptionResponse(id=request.subscription.id)

    async def GetSubscription(
        self, request: GetSubscriptionRequest, call: Call
    ) -> GetSubscriptionResponse:
        """Answer one subscription."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        found = await subscription.get_subscription(call.store, request.id)
        return GetSubscriptionResponse(subscription=found)

    async def GetSubscriptions(
        self, request: GetSubscriptionsRequest, call: Call
    ) -> GetSubscriptionsResponse:
        """Answer open subscriptions."""
        check = call.check
        _check_query(request, check)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await subscription.get_subscriptions(
            call.store,
            request.event_name,
            request.event_key,
            request.as_of if request.HasField("as_of") else None,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
            paging.page_bytes(call.max_message_bytes),
        )
        return GetSubscriptionsResponse(
            subscriptions=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetFirstOpenSubscription(
        self, request: GetFirstOpenSubscriptionRequest, call: Call
    ) -> GetFirstOpenSubscriptionResponse:
        """Answer the oldest open subscription, if there is one."""
        check = call.check
        _check_query(request, check)
        check.done()
        found = await subscription.get_first_open_subscription(
            call.store,
            request.event_name,
            request.event_key,
            request.as_of if request.HasField("as_of") else None,
        )
        return GetFirstOpenSubscriptionResponse(subscription=found)

    async def TerminateSubscription(
        self, request: TerminateSubscriptionRequest, call: Call
    ) -> TerminateSubscriptionResponse:
        """Remove a subscription."""
        check = call.check
        check.id("", "id", request.id)
        token = request.token if request.HasField("token") else None
        if token is not None:
            check.id("", "token", token)
        epoch = check.revision(request, "epoch")
        if epoch is not None and token is None:
            check.add("", "token", R.FIELD_VIOLATION_REASON_REQUIRED, "is required with an epoch")
        check.done()
        await subscription.terminate_subscription(call.store, request.id, token, epoch)
        return TerminateSubscriptionResponse()

    async def SetSubscriptionToken(
        self, request: SetSubscriptionTokenRequest, call: Call
    ) -> SetSubscriptionTokenResponse:
        """Take hold of a subscription."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        check.key("", "worker_id", request.worker_id)
        check.time("", "expiry", request.expiry)
        duration_ms = None
        if request.HasField("duration"):
            duration_ms = check.lease_ms("duration", request.duration, given=True)
            if request.HasField("expiry"):
                check.add("", "duration", R.FIELD_VIOLATION_REASON_DUPLICATE, "expiry is given too")
        check.revision(request, "epoch")
        check.done()
        return await subscription.set_subscription_token(call.store, request, duration_ms)

    async def ClearSubscriptionToken(
        self, request: ClearSubscriptionTokenRequest, call: Call
    ) -> ClearSubscriptionTokenResponse:
        """Let go of a subscription."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        epoch = check.revision(request, "epoch")
        check.done()
        await subscription.clear_subscription_token(call.store, request.id, request.token, epoch)
        return ClearSubscriptionTokenResponse()

    async def RenewSubscriptionToken(
        self, request: RenewSubscriptionTokenRequest, call: Call
    ) -> RenewSubscriptionTokenResponse:
        """Hold a subscription for longer."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        epoch = check.revision(request, "epoch")
        duration_ms = check.lease_ms(
            "duration", request.duration, given=request.HasField("duration")
        )
        check.done()
        return await subscription.renew_subscription_token(
            call.store, request.id, request.token, epoch, duration_ms
        )

    async def ListSubscriptions(
        self, request: ListSubscriptionsRequest, call: Call
    ) -> ListSubscriptionsResponse:
        """Answer subscriptions, open and held."""
        check = call.check
        check.key("", "workflow_id", request.workflow_id)
        check.key("", "event_name", request.event_name)
        check.key("", "event_key", request.event_key)
        if request.HasField("event_key") and not request.event_name:
            check.add(
                "", "event_name", R.FIELD_VIOLATION_REASON_REQUIRED, "is required with an event_key"
            )
        page_size = check.page_size(request.page_size)
        check.done()
        page = await subscription.list_subscriptions(
            call.store,
            request,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
            paging.page_bytes(call.max_message_bytes),
        )
        return ListSubscriptionsResponse(
            subscriptions=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )


def page_of_one(subscription: EventSubscription) -> GetSubscriptionsResponse:
    """The largest answer in which a subscription must fit: a page of its own, with more to come."""
    return GetSubscriptionsResponse(
        subscriptions=[subscription], next_page_token="x" * paging.MAX_TOKEN_BYTES
    )


def _check_query(
    request: GetSubscriptionsRequest | GetFirstOpenSubscriptionRequest, check: Check
) -> None:
    check.id("", "event_name", request.event_name)
    check.key("", "event_key", request.event_key)
    check.time("", "as_of", request.as_of)
