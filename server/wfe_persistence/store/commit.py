"""Writes of a workflow's state: whole or as a patch, alone or with the effects of an engine's step.

Each is one statement, and so one transaction, composed of the parts in commit_parts.py; the text as
it is sent is in tests/store/statements/.

A statement reads one snapshot. Between that and locking the row another transaction may have
written, and a mix of both states must never be stored. So the row is updated only if it is still
the one in the snapshot. If it is not, nothing is written, and the statement runs again after
LOCK_WORKFLOW in the same transaction, where no other write can come between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
)
from wfe_persistence import offload
from wfe_persistence.errors import (
    PersistenceError,
    revision_mismatch,
    unreadable,
    workflow_not_found,
)
from wfe_persistence.store import commit_parts as parts
from wfe_persistence.store.command import lease_documents
from wfe_persistence.store.commit_parts import Outcome
from wfe_persistence.store.documents import (
    HeaderRoom,
    array,
    effects_document,
    patch_document,
    subscription_document,
    workflow_document,
)
from wfe_persistence.store.event import event_exists, event_not_found
from wfe_persistence.store.lease import lease_lost
from wfe_persistence.store.lock import lock_documents
from wfe_persistence.store.postgres.sqlstate import UniqueViolation
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.rows import Param, integer, read_bool, read_int8, read_text, text
from wfe_persistence.store.subscription import (
    already_subscribed,
    subscription_not_found,
    token_mismatch,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow import NAME_KEY, name_taken

# The fields that make a commit more than a write of the workflow and of subscriptions.
_EFFECT_FIELDS: Final = (
    "held_subscriptions",
    "held_lease_tokens",
    "held_lock_tokens",
    "terminate_subscription_ids",
    "create_events",
    "processed_event_ids",
    "errors",
    "schedule_commands",
    "complete_lease_tokens",
)

LOCK_WORKFLOW = "SELECT FROM wfc.workflows WHERE id = $1 FOR UPDATE"

PERSIST_WORKFLOW = parts.statement(
    parts.STORED_AND_GIVEN,
    parts.replaced_header(conditions=parts.ALWAYS),
    parts.REPLACED_POINTERS,
    parts.SUBSCRIBED,
    result=parts.WRITTEN,
)

# The same with a request id.
PERSIST_WORKFLOW_ONCE = parts.statement(
    parts.STORED_AND_GIVEN,
    parts.REPEATED,
    parts.replaced_header(conditions=parts.NOT_REPEATED),
    parts.REPLACED_POINTERS,
    parts.SUBSCRIBED,
    parts.REMEMBERED,
    result=parts.WRITTEN_ONCE,
)


async def persist_workflow(
    store: Store,
    message: PersistWorkflowRequest | PersistWorkflowWithSubscriptionsRequest,
    subscriptions: Sequence[EventSubscription],
    key: RequestKey,
) -> int:
    """Replace a workflow's state and create subscriptions, all or none; returns the new revision.

    The subscriptions must have ids.
    """
    expected = message.expected_revision if message.HasField("expected_revision") else None
    id_ = text(message.instance.id)
    # Whatever else it has in common with a commit.
    effects = CommitWorkflowRequest(held_lock_tokens=message.held_lock_tokens)
    if effects.ListFields():
        sql = COMMIT_WORKFLOW
    else:
        sql = PERSIST_WORKFLOW_ONCE if key else PERSIST_WORKFLOW

    def params() -> tuple[Param, ...]:
        of_state = _params(id_, workflow_document(message.instance), expected, subscriptions)
        if sql is PERSIST_WORKFLOW:
            return of_state
        if sql is PERSIST_WORKFLOW_ONCE:
            return *of_state, *key.params
        return *of_state, *key.params, _effects(effects)

    outcome = await _write(store, id_, sql, await offload.run(params), name_field="instance.name")
    if (repeated := _repeated(outcome)) is not None:
        return repeated
    if outcome.refused:
        _check_revision(outcome, expected)
        _check_conditions(outcome, effects)
    return _revision(outcome, expected, subscriptions, "instance", "subscriptions")


# A patch without effects: without their parts the statement starts in about half the time.
PATCH_WORKFLOW = parts.statement(
    parts.STORED_AND_GIVEN,
    parts.REPEATED,
    parts.PATCH_CONDITIONS,
    parts.patched_header(conditions=parts.PATCH_CONDITIONS_HOLD),
    parts.PATCHED_POINTERS,
    parts.SUBSCRIBED,
    parts.REMEMBERED,
    result=parts.PATCHED,
    source="conditions c",
)


def _commit(*, unknown_pointer: str, header_too_large: str, header: str, pointers: str) -> str:
    """A commit with effects."""
    return parts.statement(
        parts.STORED_AND_GIVEN,
        parts.REPEATED,
        parts.LOCKED,
        parts.commit_conditions(unknown_pointer=unknown_pointer, header_too_large=header_too_large),
        header,
        pointers,
        parts.SUBSCRIBED,
        parts.EFFECTS,
        parts.REMEMBERED,
        result=parts.COMMITTED,
        source="conditions c",
    )


COMMIT_WORKFLOW = _commit(
    unknown_pointer=parts.NO_POINTERS_REMOVED,
    header_too_large=parts.NO_PATCHED_HEADER,
    header=parts.replaced_header(conditions=parts.CONDITIONS_HOLD),
    pointers=parts.REPLACED_POINTERS,
)

COMMIT_WORKFLOW_PATCH = _commit(
    unknown_pointer=parts.UNKNOWN_POINTER,
    header_too_large=parts.HEADER_TOO_LARGE,
    header=parts.patched_header(conditions=parts.CONDITIONS_HOLD),
    pointers=parts.PATCHED_POINTERS,
)


async def commit_workflow(
    store: Store,
    message: CommitWorkflowRequest,
    key: RequestKey,
    room: HeaderRoom | None = None,
) -> int:
    """Store one step of an engine, all or nothing; returns the workflow's new revision.

    Everything to be created must have an id. `room`: if a patch sets either the data or the
    description, it is refused if the one that stays is too large.
    """
    alone = not any(getattr(message, field) for field in _EFFECT_FIELDS)
    if message.HasField("patch"):
        state, name_field = "patch", "patch.header.name"
        sql = PATCH_WORKFLOW if alone else COMMIT_WORKFLOW_PATCH
        id_ = text(message.patch.id)
    else:
        state, name_field = "instance", "instance.name"
        sql = PERSIST_WORKFLOW_ONCE if alone else COMMIT_WORKFLOW
        id_ = text(message.instance.id)
    expected = message.expected_revision if message.HasField("expected_revision") else None

    def params() -> tuple[Param, ...]:
        if message.HasField("patch"):
            document = patch_document(message.patch, room)
        else:
            document = workflow_document(message.instance)
        of_state = _params(id_, document, expected, message.create_subscriptions)
        if alone:
            return *of_state, *key.params
        return *of_state, *key.params, _effects(message)

    outcome = await _write(store, id_, sql, await offload.run(params), name_field=name_field)
    if (repeated := _repeated(outcome)) is not None:
        return repeated
    if outcome.refused:
        _check_revision(outcome, expected)
        _check_conditions(outcome, message)
        if room is not None and outcome.header_too_large is not None:
            raise unreadable(room.limit_bytes)
    return _revision(outcome, expected, message.create_subscriptions, state, "create_subscriptions")


def _params(
    id_: bytes, document: bytes, expected: int | None, subscriptions: Iterable[EventSubscription]
) -> tuple[Param, ...]:
    """The parameters that all statements have."""
    return (
        id_,
        document,
        None if expected is None else integer(expected),
        array(map(subscription_document, subscriptions)),
    )


async def _write(
    store: Store, id_: bytes, sql: str, params: Sequence[Param], *, name_field: str
) -> Outcome:
    """Run a writing statement; if it refuses to write to a stored workflow, once more after locking
    the workflow, whose outcome is final. `name_field`: the request's field of the name."""
    name_key = store.schema.constraint(NAME_KEY)
    try:
        outcome = Outcome.read(await store.write(sql, *params, final_constraints=(name_key,)))
        if outcome.refused:
            _, row = await store.write_all(
                (LOCK_WORKFLOW, (id_,)), (sql, params), final_constraints=(name_key,)
            )
            outcome = Outcome.read(row)
    except UniqueViolation as exc:
        if exc.constraint != name_key:
            raise
        raise name_taken(name_field) from exc
    return outcome


