"""TransferService."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import astuple, dataclass
from hashlib import blake2b
from typing import Final

from wfe.persistence.v1 import transfer_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.check.transfer import check_export, check_import
from wfe_persistence.store import workflow_waiting
from wfe_persistence.store.export import Plan, Position, estimate, export_records
from wfe_persistence.store.importing import Import
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.transfers import snapshot_gone

# A response is sent before it becomes larger than this, unless a single record is.
_RESPONSE_BYTES: Final = 262_144
_MOST_RECORDS: Final = 1000
# What a response has beside its records: the cursor, mostly.
_FRAMING_BYTES: Final = 1_024

Answer = Callable[[pb.ImportRecordsRequest, Check], Awaitable[pb.ImportRecordsResponse]]


class TransferService:
    """Exports and imports."""

    async def ExportRecords(
        self, request: pb.ExportRecordsRequest, call: Call
    ) -> AsyncIterator[Iterable[pb.ExportRecordsResponse]]:
        """Send the records of a namespace."""
        hold = check_export(request, call.check)
        call.check.done()
        plan = Plan.of(request)
        cursor = _Cursor.parse(request, call) if request.after else None
        await call.env.namespaces.make_sure(call.store)  # as no statement can be run elsewhere
        most_bytes = min(_RESPONSE_BYTES, call.env.max_message_bytes - _FRAMING_BYTES)
        async with call.env.transfers.exporting(
            call.store, cursor.snapshot if cursor else None, hold, call.replica_at
        ) as snapshot:
            session, loop = snapshot.session, asyncio.get_running_loop()
            cursor = cursor or _Cursor(snapshot.id, Position(), time.time())
            ends = snapshot.ends - max(0.0, time.time() - cursor.begun)
            here = _Here(request, call, snapshot.id, cursor.begun)
            first = pb.ExportRecordsResponse(cursor=here.cursor(cursor.position))
            first.snapshot_time.CopyFrom(snapshot.time)
            if not request.after:
                first.estimated_records = await estimate(call.store, session, plan)
            yield [first]
            filled, size = pb.ExportRecordsResponse(), 0
            records = export_records(call.store, session, plan, cursor.position)
            position = cursor.position
            async with aclosing(records):  # type: ignore[type-var]
                async for record, at in records:
                    size += record.ByteSize()
                    if filled.records and (
                        size > most_bytes or len(filled.records) >= _MOST_RECORDS
                    ):
                        filled.cursor = here.cursor(position)
                        yield [filled]
                        filled, size = pb.ExportRecordsResponse(), record.ByteSize()
                        if loop.time() > ends:
                            raise snapshot_gone()
                    filled.records.append(record)
                    position = at
            if filled.records:
                filled.cursor = here.cursor(position)
                yield [filled]

    @asynccontextmanager
    async def ImportRecords(self, call: Call) -> AsyncIterator[Answer]:
        """Store the records of each request."""
        await call.env.namespaces.make_sure(call.store)
        begun_in = call.store.database
        async with call.env.transfers.importing(call.store) as session:
            into = Import(call.store, session)

            async def answer(
                request: pb.ImportRecordsRequest, check: Check
            ) -> pb.ImportRecordsResponse:
                await offload.run(check_import, request, check)
                skip = request.on_conflict == pb.CONFLICT_POLICY_SKIP
                try:
                    response = await into.store_records(request.records, skip=skip)
                except PersistenceError as exc:
                    await _require_same_place(exc, call, begun_in)
                    raise
                if response.stored:
                    call.written([r.queue_item.item for r in request.records if _is_item(r)])
                    workflow_waiting.stir_purged(call.store, call.env.waiters)
                    call.env.changes.published(call.store)
                return response

            yield answer


async def _require_same_place(error: PersistenceError, call: Call, begun_in: Database) -> None:
    """Raise what an import fails for whose connection could not follow its namespace."""
    if error.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
        await call.env.namespaces.make_sure(call.store)
        if call.store.database is not begun_in:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
                "the namespace has moved to another database meanwhile: begin the import again",
                retry_after=0.1,
            ) from error


def _is_item(record: pb.Record) -> bool:
    return record.WhichOneof("record") == "queue_item"


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where an export is, and in which snapshot."""

    snapshot: str
    position: Position
    begun: float
    """When it began, in seconds since 1970 by the clock of the server that it began on."""

    @classmethod
    def parse(cls, request: pb.ExportRecordsRequest, call: Call) -> _Cursor:
        """The cursor of a request. Raises PersistenceError if it is not one of this export."""
        try:
            data = base64.b64decode(request.after, b"-_", validate=True)
            snapshot, begun, *numbers = json.loads(data[_HASH_BYTES:])
            cursor = cls(str(snapshot), Position(*map(int, numbers)), float(begun))
        except (ValueError, TypeError, binascii.Error) as exc:
            raise _no_cursor() from exc
        if data[:_HASH_BYTES] != _hash(request, call, data[_HASH_BYTES:]):
            raise _no_cursor()
        return cursor


@dataclass(frozen=True, slots=True)
class _Here:
    """What all cursors of a stream have in common."""

    request: pb.ExportRecordsRequest
    call: Call
    snapshot: str
    begun: float

    def cursor(self, position: Position) -> str:
        """The cursor of a position."""
        at = [self.snapshot, round(self.begun), *astuple(position)]
        data = json.dumps(at, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(_hash(self.request, self.call, data) + data).decode()


_HASH_BYTES: Final = 9


def _hash(request: pb.ExportRecordsRequest, call: Call, at: bytes) -> bytes:
    """A hash of what is exported and the position: it differs for a cursor of another export."""
    query = pb.ExportRecordsRequest(kinds=request.kinds)
    if request.HasField("workflows"):
        query.workflows.CopyFrom(request.workflows)
    text = f"{call.store.namespace} ".encode() + query.SerializeToString(deterministic=True)
    return blake2b(text + at, digest_size=_HASH_BYTES).digest()


def _no_cursor() -> PersistenceError:
    return invalid_field(
        "after",
        FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
        "is not a cursor of this export",
    )
