"""Scheduled commands: one per (command_name, data), claimed with leases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from wfe.persistence.v1.command_pb2 import (
    BreakCommandLeaseRequest,
    ClaimedCommand,
    CommandLease,
    CommandName,
    ListCommandsRequest,
    ListedCommand,
    RenewCommandsResponse,
    ScheduledCommand,
)
from wfe_persistence import metrics
from wfe_persistence.store.documents import array
from wfe_persistence.store.lease import (
    ALL_HELD,
    NEXT_EPOCH,
    check_held,
    expired,
    expiry_after,
    lease_token,
    new_lease_id,
    parse_lease_token,
    unexpired,
)
from wfe_persistence.store.paging import Cursor, Page, fill_page
from wfe_persistence.store.records import COMMAND, COMMAND_NAME
from wfe_persistence.store.rows import (
    PGresult,
    boolean,
    epoch_ms,
    integer,
    read_int8,
    read_text,
    read_time,
    text,
    text_array,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Ahead, Kind, Line, Waiters

_read_command = COMMAND.reader()

# The UPDATE comes first because INSERT ... ON CONFLICT takes a number from the sequence even if it
# updates a row. A trigger increments the revision whenever a command is scheduled.
SCHEDULE_COMMAND = """
WITH rescheduled AS (
    UPDATE wfc.scheduled_commands SET execute_time = $3
    WHERE command_name = $1 AND data = $2
    RETURNING id
)
INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM rescheduled)
ON CONFLICT (command_name, data) DO UPDATE SET execute_time = excluded.execute_time
"""


async def schedule_command(store: Store, command: ScheduledCommand) -> None:
    """Insert a command, or update the execute_time of the existing one."""
    await store.write(
        SCHEDULE_COMMAND,
        text(COMMAND_NAME[command.command_name]),
        text(command.data),
        integer(command.execute_time),
    )


_NOW_MS: Final = "floor(extract(epoch FROM now()) * 1000)::bigint"

# What a claimed command has at most in the answer beside its data.
_CLAIM_BYTES: Final = 160

# Commands without a lease and those whose lease has expired have an index each, in which none of
# those that are leased is.
_IS_FREE: Final = "lease_expiry IS NULL"


def _due(condition: str) -> str:
    return f"""
    SELECT id, execute_time, octet_length(data) + {_CLAIM_BYTES} AS bytes
    FROM wfc.scheduled_commands
    WHERE execute_time <= coalesce($1::bigint, {_NOW_MS})
        AND ($7::text IS NULL OR command_name = $7)
        AND {condition}
    ORDER BY execute_time, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED"""


# = ANY (ARRAY (...)) makes the planner use an index scan, whatever number of rows it estimates.
CLAIM_COMMANDS = f"""
WITH free AS MATERIALIZED ({_due(_IS_FREE)}
), expired AS MATERIALIZED ({_due(expired("lease_expiry"))}
), due AS (
    SELECT * FROM (SELECT * FROM free UNION ALL SELECT * FROM expired) d
    ORDER BY execute_time, id
    LIMIT $2
), fitting AS (
    SELECT id FROM (
        SELECT id, sum(bytes) OVER soonest_first AS bytes, row_number() OVER soonest_first AS n
        FROM due WINDOW soonest_first AS (ORDER BY execute_time, id)
    ) d WHERE bytes <= $6 OR n = 1
), claimed AS (
    UPDATE wfc.scheduled_commands c
    SET lease_id = $3, lease_worker_id = $4, lease_expiry = {expiry_after("$5")},
        lease_epoch = {NEXT_EPOCH}
    WHERE c.id = ANY (ARRAY (SELECT id FROM fitting))
    RETURNING {COMMAND.selection("c")},
        c.id, c.revision, c.lease_expiry, c.lease_epoch
)
SELECT {COMMAND.selection()}, id, revision, lease_expiry, lease_epoch
FROM claimed ORDER BY execute_time, id
"""


async def claim_commands(
    store: Store,
    as_of_ms: int | None,
    limit: int,
    lease_ms: int,
    worker_id: str,
    answer_bytes: int,
    command_name: CommandName.ValueType = CommandName.COMMAND_NAME_UNSPECIFIED,
) -> list[ClaimedCommand]:
    """Claim due commands, the earliest first. `as_of_ms` None: the database's clock;
    `command_name` UNSPECIFIED: any name.

    No more are claimed than fit into an answer of `answer_bytes`, but at least one.
    """
    lease_id = new_lease_id()
    rows = await store.write(
        CLAIM_COMMANDS,
        None if as_of_ms is None else integer(as_of_ms),
        integer(limit),
        text(lease_id),
        text(worker_id),
        integer(lease_ms),
        integer(answer_bytes),
        text(COMMAND_NAME[command_name]) if command_name else None,
    )
    metrics.CLAIMS_TAKEN.add(("command",), rows.ntuples)
    return [_decode_claim(rows, i, lease_id) for i in range(rows.ntuples)]


_LEASE_MS: Final = "(extract(epoch FROM lease_expiry - now()) * 1000)::bigint"

# $1 names, $2 how many commands, at most, are looked at of each. Per name: how many commands could
# be claimed now, and in how many milliseconds one becomes due, or a lease expires on one that is
# due.
LOOK_AT_COMMANDS = f"""
SELECT g.name, free.count + expired.count, least(coming.ms, leased.ms)
FROM unnest($1::text[]) AS g(name)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= {_NOW_MS} AND {_IS_FREE}
        ORDER BY execute_time, id
        LIMIT $2
    ) c
) free
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.scheduled_commands
        WHERE command_name = g.name AND execute_time <= {_NOW_MS} AND {expired("lease_expiry")}
        ORDER BY lease_expiry
        LIMIT $2
    ) c
) expired
LEFT JOIN LATERAL (
    SELECT greatest(execute_time - {_NOW_MS}, {_LEASE_MS}) AS ms FROM wfc.scheduled_commands
    WHERE command_name = g.name AND execute_time > {_NOW_MS}
    ORDER BY execute_time, id
    LIMIT 1
) coming ON TRUE
LEFT JOIN LATERAL (
    SELECT {_LEASE_MS} AS ms FROM wfc.scheduled_commands
    WHERE command_name = g.name AND execute_time <= {_NOW_MS} AND {unexpired("lease_expiry")}
    ORDER BY lease_expiry
    LIMIT 1
) leased ON TRUE
"""
_MOST_LOOKED_AT: Final = 100


async def look_at_commands(store: Store, names: Sequence[str]) -> Iterator[Ahead]:
    """Which of these names have commands that can be claimed, now or later."""
    rows = await store.read(LOOK_AT_COMMANDS, text_array(names), integer(_MOST_LOOKED_AT))
    get = rows.get_value

    def ahead(i: int) -> Ahead:
        name, ready, ms = (get(i, column) for column in range(3))
        return Ahead(
            read_text(name), read_int8(ready), None if ms is None else read_int8(ms) / 1000
        )

    return map(ahead, range(rows.ntuples))


DUE_COMMAND: Final = Kind("command", look_at_commands)


def command_lines(store: Store, name: CommandName.ValueType) -> list[Line]:
    """Where those wait who want commands of a name; UNSPECIFIED: of any."""
    names = [COMMAND_NAME[name]] if name else COMMAND_NAME.values()
    return [Line(store.namespace, DUE_COMMAND, each) for each in names]


def stir_commands(
    store: Store,
    waiters: Waiters,
    name: CommandName.ValueType = CommandName.COMMAND_NAME_UNSPECIFIED,
) -> None:
    """Have those looked at who wait for commands of a name, after some were scheduled or leases on
    them have ended."""
    for line in command_lines(store, name):
        waiters.stir(line)


def _change_held(*, change: str, condition: str = "", also_return: str = "") -> str:
    """The statement that checks the leases in $1 and changes the commands `held` under them.

    `change`: its CTEs, which must test that all are held. `condition`: what else a lease must meet
    to be held. `also_return`: columns after the lease's number and whether it is held.
    """
    return f"""
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(n int, id bigint, revision bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT c.id, g.lease_id, c.revision = g.revision AS unchanged
    FROM (SELECT * FROM given ORDER BY id) g, LATERAL (
        SELECT id, revision FROM wfc.scheduled_commands
        WHERE id = g.id AND lease_id = g.lease_id{condition} FOR UPDATE
    ) c
), {change}
SELECT n, EXISTS (SELECT FROM held h WHERE h.id = g.id AND h.lease_id = g.lease_id){also_return}
FROM given g
"""


# A command that was scheduled again since its claim has another revision: it is kept, and only its
# lease ends.
COMPLETE_COMMANDS = _change_held(
    change=f"""removed AS (
    DELETE FROM wfc.scheduled_commands
    WHERE id = ANY (ARRAY (SELECT id FROM held WHERE unchanged))
        AND {ALL_HELD}
), kept AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (SELECT id FROM held WHERE NOT unchanged))
        AND {ALL_HELD}
)"""
)


async def complete_commands(store: Store, lease_tokens: Sequence[str]) -> None:
    """Delete the commands claimed under these leases, all or none."""
    rows = await store.write(COMPLETE_COMMANDS, _leases(lease_tokens))
    check_held(rows, lease_tokens)


RELEASE_COMMANDS = _change_held(
    change=f"""released AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (SELECT id FROM held))
        AND {ALL_HELD}
)"""
)


async def release_commands(store: Store, lease_tokens: Sequence[str]) -> None:
    """End these leases, so that the commands are due again, all or none."""
    rows = await store.write(RELEASE_COMMANDS, _leases(lease_tokens))
    check_held(rows, lease_tokens)


RENEW_COMMANDS = _change_held(
    condition=f" AND {unexpired('lease_expiry')}",
    change=f"""renewed AS (
    UPDATE wfc.scheduled_commands
    SET lease_expiry = {expiry_after("$2")}
    WHERE id = ANY (ARRAY (SELECT id FROM held))
        AND {ALL_HELD}
)""",
    also_return=f",\n    {expiry_after('$2')}",
)


async def renew_commands(
    store: Store, lease_tokens: Sequence[str], lease_ms: int
) -> RenewCommandsResponse:
    """Extend these leases by `lease_ms` from now, all or none."""
    rows = await store.write(RENEW_COMMANDS, _leases(lease_tokens), integer(lease_ms))
    check_held(rows, lease_tokens)
    metrics.CLAIMS_RENEWED.add(("command",), len(lease_tokens))
    response = RenewCommandsResponse()
    if rows.ntuples:
        read_time(rows.get_value(0, 2), response.lease_expiry)
    return response


BREAK_COMMAND_LEASE = """
WITH held AS MATERIALIZED (
    SELECT id, lease_worker_id, lease_expiry, lease_epoch FROM wfc.scheduled_commands
    WHERE command_name = $1 AND data = $2
        AND lease_id IS NOT NULL AND ($3::bigint IS NULL OR lease_epoch = $3)
    FOR UPDATE
), broken AS (
    UPDATE wfc.scheduled_commands
    SET lease_id = NULL, lease_worker_id = NULL, lease_expiry = NULL
    WHERE id = ANY (ARRAY (SELECT id FROM held))
)
SELECT lease_expiry, coalesce(lease_worker_id, ''), lease_epoch FROM held
"""


async def break_command_lease(
    store: Store, request: BreakCommandLeaseRequest
) -> CommandLease | None:
    """End the lease on a command without its token; it is returned, None: there was none."""
    row = await store.write_once(
        BREAK_COMMAND_LEASE,
        text(COMMAND_NAME[request.command_name]),
        text(request.data),
        integer(request.epoch) if request.HasField("epoch") else None,
    )
    if not row.ntuples:
        return None
    broken = CommandLease()
    expiry, worker, epoch = (row.get_value(0, i) for i in range(3))
    read_time(expiry, broken.expiry)
    broken.worker_id = read_text(worker)
    broken.epoch = read_int8(epoch)
    return broken


# An absent filter is NULL, and the planner, which knows the parameters, removes its condition.
# They are in the order of execute_time, which no index of leases has.
LIST_COMMANDS = f"""
SELECT {COMMAND.selection()}, id,
    CASE WHEN {unexpired("lease_expiry")} THEN lease_expiry END,
    coalesce(lease_worker_id, ''), lease_epoch
