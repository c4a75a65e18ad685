//! The RPCs of the API, and which of them may be retried.

use crate::v1::ErrorReason;

/// Whether a call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Writes nothing.
    Read,
    /// Idempotent: repeating the call has the effect of making it once.
    Repeatable,
    /// May be repeated only if no earlier attempt can have taken effect.
    Unrepeatable,
}

/// Every RPC, by its name in the protos, including those that only a host's own stubs
/// call: the table is complete, and a test compares it with the protos.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    CreateNewWorkflow,
    CreateWorkflows,
    PersistWorkflow,
    PersistWorkflowWithSubscriptions,
    GetWorkflowInstance,
    GetWorkflowInstanceByName,
    GetWorkflowInstances,
    GetRunnableInstances,
    SetNameHolder,
    GetNameHolder,
    NextDefinitionSequence,
    CreateEvent,
    CreateEvents,
    GetEvent,
    GetRunnableEvents,
    GetEvents,
    MarkEventProcessed,
    MarkEventUnprocessed,
    CreateEventSubscription,
    GetSubscription,
    GetSubscriptions,
    GetFirstOpenSubscription,
    TerminateSubscription,
    SetSubscriptionToken,
    ClearSubscriptionToken,
    ScheduleCommand,
    ClaimCommands,
    CompleteCommands,
    ReleaseCommands,
    EnsureStoreExists,
    PersistErrors,
    ListErrors,
    GetStoreInfo,
    TruncateAll,
    CreateNamespace,
    ListNamespaces,
    ListDatabases,
    DeleteNamespace,
    CreateNamespaceSet,
    GetNamespaceSet,
    DeleteNamespaceSet,
    MoveNamespace,
    AbortMoveNamespace,
    SetRetentionPolicy,
    GetRetentionPolicy,
    RunRetention,
    GetStorageReport,
    CommitWorkflow,
    ListExecutionPointers,
    ListWorkflows,
    CountWorkflows,
    DeleteWorkflow,
    PurgeWorkflows,
    WatchWorkflows,
    ListEvents,
    PurgeEvents,
    RenewSubscriptionToken,
    ListSubscriptions,
    RenewCommands,
    BreakCommandLease,
    ListCommands,
    AcquireLock,
    RenewLocks,
    ReleaseLock,
    BreakLock,
    ListLocks,
    Enqueue,
    Dequeue,
    WaitForWorkflow,
    Acknowledge,
    ReturnItems,
    RenewItems,
    ListQueueItems,
    GetQueueStats,
    RequeueItems,
    DeleteItems,
    ConfigureQueue,
    Publish,
    Watch,
    ExportRecords,
    ImportRecords,
}

