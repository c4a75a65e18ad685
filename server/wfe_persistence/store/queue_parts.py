"""What becomes of items of queues, as parts of statements: common table expressions like those of
commit_parts.py, for the writes of workflows and events that enqueue and acknowledge; and the rules
that they have in common with the statements of queue.py.
"""

from __future__ import annotations

from typing import Final

from wfe_persistence.store.commit_parts import after_all_of, remembered, repeated
from wfe_persistence.store.create_parts import Besides
from wfe_persistence.store.lease import unexpired
from wfe_persistence.store.records import QUEUE_ITEM

# --- The rules.

# What enqueueing `g` makes of an item `i` that is there. One that is, or was last, under a lease
# has been handed out with what it was enqueued for; so it is noted that it must come again, also
# after a late acknowledgement.
MERGED: Final = f"""
        payload = g.payload,
        blocked_by = g.blocked_by,
        visible_time = CASE
            WHEN i.dead THEN g.visible_time
            WHEN i.lease_id IS NOT NULL AND {unexpired("i.visible_time")} THEN i.visible_time
            ELSE least(i.visible_time, g.visible_time) END,
        again_time = CASE WHEN i.lease_id IS NOT NULL AND NOT i.dead
            THEN least(i.again_time, g.visible_time) END,
        attempt = CASE WHEN i.dead THEN 0 ELSE i.attempt END,
        lease_id = CASE WHEN NOT i.dead THEN i.lease_id END,
        lease_worker_id = CASE WHEN NOT i.dead THEN i.lease_worker_id END,
        dead = FALSE"""

BY_TIME: Final = "visible_time <= 'infinity'"
"""A condition that every item meets, for statements without another one on visible_time that want
the items of a queue in their order: its index is only used by statements that have one."""

# Rows of items are locked in this order. (Not by the columns themselves: the statistics of a queue
# that is drained say that there are no rows, and then PostgreSQL would read a whole index to have
# the order of its rows, instead of sorting those that were asked for.)
KEY_ORDER: Final = "queue || '', id || ''"

# What settling makes of an item, as judged in `j`, unless it is removed: done, and not enqueued
# since it was handed out.
KEPT: Final = """
        visible_time = CASE WHEN j.done THEN j.again_time
            ELSE least(now() + j.delay, j.again_time) END,
        dead = j.spent AND j.again_time IS NULL,
        attempt = CASE WHEN j.done OR (j.spent AND j.again_time IS NOT NULL)
            THEN 0 ELSE j.attempt END,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL"""
IS_REMOVED: Final = "done AND again_time IS NULL"

_MOST_BACKOFF_SECONDS: Final = 60


def backoff(attempt: str) -> str:
    """After how long an item comes back that was handed out so often."""
    most = _MOST_BACKOFF_SECONDS
    return f"least({most}, 2 ^ least({attempt} - 1, 10)) * interval '1 second'"


# Of an item `h` of a queue `q`. No EXISTS: for that PostgreSQL may read all workflows that are due,
# and all unprocessed events, to look the item up among them. And items have the collation "C",
# with which it could not use the indexes of the others.
_ID_OF_ITEM: Final = 'h.id COLLATE "default"'
IS_DUE: Final = """status = 'Runnable'
                    AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint"""
WORKFLOW_IS_DUE: Final = f"""coalesce((
                SELECT {IS_DUE}
                FROM wfc.workflows WHERE id = {_ID_OF_ITEM}), FALSE)"""
EVENT_IS_UNPROCESSED: Final = f"""coalesce((
                SELECT NOT is_processed FROM wfc.events WHERE id = {_ID_OF_ITEM}), FALSE)"""


def not_done(workflow_is_due: str, event_is_unprocessed: str) -> str:
    """What a workflow or an event must be for its item's work not to be done; see QueueKind."""
    return f"""CASE q.kind
            WHEN 'Workflow' THEN {workflow_is_due}
            WHEN 'Event' THEN {event_is_unprocessed}
            ELSE FALSE END"""


# --- Enqueueing with another write.


