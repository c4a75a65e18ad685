"""Writing a workflow's new state: whole or as a patch, alone or with all that a step brought about.

Each is one statement, and so one transaction. They are put together from the parts below, in this
order: what is stored and given, what must hold (`conditions`), the workflow's row, its pointers,
and everything else, which all hangs on the row having been `updated`.

One statement reads one snapshot, so between reading what is stored and locking the row somebody
else may have written, and a mix of both states is what must never be stored. So the row is updated
only if it is still the one of the snapshot. If it is not, nothing is written, and the statement is
run again behind LOCK_WORKFLOW, where nobody can come in between.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
)
from wfe_persistence.errors import PersistenceError, revision_mismatch, workflow_not_found
from wfe_persistence.store.command import lease_documents, lease_lost
from wfe_persistence.store.documents import (
    array,
    effects_document,
    patch_document,
    subscription_document,
    workflow_document,
)
from wfe_persistence.store.event import event_exists, event_not_found
from wfe_persistence.store.postgres.sqlstate import UniqueViolation
from wfe_persistence.store.records import EVENT, POINTER, SUBSCRIPTION, WORKFLOW
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    integer,
    read_bool,
    read_int8,
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

REQUEST_RETENTION_SECONDS: Final = 3600

# What makes a commit more than a write of the workflow and of subscriptions.
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

LOCK_WORKFLOW = "SELECT FROM wfc.workflows WHERE id = $1 FOR UPDATE"


class Request:
    """A write's `request_id`, which makes it the same write when it comes again.

    It also gives the ids that the store chooses, so that a repeated call is answered the same ones.
    """

    def __init__(
        self,
        message: CommitWorkflowRequest
        | PersistWorkflowRequest
        | PersistWorkflowWithSubscriptionsRequest,
    ) -> None:
        """Of a request as it came, before ids are put into it."""
        self._id = uuid.UUID(message.request_id) if message.request_id else None
        self.params: tuple[Param, Param] = (None, None)
        if self._id is not None:
            content = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
            self.params = (text(str(self._id)), text(f"\\x{content}"))

    def __bool__(self) -> bool:
        return self._id is not None

    def new_id(self, kind: str, n: int) -> str:
        """The id of the n-th thing of a kind that the host left the id of to the store."""
        return str(uuid.uuid4() if self._id is None else uuid.uuid5(self._id, f"{kind}/{n}"))


# $1 the workflow's id, $2 its document, $3 the expected revision, $4 subscriptions to create.
_STORED_AND_GIVEN = f"""
WITH stored AS MATERIALIZED (
    SELECT id, revision FROM wfc.workflows WHERE id = $1
), given AS MATERIALIZED (
    SELECT w.* FROM jsonb_to_record($2::jsonb) AS w(
        {WORKFLOW.record()}, execution_pointers jsonb)
), subscriptions AS MATERIALIZED (
    SELECT s.*, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($4::jsonb) AS documents(document),
        jsonb_to_record(document) AS s(
            {SUBSCRIPTION.record()})
), existing AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT s.content_hash FROM subscriptions s WHERE s.id = e.id) AS same
    FROM wfc.event_subscriptions e WHERE e.id = ANY (ARRAY (SELECT id FROM subscriptions))
)"""

_UPDATED = """, updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = g.root_workflow_id,
        definition_id = g.definition_id,
        version = g.version,
        description = g.description,
        reference = g.reference,
        status = g.status,
        data = g.data -> 0,
        next_execution = g.next_execution,
        create_time = g.create_time,
        complete_time = g.complete_time,
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision
        AND ($3::bigint IS NULL OR w.revision = $3)
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND {conditions}
    RETURNING w.id, w.revision
)"""

_POINTERS = f""", pointers (workflow_id, ordinal,
        {POINTER.names()}) AS MATERIALIZED (
    SELECT updated.id, p.ordinal,
        {POINTER.values("p")}
    FROM updated, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        {POINTER.record()})
), removed AS (
    DELETE FROM wfc.execution_pointers p USING updated
    WHERE p.workflow_id = updated.id AND NOT EXISTS (SELECT FROM pointers g WHERE g.id = p.id)
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT * FROM pointers WHERE id IN (
        SELECT id FROM (
            SELECT ordinal, {POINTER.compared()} FROM pointers
            EXCEPT
            SELECT ordinal, {POINTER.compared()} FROM wfc.execution_pointers WHERE workflow_id = $1
        ) AS changed
    )
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        ordinal = excluded.ordinal,
        {POINTER.assignments(lambda column: f"excluded.{column.name}")}
)"""

# A patch: of the header what its document names, of the pointers those that it has. No part of it
# looks at the pointers that stay as they are.
_UPDATED_PATCH = """, updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        root_workflow_id = CASE WHEN $2::jsonb ? 'root_workflow_id'
            THEN g.root_workflow_id ELSE w.root_workflow_id END,
        definition_id = coalesce(g.definition_id, w.definition_id),
        version = coalesce(g.version, w.version),
        description = CASE WHEN $2::jsonb ? 'description'
            THEN g.description ELSE w.description END,
        reference = CASE WHEN $2::jsonb ? 'reference' THEN g.reference ELSE w.reference END,
        status = coalesce(g.status, w.status),
        data = coalesce(g.data -> 0, w.data),
        next_execution = CASE WHEN $2::jsonb ? 'next_execution'
            THEN g.next_execution ELSE w.next_execution END,
        create_time = coalesce(g.create_time, w.create_time),
        complete_time = CASE WHEN $2::jsonb ? 'complete_time'
            THEN g.complete_time ELSE w.complete_time END,
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision AND w.revision = $3
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND {conditions}
    RETURNING w.id, w.revision
)"""

_POINTERS_PATCH = f""", removed AS (
    DELETE FROM wfc.execution_pointers
    WHERE workflow_id = $1 AND id = ANY (ARRAY (
        SELECT r.id FROM updated, jsonb_array_elements_text($2::jsonb -> 'removed') AS r(id)))
), last AS MATERIALIZED (
    SELECT coalesce((SELECT ordinal FROM wfc.execution_pointers
        WHERE workflow_id = $1 ORDER BY ordinal DESC LIMIT 1), -1) AS ordinal
), pointers (workflow_id, ordinal,
        {POINTER.names()}) AS (
    SELECT updated.id, last.ordinal + 1 + p.ordinal,
        {POINTER.values("p")}
    FROM updated, last, given,
        jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        {POINTER.record()})
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT * FROM pointers
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        {POINTER.assignments(lambda column: f"excluded.{column.name}")}
)"""

_SUBSCRIBED = f""", subscribed AS (
    INSERT INTO wfc.event_subscriptions (
        {SUBSCRIPTION.names()}, content_hash)
    SELECT {SUBSCRIPTION.values("s")},
        s.content_hash
    FROM updated, subscriptions s
    WHERE NOT EXISTS (SELECT FROM existing e WHERE e.id = s.id)
)"""

_ANSWER = """
SELECT (SELECT revision FROM updated),
    (SELECT revision FROM stored),
    (SELECT min(id) FROM existing WHERE NOT same)"""

PERSIST_WORKFLOW = f"""{_STORED_AND_GIVEN}
{_UPDATED.format(conditions="TRUE")}
{_POINTERS}
{_SUBSCRIBED}
{_ANSWER}
"""

# The same with a request id ($5) and the hash of its content ($6). Old ones are forgotten on the
# way, more than come in.
_REPEATED = """, repeated AS MATERIALIZED (
    SELECT revision, content_hash = $6::bytea AS same FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
)"""
_REMEMBERED = f""", remembered AS (
    INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision)
    SELECT updated.id, $5::uuid, $6::bytea, updated.revision FROM updated
    WHERE $5::uuid IS NOT NULL
), forgotten AS (
    DELETE FROM wfc.requests WHERE ctid = ANY (ARRAY (
        SELECT r.ctid FROM updated, LATERAL (
            SELECT ctid FROM wfc.requests
            WHERE create_time < now() - interval '{REQUEST_RETENTION_SECONDS} seconds'
            ORDER BY create_time LIMIT 2 FOR UPDATE SKIP LOCKED
        ) r WHERE $5::uuid IS NOT NULL))
)"""
_REPEATED_ANSWER = """,
    (SELECT revision FROM repeated),
    (SELECT same FROM repeated)"""

PERSIST_WORKFLOW_ONCE = f"""{_STORED_AND_GIVEN}
{_REPEATED}
{_UPDATED.format(conditions="NOT EXISTS (SELECT FROM repeated)")}
{_POINTERS}
{_SUBSCRIBED}
{_REMEMBERED}
{_ANSWER}{_REPEATED_ANSWER}
"""


async def persist_workflow(
    store: Store,
    message: PersistWorkflowRequest | PersistWorkflowWithSubscriptionsRequest,
    subscriptions: Sequence[EventSubscription],
    request: Request,
) -> int:
    """Replace a workflow's stored state, create subscriptions, all or nothing; the new revision.

    The ids of the subscriptions must be set.
    """
    id_ = text(message.instance.id)
    expected = message.expected_revision if message.HasField("expected_revision") else None
    params: Sequence[Param] = (
        id_,
        workflow_document(message.instance),
        None if expected is None else integer(expected),
        array(map(subscription_document, subscriptions)),
    )
    if request:
        params = (*params, *request.params)
        row = await _write(store, id_, PERSIST_WORKFLOW_ONCE, params, name_field="instance.name")
        if (repeated := _repeated(row)) is not None:
            return repeated
    else:
        row = await _write(store, id_, PERSIST_WORKFLOW, params, name_field="instance.name")
    return _revision(row, expected, subscriptions, "instance", "subscriptions")


# What a commit hangs on and touches beside the workflow ($7, see effects_document). The rows are
# locked from here to the end, each kind in the order of its ids, and a condition that does not hold
# is answered by the place of the first item in its list.
_CONDITIONS = f""", claims AS MATERIALIZED (
    SELECT c.* FROM jsonb_to_recordset($7::jsonb -> 'claims')
        AS c(n bigint, id text, token text, epoch bigint)
), terminating AS MATERIALIZED (
    SELECT t.id, t.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'terminated') WITH ORDINALITY AS t(id, n)
), locked_subscriptions AS MATERIALIZED (
    SELECT id, external_token, external_token_epoch,
        external_token_expiry IS NULL OR external_token_expiry > now() AS unexpired
    FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM claims UNION SELECT id FROM terminating))
    ORDER BY id FOR UPDATE
), events AS MATERIALIZED (
    SELECT e.*, n - 1 AS n, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($7::jsonb -> 'events') WITH ORDINALITY AS documents(document, n),
        jsonb_to_record(document) AS e(
            {EVENT.record()})
), existing_events AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT g.content_hash FROM events g WHERE g.id = e.id) AS same
    FROM wfc.events e WHERE e.id = ANY (ARRAY (SELECT id FROM events))
), processing AS MATERIALIZED (
    SELECT p.id, p.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'processed') WITH ORDINALITY AS p(id, n)
), locked_events AS MATERIALIZED (
    SELECT id FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM processing))
    ORDER BY id FOR NO KEY UPDATE
), leases AS MATERIALIZED (
    SELECT l.* FROM jsonb_to_recordset($7::jsonb -> 'leases')
        AS l(n bigint, completes boolean, id bigint, revision bigint, lease_id text)
), locked_commands AS MATERIALIZED (
    SELECT c.* FROM (SELECT DISTINCT id FROM leases ORDER BY id) g, LATERAL (
        SELECT id, revision, lease_id, lease_expiry > now() AS unexpired
        FROM wfc.scheduled_commands WHERE id = g.id FOR UPDATE
    ) c
), scheduling AS MATERIALIZED (
    SELECT s.*, c.id
    FROM jsonb_to_recordset($7::jsonb -> 'commands')
        AS s(command_name text, data text, execute_time bigint)
    LEFT JOIN LATERAL (
        SELECT id FROM wfc.scheduled_commands
        WHERE command_name = s.command_name AND data = s.data LIMIT 1
    ) c ON TRUE
), conditions AS MATERIALIZED (
    SELECT
        (SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id)) AS unknown_claim,
        (SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id AND s.external_token = g.token AND s.unexpired
                AND (g.epoch IS NULL OR g.epoch = s.external_token_epoch))) AS lost_claim,
        (SELECT min(n) FROM leases g WHERE NOT EXISTS (
            SELECT FROM locked_commands c
            WHERE c.id = g.id AND c.lease_id = g.lease_id
                AND (g.completes OR c.unexpired))) AS lost_lease,
        (SELECT min(n) FROM terminating g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s WHERE s.id = g.id)) AS unknown_subscription,
        (SELECT min(n) FROM processing g WHERE NOT EXISTS (
            SELECT FROM locked_events e WHERE e.id = g.id)) AS unknown_event,
        (SELECT min(n) FROM events g WHERE EXISTS (
            SELECT FROM existing_events e WHERE e.id = g.id AND NOT e.same)) AS existing_event,
        {{unknown_pointer}} AS unknown_pointer
)"""
_UNKNOWN_POINTER = """(SELECT min(r.n) - 1
            FROM jsonb_array_elements_text($2::jsonb -> 'removed') WITH ORDINALITY AS r(id, n)
            LEFT JOIN LATERAL (
                SELECT id FROM wfc.execution_pointers p
                WHERE p.workflow_id = $1 AND p.id = r.id LIMIT 1
            ) p ON TRUE
            WHERE p.id IS NULL)"""
_CONDITIONS_HOLD = """NOT EXISTS (SELECT FROM repeated)
        AND EXISTS (SELECT FROM conditions c WHERE
            num_nonnulls(c.lost_claim, c.lost_lease, c.unknown_subscription, c.unknown_event,
                c.existing_event, c.unknown_pointer) = 0)"""

# A patch and nothing else: without the rest the statement takes about half the time to start.
PATCH_WORKFLOW = f"""{_STORED_AND_GIVEN}
{_REPEATED}
, conditions AS MATERIALIZED (
    SELECT {_UNKNOWN_POINTER} AS unknown_pointer
)
{
    _UPDATED_PATCH.format(
        conditions='''NOT EXISTS (SELECT FROM repeated)
        AND EXISTS (SELECT FROM conditions c WHERE c.unknown_pointer IS NULL)'''
    )
}
{_POINTERS_PATCH}
{_SUBSCRIBED}
{_REMEMBERED}
{_ANSWER}{_REPEATED_ANSWER}, NULL, NULL, NULL, NULL, NULL, NULL, c.unknown_pointer
FROM conditions c
"""

# A command that is completed and scheduled is given its new time, without the lease.
_EFFECTS = """, terminated AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT t.id FROM updated, terminating t))
), created_events AS (
    INSERT INTO wfc.events
        (id, event_name, event_key, event_data, event_time, is_processed, content_hash)
    SELECT e.id, e.event_name, e.event_key, e.event_data -> 0, e.event_time, e.is_processed,
        e.content_hash
    FROM updated, events e
    WHERE NOT EXISTS (SELECT FROM existing_events x WHERE x.id = e.id)
), processed AS (
    UPDATE wfc.events SET is_processed = TRUE
    WHERE id = ANY (ARRAY (SELECT p.id FROM updated, processing p))
), logged AS (
    INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT e.error_time, e.workflow_id, e.execution_pointer_id, e.message
    FROM updated, ROWS FROM (jsonb_to_recordset($7::jsonb -> 'errors') AS (
        error_time timestamptz, workflow_id text, execution_pointer_id text, message text
    )) WITH ORDINALITY AS e(error_time, workflow_id, execution_pointer_id, message, n)
    ORDER BY e.n
), completing AS MATERIALIZED (
    SELECT c.id, c.revision = g.revision AS unchanged
    FROM updated, leases g JOIN locked_commands c ON c.id = g.id
    WHERE g.completes
), rescheduled AS (
    UPDATE wfc.scheduled_commands c SET
        execute_time = s.execute_time,
        lease_id = CASE WHEN x.id IS NULL THEN c.lease_id END,
        lease_worker_id = CASE WHEN x.id IS NULL THEN c.lease_worker_id END,
        lease_expiry = CASE WHEN x.id IS NULL THEN c.lease_expiry END
    FROM updated, scheduling s LEFT JOIN completing x ON x.id = s.id
    WHERE c.id = s.id AND c.id = ANY (ARRAY (SELECT id FROM scheduling))
    RETURNING c.id
), scheduled AS (
    INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT s.command_name, s.data, s.execute_time FROM updated, scheduling s
    WHERE NOT EXISTS (SELECT FROM rescheduled r WHERE r.id = s.id)
    ON CONFLICT (command_name, data) DO UPDATE SET execute_time = excluded.execute_time
), completed AS (
    DELETE FROM wfc.scheduled_commands WHERE id = ANY (ARRAY (
        SELECT id FROM completing WHERE unchanged
        EXCEPT SELECT id FROM scheduling))
), kept AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (
        SELECT id FROM completing WHERE NOT unchanged
        EXCEPT SELECT id FROM scheduling))
)"""
_COMMIT_ANSWER = """,
    c.unknown_claim, c.lost_claim, c.lost_lease, c.unknown_subscription, c.unknown_event,
    c.existing_event, c.unknown_pointer
