"""Locks: one holder at a time for each resource, until it is released or expires.

Expiry, here and where a lock must be held for a write, is judged with the row locked. So a lock
that expires meanwhile goes to the next holder only after that write, and never to two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from typing import Final, NamedTuple, Self

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.lock_pb2 import (
    AcquireLockRequest,
    AcquireLockResponse,
    BreakLockRequest,
    ListLocksRequest,
    Lock,
    RenewLocksResponse,
)
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.documents import array
from wfe_persistence.store.lease import (
    NEXT_EPOCH,
    check_held,
    expiry_after,
    lease_token,
    new_lease_id,
    parse_lease_token,
    unexpired,
)
from wfe_persistence.store.paging import Cursor, Page, fill_page, like_prefix
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS
from wfe_persistence.store.records import LOCK
from wfe_persistence.store.rows import (
    PGresult,
    integer,
    read_bool,
    read_int8,
    read_text,
    read_time,
    text,
    text_array,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Ahead, Kind, Line, Waiters, is_passing

_LOCK = LOCK.selection("l")
_decode_lock = LOCK.decoder()

# A row to take over, if there is none. Up to two expired ones are deleted for each one that is
# added, so they do not pile up.
ADD_LOCK = """
WITH added AS (
    INSERT INTO wfc.locks (resource)
    SELECT $1 WHERE NOT EXISTS (SELECT FROM wfc.locks WHERE resource = $1)
    ON CONFLICT (resource) DO NOTHING
    RETURNING n
)
DELETE FROM wfc.locks WHERE n = ANY (ARRAY (
    SELECT l.n FROM added, LATERAL (
        SELECT n FROM wfc.locks WHERE expiry <= now() AND resource <> $1
        ORDER BY expiry LIMIT 2 FOR UPDATE SKIP LOCKED
    ) l))
