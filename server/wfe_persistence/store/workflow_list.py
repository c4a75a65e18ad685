"""Lists and counts of workflows by a filter."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import (
    WorkflowCount,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence.store.columns import INT8, Column, Columns, enum
from wfe_persistence.store.paging import (
    DIRECTIONS,
    TIME,
    Cursor,
    Direction,
    Page,
    fill_page,
    like_prefix,
)
from wfe_persistence.store.records import WORKFLOW_STATUS
from wfe_persistence.store.rows import Param, epoch_ms, integer, text, timestamp
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow import INSTANCE_COLUMNS, POINTERS_OF_VIEW, read_instances

# An absent criterion is NULL, and its condition is removed when the statement is planned. It is
# planned with its parameters each time (`once`): which index is best depends on the criteria.
#
# No index has last_heartbeat_at. Every persist writes it, so that none could be a HOT update: with
# such an index for runnable workflows alone, 0 of 3000 updates were HOT instead of 2156, and each
# wrote a third more WAL. written_before reads what the other criteria leave.
_HAS_STATUS = "($1::text[] IS NULL OR w.status = ANY ($1))"
_IS_INDEXED = """($2::text IS NULL OR w.definition_id = $2)
            AND ($3::int IS NULL OR w.version = $3)
            AND ($4::text IS NULL OR w.reference = $4)
            AND ($5::text IS NULL OR w.name LIKE $5)
            AND ($6::text IS NULL OR w.root_workflow_id = $6)
            AND ($9::timestamptz IS NULL OR w.complete_time >= $9)
            AND ($10::timestamptz IS NULL OR w.complete_time < $10)"""
_IS_OTHERWISE = """($11::timestamptz IS NULL OR coalesce(w.last_heartbeat_at, w.create_time) < $11)
            AND ($12::bigint IS NULL OR (w.status = 'Runnable' AND w.next_execution < $12))"""


def _filter(since: str, until: str) -> str:
    """All criteria but the statuses; `since`, `until`: the conditions on create_time."""
    return f"""{_IS_INDEXED}
            AND {since}
            AND {until}
            AND {_IS_OTHERWISE}"""


# Where a criterion is about subscriptions or errors, those are read first, and then the workflows
# that have all that is asked for, by their ids: LATERAL with LIMIT 1, as in `_get_instances`. What
# is not asked for is compared with NULL, and not read.
_IS_CHOSEN = "($13::text IS NOT NULL OR $15::timestamptz IS NOT NULL)"
_CHOSEN = """(
            SELECT c.id FROM (
                SELECT DISTINCT s.workflow_id AS id FROM wfc.event_subscriptions s
                WHERE s.event_name = $13::text AND ($14::text IS NULL OR s.event_key = $14)
                UNION ALL
                SELECT DISTINCT e.workflow_id FROM wfc.execution_errors e
                WHERE e.error_time >= $15::timestamptz
            ) c
            GROUP BY c.id HAVING count(*) = num_nonnulls($13::text, $15::timestamptz)
        ) chosen, LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = chosen.id LIMIT 1) w"""


def _filter_params(f: WorkflowFilter) -> list[Param]:
    return [
        status_array(f.statuses) if f.statuses else None,
        text(f.workflow_definition_id) if f.workflow_definition_id else None,
        integer(f.version) if f.HasField("version") else None,
        text(f.reference) if f.HasField("reference") else None,
        text(like_prefix(f.name_prefix)) if f.name_prefix else None,
        text(f.root_workflow_id) if f.root_workflow_id else None,
        *(
            timestamp(getattr(f, field)) if f.HasField(field) else None
            for field in (
                "create_time_from",
                "create_time_before",
                "complete_time_from",
                "complete_time_before",
                "written_before",
            )
        ),
        integer(epoch_ms(f.due_before)) if f.HasField("due_before") else None,
        text(f.waiting_event_name) if f.waiting_event_name else None,
        text(f.waiting_event_key) if f.HasField("waiting_event_key") else None,
        timestamp(f.error_time_from) if f.HasField("error_time_from") else None,
    ]


def status_array(statuses: Iterable[WorkflowStatus.ValueType]) -> bytes:
    """Statuses as a text[] parameter."""
    return f"{{{','.join(WORKFLOW_STATUS[status] for status in dict.fromkeys(statuses))}}}".encode()


# Criteria that have an index, though mostly not in the order of the list. Where few workflows meet
# them all, these are found by that index, once, and sorted. (The planner would often rather go
# through the list until a page is full, once for each status: it takes the few for evenly spread,
# and they may all be old, or of one status.) Where many do, the list mostly has a page of them
# soon; if it is not among the first of each status, they are sorted as well, unless they are very
# many. A definition and a version have indexes in the order of the list: more than a thousand are
# many.
_UNORDERED = "num_nonnulls($4::text, $5::text, $6::text, $9::timestamptz, $10::timestamptz) > 0"
_IS_BY_INDEX = f"""($2::text IS NOT NULL OR $3::int IS NOT NULL OR {_UNORDERED})
            AND NOT {_IS_CHOSEN}"""
_MOST_FEW: Final = 20_000
_FIRST_ONES: Final = 50_000
_MOST_SORTED: Final = 200_000
_MOST = f"CASE WHEN {_UNORDERED} THEN {_MOST_FEW} ELSE 1000 END"
_ARE_FEW = f"{_IS_BY_INDEX} AND (SELECT are_few FROM few)"
_ARE_MANY = f"NOT {_IS_CHOSEN} AND (NOT ({_IS_BY_INDEX}) OR NOT (SELECT are_few FROM few))"

_ENDED: Final = ("'Complete'", "'Terminated'")
_STATUSES: Final = sorted(f"'{name}'" for name in WORKFLOW_STATUS.values())
# Other software may have stored statuses that this server does not know. They are found between
# those that it knows, in the same index, as one look into each gap.
_OTHER_STATUS: Final = " OR ".join(
    (
        f"w.status < {_STATUSES[0]}",
        *(f"w.status > {a} AND w.status < {b}" for a, b in pairwise(_STATUSES)),
        f"w.status > {_STATUSES[-1]}",
    )
)


def _few(page_is_near: str) -> str:
    """Whether the workflows that are asked for are to be sorted."""

    def found(most: str) -> str:
        return f"""(SELECT count(*) FROM (
            SELECT FROM wfc.workflows w
            WHERE {_IS_BY_INDEX} AND {_IS_INDEXED}
            LIMIT {most} + 1
        ) w)"""

    return f"""few AS MATERIALIZED (
    SELECT {found(_MOST)} <= {_MOST}
        OR {_UNORDERED} AND NOT ({page_is_near}) AND {found(str(_MOST_SORTED))} <= {_MOST_SORTED}
        AS are_few
)"""


def _list_workflows(direction: Direction, pointers: str) -> str:
    """A page of workflows by create_time, numbered in their order.

    It is merged from the first workflows of each status, so that one index by status is enough, or
    sorted if there are few, or subscriptions or errors choose them. Each status is a part of its
    own, so that the planner knows how many have it, and leaves out those that are not asked for.
    """
    since, until = direction.bounds("w.create_time", "$7::timestamptz", "$8::timestamptz", "$17")
    order = f"create_time {direction.order}, {{0}}id {direction.order}"

    behind = f"""($17::text IS NULL
                OR (w.create_time, w.id) {direction.after} ($16::timestamptz, $17))"""
    meets = f"""{_filter(since, until)}
            AND {behind}"""

    # The newest of those that ended before a time were created before it. Any that say otherwise,
    # by different clocks, are in an index of their own.
    is_early, early = "TRUE", []
    if direction.order == "DESC":
        is_early = "($10::timestamptz IS NULL OR w.create_time < $10)"
        early = [
            f"""$10 IS NOT NULL AND {_ARE_MANY} AND {_HAS_STATUS}
            AND w.complete_time < w.create_time AND w.create_time >= $10
            AND {meets}"""
        ]

    def page_is_near(status: str) -> str:
        """Whether a page of a status is among its first in the list, or it has no more."""
        first_ones = f"""wfc.workflows w
            WHERE w.status = {status} AND {is_early} AND {since} AND {until}
                AND {behind}"""
        # None that has not ended has a complete_time: those are gone through in any case.
        is_vain = "" if status in _ENDED else "\n        OR num_nonnulls($9, $10) > 0"
        return f"""(
        ({status} = ANY ($1::text[])) IS FALSE{is_vain}
        OR $18 <= (SELECT count(*) FROM (
            SELECT FROM (
                SELECT * FROM {first_ones}
                ORDER BY w.{order.format("w.")} LIMIT {_FIRST_ONES}
            ) w
            WHERE {_IS_INDEXED} AND {_IS_OTHERWISE}
            LIMIT $18
        ) page)
        OR {_FIRST_ONES} > (SELECT count(*) FROM (
            SELECT FROM {first_ones}
            LIMIT {_FIRST_ONES}
        ) first_ones))"""

    def first(condition: str, source: str = "wfc.workflows w") -> str:
        return f"""(
        SELECT w.* FROM {source}
        WHERE {condition}
        ORDER BY w.{order.format("w.")}
        LIMIT $18
        )"""

    parts = [
        *(
            first(
                f"""({status} = ANY ($1::text[])) IS NOT FALSE AND {_ARE_MANY}
            AND w.status = {status} AND {is_early}
            AND {meets}"""
            )
            for status in _STATUSES
        ),
        *map(first, early),
        first(
            f"""$1 IS NULL AND {_ARE_MANY}
            AND ({_OTHER_STATUS}) AND {is_early}
            AND {meets}"""
        ),
        # OFFSET: what is inside is not read in the order outside.
        first(
            _ARE_FEW,
            f"""(
            SELECT * FROM wfc.workflows w
            WHERE {_HAS_STATUS}
            AND {meets}
            OFFSET 0
        ) w""",
        ),
        first(
            f"""{_IS_CHOSEN} AND {_HAS_STATUS}
            AND {meets}""",
            _CHOSEN,
        ),
    ]
    return f"""
