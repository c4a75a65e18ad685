//! One place for what every call has: a deadline, safe retries, typed errors.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};

use crate::error::Error;
use crate::v1::ErrorReason;

/// Whether a call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Writes nothing.
    Read,
    /// Again is the same as once.
    Repeatable,
    /// Again only if no attempt can have been made.
    Unrepeatable,
}

/// The rpcs, by their names in the protos; all of them, also those that only a host's own
/// stubs call.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    CreateNewWorkflow,
    PersistWorkflow,
    PersistWorkflowWithSubscriptions,
    GetWorkflowInstance,
    GetWorkflowInstanceByName,
    GetWorkflowInstances,
    GetRunnableInstances,
    NextDefinitionSequence,
    CreateEvent,
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
    DeleteNamespace,
    CommitWorkflow,
    ListExecutionPointers,
    ListWorkflows,
    CountWorkflows,
    DeleteWorkflow,
    PurgeWorkflows,
    ListEvents,
    PurgeEvents,
    RenewSubscriptionToken,
    ListSubscriptions,
    RenewCommands,
}

impl Rpc {
    /// The table of what may be tried again: how safe that is, and the reason with
    /// which the call fails if an earlier attempt of it was made, which then is success.
    const fn rule(self) -> (Safety, Option<ErrorReason>) {
        use Safety::{Read, Repeatable, Unrepeatable};
        match self {
            Self::GetWorkflowInstance
            | Self::GetWorkflowInstanceByName
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
            | Self::ListExecutionPointers
            | Self::ListWorkflows
            | Self::CountWorkflows
            | Self::ListEvents
            | Self::ListSubscriptions
            | Self::GetStoreInfo => (Read, None),
            // The id is chosen before the first attempt; the same again answers the same.
            Self::CreateNewWorkflow | Self::CreateEvent | Self::CreateEventSubscription => {
                (Repeatable, None)
            }
            // By its request id it is made once, however often it arrives.
            Self::PersistWorkflow
            | Self::PersistWorkflowWithSubscriptions
            | Self::CommitWorkflow => (Repeatable, None),
            // What is gone is gone; a lease or a hold only ends later.
            Self::PurgeWorkflows
            | Self::PurgeEvents
            | Self::RenewCommands
            | Self::RenewSubscriptionToken => (Repeatable, None),
            // A number may be skipped, never given twice.
            Self::NextDefinitionSequence => (Repeatable, None),
            Self::MarkEventProcessed | Self::MarkEventUnprocessed => (Repeatable, None),
            // Acquires again what the same token and worker hold already.
            Self::SetSubscriptionToken => (Repeatable, None),
            Self::ScheduleCommand | Self::EnsureStoreExists | Self::CreateNamespace => {
                (Repeatable, None)
            }
            Self::TerminateSubscription => (Repeatable, Some(ErrorReason::SubscriptionNotFound)),
            Self::ClearSubscriptionToken => (Repeatable, Some(ErrorReason::TokenMismatch)),
            Self::CompleteCommands | Self::ReleaseCommands => {
                (Repeatable, Some(ErrorReason::LeaseLost))
            }
            // Again claims others; those of a lost answer wait for their leases' end.
            Self::ClaimCommands => (Unrepeatable, None),
            // Again logs them again.
            Self::PersistErrors => (Unrepeatable, None),
            // Again removes what others have stored since.
            Self::TruncateAll | Self::DeleteNamespace | Self::DeleteWorkflow => {
                (Unrepeatable, None)
            }
        }
    }
}

/// How often and how fast a call is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) max_attempts: u32,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
}

impl Retry {
    /// The wait after that many attempts, from 1: random, up to a bound that doubles.
    fn backoff(&self, attempts: u32) -> Duration {
        let bound = self
            .initial_backoff
            .saturating_mul(1u32.checked_shl(attempts - 1).unwrap_or(u32::MAX))
            .min(self.max_backoff);
        bound.mul_f64(random())
    }
}

