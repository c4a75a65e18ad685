"""Deleting: one workflow, and in batches old workflows and events.

A batch is one short transaction. It locks only rows that nobody is writing (SKIP LOCKED) and
deletes a few thousand rows at most, so that writers never wait long. Each batch starts where the
last one ended, so that none has to skip the dead index entries of earlier batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.workflow_pb2 import PurgeWorkflowsResponse, WorkflowStatus
from wfe_persistence.errors import revision_mismatch, workflow_not_found
from wfe_persistence.store.commit import LOCK_WORKFLOW
from wfe_persistence.store.commit_parts import after_all_of
from wfe_persistence.store.create_parts import NOTHING, Besides
from wfe_persistence.store.paging import TIME, Cursor
from wfe_persistence.store.rows import (
    PGresult,
    boolean,
    integer,
    read_bool,
    read_int8,
    read_text,
    text,
    timestamp,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow_list import status_array

ENDED: Final = (
    WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
    WorkflowStatus.WORKFLOW_STATUS_TERMINATED,
)
BATCH_ROWS: Final = 2000
BATCH_ROOTS: Final = 100

_OF_DOOMED = "= ANY (ARRAY (SELECT id FROM doomed))"

# Rows that others may write at the same time are locked before they are deleted, in the order in
# which all lock them (see effect_parts.py). Pointers are written only under the lock of their
# workflow, and errors are only inserted. A trigger deletes the idempotency keys.
_LOCKED_SUBSCRIPTIONS = f"""locked_subscriptions AS MATERIALIZED (
    SELECT id FROM wfc.event_subscriptions WHERE workflow_id {_OF_DOOMED}
    ORDER BY id FOR UPDATE
)"""
_LOCKED_ONES = """wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM locked_subscriptions))"""

DELETE_WORKFLOW = f"""
WITH found AS MATERIALIZED (
    SELECT id, revision, $2::bigint IS NULL OR revision = $2 AS fits
    FROM wfc.workflows WHERE id = $1
), doomed AS MATERIALIZED (
    SELECT id FROM found WHERE fits
), {_LOCKED_SUBSCRIPTIONS}, pointers AS (
    DELETE FROM wfc.execution_pointers WHERE workflow_id {_OF_DOOMED}
), subscriptions AS (
    DELETE FROM {_LOCKED_ONES}
), errors AS (
    DELETE FROM wfc.execution_errors WHERE workflow_id {_OF_DOOMED}
), deleted AS (
    DELETE FROM wfc.workflows WHERE id {_OF_DOOMED}
)
SELECT revision, fits FROM found
"""


async def delete_workflow(store: Store, id_: str, expected_revision: int | None) -> None:
    """Delete a workflow with its pointers, subscriptions and errors; a trigger deletes its
    idempotency keys."""
    expected = None if expected_revision is None else integer(expected_revision)
    # The snapshot is taken after the lock, so that it includes every pointer.
    _, row = await store.write_all(
        (LOCK_WORKFLOW, (text(id_),)), (DELETE_WORKFLOW, (text(id_), expected))
    )
    if row.ntuples == 0:
        raise workflow_not_found("id")
    if not read_bool(row.get_value(0, 1)):
        assert expected_revision is not None
        raise revision_mismatch(read_int8(row.get_value(0, 0)), expected_revision)


# $1 statuses, $2 ended before, $3 and $4 cursor, $5 definition, $6 maximum number of roots, $7
# maximum number of rows.
def _is_asked_for(w: str, definitions: str) -> str:
    """Whether a workflow itself is to be purged, if it is a root."""
    return f"""{w}.status IN ('Complete', 'Terminated') AND {w}.status = ANY ($1::text[])
        AND coalesce({w}.complete_time, {w}.create_time) < $2::timestamptz
        AND {definitions.format(w=w)}"""


# Workflows may be each other's roots, in a cycle. One of those that are asked for stands for the
# root: the first by the hashes of their ids. (The walk up from a workflow ends at any that comes
# before it, so with hashes it is short, whatever ids a chain has.)
def _ends_walk(n: str, definitions: str) -> str:
    return f"""{n}.id = w.id
                OR (hashtextextended({n}.id, 0), {n}.id) < (hashtextextended(w.id, 0), w.id)
                    AND {_is_asked_for(n, definitions)}"""


def _leads_cycle(definitions: str) -> str:
    """Whether the workflow w, which has a root, stands for the root of a cycle; NULL: its root is
    gone."""
    return f"""(
    SELECT r.root_workflow_id <> r.id IS TRUE AND w.id = ANY (ARRAY (
        WITH RECURSIVE above (id, root, is_last) AS (
            SELECT r.id, r.root_workflow_id,
                {_ends_walk("r", definitions)}
            UNION
            SELECT n.id, n.root_workflow_id,
                {_ends_walk("n", definitions)}
            FROM above a, LATERAL (
                SELECT * FROM wfc.workflows WHERE id = a.root OFFSET 0
            ) n
            WHERE NOT a.is_last
        )
        SELECT id FROM above WHERE is_last
    ))
    FROM wfc.workflows r WHERE r.id = w.root_workflow_id
)"""


# How large trees are is not known before they are read, so that PostgreSQL would think a batch
# worth compiling (`jit`): some 140 functions for what takes 20 ms.
#
# A tree is all below a root, however deep. A row that was written between the statement's snapshot
# and its lock is skipped, because the snapshot does not show what else was written; its revision
# tells. That is compared once the batch is chosen: among the conditions of the choice, the planner
# would take it for one that hardly any row meets, and sort all of a status or definition for each
# batch.
def _doomed(definitions: str, besides: Besides) -> str:
    return f"""
