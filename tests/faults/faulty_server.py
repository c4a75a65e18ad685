"""The server with one fault planted, named by $FAULT: `python -m tests.faults.faulty_server serve`.

A fault is a piece of SQL, or a function, replaced by one that breaks a guarantee.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import import_module
from types import ModuleType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tests.faults.access_faults import ACCESS_FAULTS
from tests.faults.database_faults import DATABASE_FAULTS
from tests.faults.replica_faults import REPLICA_FAULTS
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.workflow_pb2 import CommitWorkflowRequest
from wfe_persistence import drain
from wfe_persistence.cli import main
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import bulk as rpc_bulk
from wfe_persistence.store import (
    bulk,
    columns,
    command,
    commit,
    dequeue,
    event,
    export,
    importing,
    lifecycle,
    lock,
    migrate,
    migrate_all,
    namespace,
    namespace_list,
    owner,
    purge,
    queue,
    queue_groups,
    queue_settling,
    readiness,
    records,
    retention,
    rows,
    subscription,
    tables,
    transfers,
    waiting,
    workflow,
    workflow_changes,
    workflow_waiting,
)
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres import database
from wfe_persistence.store.postgres.connection import Peer
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.lane import Lane
from wfe_persistence.store.postgres.pipeline import Exchange
from wfe_persistence.store.postgres.watch import Findings, Watch
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.tables import Store
from wfe_persistence.store.together import Each


def replace(module: ModuleType, constant: str, old: str, new: str) -> Callable[[], None]:
    """A fault in a piece of SQL."""

    def plant() -> None:
        sql: str | dict[object, str] | Each = getattr(module, constant)
        if isinstance(sql, dict):
            planted: object = {key: text.replace(old, new) for key, text in sql.items()}
        elif isinstance(sql, Each):
            planted = dataclasses.replace(sql, sql=sql.sql.replace(old, new))
        else:
            planted = sql.replace(old, new)
        assert planted != sql, f"{constant} has changed: plant the fault anew"
        setattr(module, constant, planted)

    return plant


def both(*plants: Callable[[], None]) -> Callable[[], None]:
    """The same fault in several statements."""

    def plant() -> None:
        for each in plants:
            each()

    return plant


def in_dequeues(old: str, new: str) -> Callable[[], None]:
    """A fault in the statements that hand out items: of one call, and of several together."""
    return both(
        replace(dequeue, "DEQUEUE", old, new), replace(queue_groups, "DEQUEUE_TOGETHER", old, new)
    )


def in_claims(old: str, new: str) -> Callable[[], None]:
    """A fault in the statements that claim subscriptions: for one call, and for several."""
    return both(
        replace(subscription, "SET_SUBSCRIPTION_TOKEN", old, new),
        replace(subscription, "SET_EACH_TOKEN", old, new),
    )


def in_enqueues(old: str, new: str) -> Callable[[], None]:
    """A fault in the statements that enqueue items: of one call, and of several together."""
    return both(
        replace(queue, "ENQUEUE", old, new), replace(queue_groups, "ENQUEUE_TOGETHER", old, new)
    )


def paused(
    plant_fault: Callable[[], None], module: ModuleType, constant: str, table: str
) -> Callable[[], None]:
    """A fault that shows only where statements overlap. So that they do, each takes its snapshot
    and then its time before it reads `table`."""
    plant_pause = replace(module, constant, f"FROM {table}", f"FROM pg_sleep(0.05), {table}")

    def plant() -> None:
        plant_fault()
        plant_pause()

    return plant


def rounded_iso(time: Timestamp) -> str:
    """Times rounded to microseconds instead of truncated."""
    rounded = Timestamp(seconds=time.seconds, nanos=time.nanos)
    return (
        rounded.ToDatetime(tzinfo=None) + timedelta(microseconds=round(time.nanos % 1000 / 1000))
    ).isoformat() + "+00:00"


def plant_random_ids() -> None:
    """Whatever the request_id of a bulk request."""
    setattr(rpc_bulk, "new_id", lambda *_: str(uuid.uuid4()))  # noqa: B010


def plant_rounding() -> None:
    """Everywhere times are written."""
    for module in (columns, rows):
        setattr(module, "iso", rounded_iso)  # noqa: B010


def plant_two_transactions() -> None:
    """The workflow first, and then everything else: a crash in between leaves half of it."""
    commit_workflow = commit.commit_workflow

    async def in_two(
        store: Store, message: CommitWorkflowRequest, request: Any, room: Any
    ) -> commit.Written:
        state = CommitWorkflowRequest()
        state.CopyFrom(message)
        for field in (*commit._EFFECT_FIELDS, *commit._STEP_FIELDS):
            state.ClearField(field)
        written = await commit_workflow(store, state, request, room)
        rest = CommitWorkflowRequest()
        rest.CopyFrom(message)
        rest.patch.Clear()
        rest.patch.id = message.patch.id
        rest.expected_revision = written.revision
        return await commit_workflow(store, rest, RequestKey(CommitWorkflowRequest()))

    setattr(commit, "commit_workflow", in_two)  # noqa: B010


def plant_no_line() -> None:
    """Those who wait for a lock are served last come, first served."""

    def last(self: waiting.Waiters, line: waiting.Line) -> waiting.Waiter | None:
        return next(reversed(self._places[line].waiters)) if line in self._places else None

    def wake(self: waiting.Waiters, line: waiting.Line, count: int = 1) -> None:
        if waiter := last(self, line):
            waiter.wake()

    def is_first(self: waiting.Waiters, waiter: waiting.Waiter, line: waiting.Line) -> bool:
        return last(self, line) is waiter

    for method in (wake, is_first):
        setattr(waiting.Waiters, method.__name__, method)
    setattr(waiting.Waiters, "call", wake)  # noqa: B010


def plant_any_status() -> None:
    """Whatever status a workflow has ends a wait for it."""
    wait_for_workflow = workflow_waiting.wait_for_workflow

    async def any_status(
        store: Store, id_: str, statuses: Any, until: float, waiters: waiting.Waiters
    ) -> Any:
        every = records.WORKFLOW_STATUS
        return await wait_for_workflow(store, id_, every, until, waiters)

    setattr(workflow_waiting, "wait_for_workflow", any_status)  # noqa: B010


class OneQueueGate(FairGate):
    """All calls in one queue, with one bound for all."""

    async def acquire(self, namespace: str) -> None:  # noqa: ARG002
        await super().acquire("all")


class FirstComeGate(FairGate):
    """Each namespace has its bound, but no turn: who came first is next."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        super().__init__(slots, 10**9)
        self._most = max_waiting
        self._count: Counter[str] = Counter()

    async def acquire(self, namespace: str) -> None:
        self._count[namespace] += 1
        try:
            if self._count[namespace] > self._most:
                raise PersistenceError(
                    ErrorReason.ERROR_REASON_NAMESPACE_BUSY, "busy", retry_after=0.5
                )
            await super().acquire("all")
        finally:
            self._count[namespace] -= 1


