"""Changes of workflows: their feed (see `feed.py`), which triggers write.

They are recorded only while somebody watches, and for the retention after that; who does not watch
pays nothing. Whether they are recorded is said by a sequence, because a trigger reads that as it is
at that moment. So once it is odd, every write that follows is recorded, and only transactions that
had written before may still be committed without a record. They hold a lock on the table until
their end. A recording is complete from the moment on when the last of them has gone: that is its
floor. Each recording has a number of its own. The feed's row has that of the recording that it is
about; as soon as the sequence is at another one, something may be missing, and the cursors of the
feed have expired.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowView
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import feed
from wfe_persistence.store.feed import CLUSTER, SELECTION_AT, Entry, Page, Position
from wfe_persistence.store.oversize import reduce
from wfe_persistence.store.paging import Wanted
from wfe_persistence.store.records import WORKFLOW_BEFORE
from wfe_persistence.store.rows import (
    PGresult,
    integer,
    read_bool,
    read_int8,
    read_text,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow import get_workflow_instances

# Three statements start a recording, and two servers may get in each other's way.
_MAX_ATTEMPTS: Final = 5

# For how long (seconds) a look waits for transactions that had written before the recording began.
_WRITERS_SECONDS: Final = 3.0
_WRITERS_LOOK_SECONDS: Final = 0.02

_PAGE_BYTES: Final = 2_000_000
"""A page ends with the workflow that makes its headers so large."""

_FRAMING_BYTES: Final = 200
"""What a response has around a header."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of a workflow, by one change or several."""

    instance: WorkflowInstance
    """Its header as it is; if it was deleted, what is known of it as it was before."""
    deleted: bool
    before: tuple[WorkflowInstance, ...]
    """What it was before each change that a filter might see: the fields of `WORKFLOW_BEFORE`."""


_RECORDING: Final = "pg_sequence_last_value('wfc.workflow_recording')"
_IS_RECORDED: Final = f"f.cluster = {CLUSTER} AND f.recording = {_RECORDING}"

_read_before = WORKFLOW_BEFORE.reader(SELECTION_AT)
_STATUS_AT: Final = SELECTION_AT + WORKFLOW_BEFORE.at("status")

# A number that no recording has had: odd, and higher. It counts at once, and for good, even if this
# is rolled back; then the row has none that counts. Changes from another cluster may have ids of
# transactions that are still to come here; what is there by now is of no use to this recording.
BEGIN_RECORDING = f"""
WITH begun AS (
    INSERT INTO wfc.workflow_feed AS f (only_row) VALUES (TRUE)
    ON CONFLICT (only_row) DO UPDATE SET
        feed_id = EXCLUDED.feed_id, cluster = {CLUSTER},
        recording = setval('wfc.workflow_recording', ({_RECORDING} + 1) | 1),
        floor_xid = NULL, floor_n = 0, watch_time = now()
    WHERE NOT ({_IS_RECORDED})
    RETURNING only_row
)
DELETE FROM wfc.workflow_changes
WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()) AND EXISTS (SELECT FROM begun)
"""

# Written when a namespace that was moved is put into use, see lifecycle.NEW_FEED.
NEW_WORKFLOW_FEED = """
UPDATE wfc.workflow_feed SET feed_id = gen_random_uuid(), cluster = '', recording = -1
"""

# What is to be known of a recording that has begun: its feed, and who had written before.
RECORDING_BEGUN = f"""
SELECT f.recording, f.floor_xid IS NULL AND {_IS_RECORDED},
    ARRAY (
        SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
            AND relation = 'wfc.workflows'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND virtualtransaction IS NOT NULL
    )::text
FROM wfc.workflow_feed f
"""

WRITERS_LEFT = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
        AND relation = 'wfc.workflows'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND virtualtransaction = ANY ($1::text[])
)
"""

COMPLETE_FROM_NOW = """
UPDATE wfc.workflow_feed
SET floor_xid = pg_snapshot_xmin(pg_current_snapshot()), watch_time = now()
WHERE recording = $1 AND floor_xid IS NULL
"""


async def _begin(store: Store) -> None:
    """One step towards a recording that is complete. Raises PersistenceError."""
    await store.write(BEGIN_RECORDING)
    rows = await store.read_once(RECORDING_BEGUN)
    if not rows.ntuples or not read_bool(rows.get_value(0, 1)):
        return
    recording, writers = read_int8(rows.get_value(0, 0)), rows.get_value(0, 2)
    assert writers is not None
    try:
        async with asyncio.timeout(_WRITERS_SECONDS):
            while True:
                rows = await store.read_once(WRITERS_LEFT, writers)
                if not read_bool(rows.get_value(0, 0)):
                    break
                await asyncio.sleep(_WRITERS_LOOK_SECONDS)
    except TimeoutError:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
            "changes can't be watched before a transaction that writes workflows has ended",
            retry_after=1.0,
        ) from None
    await store.write_once(COMPLETE_FROM_NOW, integer(recording))


WATCH_WORKFLOWS = feed.reading(
    "workflow_changes",
    "workflow_feed",
    f"{_IS_RECORDED} AND f.floor_xid IS NOT NULL",
    WORKFLOW_BEFORE.selection("e"),
)

WATCH_WORKFLOWS_COPY = feed.reading(
    "workflow_changes",
    "workflow_feed",
    "f.floor_xid IS NOT NULL",
    WORKFLOW_BEFORE.selection("e"),
)


async def watch_workflows(
    store: Store, after: Position | None, limit: int, max_bytes: int
) -> Page[Change]:
    """Changes behind a position; see `Source.read`. Several ones of a workflow come as one, at the
    place of the last. Of a header larger than `max_bytes` so much is left out that it fits."""
    for _ in range(_MAX_ATTEMPTS):
        page = await feed.read_page(store, WATCH_WORKFLOWS, after, limit, _decode)
        if page is not None:
            break
        await _begin(store)
    else:
        raise feed.changed_repeatedly()
    return await _with_headers(store, page, max_bytes)


async def _with_headers(store: Store, page: Page[WorkflowInstance], max_bytes: int) -> Page[Change]:
    # What a workflow was before is known from the same transaction as the change. What it is
    # may be read later: it is newer then, and there is one more change to come.
    wanted = Wanted(deque(dict.fromkeys(each.item.id for each in page.entries)))
    headers: dict[str, WorkflowInstance] = {}
    size = 0
    while wanted.ids and size < _PAGE_BYTES:
        for header in await get_workflow_instances(
            store, wanted, WorkflowView.WORKFLOW_VIEW_HEADER, max_bytes
        ):
            headers[header.id] = header
            size += header.ByteSize()
    return _merge(page, headers, frozenset(wanted.ids), max_bytes)


KEEP_RECORDING = "UPDATE wfc.workflow_feed SET watch_time = now()"

ADD_WORKFLOW_FEED = "INSERT INTO wfc.workflow_feed DEFAULT VALUES ON CONFLICT DO NOTHING"

# An even number: nothing is recorded.
END_RECORDING = f"""
WITH unwatched AS (
    UPDATE wfc.workflow_feed SET recording = -1
    WHERE watch_time < now() - $1::float8 * interval '1 second' AND {_RECORDING} % 2 = 1
    RETURNING only_row
)
SELECT setval('wfc.workflow_recording', ({_RECORDING} | 1) + 1) FROM unwatched
"""

IS_RECORDED = f"""
SELECT {_RECORDING} % 2 = 1,
    (SELECT watch_time < now() - $1::float8 * interval '1 second' FROM wfc.workflow_feed)