WITH RECURSIVE {besides.first}locked AS MATERIALIZED (
    SELECT w.id, coalesce(w.complete_time, w.create_time) AS ended, w.revision
    FROM wfc.workflows w
    WHERE {_is_asked_for("w", definitions)} AND {besides.condition}
        AND ($4::text IS NULL
            OR (coalesce(w.complete_time, w.create_time), w.id) > ($3::timestamptz, $4))
        AND (w.root_workflow_id IS NULL OR w.root_workflow_id = w.id
            OR coalesce({_leads_cycle(definitions)}, TRUE))
    ORDER BY coalesce(w.complete_time, w.create_time), w.id
    LIMIT $6
    FOR UPDATE OF w SKIP LOCKED
), roots AS MATERIALIZED (
    SELECT l.id, l.ended, l.revision = (
        SELECT s.revision FROM wfc.workflows s WHERE s.id = l.id) AS is_current
    FROM locked l
), tree (root, id) AS (
    SELECT id, id FROM roots WHERE is_current
    UNION
    SELECT t.root, b.id FROM tree t, LATERAL (
        SELECT id FROM wfc.workflows WHERE root_workflow_id = t.id OFFSET 0
    ) b
), below AS MATERIALIZED (
    SELECT t.root, c.id, c.has_ended
    FROM tree t, LATERAL (
        SELECT id, status IN ('Complete', 'Terminated')
            AND coalesce(complete_time, create_time) < $2 AS has_ended
        FROM wfc.workflows b WHERE id = t.id
            AND b.revision = (SELECT s.revision FROM wfc.workflows s WHERE s.id = b.id)
        FOR UPDATE SKIP LOCKED
    ) c
    WHERE t.id <> t.root
), trees AS MATERIALIZED (
    SELECT r.id, r.ended, r.is_current, sizes.pointers
    FROM roots r, LATERAL (
        SELECT count(*) AS pointers FROM wfc.execution_pointers p
        WHERE p.workflow_id = r.id
            OR p.workflow_id = ANY (ARRAY (SELECT b.id FROM below b WHERE b.root = r.id))
    ) sizes
), considered AS MATERIALIZED (
    SELECT id, ended, is_current FROM (
        SELECT id, ended, is_current,
            sum(pointers + 1) OVER (ORDER BY ended, id) - pointers - 1 AS before
        FROM trees
    ) t WHERE before < $7::bigint
), doomed_roots AS MATERIALIZED (
    SELECT id FROM considered c
    WHERE is_current AND NOT EXISTS (SELECT FROM below b WHERE b.root = c.id AND NOT b.has_ended)
        AND (SELECT count(*) FROM below b WHERE b.root = c.id)
            = (SELECT count(*) FROM tree t WHERE t.root = c.id AND t.id <> c.id)
), doomed AS MATERIALIZED (
    SELECT id FROM doomed_roots
    UNION
    SELECT b.id FROM below b JOIN doomed_roots d ON d.id = b.root
)"""


_LAST_CONSIDERED = """
    (SELECT count(*) FROM considered),
    (SELECT count(*) FROM roots),
    (SELECT ended FROM considered ORDER BY ended DESC, id DESC LIMIT 1),
    (SELECT id FROM considered ORDER BY ended DESC, id DESC LIMIT 1)"""
_COMPLETION_EVENTS = f"""wfc.events
    WHERE event_name = 'wfe.workflow.completed' AND is_processed
        AND event_key {_OF_DOOMED}"""

# $5 definition.
_OF_DEFINITION: Final = "($5::text IS NULL OR {w}.definition_id = $5)"


def purge_workflows_statement(definitions: str = _OF_DEFINITION, besides: Besides = NOTHING) -> str:
    """The statement that deletes a batch of workflows.

    `definitions`: the condition on the definition of a workflow {w}, with the parameter $5.
    """
    doomed = _doomed(definitions, besides)
    return f"""{doomed}, {_LOCKED_SUBSCRIPTIONS}, locked_events AS MATERIALIZED (
    SELECT id FROM {_COMPLETION_EVENTS}
        AND {after_all_of("locked_subscriptions")}
    ORDER BY id FOR UPDATE
), pointers AS (
    DELETE FROM wfc.execution_pointers WHERE workflow_id {_OF_DOOMED} RETURNING 1
), subscriptions AS (
    DELETE FROM {_LOCKED_ONES} RETURNING 1
), errors AS (
    DELETE FROM wfc.execution_errors WHERE workflow_id {_OF_DOOMED} RETURNING 1
), events AS (
    DELETE FROM wfc.events WHERE id = ANY (ARRAY (SELECT id FROM locked_events)) RETURNING 1
), workflows AS (
    DELETE FROM wfc.workflows WHERE id {_OF_DOOMED} RETURNING 1
){besides.then}
SELECT (SELECT count(*) FROM workflows), (SELECT count(*) FROM pointers),
    (SELECT count(*) FROM subscriptions), (SELECT count(*) FROM errors),
    (SELECT count(*) FROM events),{_LAST_CONSIDERED}