/// 0 up to 1. A UUID is random enough here and saves a dependency.
fn random() -> f64 {
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    (low & 0xffff_ffff) as f64 / f64::from(u32::MAX)
}

/// What all calls of a provider have in common.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
    pub(crate) namespace: Option<MetadataValue<Ascii>>,
    pub(crate) authorization: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// Makes a call. `build` makes the request, anew for each attempt, so that none is
    /// copied for a retry that hardly ever comes; `send` sends it and reads the answer.
    pub(crate) async fn call<Q, A, B, S, F>(&self, rpc: Rpc, build: B, send: S) -> Result<A, Error>
    where
        A: Default,
        B: Fn() -> Result<Q, Error>,
        S: Fn(Request<Q>) -> F,
        F: Future<Output = Result<A, Status>>,
    {
        let (safety, done) = rpc.rule();
        let end = Instant::now() + self.timeout;
        let mut maybe_written = false;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let left = end.saturating_duration_since(Instant::now());
            let request = self.request(build()?, left);
            let mut error = match tokio::time::timeout(left, send(request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => Error::from_status(&status),
                Err(_) => Error::deadline(),
            };
            if maybe_written && done.is_some() && error.reason() == done {
                return Ok(A::default());
            }
            maybe_written |= error.maybe_written() && safety != Safety::Read;
            error.set_maybe_written(maybe_written);
            let wait = self.retry.backoff(attempts) + error.retry_after().unwrap_or(Duration::ZERO);
            if !error.passes()
                || (maybe_written && safety == Safety::Unrepeatable)
                || attempts >= self.retry.max_attempts
                || wait >= end.saturating_duration_since(Instant::now())
            {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn request<Q>(&self, message: Q, left: Duration) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(left);
        let metadata = request.metadata_mut();
        if let Some(namespace) = &self.namespace {
            metadata.insert("wfe-namespace", namespace.clone());
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tonic::Code;

    use super::*;
    use crate::error::tests::status;

    fn caller() -> Caller {
        Caller {
            timeout: Duration::from_secs(30),
            retry: Retry {
                max_attempts: 4,
                initial_backoff: Duration::from_millis(1),
                max_backoff: Duration::from_millis(4),
            },
            namespace: None,
            authorization: None,
        }
    }

    /// Makes a call whose attempts end as given; answers its result and the attempts.
    async fn run(rpc: Rpc, ends: Vec<Result<u32, Status>>) -> (Result<u32, Error>, usize) {
        let all = ends.len();
        let ends = Mutex::new(ends.into_iter());
        let result = caller()
            .call(
                rpc,
                || Ok(()),
                |_| {
                    let end = ends.lock().unwrap().next().expect("one attempt too many");
                    async { end }
                },
            )
            .await;
        let made = all - ends.into_inner().unwrap().count();
        (result, made)
    }

    fn lost() -> Status {
        Status::unavailable("lost")
    }

    #[tokio::test]
    async fn reads_and_repeatable_writes_are_tried_again() {
        for rpc in [Rpc::GetEvent, Rpc::PersistWorkflow, Rpc::CreateEvent] {
            let (result, made) = run(rpc, vec![Err(lost()), Err(lost()), Ok(7)]).await;
            assert_eq!((result.unwrap(), made), (7, 3), "{rpc:?}");
        }
    }

    #[tokio::test]
    async fn conflicts_and_a_full_pool_are_tried_again() {
        for (code, reason) in [
            (Code::Aborted, "TRANSACTION_CONFLICT"),
            (Code::ResourceExhausted, "POOL_EXHAUSTED"),
            (Code::ResourceExhausted, "NAMESPACE_BUSY"),
            (Code::Unavailable, "DATABASE_UNAVAILABLE"),
        ] {
            for rpc in [Rpc::PersistWorkflow, Rpc::PersistErrors, Rpc::ClaimCommands] {
                let (result, made) = run(rpc, vec![Err(status(code, reason, None)), Ok(7)]).await;
                assert_eq!((result.unwrap(), made), (7, 2), "{rpc:?} {reason}");
            }
        }
    }

    #[tokio::test]
    async fn what_may_have_been_made_is_not_made_twice() {
        for rpc in [Rpc::PersistErrors, Rpc::ClaimCommands, Rpc::TruncateAll] {
            for end in [
                lost(),
                status(Code::Unavailable, "COMMIT_OUTCOME_UNKNOWN", None),
            ] {
                let (result, made) = run(rpc, vec![Err(end), Ok(7)]).await;
                assert!(result.unwrap_err().maybe_written());
                assert_eq!(made, 1, "{rpc:?}");
            }
        }
    }

    #[tokio::test]
    async fn other_errors_are_final() {
        for (code, reason) in [
            (Code::Aborted, "REVISION_MISMATCH"),
            (Code::InvalidArgument, "INVALID_FIELD"),
            (Code::ResourceExhausted, "DATABASE_FULL"),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        ] {
            let (result, made) = run(Rpc::GetEvent, vec![Err(status(code, reason, None))]).await;
            let error = result.unwrap_err();
            assert_eq!((error.maybe_written(), made), (false, 1), "{reason}");
        }
    }

    #[tokio::test]
    async fn an_end_comes() {
        let (result, made) = run(Rpc::GetEvent, (0..9).map(|_| Err(lost())).collect()).await;
        assert_eq!((result.unwrap_err().code(), made), (Code::Unavailable, 4));
    }

    #[tokio::test]
    async fn done_counts_as_success_only_after_an_attempt_that_may_have_been_made() {
        let gone = || status(Code::NotFound, "SUBSCRIPTION_NOT_FOUND", None);
        let (result, _) = run(Rpc::TerminateSubscription, vec![Err(gone())]).await;
        assert!(result.is_err());
        let (result, made) = run(Rpc::TerminateSubscription, vec![Err(lost()), Err(gone())]).await;
        assert_eq!((result.unwrap(), made), (0, 2));
        let (result, _) = run(
            Rpc::TerminateSubscription,
            vec![
                Err(status(Code::Unavailable, "SHUTTING_DOWN", None)),
                Err(gone()),
            ],
        )
        .await;
        assert!(result.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_wait_is_kept() {
        let begun = Instant::now();
        let wait = Duration::from_secs(3);
        let busy = status(Code::ResourceExhausted, "POOL_EXHAUSTED", Some(wait));
        let (result, _) = run(Rpc::GetEvent, vec![Err(busy), Ok(7)]).await;
        assert_eq!(result.unwrap(), 7);
        assert!(begun.elapsed() >= wait);
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_beyond_the_deadline() {
        let begun = Instant::now();
        let busy = status(
            Code::ResourceExhausted,
            "POOL_EXHAUSTED",
            Some(Duration::from_secs(60)),
        );
        let (result, made) = run(Rpc::GetEvent, vec![Err(busy), Ok(7)]).await;
        let reason = result.unwrap_err().reason();
        assert_eq!((reason, made), (Some(ErrorReason::PoolExhausted), 1));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_an_attempt() {
        let begun = Instant::now();
        let result: Result<u32, Error> = caller()
            .call(Rpc::PersistWorkflow, || Ok(()), |_| std::future::pending())
            .await;
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.maybe_written());
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[test]
    fn the_waits_are_bounded_and_random() {
        let retry = Retry {
            max_attempts: 99,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        };
        for attempts in 1..99 {
            let bound = Duration::from_millis(100 << (attempts - 1).min(10));
            assert!(retry.backoff(attempts) <= bound.min(retry.max_backoff));
        }
        let waits: std::collections::HashSet<_> = (0..9).map(|_| retry.backoff(9)).collect();
        assert!(waits.len() > 5);
    }

    /// The enum, and with it the table, has every rpc of the protos and no other.
    #[test]
    fn the_table_is_complete() {
        let source = include_str!("call.rs");
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
