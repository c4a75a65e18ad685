use std::sync::{Arc, Mutex};

use super::*;
use crate::error::status;
use crate::token;
use crate::v1::ErrorReason;

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
        positions: Positions::default(),
    }
}

/// Makes a call whose attempts end as given; returns its result and the number of attempts.
async fn run(rpc: Rpc, ends: Vec<Result<u32, Status>>) -> (Result<u32, Error>, usize) {
    let all = ends.len();
    let ends = Mutex::new(ends.into_iter());
    let result = caller()
        .call(rpc, &(), |_| {
            let end = ends.lock().unwrap().next().expect("one attempt too many");
            async { end.map(Response::new) }
        })
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
        (Code::ResourceExhausted, "TOO_MANY_CALLS"),
        (Code::ResourceExhausted, "CALLER_LIMITED"),
        (Code::ResourceExhausted, "ADMINISTRATION_BUSY"),
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
            let error = result.unwrap_err();
            assert!(error.maybe_written());
            assert_eq!(error.reason(), Some(ErrorReason::CommitOutcomeUnknown));
            assert_eq!(made, 1, "{rpc:?}");
        }
    }
}

#[tokio::test]
async fn a_rejected_call_is_tried_again_once_if_there_is_another_token() {
    let expired = || status(Code::Unauthenticated, "CREDENTIALS_EXPIRED", None);
    for (tokens, attempts) in [(["a", "b", "c"], 2), (["a", "a", "a"], 1)] {
        let mut caller = caller();
        let current = Arc::new(Mutex::new(tokens[0]));
        let source = Arc::clone(&current);
        caller.authorization = Some(token::function(move || {
            Ok::<_, Error>((*source.lock().unwrap()).to_string())
        }));
        let sent = Mutex::new(Vec::new());
        let result: Result<u32, Error> = caller
            .call(Rpc::ClaimCommands, &(), |request| {
                let value = request.metadata().get("authorization").unwrap().clone();
                let mut sent = sent.lock().unwrap();
                sent.push(value.to_str().unwrap().to_string());
                *current.lock().unwrap() = tokens[sent.len()];
                async { Err(expired()) }
            })
            .await;
        let error = result.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::CredentialsExpired));
        let sent = sent.into_inner().unwrap();
        let expected: Vec<_> = tokens
            .iter()
            .map(|token| format!("Bearer {token}"))
            .collect();
        assert_eq!(sent, expected[..attempts]);
    }
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let mut caller = caller();
    caller.authorization = Some(token::function(|| Err("the login is away")));
    let result: Result<u32, Error> = caller
        .call(Rpc::ClaimCommands, &(), |_| async { panic!("sent") })
        .await;
    let error = result.unwrap_err();
    assert!(error.message().contains("the login is away"), "{error}");
    assert!(!error.maybe_written());
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

#[tokio::test(start_paused = true)]
async fn by_default_only_the_timeout_ends_the_attempts() {
    let mut caller = caller();
    caller.retry = Retry::default();
    let begun = Instant::now();
    let sent = std::cell::Cell::new(0);
    // A server that is away for 20 of the 30 s.
    let result = caller
        .call(Rpc::PersistErrors, &(), |_| {
            sent.set(sent.get() + 1);
            let away = begun.elapsed() < Duration::from_secs(20);
            let wait = Some(Duration::from_millis(500));
            async move {
                if away {
                    Err(status(Code::Unavailable, "SHUTTING_DOWN", wait))
                } else {
                    Ok(Response::new(7))
                }
            }
        })
        .await;
    assert_eq!(result.unwrap(), 7);
    assert!(sent.get() > 10, "{}", sent.get());
}

#[tokio::test]
async fn an_end_comes() {
    let (result, made) = run(Rpc::GetEvent, (0..9).map(|_| Err(lost())).collect()).await;
    assert_eq!((result.unwrap_err().code(), made), (Code::Unavailable, 4));
}

#[tokio::test]
async fn the_last_attempts_reason_stands_only_if_no_attempt_may_have_been_made() {
    let busy = || status(Code::ResourceExhausted, "POOL_EXHAUSTED", None);
    for (ends, reason) in [
        (
            [lost(), busy(), busy(), busy()],
            ErrorReason::CommitOutcomeUnknown,
        ),
        (
            [busy(), busy(), busy(), lost()],
            ErrorReason::CommitOutcomeUnknown,
        ),
        ([busy(), busy(), busy(), busy()], ErrorReason::PoolExhausted),
    ] {
        let (result, made) = run(Rpc::CreateEvent, ends.map(Err).into()).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), made), (Some(reason), 4), "{error}");
        assert_eq!(
            error.maybe_written(),
            reason == ErrorReason::CommitOutcomeUnknown
        );
    }
    let (result, _) = run(Rpc::GetEvent, (0..4).map(|_| Err(lost())).collect()).await;
    let error = result.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::ServerUnreachable));
}