impl Rpc {
    /// The retry table: how safe it is to repeat the call, and the reason with which a
    /// repeated call fails if an earlier attempt took effect, which then counts as success.
    pub(crate) const fn rule(self) -> (Safety, Option<ErrorReason>) {
        use Safety::{Read, Repeatable, Unrepeatable};
        match self {
            Self::GetWorkflowInstance
            | Self::GetWorkflowInstanceByName
            | Self::WaitForWorkflow
            | Self::GetWorkflowInstances
            | Self::GetRunnableInstances
            | Self::GetEvent
            | Self::GetRunnableEvents
            | Self::GetEvents
            | Self::GetSubscription
            | Self::GetSubscriptions
            | Self::GetFirstOpenSubscription
            | Self::ListErrors
            | Self::ListNamespaces
            | Self::ListDatabases
            | Self::ListExecutionPointers
            | Self::ListWorkflows
            | Self::CountWorkflows
            | Self::ListEvents
            | Self::ListSubscriptions
            | Self::ListCommands
            | Self::ListLocks
            | Self::ListQueueItems
            | Self::GetQueueStats
            | Self::Watch
            | Self::WatchWorkflows
            | Self::GetRetentionPolicy
            | Self::GetStorageReport
            | Self::ExportRecords
            | Self::GetNamespaceSet
            | Self::GetNameHolder
            | Self::GetStoreInfo => (Read, None),
            // The id is set before the first attempt; an identical create returns the same.
            Self::CreateNewWorkflow
            | Self::CreateWorkflows
            | Self::CreateEvent
            | Self::CreateEvents
            | Self::CreateEventSubscription => (Repeatable, None),
            // The request id is an idempotency key.
            Self::PersistWorkflow
            | Self::PersistWorkflowWithSubscriptions
            | Self::CommitWorkflow => (Repeatable, None),
            // What is deleted stays deleted; renewing again only extends the claim.
            Self::PurgeWorkflows
            | Self::PurgeEvents
            | Self::RenewCommands
            | Self::RenewItems
            | Self::RenewLocks
            | Self::RenewSubscriptionToken => (Repeatable, None),
            // The request id makes a repeated attempt the same one; what is released is free.
            Self::AcquireLock | Self::ReleaseLock => (Repeatable, None),
            // Watchers must expect an event more than once in any case.
            Self::Publish => (Repeatable, None),
            // An item is known by its id.
            Self::Enqueue | Self::RequeueItems | Self::ConfigureQueue => (Repeatable, None),
            Self::SetRetentionPolicy | Self::RunRetention => (Repeatable, None),
            // It goes on where it was.
            Self::MoveNamespace | Self::AbortMoveNamespace => (Repeatable, None),
            // What is there already, the same, is left as it is.
            Self::ImportRecords => (Repeatable, None),
            // The claim's id makes a repeated attempt the same one.
            Self::SetNameHolder => (Repeatable, None),
            // A number may be skipped, but is never returned twice.
            Self::NextDefinitionSequence => (Repeatable, None),
            Self::MarkEventProcessed | Self::MarkEventUnprocessed => (Repeatable, None),
            // The same token and worker acquire again what they hold already.
            Self::SetSubscriptionToken => (Repeatable, None),
            Self::ScheduleCommand
            | Self::EnsureStoreExists
            | Self::CreateNamespace
            | Self::CreateNamespaceSet => (Repeatable, None),
            Self::TerminateSubscription => (Repeatable, Some(ErrorReason::SubscriptionNotFound)),
            Self::ClearSubscriptionToken => (Repeatable, Some(ErrorReason::TokenMismatch)),
            Self::CompleteCommands
            | Self::ReleaseCommands
            | Self::Acknowledge
            | Self::ReturnItems => (Repeatable, Some(ErrorReason::LeaseLost)),
            // Repeated, it claims other commands; those of a lost response stay claimed until
            // their leases expire.
            Self::ClaimCommands | Self::Dequeue => (Unrepeatable, None),
            // Repeated, it logs the errors twice.
            Self::PersistErrors => (Unrepeatable, None),
            // Repeated, it breaks the next holder's lock.
            Self::BreakLock | Self::BreakCommandLease => (Unrepeatable, None),
            // Repeated, it removes what others have stored since.
            Self::DeleteItems => (Unrepeatable, None),
            Self::TruncateAll
            | Self::DeleteNamespace
            | Self::DeleteNamespaceSet
            | Self::DeleteWorkflow => (Unrepeatable, None),
        }
    }
}

#[cfg(test)]
mod tests {
    /// The enum, and with it the table, lists every RPC of the protos and no other.
    #[test]
    fn the_table_is_complete() {
        let source = include_str!("rpc.rs");
        let list = source
            .split_once("pub(crate) enum Rpc {")
            .and_then(|(_, rest)| rest.split_once('}'))
            .unwrap()
            .0;
        let mut listed: Vec<&str> = list.split(',').map(str::trim).collect();
        listed.retain(|name| !name.is_empty());
        let mut generated: Vec<&str> = include_str!("gen/wfe.persistence.v1.rs")
            .split("GrpcMethod::new(")
            .skip(1)
            .map(|rest| rest.split('"').nth(3).unwrap())
            .collect();
        listed.sort_unstable();
        generated.sort_unstable();
        assert_eq!(listed, generated);
    }
}
