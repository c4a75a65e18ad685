"""SubscriptionService."""

from __future__ import annotations

import uuid

from wfe.persistence.v1 import subscription_pb2 as pb
from wfe_persistence import offload
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, R, read_back
from wfe_persistence.store import subscription


class SubscriptionService:
    """Event subscriptions and their tokens."""

    async def CreateEventSubscription(
        self, request: pb.CreateEventSubscriptionRequest, call: Call
    ) -> pb.CreateEventSubscriptionResponse:
        """Store a new subscription."""
        await offload.run(_prepare_create, request, call.check)
        await subscription.create_event_subscription(call.store, request.subscription)
        return pb.CreateEventSubscriptionResponse(id=request.subscription.id)

    async def GetSubscription(
        self, request: pb.GetSubscriptionRequest, call: Call
    ) -> pb.GetSubscriptionResponse:
        """Return one subscription."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        return pb.GetSubscriptionResponse(
            subscription=await subscription.get_subscription(call.store, request.id)
        )

    async def GetSubscriptions(
        self, request: pb.GetSubscriptionsRequest, call: Call
    ) -> pb.GetSubscriptionsResponse:
        """Return open subscriptions."""
        check = call.check
        query = check.event_lookup(request)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await subscription.get_subscriptions(
            call.store, *query, *call.page(request, page_size)
        )
        return pb.GetSubscriptionsResponse(
            subscriptions=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetFirstOpenSubscription(
        self, request: pb.GetFirstOpenSubscriptionRequest, call: Call
    ) -> pb.GetFirstOpenSubscriptionResponse:
        """Return the oldest open subscription, if there is one."""
        check = call.check
        query = check.event_lookup(request)
        check.done()
        found = await subscription.get_first_open_subscription(call.store, *query)
        return pb.GetFirstOpenSubscriptionResponse(subscription=found)

    async def TerminateSubscription(
        self, request: pb.TerminateSubscriptionRequest, call: Call
    ) -> pb.TerminateSubscriptionResponse:
        """Delete a subscription."""
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
        return pb.TerminateSubscriptionResponse()

    async def SetSubscriptionToken(
        self, request: pb.SetSubscriptionTokenRequest, call: Call
    ) -> pb.SetSubscriptionTokenResponse:
        """Claim a subscription."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        check.key("", "worker_id", request.worker_id)
        expires = request.HasField("expiry")
        if expires:
            check.time("", "expiry", request.expiry)
        duration_ms = None
        if request.HasField("duration"):
            duration_ms = check.lease_ms(request, "duration")
            if expires:
                check.add(
                    "",
                    "duration",
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "must not be set together with expiry",
                )
        epoch = check.revision(request, "epoch")
        check.done()
        return await subscription.set_subscription_token(
            call.store,
            request.id,
            request.token,
            request.worker_id,
            expiry=request.expiry if expires else None,
            duration_ms=duration_ms,
            epoch=epoch,
        )

    async def ClearSubscriptionToken(
        self, request: pb.ClearSubscriptionTokenRequest, call: Call
    ) -> pb.ClearSubscriptionTokenResponse:
        """Release a claim."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        epoch = check.revision(request, "epoch")
        check.done()
        await subscription.clear_subscription_token(call.store, request.id, request.token, epoch)
        return pb.ClearSubscriptionTokenResponse()

    async def RenewSubscriptionToken(
        self, request: pb.RenewSubscriptionTokenRequest, call: Call
    ) -> pb.RenewSubscriptionTokenResponse:
        """Extend a claim."""
        check = call.check
        check.id("", "id", request.id)
        check.id("", "token", request.token)
        epoch = check.revision(request, "epoch")
        duration_ms = check.lease_ms(request, "duration")
        check.done()
        return await subscription.renew_subscription_token(
            call.store, request.id, request.token, epoch, duration_ms
        )

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, call: Call
    ) -> pb.ListSubscriptionsResponse:
        """Return subscriptions, open and claimed."""
        check = call.check
        check.key("", "workflow_id", request.workflow_id)
        check.event_key_with_name(request)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await subscription.list_subscriptions(
            call.store,
            request,
            *call.page(request, page_size),
        )
        return pb.ListSubscriptionsResponse(
            subscriptions=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )


def _prepare_create(request: pb.CreateEventSubscriptionRequest, check: Check) -> None:
    check.required(request, "subscription", check.subscription)
    check.done()
    request.subscription.id = request.subscription.id or str(uuid.uuid4())
    check.fits(read_back.subscriptions([request.subscription]))
