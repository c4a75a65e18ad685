"""How every call is made: with a deadline, safe retries and typed errors."""

import asyncio
import copy
import random
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Protocol, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor

from wfe_persistence_client.deadline import Deadline, check_timeout
from wfe_persistence_client.errors import (
    AlreadyExists,
    CommitOutcomeUnknown,
    DeadlineExceeded,
    EventNotFound,
    FailedPrecondition,
    LeaseLost,
    PersistenceError,
    PointerNotFound,
    RevisionMismatch,
    SubscriptionNotFound,
    TokenMismatch,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.link import Link, closed_during_call, is_cancelled, log
from wfe_persistence_client.positions import Reading

Metadata: TypeAlias = list[tuple[str, str]]

#: Of a stream that goes on for ever.
DEFAULT_HEARTBEAT: Final = timedelta(seconds=10)

# After so many heartbeats that did not come, and some seconds, such a stream is given up.
_MISSED_HEARTBEATS: Final = 2
_GRACE_SECONDS: Final = 5.0


class _Request(Protocol):
    DESCRIPTOR: Descriptor


class _PageRequest(_Request, Protocol):
    page_token: str


class _Page(Protocol):
    next_page_token: str


_RequestT = TypeVar("_RequestT", bound=_Request)
_ResponseT = TypeVar("_ResponseT")
_PageRequestT = TypeVar("_PageRequestT", bound=_PageRequest)
_WatchRequestT = TypeVar("_WatchRequestT", bound=_Request)
_WatchedT = TypeVar("_WatchedT")
_PageT = TypeVar("_PageT", bound=_Page)
_T = TypeVar("_T")


class Safety(Enum):
    """Whether a call may be retried after a transient failure."""

    #: Writes nothing: always retried.
    READ = auto()
    #: Repeating the call has the same result: always retried.
    REPEATABLE = auto()
    #: Repeating the call repeats its effect: retried only if nothing was written.
    UNREPEATABLE = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """How a call may be retried."""

    safety: Safety
    #: The error that a retry gets if an earlier attempt was applied. After an attempt
    #: that may have been applied, it means success.
    done: type[PersistenceError] | None = None
    #: The field of the request that has the expected revision. After an attempt that
    #: may have been applied, a higher stored revision may be due to that attempt or to
    #: another writer: the outcome is unknown.
    guard: str | None = None
    #: The request carries a request_id, which the server recognizes: if it rejects a
    #: retry, no earlier attempt was applied.
    once: bool = False


#: One line per RPC, by its name in the protos.
RULES: Mapping[str, Rule] = {
    # Creates carry an id generated before the first attempt (see new_id), and repeating
    # a create returns the same response.
    "CreateNewWorkflow": Rule(Safety.REPEATABLE),
    "CreateWorkflows": Rule(Safety.REPEATABLE),
    # Persists and commits carry a request_id. A server too old to support it stores the
    # same, but does not recognize a retry: hence the guard (see saving.py).
    "PersistWorkflow": Rule(Safety.REPEATABLE, guard="expected_revision"),
    "PersistWorkflowWithSubscriptions": Rule(Safety.REPEATABLE, guard="expected_revision"),
    "CommitWorkflow": Rule(Safety.REPEATABLE, once=True),
    "GetWorkflowInstance": Rule(Safety.READ),
    "GetWorkflowInstanceByName": Rule(Safety.READ),
    "WaitForWorkflow": Rule(Safety.READ),
    "GetWorkflowInstances": Rule(Safety.READ),
    "GetRunnableInstances": Rule(Safety.READ),
    # A number may be skipped, but is never returned twice.
    "NextDefinitionSequence": Rule(Safety.REPEATABLE),
    # Carries a claim_id, by which a repetition is recognized.
    "SetNameHolder": Rule(Safety.REPEATABLE),
    "GetNameHolder": Rule(Safety.READ),
    "ListExecutionPointers": Rule(Safety.READ),
    "ListWorkflows": Rule(Safety.READ),
    "CountWorkflows": Rule(Safety.READ),
    # A retry would also delete what others have created since.
    "DeleteWorkflow": Rule(Safety.UNREPEATABLE),
    # Rows that an earlier attempt deleted are not counted.
    "PurgeWorkflows": Rule(Safety.REPEATABLE),
    "WatchWorkflows": Rule(Safety.READ),
    "CreateEvent": Rule(Safety.REPEATABLE),
    "CreateEvents": Rule(Safety.REPEATABLE),
    "GetEvent": Rule(Safety.READ),
    "GetRunnableEvents": Rule(Safety.READ),
    "GetEvents": Rule(Safety.READ),
    "MarkEventProcessed": Rule(Safety.REPEATABLE),
    "MarkEventUnprocessed": Rule(Safety.REPEATABLE),
    "ListEvents": Rule(Safety.READ),
    "PurgeEvents": Rule(Safety.REPEATABLE),
    "CreateEventSubscription": Rule(Safety.REPEATABLE),
    "GetSubscription": Rule(Safety.READ),
    "GetSubscriptions": Rule(Safety.READ),
    "GetFirstOpenSubscription": Rule(Safety.READ),
    "TerminateSubscription": Rule(Safety.REPEATABLE, done=SubscriptionNotFound),
    # Succeeds again for the same token and worker.
    "SetSubscriptionToken": Rule(Safety.REPEATABLE),
    "ClearSubscriptionToken": Rule(Safety.REPEATABLE, done=TokenMismatch),
    "RenewSubscriptionToken": Rule(Safety.REPEATABLE),
    "ListSubscriptions": Rule(Safety.READ),
    "ScheduleCommand": Rule(Safety.REPEATABLE),
    # A retry claims other commands; those of a lost response stay claimed until their
    # leases expire.
    "ClaimCommands": Rule(Safety.UNREPEATABLE),
    "CompleteCommands": Rule(Safety.REPEATABLE, done=LeaseLost),
    "ReleaseCommands": Rule(Safety.REPEATABLE, done=LeaseLost),
    "RenewCommands": Rule(Safety.REPEATABLE),
    "ListCommands": Rule(Safety.READ),
    # A repetition may publish again, which watchers must expect in any case.
    "Publish": Rule(Safety.REPEATABLE),
    "Watch": Rule(Safety.READ),
    # Carries a request_id.
    "AcquireLock": Rule(Safety.REPEATABLE),
    "RenewLocks": Rule(Safety.REPEATABLE),
    "ReleaseLock": Rule(Safety.REPEATABLE),
    # A retry would also release the next holder's lock.
    "BreakLock": Rule(Safety.UNREPEATABLE),
    "BreakCommandLease": Rule(Safety.UNREPEATABLE),
    "ListLocks": Rule(Safety.READ),
    "Enqueue": Rule(Safety.REPEATABLE),
    # A retry takes other items; those of a lost response stay taken until their leases
    # expire. The items that it acknowledges are lost to a retry.
    "Dequeue": Rule(Safety.UNREPEATABLE),
    "Acknowledge": Rule(Safety.REPEATABLE, done=LeaseLost),
    "ReturnItems": Rule(Safety.REPEATABLE, done=LeaseLost),
    "RenewItems": Rule(Safety.REPEATABLE),
    "ListQueueItems": Rule(Safety.READ),
    "GetQueueStats": Rule(Safety.READ),
    "RequeueItems": Rule(Safety.REPEATABLE),
    # A retry would also delete what others have enqueued since.
    "DeleteItems": Rule(Safety.UNREPEATABLE),
    "ConfigureQueue": Rule(Safety.REPEATABLE),
    "EnsureStoreExists": Rule(Safety.REPEATABLE),
    "PersistErrors": Rule(Safety.UNREPEATABLE),
    "ListErrors": Rule(Safety.READ),
    "GetStoreInfo": Rule(Safety.READ),
    # A retry would also remove what others have stored since.
    "TruncateAll": Rule(Safety.UNREPEATABLE),
    "CreateNamespace": Rule(Safety.REPEATABLE),
    "ListNamespaces": Rule(Safety.READ),
    "ListDatabases": Rule(Safety.READ),
    # A retry would also delete what others have created since.
    "DeleteNamespace": Rule(Safety.UNREPEATABLE),
    "CreateNamespaceSet": Rule(Safety.REPEATABLE),
    "GetNamespaceSet": Rule(Safety.READ),
    "DeleteNamespaceSet": Rule(Safety.UNREPEATABLE),
    # It goes on where it was.
    "MoveNamespace": Rule(Safety.REPEATABLE),
    "AbortMoveNamespace": Rule(Safety.REPEATABLE),
    "SetRetentionPolicy": Rule(Safety.REPEATABLE),
    "GetRetentionPolicy": Rule(Safety.READ),
    "RunRetention": Rule(Safety.REPEATABLE),
    "GetStorageReport": Rule(Safety.READ),
    "ExportRecords": Rule(Safety.READ),
    # What is there already, the same, is left as it is.
    "ImportRecords": Rule(Safety.REPEATABLE),
}

# The reasons of transient failures. UNAVAILABLE is always one, with any reason or none.
_PASSING_REASONS = frozenset(
    {
        "POOL_EXHAUSTED",
        "NAMESPACE_BUSY",
        "TOO_MANY_CALLS",
        "CALLER_LIMITED",
        "ADMINISTRATION_BUSY",
        "DATABASE_FULL",
        "TRANSACTION_CONFLICT",
        "ROW_LOCKED",
        "READER_TOO_SLOW",
    }
)


# Errors that a server which supports request_id returns only if it has not applied that
# request. (WorkflowNotFound is not one: deleting a workflow also deletes its
# request_ids.)
_REFUSALS = (
    RevisionMismatch,
    FailedPrecondition,
    AlreadyExists,
    PointerNotFound,
    SubscriptionNotFound,
    EventNotFound,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how fast a call is retried, where that is safe.

    By default only the call's deadline (`timeout`) ends the attempts, so that a server that
    is away for a while goes unnoticed.

    An attempt is a call that was sent. While there is no connection, nothing is sent, and
    only the deadline ends the wait for one (with `max_attempts=1`, the first failure to
    connect does).

    The wait before attempt n+1 is a random time between 0 and
    `initial_backoff * multiplier**(n-1)` seconds, but at most `max_backoff`; a delay
    that the server requests is added to it.

    Attributes:
        max_attempts: maximum number of attempts, 1 or higher; None: as many as there is
            time for; 1: no retries, and no wait for a connection that fails.
        initial_backoff: in seconds, 0 or higher.
        max_backoff: in seconds, 0 or higher.
        multiplier: 1 to 10.
    """

    max_attempts: int | None = None
    initial_backoff: float = 0.1
    max_backoff: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        """Checks the types and bounds."""
        Fields(RetryPolicy).check(self)
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if self.initial_backoff < 0 or self.max_backoff < 0:
            raise ValueError("a backoff must not be negative")
        if not 1 <= self.multiplier <= 10:
            raise ValueError("multiplier must be 1 to 10")

    def ends_after(self, attempts: int) -> bool:
        """Whether that many attempts are as many as may be made."""
        return self.max_attempts is not None and attempts >= self.max_attempts

    def backoff(self, attempts: int) -> float:
        """The wait in seconds after that many failed attempts, from 1."""
        # The exponent is bounded because a power beyond the range of float raises.
        ceiling = self.initial_backoff * self.multiplier ** min(attempts - 1, 100)
        return random.uniform(0, min(ceiling, self.max_backoff))


class Calls:
    """Makes calls on one link: with deadlines, retries and typed errors."""

    def __init__(
        self,
        link: Link,
        *,
        timeout: float,
        retry: RetryPolicy,
        metadata: Callable[[], Metadata],
        reading: Reading,
    ) -> None:
        check_timeout(timeout)
        self._link = link
        self.reading = reading
        self.timeout = timeout
        self.retry = retry
        self._metadata = metadata
        self._deadline: Deadline | None = None

    def in_one_go(self) -> Self:
        """A copy in which all calls share one deadline, which starts now."""
        other = copy.copy(self)
        other._deadline = self.deadline()
        return other

    def deadline(self) -> Deadline:
        """The deadline of a method that starts now and makes several calls."""
        return self._deadline or Deadline(self.timeout)

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_RequestT, _ResponseT],
        request: _RequestT,
        deadline: Deadline | None = None,
    ) -> _ResponseT:
        """Makes a call with one response."""

        writes = _rule(request).safety is not Safety.READ

        async def attempt(seconds: float, metadata: Metadata) -> _ResponseT:
            losses = self.reading.losses
            call = method(request, timeout=seconds, metadata=metadata)
            response = await call
            if writes:
                self.reading.written(await call.trailing_metadata(), losses)
            return response

        return await self._with_retries(request, attempt, deadline)

    async def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_PageRequestT, _PageT],
        request: _PageRequestT,
        items: Callable[[_PageT], Iterable[_T]],
        deadline: Deadline | None = None,
    ) -> AsyncIterator[_T]:
        """The items of all pages, each page fetched on demand.

        Without a deadline, each page has its own.
        """
        while True:
            page = await self.unary(method, request, deadline)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def collect(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_RequestT, _ResponseT],
        request: _RequestT,
        deadline: Deadline | None = None,
    ) -> list[_ResponseT]:
        """Makes a call with a stream of responses; a broken stream is restarted."""

        async def attempt(seconds: float, metadata: Metadata) -> list[_ResponseT]:
            stream = method(request, timeout=seconds, metadata=metadata)
            try:
                return [response async for response in stream]
            finally:
                # Cancelling the task that reads does not reach all of the stream's own tasks,
                # which would go on until the deadline.
                stream.cancel()

        return await self._with_retries(request, attempt, deadline)

    async def exchange(
        self,
        # In quotes, because in older versions of grpcio this one can't be subscripted.
        method: "grpc.aio.StreamStreamMultiCallable[_RequestT, _ResponseT]",
        requests: Sequence[_RequestT],
        deadline: Deadline | None = None,
    ) -> list[_ResponseT]:
        """Makes a call with a stream of requests, at least one, and a response to each."""

        async def attempt(seconds: float, metadata: Metadata) -> list[_ResponseT]:
            losses = self.reading.losses
            stream = method(iter(requests), timeout=seconds, metadata=metadata)
            try:
                responses = [response async for response in stream]
                self.reading.written(await stream.trailing_metadata(), losses)
                return responses
            finally:
                stream.cancel()

        return await self._with_retries(requests[0], attempt, deadline)

    async def repeated(
        self, request: _Request, attempt: Callable[[float, Metadata], Awaitable[_T]]
    ) -> _T:
        """Makes attempts at something, each given its seconds and metadata, by the rule for
        this request."""
        return await self._with_retries(request, attempt, None)

    async def watch(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_WatchRequestT, _WatchedT],
        request: _WatchRequestT,
        heartbeat: timedelta,
        *,
        ends: bool = False,
    ) -> AsyncGenerator[_WatchedT, None]:
        """The responses of a stream that goes on for ever, or with `ends` until the server ends it.

        A stream that breaks, or is silent although there should be heartbeats, is resumed
        behind the last response if that has a cursor, after which the attempts and their
        timeout begin anew.
        """
        silence = heartbeat.total_seconds() * _MISSED_HEARTBEATS + _GRACE_SECONDS
        while True:
            stream, response = await self._with_retries(
                request, partial(_open, method, request), None
            )
            try:
                while True:
                    if cursor := getattr(response, "cursor", ""):
                        cast(Any, request).after = cursor
                    yield response
                    async with asyncio.timeout(silence):
                        read = await stream.read()
                    if read is grpc.aio.EOF:
                        if ends:
                            return
                        break
                    response = cast(_WatchedT, read)
            except TimeoutError:
                log.debug("%s: silent for %g s", _rpc(request), silence)
            except grpc.aio.AioRpcError as exc:
                error = from_rpc_error(exc)
                if not passes(error):
                    raise error from exc
                log.debug("%s: resumed after: %s", _rpc(request), error)
            except asyncio.CancelledError:
                if not self._link.closed or is_cancelled():
                    raise
                # Not cancelled: gRPC ends calls this way when the channel is closed.
                raise closed_during_call() from None
            finally:
                stream.cancel()

    async def settle(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_RequestT, _ResponseT],
        request: _RequestT,
        already_done: Callable[[PersistenceError], bool] = lambda _error: True,
    ) -> None:
        """Makes a call without a result whose retry fails if it was applied.

        The error that its rule names counts as success after an attempt that may have
        been applied, unless `already_done` returns False for it.
        """
        try:
            await self.unary(method, request)
        except PersistenceError as error:
            done = _rule(request).done
            if not (
                done is not None
                and isinstance(error, done)
                and error.maybe_written
                and already_done(error)
            ):
                raise

    async def _with_retries(
        self,
        request: _Request,
        attempt: Callable[[float, Metadata], Awaitable[_T]],
        deadline: Deadline | None,
    ) -> _T:
        self._link.check()
        deadline = deadline or self.deadline()
        rule = _rule(request)
        maybe_written = renewed = False
        attempts = 0
        while True:
            attempts += 1
            try:
                await self._link.ready(deadline, fail_fast=self.retry.max_attempts == 1)
                metadata = self._metadata()
                sent = metadata
                if rule.safety is Safety.READ:
                    sent = metadata + self.reading.metadata()
                return await attempt(_time_left(deadline), sent)
            except PersistenceError as exc:
                error = exc
            except grpc.aio.AioRpcError as exc:
                error = from_rpc_error(exc)
            except grpc.aio.UsageError as exc:
                # Closed since it was ready: not sent.
                error = closed_during_call()
                error.__cause__ = exc
            except asyncio.CancelledError as exc:
                if not self._link.closed or is_cancelled():
                    if rule.safety is not Safety.READ:
                        self.reading.lost()
                    raise
                # This task was not cancelled: gRPC ends calls this way when the channel
                # is closed.
                error = closed_during_call()
                error.maybe_written = True
                error.__cause__ = exc
            this_one = error.maybe_written and rule.safety is not Safety.READ
            maybe_written |= this_one
            error.maybe_written = maybe_written
            wait = self.retry.backoff(attempts) + (error.retry_after or 0.0)
            # A token may expire, or be replaced, at any time.
            renews = (
                isinstance(error, Unauthenticated) and not renewed and self._metadata() != metadata
            )
            if renews:
                renewed = True
                wait = 0.0
            if (
                not (renews or passes(error))
                or (maybe_written and rule.safety is Safety.UNREPEATABLE)
                or self.retry.ends_after(attempts)
                or wait >= deadline.remaining()
                or self._link.closed
            ):
                if rule.once and isinstance(error, _REFUSALS):
                    error.maybe_written = this_one
                verdict = _verdict(rule, request, error)
                if maybe_written:
                    self.reading.lost()
                try:
                    raise verdict from verdict.__cause__
                finally:
                    # Its traceback refers to this frame, which must not refer back.
                    del error, verdict
            log.debug(
                "%s: attempt %d failed, the next in %.2f s: %s",
                _rpc(request),
                attempts,
                wait,
                error,
            )
            await asyncio.sleep(wait)


def all_lost(tokens: Sequence[str]) -> Callable[[PersistenceError], bool]:
    """Whether every one of these leases is lost, according to an error.

    Ending leases is all or nothing: if one of them is still held, no earlier attempt was
    applied.
    """

    def lost(error: PersistenceError) -> bool:
        return isinstance(error, LeaseLost) and set(tokens) <= set(error.lease_tokens)

    return lost


async def _open(
    method: grpc.aio.UnaryStreamMultiCallable[_RequestT, _ResponseT],
    request: _RequestT,
    seconds: float,
    metadata: Metadata,
) -> tuple[grpc.aio.UnaryStreamCall[_RequestT, _ResponseT], _ResponseT]:
    """A stream without a deadline, and its first response, which must come in time."""
    stream = method(request, metadata=metadata)
    try:
        async with asyncio.timeout(seconds):
            response = await stream.read()
        if response is grpc.aio.EOF:
            raise Unavailable("the stream ended without a response")  # noqa: TRY301
    except TimeoutError as exc:
        stream.cancel()
        raise DeadlineExceeded(
            "the stream did not begin in time", reason="DEADLINE_EXCEEDED"
        ) from exc
    except BaseException:
        stream.cancel()
        raise
    return stream, cast(_ResponseT, response)


def _time_left(deadline: Deadline) -> float:
    remaining = deadline.remaining()
    if remaining <= 0:
        # Checked here because gRPC may serve a call that has no time left.
        raise DeadlineExceeded("no time was left to send the call", reason="DEADLINE_EXCEEDED")
    return remaining


def _rpc(request: _Request) -> str:
    # The RPC is in the name of its request message, by buf's STANDARD rules.
    return request.DESCRIPTOR.name.removesuffix("Request")


def _rule(request: _Request) -> Rule:
    return RULES[_rpc(request)]


def passes(error: PersistenceError) -> bool:
    """Whether a call that failed so is worth trying again."""
    return isinstance(error, Unavailable) or error.reason in _PASSING_REASONS


def _verdict(rule: Rule, request: _Request, error: PersistenceError) -> PersistenceError:
    """The error to raise to the caller, who does not see the earlier attempts."""
    if not error.maybe_written or isinstance(error, CommitOutcomeUnknown):
        return error
    if isinstance(error, RevisionMismatch) and rule.guard is not None:
        # An earlier attempt, had it been applied, would have increased the revision. 0
        # means that the server did not report it.
        error.maybe_written = error.revision == 0 or error.revision > getattr(request, rule.guard)
        unknown = error.maybe_written
    else:
        unknown = passes(error)
    if not unknown:
        return error
    verdict = CommitOutcomeUnknown(
        f"the write may or may not have been applied; the last attempt failed with: {error}",
        reason="COMMIT_OUTCOME_UNKNOWN",
        status=error.status,
        metadata=error.metadata,
        maybe_written=True,
    )
    verdict.__cause__ = error
    return verdict