class EndlessGate(FairGate):
    """Turns, but no bound."""

    def __init__(self, slots: int, max_waiting: int) -> None:  # noqa: ARG002
        super().__init__(slots, 10**9)


def plant_gate(gate: type[FairGate]) -> Callable[[], None]:
    """Another order of who may use a connection next."""

    def plant() -> None:
        setattr(database, "FairGate", gate)  # noqa: B010

    return plant


def plant_namespaces_not_kept_apart() -> None:
    """Whatever the call says, it goes to the default one."""

    async def get(self: namespace.Namespaces, name: str | None) -> tables.Store:
        return self.default

    setattr(namespace.Namespaces, "get", get)  # noqa: B010


def plant_start_that_migrates_all() -> None:
    """At the start every namespace is brought up to date, as is often done."""
    original = readiness.Readiness._examine

    async def examine(self: readiness.Readiness) -> None:
        await original(self)
        namespaces = namespace.Namespaces(
            self._store.database, self._store.schema, migrate_on_use=False, max_namespaces=0
        )
        await migrate_all.migrate_all(namespaces)

    setattr(readiness.Readiness, "_examine", examine)  # noqa: B010


def plant_migration_that_stops() -> None:
    """`migrate up` goes from one namespace to the next until one fails."""
    original = migrate_all.migrate_all

    async def migrate_some(namespaces: namespace.Namespaces) -> migrate_all.Outcomes:
        outcomes: migrate_all.Outcomes = {}
        store = namespaces.default
        listed = await namespace_list.list_namespaces(store, None, 1000)
        if not listed.items:
            return await original(namespaces)
        for item in listed.items:
            try:
                outcomes[item.name] = await migrate.migrate(
                    store.database.source, store.schema.for_namespace(item.name)
                )
            except PersistenceError as exc:
                outcomes[item.name] = exc
                break
        return outcomes

    setattr(migrate_all, "migrate_all", migrate_some)  # noqa: B010


