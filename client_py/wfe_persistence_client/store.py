"""Operations on the store as a whole: the error log, the schema, namespaces."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

from wfe.persistence.v1 import store_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE, Connection
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import (
    Database,
    ExecutionError,
    MigratedStore,
    MoveWay,
    Namespace,
    NamespaceMove,
    NamespaceSet,
    StoreInfo,
)


class Store(Connection):
    """The operations on the store as a whole, and on its namespaces."""

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        """Adds errors to the log, all or none; the workflows need not exist.

        Not retried after an attempt that may have been applied: it then raises
        `CommitOutcomeUnknown`, and calling it again may log the errors twice.
        """
        await self._calls.unary(
            self._store.PersistErrors,
            store_pb2.PersistErrorsRequest(errors=convert.errors_to_proto(errors)),
        )

    async def list_errors(
        self,
        workflow_id: str = "",
        *,
        error_time_from: datetime | None = None,
        error_time_before: datetime | None = None,
    ) -> list[ExecutionError]:
        """Returns all logged errors, most recently logged first.

        Args:
            workflow_id: only of this workflow; empty: any.
            error_time_from: only those that occurred at or after this time; None: no
                lower bound.
            error_time_before: only those that occurred before this time; None: no upper
                bound.
        """
        pages = self._in_one_go().iter_errors(
            workflow_id,
            error_time_from=error_time_from,
            error_time_before=error_time_before,
            page_size=LARGEST_PAGE,
        )
        return [error async for error in pages]

    def iter_errors(
        self,
        workflow_id: str = "",
        *,
        error_time_from: datetime | None = None,
        error_time_before: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ExecutionError]:
        """`list_errors` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._store.ListErrors,
            build(
                store_pb2.ListErrorsRequest,
                workflow_id=workflow_id,
                error_time_from=convert.optional_timestamp("error_time_from", error_time_from),
                error_time_before=convert.optional_timestamp(
                    "error_time_before", error_time_before
                ),
                page_size=page_size,
            ),
            lambda page: map(convert.error_from_proto, page.errors),
        )

    async def ensure_store_exists(self) -> MigratedStore:
        """Creates the store or migrates it to the server's schema version.

        Raises:
            SchemaTooNew: a newer server migrated it.
            DatabasePermissionDenied: the server's database role lacks the privilege.
        """
        response = await self._calls.unary(
            self._store.EnsureStoreExists, store_pb2.EnsureStoreExistsRequest()
        )
        return MigratedStore(
            schema_version=response.schema_version,
            applied_migrations=list(response.applied_migrations),
        )

    async def get_store_info(self) -> StoreInfo:
        """Returns the versions, limits and capabilities of the server and its store."""
        response = await self._calls.unary(
            self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest()
        )
        return convert.store_info_from_proto(response)

    async def truncate_all(self) -> None:
        """Truncates every table of the store, for tests.

        Raises:
            TruncateNotAllowed: the server was started without the flag for it.
        """
        # Also if the call fails: it may have been applied.
        self._shared.memory.forget_namespace(self._space)
        await self._calls.unary(self._store.TruncateAll, store_pb2.TruncateAllRequest())

    async def create_namespace(
        self,
        name: str,
        *,
        database: str = "",
        database_labels: Sequence[str] = (),
    ) -> MigratedStore:
        """Creates a namespace, or migrates it.

        Args:
            name: `[a-z][a-z0-9_]{0,39}`, not `default`.
            database: The name of the database in which it is to live. Empty: the server chooses
                the one with the fewest bytes.
            database_labels: Labels that the database must have, each as `KEY=VALUE`.

        Raises:
            InvalidArgument: the name is invalid, or that of the database, or a label.
            DatabaseNotFound: there is no such database.
            NamespaceInOtherDatabase: it exists, in another database.
            CreateNamespaceNotAllowed: the server was started without the flag for it.
            StoreNotOwned: its schema contains the store of other servers.
            TooManyNamespaces: there are as many as the server allows.
            SchemaTooNew: it exists, and a newer server migrated it.
            DatabasePermissionDenied: the server's database role lacks the privilege.
        """
        whole = self.with_namespace(None)
        response = await whole._calls.unary(
            whole._store.CreateNamespace,
            build(
                store_pb2.CreateNamespaceRequest,
                name=name,
                database=database,
                database_labels=database_labels,
            ),
        )
        return MigratedStore(
            schema_version=response.schema_version,
            applied_migrations=list(response.applied_migrations),
            database=response.database,
        )

    async def list_namespaces(self) -> list[Namespace]:
        """Returns all namespaces of the server, `default` first."""
        whole = self.with_namespace(None)
        pages = whole._calls.pages(
            whole._store.ListNamespaces,
            store_pb2.ListNamespacesRequest(),
            lambda page: map(convert.namespace_from_proto, page.namespaces),
            whole._calls.deadline(),
        )
        return [namespace async for namespace in pages]

    async def list_databases(self) -> list[Database]:
        """Returns the databases in which namespaces live, `home` first.

        A server that is older than this knows only one, and raises Unimplemented.
        """
        whole = self.with_namespace(None)
        response = await whole._calls.unary(
            whole._store.ListDatabases, store_pb2.ListDatabasesRequest()
        )
        return [convert.database_from_proto(each) for each in response.databases]

    async def delete_namespace(self, name: str, *, force: bool = False) -> None:
        """Deletes a namespace and everything in it.

        Args:
            name: not `default`.
            force: delete it even if it is not empty.

        Raises:
            NamespaceNotFound: it does not exist, or belongs to other servers.
            NamespaceInSet: it is a member of a set, which can only be deleted as a whole.
            StoreNotOwned: it is older than the record of its owner; `create_namespace`
                claims it.
            NamespaceNotEmpty: it is not empty, and `force` is false.
            DeleteNamespaceNotAllowed: the server was started without the flag for it.
        """
        whole = self.with_namespace(None)
        self._shared.memory.forget_namespace(name)
        await whole._calls.unary(
            whole._store.DeleteNamespace,
            build(store_pb2.DeleteNamespaceRequest, name=name, force=force),
        )

    async def create_namespace_set(
        self, name: str, members: int, *, databases: Iterable[str] = ()
    ) -> NamespaceSet:
        """Creates a namespace set, or finishes a creation that was interrupted.

        A set is one store that is spread over a fixed number of namespaces; see
        `connect(..., namespace_set=...)`. To create a member takes about as long as
        `create_namespace`: with many of them, use a longer timeout, or call it again.

        Args:
            name: `[a-z][a-z0-9_]{0,35}`.
            members: how many, for ever: 1 to 256.
            databases: the names of those over which the members are spread, in turn; none:
                all that take new namespaces.

        Raises:
            NamespaceSetExists: it exists with another number of members.
            NamespaceNotEmpty: a member existed before, with data.
            NamespaceSetIncomplete: it is being deleted.
            DatabaseNotFound: the service has no such database.
            CreateNamespaceNotAllowed, StoreNotOwned, TooManyNamespaces, SchemaTooNew,
            DatabasePermissionDenied: as for `create_namespace`.
        """
        whole = self.with_namespace(None)
        response = await whole._calls.unary(
            whole._store.CreateNamespaceSet,
            build(
                store_pb2.CreateNamespaceSetRequest,
                name=name,
                members=members,
                databases=databases,
            ),
        )
        return convert.namespace_set_from_proto(response.namespace_set)

    async def get_namespace_set(self, name: str) -> NamespaceSet:
        """Returns a namespace set.

        Args:
            name: its name.

        Raises:
            NamespaceSetNotFound: it does not exist.
            NamespaceSetIncomplete: its creation or deletion has not been finished.
        """
        whole = self.with_namespace(None)
        response = await whole._calls.unary(
            whole._store.GetNamespaceSet, build(store_pb2.GetNamespaceSetRequest, name=name)
        )
        return convert.namespace_set_from_proto(response.namespace_set)

    async def delete_namespace_set(self, name: str, *, force: bool = False) -> None:
        """Deletes a namespace set and all its members, or finishes that.

        Args:
            name: its name.
            force: delete it even if members are not empty.

        Raises:
            NamespaceSetNotFound: it does not exist.
            NamespaceNotEmpty: a member is not empty, and `force` is false.
            DeleteNamespaceNotAllowed: the server was started without the flag for it.
        """
        whole = self.with_namespace(None)
        await whole._calls.unary(
            whole._store.DeleteNamespaceSet,
            build(store_pb2.DeleteNamespaceSetRequest, name=name, force=force),
        )

    def move_namespace(
        self, name: str, database: str, *, way: MoveWay | None = None, dry_run: bool = False
    ) -> AsyncIterator[NamespaceMove]:
        """Moves a namespace to another database of the service while it is used, and says
        about twice a second how far it is; the last of it has the phase MOVED.

        When the connection breaks, it goes on, on any server; `timeout` applies to each
        resumption. If the iterator is closed before its end, the move stays where it is, for
        the next call.

        Args:
            name: not `default`.
            database: the name of the database; where it is already, nothing is done.
            way: how; None: by logical replication where that is possible, else by a copy.
            dry_run: only say what it would be like.

        Raises:
            NamespaceNotFound: it does not exist, or belongs to other servers.
            MoveNotPossible: something is missing; the message says what.
            MoveInProgress: it is being moved somewhere else, or its move is being aborted.
        """
        whole = self.with_namespace(None)
        request = build(
            store_pb2.MoveNamespaceRequest,
            name=name,
            database=database,
            way=store_pb2.MoveWay.ValueType(0 if way is None else way.value),
            dry_run=dry_run,
        )
        return whole._moved(request)

    async def _moved(self, request: store_pb2.MoveNamespaceRequest) -> AsyncIterator[NamespaceMove]:
        silence = timedelta(seconds=10)
        responses = self._calls.watch(self._store.MoveNamespace, request, silence, ends=True)
        async with aclosing(responses):
            async for response in responses:
                yield convert.move_from_proto(response)

    async def abort_move_namespace(self, name: str) -> bool:
        """Gives up a move of a namespace; whether it was being moved.

        Args:
            name: not `default`.

        Raises:
            MoveInProgress: it is in use in its new database already: move it back.
        """
        whole = self.with_namespace(None)
        response = await whole._calls.unary(
            whole._store.AbortMoveNamespace,
            build(store_pb2.AbortMoveNamespaceRequest, name=name),
        )
        return response.aborted