FROM conditions c"""

COMMIT_WORKFLOW = f"""{_STORED_AND_GIVEN}
{_REPEATED}
{_CONDITIONS.format(unknown_pointer="NULL::bigint")}
{_UPDATED.format(conditions=_CONDITIONS_HOLD)}
{_POINTERS}
{_SUBSCRIBED}
{_EFFECTS}
{_REMEMBERED}
{_ANSWER}{_REPEATED_ANSWER}{_COMMIT_ANSWER}
"""

COMMIT_WORKFLOW_PATCH = f"""{_STORED_AND_GIVEN}
{_REPEATED}
{_CONDITIONS.format(unknown_pointer=_UNKNOWN_POINTER)}
{_UPDATED_PATCH.format(conditions=_CONDITIONS_HOLD)}
{_POINTERS_PATCH}
{_SUBSCRIBED}
{_EFFECTS}
{_REMEMBERED}
{_ANSWER}{_REPEATED_ANSWER}{_COMMIT_ANSWER}
"""


async def commit_workflow(store: Store, message: CommitWorkflowRequest, request: Request) -> int:
    """Store one step of an engine, all or nothing; the workflow's new revision.

    The ids of everything to be created must be set.
    """
    alone = not any(getattr(message, field) for field in _EFFECT_FIELDS)
    if message.HasField("patch"):
        state, name_field = "patch", "patch.header.name"
        sql = PATCH_WORKFLOW if alone else COMMIT_WORKFLOW_PATCH
        id_, document = message.patch.id, patch_document(message.patch)
    else:
        state, name_field = "instance", "instance.name"
        sql = PERSIST_WORKFLOW_ONCE if alone else COMMIT_WORKFLOW
        id_, document = message.instance.id, workflow_document(message.instance)
    expected = message.expected_revision if message.HasField("expected_revision") else None
    params: Sequence[Param] = (
        text(id_),
        document,
        None if expected is None else integer(expected),
        array(map(subscription_document, message.create_subscriptions)),
        *request.params,
    )
    if not alone:
        params = (*params, effects_document(message, _lease_documents(message)))
    row = await _write(store, text(id_), sql, params, name_field=name_field)
    if (repeated := _repeated(row)) is not None:
        return repeated
    if row.get_value(0, 0) is None and row.get_value(0, 1) is not None:
        _check_revision(row, expected)
        if sql != PERSIST_WORKFLOW_ONCE:
            _check_conditions(row, message)
    return _revision(row, expected, message.create_subscriptions, state, "create_subscriptions")


async def _write(
    store: Store, id_: bytes, sql: str, params: Sequence[Param], *, name_field: str
) -> PGresult:
    """Run a writing statement; if it wrote nothing to a workflow that is stored, once more behind
    the workflow's lock, for the final word. `name_field` is the request's field of the name."""
    name_key = store.schema.constraint(NAME_KEY)
    try:
        row = await store.write(sql, *params, final_constraints=(name_key,))
        if row.get_value(0, 0) is None and row.get_value(0, 1) is not None:
            _, row = await store.write_all(
                (LOCK_WORKFLOW, (id_,)), (sql, params), final_constraints=(name_key,)
            )
    except UniqueViolation as exc:
        if exc.constraint != name_key:
            raise
        raise name_taken(name_field) from exc
    return row


def _repeated(row: PGresult) -> int | None:
    """The revision that the first arrival of this request made, if this is not the first."""
    revision, same = row.get_value(0, 3), row.get_value(0, 4)
    if revision is None:
        return None
    if not read_bool(same):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
            "this request_id named another write to this workflow",
            metadata={"field": "request_id"},
        )
    return read_int8(revision)


def _check_revision(row: PGresult, expected: int | None) -> None:
    stored = row.get_value(0, 1)
    if expected is not None and stored is not None and read_int8(stored) != expected:
        raise revision_mismatch(read_int8(stored), expected)


def _revision(
    row: PGresult,
    expected: int | None,
    subscriptions: Sequence[EventSubscription],
    state: str,
    subscriptions_field: str,
) -> int:
    revision, stored, clash = (row.get_value(0, column) for column in range(3))
    if revision is not None:
        return read_int8(revision)
    if stored is None:
        raise workflow_not_found(f"{state}.id")
    _check_revision(row, expected)
    if clash is not None:
        clashing = read_text(clash)
        at = next(i for i, s in enumerate(subscriptions) if s.id == clashing)
        raise already_subscribed(f"{subscriptions_field}[{at}].id")
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the workflow kept colliding with other writes",
        retry_after=0.1,
    )


def _check_conditions(row: PGresult, message: CommitWorkflowRequest) -> None:
    """Raise the condition that did not hold."""
    unknown_claim, lost_claim, lost_lease, subscription, event, existing, pointer = (
        None if (value := row.get_value(0, column)) is None else read_int8(value)
        for column in range(5, 12)
    )
    if unknown_claim is not None:
        raise subscription_not_found(f"held_subscriptions[{unknown_claim}].subscription_id")
    if lost_claim is not None:
        raise token_mismatch(f"held_subscriptions[{lost_claim}]")
    if lost_lease is not None:
        held = len(message.held_lease_tokens)
        if lost_lease < held:
            field, token = "held_lease_tokens", message.held_lease_tokens[lost_lease]
        else:
            lost_lease -= held
            field, token = "complete_lease_tokens", message.complete_lease_tokens[lost_lease]
        raise lease_lost([token], field=f"{field}[{lost_lease}]")
    if subscription is not None:
        raise subscription_not_found(f"terminate_subscription_ids[{subscription}]")
    if event is not None:
        raise event_not_found(f"processed_event_ids[{event}]")
    if existing is not None:
        raise event_exists(f"create_events[{existing}].id")
    if pointer is not None:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_POINTER_NOT_FOUND,
            "the workflow has no execution pointer of this id",
            metadata={"field": f"patch.removed_pointer_ids[{pointer}]"},
        )


def _lease_documents(message: CommitWorkflowRequest) -> Iterator[str]:
    """The leases of a commit, numbered through: first those that must be held, then those to be
    completed."""
    yield from lease_documents(message.held_lease_tokens, "held_lease_tokens")
    yield from lease_documents(
        message.complete_lease_tokens,
        "complete_lease_tokens",
        first=len(message.held_lease_tokens),
        completes=True,
    )
