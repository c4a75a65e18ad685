"""The parts that the statements of commit.py are made of: common table expressions, in their order.

`statement()` joins them. Some are the same in every statement, and constants; the others are
functions of what differs.

The parameters are the same in all statements: $1 the workflow's id, $2 its document or patch, $3
the expected revision, $4 subscriptions to create; $5 the request id and $6 the hash of its content;
$7 what a commit does besides (see documents.effects_document).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from wfe_persistence.store.columns import Column
from wfe_persistence.store.lease import unexpired, unexpired_or_endless
from wfe_persistence.store.records import ERROR, EVENT, POINTER, SUBSCRIPTION, WORKFLOW
from wfe_persistence.store.request_key import REQUEST_RETENTION_SECONDS
from wfe_persistence.store.rows import PGresult


def statement(*parts: str, result: Mapping[str, str], source: str = "") -> str:
    """A statement out of its common table expressions and what it returns.

    `result`: the SQL of the first fields of Outcome, by name; `source`: what it selects them from.
    """
    assert tuple(result) == Outcome._fields[: len(result)]
    columns = ",\n    ".join(f"{value} AS {name}" for name, value in result.items())
    select = f"{columns}\nFROM {source}" if source else columns
    return f"""
WITH {", ".join(parts)}
SELECT {select}
"""


def after_all_of(part: str) -> str:
    """A condition that always holds, but only once all rows of another part are there.

    PostgreSQL evaluates the parts of a statement when they are needed, and parts that write and
    that nobody reads at the end, in no promised order. So what must come after a part reads it.
    """
    return f"(SELECT count(*) FROM {part}) >= 0"


class Outcome(NamedTuple):
    """The row that a statement returns, as it came; None: NULL or not returned."""

    revision: bytes | None
    """The new revision; None: nothing was written."""
    stored_revision: bytes | None
    """The revision before; None: no workflow has this id."""
    clashing_subscription: bytes | None
    """The id of a subscription to be created that exists with other content."""
    repeated_revision: bytes | None = None
    """The revision that an earlier request with this request id made."""
    repeated_same: bytes | None = None
    """Whether that request had the same content."""
    unknown_claim: bytes | None = None
    lost_claim: bytes | None = None
    lost_lease: bytes | None = None
    unknown_subscription: bytes | None = None
    unknown_event: bytes | None = None
    existing_event: bytes | None = None
    unknown_pointer: bytes | None = None
    """Of these conditions: the index of the first item that does not meet it."""
    lost_lock: bytes | None = None
    """The same, of the locks that must be held."""
    header_too_large: bytes | None = None
    """Not NULL: the header would be too large to be read."""

    @classmethod
    def read(cls, row: PGresult) -> Outcome:
        """Out of the statement's row."""
        return cls(*(row.get_value(0, column) for column in range(row.nfields)))

    @property
    def refused(self) -> bool:
        """Whether nothing was written although the workflow is stored."""
        return self.revision is None and self.stored_revision is not None


WRITTEN: Final = {
    "revision": "(SELECT revision FROM updated)",
    "stored_revision": "(SELECT revision FROM stored)",
    "clashing_subscription": "(SELECT min(id) FROM existing WHERE NOT same)",
}
WRITTEN_ONCE: Final = WRITTEN | {
    "repeated_revision": "(SELECT revision FROM repeated)",
    "repeated_same": "(SELECT same FROM repeated)",
}
_CONDITIONS: Final = Outcome._fields[len(WRITTEN_ONCE) :]
COMMITTED: Final = WRITTEN_ONCE | {name: f"c.{name}" for name in _CONDITIONS}
PATCHED: Final = WRITTEN_ONCE | {
    name: f"c.{name}" if name in ("unknown_pointer", "header_too_large") else "NULL"
    for name in _CONDITIONS
}

# --- What is stored and what is given.