FROM wfc.scheduled_commands
WHERE ($1::text IS NULL OR command_name = $1)
    AND ($2::text IS NULL OR data = $2)
    AND ($3::bigint IS NULL OR execute_time < $3)
    AND ($4::boolean IS NULL OR $4 = (lease_expiry IS NOT NULL AND {unexpired("lease_expiry")}))
    AND ($5::text IS NULL OR (lease_worker_id = $5 AND {unexpired("lease_expiry")}))
    AND ($6::bigint IS NULL OR (execute_time, id) > ($6, $7::bigint))
ORDER BY execute_time, id
LIMIT $8
"""


async def list_commands(
    store: Store,
    request: ListCommandsRequest,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[ListedCommand]:
    """Commands, due or not, claimed or not, the soonest first."""
    rows = store.stream_once(
        LIST_COMMANDS,
        text(COMMAND_NAME[request.command_name]) if request.command_name else None,
        text(request.data) if request.HasField("data") else None,
        integer(epoch_ms(request.due_before)) if request.HasField("due_before") else None,
        boolean(request.leased) if request.HasField("leased") else None,
        text(request.worker_id) if request.worker_id else None,
        *((None, None) if after is None else (integer(after[0]), text(after[1]))),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_listed, _by_execute_time, page_size, page_bytes)


def _decode_listed(row: PGresult) -> ListedCommand:
    listed = ListedCommand()
    _read_command(row.get_value, 0, listed.command)
    expiry, worker, epoch = (row.get_value(0, len(COMMAND) + i) for i in range(1, 4))
    if expiry is not None:
        read_time(expiry, listed.lease.expiry)
        listed.lease.worker_id = read_text(worker)
        listed.lease.epoch = read_int8(epoch)
    return listed


def _by_execute_time(row: PGresult, listed: ListedCommand) -> Cursor:
    return listed.command.execute_time, str(read_int8(row.get_value(0, len(COMMAND))))


def _leases(lease_tokens: Sequence[str]) -> bytes:
    return array(lease_documents(lease_tokens, "lease_tokens"))


def lease_documents(
    lease_tokens: Sequence[str], field: str, *, first: int = 0, completes: bool = False
) -> Iterator[str]:
    """Parse lease tokens into JSON documents, numbered from `first` on.

    `field`: the request's field, for errors. `completes`: whether a commit completes the commands.
    """
    for i, token in enumerate(lease_tokens):
        # The revision is the command's at the claim.
        (row, revision), lease_id = parse_lease_token(
            token, f"{field}[{i}]", numbers=2, origin="ClaimCommands"
        )
        yield (
            f'{{"n":{first + i},"id":{row},"revision":{revision},'
            f'"lease_id":"{lease_id}","completes":{"true" if completes else "false"}}}'
        )


def _decode_claim(rows: PGresult, i: int, lease_id: str) -> ClaimedCommand:
    get = rows.get_value
    claim = ClaimedCommand()
    _read_command(get, i, claim.command)
    row, revision, expiry, epoch = (
        get(i, column) for column in range(len(COMMAND), len(COMMAND) + 4)
    )
    claim.lease_token = lease_token(lease_id, read_int8(row), read_int8(revision))
    claim.epoch = read_int8(epoch)
    read_time(expiry, claim.lease_expiry)
    return claim
