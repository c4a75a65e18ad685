"""Imports: records are stored as they were, unless they are there already.

The records of a request are one transaction, with one statement for all that follow each other of
one kind; see `import_parts.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from json import dumps
from typing import Any, Final

from wfe.persistence.v1 import transfer_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.store import retention
from wfe_persistence.store.columns import Columns
from wfe_persistence.store.documents import array, pointers_document
from wfe_persistence.store.import_parts import (
    COMPARE_POINTERS,
    EPOCH_IS_LOWER,
    HASH,
    IMPORT_ERRORS,
    IMPORT_POINTERS,
    IMPORT_QUEUE_ITEMS,
    IMPORT_SEQUENCES,
    IMPORT_WORKFLOWS,
    LOCK_CLAIMS,
    LOCK_ERRORS,
    RAISE_EPOCH,
    RAISE_REVISION,
    SUBSCRIPTION_MORE,
    insert,
)
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.session import Session
from wfe_persistence.store.records import (
    COMMAND,
    DEFINITION_SEQUENCE,
    ERROR,
    EVENT,
    NAME_HOLDER,
    QUEUE,
    QUEUE_ITEM,
    SUBSCRIPTION,
    WORKFLOW,
)
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    integer,
    read_bool,
    read_int4,
    text,
)
from wfe_persistence.store.statement_names import statement_name
from wfe_persistence.store.tables import Store

_ATTEMPTS: Final = 5


@dataclass(slots=True)
class _Open:
    """A workflow of which more records are to come."""

    id: str
    is_new: bool
    is_same: bool
    """Of one that is there already: whether all of its records so far are the same."""
    pointers: int


class Import:
    """An import, on a session of its own. After an error, nothing can be stored any more."""

    def __init__(self, store: Store, session: Session) -> None:
        self._store = store
        self._session = session
        self._in_transaction = False
        self.open: _Open | None = None

    async def store_records(
        self, records: Sequence[pb.Record], *, skip: bool
    ) -> pb.ImportRecordsResponse:
        """Store the records of a request, all or none; `skip`: leave out those for which there are
        others. If they end within a workflow, nothing is stored before the rest of it comes."""
        check_order(records, self.open.id if self.open else "")
        if not self._in_transaction:
            await self.run(BEGIN)
            self._in_transaction = True
        found = await import_records(self, records)
        if found.conflicts and not skip:
            first = min(found.conflicts)
            raise PersistenceError(
                ErrorReason.ERROR_REASON_RECORD_CONFLICT,
                f"records[{first}]: the store has another record in its place",
                metadata={"field": f"records[{first}]", "conflicts": str(len(found.conflicts))},
            )
        if self.open is None:
            await self.run("COMMIT")
            self._in_transaction = False
        skipped = len(found.conflicts)
        unchanged = len(records) - found.stored - skipped
        return pb.ImportRecordsResponse(stored=found.stored, unchanged=unchanged, skipped=skipped)

    async def run(self, sql: str, *params: Param) -> PGresult:
        """Run a statement in the transaction of the request."""
        statement = Statement.unprepared(self._store.schema.qualify(sql), statement_name(sql))
        [result] = await self._session.run([(statement, params)])
        return result


BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"


def check_order(records: Sequence[pb.Record], open_id: str) -> None:
    """Raise PersistenceError unless the records of a workflow in several follow each other.
    `open_id`: the workflow of which more are to come, if there is one."""
    for n, record in enumerate(records):
        kind = record.WhichOneof("record")
        given = record.execution_pointers.workflow_id if kind == "execution_pointers" else ""
        if given != open_id:
            raise invalid_field(
                f"records[{n}].execution_pointers.workflow_id" if given else f"records[{n}].record",
                FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
                "is not the workflow before, or that one is complete"
                if given
                else "must be more execution_pointers of the workflow before",
            )
        if kind == "execution_pointers":
            open_id = given if record.execution_pointers.is_continued else ""
        elif kind == "workflow" and record.workflow.is_continued:
            open_id = record.workflow.instance.id


@dataclass(slots=True)
class Found:
    """What became of the records of a request; what is neither was there already."""

    stored: int
    conflicts: set[int]
    """The numbers of those for which there is another record."""


IMPORT_RECORDS: Final = {
    "workflow": IMPORT_WORKFLOWS,
    "subscription": insert("event_subscriptions", SUBSCRIPTION, ("id",), SUBSCRIPTION_MORE),
    "event": insert("events", EVENT, ("id",), (HASH,)),
    "command": insert("scheduled_commands", COMMAND, ("command_name", "data")),
    "queue": insert("queues", QUEUE, ("name",)),
    "queue_item": IMPORT_QUEUE_ITEMS,
    "name_holder": insert("name_holders", NAME_HOLDER, ("name",)),
}


async def import_records(into: Import, records: Sequence[pb.Record]) -> Found:
    """Store records, in their order: one statement for all that follow each other of one kind."""
    found = Found(0, set())
    for run in _runs(records):
        kind = run[0][1].WhichOneof("record") or ""
        if kind == "execution_pointers":
            await _more_pointers(into, *run[0], found)
        elif kind in _LATER:
            await _LATER[kind](into, run, found)
        else:
            await _import(into, kind, run, found)
    return found


Run = list[tuple[int, pb.Record]]
"""Records of one kind, with their numbers in the request."""


def _runs(records: Sequence[pb.Record]) -> Iterator[Run]:
    def key(numbered: tuple[int, pb.Record]) -> object:
        n, record = numbered
        kind = record.WhichOneof("record")
        alone = kind in ("execution_pointers", "fence") or (
            kind == "workflow" and record.workflow.is_continued
        )
        return n if alone else kind

    for _, run in groupby(enumerate(records), key):
        yield list(run)


async def _import(into: Import, kind: str, run: Run, found: Found) -> None:
    """Records of a kind that has keys."""
    sql = IMPORT_RECORDS[kind]
    document = await offload.run(lambda: array(_DOCUMENTS[kind](n, record) for n, record in run))
    params: tuple[Param, ...] = (document,)
    is_whole = True
    if kind == "workflow":
        is_whole = not run[0][1].workflow.is_continued
        params = (document, boolean(is_whole))
    for _ in range(_ATTEMPTS):
        rows = await into.run(sql, *params)
        verdicts = [(rows.get_value(i, 0), rows.get_value(i, 1)) for i in range(rows.ntuples)]
        if all(same is not None for _, same in verdicts):
            break
        # What was in the way was committed after the statement began: the next one sees it. What
        # this one has stored, it finds the same.
        found.stored += len(run) - rows.ntuples
        run = [(n, r) for n, r in run if n in {read_int4(at) for at, _ in verdicts}]
        document = array(_DOCUMENTS[kind](n, record) for n, record in run)
        params = (document, *params[1:])
    else:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
            "the import conflicted with concurrent transactions repeatedly",
            retry_after=0.1,
        )
    found.stored += len(run) - len(verdicts)
    conflicts = {read_int4(at) for at, same in verdicts if not read_bool(same)}
    found.conflicts |= conflicts
    if not is_whole:
        n, record = run[0]
        workflow = record.workflow.instance
        into.open = _Open(
            workflow.id, not verdicts, n not in conflicts, len(workflow.execution_pointers)
        )


async def _more_pointers(into: Import, n: int, record: pb.Record, found: Found) -> None:
    """More pointers of the workflow before."""
    opened = into.open
    assert opened is not None
    more = record.execution_pointers
    first = opened.pointers
    opened.pointers += len(more.execution_pointers)
    document = (await offload.run(pointers_document, more.execution_pointers, first)).encode()
    if opened.is_new:
        rows = await into.run(IMPORT_POINTERS, text(opened.id), document)
        if rows.ntuples < len(more.execution_pointers):
            raise invalid_field(
                f"records[{n}].execution_pointers.execution_pointers",
                FieldViolationReason.FIELD_VIOLATION_REASON_DUPLICATE,
                "has ids that are in a record before",
            )
        found.stored += 1
    else:
        if opened.is_same:
            is_last = boolean(not more.is_continued)
            row = await into.run(
                COMPARE_POINTERS, text(opened.id), document, integer(first), is_last
            )
            opened.is_same = read_bool(row.get_value(0, 0))
        if not opened.is_same:
            found.conflicts.add(n)
    if not more.is_continued:
        into.open = None


async def _import_errors(into: Import, run: Run, found: Found) -> None:
    await into.run(LOCK_ERRORS)
    documents = (
        _document(ERROR, record.error.error, at=n, copy=record.error.copy) for n, record in run
    )
    found.stored += (await into.run(IMPORT_ERRORS, array(documents))).ntuples


async def _import_sequences(into: Import, run: Run, found: Found) -> None:
    documents = (_document(DEFINITION_SEQUENCE, r.definition_sequence) for _, r in run)
    found.stored += (await into.run(IMPORT_SEQUENCES, array(documents))).ntuples


async def _import_fence(into: Import, run: Run, _: Found) -> None:
    fence = run[0][1].fence
    if fence.revision:
        await into.run(RAISE_REVISION, integer(fence.revision))
    await raise_epoch(into, fence.epoch)


async def raise_epoch(into: Import, epoch: int) -> None:
    """Have all claims from now on have a higher epoch than this one."""
    if not epoch or not read_bool((await into.run(EPOCH_IS_LOWER, integer(epoch))).get_value(0, 0)):
        return
    await into.run(LOCK_CLAIMS)
    await into.run(RAISE_EPOCH, integer(epoch))


async def _import_subscriptions(into: Import, run: Run, found: Found) -> None:
    # One that was edited, or whose fence was left out, must not have an epoch that is yet to come.
    await raise_epoch(into, max(r.subscription.external_token_epoch for _, r in run))
    await _import(into, "subscription", run, found)


async def _import_policy(into: Import, run: Run, found: Found) -> None:
    for n, record in run:
        stored = retention.read_policy(await into.run(retention.GET_RETENTION_POLICY)).policy
        given = retention.in_order(record.retention_policy)
        if not stored.ByteSize() and given.ByteSize():
            document = retention.rules_document(given)
            await into.run(retention.SET_RETENTION_POLICY, document)
            found.stored += 1
        elif stored != given:
            found.conflicts.add(n)


_LATER: Final[dict[str, Callable[[Import, Run, Found], Awaitable[None]]]] = {
    "fence": _import_fence,
    "subscription": _import_subscriptions,
    "error": _import_errors,
    "definition_sequence": _import_sequences,
    "retention_policy": _import_policy,
}


def _document(columns: Columns[Any], message: Any, **more: int | str | bool) -> str:
    members = columns.members(message)
    members += (f'"{name}":{dumps(value)}' for name, value in more.items())
    return f"{{{','.join(members)}}}"


def _workflow(n: int, record: pb.Record) -> str:
    workflow = record.workflow
    document = _document(
        WORKFLOW,
        workflow.instance,
        at=n,
        revision=workflow.instance.revision,
        first_revision=workflow.first_revision,
        **_hash(record),
    )
    pointers = pointers_document(workflow.instance.execution_pointers)
    return f'{document[:-1]},"execution_pointers":{pointers}}}'


def _hash(record: pb.Record) -> dict[str, str]:
    return {"content_hash": record.creation_hash.hex()} if record.creation_hash else {}


def _subscription(n: int, record: pb.Record) -> str:
    epoch = record.subscription.external_token_epoch
    return _document(
        SUBSCRIPTION, record.subscription, at=n, external_token_epoch=epoch, **_hash(record)
    )


def _queue_item(n: int, record: pb.Record) -> str:
    item = record.queue_item
    return _document(QUEUE_ITEM, item.item, at=n, dead=item.is_dead, attempt=item.attempt)


_DOCUMENTS: Final[dict[str, Callable[[int, pb.Record], str]]] = {
    "workflow": _workflow,
    "subscription": _subscription,
    "event": lambda n, r: _document(EVENT, r.event, at=n, **_hash(r)),
    "command": lambda n, r: _document(COMMAND, r.command, at=n),
    "queue": lambda n, r: _document(QUEUE, r.queue, at=n),
    "queue_item": _queue_item,
    "name_holder": lambda n, r: _document(NAME_HOLDER, r.name_holder, at=n),
}