STORED_AND_GIVEN: Final = f"""stored AS MATERIALIZED (
    SELECT id, revision FROM wfc.workflows WHERE id = $1
), given AS MATERIALIZED (
    SELECT w.* FROM jsonb_to_record($2::jsonb) AS w(
        {WORKFLOW.record()}, execution_pointers jsonb)
), subscriptions AS MATERIALIZED (
    SELECT s.*, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($4::jsonb) AS documents(document),
        jsonb_to_record(document) AS s(
            {SUBSCRIPTION.record(indent=12)})
), existing AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT s.content_hash FROM subscriptions s WHERE s.id = e.id) AS same
    FROM wfc.event_subscriptions e WHERE e.id = ANY (ARRAY (SELECT id FROM subscriptions))
)"""

REPEATED: Final = """repeated AS MATERIALIZED (
    SELECT revision, content_hash = $6::bytea AS same FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
)"""

# --- What must hold.

ALWAYS: Final = "TRUE"
NOT_REPEATED: Final = "NOT EXISTS (SELECT FROM repeated)"
PATCH_CONDITIONS_HOLD: Final = f"""{NOT_REPEATED}
        AND EXISTS (SELECT FROM conditions c WHERE
            num_nonnulls(c.unknown_pointer, c.header_too_large) = 0)"""
CONDITIONS_HOLD: Final = f"""{NOT_REPEATED}
        AND EXISTS (SELECT FROM conditions c WHERE
            num_nonnulls(c.lost_claim, c.lost_lease, c.unknown_subscription, c.unknown_event,
                c.existing_event, c.unknown_pointer, c.lost_lock, c.header_too_large) = 0)"""

UNKNOWN_POINTER: Final = """(SELECT min(r.n) - 1
            FROM jsonb_array_elements_text($2::jsonb -> 'removed') WITH ORDINALITY AS r(id, n)
            LEFT JOIN LATERAL (
                SELECT id FROM wfc.execution_pointers p
                WHERE p.workflow_id = $1 AND p.id = r.id LIMIT 1
            ) p ON TRUE
            WHERE p.id IS NULL)"""
NO_POINTERS_REMOVED: Final = "NULL::bigint"

# The patch sets the data or the description, and the other one stays. Nothing is read for other
# patches. The length of a description is known without reading it, and only if it leaves less room
# than the new data might need, that is measured. (Stored data must be, but descriptions hardly ever
# change.)
HEADER_TOO_LARGE: Final = """(SELECT TRUE
            FROM jsonb_to_record($2::jsonb -> 'room') AS room(other bigint, together bigint),
                wfc.workflows w
            WHERE $2::jsonb ? 'room' AND w.id = $1 AND CASE
                WHEN NOT $2::jsonb ? 'data' THEN octet_length(w.data::text) > room.other
                WHEN octet_length(w.description) > room.other THEN room.together
                    < octet_length(w.description) + octet_length(($2::jsonb #> '{data,0}')::text)
                END)"""
NO_PATCHED_HEADER: Final = "NULL::boolean"

PATCH_CONDITIONS: Final = f"""conditions AS MATERIALIZED (
    SELECT {UNKNOWN_POINTER} AS unknown_pointer,
        {HEADER_TOO_LARGE} AS header_too_large
)"""


