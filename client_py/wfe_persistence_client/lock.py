"""Operations on locks, and blocks of code that hold one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

from wfe.persistence.v1 import lock_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE, Connection, new_id
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import LeaseLost, LockHeld, PersistenceError
from wfe_persistence_client.link import log
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import AcquiredLock, Lock

#: The longest wait that the server accepts, in seconds.
_LONGEST_WAIT: Final = 60.0
#: Between two waits, in seconds: a server may end one early.
_WAIT_PAUSE: Final = 0.05
#: How long a lock lasts by default, as on the server.
_DEFAULT_TTL: Final = timedelta(seconds=30)
#: Renewals per ttl.
_RENEWALS: Final = 3
#: Minimum number of seconds between two renewals.
_RENEWAL_PAUSE: Final = 0.1
#: Minimum timeout of a renewal, in seconds.
_RENEWAL_TIMEOUT: Final = 1.0


class Locks(Connection):
    """The operations on locks."""

    async def acquire_lock(
        self,
        resource: str,
        *,
        owner: str = "",
        ttl: timedelta | None = None,
        wait: timedelta | None = None,
        request_id: str | None = None,
    ) -> AcquiredLock | None:
        """Acquires the lock on a resource; None: somebody else holds it.

        It is not re-entrant: while the lock is held, everybody is refused, its holder
        too. The caller must renew it before it expires, and release it; `lock` does
        both.

        Args:
            resource: what to lock, at most 512 bytes.
            owner: who acquires it, for information; at most 512 bytes.
            ttl: how long the lock lasts unless it is renewed, 1 ms to 24 h; None: 30 s.
            wait: how long to wait for a lock that is held, up to 60 s; None: not at
                all. The provider's timeout counts in addition.
            request_id: the idempotency key of this attempt, a UUID: repeating the call
                with the same key and owner returns the same lock for as long as it is
                held. None: a new one, shared by the attempts that this call makes.
        """
        response = await self._acquire_lock(
            resource,
            owner=owner,
            ttl=ttl,
            wait=wait,
            request_id=new_id() if request_id is None else request_id,
        )
        if not response.acquired:
            return None
        return convert.acquired_lock_from_proto(resource, response)

    async def _acquire_lock(
        self,
        resource: str,
        *,
        owner: str,
        ttl: timedelta | None,
        wait: timedelta | None,
        request_id: str,
    ) -> lock_pb2.AcquireLockResponse:
        request = build(
            lock_pb2.AcquireLockRequest,
            resource=resource,
            owner=owner,
            ttl=convert.optional_duration(ttl),
            wait=convert.optional_duration(wait),
            request_id=request_id,
        )
        waiting = 0.0 if wait is None else max(wait.total_seconds(), 0.0)
        # The wait ends before the deadline, on which the server decides.
        deadline = Deadline(self._calls.timeout + waiting)
        return await self._calls.unary(self._locks.AcquireLock, request, deadline)

    async def renew_locks(
        self, tokens: Iterable[str], *, ttl: timedelta | None = None
    ) -> datetime | None:
        """Renews locks, all or nothing.

        Args:
            tokens: the tokens of the locks; at most 1000, no duplicates. They stay
                valid.
            ttl: how long the locks last from now, by the database's clock, 1 ms to
                24 h; None: 30 s.

        Returns:
            When all these locks expire, by the database's clock; None: no token was
            given.

        Raises:
            LeaseLost: some are no longer held, or have expired; nothing was changed.
        """
        response = await self._calls.unary(
            self._locks.RenewLocks,
            build(
                lock_pb2.RenewLocksRequest,
                tokens=list(tokens),
                ttl=convert.optional_duration(ttl),
            ),
        )
        return convert.expiry_from_proto(response)

    async def release_lock(self, token: str) -> bool:
        """Releases a lock; one that is no longer held with this token is no error.

        Returns:
            Whether it was held until now. False: it had expired or been released, also
            by an earlier attempt of this call whose response was lost.
        """
        request = build(lock_pb2.ReleaseLockRequest, token=token)
        return (await self._calls.unary(self._locks.ReleaseLock, request)).released

    async def break_lock(self, resource: str, *, epoch: int | None = None) -> Lock | None:
        """Releases the lock on a resource without its token, for operators.

        Args:
            resource: the resource.
            epoch: only the lock with this epoch (`Lock.epoch`), so that the next
                holder's is not released instead; None: whoever holds it.

        Returns:
            The lock that was released; None: nobody held it, or not with this epoch.
        """
        request = build(lock_pb2.BreakLockRequest, resource=resource, epoch=epoch)
        response = await self._calls.unary(self._locks.BreakLock, request)
        return convert.lock_from_proto(response.broken) if response.HasField("broken") else None

    async def list_locks(self, *, resource_prefix: str = "", owner: str = "") -> list[Lock]:
        """Returns the locks that are held, in the order of their resources.

        Args:
            resource_prefix: only on resources that start with this; empty: any.
            owner: only of this owner; empty: any.
        """
        pages = self._in_one_go().iter_locks(
            resource_prefix=resource_prefix, owner=owner, page_size=LARGEST_PAGE
        )
        return [lock async for lock in pages]

    def iter_locks(
        self, *, resource_prefix: str = "", owner: str = "", page_size: int = 0
    ) -> AsyncIterator[Lock]:
        """`list_locks` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._locks.ListLocks,
            build(
                lock_pb2.ListLocksRequest,
                resource_prefix=resource_prefix,
                owner=owner,
                page_size=page_size,
            ),
            lambda page: map(convert.lock_from_proto, page.locks),
        )

    def lock(
        self,
        resource: str,
        *,
        owner: str = "",
        ttl: timedelta = _DEFAULT_TTL,
        wait: timedelta | None = None,
    ) -> "HeldLock":
        """Holds the lock on a resource while a block runs.

            async with provider.lock("invoices", owner="host-7") as lock:
                ...

        The lock is renewed in the background, starting after a third of its ttl, and
        released at the end of the block. If it is lost (the store was unreachable for
        too long, the event loop was blocked, an operator broke it), the block is
        cancelled, as by `asyncio.timeout`, and `LeaseLost` is raised.

        Another holder may have started before that is noticed. Where that must not do
        harm, store under the lock (`step.hold(lock)`, `held_lock_tokens`), or pass
        `lock.epoch` on to the system that is written to.

        Args:
            resource: what to lock, at most 512 bytes.
            owner: who holds it, for information; at most 512 bytes.
            ttl: how long the lock lasts unless it is renewed, 1 ms to 24 h. Below 1 s,
                renewals are not reliable.
            wait: how long to wait for a lock that is held; None: the provider's
                timeout.

        Raises:
            LockHeld: somebody else held it for as long as the wait; on entry.
            LeaseLost: it was lost; at the end of the block.
        """
        return HeldLock(self, resource, owner, ttl, wait)


