"""Bugs that the faults must find: the server with one of them, named by $PLANTED.

`python -m tests.faults.chaos.planted serve …`; `./run faults --planted` runs each under the fault
that shows it, and says which were caught.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tests.faults import faulty_server
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe_persistence.cli import main
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import boundary
from wfe_persistence.store import command, commit, event, subscription
from wfe_persistence.store.commit_parts import Outcome
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import Param
from wfe_persistence.store.tables import Store


def _set(module: ModuleType | type, name: str, value: object) -> None:
    setattr(module, name, value)


def reply_before_commit() -> None:
    """An event is acknowledged, and written a moment later."""
    create_event = event.create_event
    later: set[asyncio.Task[None]] = set()

    async def write(store: Store, message: Event, enqueue: Sequence[QueueItem]) -> None:
        await asyncio.sleep(0.3)
        await create_event(store, message, enqueue)

    async def acknowledge(store: Store, message: Event, enqueue: Sequence[QueueItem]) -> None:
        later.add(asyncio.ensure_future(write(store, message, enqueue)))

    _set(event, "create_event", acknowledge)


def no_compare_and_set() -> None:
    """A commit writes over whatever is stored, whatever it expected."""
    faulty_server.replace(
        commit, "COMMIT_WORKFLOW_STEP", "($3::bigint IS NULL OR w.revision = $3)",
        "($3::bigint IS NULL OR TRUE)",
    )()  # fmt: skip
    faulty_server.replace(
        commit, "COMMIT_WORKFLOW_PATCH_STEP", "AND w.revision = $3", "AND $3::bigint IS NOT NULL"
    )()


def claim_without_leases() -> None:
    """A command is claimed whoever has a lease on it."""
    faulty_server.FAULTS["a claim that ignores leases"][0]()


def claim_without_row_locks() -> None:
    """Two claims at the same time get the same command."""
    faulty_server.FAULTS["a claim without row locks"][0]()


def stale_completion() -> None:
    """Whoever once had a lease completes the command."""
    faulty_server.replace(command, "COMPLETE_COMMANDS", "AND lease_id = g.lease_id FOR", "FOR")()


def token_for_anybody() -> None:
    """A subscription is given to whoever asks."""
    faulty_server.FAULTS["a token that anybody may replace"][0]()


def lock_for_anybody() -> None:
    """A lock is given to whoever asks."""
    faulty_server.FAULTS["a lock with two holders"][0]()


def commit_in_two_transactions() -> None:
    """The workflow first, and then everything else."""
    faulty_server.plant_two_transactions()


def write_again_after_a_lost_answer() -> None:
    """Who does not know whether a commit was made makes it again, as a new request."""
    write = commit._write

    async def write_again(
        store: Store, id_: bytes, sql: str, params: Sequence[Param], *, name_field: str
    ) -> Outcome:
        try:
            return await write(store, id_, sql, params, name_field=name_field)
        except PersistenceError as exc:
            if exc.reason != ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN:
                raise
            if sql is not commit.PERSIST_WORKFLOW_ONCE:
                raise
            return await write(store, id_, commit.PERSIST_WORKFLOW, params[:4],
                               name_field=name_field)  # fmt: skip

    _set(commit, "_write", write_again)


def requests_not_remembered() -> None:
    """A repeated request is made again."""
    write = commit._write

    async def forget(
        store: Store, id_: bytes, sql: str, params: Sequence[Param], *, name_field: str
    ) -> Outcome:
        if sql is commit.PERSIST_WORKFLOW_ONCE:
            sql, params = commit.PERSIST_WORKFLOW, params[:4]
        return await write(store, id_, sql, params, name_field=name_field)

    _set(commit, "_write", forget)


def clock_of_the_server() -> None:
    """A claim expires by the server's clock."""
    set_token = subscription.set_subscription_token

    async def by_own_clock(*arguments: Any, **options: Any) -> Any:
        if (milliseconds := options.get("duration_ms")) is not None:
            expiry = time.time() + milliseconds / 1000
            options["expiry"] = Timestamp(seconds=int(expiry), nanos=int(expiry % 1 * 1e9))
            options["duration_ms"] = None
        return await set_token(*arguments, **options)

    _set(subscription, "set_subscription_token", by_own_clock)


def lost_connection_is_a_bug() -> None:
    """A write whose connection is lost ends as INTERNAL."""
    run = Database.run

    async def run_and_lose(self: Database, *arguments: Any, **options: Any) -> Any:
        try:
            return await run(self, *arguments, **options)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN:
                raise RuntimeError("the connection is lost") from exc
            raise

    _set(Database, "run", run_and_lose)


def no_deadline() -> None:
    """A call without a deadline of its own may take as long as it takes."""

    def deadline(self: boundary.Boundary, context: Any) -> float:
        return asyncio.get_running_loop().time() + (context.time_remaining() or 3600)

    _set(boundary.Boundary, "_deadline", deadline)


@dataclass(frozen=True)
class Bug:
    """A bug, the fault that shows it, and the invariant that must be found broken."""

    plant: Callable[[], None]
    fault: str
    invariant: str


BUGS = {
    "reply before commit": Bug(reply_before_commit, "server-kill", "I1"),
    "commit without compare-and-set": Bug(no_compare_and_set, "client-kill", "I2"),
    "claim without looking at leases": Bug(claim_without_leases, "client-kill", "I4"),
    "claim without row locks": Bug(claim_without_row_locks, "client-kill", "I4"),
    "completion without a lease": Bug(stale_completion, "client-kill", "I4"),
    "token for anybody": Bug(token_for_anybody, "client-kill", "I3"),
    "lock for anybody": Bug(lock_for_anybody, "client-kill", "I3"),
    "commit in two transactions": Bug(commit_in_two_transactions, "server-kill", "I2"),
    "retry that writes twice": Bug(write_again_after_a_lost_answer, "answers-lost", "I5"),
    "requests not remembered": Bug(requests_not_remembered, "twice", "I5"),
    "leases by the server's clock": Bug(clock_of_the_server, "clock-ahead", "I3"),
    "lost connection taken for a bug": Bug(lost_connection_is_a_bug, "answers-lost", "I6"),
    "no deadline": Bug(no_deadline, "row-locks", "I6"),
    "watchers go by the newest transaction": Bug(
        faulty_server.plant_newest_transaction, "client-kill", "I7"
    ),
}


if __name__ == "__main__":
    BUGS[os.environ["PLANTED"]].plant()
    main(prog_name="wfe-persistence")