"""

# $2 the owner, $3 the new token, $4 the milliseconds, $5 the request id. If the row is locked by
# another transaction, PostgreSQL evaluates condition and values once more when it has got it: so
# the epoch and the times are those of the moment at which the row is taken, and epochs rise in the
# order of the holders. (now() is older: it does not change in a transaction.) No row: the lock was
# taken over or released after the snapshot.
ACQUIRE_LOCK = f"""
WITH granted AS (
    UPDATE wfc.locks
    SET owner = $2, token = $3, request_id = $5::uuid, epoch = {NEXT_EPOCH},
        acquire_time = clock_timestamp(),
        expiry = clock_timestamp() + $4 * interval '1 millisecond'
    WHERE resource = $1 AND expiry <= clock_timestamp()
    RETURNING *
)
SELECT {_LOCK}, l.n, l.token, l.acquired
FROM (
    SELECT *, TRUE AS acquired FROM granted
    UNION ALL
    SELECT *, coalesce(request_id = $5::uuid AND owner = $2, FALSE) FROM wfc.locks
    WHERE resource = $1 AND expiry > clock_timestamp() AND NOT EXISTS (SELECT FROM granted)
) l
"""


def acquire_lock(
    store: Store, request: AcquireLockRequest, ttl_ms: int, until: float, waiters: Waiters
) -> Awaitable[AcquireLockResponse]:
    """Take a lock that nobody holds; while it is held, wait until this time of the event loop.

    Of those who wait here for a resource, only the first asks the database: when it becomes the
    first, and when it is woken. A call that waits goes on waiting while the database is away. It
    does so without the request, so that the caller can let go of it.
    """
    return _acquire(store, _Wanted.by(request, ttl_ms), until, waiters)


class _Wanted(NamedTuple):
    """What a call wants."""

    resource: str
    owner: str
    ttl_ms: int
    request_id: str

    @classmethod
    def by(cls, request: AcquireLockRequest, ttl_ms: int) -> Self:
        """What a request is for."""
        return cls(request.resource, request.owner, ttl_ms, request.request_id)


async def _acquire(
    store: Store, wanted: _Wanted, until: float, waiters: Waiters
) -> AcquireLockResponse:
    now = asyncio.get_running_loop().time
    if until <= now():
        return await _attempt(store, wanted)
    line = lock_line(store, wanted.resource)
    with waiters.join(store, line) as waiter:
        while True:
            is_last = until <= now()
            if waiter.is_first or is_last:
                try:
                    response = await _attempt(store, wanted)
                    if response.acquired or is_last:
                        break
                    del response
                except PersistenceError as exc:
                    if not _may_be_repeated(exc, wanted) or is_last:
                        raise
            await waiter.pause(until)
    if response.acquired:
        waiters.look(line)  # when it expires is what the others wait for now
    return response


def _may_be_repeated(exc: PersistenceError, wanted: _Wanted) -> bool:
    """Whether an attempt may be made again: it has not acquired the lock, or will be recognized."""
    lost = exc.reason == ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN
    return is_passing(exc) or (lost and bool(wanted.request_id))


async def _attempt(store: Store, wanted: _Wanted) -> AcquireLockResponse:
    resource = text(wanted.resource)
    params = (
        resource,
        text(wanted.owner),
        text(new_lease_id()),
        integer(wanted.ttl_ms),
        text(wanted.request_id) if wanted.request_id else None,
    )
    for _ in range(MAX_ATTEMPTS):
        _, row = await store.write_all((ADD_LOCK, (resource,)), (ACQUIRE_LOCK, params))
        if row.ntuples:
            return _decode_attempt(row)
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the lock changed hands all the time",
        retry_after=0.1,
    )


def _decode_attempt(row: PGresult) -> AcquireLockResponse:
    n, token, acquired = (row.get_value(0, len(LOCK) + i) for i in range(3))
    lock = _decode_lock(row)
    if not read_bool(acquired):
        return AcquireLockResponse(holder=lock)
    metrics.CLAIMS_TAKEN.add(("lock",))
    return AcquireLockResponse(
        acquired=True,
        token=lease_token(read_text(token), read_int8(n)),
        epoch=lock.epoch,
        expiry=lock.expiry,
    )


# $1 resources. In how many milliseconds the locks on them expire, of those that are held.
LOOK_AT_LOCKS = f"""
SELECT l.resource, (extract(epoch FROM l.expiry - now()) * 1000)::bigint
FROM unnest($1::text[]) AS g(resource), LATERAL (
    SELECT resource, expiry FROM wfc.locks WHERE resource = g.resource LIMIT 1
) l
WHERE {unexpired("l.expiry")}
"""


async def look_at_locks(store: Store, resources: Sequence[str]) -> list[Ahead]:
    """Which of these resources are free, and when the others are, unless they are released."""
    rows = await store.read(LOOK_AT_LOCKS, text_array(resources))
    get = rows.get_value
    held = {read_text(get(i, 0)): read_int8(get(i, 1)) / 1000 for i in range(rows.ntuples)}
    return [
        Ahead(resource, 0, held[resource]) if resource in held else Ahead(resource, 1)
        for resource in resources
    ]


FREE_LOCK: Final = Kind("lock", look_at_locks)


def lock_line(store: Store, resource: str) -> Line:
    """Where those wait who want a lock, and whatever is withheld while it is held."""
    return Line(store.namespace, FREE_LOCK, resource)


# Several locks are locked in the order of their resources, as by a commit.
RENEW_LOCKS = f"""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(i int, n bigint, token text)
), held AS MATERIALIZED (
    SELECT n, token FROM wfc.locks
    WHERE n = ANY (ARRAY (SELECT n FROM given)) AND {unexpired("expiry")}
    ORDER BY resource FOR NO KEY UPDATE
), checked AS MATERIALIZED (
    SELECT i, n, EXISTS (
        SELECT FROM held h WHERE h.n = g.n AND h.token = g.token
    ) AS is_held
    FROM given g
), renewed AS (
    UPDATE wfc.locks SET expiry = {expiry_after("$2")}
    WHERE n = ANY (ARRAY (SELECT n FROM checked)) AND (SELECT bool_and(is_held) FROM checked)
)
SELECT i, is_held, {expiry_after("$2")} FROM checked
"""


async def renew_locks(store: Store, tokens: Sequence[str], ttl_ms: int) -> RenewLocksResponse:
    """Extend these locks to `ttl_ms` from now, all or none."""
    rows = await store.write(RENEW_LOCKS, array(lock_documents(tokens, "tokens")), integer(ttl_ms))
    check_held(rows, tokens, field="tokens")
    metrics.CLAIMS_RENEWED.add(("lock",), len(tokens))
    response = RenewLocksResponse()
    if rows.ntuples:
        read_time(rows.get_value(0, 2), response.expiry)
    return response


RELEASE_LOCK = f"""
DELETE FROM wfc.locks WHERE n = $1 AND token = $2
RETURNING resource, {unexpired("expiry")}
"""


async def release_lock(store: Store, token: str, waiters: Waiters) -> bool:
    """Release the lock that is held with this token; whether there was one."""
    try:
        (n,), lease_id = _parse(token, "token")
    except PersistenceError:
        return False  # what is no token holds nothing
    row = await store.write(RELEASE_LOCK, integer(n), text(lease_id))
    if not row.ntuples:
        return False
    waiters.wake(lock_line(store, read_text(row.get_value(0, 0))))
    return read_bool(row.get_value(0, 1))


BREAK_LOCK = f"""
DELETE FROM wfc.locks l
WHERE resource = $1 AND ($2::bigint IS NULL OR epoch = $2) AND {unexpired("expiry")}
RETURNING {_LOCK}
"""


async def break_lock(store: Store, request: BreakLockRequest, waiters: Waiters) -> Lock | None:
    """Release a lock without its token; it is returned, None: nobody held it."""
    row = await store.write(
        BREAK_LOCK,
        text(request.resource),
        integer(request.epoch) if request.HasField("epoch") else None,
    )
    if not row.ntuples:
        return None
    waiters.wake(lock_line(store, request.resource))
    return _decode_lock(row)


# An absent filter is NULL, and the planner, which knows the parameters, removes its condition.
LIST_LOCKS = f"""
SELECT {_LOCK}
FROM wfc.locks l
WHERE {unexpired("expiry")}
    AND ($1::text IS NULL OR resource LIKE $1)
    AND ($2::text IS NULL OR owner = $2)
    AND ($3::text IS NULL OR resource > $3)
ORDER BY resource
LIMIT $4
"""


async def list_locks(
    store: Store,
    request: ListLocksRequest,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[Lock]:
    """Locks that are held, in the order of their resources."""
    rows = store.stream_once(
        LIST_LOCKS,
        text(like_prefix(request.resource_prefix)) if request.resource_prefix else None,
        text(request.owner) if request.owner else None,
        None if after is None else text(after[1]),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_lock, _by_resource, page_size, page_bytes)


def _by_resource(_: PGresult, lock: Lock) -> Cursor:
    return 0, lock.resource


def lock_documents(tokens: Sequence[str], field: str) -> Iterator[str]:
    """Parse lock tokens into numbered JSON documents; `field`: the request's field, for errors."""
    for i, token in enumerate(tokens):
        (n,), lease_id = _parse(token, f"{field}[{i}]")
        yield f'{{"i":{i},"n":{n},"token":"{lease_id}"}}'


def _parse(token: str, field: str) -> tuple[tuple[int, ...], str]:
    return parse_lease_token(token, field, numbers=1, origin="AcquireLock")