class Hold:
    """A lock that a block of code holds; see `PersistenceProvider.lock`."""

    def __init__(
        self,
        provider: Locks,
        resource: str,
        owner: str,
        ttl: timedelta,
        wait: timedelta | None,
    ) -> None:
        self._provider = provider
        self._resource = resource
        self._owner = owner
        self._ttl = ttl
        self._wait = wait
        self._acquired: AcquiredLock | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._lost: LeaseLost | None = None

    @property
    def acquired(self) -> AcquiredLock:
        """The lock as it was acquired; raises RuntimeError before the block."""
        if self._acquired is None:
            raise RuntimeError("the lock has not been acquired")
        return self._acquired

    @property
    def token(self) -> str:
        """Proof of the hold, for `held_lock_tokens`; raises like `acquired`."""
        return self.acquired.token

    @property
    def epoch(self) -> int:
        """The fencing token (`AcquiredLock.epoch`); raises like `acquired`."""
        return self.acquired.epoch

    @property
    def lost(self) -> bool:
        """Whether the lock is known to be lost: somebody else may hold it now."""
        return self._lost is not None

    async def _acquire(self, on_lost: Callable[[], None]) -> None:
        """Acquires the lock and renews it from then on; `on_lost` is called if that fails."""
        if self._acquired is not None:
            raise RuntimeError("a lock can be held only once: create another one")
        timeout = self._provider._calls.timeout
        end = Deadline(timeout if self._wait is None else self._wait.total_seconds())
        while True:
            # From before the call is sent, so that it never ends after the actual lease.
            lease = Deadline(self._ttl.total_seconds())
            wait = min(max(end.remaining(), 0.0), _LONGEST_WAIT)
            response = await self._provider._acquire_lock(
                self._resource,
                owner=self._owner,
                ttl=self._ttl,
                wait=timedelta(seconds=wait),
                request_id=new_id(),
            )
            if response.acquired:
                break
            if end.remaining() <= 0:
                holder = response.holder
                raise LockHeld(
                    f"the resource is locked by {holder.owner!r}",
                    metadata={"owner": holder.owner, "epoch": str(holder.epoch)},
                )
            await asyncio.sleep(_WAIT_PAUSE)
        self._acquired = convert.acquired_lock_from_proto(self._resource, response)
        try:
            if lease.remaining() < self._ttl.total_seconds() * (1 - 1 / _RENEWALS):
                # It waited; only the server knows since when it holds the lock.
                lease = await self._renew_once(self._ttl.total_seconds())
        except BaseException:
            await self._release(lease)
            raise
        self._renewing = asyncio.create_task(self._renew(lease, on_lost))

    async def _renew_once(self, seconds: float) -> Deadline:
        lease = Deadline(self._ttl.total_seconds())
        timeout = min(max(seconds, 0.001), self._provider._calls.timeout)
        await self._provider.with_timeout(timeout).renew_locks([self.token], ttl=self._ttl)
        return lease

    async def _renew(self, lease: Deadline, on_lost: Callable[[], None]) -> None:
        every = max(self._ttl.total_seconds() / _RENEWALS, _RENEWAL_PAUSE)
        while True:
            await asyncio.sleep(max(min(every, lease.remaining()), 0))
            try:
                # A call that hangs must not delay the next one, nor the end of the lease.
                lease = await self._renew_once(min(max(every, _RENEWAL_TIMEOUT), lease.remaining()))
            except LeaseLost as error:
                self._lost = error
            except PersistenceError as error:
                # It may pass before the lock expires.
                if lease.remaining() > 0:
                    continue
                self._lost = LeaseLost(
                    "the lock could not be renewed before it expired", reason="LEASE_LOST"
                )
                self._lost.__cause__ = error
            if self._lost is not None:
                on_lost()
                return

    async def _end(self) -> None:
        """Ends the renewal, and releases the lock unless it is lost."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if not self.lost:
            await self._release(Deadline(self._ttl.total_seconds()))

    async def _release(self, lease: Deadline) -> None:
        """Releases the lock; if that fails, it expires by itself."""
        timeout = min(max(lease.remaining(), _RENEWAL_TIMEOUT), self._provider._calls.timeout)
        try:
            await self._provider.with_timeout(timeout).release_lock(self.token)
        except PersistenceError as error:
            log.debug("the lock on %r was not released: %s", self._resource, error)


class HeldLock(Hold):
    """A lock as an async context manager; `PersistenceProvider.lock` creates one."""

    _task: asyncio.Task[object]
    #: How often the block's task had been cancelled before.
    _cancelling: int
    #: Whether the block was cancelled because the lock was lost.
    _cancelled = False

    async def __aenter__(self) -> Self:
        """Acquires the lock."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        await self._acquire(self._cancel)
        return self

    def _cancel(self) -> None:
        self._cancelled = True
        self._task.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases the lock; raises LeaseLost if it was lost."""
        if self._renewing is not None and not self._cancelled:
            self._renewing.cancel()
        ours = False
        if self._cancelled:
            if exc_type is not asyncio.CancelledError:
                # The block ended by itself, before it was cancelled: that is still to come.
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            ours = self._task.uncancel() <= self._cancelling
        await self._end()
        if self._lost is not None and (
            exc_type is None or (ours and exc_type is asyncio.CancelledError)
        ):
            raise self._lost
