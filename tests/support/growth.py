"""A store as it is after growing for long, and the statements that are slow in such a one unless
they have their index or plan: for `./run bench --growth` and for tests of plans.

Rows are clustered in time, most workflows have one definition and one status, nearly all commands
are leased, and of the subscriptions to one event nearly all are held. What is asked for is rare, or
old, or behind what is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import WorkflowView
from wfe_persistence.store import (
    command,
    error_log,
    event,
    purge,
    subscription,
    workflow,
    workflow_list,
)

# {n} workflows, a second apart, the last one now; so many events, a tenth subscriptions, a fifth
# commands and errors. Three pointers each. A common definition and version; others only long ago.
# Few workflows end before they are created, and few errors are logged late, by clocks that differ.
_FILL: Final = {
    "workflows": """
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,
        create_time, complete_time, root_workflow_id)
    SELECT 'w' || i, CASE WHEN i <= {n} / 50 THEN 'old' ELSE 'name' END || i,
        CASE WHEN i % 1000 = 7 THEN 'rare' WHEN i <= {n} / 50 THEN 'old' ELSE 'common' END,
        CASE WHEN i <= {n} / 50 THEN 1 ELSE 2 END,
        status, jsonb_build_object('order', i),
        CASE WHEN status = 'Runnable' THEN
            CASE WHEN i % ({n} / 100) = 0 THEN i ELSE 4000000000000 + i END END,
        created, CASE WHEN status IN ('Complete', 'Terminated') THEN created
            + CASE WHEN i % 500 = 2 THEN '-1 hour' ELSE '5 s' END::interval END,
        CASE WHEN i % 100 = 51 THEN 'w' || i - 1 END
    FROM generate_series(1, {n}) i,
        LATERAL (SELECT now() - ({n} - i) * '1 s'::interval) AS c(created),
        LATERAL (SELECT CASE WHEN i % 20 = 0 THEN 'Runnable' WHEN i % 1000 = 1 THEN 'Suspended'
            WHEN i % 20 = 1 THEN 'Terminated' ELSE 'Complete' END) AS s(status)""",
    "execution_pointers": """
INSERT INTO wfc.execution_pointers (workflow_id, id, ordinal, step_id, active, status,
        event_published, retry_count, children, scope, extension_attributes)
    SELECT 'w' || i, p::text, p, p, i % 20 = 0 AND p = 3,
        CASE WHEN i % 20 = 0 AND p = 3 THEN 'Pending' ELSE 'Complete' END,
        FALSE, 0, '[]', '[]', '{{}}'
    FROM generate_series(1, {n}) i, generate_series(1, 3) p""",
    "events": """
INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
    SELECT 'e' || i, CASE WHEN i <= {n} / 50 THEN 'old' WHEN i % 2 = 0 THEN 'common'
            ELSE 'wfe.workflow.completed' END,
        'w' || i, '{{}}', now() - ({n} - i) * '1 s'::interval, i < {n} - 1000
    FROM generate_series(1, {n}) i""",
    "event_subscriptions": """
INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
        event_key, subscribe_as_of, external_token, external_worker_id, external_token_expiry)
    SELECT md5(i::text), 'w' || i, 1, '1', CASE WHEN i <= {n} / 20 THEN 'held' ELSE 'open' END,
        CASE WHEN i <= {n} / 20 THEN 'k' ELSE 'k' || i END, now() - ({n} - i) * '1 s'::interval,
        token, token, CASE WHEN token IS NOT NULL THEN now() + '1 day'::interval END
    FROM generate_series(1, {n} / 10) i,
        LATERAL (SELECT CASE WHEN i <= {n} / 20 - 100 THEN 't' END) AS t(token)""",
    "scheduled_commands": """
INSERT INTO wfc.scheduled_commands (command_name, data, execute_time, lease_id, lease_worker_id,
        lease_expiry)
    SELECT 'ProcessWorkflow', 'w' || i, i, token, token,
        CASE WHEN token IS NOT NULL THEN now() + '1 day'::interval END
    FROM generate_series(1, {n} / 5) i,
        LATERAL (SELECT CASE WHEN i <= {n} / 5 * 0.95 THEN 't' END) AS t(token)""",
    "execution_errors": """
INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT now() - ({n} / 5 - i + CASE WHEN i % 50 = 3 THEN 600 ELSE 0 END) * '1 s'::interval,
        'w' || i * 5, '1', 'it failed'
    FROM generate_series(1, {n} / 5) i""",
}


def fill(connection: psycopg.Connection[Any], workflows: int) -> Iterator[str]:
    """Fill an empty store of schema wfc, on a connection without a transaction; yields what it has
    filled."""
    for table, sql in _FILL.items():
        connection.execute(sql.format(n=workflows).encode())
        yield table
    connection.execute("VACUUM ANALYZE")
    yield "vacuum"


@dataclass(frozen=True, slots=True)
class Case:
    """A statement with parameters, planned with them."""

    sql: str
    params: Sequence[object]


NEWEST: Final = ListOrder.LIST_ORDER_NEWEST_FIRST
OLDEST: Final = ListOrder.LIST_ORDER_OLDEST_FIRST
HEADER: Final = WorkflowView.WORKFLOW_VIEW_HEADER
PAGE: Final = 101
FAR: Final = "2100-01-01T00:00:00Z"


def at(connection: psycopg.Connection[Any], n: int, share: float) -> str:
    """The time at which so much of a store filled with `n` workflows had been filled."""
    row = connection.execute(
        b"SELECT (max(create_time) - %s * '1 s'::interval)::text FROM wfc.workflows WHERE id = %s",
        (n * (1 - share), f"w{n}"),
    ).fetchone()
    assert row
    return str(row[0])


def cases(connection: psycopg.Connection[Any], n: int) -> Mapping[str, Case]:
    """The statements with their parameters, in a store filled with `n` workflows."""
    at_share = partial(at, connection, n)

    def workflows(
        order: Any = NEWEST, cursor: tuple[object, object] = (None, None), **given: object
    ) -> Case:
        names = ("statuses", "definition", "version", "reference", "name", "root", "created_from",
                 "created_before", "completed_from", "completed_before", "written_before",
                 "due_before", "event_name", "event_key", "error_from")  # fmt: skip
        assert given.keys() <= set(names)
        params = [given.get(name) for name in names]
        return Case(workflow_list.LIST_WORKFLOWS[order, HEADER], [*params, *cursor, PAGE])

    def events(
        order: Any = NEWEST, cursor: tuple[object, object] = (None, None), **given: object
    ) -> Case:
        names = ("name", "key", "processed", "from_", "before")
        assert given.keys() <= set(names)
        return Case(event.LIST_EVENTS[order], [*(given.get(name) for name in names), *cursor, PAGE])

    def purged(statuses: str, definition: str | None = None) -> Case:
        return Case(
            purge.PURGE_WORKFLOWS, [statuses, at_share(0.9), None, None, definition, 100, 2000]
        )

    def errors(from_: float | None, before: float | None) -> Case:
        # Errors are a fifth, with a second between them.
        times = [
            None if share is None else at_share(1 - (1 - share) / 5) for share in (from_, before)
        ]
        return Case(error_log.LIST_ERRORS, [None, *times, None, PAGE])

    both = "{Complete,Terminated}"
    return {
        "PurgeWorkflows": purged(both),
        "PurgeWorkflows, Complete": purged("{Complete}"),
        "PurgeWorkflows, Terminated": purged("{Terminated}"),
        "PurgeWorkflows, a common definition": purged(both, "common"),
        "PurgeWorkflows, a rare definition": purged(both, "rare"),
        "ListWorkflows": workflows(),
        "ListWorkflows, completed lately": workflows(completed_from=at_share(1 - 500 / n)),
        "ListWorkflows, completed long ago": workflows(completed_before=at_share(500 / n)),
        "ListWorkflows, completed in an old window": workflows(
            completed_from=at_share(0.05), completed_before=at_share(0.06)
        ),
        "ListWorkflows, completed in an old window, Complete": workflows(
            completed_from=at_share(0.05), completed_before=at_share(0.06), statuses="{Complete}"
        ),
        "ListWorkflows, completed in a wide old window": workflows(
            completed_from=at_share(0.05), completed_before=at_share(0.15)
        ),
        "ListWorkflows, completed in the older half": workflows(completed_before=at_share(0.5)),
        "ListWorkflows, an old version": workflows(version=1),
        "ListWorkflows, no such version": workflows(version=3),
        "ListWorkflows, an old version of a definition": workflows(definition="common", version=1),
        "ListWorkflows, an old definition": workflows(definition="old"),
        "ListWorkflows, a rare definition": workflows(definition="rare"),
        "ListWorkflows, a rare definition, three statuses": workflows(
            definition="rare", statuses="{Suspended,Complete,Terminated}"
        ),
        "ListWorkflows, two rare statuses": workflows(statuses="{Runnable,Suspended}"),
        "ListWorkflows, a rare status of a common definition": workflows(
            definition="common", statuses="{Suspended}"
        ),
        "ListWorkflows, a prefix": workflows(name="name77%"),
        "ListWorkflows, a prefix of old names": workflows(name="old%"),
        "ListWorkflows, a deep page of a time window": workflows(
            created_before=at_share(0.9), cursor=(at_share(0.7), "w")
        ),
        "ListWorkflows, a deep page, oldest first": workflows(
            OLDEST, created_from=at_share(0.1), cursor=(at_share(0.3), "w")
        ),
        "ListEvents": events(),
        "ListEvents, a name only in old rows": events(name="old"),
        "ListEvents, no such name": events(name="none"),
        "ListEvents, a deep page of a time window": events(
            before=at_share(0.9), cursor=(at_share(0.7), "e")
        ),
        "ListEvents, a deep page, oldest first": events(
            OLDEST, from_=at_share(0.1), cursor=(at_share(0.3), "e")
        ),
        "ListEvents, a deep page of a name": events(
            name="common", before=at_share(0.9), cursor=(at_share(0.7), "e")
        ),
        "PurgeEvents": Case(purge.PURGE_EVENTS, [at_share(0.9), None, None, False, None, 2000]),
        "PurgeEvents, a name only in old rows, the last batch": Case(
            purge.PURGE_EVENTS, [at_share(0.9), at_share(0.02), "e", False, "old", 2000]
        ),
        "PurgeEvents, a name that is common": Case(
            purge.PURGE_EVENTS, [at_share(0.9), None, None, False, "common", 2000]
        ),
        "ListSubscriptions, open, of a name that is mostly held": Case(
            subscription.LIST_SUBSCRIPTIONS, [None, "held", None, False, None, PAGE]
        ),
        "ListSubscriptions, open, of a name that is open": Case(
            subscription.LIST_SUBSCRIPTIONS, [None, "open", None, False, None, PAGE]
        ),
        "ListSubscriptions, of a name": Case(
            subscription.LIST_SUBSCRIPTIONS, [None, "held", None, None, None, PAGE]
        ),
        "GetFirstOpenSubscription, behind held ones": Case(
            subscription.GET_FIRST_OPEN_SUBSCRIPTION, ["held", "k", None]
        ),
        "GetSubscriptions, behind held ones": Case(
            subscription.GET_SUBSCRIPTIONS, ["held", "k", None, None, None, PAGE]
        ),
        "ClaimCommands, behind leased ones": Case(
            command.CLAIM_COMMANDS, [None, 10, "l", "w", 1000, 1_000_000, None]
        ),
        "LookAtCommands, behind leased ones": Case(
            command.LOOK_AT_COMMANDS, ["{ProcessWorkflow}", 100]
        ),
        "ListErrors": errors(None, None),
        "ListErrors, the last ones": errors(0.95, None),
        "ListErrors, an old window": errors(0.05, 0.06),
        "ListErrors, a wide old window": errors(0.05, 0.15),
        "ListErrors, the first ones": errors(None, 0.001),
        "GetRunnableInstances": Case(
            workflow.GET_RUNNABLE_INSTANCES, [None, None, None, PAGE]
        ),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of a statement took."""

    ms: float
    planning_ms: float
    buffers: int
    """Pages of tables and indexes that were looked at."""
    rows_read: int
    """Rows that scans of tables have read, those that they filtered out included."""
    indexes: frozenset[str]
    cost: float
    """What the planner thinks it costs; from 100,000 on, PostgreSQL compiles it by default."""


