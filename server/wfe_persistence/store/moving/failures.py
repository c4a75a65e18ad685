"""Why a move fails, as callers are told."""

from __future__ import annotations

import logging

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.moving import directory
from wfe_persistence.store.moving.directory import Entry
from wfe_persistence.store.moving.prerequisites import NotPossible
from wfe_persistence.store.postgres.reachability import unavailable, why

log = logging.getLogger(__name__)


class explained:  # noqa: N801 — read as a statement
    """Errors of PostgreSQL and of the move become ones that a caller can act on."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, NotPossible):
            raise not_possible(str(exc)) from exc
        if isinstance(exc, psycopg.OperationalError):
            raise unavailable(why(exc)) from exc
        if isinstance(exc, psycopg.Error):
            raise not_possible("PostgreSQL refused it; see the server's log", why(exc)) from exc


def not_possible(message: str, detail: str = "") -> PersistenceError:
    """The error of a move that can't be made, or go on. `detail`: what PostgreSQL said."""
    if detail:
        log.warning("a move failed: %s", detail)
    return PersistenceError(ErrorReason.ERROR_REASON_MOVE_NOT_POSSIBLE, message, detail=detail)


def in_progress(entry: Entry) -> PersistenceError:
    """The error of a namespace that is being moved, but not there, or not any more."""
    to = entry.moving_to or entry.database
    doing = (
        "its move is being aborted"
        if entry.phase == directory.ABORTING
        else f"it is being moved to {to}"
    )
    return PersistenceError(
        ErrorReason.ERROR_REASON_MOVE_IN_PROGRESS,
        f"namespace {entry.namespace}: {doing}",
        metadata={"namespace": entry.namespace, "database": to},
    )


def past_the_fence(namespace: str) -> PersistenceError:
    """The error of a move that can't be given up any more."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_MOVE_IN_PROGRESS,
        f"namespace {namespace}: the target is in use already; move it back instead",
        metadata={"namespace": namespace},
    )
