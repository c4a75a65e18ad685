"""Every hot query runs on the index that was made for it, on tables large enough to matter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import WorkflowView
from wfe_persistence.store import (
    bulk,
    command,
    commit,
    error_log,
    event,
    lifecycle,
    lock,
    pointer,
    purge,
    queue_settling,
    retention,
    subscription,
    sweep,
    workflow,
    workflow_changes,
    workflow_list,
)
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

ROWS = 20_000

FILL = f"""
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,
        create_time)
    SELECT 'w' || i, 'name' || i, CASE WHEN i % 2000 = 0 THEN 'rare' ELSE 'd' END, 1,
        CASE WHEN i % 100 = 0 THEN 'Runnable' ELSE 'Complete' END, '{{}}', i, now()
    FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.execution_pointers (workflow_id, id, ordinal, step_id, status, event_published,
        retry_count, children, scope, extension_attributes)
    SELECT 'w' || i, p::text, p, p, 'Complete', FALSE, 0, '[]', '[]', '{{}}'
    FROM generate_series(1, {ROWS}) i, generate_series(1, 3) p;
INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
    SELECT 'e' || i, 'n', 'k' || i % 1000, '{{}}', now() - i * interval '1 second', i % 100 > 0
    FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
        event_key, subscribe_as_of, external_token)
    SELECT 's' || i, 'w' || i, 1, '1', 'n', 'k' || i % 1000, now() - i * interval '1 second',
        CASE WHEN i % 2 = 0 THEN 't' END
    FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT 'ProcessWorkflow', 'w' || i, i FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT now(), 'w' || i % 100, '1', 'm' FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.requests (workflow_id, request_id, content_hash, revision, create_time)
    SELECT 'w' || i % 1000, gen_random_uuid(), '', 1, now() - i * interval '1 second'
    FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.locks (resource, owner, token, epoch, expiry, acquire_time)
    SELECT 'r' || i, 'o' || i % 100, 'x', i,
        now() + CASE WHEN i % 100 = 0 THEN -i ELSE i END * interval '1 second', now()
    FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.queue_items (n, queue, id, visible_time, lease_id)
    SELECT i, 'q', 'i' || i, now(), 'x' FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.queues (name, kind) SELECT 'q' || i, 'Workflow' FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, event_time)
    SELECT 'Started', 'w' || i % 100, 'd', 1, now() FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.workflow_changes (workflow_id)
    SELECT 'w' || i % 100 FROM generate_series(1, {ROWS}) i;
