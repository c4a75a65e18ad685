"""The parts that the statements of commit.py are made of: common table expressions, in their order.
Here are those of the state; the others are in effect_parts.py and queue_parts.py.

`statement()` joins them. Some are the same in every statement, and constants; the others are
functions of what differs.

The parameters are the same in all statements: $1 the workflow's id, $2 its document or patch, $3
the expected revision, $4 subscriptions to create; $5 the request id and $6 the hash of its content;
$7 what a commit does besides (see documents.effects_document).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from wfe_persistence.store.columns import Column
from wfe_persistence.store.records import POINTER, SUBSCRIPTION, WORKFLOW
from wfe_persistence.store.request_key import REQUEST_RETENTION_SECONDS
from wfe_persistence.store.rows import Found


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
    lost_item: bytes | None = None
    """The index of the first item to acknowledge that is no longer held."""
    unconfirmed: bytes | None = None
    """Those that were not confirmed: their indexes, as int4s."""
    returned_to: bytes | None = None
    """The queues of the items that come back, one for each, as a JSON array."""
    repeated_unconfirmed: bytes | None = None
    """The same as `unconfirmed`, of the earlier request."""
    unawaited: bytes | None = None
    """The ids of the events for which nobody waits, as a JSON array."""

    @classmethod
    def read(cls, row: Found) -> Outcome:
        """Out of the statement's row."""
        value = row.get_value
        return cls(*[value(0, column) for column in range(row.nfields)])

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


def committed(found: Iterable[str]) -> dict[str, str]:
    """The result of a statement with these conditions."""
    names = Outcome._fields[len(WRITTEN_ONCE) : Outcome._fields.index("unconfirmed")]
    last = max((names.index(name) for name in found), default=-1)
    return WRITTEN_ONCE | {
        name: f"c.{name}" if name in found else "NULL" for name in names[: last + 1]
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


def repeated(*, columns: str = "content_hash = $6::bytea AS same") -> str:
    """What was remembered of this request id."""
    return f"""repeated AS MATERIALIZED (
    SELECT revision, {columns} FROM wfc.requests
    WHERE workflow_id = $1 AND request_id = $5::uuid
)"""


# --- What must hold.

ALWAYS: Final = "TRUE"
NOT_REPEATED: Final = "NOT EXISTS (SELECT FROM repeated)"


def conditions(found: Mapping[str, str], *, after: str = "") -> str:
    """The conditions of a write, by the field of Outcome that has what does not meet one: the index
    of the first item in its list, if it has a list. `after`: SQL that always holds."""
    columns = ",\n        ".join(f"{value} AS {name}" for name, value in found.items())
    return f"""conditions AS MATERIALIZED (
    SELECT {columns}{after}
)"""


def conditions_hold(found: Iterable[str]) -> str:
    """All of these conditions are met, and the request is not repeated."""
    lost = ", ".join(f"c.{name}" for name in found)
    return f"""{NOT_REPEATED}
        AND EXISTS (SELECT FROM conditions c WHERE num_nonnulls({lost}) = 0)"""


_UNKNOWN_POINTER: Final = """(SELECT min(r.n) - 1
            FROM jsonb_array_elements_text($2::jsonb -> 'removed') WITH ORDINALITY AS r(id, n)
            LEFT JOIN LATERAL (
                SELECT id FROM wfc.execution_pointers p
                WHERE p.workflow_id = $1 AND p.id = r.id LIMIT 1
            ) p ON TRUE
            WHERE p.id IS NULL)"""

# The patch sets the data or the description, and the other one stays. Nothing is read for other
# patches. The length of a description is known without reading it, and only if it leaves less room
# than the new data might need, that is measured. (Stored data must be, but descriptions hardly ever
# change.)
_HEADER_TOO_LARGE: Final = """(SELECT TRUE
            FROM jsonb_to_record($2::jsonb -> 'room') AS room(other bigint, together bigint),
                wfc.workflows w
            WHERE $2::jsonb ? 'room' AND w.id = $1 AND CASE
                WHEN NOT $2::jsonb ? 'data' THEN octet_length(w.data::text) > room.other
                WHEN octet_length(w.description) > room.other THEN room.together
                    < octet_length(w.description) + octet_length(($2::jsonb #> '{data,0}')::text)
                END)"""
OF_PATCH: Final = {
    "unknown_pointer": _UNKNOWN_POINTER,
    "header_too_large": _HEADER_TOO_LARGE,
}
"""The conditions of a patch."""


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
    RETURNING w.id, w.revision, w.status, w.next_execution
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

# The id, hidden from the planner: if it knows that a workflow is shorter than others, it plans each
# write of it anew, which takes longer than the write.
_ID: Final = "(SELECT $1::text)"

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
            FROM wfc.execution_pointers WHERE workflow_id = {_ID}
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


def remembered(*, hash_: str = "$6::bytea") -> str:
    """The request id with the hash of the request."""
    return f"""remembered AS (
    INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision)
    SELECT updated.id, $5::uuid, {hash_}, updated.revision FROM updated
    WHERE $5::uuid IS NOT NULL
)"""


def forgotten(most: int) -> str:
    """Up to so many expired request ids are deleted: of those statements that are always run, twice
    as many as they add, so that they do not pile up."""
    return f"""forgotten AS (
    DELETE FROM wfc.requests WHERE ctid = ANY (ARRAY (
        SELECT r.ctid FROM updated, LATERAL (
            SELECT ctid FROM wfc.requests
            WHERE create_time < now() - interval '{REQUEST_RETENTION_SECONDS} seconds'
            ORDER BY create_time LIMIT {most} FOR UPDATE SKIP LOCKED
        ) r WHERE $5::uuid IS NOT NULL))
)"""