"""


def count_workflows_statement(definitions: str = _OF_DEFINITION) -> str:
    """The statement that counts a batch of workflows."""
    return f"""{_doomed(definitions, NOTHING)}
SELECT (SELECT count(*) FROM doomed),
    (SELECT count(*) FROM wfc.execution_pointers WHERE workflow_id {_OF_DOOMED}),
    (SELECT count(*) FROM wfc.event_subscriptions WHERE workflow_id {_OF_DOOMED}),
    (SELECT count(*) FROM wfc.execution_errors WHERE workflow_id {_OF_DOOMED}),
    (SELECT count(*) FROM {_COMPLETION_EVENTS}),{_LAST_CONSIDERED}
"""


@dataclass(frozen=True, slots=True)
class Purged:
    """What one statement has deleted, or counted."""

    counts: Sequence[int]
    """Rows, of each kind."""
    last: Cursor | None
    """The last that was looked at; None: there was none."""
    is_over: bool
    """Nothing is left that is to go."""


def purged_workflows(row: PGresult) -> Purged:
    """The answer to a statement about workflows: of them, and of their pointers, subscriptions,
    errors and events."""
    *counts, considered, found = (read_int8(row.get_value(0, column)) for column in range(7))
    return Purged(counts, _last(row, 7, found), considered == found < BATCH_ROOTS)


def purged_events(row: PGresult, most: int) -> Purged:
    """The answer to a statement about at most so many events."""
    events, found = (read_int8(row.get_value(0, column)) for column in range(2))
    return Purged([events], _last(row, 2, found), found < most)


def _last(row: PGresult, column: int, found: int) -> Cursor | None:
    if not found:
        return None
    return read_int8(row.get_value(0, column)), read_text(row.get_value(0, column + 1))


PURGE_WORKFLOWS = purge_workflows_statement()
COUNT_DOOMED_WORKFLOWS = count_workflows_statement()


async def purge_workflows(
    store: Store,
    statuses: Sequence[WorkflowStatus.ValueType],
    ended_before: Timestamp,
    definition_id: str,
    after: Cursor | None,
    max_rows: int,
    *,
    dry_run: bool,
) -> tuple[PurgeWorkflowsResponse, Cursor | None]:
    """Delete (or count) ended workflows, the first to end first.

    Returns the counts and the cursor of the next call; None: nothing is left.
    """
    done = PurgeWorkflowsResponse()
    rows = 0
    while rows < max_rows:
        row = await store.write_once(
            COUNT_DOOMED_WORKFLOWS if dry_run else PURGE_WORKFLOWS,
            status_array(statuses or ENDED),
            timestamp(ended_before),
            *TIME.params(after),
            text(definition_id) if definition_id else None,
            integer(BATCH_ROOTS),
            integer(min(BATCH_ROWS, max_rows - rows)),
            jit=False,
        )
        purged = purged_workflows(row)
        workflows, pointers, subscriptions, errors, events = purged.counts
        done.workflows += workflows
        done.execution_pointers += pointers
        done.subscriptions += subscriptions
        done.errors += errors
        done.events += events
        rows += sum(purged.counts)
        if purged.is_over:
            return done, None
        after = purged.last or after
    return done, after


def _doomed_events(*, lock: str = "", condition: str = "TRUE") -> str:
    """The CTE of one batch of events."""
    return f"""doomed AS MATERIALIZED (
    SELECT id, event_time FROM wfc.events
    WHERE event_time < $1::timestamptz
        AND ($3::text IS NULL OR (event_time, id) > ($2::timestamptz, $3))
        AND ($4::boolean OR is_processed) AND ($5::text IS NULL OR event_name = $5)
        AND {condition}
    ORDER BY event_time, id
    LIMIT $6{lock}
)"""


_LAST_EVENT = """
    (SELECT event_time FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1),
    (SELECT id FROM doomed ORDER BY event_time DESC, id DESC LIMIT 1)"""


def purge_events_statement(besides: Besides = NOTHING) -> str:
    """The statement that deletes a batch of events."""
    doomed = _doomed_events(lock=" FOR UPDATE SKIP LOCKED", condition=besides.condition)
    return f"""