def plant_no_lane() -> None:
    """Every administrative call begins at once."""

    @asynccontextmanager
    async def turn(self: Lane, schema: str, *, refuse: bool = True) -> AsyncIterator[None]:
        yield

    setattr(Lane, "turn", turn)  # noqa: B010


def plant_no_end_of_waiting() -> None:
    """Who waits for an answer waits for as long as it takes."""

    def give_up_all(self: Watch, peer: Peer, begun: float) -> None:
        pass

    setattr(Watch, "_give_up_all", give_up_all)  # noqa: B010


def plant_waiters_everywhere() -> None:
    """Who waits for a lock may have every connection."""

    def keep(self: Watch, silent: list[Exchange], findings: Findings, now: float) -> None:
        pass

    setattr(Watch, "_keep_locked_apart", keep)  # noqa: B010


def plant_no_owners() -> None:
    """A schema whose name fits is a namespace, whoever uses it."""

    async def read_owner(store: Store, version: int) -> Owner:
        return Owner.of(store.schema)

    setattr(owner, "read_owner", read_owner)  # noqa: B010


FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    # name: (how to plant it, the conformance test that must catch it)
    "a broken lease is still its worker's": (
        replace(queue, "REQUEUE_ITEMS", "lease_id = NULL", "lease_id = lease_id"),
        "test_queue_people.py::test_a_worker_whose_lease_was_broken_has_lost_the_item",
    ),
    "persist writes over what came in between": (
        paused(
            replace(commit, "PERSIST_WORKFLOW", "AND w.revision = stored.revision", ""),
            commit, "PERSIST_WORKFLOW", "wfc.workflows WHERE",
        ),
        "test_concurrency.py::test_readers_never_see_a_mix_of_what_writers_persist",
    ),
    "persist does not look at expected_revision": (
        replace(commit, "PERSIST_WORKFLOW", "$3::bigint IS NULL OR", "TRUE OR $3::bigint > 0 OR"),
        "test_persist_workflow.py::test_other_expected_revision_is_aborted_telling_the_stored_one",
    ),
    "persist keeps pointers that are no longer named": (
        replace(commit, "PERSIST_WORKFLOW", "p.workflow_id = updated.id AND", "FALSE AND"),
        "test_persist_workflow.py::test_pointers_no_longer_named_are_gone",
    ),
    "persist creates subscriptions even if it fails": (
        replace(
            commit, "PERSIST_WORKFLOW", "FROM updated, subscriptions s", "FROM subscriptions s",
        ),
        "test_persist_workflow.py::test_revision_mismatch_creates_no_subscription",
    ),
    "pointers come in any order": (
        replace(workflow, "GET_WORKFLOW_INSTANCE", "ORDER BY ordinal NULLS", "ORDER BY 1 NULLS"),
        "test_persist_workflow.py::test_order_of_pointers_is_kept_exactly",
    ),
    "two columns that change places": (
        replace(
            workflow, "GET_WORKFLOW_INSTANCE", "p.event_name, p.event_key",
            "p.event_key, p.event_name",
        ),
        "test_create_workflow.py",
    ),
    "a sequence that reads and writes apart": (
        paused(
            replace(
                workflow, "NEXT_DEFINITION_SEQUENCE", "next_num = s.next_num + 1",
                "next_num = 1 + (SELECT next_num FROM wfc.definition_sequences"
                " WHERE definition_id = $1)",
            ),
            workflow, "NEXT_DEFINITION_SEQUENCE", "wfc.definition_sequences WHERE",
        ),
        "test_concurrency.py::test_sequence_gives_no_number_twice",
    ),
    "a create that does not compare": (
        replace(event, "CREATE_EVENT", "coalesce(e.content_hash = g.content_hash, FALSE)", "TRUE"),
        "test_events.py",
    ),
    "a claim that ignores leases": (
        replace(
            command, "CLAIM_COMMANDS",
            "AND lease_expiry <= now()", "AND lease_expiry IS NOT NULL",
        ),
        "test_commands.py::test_claimed_command_is_not_claimed_again",
    ),
    "items handed out without row locks": (
        paused(
            paused(
                both(
                    in_dequeues("FOR UPDATE SKIP LOCKED", ""),
                    # (By their place alone, rows that others have claimed meanwhile are not found.)
                    replace(
                        dequeue, "DEQUEUE", "i.ctid = f.tid",
                        "i.n = (SELECT n FROM visible WHERE tid = f.tid)",
                    ),
                    replace(
                        queue_groups, "DEQUEUE_TOGETHER", "i.ctid = v.tid",
                        "i.n = (SELECT n FROM visible WHERE tid = v.tid)",
                    ),
                ),
                dequeue, "DEQUEUE", "wfc.queue_items",
            ),
            queue_groups, "DEQUEUE_TOGETHER", "wfc.queue_items",
        ),
        "test_queue_concurrency.py::test_each_item_is_handled_once",
    ),
    "attempts that are not counted": (
        in_dequeues("least(i.attempt, 2147483646) + 1", "1"),
        "test_queue_people.py::test_returned_item_dies_after_max_attempts",
    ),
    "an acknowledgement without its lease": (
        both(
            replace(queue_settling, "ACKNOWLEDGE", "AND i.lease_id = g.lease_id", ""),
            replace(queue_groups, "REMOVE_TOGETHER", "AND i.lease_id = g.lease_id", ""),
        ),
        "test_queues.py::test_altered_receipts_acknowledge_nothing",
    ),
    "items handed out although what was handled before is lost": (
        both(
            replace(dequeue, "DEQUEUE", "WHERE coalesce(", "WHERE TRUE OR coalesce("),
            replace(
                queue_groups, "DEQUEUE_TOGETHER", "WHERE NOT coalesce(", "WHERE TRUE OR coalesce("
            ),
        ),
        "test_queues.py::test_nothing_is_changed_and_handed_out_if_one_is_lost",
    ),
    "an item handed out while it is handled": (
        in_enqueues("THEN i.visible_time\n", "THEN g.visible_time\n"),
        "test_queues.py::test_item_enqueued_while_it_is_handled_comes_once_more",
    ),
    "an item forgotten that was enqueued while it was handled": (
        in_enqueues("THEN least(i.again_time, g.visible_time) END", "THEN NULL END"),
        "test_queues.py::test_item_enqueued_while_it_is_handled_comes_once_more",
    ),
    "items handed out whoever holds their locks": (
        in_dequeues("(blocked_by = '{}' OR", "(TRUE OR"),
        "test_queues.py::test_item_is_withheld_while_somebody_holds_a_lock",
    ),
    "a claim without row locks": (
        paused(
            replace(command, "CLAIM_COMMANDS", "FOR UPDATE SKIP LOCKED", ""),
            command, "CLAIM_COMMANDS", "wfc.scheduled_commands",
        ),
        "test_concurrency.py::test_each_command_is_claimed_by_exactly_one_of_eight",
    ),
    "completion by row alone": (
        replace(
            command, "COMPLETE_COMMANDS", "c.revision = g.revision AS unchanged",
            "TRUE AS unchanged",
        ),
        "test_commands.py::test_rescheduled_while_claimed_stays_claimed_and_survives_its_completion",
    ),
    "completion of what is still held": (
        replace(
            command, "COMPLETE_COMMANDS",
            "(SELECT count(*) FROM held) = (SELECT count(*) FROM given)", "TRUE",
        ),
        "test_commands.py::test_one_lost_lease_fails_the_batch_and_nothing_is_changed",
    ),
    "a token that anybody may replace": (
        in_claims("s.external_token IS NULL OR", "TRUE OR"),
        "test_concurrency.py::test_exactly_one_worker_acquires_a_subscription",
    ),
    "held subscriptions handed out": (
        replace(
            subscription, "GET_FIRST_OPEN_SUBSCRIPTION",
            "AND external_token IS NOT NULL AND external_token_expiry <= now()",
            "AND external_token IS NOT NULL",
        ),
        "test_subscriptions.py",
    ),
    "tokens that never expire": (
        in_claims("OR s.external_token_expiry <= now()", ""),
        "test_subscription_tokens.py::test_hold_that_expired_is_open_and_taken_by_another",
    ),
    "a commit that does not look at claims": (
        replace(commit, "COMMIT_WORKFLOW_PATCH_STEP", "s.external_token = g.token", "TRUE"),
        "test_commit_workflow.py::test_nothing_changes_where_a_condition_does_not_hold",
    ),
    "a commit that does not look at epochs": (
        replace(
            commit, "COMMIT_WORKFLOW_PATCH_STEP", "g.epoch = s.external_token_epoch", "TRUE",
        ),
        "test_commit_workflow.py::test_a_host_whose_claim_was_taken_over_cannot_write",
    ),
    "a commit by a lease that is lost": (
        replace(commit, "COMMIT_WORKFLOW_PATCH_STEP", "c.lease_id = g.lease_id", "TRUE"),
        "test_commit_workflow.py::test_a_host_whose_lease_was_taken_over_cannot_write",
    ),
    "a commit by a claim that has expired": (
        replace(commit, "COMMIT_WORKFLOW_PATCH_STEP", "AND s.unexpired", ""),
        "test_commit_workflow.py::test_a_host_whose_claim_has_expired_cannot_write",
    ),
    "a commit that locks no lease": (
        paused(
            replace(
                commit, "COMMIT_WORKFLOW", "ORDER BY id FOR UPDATE\n), conditions",
                "ORDER BY id\n), conditions",
            ),
            commit, "COMMIT_WORKFLOW", "wfc.workflows WHERE",
        ),
        "test_commit_workflow.py::test_one_lease_completes_one_commit",
    ),
    "a broken lease that is another one by now": (
        replace(command, "BREAK_COMMAND_LEASE", "lease_epoch = $3", "TRUE"),
        "test_break_command_lease.py::test_only_the_lease_that_was_meant_is_broken",
    ),
    "a lock with two holders": (
        replace(lock, "ACQUIRE_LOCK", "AND expiry <= clock_timestamp()", ""),
        "test_locks.py::test_of_many_at_once_exactly_one_gets_it",
    ),
    "a stale token that releases the next holder's lock": (
        replace(lock, "RELEASE_LOCK", "AND token = $2", "AND $2::text IS NOT NULL"),
        "test_locks.py::test_releasing_with_a_stale_token_releases_nobody_else",
    ),
    "an expired lock that is renewed": (
        replace(lock, "RENEW_LOCKS", "AND expiry > now()", ""),
        "test_locks.py::test_a_stale_holder_has_lost_its_lease_and_nothing_is_renewed",
    ),
    "an attempt that is another one each time": (
        replace(lock, "ACQUIRE_LOCK", "request_id = $5::uuid AND owner = $2", "FALSE"),
        "test_locks.py::test_the_same_attempt_sent_again_is_answered_as_the_first_was",
    ),
    "waiters in any order": (
        plant_no_line,
        "test_locks.py::test_those_who_wait_are_served_in_the_order_of_arrival",
    ),
    "a wait that any status ends": (
        plant_any_status,
        "test_wait_for_workflow.py::test_only_the_given_statuses_end_a_wait",
    ),
    "a commit under a lock that is lost": (
        replace(commit, "PERSIST_WORKFLOW_STEP", "l.token = g.token", "TRUE"),
        "test_held_locks.py::test_who_does_not_hold_them_any_more_changes_nothing",
    ),
    "a commit under a lock that has expired": (
        replace(commit, "PERSIST_WORKFLOW_STEP",
                "(SELECT n FROM held_locks)) AND expiry > now()", "(SELECT n FROM held_locks))"),
        "test_held_locks.py::test_who_does_not_hold_them_any_more_changes_nothing",
    ),
    "items enqueued by a write that is refused": (
        replace(commit, "PERSIST_WORKFLOW_STEP", "WHERE EXISTS (SELECT FROM updated)",
                "WHERE TRUE"),
        "test_one_transaction.py::test_refused_write_does_nothing",
    ),
    "an item that is settled by whoever had it": (
        replace(commit, "PERSIST_WORKFLOW_STEP", "AND i.lease_id = g.lease_id", ""),
        "test_one_transaction.py::test_expired_lease_is_good_if_nobody_has_got_the_item",
    ),
    "confirmed by the state before the write": (
        replace(commit, "PERSIST_WORKFLOW_STEP", "CASE WHEN h.id = $1", "CASE WHEN FALSE"),
        "test_one_transaction.py::test_item_of_a_workflow_that_this_write_ends_is_done",
    ),
    "a repeated creation that enqueues again": (
        replace(workflow, "CREATE_NEW_WORKFLOW_ENQUEUE", "WHERE EXISTS (SELECT FROM created)",
                "WHERE TRUE"),
        "test_one_transaction.py::test_repeated_creation_of_a_workflow_does_not_enqueue",
    ),
    "effects of a commit that is refused": (
        replace(commit, "COMMIT_WORKFLOW_PATCH_STEP", "FROM updated, processing p",
                "FROM processing p"),
        "test_commit_workflow.py::test_nothing_changes_where_a_condition_does_not_hold",
    ),
    "a patch over what came in between": (
        paused(
            replace(
                commit, "COMMIT_WORKFLOW_PATCH",
                "w.revision = stored.revision AND w.revision = $3", "$3 = stored.revision",
            ),
            commit, "COMMIT_WORKFLOW_PATCH", "wfc.workflows WHERE",
        ),
        "test_commit_workflow.py::test_of_patches_of_one_revision_exactly_one_is_made",
    ),
    "a request that is not remembered": (
        replace(
            commit, "PERSIST_WORKFLOW_ONCE", "WHERE workflow_id = $1 AND request_id = $5::uuid",
            "WHERE workflow_id = $1 AND request_id = $5::uuid AND FALSE",
        ),
        "test_request_id.py::test_the_second_arrival_changes_nothing_and_is_answered_the_same",
    ),
    "times that are rounded": (plant_rounding, "test_values.py"),
    "retention that forgets which definitions have rules of their own": (
        replace(retention, "EXPIRE_WORKFLOWS", "<> ALL ($8::text[])", "IS NOT NULL AND $8 <> '?'"),
        "test_retention.py::test_workflows_go_by_their_status_definition_and_age",
    ),
    "retention of commands that somebody holds": (
        replace(retention, "EXPIRE_COMMANDS", "lease_expiry <= now()", "TRUE"),
        "test_retention.py::test_events_errors_and_commands_go_by_their_age",
    ),
    "an export of several moments": (
        replace(transfers, "BEGIN_SNAPSHOT", "REPEATABLE READ", "READ COMMITTED"),
        "test_transfer.py::test_export_that_broke_goes_on_at_the_same_moment",
    ),
    "an export that goes on one record too late": (
        replace(export, "EXPORT_RECORDS", "OFFSET $1", "OFFSET $1 + ($1 > 0)::int"),
        "test_transfer.py::test_export_that_broke_goes_on_at_the_same_moment",
    ),
    "an import that does not compare": (
        replace(importing, "IMPORT_RECORDS", "AS same", "OR TRUE AS same"),
        "test_transfer.py::test_a_request_with_a_conflict_stores_nothing",
    ),
    "an import after which epochs go back": (
        replace(importing, "EPOCH_IS_LOWER", "last_value < $1", "last_value + $1 < 0"),
        "test_transfer.py::test_epochs_never_go_back",
    ),
    "items of a bulk request that are told of in another order": (
        replace(bulk, "CREATE_WORKFLOWS", "SELECT g.at,",
                "SELECT (SELECT count(*) FROM given) + 1 - g.at,"),
        "test_bulk.py::test_one_that_is_refused_does_not_affect_the_others",
    ),
    "a bulk create that does not compare": (
        replace(bulk, "CREATE_EVENTS", "coalesce(e.content_hash = g.content_hash, FALSE)", "TRUE"),
        "test_bulk.py::test_events_that_are_refused_do_not_affect_others",
    ),
    "items enqueued by bulk creates that create nothing": (
        replace(bulk, "CREATE_WORKFLOWS_ENQUEUE",
                "JOIN given g ON g.at = e.owner JOIN created c ON c.id = g.id", ""),
        "test_bulk.py::test_items_are_enqueued_with_those_that_are_created_only",
    ),
    "a bulk request sent again that is another one": (
        plant_random_ids,
        "test_bulk.py::test_a_request_id_determines_the_ids_that_are_left_open",
    ),
    "a call that goes to another namespace": (
        plant_namespaces_not_kept_apart,
        "test_namespaces.py::test_absent_namespace_is_not_found_and_not_made",
    ),
}  # fmt: skip


