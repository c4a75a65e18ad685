"""StoreService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.store_pb2 import (
    Capabilities,
    CreateNamespaceRequest,
    CreateNamespaceResponse,
    DeleteNamespaceRequest,
    DeleteNamespaceResponse,
    EnsureStoreExistsRequest,
    EnsureStoreExistsResponse,
    ExecutionError,
    GetStoreInfoRequest,
    GetStoreInfoResponse,
    ListErrorsRequest,
    ListErrorsResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    PersistErrorsRequest,
    PersistErrorsResponse,
    TruncateAllRequest,
    TruncateAllResponse,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.store import admin, commit, error_log, migrate, namespace
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.paging import END, START
from wfe_persistence.store.tables import Store


class StoreService:
    """The store as a whole, and the error log.

    `ensure` brings a store up to date and answers the names of the migrations it applied.
    """

    def __init__(
        self,
        *,
        server_version: str,
        namespaces: Namespaces,
        allow_truncate: bool,
        allow_delete_namespace: bool,
        ensure: Callable[[Store], Awaitable[list[str]]],
    ) -> None:
        self._server_version = server_version
        self._namespaces = namespaces
        self._allow_truncate = allow_truncate
        self._allow_delete_namespace = allow_delete_namespace
        self._ensure = ensure

    async def EnsureStoreExists(
        self, request: EnsureStoreExistsRequest, call: Call
    ) -> EnsureStoreExistsResponse:
        """Create the store or bring it up to date."""
        applied = await self._ensure(call.store)
        return EnsureStoreExistsResponse(
            schema_version=migrate.latest_version(), applied_migrations=applied
        )

    async def PersistErrors(
        self, request: PersistErrorsRequest, call: Call
    ) -> PersistErrorsResponse:
        """Log errors."""
        check = call.check
        for i, error in enumerate(request.errors):
            check.error(error, f"errors[{i}]")
        check.done()
        check.fits(call.size, call.max_message_bytes, lambda: map(page_of_one, request.errors))
        await error_log.persist_errors(call.store, request.errors)
        return PersistErrorsResponse()

    async def ListErrors(self, request: ListErrorsRequest, call: Call) -> ListErrorsResponse:
        """Answer logged errors."""
        check = call.check
        check.id("", "workflow_id", request.workflow_id, required=False)
        check.times(request, "", "error_time_from", "error_time_before")
        page_size = check.page_size(request.page_size)
        check.done()
        page = await error_log.list_errors(
            call.store,
            request,
            paging.decode(request, call.store, request.page_token, END),
            page_size,
            paging.page_bytes(call.max_message_bytes),
        )
        return ListErrorsResponse(
            errors=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetStoreInfo(self, request: GetStoreInfoRequest, call: Call) -> GetStoreInfoResponse:
        """Answer what this server and its store are."""
        database = await admin.database_info(call.store)
        return GetStoreInfoResponse(
            server_version=self._server_version,
            postgres_version=database.version,
            namespace=call.store.namespace,
            schema=call.store.schema.name,
            schema_version=await migrate.schema_version(call.store),
            latest_schema_version=migrate.latest_version(),
            capabilities=Capabilities(
                scheduled_commands=True,
                truncate_all=self._allow_truncate,
                delete_namespace=self._allow_delete_namespace,
            ),
            max_message_bytes=call.max_message_bytes,
            request_retention=Duration(seconds=commit.REQUEST_RETENTION_SECONDS),
        )

    async def TruncateAll(self, request: TruncateAllRequest, call: Call) -> TruncateAllResponse:
        """Empty the store."""
        if not self._allow_truncate:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_TRUNCATE_NOT_ALLOWED,
                "the server was started without --allow-truncate",
            )
        await admin.truncate_all(call.store)
        return TruncateAllResponse()

    async def CreateNamespace(
        self, request: CreateNamespaceRequest, call: Call
    ) -> CreateNamespaceResponse:
        """Create a namespace or bring it up to date."""
        check = call.check
        check.namespace("name", request.name)
        check.done()
        applied = await self._namespaces.create_namespace(request.name)
        return CreateNamespaceResponse(
            schema_version=migrate.latest_version(), applied_migrations=applied
        )

    async def ListNamespaces(
        self, request: ListNamespacesRequest, call: Call
    ) -> ListNamespacesResponse:
        """Answer the namespaces."""
        check = call.check
        page_size = check.page_size(request.page_size)
        check.done()
        page = await namespace.list_namespaces(
            self._namespaces.default,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
        )
        return ListNamespacesResponse(
            namespaces=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def DeleteNamespace(
        self, request: DeleteNamespaceRequest, call: Call
    ) -> DeleteNamespaceResponse:
        """Delete a namespace with all that is in it."""
        check = call.check
        check.namespace("name", request.name)
        check.done()
        if not self._allow_delete_namespace:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DELETE_NAMESPACE_NOT_ALLOWED,
                "the server was started without --allow-delete-namespace",
            )
        await self._namespaces.delete_namespace(request.name, force=request.force)
        return DeleteNamespaceResponse()


def page_of_one(error: ExecutionError) -> ListErrorsResponse:
    """The largest answer in which an error must fit: a page of its own, with more to come."""
    return ListErrorsResponse(errors=[error], next_page_token="x" * paging.MAX_TOKEN_BYTES)
