"""What the directory says of moves: who drives one, how far it is, and what is left of it.

A move is driven by one server at a time. Whoever takes it over counts up its `epoch`, and every
change names the epoch that it is based on, so one that has lost the move finds out with its next
change. That does not guard the databases themselves: a driver that sleeps may go on there. So
everything that it does there can be done twice, and the fence can't be committed after somebody has
taken its publication away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.placement import DELETED
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.session import Session
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    integer,
    read_bool,
    read_int8,
    read_json,
    read_text,
    text,
)
from wfe_persistence.store.tables import Store

STALE_SECONDS: Final = 10.0
"""For how long a driver may say nothing: five times as long as it does."""

COPYING: Final = "copying"
SWITCHING: Final = "switching"
CLEANING: Final = "cleaning"
ABORTING: Final = "aborting"


@dataclass(frozen=True, slots=True)
class Entry:
    """A namespace's row in the directory."""

    namespace: str
    database: str
    generation: int
    moving_to: str | None
    phase: str | None
    """`copying`: the source is in use, and writable. `switching`: the source says whether it is
    still. `cleaning`: the target is in use, and there is something left on the source.
    `aborting`: the source is in use, and there is something left on the target. None: nobody
    moves it. (Those of `placement.py` are of namespaces that do not exist.)"""
    detail: dict[str, Any] = field(default_factory=dict)
    is_stale: bool = False
    """Whether nobody drives it any more."""

    @property
    def move(self) -> str:
        """The id of the move."""
        return str(self.detail.get("move", ""))

    @property
    def epoch(self) -> int:
        """How often somebody has begun to drive it."""
        return int(self.detail.get("epoch", 0))

    @property
    def remains(self) -> list[dict[str, Any]]:
        """What is still to be dropped: see `moved_away` and `guarded`."""
        return list(self.detail.get("remains", []))


def moved_away(database: str, schema: str, until: float) -> dict[str, Any]:
    """What remains of a move where the namespace was: its schema, to be dropped from a time on
    (seconds since 1970)."""
    return {"database": database, "schema": schema, "until": until}


def guarded(database: str, guard: str, until: float) -> dict[str, Any]:
    """What remains where it is: the guard that was opened."""
    return {"database": database, "guard": guard, "until": until}


_COLUMNS: Final = "namespace, database, generation, moving_to, move_phase, move_detail"


def _is_stale(seconds: str) -> str:
    return f"""(changed < now() - {seconds}::float8 * interval '1 second'
        OR move_detail ->> 'released' = 'true')"""


READ_MOVE = f"""
SELECT {_COLUMNS}, {_is_stale("$2")} FROM wfc.placements WHERE namespace = $1
"""

UNFINISHED_MOVES = f"""
SELECT {_COLUMNS}, {_is_stale("$1")} FROM wfc.placements
WHERE (move_phase IN ('{SWITCHING}', '{CLEANING}', '{ABORTING}') AND {_is_stale("$1")})
    OR move_phase = '{DELETED}'
    OR EXISTS (SELECT FROM jsonb_array_elements(move_detail -> 'remains') r
        WHERE (r ->> 'until')::float8 < extract(epoch FROM now()))
ORDER BY move_phase IS DISTINCT FROM '{SWITCHING}',
    coalesce(move_phase, '{DELETED}') = '{DELETED}', changed
LIMIT 100
"""

BEGIN_MOVE = f"""
INSERT INTO wfc.placements AS p (namespace, database, generation, moving_to, move_phase,
    move_detail)
VALUES ($1, $2, $3::bigint, $4, '{COPYING}', $5::jsonb)
ON CONFLICT (namespace) DO UPDATE SET moving_to = excluded.moving_to,
    move_phase = excluded.move_phase,
    move_detail = coalesce(p.move_detail, '{{}}') || excluded.move_detail, changed = now()
WHERE p.move_phase IS NULL AND p.database = excluded.database
RETURNING {_COLUMNS}, FALSE
"""

# $2 the epoch, $3 the phase it must be in (NULL: any), $4-$7 the new values, $8 more of the detail.
CHANGE_MOVE = f"""
UPDATE wfc.placements
SET database = $4, generation = $5::bigint, moving_to = $6, move_phase = $7,
    move_detail = move_detail || $8::jsonb, changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2
    AND ($3::text IS NULL OR move_phase = $3)
RETURNING {_COLUMNS}, FALSE
"""

# $2 the epoch as it was; $3 whether it may be taken from whoever drives it.
TAKE_MOVE = f"""
UPDATE wfc.placements
SET move_detail = move_detail || jsonb_build_object(
        'epoch', (move_detail ->> 'epoch')::bigint + 1, 'released', FALSE),
    changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2
    AND ($3::boolean OR {_is_stale("$4")})
RETURNING {_COLUMNS}, FALSE
"""

# Nothing but that somebody drives it, or does not any more.
TOUCH_MOVE = """
UPDATE wfc.placements SET move_detail = move_detail || $3::jsonb, changed = now()
WHERE namespace = $1 AND move_phase IS NOT NULL AND move_detail ->> 'epoch' = $2
"""

