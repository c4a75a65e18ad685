"""What becomes of items of queues, as parts of the statements that enqueue and acknowledge."""

from __future__ import annotations

from typing import Final

from wfe_persistence.store.lease import unexpired

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


# Of an item `h` of a queue `q`.
IS_DUE: Final = """status = 'Runnable'
                    AND next_execution <= floor(extract(epoch FROM now()) * 1000)::bigint"""
WORKFLOW_IS_DUE: Final = f"""EXISTS (
                SELECT FROM wfc.workflows WHERE id = h.id AND {IS_DUE})"""
EVENT_IS_UNPROCESSED: Final = """EXISTS (
                SELECT FROM wfc.events WHERE id = h.id AND NOT is_processed)"""


def not_done(workflow_is_due: str, event_is_unprocessed: str) -> str:
    """What a workflow or an event must be for its item's work not to be done; see QueueKind."""
    return f"""CASE q.kind
            WHEN 'Workflow' THEN {workflow_is_due}
            WHEN 'Event' THEN {event_is_unprocessed}
            ELSE FALSE END"""
