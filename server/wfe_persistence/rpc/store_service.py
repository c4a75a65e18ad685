"""StoreService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import offload
from wfe_persistence.access.role import Role
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import moves, paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, read_back
from wfe_persistence.rpc.guard import require
from wfe_persistence.store import (
    admin,
    database_list,
    error_log,
    migration_files,
    migration_history,
    namespace_list,
    namespace_set,
    readiness,
    retention,
    storage,
)
from wfe_persistence.store.request_key import REQUEST_RETENTION_SECONDS
from wfe_persistence.store.schema import MAX_MEMBERS


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
        _check_may_create(call)
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

    async def ListDatabases(
        self, request: pb.ListDatabasesRequest, call: Call
    ) -> pb.ListDatabasesResponse:
        """Return the databases."""
        call.check.done()
        databases = await database_list.list_databases(call.env.namespaces)
        return pb.ListDatabasesResponse(databases=databases)

    async def DeleteNamespace(
        self, request: pb.DeleteNamespaceRequest, call: Call
    ) -> pb.DeleteNamespaceResponse:
        """Delete a namespace with all its contents."""
        check = call.check
        check.namespace("name", request.name)
        check.done()
        _check_may_delete(call)
        await namespace_set.check_in_no_set(call.env.namespaces.default, request.name)
        await call.env.namespaces.delete_namespace(request.name, force=request.force)
        admin.stir_emptied(request.name, call.env.waiters)
        return pb.DeleteNamespaceResponse()

    async def CreateNamespaceSet(
        self, request: pb.CreateNamespaceSetRequest, call: Call
    ) -> pb.CreateNamespaceSetResponse:
        """Create a namespace set or finish its creation."""
        check = call.check
        check.namespace_set("name", request.name)
        check.members("members", request.members)
        if check.at_most("", "databases", request.databases, MAX_MEMBERS):
            for i, database in enumerate(request.databases):
                check.database(f"databases[{i}]", database, required=True)
        check.done()
        _check_may_create(call)
        _require_in_each(
            call, Role.OPERATOR, namespace_set.members_of(request.name, request.members)
        )
        made = await namespace_set.create_namespace_set(
            call.env.namespaces, request.name, request.members, request.databases
        )
        return pb.CreateNamespaceSetResponse(namespace_set=_set(made))

    async def GetNamespaceSet(
        self, request: pb.GetNamespaceSetRequest, call: Call
    ) -> pb.GetNamespaceSetResponse:
        """Return a namespace set."""
        call.check.namespace_set("name", request.name)
        call.check.done()
        found = await namespace_set.get_namespace_set(call.env.namespaces.default, request.name)
        _require_in_each(call, Role.READER, found.members)
        return pb.GetNamespaceSetResponse(namespace_set=_set(found))

    async def DeleteNamespaceSet(
        self, request: pb.DeleteNamespaceSetRequest, call: Call
    ) -> pb.DeleteNamespaceSetResponse:
        """Delete a namespace set with its members."""
        call.check.namespace_set("name", request.name)
        call.check.done()
        _check_may_delete(call)
        namespaces = call.env.namespaces
        found = await namespace_set.read_set(namespaces.default, request.name)
        if found is not None:
            _require_in_each(call, Role.OPERATOR, found.members)
        deleted = await namespace_set.delete_namespace_set(
            namespaces, request.name, force=request.force
        )
        for member in deleted:
            admin.stir_emptied(member, call.env.waiters)
        return pb.DeleteNamespaceSetResponse()

    async def MoveNamespace(
        self, request: pb.MoveNamespaceRequest, call: Call
    ) -> AsyncIterator[Iterable[pb.MoveNamespaceResponse]]:
        """Move a namespace to another database."""
        way = moves.check_move(request, call.check)
        async with aclosing(moves.move(call.env.mover, request, way)) as moving:
            async for response in moving:
                yield [response]

    async def AbortMoveNamespace(
        self, request: pb.AbortMoveNamespaceRequest, call: Call
    ) -> pb.AbortMoveNamespaceResponse:
        """Give up a move."""
        check = call.check
        check.namespace("name", request.name)
        check.done()
        return pb.AbortMoveNamespaceResponse(aborted=await call.env.mover.abort(request.name))

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


def _check_may_create(call: Call) -> None:
    if not call.env.allow_create_namespace:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_CREATE_NAMESPACE_NOT_ALLOWED,
            "the server was started without --allow-create-namespace, which is the default "
            "only where it listens on loopback",
        )


def _check_may_delete(call: Call) -> None:
    if not call.env.allow_delete_namespace:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_DELETE_NAMESPACE_NOT_ALLOWED,
            "the server was started without --allow-delete-namespace",
        )


def _require_in_each(call: Call, role: Role, members: Iterable[str]) -> None:
    for member in members:
        require(call.caller, role, member, "a namespace set with this member")


def _set(of: namespace_set.NamespaceSet) -> pb.NamespaceSet:
    return pb.NamespaceSet(name=of.name, members=of.members)


def _prepare_errors(request: pb.PersistErrorsRequest, check: Check) -> None:
    check.each("errors", request.errors, check.error)
    check.done()
    check.fits(read_back.errors(request.errors))
