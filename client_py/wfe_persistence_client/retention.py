"""Operations on what the servers delete by themselves, and on the space of a namespace."""

from wfe.persistence.v1 import store_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import Connection
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import (
    RetentionCounts,
    RetentionPolicy,
    RetentionState,
    StorageReport,
)


class Retention(Connection):
    """The operations on retention policies, and the storage report."""

    async def set_retention_policy(self, policy: RetentionPolicy) -> None:
        """Replaces the retention policy of the namespace, atomically.

        Args:
            policy: without any rule: nothing is deleted any more.

        Raises:
            InvalidArgument: an age is out of its bounds, or there are two rules for a
                definition.
        """
        await self._calls.unary(
            self._store.SetRetentionPolicy,
            store_pb2.SetRetentionPolicyRequest(policy=convert.retention_policy_to_proto(policy)),
        )

    async def get_retention_policy(self) -> RetentionState:
        """Returns the retention policy of the namespace, and what it has done."""
        answer = await self._calls.unary(
            self._store.GetRetentionPolicy, store_pb2.GetRetentionPolicyRequest()
        )
        return convert.retention_state_from_proto(answer)

    async def run_retention(self) -> None:
        """Has the servers apply the retention policy now; returns before they have."""
        await self._calls.unary(self._store.RunRetention, store_pb2.RunRetentionRequest())

    async def preview_retention(self, *, max_rows: int = 0) -> RetentionCounts:
        """Counts what the retention policy lets go now, and deletes nothing.

        Args:
            max_rows: about how many rows are counted at most; 0: 10000; at most 100000.
        """
        answer = await self._calls.unary(
            self._store.RunRetention,
            build(store_pb2.RunRetentionRequest, dry_run=True, max_rows=max_rows),
        )
        return convert.retention_counts_from_proto(answer.counts)

    async def get_storage_report(self, *, max_rows: int = 0) -> StorageReport:
        """Returns how much space the tables of the namespace take.

        Args:
            max_rows: about how many rows are counted at most of those that the retention
                policy lets go; 0: 10000; at most 100000.
        """
        answer = await self._calls.unary(
            self._store.GetStorageReport,
            build(store_pb2.GetStorageReportRequest, max_rows=max_rows),
        )
        return convert.storage_report_from_proto(answer)