def plant_purge_in_two() -> None:
    """The pointers first, and then the workflow: a crash in between leaves a workflow without."""
    delete_workflow = purge.delete_workflow

    async def in_two(store: Store, id_: str, expected_revision: int | None) -> None:
        await store.write("DELETE FROM wfc.execution_pointers WHERE workflow_id = $1", id_.encode())
        await delete_workflow(store, id_, expected_revision)

    setattr(purge, "delete_workflow", in_two)  # noqa: B010


def plant_endless_stop() -> None:
    """Whatever a stop waits for does not come. (It is given up earlier than usual.)"""

    async def never(self: drain.Drain, server: object) -> None:
        await asyncio.Event().wait()

    setattr(drain.Drain, "run", never)  # noqa: B010
    setattr(import_module("wfe_persistence.cli.serving"), "HUNG_SECONDS", 1.0)  # noqa: B010


def plant_newest_transaction() -> None:
    """A reader of a feed goes by the newest transaction that has ended, not by the oldest that has
    not."""
    for module, statement in ((lifecycle, "WATCH"), (workflow_changes, "WATCH_WORKFLOWS")):
        replace(module, statement, "pg_snapshot_xmin", "pg_snapshot_xmax")()


def plant_recording_at_once() -> None:
    """Changes count as complete although those who had written before may still commit."""
    replace(
        workflow_changes,
        "WRITERS_LEFT",
        "virtualtransaction = ANY ($1::text[])",
        "virtualtransaction = ANY ($1::text[]) AND FALSE",
    )()