# What a commit depends on and touches besides the workflow. The rows stay locked from here to the
# end. So that no transactions wait for each other in a ring, all that write several rows first lock
# those that exist, in one order: the workflow, subscriptions, events, commands, locks, each kind in
# the order of its ids. Only then they insert, see EFFECTS. (`stored` has the revision of the
# snapshot, so it is not the row that is locked here.)
#
# Locks are only read, so that writes under the same lock do not wait for each other; who wants to
# take over an expired one waits for them.
LOCKED: Final = f"""locked_workflow AS MATERIALIZED (
    SELECT FROM wfc.workflows WHERE id = $1 FOR NO KEY UPDATE
), claims AS MATERIALIZED (
    SELECT c.* FROM jsonb_to_recordset($7::jsonb -> 'claims')
        AS c(n bigint, id text, token text, epoch bigint)
), terminating AS MATERIALIZED (
    SELECT t.id, t.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'terminated') WITH ORDINALITY AS t(id, n)
), locked_subscriptions AS MATERIALIZED (
    SELECT id, external_token, external_token_epoch,
        {unexpired_or_endless("external_token_expiry")} AS unexpired
    FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM claims UNION SELECT id FROM terminating))
        AND {after_all_of("locked_workflow")}
    ORDER BY id FOR UPDATE
), events AS MATERIALIZED (
    SELECT e.*, n - 1 AS n, sha256(convert_to(document::text, 'UTF8')) AS content_hash
    FROM jsonb_array_elements($7::jsonb -> 'events') WITH ORDINALITY AS documents(document, n),
        jsonb_to_record(document) AS e(
            {EVENT.record(indent=12)})
), existing_events AS MATERIALIZED (
    SELECT e.id, e.content_hash IS NOT DISTINCT FROM
        (SELECT g.content_hash FROM events g WHERE g.id = e.id) AS same
    FROM wfc.events e WHERE e.id = ANY (ARRAY (SELECT id FROM events))
), processing AS MATERIALIZED (
    SELECT p.id, p.n - 1 AS n
    FROM jsonb_array_elements_text($7::jsonb -> 'processed') WITH ORDINALITY AS p(id, n)
), locked_events AS MATERIALIZED (
    SELECT id FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM processing))
        AND {after_all_of("locked_subscriptions")}
    ORDER BY id FOR NO KEY UPDATE
), leases AS MATERIALIZED (
    SELECT l.* FROM jsonb_to_recordset($7::jsonb -> 'leases')
        AS l(n bigint, completes boolean, id bigint, revision bigint, lease_id text)
), scheduling AS MATERIALIZED (
    SELECT s.*, c.id
    FROM jsonb_to_recordset($7::jsonb -> 'commands')
        AS s(command_name text, data text, execute_time bigint)
    LEFT JOIN LATERAL (
        SELECT id FROM wfc.scheduled_commands
        WHERE command_name = s.command_name AND data = s.data LIMIT 1
    ) c ON TRUE
), locked_commands AS MATERIALIZED (
    SELECT id, revision, lease_id, {unexpired("lease_expiry")} AS unexpired
    FROM wfc.scheduled_commands
    WHERE id = ANY (ARRAY (SELECT id FROM leases UNION SELECT id FROM scheduling))
        AND {after_all_of("locked_events")}
    ORDER BY id FOR UPDATE
), held_locks AS MATERIALIZED (
    SELECT h.* FROM jsonb_to_recordset($7::jsonb -> 'locks') AS h(i bigint, n bigint, token text)
), locked_locks AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM held_locks)) AND {unexpired("expiry")}
        AND {after_all_of("locked_commands")}
    ORDER BY resource FOR SHARE
)"""


def commit_conditions(*, unknown_pointer: str, header_too_large: str) -> str:
    """The conditions of a commit. One that does not hold is returned as the index of the first item
    in its list that it does not hold for, if it has a list."""
    return f"""conditions AS MATERIALIZED (
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
        {unknown_pointer} AS unknown_pointer,
        (SELECT min(i) FROM held_locks g WHERE NOT EXISTS (
            SELECT FROM locked_locks l WHERE l.n = g.n AND l.token = g.token)) AS lost_lock,
        {header_too_large} AS header_too_large
    WHERE {after_all_of("locked_locks")}
)"""


# --- The workflow's row.


def updated(*, assignments: str, revision: str, conditions: str) -> str:
    """The update of the workflow's row, if all holds; everything else depends on it.

    The name is kept if none is given.
    """
    return f"""updated AS (
    UPDATE wfc.workflows w SET
        name = coalesce(nullif(g.name, ''), w.name),
        {assignments},
        last_heartbeat_at = now(),
        revision = w.revision + 1
    FROM stored, given g
    WHERE w.id = stored.id AND w.revision = stored.revision AND {revision}
        AND NOT EXISTS (SELECT FROM existing WHERE NOT same)
        AND {conditions}
    RETURNING w.id, w.revision
)"""


def _patched(column: Column) -> str:
    """A column of the header after a patch: what the document has no member for stays."""
    if not column.nullable and column.default is None:
        return f"coalesce({column.value('g')}, w.{column.name})"
    return f"""CASE WHEN $2::jsonb ? '{column.name}'
            THEN {column.value("g")} ELSE w.{column.name} END"""