WITH {_few(" AND ".join(map(page_is_near, _STATUSES)))}, page AS MATERIALIZED (
    SELECT * FROM (
        {" UNION ALL ".join(parts)}
    ) first
    ORDER BY first.{order.format("first.")}
    LIMIT $18
), numbered AS (
    SELECT page.*, row_number() OVER (ORDER BY {order.format("")}) AS n
    FROM page
)
SELECT {INSTANCE_COLUMNS},
    w.n
FROM numbered w LEFT JOIN wfc.execution_pointers p ON {pointers}
WINDOW pointers AS (PARTITION BY w.n ORDER BY p.ordinal)
ORDER BY w.n, p.ordinal
"""


LIST_WORKFLOWS = {
    (order, view): _list_workflows(direction, pointers)
    for order, direction in DIRECTIONS.items()
    for view, pointers in POINTERS_OF_VIEW.items()
}


async def list_workflows(
    store: Store,
    filter_: WorkflowFilter,
    order: ListOrder.ValueType,
    view: WorkflowView.ValueType,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[WorkflowInstance]:
    """Workflows by create_time. One that is too large for a page is returned without pointers."""
    rows = store.stream_once(
        LIST_WORKFLOWS[order, view],
        *_filter_params(filter_),
        *TIME.params(after),
        integer(page_size + 1),
    )
    return await fill_page(
        read_instances(rows, view),
        lambda found: found[0],
        lambda found, _: found[1],
        page_size,
        page_bytes,
    )


_read_count = Columns(
    WorkflowCount, Column("status", enum(WORKFLOW_STATUS)), Column("count", INT8)
).reader()

_SINCE = "($7::timestamptz IS NULL OR w.create_time >= $7)"
_UNTIL = "($8::timestamptz IS NULL OR w.create_time < $8)"
_ALL_CRITERIA = f"{_HAS_STATUS} AND {_filter(_SINCE, _UNTIL)}"

COUNT_WORKFLOWS = f"""
SELECT w.status, count(*) FROM (
        SELECT w.status FROM wfc.workflows w
        WHERE NOT {_IS_CHOSEN} AND {_ALL_CRITERIA}
        UNION ALL
        SELECT w.status FROM {_CHOSEN}
        WHERE {_IS_CHOSEN} AND {_ALL_CRITERIA}
) w GROUP BY w.status
"""


async def count_workflows(store: Store, filter_: WorkflowFilter) -> list[WorkflowCount]:
    """How many workflows have each status; UNSPECIFIED: any that this server does not know."""
    rows = await store.read_once(COUNT_WORKFLOWS, *_filter_params(filter_))
    counts: dict[WorkflowStatus.ValueType, WorkflowCount] = {}
    for row in range(rows.ntuples):
        count = WorkflowCount()
        _read_count(rows.get_value, row, count)
        if (same := counts.setdefault(count.status, count)) is not count:
            same.count += count.count
    return [counts[status] for status in sorted(counts)]