def _repeated(outcome: Outcome) -> int | None:
    """The revision that the first request with this request id made, if this is not the first."""
    if outcome.repeated_revision is None:
        return None
    if not read_bool(outcome.repeated_same):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
            "this request_id named another write to this workflow",
            metadata={"field": "request_id"},
        )
    return read_int8(outcome.repeated_revision)


def _check_revision(outcome: Outcome, expected: int | None) -> None:
    if expected is None or outcome.stored_revision is None:
        return
    if (stored := read_int8(outcome.stored_revision)) != expected:
        raise revision_mismatch(stored, expected)


def _revision(
    outcome: Outcome,
    expected: int | None,
    subscriptions: Sequence[EventSubscription],
    state: str,
    subscriptions_field: str,
) -> int:
    """The new revision; raises the reason if nothing was written."""
    if outcome.revision is not None:
        return read_int8(outcome.revision)
    if outcome.stored_revision is None:
        raise workflow_not_found(f"{state}.id")
    _check_revision(outcome, expected)
    if outcome.clashing_subscription is not None:
        clashing = read_text(outcome.clashing_subscription)
        at = next(i for i, s in enumerate(subscriptions) if s.id == clashing)
        raise already_subscribed(f"{subscriptions_field}[{at}].id")
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the write conflicted with concurrent writes to the workflow repeatedly",
        retry_after=0.1,
    )


def _check_conditions(outcome: Outcome, message: CommitWorkflowRequest) -> None:
    """Raise the first condition that does not hold."""
    if outcome.unknown_claim is not None:
        at = read_int8(outcome.unknown_claim)
        raise subscription_not_found(f"held_subscriptions[{at}].subscription_id")
    if outcome.lost_claim is not None:
        raise token_mismatch(f"held_subscriptions[{read_int8(outcome.lost_claim)}]")
    if outcome.lost_lease is not None:
        # Numbered as by _lease_documents().
        field, at = "held_lease_tokens", read_int8(outcome.lost_lease)
        if at >= len(message.held_lease_tokens):
            field, at = "complete_lease_tokens", at - len(message.held_lease_tokens)
        raise lease_lost([getattr(message, field)[at]], field=f"{field}[{at}]")
    if outcome.lost_lock is not None:
        at = read_int8(outcome.lost_lock)
        raise lease_lost([message.held_lock_tokens[at]], field=f"held_lock_tokens[{at}]")
    if outcome.unknown_subscription is not None:
        at = read_int8(outcome.unknown_subscription)
        raise subscription_not_found(f"terminate_subscription_ids[{at}]")
    if outcome.unknown_event is not None:
        raise event_not_found(f"processed_event_ids[{read_int8(outcome.unknown_event)}]")
    if outcome.existing_event is not None:
        raise event_exists(f"create_events[{read_int8(outcome.existing_event)}].id")
    if outcome.unknown_pointer is not None:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_POINTER_NOT_FOUND,
            "the workflow has no execution pointer with this id",
            metadata={
                "field": f"patch.removed_pointer_ids[{read_int8(outcome.unknown_pointer)}]",
            },
        )


def _effects(message: CommitWorkflowRequest) -> bytes:
    """The parameter with what a commit does besides the state."""
    locks = lock_documents(message.held_lock_tokens, "held_lock_tokens")
    return effects_document(message, _lease_documents(message), locks)


def _lease_documents(message: CommitWorkflowRequest) -> Iterator[str]:
    """The leases of a commit, numbered consecutively: those that must be held, then those to be
    completed."""
    yield from lease_documents(message.held_lease_tokens, "held_lease_tokens")
    yield from lease_documents(
        message.complete_lease_tokens,
        "complete_lease_tokens",
        first=len(message.held_lease_tokens),
        completes=True,
    )
