"""The WFE engine's persistence provider, kept by a workflow persistence server.

    from wfe_persistence_client import WorkflowInstance, connect

    async with connect("localhost:50051") as provider:
        workflow_id = await provider.create_new_workflow(
            WorkflowInstance(workflow_definition_id="order", version=1, data={"paid": False})
        )

`connect_blocking` is the same for code without an event loop.

**One step, one transaction.** What a step of an engine brings about is stored together,
or not at all if the block raises:

    workflow = await provider.get_workflow_instance(workflow_id)
    async with provider.step(workflow, strict=True) as step:
        workflow.execution_pointers[-1].status = PointerStatus.COMPLETE
        step.hold(claimed_command)  # only if nobody else has taken it over
        step.create_event(Event(event_name="order.paid", event_key=workflow_id, event_data={}))
        step.log_error(ExecutionError(workflow_id=workflow_id, message="second try"))
        step.complete(claimed_command)

**Only what changed is sent.** A provider remembers digests of the workflows that it
loaded or wrote last (`connect(remember=...)`) and writes a change where that is less than
the whole: one pointer of a thousand costs what one pointer costs. What is stored is
always exactly what was given.

**Who wins.** By default the last writer does, whole. With `strict=True`, for a provider
or for one call, an object replaces only the revision that it was loaded or last written
with (`WorkflowInstance.revision`, which a write brings up to date); otherwise the write
raises `RevisionMismatch`: load, decide, write again.

**Parts.** A workflow loaded with `view=WorkflowView.ACTIVE` or `HEADER` is changed and
stored like any other; what was not loaded stays as it is. It is never stored as a whole,
and never over what somebody else wrote meanwhile (`RevisionMismatch`, `PartialWorkflow`).

**Lost answers.** Writes of workflows carry an id by which the server knows them again, so
they are tried again after a broken connection and still made once. What is raised as
`CommitOutcomeUnknown` may or may not have been made.

**Ids that are used again.** A change is made against a revision, and a workflow deleted
by somebody else and created anew under the same id starts over with 1. The provider
tells them apart by `create_time`. A database put back to an earlier state uses revisions
again that were given out before: start the hosts anew then, or connect with `remember=0`.
"""

from wfe_persistence_client.blocking import (
    BlockingPersistenceProvider,
    BlockingStep,
    connect_blocking,
)
from wfe_persistence_client.calls import RetryPolicy
from wfe_persistence_client.errors import (
    AlreadyExists,
    CommitOutcomeUnknown,
    DatabaseFull,
    DatabasePermissionDenied,
    DeadlineExceeded,
    DeleteNamespaceNotAllowed,
    EventAlreadyExists,
    EventNotFound,
    FailedPrecondition,
    InvalidArgument,
    LeaseLost,
    MalformedAnswer,
    NamespaceBusy,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NameTaken,
    NotFound,
    PartialWorkflow,
    PermissionDenied,
    PersistenceError,
    PointerNotFound,
    PoolExhausted,
    RequestIdReused,
    ResourceExhausted,
    RevisionMismatch,
    SchemaOutdated,
    SchemaTooNew,
    ServerError,
    SubscriptionAlreadyExists,
    SubscriptionNotFound,
    TokenMismatch,
    TooLarge,
    TransactionConflict,
    TruncateNotAllowed,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WorkflowAlreadyExists,
    WorkflowNotFound,
)
from wfe_persistence_client.json_text import JSON
from wfe_persistence_client.model import (
    ABSENT,
    Absent,
    Capabilities,
    ClaimedCommand,
    CommandName,
    CommittedWorkflow,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    HeaderChanges,
    ListOrder,
    MigratedStore,
    Namespace,
    PersistedWorkflow,
    PointerStatus,
    PurgedWorkflows,
    ScheduledCommand,
    StoreInfo,
    SubscriptionClaim,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider, connect
from wfe_persistence_client.step import Step

__all__ = [
    "ABSENT",
    "JSON",
    "Absent",
    "AlreadyExists",
    "BlockingPersistenceProvider",
    "BlockingStep",
    "Capabilities",
    "ClaimedCommand",
    "CommandName",
    "CommitOutcomeUnknown",
    "CommittedWorkflow",
    "DatabaseFull",
    "DatabasePermissionDenied",
    "DeadlineExceeded",
    "DeleteNamespaceNotAllowed",
    "Event",
    "EventAlreadyExists",
    "EventNotFound",
    "EventSubscription",
    "ExecutionError",
    "ExecutionPointer",
    "FailedPrecondition",
    "HeaderChanges",
    "InvalidArgument",
    "LeaseLost",
    "ListOrder",
    "MalformedAnswer",
    "MigratedStore",
    "NameTaken",
    "Namespace",
    "NamespaceBusy",
    "NamespaceNotEmpty",
    "NamespaceNotFound",
    "NotFound",
    "PartialWorkflow",
    "PermissionDenied",
    "PersistedWorkflow",
    "PersistenceError",
    "PersistenceProvider",
    "PointerNotFound",
    "PointerStatus",
    "PoolExhausted",
    "PurgedWorkflows",
    "RequestIdReused",
    "ResourceExhausted",
    "RetryPolicy",
    "RevisionMismatch",
    "ScheduledCommand",
    "SchemaOutdated",
    "SchemaTooNew",
    "ServerError",
    "Step",
    "StoreInfo",
    "SubscriptionAlreadyExists",
    "SubscriptionClaim",
    "SubscriptionNotFound",
    "TokenMismatch",
    "TooLarge",
    "TransactionConflict",
    "TruncateNotAllowed",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "WorkflowAlreadyExists",
    "WorkflowFilter",
    "WorkflowInstance",
    "WorkflowNotFound",
    "WorkflowPatch",
    "WorkflowStatus",
    "WorkflowView",
    "connect",
    "connect_blocking",
]
