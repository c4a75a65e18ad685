"""How calls end that fail: with the status of what was raised, as far as the caller may know it."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from typing import Any, Final, NoReturn

import grpc

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.deadlines import Deadlines
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.rpc.audit import Entry
from wfe_persistence.rpc.call import Environment
from wfe_persistence.rpc.guard import namespace_of
from wfe_persistence.rpc.services import Method
from wfe_persistence.rpc.status import abort, reason_name

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)

# Reasons that whoever runs the server should know of.
_OVERLOAD: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_TOO_MANY_CALLS,
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
    }
)

Context = grpc.aio.ServicerContext[Any, Any]


class Failures:
    """Ends the calls of a server that fail."""

    def __init__(self, env: Environment, deadlines: Deadlines) -> None:
        self._env = env
        self._deadlines = deadlines

    async def end(self, method: Method, exc: Exception, context: Context, entry: Entry) -> NoReturn:
        """End a call with the status of what was raised."""
        _let_go_of_locals(exc)
        try:
            if isinstance(exc, grpc.aio.BaseError):
                raise exc
            namespace = None if method.server_wide else namespace_of(context)
            error = await self._explain(exc, namespace)
            note_outcome(error, entry)
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError as gone:
            # The call has ended already, mostly because its client has hung up, which is no
            # reason to log anything. Nobody is there to be told of any error.
            log.debug("%s: ended by gRPC: %s", method.name, gone)
            raise asyncio.CancelledError from gone

    async def _explain(self, exc: Exception, namespace: str | None) -> PersistenceError:
        """What the caller may know about a failure."""
        if isinstance(exc, PersistenceError):
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                return await self._explain_missing_tables(exc, namespace)
            return exc
        if isinstance(exc, TimeoutError):
            if self._deadlines.expired:
                return shutting_down()
            return PersistenceError(
                ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, "the deadline passed", retry_after=0.1
            )
        reference = uuid.uuid4().hex[:12]
        log.error("bug %s", reference, exc_info=exc)
        return PersistenceError(
            ErrorReason.ERROR_REASON_INTERNAL,
            f"internal error; the server logged it under {reference}",
        )

    async def _explain_missing_tables(
        self, error: PersistenceError, namespace: str | None
    ) -> PersistenceError:
        """While the server starts and migrates, they will be created soon; later their absence may
        mean that the namespace was deleted."""
        if self._env.readiness.is_starting:
            return PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
                "the server is starting and migrating the store",
                retry_after=0.5,
            )
        if namespace:
            self._env.namespaces.forget(namespace)
            try:
                await self._env.namespaces.get(namespace)
            except PersistenceError as exc:
                return exc
        return error


def _let_go_of_locals(exc: BaseException | None) -> None:
    """Free what the functions that an error passed through held: the request above all.

    gRPC keeps the error that ends a call, and that keeps its traceback: a cycle, which lasts until
    the garbage collector comes.
    """
    seen = set()  # an error may be the cause of itself: `raise error from error`
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        traceback.clear_frames(exc.__traceback__)
        exc = exc.__cause__ or exc.__context__


def note_outcome(error: PersistenceError | None, entry: Entry) -> None:
    """Note the outcome of a call; None: it succeeded."""
    if error is None:
        entry.ended("OK")
        return
    name = reason_name(error.reason)
    entry.ended(name, error.reason)
    entry.error = str(error)
    if error.reason in _OVERLOAD:
        refusals.warn(name, f"calls are refused with {name}: {error}")