def _replaced(column: Column) -> str:
    """A column of the header after a persist. Without attributes the stored ones stay: most hosts
    do not know that there are any."""
    if column.default is None:
        return column.value("g")
    return f"coalesce(g.{column.name}, w.{column.name})"


def replaced_header(*, conditions: str) -> str:
    """The whole header is replaced; the expected revision may be absent."""
    return updated(
        assignments=WORKFLOW.assignments(_replaced, but=("name",)),
        revision="($3::bigint IS NULL OR w.revision = $3)",
        conditions=conditions,
    )


def patched_header(*, conditions: str) -> str:
    """What the document names of the header is replaced."""
    return updated(
        assignments=WORKFLOW.assignments(_patched, but=("name",)),
        revision="w.revision = $3",
        conditions=conditions,
    )


# --- The workflow's pointers.

_UPDATED_POINTER: Final = POINTER.assignments(lambda column: f"excluded.{column.name}")

# A pointer is only written if it has changed.
REPLACED_POINTERS: Final = f"""pointers (workflow_id, ordinal,
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
            SELECT ordinal,
                {POINTER.compared(indent=16)}
            FROM pointers
            EXCEPT
            SELECT ordinal,
                {POINTER.compared(indent=16)}
            FROM wfc.execution_pointers WHERE workflow_id = $1
        ) AS changed
    )
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        ordinal = excluded.ordinal,
        {_UPDATED_POINTER}
)"""

# Only the pointers in the patch are read and written. New ones are appended.
PATCHED_POINTERS: Final = f"""removed AS (
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
    FROM updated, last, given, jsonb_to_recordset(given.execution_pointers) AS p(ordinal bigint,
        {POINTER.record()})
), written AS (
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
        {POINTER.names()})
    SELECT * FROM pointers
    ON CONFLICT (workflow_id, id) DO UPDATE SET
        {_UPDATED_POINTER}
)"""

# --- Everything else.

SUBSCRIBED: Final = f"""subscribed AS (
    INSERT INTO wfc.event_subscriptions (
        {SUBSCRIPTION.names()}, content_hash)
    SELECT
        {SUBSCRIPTION.values("s")},
        s.content_hash
    FROM updated, subscriptions s
    WHERE NOT EXISTS (SELECT FROM existing e WHERE e.id = s.id)
    ORDER BY s.id
    RETURNING 1
)"""

# Two transactions that insert the same key wait for each other, so rows are inserted in the order
# of their keys, and subscriptions before events before commands. If the other commits first, the
# insert fails, and the statement runs again and finds the row. (ON CONFLICT DO UPDATE would lock it
# here, out of order.)
#
# A command that is completed and scheduled gets its new time and loses its lease.
EFFECTS: Final = f"""terminated AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT t.id FROM updated, terminating t))
), created_events AS (
    INSERT INTO wfc.events
        ({EVENT.names()}, content_hash)
    SELECT {EVENT.values("e")},
        e.content_hash
    FROM updated, events e
    WHERE NOT EXISTS (SELECT FROM existing_events x WHERE x.id = e.id)
        AND {after_all_of("subscribed")}
    ORDER BY e.id
    RETURNING 1
), processed AS (
    UPDATE wfc.events SET is_processed = TRUE
    WHERE id = ANY (ARRAY (SELECT p.id FROM updated, processing p))
), logged AS (
    INSERT INTO wfc.execution_errors ({ERROR.names()})
    SELECT {ERROR.values("e")}
    FROM updated, ROWS FROM (jsonb_to_recordset($7::jsonb -> 'errors') AS (
        {ERROR.record()}
    )) WITH ORDINALITY AS e({ERROR.names()}, n)
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
), scheduled AS (
    INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT s.command_name, s.data, s.execute_time FROM updated, scheduling s
    WHERE NOT EXISTS (SELECT FROM locked_commands c WHERE c.id = s.id)
        AND {after_all_of("created_events")}
    ORDER BY s.command_name, s.data
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

# Up to two expired request ids are deleted for each one that is added, so they do not pile up.
REMEMBERED: Final = f"""remembered AS (
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