def enqueuing(documents: str, *, but: str = "", of_many: bool = False) -> str:
    """The items to enqueue, in their order. `documents`: a list of them, in SQL. `but`: SQL that
    leaves some out. `of_many`: each says what it is enqueued with, by its number `owner`."""
    owner, owner_type = (" owner,", "owner bigint, ") if of_many else ("", "")
    return f"""enqueuing (at,{owner} {QUEUE_ITEM.names()}) AS MATERIALIZED (
    SELECT g.at,{owner}
        {QUEUE_ITEM.values("g")}
    FROM ROWS FROM (jsonb_to_recordset({documents}) AS ({owner_type}
        {QUEUE_ITEM.record()}
    )) WITH ORDINALITY AS g({owner.lstrip()}{" " if owner else ""}{QUEUE_ITEM.names()}, at){but}
)"""


def _locked_items(*, also: str = "", after: str = "") -> str:
    """Of the items to be written those that there are, locked in the order of their keys."""
    return f"""locked_items AS MATERIALIZED (
    SELECT n, queue, id, lease_id, dead, attempt, again_time FROM wfc.queue_items
    WHERE n = ANY (ARRAY ({also}
        SELECT i.n FROM enqueuing g, LATERAL (
            SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id LIMIT 1
        ) i)){after}
    ORDER BY {KEY_ORDER} FOR UPDATE
)"""


def enqueued(*, written: str, after: str, but: str = "", items: str = "enqueuing") -> str:
    """They are written, if the part `written` has a row; new ones once all rows of the part `after`
    are there, because those are inserted before. `but`: SQL that excludes some that there are.
    `items`: the part that has them.

    Numbers are given in the order of the request, rows inserted in the order of their keys.
    """
    return f"""merged_items AS (
    UPDATE wfc.queue_items i SET{MERGED}
    FROM {items} g JOIN locked_items k ON k.queue = g.queue AND k.id = g.id
    WHERE i.n = k.n AND i.n = ANY (ARRAY (
        SELECT l.n FROM {written}, locked_items l{but}))
), fresh_items AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT {QUEUE_ITEM.names()} FROM {items} g
        WHERE EXISTS (SELECT FROM {written})
            AND NOT EXISTS (SELECT FROM locked_items l WHERE l.queue = g.queue AND l.id = g.id)
        ORDER BY at
    ) g
), enqueued AS (
    INSERT INTO wfc.queue_items (n, {QUEUE_ITEM.names()})
    SELECT n, {QUEUE_ITEM.names()} FROM fresh_items
    WHERE {after_all_of(after)}
    ORDER BY queue, id
)"""


ENQUEUE_CREATED: Final = Besides(
    first=f"{enqueuing('$2::jsonb')}, {_locked_items()}, ",
    condition=after_all_of("locked_items"),
    then=f", {enqueued(written='created', after='created')}",
)
"""Items are enqueued with what is created, and not if it has been created before; $2: the items."""

ENQUEUE_EACH_CREATED: Final = Besides(
    first=f"{enqueuing('$2::jsonb', of_many=True)}, {_locked_items()}, ",
    condition=after_all_of("locked_items"),
    then=f""", due_items AS MATERIALIZED (
    SELECT e.* FROM enqueuing e JOIN given g ON g.at = e.owner JOIN created c ON c.id = g.id
), {enqueued(written="created", after="created", items="due_items")}""",
)
"""The same where many are created, each with its items. No two items have the same key."""

# --- The same with the write of a workflow, which acknowledges, too; of $7, see commit_parts.py.


def work(*, but: str = "") -> str:
    """The items to acknowledge and to enqueue; `but`: see `enqueuing`."""
    return f"""settling AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($7::jsonb -> 'acknowledge')
        AS g(at int, n bigint, lease_id text, act text)
), {enqueuing("$7::jsonb -> 'enqueue'", but=but)}"""


BUT_UNAWAITED: Final = """
    WHERE g.id NOT IN (SELECT id FROM unawaited)"""
"""Leaves out the items of events for which nobody waits."""


