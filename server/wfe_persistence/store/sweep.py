"""The sweep: work that is in no queue is enqueued again.

A host that dies between storing a workflow and enqueueing it, or after it has taken the item out of
a queue without leases, leaves a workflow behind that is due and that nobody comes for: no engine
looks for those by itself. So the sweep looks: for workflows that are due, and events that are not
processed, of which no queue of their kind (`ConfigureQueue`) has an item.

One server at a time sweeps a namespace: whose statement gets the row of the kind in `sweeps`. It
looks at a part and notes how far it has come, so that many due workflows take several turns rather
than one long one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.feed import PASSING
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.occupied import occupied_stores
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.queue import wake_queues
from wfe_persistence.store.rows import boolean, integer, read_int8, read_text
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

# How many rows are looked at with one statement, with how many of them in one turn, and the pause
# (seconds) after each.
_ROWS: Final = 1_000
_STATEMENTS: Final = 20
_PAUSE_SECONDS: Final = 0.05


def _sweep(*, kind: str, place: str, least: str, work: str, since: str) -> str:
    """$1: seconds, of the interval and of the grace. $2: how many rows. $3: whether the turn ends.

    `place`: the column by which `work` is ordered, and of `sweeps` which has how far the last turn
    came; `least`: before all of them. `since`: when it was written last.

    Whoever has written it within the grace may be about to enqueue it. An item is inserted only if
    there is none by then. Work that belongs in one of several queues is put into all of them: only
    hosts know in which.
    """
    column, number = place.split(" ")
    return f"""
WITH turn AS MATERIALIZED (
    SELECT {number} AS after, after_id FROM wfc.sweeps
    WHERE kind = '{kind}' AND next_time <= now()
    FOR UPDATE SKIP LOCKED
), fitting AS MATERIALIZED (
    SELECT name FROM wfc.queues WHERE kind = '{kind}' AND EXISTS (SELECT FROM turn)
), looked AS MATERIALIZED (
    SELECT w.* FROM turn, LATERAL (
        SELECT id, {column} AS place,
            {since} < now() - $1::float8 * interval '1 second' AS is_old
        FROM {work}
            AND ({column}, id) > (coalesce(turn.after, {least}), coalesce(turn.after_id, ''))
            AND EXISTS (SELECT FROM fitting)
        ORDER BY {column}, id
        LIMIT $2
    ) w
), lost AS MATERIALIZED (
    SELECT l.id FROM looked l
    WHERE l.is_old AND NOT EXISTS (
        SELECT FROM fitting f JOIN wfc.queue_items i ON i.queue = f.name AND i.id = l.id)
), enqueued AS (
    INSERT INTO wfc.queue_items (queue, id, visible_time)
    SELECT f.name, l.id, now() FROM lost l, fitting f ORDER BY f.name, l.id
    ON CONFLICT DO NOTHING
), last AS (
    SELECT place, id FROM looked ORDER BY place DESC, id DESC LIMIT 1
), noted AS (
    UPDATE wfc.sweeps SET
        {number} = CASE WHEN is_over THEN NULL ELSE (SELECT place FROM last) END,
        after_id = CASE WHEN is_over THEN NULL ELSE (SELECT id FROM last) END,
        next_time = CASE WHEN is_over OR $3::boolean
            THEN now() + $1::float8 * interval '1 second' ELSE next_time END
    FROM (SELECT count(*) < $2 AS is_over FROM looked) l
    WHERE kind = '{kind}' AND EXISTS (SELECT FROM turn)
)
SELECT (SELECT count(*) FROM turn), (SELECT count(*) FROM looked), (SELECT count(*) FROM lost),
    array_to_string(ARRAY (SELECT name FROM fitting), ',')
"""


SWEEP_WORKFLOWS = _sweep(
    kind="Workflow",
    place="next_execution after_number",
    least="-9223372036854775808",
    work="""wfc.workflows
        WHERE status = 'Runnable'
            AND next_execution <= floor((extract(epoch FROM now()) - $1) * 1000)::bigint""",
    since="coalesce(last_heartbeat_at, create_time)",
)

SWEEP_EVENTS = _sweep(
    kind="Event",
    place="event_time after_time",
    least="'-infinity'",
    work="""wfc.events
        WHERE NOT is_processed AND event_time <= now() - $1 * interval '1 second'""",
    since="event_time",
)

ADD_SWEEPS = """
INSERT INTO wfc.sweeps (kind) VALUES ('Event'), ('Workflow') ON CONFLICT DO NOTHING
"""

_STATEMENT_OF: Final = {"workflow": SWEEP_WORKFLOWS, "event": SWEEP_EVENTS}
KINDS: Final = tuple(_STATEMENT_OF)


@dataclass(frozen=True, slots=True)
class Part:
    """What one statement has done."""

    is_over: bool
    """There was no turn to take, or nothing is left of it."""
    lost: int
    """How many were in no queue."""
    queues: list[str]
    """The queues that have them now."""


async def sweep(store: Store, kind: str, seconds: float, rows: int, *, is_last: bool) -> Part:
    """Take the turn of a kind, if it is due, and look at so many rows. `is_last`: then end it."""
    age = repr(float(seconds)).encode()
    row = await store.write_once(_STATEMENT_OF[kind], age, integer(rows), boolean(is_last))
    turn, looked, lost = (read_int8(row.get_value(0, column)) for column in range(3))
    queues = read_text(row.get_value(0, 3))
    return Part(not turn or looked < rows, lost, queues.split(",") if queues else [])


class Sweeper:
    """The sweep of all namespaces.

    `seconds`: how often, and for how long work must be in no queue before it is enqueued again.
    """

    def __init__(self, namespaces: Namespaces, waiters: Waiters, seconds: float) -> None:
        self._namespaces = namespaces
        self._waiters = waiters
        self._seconds = seconds

    async def run(self) -> None:
        """Sweep for as long as the server runs."""
        for kind in KINDS:
            metrics.SWEPT.add((kind,), 0)  # so that the first find is an increase
        while True:
            # With jitter: servers that are started together do not all ask at the same time. More
            # often than is needed, as others may have had the last turn.
            await asyncio.sleep(self._seconds / 2 * random.uniform(0.75, 1.25))
            try:
                # Where there is no queue, nothing is to be enqueued.
                stores = await occupied_stores(self._namespaces, "queues")
                await side_by_side(stores, self._sweep)
            except Exception as exc:  # whatever it is, the next turn may succeed
                warnings.warn("sweep", f"can't look for work in no queue: {exc or repr(exc)}")

    async def _sweep(self, store: Store) -> None:
        """Take the turns that are due in one namespace."""
        try:
            # Not what this release is too old for, nor what others own.
            store = await self._namespaces.get(store.namespace)
            await store.write_once(ADD_SWEEPS)
            for kind in KINDS:
                await self._take_turn(store, kind)
        except PersistenceError as exc:
            # Deleted, or not migrated yet; or it is swept in the next turn.
            if exc.reason not in {ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, *PASSING}:
                warnings.warn(store.namespace, f"sweep: {store.namespace}: {exc}")

    async def _take_turn(self, store: Store, kind: str) -> None:
        for statement in range(1, _STATEMENTS + 1):
            part = await sweep(store, kind, self._seconds, _ROWS, is_last=statement == _STATEMENTS)
            if part.lost:
                metrics.SWEPT.add((kind,), part.lost)
                log.warning(
                    "%s: enqueued again what was in no queue: %d of the kind %s",
                    store.namespace,
                    part.lost,
                    kind,
                )
                wake_queues(store, self._waiters, dict.fromkeys(part.queues, part.lost))
            if part.is_over:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
