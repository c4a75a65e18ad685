"""What one call reads from: a replica as long as that will do, then the primary."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Protocol

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.pipeline import Command, PGresult
from wfe_persistence.store.postgres.position import (
    NotReplayedError,
    Position,
    has_replayed,
    require,
)
from wfe_persistence.store.postgres.sqlstate import UnexpectedDatabaseError

if TYPE_CHECKING:
    from wfe_persistence.store.postgres.replicas import Replica

_ELSEWHERE: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        ErrorReason.ERROR_REASON_DATABASE_PERMISSION_DENIED,
        ErrorReason.ERROR_REASON_DATABASE_FULL,
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        ErrorReason.ERROR_REASON_ROW_LOCKED,
    }
)
"""What fails a read on a replica, but may not fail it on the primary. (Calls that find all
connections of a replica busy are not among them: the primary is not to do its work as well.)"""


class Reader(Protocol):
    """What statements that read are run with: a database, or what a call reads from."""

    async def run(
        self,
        namespace: str,
        batch: Sequence[Command],
        *,
        write: bool,
        final_constraints: Collection[str] = (),
        expected: Collection[ErrorReason.ValueType] = (),
        takes_long: bool = False,
    ) -> list[PGresult]:
        """See `Database.run`."""

    def stream(self, namespace: str, command: Command) -> AsyncGenerator[PGresult, None]:
        """See `Database.stream`."""


class Reads:
    """What one call reads from: a replica as long as that has what the call relies on, and answers;
    from then on the primary, so that it never sees something older than before."""

    def __init__(
        self, primary: Database, replica: Replica, position: Position | None, wait: float
    ) -> None:
        self._primary = primary
        self._replica: Replica | None = replica
        self._requires = None if position is None else has_replayed(position)
        self._position = position
        self._wait = wait
        self._label = replica.label
        self._outcome = "replica"

    def ended(self, *, in_vain: bool = False) -> bool:
        """Count the call; whether all that it has read is from the replica. `in_vain`: that did
        not have what was looked for."""
        if in_vain and self._replica is not None:
            self._outcome = "behind"
        metrics.REPLICA_READS.add((self._label, self._outcome))
        return self._replica is not None

    async def run(
        self,
        namespace: str,
        batch: Sequence[Command],
        *,
        write: bool,
        final_constraints: Collection[str] = (),
        expected: Collection[ErrorReason.ValueType] = (),
        takes_long: bool = False,
    ) -> list[PGresult]:
        """See `Database.run`."""
        while not write and (replica := self._replica) is not None:
            try:
                if self._requires is None:
                    return await replica.database.run(
                        namespace, batch, write=False, expected=_ELSEWHERE, takes_long=takes_long
                    )
                checked = [self._requires, *batch]
                has, *results = await replica.database.run(
                    namespace, checked, write=False, expected=_ELSEWHERE, takes_long=takes_long
                )
                require(has)
            except (NotReplayedError, PersistenceError, UnexpectedDatabaseError) as exc:
                await self._failed(replica, exc)
            else:
                return results
        return await self._primary.run(
            namespace,
            batch,
            write=write,
            final_constraints=final_constraints,
            expected=expected,
            takes_long=takes_long,
        )

    async def stream(self, namespace: str, command: Command) -> AsyncGenerator[PGresult, None]:
        """See `Database.stream`."""
        while (replica := self._replica) is not None:
            yielded = False
            rows = replica.database.stream(namespace, command, self._requires)
            try:
                async with aclosing(rows):
                    async for row in rows:
                        yielded = True
                        yield row
            except (NotReplayedError, PersistenceError, UnexpectedDatabaseError) as exc:
                if yielded:
                    raise
                await self._failed(replica, exc)
            else:
                return
        rows = self._primary.stream(namespace, command)
        async with aclosing(rows):
            async for row in rows:
                yield row

    async def _failed(self, replica: Replica, exc: Exception) -> None:
        """Wait for the replica once, or give it up. Raises what would fail on the primary too."""
        outcome = "failed"
        if isinstance(exc, NotReplayedError):
            wait, self._wait = self._wait, 0.0
            assert self._position is not None
            if wait and await replica.wait(self._position, wait):
                return
            outcome = "behind"
        elif isinstance(exc, PersistenceError) and exc.reason not in _ELSEWHERE:
            raise exc
        self._replica, self._outcome = None, outcome