REMAINS_DROPPED = """
UPDATE wfc.placements
SET move_detail = jsonb_set(move_detail, '{remains}', coalesce((
        SELECT jsonb_agg(r) FROM jsonb_array_elements(move_detail -> 'remains') r
        WHERE coalesce(r ->> 'schema', r ->> 'guard') <> $2), '[]'))
WHERE namespace = $1
"""


FORGET_DELETED = f"""
DELETE FROM wfc.placements
WHERE namespace = $1 AND move_phase = '{DELETED}'
    AND coalesce(jsonb_array_length(move_detail -> 'remains'), 0) = 0
"""


class Directory:
    """The directory in the home database; `home`: its default store. `stale_seconds`: a move whose
    driver has said nothing for so long may be taken over."""

    def __init__(self, home: Store, stale_seconds: float = STALE_SECONDS) -> None:
        self.home = home
        self._stale = repr(stale_seconds).encode()

    async def read(self, namespace: str) -> Entry | None:
        """What it says of a namespace; None: nothing, so it is at home."""
        return _entry(await self.home.read_once(READ_MOVE, text(namespace), self._stale))

    async def unfinished(self) -> list[Entry]:
        """Moves that nobody drives though there is something to be done at once, and those with
        remains whose time has come."""
        rows = await self.home.read_once(UNFINISHED_MOVES, self._stale)
        return [_read(rows, i) for i in range(rows.ntuples)]

    async def begin(
        self, namespace: str, database: str, generation: int, to: str, detail: dict[str, Any]
    ) -> Entry:
        """Begin a move. Raises TRANSACTION_CONFLICT if somebody else has, or it is elsewhere."""
        rows = await self.home.write_once(
            BEGIN_MOVE,
            text(namespace),
            text(database),
            integer(generation),
            text(to),
            _json(detail | {"epoch": 1, "released": False}),
        )
        return _entry(rows) or _lost(namespace)

    async def change(
        self,
        entry: Entry,
        *,
        phase: str | None,
        was: str | None = None,
        database: str | None = None,
        generation: int | None = None,
        moving_to: str | None = None,
        detail: dict[str, Any] | None = None,
        session: Session | None = None,
    ) -> Entry:
        """Write how far a move is. `was`: the phase it must be in. `session`: a connection of its
        own, while those of the pool wait for the move. Raises TRANSACTION_CONFLICT if somebody else
        drives it by now."""
        params: list[Param] = [
            text(entry.namespace),
            text(str(entry.epoch)),
            None if was is None else text(was),
            text(entry.database if database is None else database),
            integer(entry.generation if generation is None else generation),
            None if moving_to is None else text(moving_to),
            None if phase is None else text(phase),
            _json(detail or {}),
        ]
        if session is None:
            rows = await self.home.write_once(CHANGE_MOVE, *params)
        else:
            statement = Statement.unprepared(self.home.schema.qualify(CHANGE_MOVE))
            [rows] = await session.run([(statement, params)])
        return _entry(rows) or _lost(entry.namespace)

    async def touch(self, entry: Entry, detail: dict[str, Any]) -> None:
        """Say that it is driven, or in `detail` that it is `released`; nothing if it was taken."""
        await self.home.write_once(
            TOUCH_MOVE, text(entry.namespace), text(str(entry.epoch)), _json(detail)
        )

    async def take(self, entry: Entry, *, by_force: bool = False) -> Entry | None:
        """Drive a move from now on, if nobody does, or `by_force`; None: somebody does."""
        rows = await self.home.write_once(
            TAKE_MOVE,
            text(entry.namespace),
            text(str(entry.epoch)),
            boolean(by_force),
            self._stale,
        )
        return _entry(rows)

    async def dropped(self, namespace: str, name: str) -> None:
        """What remained by this name, a schema or a guard, has been dropped."""
        await self.home.write_once(REMAINS_DROPPED, text(namespace), text(name))

    async def forget(self, namespace: str) -> None:
        """Of a namespace that was deleted, nothing remains any more."""
        await self.home.write_once(FORGET_DELETED, text(namespace))


def _entry(rows: PGresult) -> Entry | None:
    return _read(rows, 0) if rows.ntuples else None


def _read(rows: PGresult, i: int) -> Entry:
    get = rows.get_value
    moving_to, phase, detail = get(i, 3), get(i, 4), get(i, 5)
    return Entry(
        read_text(get(i, 0)),
        read_text(get(i, 1)),
        read_int8(get(i, 2)),
        None if moving_to is None else read_text(moving_to),
        None if phase is None else read_text(phase),
        {} if detail is None else json.loads(read_json(detail)),
        get(i, 6) is not None and read_bool(get(i, 6)),
    )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _lost(namespace: str) -> Entry:
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        f"another call moves {namespace} by now, or aborts it",
        retry_after=1.0,
    )