WITH {besides.first}{doomed}, deleted AS (
    DELETE FROM wfc.events WHERE id {_OF_DOOMED} RETURNING 1
){besides.then}
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM doomed),{_LAST_EVENT}
"""


PURGE_EVENTS = purge_events_statement()

COUNT_DOOMED_EVENTS = f"""
WITH {_doomed_events()}
SELECT (SELECT count(*) FROM doomed), (SELECT count(*) FROM doomed),{_LAST_EVENT}
"""


async def purge_events(
    store: Store,
    event_time_before: Timestamp,
    event_name: str,
    after: Cursor | None,
    max_rows: int,
    *,
    include_unprocessed: bool,
    dry_run: bool,
) -> tuple[int, Cursor | None]:
    """Delete (or count) events, the oldest first.

    Returns their number and the cursor of the next call; None: nothing is left.
    """
    events = 0
    while events < max_rows:
        batch = min(BATCH_ROWS, max_rows - events)
        row = await store.write_once(
            COUNT_DOOMED_EVENTS if dry_run else PURGE_EVENTS,
            timestamp(event_time_before),
            *TIME.params(after),
            boolean(include_unprocessed),
            text(event_name) if event_name else None,
            integer(batch),
            jit=False,
        )
        purged = purged_events(row, batch)
        events += sum(purged.counts)
        if purged.is_over:
            return events, None
        after = purged.last
    return events, after
