"""LockService."""

from __future__ import annotations

import logging

from wfe.persistence.v1 import lock_pb2 as pb
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.store import lock

log = logging.getLogger(__name__)


class LockService:
    """Locks: one holder at a time for each resource."""

    async def AcquireLock(
        self, request: pb.AcquireLockRequest, call: Call
    ) -> pb.AcquireLockResponse:
        """Acquire a lock, or wait for it."""
        check = call.check
        check.id("", "resource", request.resource)
        check.key("", "owner", request.owner)
        ttl_ms = check.lease_ms(request, "ttl")
        wait = check.wait_seconds(request)
        check.request_id(request.request_id)
        check.done()
        with call.waiting(wait) as until:
            acquiring = lock.acquire_lock(call.store, request, ttl_ms, until, call.env.waiters)
            del request  # ten thousand may wait here
            return await acquiring

    async def RenewLocks(self, request: pb.RenewLocksRequest, call: Call) -> pb.RenewLocksResponse:
        """Extend locks."""
        check = call.check
        check.lease_tokens("tokens", request.tokens)
        ttl_ms = check.lease_ms(request, "ttl")
        check.done()
        return await lock.renew_locks(call.store, request.tokens, ttl_ms)

    async def ReleaseLock(
        self, request: pb.ReleaseLockRequest, call: Call
    ) -> pb.ReleaseLockResponse:
        """Release a lock before it expires."""
        check = call.check
        check.id("", "token", request.token)
        check.done()
        released = await lock.release_lock(call.store, request.token, call.env.waiters)
        return pb.ReleaseLockResponse(released=released)

    async def BreakLock(self, request: pb.BreakLockRequest, call: Call) -> pb.BreakLockResponse:
        """Release somebody else's lock."""
        check = call.check
        check.id("", "resource", request.resource)
        check.revision(request, "epoch")
        check.done()
        broken = await lock.break_lock(call.store, request, call.env.waiters)
        if broken is not None:
            log.warning(
                "%s broke the lock on %r in the namespace %s, which %r held with epoch %d",
                call.caller.principal or "somebody",
                broken.resource,
                call.store.namespace,
                broken.owner,
                broken.epoch,
            )
        return pb.BreakLockResponse(broken=broken)

    async def ListLocks(self, request: pb.ListLocksRequest, call: Call) -> pb.ListLocksResponse:
        """Return the locks that are held."""
        check = call.check
        check.key("", "resource_prefix", request.resource_prefix)
        check.key("", "owner", request.owner)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await lock.list_locks(call.store, request, *call.page(request, page_size))
        return pb.ListLocksResponse(
            locks=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )
