"""Writes of a workflow's state: whole or as a patch, alone or with the effects of an engine's step.

Each is one statement, and so one transaction, composed of parts, see commit_parts.py; the text as
it is sent is in tests/store/statements/.

A statement reads one snapshot. Between that and locking the row another transaction may have
written, and a mix of both states must never be stored. So the row is updated only if it is still
the one in the snapshot. If it is not, nothing is written, and the statement runs again after
LOCK_WORKFLOW in the same transaction, where no other write can come between.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

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
from wfe_persistence.store import effect_parts, queue_parts
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
from wfe_persistence.store.queue_settling import acknowledgement_documents
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.rows import (
    Param,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_json,
    read_text,
    text,
)
from wfe_persistence.store.subscription import (
    already_subscribed,
    subscription_not_found,
    token_mismatch,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow import NAME_KEY, name_taken

# The fields of what belongs to a host's step whatever is written of the workflow: all writes of one
# have them.
_STEP_FIELDS: Final = ("held_lock_tokens", "enqueue", "acknowledge", "publish")

# The fields that make a commit more than that.
_EFFECT_FIELDS: Final = (
    "held_subscriptions",
    "held_lease_tokens",
    "terminate_subscription_ids",
    "create_events",
    "processed_event_ids",
    "errors",
    "schedule_commands",
    "complete_lease_tokens",
)


class Written(NamedTuple):
    """What a write of a workflow came to."""

    revision: int
    """The new one."""
    returned_receipts: Sequence[str] = ()
    """The receipts of the acknowledgements that were not confirmed."""
    returned_to: Sequence[str] = ()
    """The queues of the items that came back, one for each."""
    unawaited: Sequence[str] = ()
    """The ids of the events for which nobody waits, and whose items were left out."""


LOCK_WORKFLOW = "SELECT FROM wfc.workflows WHERE id = $1 FOR UPDATE"


def _statement(
    *, patch: bool = False, effects: bool = False, step: bool = False, forgets: int = 2
) -> str:
    """A write with a request id, of the state alone or with more; see the statements below.
    `forgets`: how many expired ones it deletes, 0: it has no such part."""
    found: dict[str, str] = {}
    repeated, remembered = parts.repeated(), parts.remembered()
    locked: list[str] = []
    last = "locked_workflow"
    if effects or step:
        locked.append(effect_parts.LOCKED_WORKFLOW)
    if effects:
        found |= effect_parts.OF_EFFECTS
        locked.append(effect_parts.LOCKED_BY_EFFECTS)
        last = "locked_commands"
    if step:
        found |= effect_parts.OF_LOCKS | queue_parts.OF_ITEMS
        locked += (
            queue_parts.work(but=queue_parts.BUT_UNAWAITED if effects else ""),
            queue_parts.locked_work(after=last),
            effect_parts.locked_locks(after="locked_items"),
        )
        last = "locked_locks"
        repeated, remembered = queue_parts.REPEATED, queue_parts.REMEMBERED
    if patch:
        found |= parts.OF_PATCH
    if found:
        after = f"\n    WHERE {parts.after_all_of(last)}" if locked else ""
        conditions = [parts.conditions(found, after=after)]
        hold = parts.conditions_hold(found)
    else:
        conditions, hold = [], parts.NOT_REPEATED
    done: list[str] = []
    worked: dict[str, str] = {}
    if step:
        worked = queue_parts.WITH_EVENTS if effects else queue_parts.WORKED
    if effects:
        done.append(effect_parts.EFFECTS)
    if step:
        done += (
            queue_parts.worked(
                after="scheduled" if effects else "subscribed",
                event_is_unprocessed=queue_parts.EVENT_IS_LEFT_UNPROCESSED
                if effects
                else queue_parts.EVENT_IS_UNPROCESSED,
            ),
            effect_parts.PUBLISHED,
        )
    return parts.statement(
        parts.STORED_AND_GIVEN,
        repeated,
        *locked,
        *conditions,
        (parts.patched_header if patch else parts.replaced_header)(conditions=hold),
        parts.PATCHED_POINTERS if patch else parts.REPLACED_POINTERS,
        parts.SUBSCRIBED,
        *done,
        remembered,
        *([parts.forgotten(forgets)] if forgets else []),
        result=parts.committed(found) | worked,
        source="conditions c" if found else "",
    )


PERSIST_WORKFLOW = parts.statement(
    parts.STORED_AND_GIVEN,
    parts.replaced_header(conditions=parts.ALWAYS),
    parts.REPLACED_POINTERS,
    parts.SUBSCRIBED,
    result=parts.WRITTEN,
)

# The same with a request id, and with what belongs to a step.
PERSIST_WORKFLOW_ONCE = _statement()
PERSIST_WORKFLOW_STEP = _statement(step=True)


async def persist_workflow(
    store: Store,
    message: PersistWorkflowRequest | PersistWorkflowWithSubscriptionsRequest,
    subscriptions: Sequence[EventSubscription],
    key: RequestKey,
) -> Written:
    """Replace a workflow's state and create subscriptions, all or none, with all that belongs to
    the step.

    The subscriptions and the items must have ids.
    """
    expected = message.expected_revision if message.HasField("expected_revision") else None
    id_ = text(message.instance.id)
    # What it has in common with a commit.
    step = CommitWorkflowRequest(**{field: getattr(message, field) for field in _STEP_FIELDS})
    if step.ListFields():
        sql = PERSIST_WORKFLOW_STEP
    else:
        sql = PERSIST_WORKFLOW_ONCE if key else PERSIST_WORKFLOW

    def params() -> tuple[Param, ...]:
        of_state = _params(id_, workflow_document(message.instance), expected, subscriptions)
        if sql is PERSIST_WORKFLOW:
            return of_state
        if sql is PERSIST_WORKFLOW_ONCE:
            return *of_state, *key.params
        return *of_state, *key.params, _effects(step)

    outcome = await _write(store, id_, sql, await offload.run(params), name_field="instance.name")
    if (repeated := _repeated(outcome, step)) is not None:
        return repeated
    if outcome.refused:
        _check_revision(outcome, expected)
        _check_conditions(outcome, step)
    revision = _revision(outcome, expected, subscriptions, "instance", "subscriptions")
    return _written(revision, outcome, step)


# A patch without effects: without their parts the statement starts in about half the time. Of
# that, the part that forgets would take a third, also if there is nothing to forget. So one of many
# patches does that for all of them.
_FORGETS_EVERY: Final = 32
PATCH_WORKFLOW = _statement(patch=True, forgets=0)
PATCH_WORKFLOW_STEP = _statement(patch=True, step=True, forgets=0)
PATCH_WORKFLOW_FORGETTING = _statement(patch=True, forgets=2 * _FORGETS_EVERY)
PATCH_WORKFLOW_STEP_FORGETTING = _statement(patch=True, step=True, forgets=2 * _FORGETS_EVERY)
_FORGETTING: Final = {
    PATCH_WORKFLOW: PATCH_WORKFLOW_FORGETTING,
    PATCH_WORKFLOW_STEP: PATCH_WORKFLOW_STEP_FORGETTING,
}

COMMIT_WORKFLOW = _statement(effects=True)
COMMIT_WORKFLOW_STEP = _statement(effects=True, step=True)
COMMIT_WORKFLOW_PATCH = _statement(patch=True, effects=True)
COMMIT_WORKFLOW_PATCH_STEP = _statement(patch=True, effects=True, step=True)


async def commit_workflow(
    store: Store,
    message: CommitWorkflowRequest,
    key: RequestKey,
    room: HeaderRoom | None = None,
) -> Written:
    """Store one step of an engine, all or nothing.

    Everything to be created must have an id. `room`: if a patch sets either the data or the
    description, it is refused if the one that stays is too large.
    """
    given = {field.name for field, _ in message.ListFields()}
    has_effects = not given.isdisjoint(_EFFECT_FIELDS)
    has_step = not given.isdisjoint(_STEP_FIELDS)
    if message.HasField("patch"):
        state, name_field = "patch", "patch.header.name"
        id_ = text(message.patch.id)
    else:
        state, name_field = "instance", "instance.name"
        id_ = text(message.instance.id)
    sql = _statement_of(state, effects=has_effects, step=has_step)
    if key and sql in _FORGETTING:
        if store.patches_remembered % _FORGETS_EVERY == 0:
            sql = _FORGETTING[sql]
        store.patches_remembered += 1
    expected = message.expected_revision if message.HasField("expected_revision") else None

    def params() -> tuple[Param, ...]:
        if message.HasField("patch"):
            document = patch_document(message.patch, room)
        else:
            document = workflow_document(message.instance)
        of_state = _params(id_, document, expected, message.create_subscriptions)
        if has_effects or has_step:
            return *of_state, *key.params, _effects(message)
        return *of_state, *key.params

    outcome = await _write(store, id_, sql, await offload.run(params), name_field=name_field)
    if (repeated := _repeated(outcome, message)) is not None:
        return repeated
    if outcome.refused:
        _check_revision(outcome, expected)
        _check_conditions(outcome, message)
        if room is not None and outcome.header_too_large is not None:
            raise unreadable(room.limit_bytes)
    revision = _revision(
        outcome, expected, message.create_subscriptions, state, "create_subscriptions"
    )
    return _written(revision, outcome, message)


def _statement_of(state: str, *, effects: bool, step: bool) -> str:
    """The statement of a commit."""
    if state == "patch":
        if effects:
            return COMMIT_WORKFLOW_PATCH_STEP if step else COMMIT_WORKFLOW_PATCH
        return PATCH_WORKFLOW_STEP if step else PATCH_WORKFLOW
    if effects:
        return COMMIT_WORKFLOW_STEP if step else COMMIT_WORKFLOW
    return PERSIST_WORKFLOW_STEP if step else PERSIST_WORKFLOW_ONCE


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
    # What locks other rows than those of its workflow is run by itself.
    write = store.write_together if sql is PATCH_WORKFLOW else store.write
    try:
        outcome = Outcome.read(await write(sql, *params, final_constraints=(name_key,)))
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


def _repeated(outcome: Outcome, message: CommitWorkflowRequest) -> Written | None:
    """What the first request with this request id came to, if this is not the first."""
    if outcome.repeated_revision is None:
        return None
    if not read_bool(outcome.repeated_same):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
            "this request_id named another write to this workflow",
            metadata={"field": "request_id"},
        )
    unconfirmed = _receipts(outcome.repeated_unconfirmed, message)
    return Written(read_int8(outcome.repeated_revision), unconfirmed)


def _written(revision: int, outcome: Outcome, message: CommitWorkflowRequest) -> Written:
    """What this request came to."""
    queues, unawaited = (
        () if found is None else json.loads(read_json(found))
        for found in (outcome.returned_to, outcome.unawaited)
    )
    return Written(revision, _receipts(outcome.unconfirmed, message), queues, unawaited)


def _receipts(indexes: bytes | None, message: CommitWorkflowRequest) -> Sequence[str]:
    """The receipts to acknowledge with these indexes."""
    return [message.acknowledge[at].receipt for (at,) in struct.iter_unpack("!i", indexes or b"")]


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
    if outcome.lost_item is not None:
        at = read_int4(outcome.lost_item)
        receipt = message.acknowledge[at].receipt
        raise lease_lost([receipt], field=f"acknowledge[{at}].receipt")
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
    return effects_document(
        message,
        _lease_documents(message),
        lock_documents(message.held_lock_tokens, "held_lock_tokens"),
        acknowledgement_documents(message.acknowledge),
    )


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