def locked_work(*, after: str) -> str:
    """The items that there are, locked after the rows of the part `after`."""
    return _locked_items(
        also="\n        SELECT n FROM settling UNION", after=f"\n        AND {after_all_of(after)}"
    )


OF_ITEMS: Final = {
    "lost_item": """(SELECT min(at) FROM settling g WHERE NOT EXISTS (
            SELECT FROM locked_items i WHERE i.n = g.n AND i.lease_id = g.lease_id))""",
}
"""The condition of the items that must be held."""


def worked(*, after: str, event_is_unprocessed: str) -> str:
    """Items are settled and enqueued, if the workflow is written; see `enqueued` for `after`.

    Whether work is done is judged by the state after this write, which the statement's snapshot
    does not show. An item that is both settled and enqueued is settled as one that was enqueued
    since it was handed out, because no statement can write a row twice.
    """
    workflow_is_due = f"""CASE WHEN h.id = $1
                THEN EXISTS (SELECT FROM updated WHERE {IS_DUE})
                ELSE {WORKFLOW_IS_DUE} END"""
    return f"""judged AS MATERIALIZED (
    SELECT h.n, h.queue, h.attempt, g.at, g.act,
        g.act = 'acknowledge' OR NOT {not_done(workflow_is_due, event_is_unprocessed)} AS done,
        h.dead OR coalesce(h.attempt >= q.max_attempts, FALSE) AS spent,
        {backoff("h.attempt")} AS delay,
        least(h.again_time, e.visible_time) AS again_time,
        e.at IS NOT NULL AS is_enqueued, e.payload, e.blocked_by
    FROM updated, settling g JOIN locked_items h ON h.n = g.n
    LEFT JOIN wfc.queues q ON q.name = h.queue
    LEFT JOIN enqueuing e ON e.queue = h.queue AND e.id = h.id
), removed_items AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM judged WHERE {IS_REMOVED}))
), kept_items AS (
    UPDATE wfc.queue_items i SET
        payload = CASE WHEN j.is_enqueued THEN j.payload ELSE i.payload END,
        blocked_by = CASE WHEN j.is_enqueued THEN j.blocked_by ELSE i.blocked_by END,{KEPT}
    FROM judged j
    WHERE i.n = j.n AND i.n = ANY (ARRAY (SELECT n FROM judged WHERE NOT ({IS_REMOVED})))
), {enqueued(written="updated", after=after, but=_BUT_SETTLED)}"""


_BUT_SETTLED: Final = """
        WHERE l.n NOT IN (SELECT n FROM settling)"""

EVENT_IS_LEFT_UNPROCESSED: Final = f"""NOT EXISTS (SELECT FROM processing p WHERE p.id = h.id)
                AND ({EVENT_IS_UNPROCESSED}
                    OR EXISTS (SELECT FROM created_events WHERE id = h.id AND NOT is_processed))"""
"""The same after a commit that processes and creates events."""

_UNCONFIRMED: Final = """(SELECT string_agg(int4send(at), '' ORDER BY at)
        FROM judged WHERE act = 'confirm' AND NOT done)"""

WORKED: Final = {
    "unconfirmed": _UNCONFIRMED,
    "returned_to": f"(SELECT jsonb_agg(queue) FROM judged WHERE NOT ({IS_REMOVED}))",
    "repeated_unconfirmed": "(SELECT unconfirmed FROM repeated)",
}
"""What a statement with these parts returns last."""

WITH_EVENTS: Final = WORKED | {
    "unawaited": "(SELECT jsonb_agg(u.id) FROM updated, unawaited u)",
}
"""The same if it creates events, too."""

# A repetition is told what the first one was told, so what was not confirmed is remembered behind
# the hash of the request, whose length is fixed. (Another statement takes it for another hash, and
# so for another request, which it is.)
REPEATED: Final = repeated(
    columns="""substr(content_hash, 1, 32) = $6::bytea AS same,
        nullif(substr(content_hash, 33), '') AS unconfirmed"""
)
REMEMBERED: Final = remembered(hash_=f"$6::bytea || coalesce({_UNCONFIRMED}, '')")
