"""Operations that take records out of a namespace, and into another one."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

from wfe.persistence.v1 import transfer_pb2
from wfe.persistence.v1.transfer_pb2 import Record
from wfe_persistence_client import convert
from wfe_persistence_client.connection import Connection
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import ImportCounts, RecordKind, WorkflowStatus

#: How much a request of an import has.
_MOST_RECORDS = 500
_MOST_BYTES = 262_144
#: How many requests go over one stream, which takes a database connection anew.
_MOST_REQUESTS = 20


class Transfer(Connection):
    """The operations of exports and imports.

    A record is a message of the protos, `wfe.persistence.v1.transfer_pb2.Record`: it is kept and
    passed on as it is. The command line does the same with files: `wfe-persistence export`.
    """

    def export_records(
        self,
        *,
        kinds: Iterable[RecordKind] = (),
        workflow_ids: Iterable[str] = (),
        statuses: Iterable[WorkflowStatus] = (),
        workflow_definition_ids: Iterable[str] = (),
        create_time_from: datetime | None = None,
        create_time_before: datetime | None = None,
        hold: timedelta = timedelta(seconds=60),
    ) -> AsyncIterator[Record]:
        """Yields the records of the namespace, as they were at one moment: when it began.

        When the connection breaks, the stream is resumed where it was, on any server, for as
        long as the snapshot is held; `timeout` applies to each resumption. Until its end, the
        export takes a database connection of the server, so read on.

        Args:
            kinds: only these; none: all, or those that belong to the selected workflows.
            workflow_ids: only these workflows, and what belongs to them; none: any.
            statuses: only workflows with one of these statuses; none: any.
            workflow_definition_ids: only workflows of these definitions; none: any.
            create_time_from: only workflows created at or after this time; None: any.
            create_time_before: only workflows created before this time; None: any.
            hold: for how long the snapshot is held if the connection breaks, and after the
                iterator is closed before its end; up to 10 minutes.

        Raises:
            CursorExpired: it was cut off, and the snapshot is gone: begin anew.
            AdministrationBusy: there are too many exports in this server.
        """
        request = build(
            transfer_pb2.ExportRecordsRequest,
            kinds=[transfer_pb2.RecordKind.ValueType(kind.value) for kind in kinds],
            hold=convert.duration(hold),
        )
        selection = build(
            transfer_pb2.WorkflowSelection,
            ids=workflow_ids,
            statuses=convert.statuses_to_proto(statuses),
            workflow_definition_ids=workflow_definition_ids,
            create_time_from=convert.optional_timestamp("create_time_from", create_time_from),
            create_time_before=convert.optional_timestamp("create_time_before", create_time_before),
        )
        if selection.ListFields():
            request.workflows.CopyFrom(selection)
        return self._exported(request)

    async def _exported(self, request: transfer_pb2.ExportRecordsRequest) -> AsyncIterator[Record]:
        # A server may sort for a while before the first records of a kind.
        silence = timedelta(seconds=60)
        responses = self._calls.watch(self._transfer.ExportRecords, request, silence, ends=True)
        async with aclosing(responses):
            async for response in responses:
                for record in response.records:
                    yield record

    async def import_records(
        self, records: Iterable[Record], *, skip_conflicts: bool = False
    ) -> ImportCounts:
        """Stores records, in their order. Those that are there already, the same, are left.

        They are sent in parts, each stored as a whole; after an error, those before it stay.
        Repeating the call is safe. For more than fit in memory, call it for one part after
        the other; all records of a workflow must be in the same part.

        Args:
            records: from an export.
            skip_conflicts: leave out those for which the store has others, instead of
                raising RecordConflict.

        Raises:
            RecordConflict: the store has another record in the place of one of these.
            NamespaceFull: the namespace stores as much as it may.
        """
        policy = (
            transfer_pb2.CONFLICT_POLICY_SKIP
            if skip_conflicts
            else transfer_pb2.CONFLICT_POLICY_REFUSE
        )
        counts = ImportCounts()
        for requests in _parts(records, policy):
            answers = await self._calls.exchange(self._transfer.ImportRecords, requests)
            counts = ImportCounts(
                stored=counts.stored + sum(answer.stored for answer in answers),
                unchanged=counts.unchanged + sum(answer.unchanged for answer in answers),
                skipped=counts.skipped + sum(answer.skipped for answer in answers),
            )
        return counts


def _parts(
    records: Iterable[Record], policy: transfer_pb2.ConflictPolicy.ValueType
) -> Iterable[Sequence[transfer_pb2.ImportRecordsRequest]]:
    """Requests for one stream each: those with the records of one workflow go together."""
    requests: list[transfer_pb2.ImportRecordsRequest] = []
    request = transfer_pb2.ImportRecordsRequest(on_conflict=policy)
    size = 0
    for record in records:
        request.records.append(record)
        size += record.ByteSize()
        is_full = size >= _MOST_BYTES or len(request.records) >= _MOST_RECORDS
        if not is_full:
            continue
        requests.append(request)
        request, size = transfer_pb2.ImportRecordsRequest(on_conflict=policy), 0
        is_whole = not (record.workflow.is_continued or record.execution_pointers.is_continued)
        if is_whole and len(requests) >= _MOST_REQUESTS:
            yield requests
            requests = []
    if request.records:
        requests.append(request)
    if requests:
        yield requests