"""

OLDEST_CHANGE_IS_OLD = feed.looking_for_old("workflow_changes")

SWEEP_CHANGES = feed.sweeping("workflow_changes", "workflow_feed")


class WorkflowChanges:
    """The feed of changes of workflows.

    `max_message_bytes`: what a response may have; of a larger header so much is left out.
    """

    name = "changes of workflows"
    table = "workflow_changes"

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes - _FRAMING_BYTES

    async def read(self, store: Store, after: Position | None, limit: int) -> Page[Change]:
        """See `Source`."""
        return await watch_workflows(store, after, limit, self._max_bytes)

    async def read_copy(self, store: Store, after: Position, limit: int) -> Page[Change] | None:
        """See `Source`."""
        page = await feed.read_page(store, WATCH_WORKFLOWS_COPY, after, limit, _decode)
        return None if page is None else await _with_headers(store, page, self._max_bytes)

    async def keep(self, store: Store) -> None:
        """See `Source`."""
        await store.write_once(KEEP_RECORDING)

    async def sweep(self, store: Store, retention: float, limit: int) -> int | None:
        """See `Source`. Ends the recording, too, if nobody has watched for that long."""
        seconds = repr(float(retention)).encode()
        rows = await store.read_once(IS_RECORDED, seconds)
        is_recorded = read_bool(rows.get_value(0, 0))
        if is_recorded and (is_unwatched := rows.get_value(0, 1)) is None:
            await store.write_once(ADD_WORKFLOW_FEED)  # it was emptied
        elif is_recorded and read_bool(is_unwatched):
            await store.write_once(END_RECORDING, seconds)
        is_old = await feed.oldest_is_old(store, OLDEST_CHANGE_IS_OLD, retention)
        if not is_old:
            return None if is_old is None and not is_recorded else 0
        await store.write_once(ADD_WORKFLOW_FEED)
        return await feed.delete_old(store, SWEEP_CHANGES, retention, limit)


def _decode(rows: PGresult, row: int, position: Position) -> Entry[WorkflowInstance]:
    """A change's row: what the workflow was before, or its id alone."""
    instance = WorkflowInstance()
    if rows.get_value(row, _STATUS_AT) is None:
        instance.id = read_text(rows.get_value(row, SELECTION_AT))
    else:
        _read_before(rows.get_value, row, instance)
        instance.view = WorkflowView.WORKFLOW_VIEW_HEADER
    return Entry(position, instance, 0)


def _merge(
    page: Page[WorkflowInstance],
    headers: dict[str, WorkflowInstance],
    unread: frozenset[str],
    max_bytes: int,
) -> Page[Change]:
    """Changes as watchers get them, up to the first one of a workflow whose header was not read."""
    last: dict[str, Position] = {}
    before: dict[str, list[WorkflowInstance]] = {}
    end = read_to = page.end
    is_full = page.is_full
    for row in page.entries:
        id_ = row.item.id
        if id_ in unread:
            end, is_full = read_to, True
            break
        read_to = row.position
        last.pop(id_, None)
        last[id_] = row.position
        known = before.setdefault(id_, [])
        if row.item.view:
            known.append(row.item)
    entries = []
    for id_, position in last.items():
        known = before[id_]
        # One that is gone, of which this row does not say what it was, has one more to come.
        if (header := headers.get(id_)) or known:
            instance = header
            if instance is None:
                instance = WorkflowInstance()
                instance.CopyFrom(known[-1])
                reduce(instance, max_bytes)
            size = instance.ByteSize() + sum(each.ByteSize() for each in known)
            entries.append(Entry(position, Change(instance, header is None, tuple(known)), size))
    return Page(page.feed_id, page.floor, page.horizon, entries, end, is_full, page.pending_ms)