# Faults that other tests than those of conformance must catch.
OTHER_FAULTS: dict[str, Callable[[], None]] = {
    "a commit in two transactions": plant_two_transactions,
    "a delete in two transactions": plant_purge_in_two,
    "a stop that never ends": plant_endless_stop,
}

SERVER_FAULTS: dict[str, tuple[Callable[[], None], str]] = (
    {
        # The same for tests in this directory, which start their server themselves.
        "connections first come, first served": (
            plant_gate(FirstComeGate),
            "test_fairness.py::test_calls_behind_a_full_queue_get_every_second_turn",
        ),
        "one queue for all namespaces": (
            plant_gate(OneQueueGate),
            "test_fairness.py::test_flood_is_refused_while_another_namespace_is_served",
        ),
        "one queue for all namespaces of a worker": (
            plant_gate(OneQueueGate),
            "test_worker_drain.py::test_flood_over_many_connections_does_not_reach_another_namespace",
        ),
        "nobody is refused": (
            plant_gate(EndlessGate),
            "test_fairness.py::test_calls_behind_a_full_queue_get_every_second_turn",
        ),
        "a start that looks into each namespace": (
            plant_start_that_migrates_all,
            "test_many_namespaces.py::test_start_does_not_touch_the_namespaces",
        ),
        "namespaces migrated until one fails": (
            plant_migration_that_stops,
            "test_many_namespaces.py::test_migrate_up_brings_all_but_the_failing_ones_up",
        ),
        "a write that does not keep its lock": (
            replace(
                commit, "PERSIST_WORKFLOW_STEP", "ORDER BY resource FOR SHARE", "ORDER BY resource"
            ),
            "test_lock_faults.py::test_who_takes_over_an_expired_lock_waits_for_the_write_under_it",
        ),
        "administrative work all at once": (
            plant_no_lane,
            "test_administration.py::test_140_creates_at_once_take_two_connections_beside_the_pool",
        ),
        "a database that no longer answers is waited for": (
            plant_no_end_of_waiting,
            "test_stalls.py::test_stalled_database_is_noticed_by_health_and_by_calls_without_a_deadline",
        ),
        "waiters for a lock take the whole pool": (
            plant_waiters_everywhere,
            "test_stalls.py::test_calls_that_need_another_table_than_the_locked_one_go_on",
        ),
        "no store has an owner": (
            plant_no_owners,
            "test_owners.py::test_store_of_other_servers_is_no_namespace",
        ),
        "watchers go by the newest transaction": (
            plant_newest_transaction,
            "test_lifecycle.py::test_event_of_a_transaction_that_is_committed_late_is_not_left_out",
        ),
        "watchers of workflows go by the newest transaction": (
            plant_newest_transaction,
            "test_watch_workflows.py::test_change_of_a_transaction_that_is_committed_late_comes",
        ),
        "changes of workflows are complete at once": (
            plant_recording_at_once,
            "test_watch_workflows.py::test_first_watcher_waits_for_those_who_had_written_before",
        ),
    }
    | ACCESS_FAULTS
    | DATABASE_FAULTS
    | REPLICA_FAULTS
)


if __name__ == "__main__":
    fault = os.environ["FAULT"]
    plant = OTHER_FAULTS[fault] if fault in OTHER_FAULTS else (FAULTS | SERVER_FAULTS)[fault][0]
    plant()
    main(prog_name="wfe-persistence")