#[tokio::test(start_paused = true)]
async fn what_ends_after_the_deadline_ends_because_of_it() {
    let mut caller = caller();
    caller.timeout = Duration::from_secs(1);
    let result: Result<u32, Error> = caller
        .call(Rpc::GetEvent, &(), |_| async {
            tokio::time::advance(Duration::from_secs(1)).await;
            Err(Status::cancelled("reset"))
        })
        .await;
    let error = result.unwrap_err();
    assert_eq!(
        error.reason(),
        Some(ErrorReason::DeadlineExceeded),
        "{error}"
    );
}

#[tokio::test]
async fn without_time_nothing_is_sent_and_no_timeout_is_too_long() {
    let mut caller = caller();
    caller.timeout = Duration::ZERO;
    let sent = |_| async { Ok::<_, Status>(Response::new(7)) };
    let error = caller.call(Rpc::CreateEvent, &(), sent).await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::DeadlineExceeded));
    assert!(!error.maybe_written());
    caller.timeout = Duration::MAX;
    assert_eq!(caller.call(Rpc::CreateEvent, &(), sent).await.unwrap(), 7);
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
        .call(Rpc::PersistWorkflow, &(), |_| std::future::pending())
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

/// A call that ends in one attempt; returns the position that this attempt was sent with.
async fn sent_with(
    caller: &Caller,
    rpc: Rpc,
    end: Result<Option<&'static str>, Status>,
) -> Option<String> {
    let sent = Mutex::new(None);
    let _: Result<u32, Error> = caller
        .call(rpc, &(), |request: Request<()>| {
            let position = request.metadata().get("wfe-lsn");
            *sent.lock().unwrap() = position.map(|value| value.to_str().unwrap().into());
            let end = end.clone().map(|told| {
                let mut response = Response::new(7);
                if let Some(told) = told {
                    let metadata = response.metadata_mut();
                    metadata.insert("wfe-lsn", MetadataValue::from_static(told));
                }
                response
            });
            async { end }
        })
        .await;
    sent.into_inner().unwrap()
}

const FIRST: &str = "home.1/00000001/0000000000000005";
const SECOND: &str = "home.1/00000001/0000000000000006";

#[tokio::test]
async fn reads_are_sent_with_the_position_of_the_last_write() {
    let caller = caller();
    let read = |caller| async move { sent_with(caller, Rpc::GetEvent, Ok(Some("x/y"))).await };
    assert_eq!(read(&caller).await, None);
    let write = sent_with(&caller, Rpc::CreateEvent, Ok(Some(FIRST))).await;
    assert_eq!(write, None);
    assert_eq!(read(&caller).await.as_deref(), Some(FIRST));
    // Not with writes, and reads tell none.
    assert_eq!(
        sent_with(&caller, Rpc::CreateEvent, Ok(Some(SECOND))).await,
        None
    );
    assert_eq!(read(&caller.clone()).await.as_deref(), Some(SECOND));
    let watch = caller.endless(()).unwrap();
    assert_eq!(watch.metadata().get("wfe-lsn").unwrap(), SECOND);
}

#[tokio::test]
async fn a_write_that_may_have_been_made_is_behind_an_unknown_position() {
    let mut caller = caller();
    caller.retry.max_attempts = 1;
    let read = |caller| async move { sent_with(caller, Rpc::GetEvent, Err(lost())).await };
    for (end, known) in [
        (
            status(Code::AlreadyExists, "EVENT_ALREADY_EXISTS", None),
            FIRST,
        ),
        (lost(), "unknown"),
    ] {
        sent_with(&caller, Rpc::CreateEvent, Ok(Some(FIRST))).await;
        sent_with(&caller, Rpc::CreateEvent, Err(end)).await;
        assert_eq!(read(&caller).await.as_deref(), Some(known));
    }
    // One that is dropped.
    sent_with(&caller, Rpc::CreateEvent, Ok(Some(FIRST))).await;
    let call = caller.call(Rpc::CreateEvent, &(), |_| std::future::pending());
    let ended: Result<Result<u32, _>, _> =
        tokio::time::timeout(Duration::from_millis(1), call).await;
    assert!(ended.is_err());
    assert_eq!(read(&caller).await.as_deref(), Some("unknown"));
    sent_with(&caller, Rpc::CreateEvent, Ok(Some(SECOND))).await;
    assert_eq!(read(&caller).await.as_deref(), Some(SECOND));
}
