"""The store of a namespace set as a whole: its errors, its schema, its retention."""

# ruff: noqa: ARG002 - the arguments are those of a single namespace

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta

from wfe.persistence.v1.transfer_pb2 import Record
from wfe_persistence_client.model import (
    ExecutionError,
    ImportCounts,
    MigratedStore,
    RecordKind,
    RetentionCounts,
    RetentionPolicy,
    RetentionState,
    StorageReport,
    StoreInfo,
    TableStorage,
    WorkflowStatus,
)
from wfe_persistence_client.sets.members import SetMembers, not_over_a_set
from wfe_persistence_client.sets.routing import member_of


class SetStores(SetMembers):
    """The operations on the store as a whole. Those on namespaces and sets are the server's."""

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        """As of a single namespace, in the members of their workflows; all or nothing in each."""
        members = await self._members()
        of_member: dict[int, list[ExecutionError]] = {}
        for error in errors:
            of_member.setdefault(member_of(error.workflow_id, len(members)), []).append(error)
        for index, some in of_member.items():
            await members[index].persist_errors(some)

    def iter_errors(
        self,
        workflow_id: str = "",
        *,
        error_time_from: datetime | None = None,
        error_time_before: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionError]:
        """As of a single namespace; the members' lists are merged by error_time, latest first."""
        return self._merged(
            lambda member: member.iter_errors(
                workflow_id,
                error_time_from=error_time_from,
                error_time_before=error_time_before,
                page_size=page_size,
            ),
            lambda error: error.error_time,
            descending=True,
        )

    async def ensure_store_exists(self) -> MigratedStore:
        """As of a single namespace: migrates all members. The lowest of their versions, and what
        was applied to any of them."""
        done = await self._each(lambda member: member.ensure_store_exists())
        applied = sorted({name for one in done for name in one.applied_migrations})
        return MigratedStore(
            schema_version=min(one.schema_version for one in done), applied_migrations=applied
        )

    async def get_store_info(self) -> StoreInfo:
        """What the server says of the first member, with the name of the set as the namespace."""
        info = await (await self._members())[0].get_store_info()
        return replace(info, namespace=self._set.name)

    async def truncate_all(self) -> None:
        """As of a single namespace, in all members, one after the other."""
        for member in await self._members():
            await member.truncate_all()
        self._set.names.clear()

    async def set_retention_policy(self, policy: RetentionPolicy) -> None:
        """As of a single namespace, in all members; atomically in each of them."""
        await self._each(lambda member: member.set_retention_policy(policy))

    async def get_retention_policy(self) -> RetentionState:
        """The policy of the first member, and what it has done in all of them."""
        states = await self._each(lambda member: member.get_retention_policy())
        times = [state.complete_time for state in states]
        return replace(
            states[0],
            deleted_rows=sum(state.deleted_rows for state in states),
            complete_time=None if None in times else min(filter(None, times)),
        )

    async def run_retention(self) -> None:
        """As of a single namespace, in all members."""
        await self._each(lambda member: member.run_retention())

    async def preview_retention(self, *, max_rows: int = 0) -> RetentionCounts:
        """As of a single namespace: the sums of all members, `max_rows` in each."""
        counts = await self._each(lambda member: member.preview_retention(max_rows=max_rows))
        return _sum_of_counts(counts)

    async def get_storage_report(self, *, max_rows: int = 0) -> StorageReport:
        """As of a single namespace: the sums of all members."""
        reports = await self._each(lambda member: member.get_storage_report(max_rows=max_rows))
        tables: dict[str, TableStorage] = {}
        for report in reports:
            for table in report.tables:
                before = tables.get(table.name)
                tables[table.name] = table if before is None else _sum_of_tables(before, table)
        return StorageReport(
            tables=sorted(
                tables.values(), key=lambda t: t.table_bytes + t.index_bytes, reverse=True
            ),
            freed=_sum_of_counts([report.freed for report in reports]),
            freed_bytes=sum(report.freed_bytes for report in reports),
        )

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
        """Not of a set, whose members have no snapshot in common.

        Raises:
            NotOverASet: always.
        """
        raise not_over_a_set("exports")

    async def import_records(
        self, records: Iterable[Record], *, skip_conflicts: bool = False
    ) -> ImportCounts:
        """Not of a set.

        Raises:
            NotOverASet: always.
        """
        raise not_over_a_set("imports")


def _sum_of_counts(counts: Sequence[RetentionCounts]) -> RetentionCounts:
    sums = {
        field.name: sum(getattr(one, field.name) for one in counts)
        for field in fields(RetentionCounts)
        if field.name != "is_partial"
    }
    return RetentionCounts(**sums, is_partial=any(one.is_partial for one in counts))


def _sum_of_tables(one: TableStorage, other: TableStorage) -> TableStorage:
    known = one.bloat_bytes is not None and other.bloat_bytes is not None
    return TableStorage(
        name=one.name,
        estimated_rows=one.estimated_rows + other.estimated_rows,
        dead_rows=one.dead_rows + other.dead_rows,
        table_bytes=one.table_bytes + other.table_bytes,
        index_bytes=one.index_bytes + other.index_bytes,
        bloat_bytes=(one.bloat_bytes or 0) + (other.bloat_bytes or 0) if known else None,
    )
