"""A client of the workflow persistence server: the WFE engine's persistence provider.

    from wfe_persistence_client import WorkflowInstance, connect

    async with connect("localhost:50052") as provider:
        workflow_id = await provider.create_new_workflow(
            WorkflowInstance(workflow_definition_id="order", version=1, data={"paid": False})
        )

`connect_blocking` is the same for code without an event loop.

**One step, one transaction.** All effects of an engine's step are stored together, or
not at all if the block raises:

    workflow = await provider.get_workflow_instance(workflow_id)
    async with provider.step(workflow, strict=True) as step:
        workflow.execution_pointers[-1].status = PointerStatus.COMPLETE
        step.hold(claimed_command)  # only if the claim is still held
        step.create_event(Event(event_name="order.paid", event_key=workflow_id, event_data={}))
        step.log_error(ExecutionError(workflow_id=workflow_id, message="second try"))
        step.complete(claimed_command)

**Only changes are sent.** A provider remembers digests of the workflows that it loaded
or wrote most recently (`connect(remember=...)`) and sends a patch if that is smaller
than the full state: the cost of changing one pointer does not depend on how many there
are. The stored state is always exactly the given one.

**Concurrent writers.** By default the last writer wins. With `strict=True`, for a
provider or for one call, a write replaces only the revision with which the object was
loaded or last written (`WorkflowInstance.revision`, which every write updates);
otherwise it raises `RevisionMismatch`: load the workflow again, reapply the change, and
write again.

**Views.** A workflow loaded with `view=WorkflowView.ACTIVE` or `HEADER` is changed and
stored like any other; the part that was not loaded stays unchanged. It is never stored
in full, and never overwrites what another writer wrote in the meantime
(`RevisionMismatch`, `PartialWorkflow`).

**Newer and older software.** A patch leaves what newer software has stored in fields
that this client does not know as it is, also in the pointers that it changes. Where the
full state has to be sent, such fields are erased: if the provider does not remember the
workflow (`remember=0`), if another writer has written since it was loaded and the last
writer wins, if pointers were reordered, and by `commit_workflow` with an instance. So in
a fleet of mixed versions, load workflows before you change them, and use `strict=True`.
A status that this client does not know raises `MalformedAnswer`. A server that is older
than this client does not store the fields that it does not know, and rejects a patch of
one in the header: upgrade servers first.

**Lost responses.** Writes of workflows carry an idempotency key, so they are retried
after a broken connection and still applied once. A write that raises
`CommitOutcomeUnknown` may or may not have been applied.

**Outages.** While there is no connection, a call waits for one until its timeout; the
error then names the target and the cause. Retries and reconnects are logged at level
DEBUG by the logger `wfe_persistence_client`.

**Processes.** A provider belongs to the process and the event loop that created it, and
raises RuntimeError in any other. Where processes are forked (gunicorn and uvicorn
workers, Celery, `multiprocessing`), connect in each of them, after the fork. A parent that
uses gRPC before it forks must close its providers first: gRPC cannot be used in the
child of a process that was using it, and `connect` raises RuntimeError there. Processes
that `multiprocessing` starts with "spawn" or "forkserver" are not affected.
`docs/python.md` has the recipes.

**TLS and tokens.** `connect("store:50052", tls=Tls(ca="ca.pem"), token_file="token")`
connects with TLS and sends a token, which is read from the file again for each call.
`Tls(ca=…, cert=…, key=…)` also has a client certificate. `docs/python.md` has more.

**Reused ids.** A patch applies to a revision, and a revision of an id never comes
again, even if the workflow is deleted and another one created with the same id: a write
never mixes the two. There are two exceptions. A database that is restored to an earlier
state, and a namespace that is deleted and created again, use revisions again: restart
the hosts then, or connect with `remember=0`.
"""

from importlib.metadata import version
from typing import Final