def run(connection: psycopg.Connection[Any], case: Case, *columns: str) -> list[tuple[Any, ...]]:
    """Run a statement with its parameters known; these columns of its rows, as text but for
    numbers. Its columns of that name that come last: before them may be those of a pointer."""
    arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, case.params))
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        connection.execute(f"PREPARE q AS {case.sql}".encode())
        cursor = connection.execute(psycopg.sql.SQL("EXECUTE q ({})").format(arguments))
        rows = cursor.fetchall()
        connection.execute("DEALLOCATE q")
    assert cursor.description
    places = {column.name: i for i, column in enumerate(cursor.description)}
    return [
        tuple(v if isinstance(v, int) else str(v) for v in (row[places[c]] for c in columns))
        for row in rows
    ]


def explain(connection: psycopg.Connection[Any], case: Case) -> Run:
    """Run a statement with its parameters known, and take back what it has changed."""
    arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, case.params))
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        connection.execute(f"PREPARE q AS {case.sql}".encode())
        row = connection.execute(
            psycopg.sql.SQL(
                "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE q ({})"
            ).format(arguments)
        ).fetchone()
        connection.execute("DEALLOCATE q")
    assert row
    [found] = row[0]
    plan = found["Plan"]
    nodes = list(_walk(plan))
    return Run(
        found["Execution Time"],
        found["Planning Time"],
        plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        sum(_rows_read(node) for node in nodes),
        frozenset(
            node["Index Name"] for node in nodes if "Index Name" in node and node["Actual Loops"]
        ),
        plan["Total Cost"],
    )


def _walk(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _rows_read(node: Mapping[str, Any]) -> int:
    """Of a scan, how many rows it has read."""
    if "Index Name" not in node and node["Node Type"] != "Seq Scan":
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])