INSERT INTO wfc.sweeps (kind) VALUES ('Workflow'), ('Event');
ANALYZE;
"""

DOCUMENT = json.dumps(
    {
        "id": "w7", "name": "", "definition_id": "d", "version": 1, "status": "Runnable",
        "data": [{}], "create_time": "2026-01-01T00:00:00Z",
        "execution_pointers": [{"ordinal": 0, "id": "1", "step_id": 1, "status": "Running"}],
    }
)  # fmt: skip
LONG_AGO = "2000-01-01T00:00:00Z"
NOW = "2100-01-01T00:00:00Z"
UUID = "00000000-0000-0000-0000-000000000001"
HASH = r"\x00"
TOKENS = '[{"i": 0, "n": 7, "token": "x"}]'
LEASES = '[{"n": 0, "id": 7, "revision": 1, "lease_id": "x"}]'

FULL = WorkflowView.WORKFLOW_VIEW_FULL
ACTIVE = WorkflowView.WORKFLOW_VIEW_ACTIVE
EFFECTS = json.dumps(
    {
        "claims": [{"n": 0, "id": "s7", "token": "t"}], "terminated": ["s8"],
        "leases": [
            {"n": 0, "id": 7, "revision": 1, "lease_id": "x", "completes": True},
        ],
        "events": [{"id": "e7", "event_name": "n", "event_key": "k", "event_data": [1],
                    "event_time": "2026-01-01T00:00:00Z", "is_processed": False}],
        "processed": ["e8"], "errors": [],
        "commands": [{"command_name": "ProcessWorkflow", "data": "w7", "execute_time": 1}],
    }
)  # fmt: skip
OF_STEP: dict[str, object] = {
    "locks": [{"i": 0, "n": 7, "token": "x"}],
    "acknowledge": [{"at": 0, "n": 7, "lease_id": "x", "act": "confirm"}],
    "enqueue": [{"queue": "q", "id": "i7"}, {"queue": "q", "id": "new"}],
    "publish": [{"type": "Started", "workflow_id": "w7", "definition_id": "d", "version": 1,
                 "event_time": "2026-01-01T00:00:00Z"}],
}  # fmt: skip
STEP = json.dumps(OF_STEP)
RECEIPTS = json.dumps(OF_STEP["acknowledge"])
EFFECTS_AND_STEP = json.dumps(json.loads(EFFECTS) | OF_STEP)
ITEMS = json.dumps(OF_STEP["enqueue"])
OWNED = json.dumps([{"owner": 1, "queue": "q", "id": id_} for id_ in ("i7", "new")])
EVENT = json.dumps(json.loads(EFFECTS)["events"][0])
PATCH = json.dumps(
    {
        "status": "Runnable", "removed": ["3"],
        "execution_pointers": [{"ordinal": 0, "id": "1", "step_id": 1, "status": "Running"}],
    }
)  # fmt: skip
PATCH_OF_DATA = json.dumps(
    {"data": [{}], "execution_pointers": [], "removed": [], "room": {"together": 10, "other": 8}}
)
EFFECTS_INDEXES = {
    "workflows_pkey", "event_subscriptions_pkey", "events_pkey",
    "scheduled_commands_pkey", "scheduled_commands_command_name_data_key",
}  # fmt: skip
STEP_INDEXES = {
    "workflows_pkey", "events_pkey", "queue_items_pkey", "queue_items_queue_id_key", "queues_pkey",
    "locks_pkey", "requests_pkey",
}  # fmt: skip

CASES: list[tuple[str, str, Sequence[object], set[str]]] = [
    ("get_workflow_instance", workflow.GET_WORKFLOW_INSTANCE[FULL], ["w7"],
     {"workflows_pkey", "execution_pointers_ordered"}),
    ("get_workflow_instance_active", workflow.GET_WORKFLOW_INSTANCE[ACTIVE], ["w7"],
     {"workflows_pkey"}),
    ("get_workflow_instance_by_name", workflow.GET_WORKFLOW_INSTANCE_BY_NAME[FULL], ["name7"],
     {"workflows_name_key", "execution_pointers_ordered"}),
    ("get_workflow_instances", workflow.GET_WORKFLOW_INSTANCES[FULL], ['["w7", "w8"]'],
     {"workflows_pkey", "execution_pointers_ordered"}),
    ("persist_workflow", commit.PERSIST_WORKFLOW, ["w7", DOCUMENT, None, "[]"],
     {"workflows_pkey", "execution_pointers_ordered"}),
    ("persist_workflow_once", commit.PERSIST_WORKFLOW_ONCE,
     ["w7", DOCUMENT, None, "[]", UUID, HASH],
     {"workflows_pkey", "execution_pointers_ordered", "requests_pkey", "requests_by_time"}),
    ("commit_workflow", commit.COMMIT_WORKFLOW,
     ["w7", DOCUMENT, None, "[]", UUID, HASH, EFFECTS], EFFECTS_INDEXES),
    ("commit_workflow_patch", commit.COMMIT_WORKFLOW_PATCH,
     ["w7", PATCH, 1, "[]", UUID, HASH, EFFECTS],
     EFFECTS_INDEXES | {"execution_pointers_ordered"}),
    ("commit_workflow_step", commit.COMMIT_WORKFLOW_STEP,
     ["w7", DOCUMENT, None, "[]", UUID, HASH, EFFECTS_AND_STEP], EFFECTS_INDEXES | STEP_INDEXES),
    ("commit_workflow_patch_step", commit.COMMIT_WORKFLOW_PATCH_STEP,
     ["w7", PATCH, 1, "[]", UUID, HASH, EFFECTS_AND_STEP],
     EFFECTS_INDEXES | STEP_INDEXES | {"execution_pointers_ordered"}),
    ("persist_workflow_step", commit.PERSIST_WORKFLOW_STEP,
     ["w7", DOCUMENT, None, "[]", UUID, HASH, STEP], STEP_INDEXES),
    ("patch_workflow_step", commit.PATCH_WORKFLOW_STEP,
     ["w7", PATCH, 1, "[]", UUID, HASH, STEP], STEP_INDEXES),
    ("create_new_workflow_enqueue", workflow.CREATE_NEW_WORKFLOW_ENQUEUE, [DOCUMENT, ITEMS],
     {"workflows_pkey", "queue_items_pkey", "queue_items_queue_id_key"}),
    ("create_workflows", bulk.CREATE_WORKFLOWS, [f"[{DOCUMENT}]"],
     {"workflows_pkey", "workflows_name_key"}),
    ("create_workflows_enqueue", bulk.CREATE_WORKFLOWS_ENQUEUE, [f"[{DOCUMENT}]", OWNED],
     {"workflows_pkey", "workflows_name_key", "queue_items_pkey", "queue_items_queue_id_key"}),
    ("create_events", bulk.CREATE_EVENTS, [f"[{EVENT}]"], {"events_pkey"}),
    ("create_events_enqueue", bulk.CREATE_EVENTS_ENQUEUE, [f"[{EVENT}]", OWNED],
     {"events_pkey", "queue_items_pkey", "queue_items_queue_id_key"}),
    ("create_event_enqueue", event.CREATE_EVENT_ENQUEUE, [EVENT, ITEMS],
     {"events_pkey", "queue_items_pkey", "queue_items_queue_id_key"}),
    ("acknowledge", queue_settling.ACKNOWLEDGE, [RECEIPTS], {"queue_items_pkey"}),
    ("settle_items", queue_settling.SETTLE_ITEMS, [RECEIPTS],
     {"workflows_pkey", "events_pkey", "queue_items_pkey", "queues_pkey"}),
    ("patch_workflow", commit.PATCH_WORKFLOW, ["w7", PATCH, 1, "[]", UUID, HASH],
     {"workflows_pkey", "execution_pointers_pkey", "execution_pointers_ordered"}),
    ("patch_workflow_data", commit.PATCH_WORKFLOW, ["w7", PATCH_OF_DATA, 1, "[]", UUID, HASH],
     {"workflows_pkey", "execution_pointers_pkey", "execution_pointers_ordered"}),
    ("patch_workflow_forgetting", commit.PATCH_WORKFLOW_FORGETTING,
     ["w7", PATCH, 1, "[]", UUID, HASH], {"workflows_pkey", "requests_by_time"}),
    ("patch_workflow_step_forgetting", commit.PATCH_WORKFLOW_STEP_FORGETTING,
     ["w7", PATCH, 1, "[]", UUID, HASH, STEP], STEP_INDEXES | {"requests_by_time"}),
    ("get_each_event", event.GET_EACH_EVENT, ["{e7,e8}"], {"events_pkey"}),
    ("create_each_event", event.CREATE_EACH_EVENT, [f"[{EVENT}]"], set()),
    ("get_each_subscription", subscription.GET_EACH_SUBSCRIPTION, ["{s7,s8}"],
     {"event_subscriptions_pkey"}),
    ("set_each_subscription_token", subscription.SET_EACH_SUBSCRIPTION_TOKEN,
     ["{s7,s8}", "{t,u}", "{w,w}", "{NULL,NULL}", "{60000,60000}", "{NULL,NULL}"],
     {"event_subscriptions_pkey"}),
    ("list_execution_pointers", pointer.LIST_EXECUTION_POINTERS, ["w7", 0, "", 2],
     {"workflows_pkey", "execution_pointers_ordered"}),
    ("list_active_execution_pointers", pointer.LIST_ACTIVE_EXECUTION_POINTERS, ["w7", 0, "", 2],
     {"workflows_pkey"}),
    ("delete_workflow", purge.DELETE_WORKFLOW, ["w7", None],
     {"workflows_pkey", "execution_pointers_ordered", "event_subscriptions_by_workflow",
      "execution_errors_by_workflow"}),
    ("get_runnable_instances", workflow.GET_RUNNABLE_INSTANCES, [5000, 0, "", 100],
     {"workflows_runnable"}),
    ("get_runnable_events", event.GET_RUNNABLE_EVENTS, [NOW, LONG_AGO, "", 100],
     {"events_runnable"}),
    ("get_events", event.GET_EVENTS, ["n", "k7", NOW, None, LONG_AGO, "", 100],
     {"events_by_key"}),
    ("get_events_since", event.GET_EVENTS, ["n", "k7", NOW, LONG_AGO, None, None, 100],
     {"events_by_key"}),
    ("mark_event_processed", event.MARK_EVENT_PROCESSED, ["e7"], {"events_pkey"}),
    ("get_subscriptions", subscription.GET_SUBSCRIPTIONS, ["n", "k7", NOW, LONG_AGO, "", 100],
     {"event_subscriptions_unheld", "event_subscriptions_by_expiry"}),
    ("get_first_open_subscription", subscription.GET_FIRST_OPEN_SUBSCRIPTION, ["n", "k7", NOW],
     {"event_subscriptions_unheld", "event_subscriptions_by_expiry"}),
    ("set_subscription_token", subscription.SET_SUBSCRIPTION_TOKEN,
     ["s7", "t", "w", NOW, None, None],
     {"event_subscriptions_pkey"}),
    ("clear_subscription_token", subscription.CLEAR_SUBSCRIPTION_TOKEN, ["s7", "t", None],
     {"event_subscriptions_pkey"}),
    ("release_commands", command.RELEASE_COMMANDS, [LEASES], {"scheduled_commands_pkey"}),
    ("schedule_command", command.SCHEDULE_COMMAND, ["ProcessWorkflow", "w7", 7],
     {"scheduled_commands_command_name_data_key"}),
    ("claim_commands", command.CLAIM_COMMANDS, [5000, 10, "l", "w", 1000, 10_000, None],
     {"scheduled_commands_free", "scheduled_commands_by_expiry", "scheduled_commands_pkey"}),
    ("claim_commands_by_name", command.CLAIM_COMMANDS,
     [5000, 10, "l", "w", 1000, 10_000, "ProcessWorkflow"],
     {"scheduled_commands_free", "scheduled_commands_by_expiry", "scheduled_commands_pkey"}),
    ("complete_commands", command.COMPLETE_COMMANDS, [LEASES], {"scheduled_commands_pkey"}),
    ("terminate_subscription", subscription.TERMINATE_SUBSCRIPTION, ["s7", None, None],
     {"event_subscriptions_pkey"}),
    ("renew_subscription_token", subscription.RENEW_SUBSCRIPTION_TOKEN, ["s7", "t", None, 1000],
     {"event_subscriptions_pkey"}),
    ("break_command_lease", command.BREAK_COMMAND_LEASE, ["ProcessWorkflow", "w7", None],
     {"scheduled_commands_command_name_data_key", "scheduled_commands_pkey"}),
    ("renew_commands", command.RENEW_COMMANDS, [LEASES, 1000], {"scheduled_commands_pkey"}),
    ("watch", lifecycle.WATCH, ["7", 7, 500], {"lifecycle_events_pkey"}),
    ("watch_workflows", workflow_changes.WATCH_WORKFLOWS, ["7", 7, 500], {"workflow_changes_pkey"}),
    ("add_lock", lock.ADD_LOCK, ["new"], {"locks_resource_key", "locks_by_expiry", "locks_pkey"}),
    ("acquire_lock", lock.ACQUIRE_LOCK, ["r7", "o", "x", 1000, UUID], {"locks_resource_key"}),
    ("renew_locks", lock.RENEW_LOCKS, [TOKENS, 1000], {"locks_pkey"}),
    ("release_lock", lock.RELEASE_LOCK, [7, "x"], {"locks_pkey"}),
    ("break_lock", lock.BREAK_LOCK, ["r7", None], {"locks_resource_key"}),
]  # fmt: skip

# Statements that are planned with their parameters each time.
NEWEST = ListOrder.LIST_ORDER_NEWEST_FIRST
OLDEST = ListOrder.LIST_ORDER_OLDEST_FIRST
HEADER = WorkflowView.WORKFLOW_VIEW_HEADER
NO_FILTER: list[object] = [None] * 15
# Of a batch of retention: the rule, and when the next one may be.
TURN: list[object] = ["00000000-0000-0000-0000-000000000001", 300, 1]
PURGED: list[object] = ["{Complete,Terminated}", NOW]
_PAGED: list[tuple[str, str, list[object], list[object], set[str]]] = [
    ("list_workflows", workflow_list.LIST_WORKFLOWS[NEWEST, HEADER], NO_FILTER, [100],
     {"workflows_by_status"}),
    ("list_workflows_oldest", workflow_list.LIST_WORKFLOWS[OLDEST, HEADER], NO_FILTER, [100],
     {"workflows_by_status"}),
    ("list_workflows_of_status", workflow_list.LIST_WORKFLOWS[NEWEST, HEADER],
     ["{Runnable}", *NO_FILTER[1:]], [100], {"workflows_by_status"}),
    ("list_events", event.LIST_EVENTS[NEWEST], [None] * 5, [100], {"events_by_time"}),
    ("list_events_oldest", event.LIST_EVENTS[OLDEST], ["n", "k7", None, None, None], [100],
     {"events_by_key"}),
    ("purge_workflows", purge.PURGE_WORKFLOWS, PURGED, [None, 100, 2000],
     {"workflows_ended", "workflows_by_root", "workflows_pkey", "execution_pointers_ordered"}),
    ("count_doomed_workflows", purge.COUNT_DOOMED_WORKFLOWS, PURGED, [None, 100, 2000],
     {"workflows_ended", "workflows_by_root", "workflows_pkey", "execution_pointers_ordered"}),
    ("purge_events", purge.PURGE_EVENTS, [NOW], [False, None, 2000],
     {"events_by_time", "events_pkey"}),
    ("expire_workflows", retention.EXPIRE_WORKFLOWS, PURGED,
     [None, 100, 2000, "{audited}", *TURN],
     {"workflows_ended", "workflows_by_root", "workflows_pkey", "execution_pointers_ordered"}),
    ("expire_events", retention.EXPIRE_EVENTS, [NOW], [False, None, 2000, *TURN],
     {"events_by_time", "events_pkey"}),
]  # fmt: skip
_CURSORS: dict[str, list[object]] = {
    "first": [None, None],
    "next": ["2020-01-01T00:00:00Z", "x"],
}
ONCE: list[tuple[str, str, Sequence[object], set[str]]] = [
    *(
        (f"{name} {page}", sql, [*before, *cursor, *rest], indexes)
        for name, sql, before, rest, indexes in _PAGED
        for page, cursor in _CURSORS.items()
    ),
    ("expire_errors", retention.EXPIRE_ERRORS, [NOW, 2000, *TURN],
     {"execution_errors_by_time_and_id", "execution_errors_pkey"}),
    ("expire_commands", retention.EXPIRE_COMMANDS, [NOW, 2000, *TURN],
     {"scheduled_commands_due", "scheduled_commands_pkey"}),
    # A definition that few workflows have, among many that are due, and one that most of them have.
    *(
        (f"get_runnable_instances_of_{what} {page}", workflow.GET_RUNNABLE_INSTANCES_OF,
         [20_000, f"{{{definition}}}", *cursor, 100], {index})
        for page, cursor in (("first", [None, None]), ("next", [7, "w7"]))
        for what, definition, index in (
            ("few", "rare", "workflows_by_definition"), ("most", "d", "workflows_runnable"),
        )
    ),
    ("list_subscriptions first", subscription.LIST_SUBSCRIPTIONS, [*[None] * 5, 100],
     {"event_subscriptions_pkey"}),
    ("list_subscriptions next", subscription.LIST_SUBSCRIPTIONS, [*[None] * 4, "s7", 100],
     {"event_subscriptions_pkey"}),
    *(
        (f"list_commands {what} {page}", command.LIST_COMMANDS, [*given, *cursor, 100], indexes)
        for page, cursor in (("first", [None, None]), ("next", [7, 7]))
        for what, given, indexes in (
            ("all", [None] * 5, {"scheduled_commands_due"}),
            ("due", [None, None, 5000, None, None], {"scheduled_commands_due"}),
            ("one", ["ProcessWorkflow", "w7", None, None, None],
             {"scheduled_commands_command_name_data_key"}),
        )
    ),
    ("oldest_is_old", lifecycle.OLDEST_IS_OLD, [60.0], {"lifecycle_events_pkey"}),
    ("sweep", lifecycle.SWEEP, [60.0, 2000], {"lifecycle_events_pkey"}),
    ("oldest_change_is_old", workflow_changes.OLDEST_CHANGE_IS_OLD, [60.0],
     {"workflow_changes_pkey"}),
    ("sweep_changes", workflow_changes.SWEEP_CHANGES, [60.0, 2000], {"workflow_changes_pkey"}),
    ("sweep_workflows", sweep.SWEEP_WORKFLOWS, [60.0, 1000, False],
     {"workflows_runnable", "queue_items_queue_id_key"}),
    ("sweep_events", sweep.SWEEP_EVENTS, [60.0, 1000, False],
     {"events_runnable", "queue_items_queue_id_key"}),
    ("list_locks first", lock.LIST_LOCKS, [None, None, None, 100], {"locks_resource_key"}),
    ("list_locks next", lock.LIST_LOCKS, [None, "o7", "r7", 100], {"locks_resource_key"}),
    ("list_locks of a prefix", lock.LIST_LOCKS, ["r7%", None, None, 100], {"locks_resource_key"}),
    ("list_errors first", error_log.LIST_ERRORS, [*[None] * 4, 100], {"execution_errors_pkey"}),
    ("list_errors next", error_log.LIST_ERRORS, [*[None] * 3, 7, 100], {"execution_errors_pkey"}),
]  # fmt: skip


@pytest.fixture(scope="module")
async def filled(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE plans")
        url = postgres_url.replace("/postgres?", "/plans?")
        await migrate(ConnectionSource(url), Schema())
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None
        ) as connection:
            await connection.execute(FILL.encode())
            yield connection
        await admin.execute("DROP DATABASE plans WITH (FORCE)")


@pytest.mark.parametrize(
    ("sql", "params", "indexes"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.parametrize("plan", ["custom", "generic"])
async def test_query_uses_its_index(
    filled: psycopg.AsyncConnection[Any],
    sql: str,
    params: Sequence[object],
    indexes: set[str],
    plan: str,
) -> None:
    """With the parameters known, and as the generic plan that a prepared statement ends up with."""
    await _check_plan(filled, sql, params, indexes, plan)


@pytest.mark.parametrize(
    ("sql", "params", "indexes"), [case[1:] for case in ONCE], ids=[case[0] for case in ONCE]
)
async def test_query_that_is_not_prepared_uses_its_index(
    filled: psycopg.AsyncConnection[Any], sql: str, params: Sequence[object], indexes: set[str]
) -> None:
    await _check_plan(filled, sql, params, indexes, "custom")


# One of nine workflows is long, so that what the planner expects of an unknown one is
# much more than of one that it knows to be short.
A_LONG_ONE = """
INSERT INTO wfc.execution_pointers (workflow_id, id, ordinal, step_id, status, event_published,
        retry_count, children, scope, extension_attributes)
    SELECT 'w1', 'long' || p, 3 + p, p, 'Complete', FALSE, 0, '[]', '[]', '{}'
    FROM generate_series(1, 3000) p;
