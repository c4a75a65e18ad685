"""StoreService."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import offload
from wfe_persistence.access.role import Role
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, read_back
from wfe_persistence.store import (
    admin,
    error_log,
    migration_files,
    migration_history,
    namespace_list,
    readiness,
    retention,
    storage,
)
from wfe_persistence.store.request_key import REQUEST_RETENTION_SECONDS


class StoreService:
    """The store as a whole, its namespaces and the error log."""

    async def EnsureStoreExists(
        self, request: pb.EnsureStoreExistsRequest, call: Call
    ) -> pb.EnsureStoreExistsResponse:
        """Create the store or migrate it."""
        migrated = await readiness.ensure_store_exists(
            call.store, call.env.namespaces.migrate_seconds
        )
        return pb.EnsureStoreExistsResponse(
            schema_version=migrated.version, applied_migrations=migrated.applied
        )

    async def PersistErrors(
        self, request: pb.PersistErrorsRequest, call: Call
    ) -> pb.PersistErrorsResponse:
        """Log errors."""
        await offload.run(_prepare_errors, request, call.check)
        await error_log.persist_errors(call.store, request.errors)
        return pb.PersistErrorsResponse()

    async def ListErrors(self, request: pb.ListErrorsRequest, call: Call) -> pb.ListErrorsResponse:
        """Return logged errors."""
        check = call.check
        check.id("", "workflow_id", request.workflow_id, required=False)
        check.times(request, "", "error_time_from", "error_time_before")
        page_size = check.page_size(request.page_size)
        check.done()
        page = await error_log.list_errors(
            call.store,
            request,
            *call.page(request, page_size),
        )
        return pb.ListErrorsResponse(
            errors=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetStoreInfo(
        self, request: pb.GetStoreInfoRequest, call: Call
    ) -> pb.GetStoreInfoResponse:
        """Return the versions, limits and capabilities of this server and its store."""
        database = await admin.database_info(call.store)
        return pb.GetStoreInfoResponse(
            server_version=call.env.server_version,
            postgres_version=database.version,
            namespace=call.store.namespace,
            schema=call.store.schema.name,
            schema_version=(await migration_history.schema_version(call.store)).number,
            latest_schema_version=migration_files.latest_version(),
            capabilities=pb.Capabilities(
                scheduled_commands=True,
                truncate_all=call.env.allow_truncate,
                delete_namespace=call.env.allow_delete_namespace,
                create_namespace=call.env.allow_create_namespace,
                locks=True,
                queues=True,
                lifecycle=True,
                watch_workflows=True,
                retention=True,
            ),
            max_message_bytes=call.env.max_message_bytes,
            request_retention=Duration(seconds=REQUEST_RETENTION_SECONDS),
            database=call.store.database.name,
        )

    async def TruncateAll(
        self, request: pb.TruncateAllRequest, call: Call
    ) -> pb.TruncateAllResponse:
        """Empty the store."""
        if not call.env.allow_truncate:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_TRUNCATE_NOT_ALLOWED,
                "the server was started without --allow-truncate",
            )
        await admin.truncate_all(call.store)
        admin.stir_emptied(call.store.namespace, call.env.waiters)
        return pb.TruncateAllResponse()

    async def CreateNamespace(
        self, request: pb.CreateNamespaceRequest, call: Call
    ) -> pb.CreateNamespaceResponse:
        """Create a namespace or migrate it."""
        check = call.check
        check.namespace("name", request.name)
        check.database("database", request.database)
        labels = check.labels("database_labels", request.database_labels)
        check.done()
        if not call.env.allow_create_namespace:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_CREATE_NAMESPACE_NOT_ALLOWED,
                "the server was started without --allow-create-namespace, which is the default "
                "only where it listens on loopback",
            )
        migrated, database = await call.env.namespaces.create_namespace(
            request.name, request.database, labels
        )
        return pb.CreateNamespaceResponse(
            schema_version=migrated.version,
            applied_migrations=migrated.applied,
            database=database,
        )

    async def ListNamespaces(
        self, request: pb.ListNamespacesRequest, call: Call
    ) -> pb.ListNamespacesResponse:
        """Return the namespaces."""
        check = call.check
        page_size = check.page_size(request.page_size)
        check.done()
        page = await namespace_list.list_all(
            call.env.namespaces,
            paging.decode(request, call.store),
            page_size,
            visible=lambda name: call.caller.may(Role.READER, name),
        )
        return pb.ListNamespacesResponse(
            namespaces=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def DeleteNamespace(
        self, request: pb.DeleteNamespaceRequest, call: Call
    ) -> pb.DeleteNamespaceResponse:
        """Delete a namespace with all its contents."""
        check = call.check
        check.namespace("name", request.name)
        check.done()
        if not call.env.allow_delete_namespace:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DELETE_NAMESPACE_NOT_ALLOWED,
                "the server was started without --allow-delete-namespace",
            )
        await call.env.namespaces.delete_namespace(request.name, force=request.force)
        admin.stir_emptied(request.name, call.env.waiters)
        return pb.DeleteNamespaceResponse()

    async def SetRetentionPolicy(
        self, request: pb.SetRetentionPolicyRequest, call: Call
    ) -> pb.SetRetentionPolicyResponse:
        """Replace the retention policy."""
        call.check.retention_policy(request.policy)
        call.check.done()
        await retention.set_retention_policy(call.store, request.policy)
        return pb.SetRetentionPolicyResponse()

    async def GetRetentionPolicy(
        self, request: pb.GetRetentionPolicyRequest, call: Call
    ) -> pb.GetRetentionPolicyResponse:
        """Return the retention policy and what it has done."""
        return await retention.get_retention_policy(call.store)

    async def RunRetention(
        self, request: pb.RunRetentionRequest, call: Call
    ) -> pb.RunRetentionResponse:
        """Have the retention policy applied now, or count what it lets go."""
        max_rows = call.check.purged_rows(request.max_rows)
        call.check.done()
        if request.dry_run:
            counts = await retention.count_expired(call.store, max_rows)
            return pb.RunRetentionResponse(counts=counts)
        await retention.run_retention(call.store)
        call.env.retention.run_soon(call.store)
        return pb.RunRetentionResponse()

    async def GetStorageReport(
        self, request: pb.GetStorageReportRequest, call: Call
    ) -> pb.GetStorageReportResponse:
        """Return how much space the tables take."""
        max_rows = call.check.purged_rows(request.max_rows)
        call.check.done()
        return await storage.get_storage_report(call.store, max_rows)


def _prepare_errors(request: pb.PersistErrorsRequest, check: Check) -> None:
    check.each("errors", request.errors, check.error)
    check.done()
    check.fits(read_back.errors(request.errors))
