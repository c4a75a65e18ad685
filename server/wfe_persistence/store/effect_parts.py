"""The parts of a commit's statement about other rows than the workflow's: what it depends on and
what it does besides; see commit_parts.py.

The rows stay locked from here to the end. So that no transactions wait for each other in a ring,
all that write several rows first lock those that exist, in one order: the workflow, subscriptions,
events, commands, items of queues, locks, each kind in the order of its ids. Only then they insert:
subscriptions before events before commands before items.
"""

from __future__ import annotations

from typing import Final

from wfe_persistence.store.columns import Column, sql_list
from wfe_persistence.store.commit_parts import after_all_of
from wfe_persistence.store.lease import unexpired, unexpired_or_endless
from wfe_persistence.store.records import ERROR, EVENT, LIFECYCLE_EVENT

# --- What is locked.

# (`stored` has the revision of the snapshot, so it is not the row that is locked here.)
LOCKED_WORKFLOW: Final = """locked_workflow AS MATERIALIZED (
    SELECT FROM wfc.workflows WHERE id = $1 FOR NO KEY UPDATE
)"""

LOCKED_BY_EFFECTS: Final = f"""claims AS MATERIALIZED (
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
), unawaited AS MATERIALIZED (
    SELECT e.id FROM events e
    WHERE ($7::jsonb -> 'skip_unawaited')::boolean
        AND NOT EXISTS (SELECT FROM subscriptions s
            WHERE s.event_name = e.event_name AND s.event_key = e.event_key)
        AND NOT EXISTS (SELECT FROM wfc.event_subscriptions s
            WHERE s.event_name = e.event_name AND s.event_key = e.event_key)
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
)"""


def locked_locks(*, after: str, of: str = "$7::jsonb -> 'locks'") -> str:
    """The locks that must be held, those of the documents `of`, after all rows of the part `after`.
    They are only read, so that writes under the same lock do not wait for each other; who wants to
    take over an expired one waits for them."""
    return f"""held_locks AS MATERIALIZED (
    SELECT h.* FROM jsonb_to_recordset({of}) AS h(i bigint, n bigint, token text)
), locked_locks AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM held_locks)) AND {unexpired("expiry")}
        AND {after_all_of(after)}
    ORDER BY resource FOR SHARE
)"""


# --- What must hold, see `conditions`.

OF_EFFECTS: Final = {
    "unknown_claim": """(SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id))""",
    "lost_claim": """(SELECT min(n) FROM claims g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s
            WHERE s.id = g.id AND s.external_token = g.token AND s.unexpired
                AND (g.epoch IS NULL OR g.epoch = s.external_token_epoch)))""",
    "lost_lease": """(SELECT min(n) FROM leases g WHERE NOT EXISTS (
            SELECT FROM locked_commands c
            WHERE c.id = g.id AND c.lease_id = g.lease_id
                AND (g.completes OR c.unexpired)))""",
    "unknown_subscription": """(SELECT min(n) FROM terminating g WHERE NOT EXISTS (
            SELECT FROM locked_subscriptions s WHERE s.id = g.id))""",
    "unknown_event": """(SELECT min(n) FROM processing g WHERE NOT EXISTS (
            SELECT FROM locked_events e WHERE e.id = g.id))""",
    "existing_event": """(SELECT min(n) FROM events g WHERE EXISTS (
            SELECT FROM existing_events e WHERE e.id = g.id AND NOT e.same))""",
}
"""The conditions of a commit's effects. (An unknown claim is also lost.)"""

OF_LOCKS: Final = {
    "lost_lock": """(SELECT min(i) FROM held_locks g WHERE NOT EXISTS (
            SELECT FROM locked_locks l WHERE l.n = g.n AND l.token = g.token))""",
}
"""The condition of the locks that must be held."""

# --- What is done.


def _created(column: Column) -> str:
    """A column of an event that is created."""
    value = column.value("e")
    if column.name != "is_processed":
        return value
    return f"({value} OR e.id IN (SELECT id FROM unawaited))"


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
    SELECT {sql_list(map(_created, EVENT.written))},
        e.content_hash
    FROM updated, events e
    WHERE NOT EXISTS (SELECT FROM existing_events x WHERE x.id = e.id)
        AND {after_all_of("subscribed")}
    ORDER BY e.id
    RETURNING id, is_processed
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
    RETURNING 1
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

PUBLISHED: Final = f"""published AS (
    INSERT INTO wfc.lifecycle_events ({LIFECYCLE_EVENT.names()})
    SELECT {LIFECYCLE_EVENT.values("e")}
    FROM updated, ROWS FROM (jsonb_to_recordset($7::jsonb -> 'publish') AS (
        {LIFECYCLE_EVENT.record()}
    )) WITH ORDINALITY AS e({LIFECYCLE_EVENT.names()}, i)
    ORDER BY e.i
)"""