DELETE FROM wfc.execution_pointers WHERE workflow_id NOT LIKE 'w_';
ANALYZE wfc.execution_pointers
"""


async def test_loads_and_writes_are_not_planned_anew_each_time(
    filled: psycopg.AsyncConnection[Any],
) -> None:
    loads_and_writes = ("get_workflow", "persist_", "commit_", "patch_")
    planned = {}
    async with filled.transaction(force_rollback=True):
        await filled.execute(A_LONG_ONE.encode())
        for name, sql, params, _ in CASES:
            if name.startswith(loads_and_writes):
                arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, params))
                await filled.execute(f"PREPARE q AS {sql}".encode())
                for _ in range(8):
                    await filled.execute(
                        psycopg.sql.SQL("EXPLAIN EXECUTE q ({})").format(arguments)
                    )
                cursor = await filled.execute(
                    "SELECT custom_plans FROM pg_prepared_statements WHERE name = 'q'"
                )
                planned[name] = await cursor.fetchone()
                await filled.execute("DEALLOCATE q")
    assert len(planned) > 10
    assert {name: times for name, times in planned.items() if times != (5,)} == {}


async def _check_plan(
    filled: psycopg.AsyncConnection[Any],
    sql: str,
    params: Sequence[object],
    indexes: set[str],
    plan: str,
) -> None:
    arguments = psycopg.sql.SQL(", ").join(psycopg.sql.Literal(p) for p in params)
    async with filled.transaction(force_rollback=True):
        await filled.execute(f"SET LOCAL plan_cache_mode = force_{plan}_plan".encode())
        await filled.execute(f"PREPARE q AS {sql}".encode())
        # Literals are 'unknown' or int4; EXECUTE casts them to the types of the parameters.
        cursor = await filled.execute(
            psycopg.sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE q ({})").format(arguments)
        )
        await filled.execute("DEALLOCATE q")
    row = await cursor.fetchone()
    assert row is not None
    nodes = list(walk(row[0][0]["Plan"]))
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert indexes <= used, row[0]
    tables = {
        node["Relation Name"]
        for node in nodes
        if node["Node Type"] == "Seq Scan" and node.get("Relation Name")
    }
    # One row, or a few; one for each database.
    tables -= {"lifecycle_feed", "workflow_feed", "sweeps", "queues", "pg_database"}
    tables -= {"retention_rules"}
    assert not tables, f"reads all of {tables}"


def walk(node: dict[str, Any]) -> Any:
    """A plan's node and all below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