from wfe_persistence_client.blocking import BlockingPersistenceProvider, connect_blocking
from wfe_persistence_client.blocking_parts import (
    BlockingHeldLock,
    BlockingStep,
    BlockingWork,
    BlockingWorker,
)
from wfe_persistence_client.bulk import BulkResult
from wfe_persistence_client.calls import RetryPolicy
from wfe_persistence_client.credentials import Tls
from wfe_persistence_client.errors import (
    AdministrationBusy,
    AlreadyExists,
    CallerLimited,
    CommitOutcomeUnknown,
    CreateNamespaceNotAllowed,
    CursorExpired,
    DatabaseFull,
    DatabaseNotFound,
    DatabasePermissionDenied,
    DeadlineExceeded,
    DeleteNamespaceNotAllowed,
    EventAlreadyExists,
    EventNotFound,
    FailedPrecondition,
    InvalidArgument,
    LeaseLost,
    LockHeld,
    MalformedAnswer,
    MembersDiffer,
    MoveInProgress,
    MoveNotPossible,
    NamespaceBusy,
    NamespaceFull,
    NamespaceInOtherDatabase,
    NamespaceInSet,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NamespaceSetExists,
    NamespaceSetIncomplete,
    NamespaceSetNotFound,
    NameTaken,
    NotFound,
    NotOverASet,
    PartialWorkflow,
    PermissionDenied,
    PersistenceError,
    PointerNotFound,
    PoolExhausted,
    ReaderTooSlow,
    RecordConflict,
    RequestIdReused,
    ResourceExhausted,
    RevisionMismatch,
    SchemaOutdated,
    SchemaTooNew,
    ServerError,
    StoreNotOwned,
    SubscriptionAlreadyExists,
    SubscriptionNotFound,
    TokenMismatch,
    TooLarge,
    TooManyCalls,
    TooManyNamespaces,
    TransactionConflict,
    TruncateNotAllowed,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WorkflowAlreadyExists,
    WorkflowNotFound,
)
from wfe_persistence_client.json_text import JSON, LEFT_OUT, LeftOut
from wfe_persistence_client.lock import HeldLock
from wfe_persistence_client.model import (
    ABSENT,
    Absent,
    Acknowledgement,
    AcquiredLock,
    Capabilities,
    ClaimedCommand,
    CommandLease,
    CommandName,
    CommittedWorkflow,
    Database,
    Dequeued,
    DequeuedItem,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    HeaderChanges,
    ImportCounts,
    LifecycleEvent,
    LifecycleEventType,
    ListedCommand,
    ListedQueueItem,
    ListOrder,
    Lock,
    MigratedStore,
    MovePhase,
    MoveWay,
    NameHolder,
    Namespace,
    NamespaceMove,
    NamespaceSet,
    PersistedWorkflow,
    PointerStatus,
    PurgedWorkflows,
    QueueItem,
    QueueItemLease,
    QueueItemState,
    QueueKind,
    QueueStats,
    RecordKind,
    RetentionCounts,
    RetentionPolicy,
    RetentionState,
    ReturnedItem,
    ScheduledCommand,
    StorageReport,
    StoreInfo,
    SubscriptionClaim,
    TableStorage,
    WorkflowChange,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowRetention,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider, connect
from wfe_persistence_client.sets.provider import NamespaceSetProvider
from wfe_persistence_client.step import Step
from wfe_persistence_client.worker import Work, Worker, WorkerHooks

__version__: Final = version("wfe-persistence")

__all__ = [
    "ABSENT",
    "JSON",
    "LEFT_OUT",
    "Absent",
    "Acknowledgement",
    "AcquiredLock",
    "AdministrationBusy",
    "AlreadyExists",
    "BlockingHeldLock",
    "BlockingPersistenceProvider",
    "BlockingStep",
    "BlockingWork",
    "BlockingWorker",
    "BulkResult",
    "CallerLimited",
    "Capabilities",
    "ClaimedCommand",
    "CommandLease",
    "CommandName",
    "CommitOutcomeUnknown",
    "CommittedWorkflow",
    "CreateNamespaceNotAllowed",
    "CursorExpired",
    "Database",
    "DatabaseFull",
    "DatabaseNotFound",
    "DatabasePermissionDenied",
    "DeadlineExceeded",
    "DeleteNamespaceNotAllowed",
    "Dequeued",
    "DequeuedItem",
    "Event",
    "EventAlreadyExists",
    "EventNotFound",
    "EventSubscription",
    "ExecutionError",
    "ExecutionPointer",
    "FailedPrecondition",
    "HeaderChanges",
    "HeldLock",
    "ImportCounts",
    "InvalidArgument",
    "LeaseLost",
    "LeftOut",
    "LifecycleEvent",
    "LifecycleEventType",
    "ListOrder",
    "ListedCommand",
    "ListedQueueItem",
    "Lock",
    "LockHeld",
    "MalformedAnswer",
    "MembersDiffer",
    "MigratedStore",
    "MoveInProgress",
    "MoveNotPossible",
    "MovePhase",
    "MoveWay",
    "NameHolder",
    "NameTaken",
    "Namespace",
    "NamespaceBusy",
    "NamespaceFull",
    "NamespaceInOtherDatabase",
    "NamespaceInSet",
    "NamespaceMove",
    "NamespaceNotEmpty",
    "NamespaceNotFound",
    "NamespaceSet",
    "NamespaceSetExists",
    "NamespaceSetIncomplete",
    "NamespaceSetNotFound",
    "NamespaceSetProvider",
    "NotFound",
    "NotOverASet",
    "PartialWorkflow",
    "PermissionDenied",
    "PersistedWorkflow",
    "PersistenceError",
    "PersistenceProvider",
    "PointerNotFound",
    "PointerStatus",
    "PoolExhausted",
    "PurgedWorkflows",
    "QueueItem",
    "QueueItemLease",
    "QueueItemState",
    "QueueKind",
    "QueueStats",
    "ReaderTooSlow",
    "RecordConflict",
    "RecordKind",
    "RequestIdReused",
    "ResourceExhausted",
    "RetentionCounts",
    "RetentionPolicy",
    "RetentionState",
    "RetryPolicy",
    "ReturnedItem",
    "RevisionMismatch",
    "ScheduledCommand",
    "SchemaOutdated",
    "SchemaTooNew",
    "ServerError",
    "Step",
    "StorageReport",
    "StoreInfo",
    "StoreNotOwned",
    "SubscriptionAlreadyExists",
    "SubscriptionClaim",
    "SubscriptionNotFound",
    "TableStorage",
    "Tls",
    "TokenMismatch",
    "TooLarge",
    "TooManyCalls",
    "TooManyNamespaces",
    "TransactionConflict",
    "TruncateNotAllowed",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "Work",
    "Worker",
    "WorkerHooks",
    "WorkflowAlreadyExists",
    "WorkflowChange",
    "WorkflowFilter",
    "WorkflowInstance",
    "WorkflowNotFound",
    "WorkflowPatch",
    "WorkflowRetention",
    "WorkflowStatus",
    "WorkflowView",
    "connect",
    "connect_blocking",
]
