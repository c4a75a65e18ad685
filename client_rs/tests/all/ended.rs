//! Calls that gRPC itself ends, without the server's `ErrorInfo`: each names its reason.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tonic::Code;
use wfe_core::models::WorkflowInstance;
use wfe_core::traits::{SubscriptionRepository, WorkflowRepository};
use wfe_persistence_client::v1::ErrorReason;
use wfe_persistence_client::{Builder, Error, GrpcPersistenceProvider, Step};

use crate::common;

fn one_attempt(target: &str) -> Builder {
    GrpcPersistenceProvider::builder(target).max_attempts(1)
}

fn step() -> Step {
    let mut instance = WorkflowInstance::new("order", 1, json!(null));
    instance.id = "no such workflow".into();
    Step::new(&instance).unwrap()
}

#[tokio::test]
async fn a_deadline_that_is_too_short_is_the_reason() {
    let target = common::target();
    // However far the call gets: to the client's timer, the connection, or the server's.
    for timeout in [1, 1_000, 100_000, 500_000, 1_000_000, 2_000_000] {
        let hurried = one_attempt(&target)
            .timeout(Duration::from_nanos(timeout))
            .connect_lazy()
            .unwrap();
        for _ in 0..50 {
            if let Err(error) = hurried.store_info().await {
                assert_eq!(
                    (error.code(), error.reason(), error.maybe_written()),
                    (
                        Code::DeadlineExceeded,
                        Some(ErrorReason::DeadlineExceeded),
                        false
                    ),
                    "{timeout} ns: {error}"
                );
            } else {
                assert_ne!(timeout, 1);
            }
        }
        let error = hurried.commit(step()).await.unwrap_err();
        assert!(error.reason().is_some(), "{timeout} ns: {error}");
    }
}

/// Calls until the server is gone; returns what the last call failed with.
async fn until_killed<F>(call: impl Fn() -> F) -> Error
where
    F: std::future::Future<Output = Result<(), Error>>,
{
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if let Err(error) = call().await {
            return error;
        }
    }
    panic!("the server is still there");
}

#[tokio::test]
async fn a_killed_server_is_unreachable_and_a_write_in_progress_has_an_unknown_outcome() {
    let url = common::new_database().await;
    let (target, pid) = common::start_server_process(&["--db-url", &url]);
    let mut instance = WorkflowInstance::new("order", 1, json!(null));
    // With retries: the server may still be creating its tables.
    let patient = common::connect(&target).await;
    instance.id = patient.create_new_workflow(&instance).await.unwrap();
    let provider = one_attempt(&target).connect().await.unwrap();

    let mut calls = Vec::new();
    for number in 0..16 {
        let (provider, instance) = (provider.clone(), instance.clone());
        calls.push(tokio::spawn(async move {
            if number % 2 == 0 {
                return until_killed(|| async { provider.store_info().await.map(|_| ()) }).await;
            }
            until_killed(|| async {
                match provider.commit(Step::new(&instance).unwrap()).await {
                    // Another task was faster.
                    Err(error) if error.reason() == Some(ErrorReason::RevisionMismatch) => Ok(()),
                    outcome => outcome.map(|_| ()),
                }
            })
            .await
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // SAFETY: the process is the server, which is running; nothing else ends it.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
    for (number, call) in calls.into_iter().enumerate() {
        let error = call.await.unwrap();
        assert_unreachable(&error);
        let reads = number % 2 == 0;
        assert!(!(reads && error.maybe_written()), "a read writes nothing");
    }
    // Once the client knows that the connection is gone, it sends nothing.
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let error = provider.commit(step()).await.unwrap_err();
        assert_unreachable(&error);
        if !error.maybe_written() {
            break;
        }
        assert!(Instant::now() < end);
    }
}

/// There is no server, and the outcome of a write is unknown if that is the reason.
fn assert_unreachable(error: &Error) {
    let expected = if error.maybe_written() {
        ErrorReason::CommitOutcomeUnknown
    } else {
        ErrorReason::ServerUnreachable
    };
    assert_eq!(
        (error.code(), error.reason()),
        (Code::Unavailable, Some(expected)),
        "{error}"
    );
}

/// An HTTP/2 frame.
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A server that sends these frames after its settings when it has received a request.
async fn server_that_sends(frames: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let frames = frames.clone();
            tokio::spawn(async move {
                const SETTINGS: u8 = 4;
                let _ = socket.write_all(&frame(SETTINGS, 0, &[])).await;
                let mut received = Vec::new();
                // The request's path is not compressed beyond recognition: its headers are
                // longer than everything that precedes them.
                while received.len() < 200 {
                    if socket.read_buf(&mut received).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let _ = socket.write_all(&frames).await;
                // Read on, so that the answer is not lost in a reset of the connection.
                tokio::time::sleep(Duration::from_millis(200)).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn every_way_to_end_a_call_has_a_reason() {
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    let mut ways = vec![("closed".to_string(), Vec::new())];
    ways.push((
        "no HTTP/2".into(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ));
    // NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM,
    // INADEQUATE_SECURITY, unknown.
    for code in [0u32, 1, 2, 7, 8, 11, 12, 99] {
        let reset = frame(RST_STREAM, 1, &code.to_be_bytes());
        ways.push((format!("stream reset, {code}"), reset));
        let last_stream = [0; 4];
        let away = frame(GOAWAY, 0, &[last_stream, code.to_be_bytes()].concat());
        ways.push((format!("connection closed, {code}"), away));
    }
    for (way, frames) in ways {
        let target = server_that_sends(frames).await;
        let provider = one_attempt(&target)
            .timeout(Duration::from_secs(20))
            .connect_lazy()
            .unwrap();
        let error = provider.store_info().await.unwrap_err();
        assert_eq!(
            (error.code(), error.reason(), error.maybe_written()),
            (
                Code::Unavailable,
                Some(ErrorReason::ServerUnreachable),
                false
            ),
            "{way}: {error}"
        );
        let error = provider.commit(step()).await.unwrap_err();
        assert_eq!(
            (error.code(), error.reason(), error.maybe_written()),
            (
                Code::Unavailable,
                Some(ErrorReason::CommitOutcomeUnknown),
                true
            ),
            "{way}: {error}"
        );
    }
}

#[tokio::test]
async fn messages_that_are_too_large_have_a_reason() {
    let provider = common::provider().await;
    let mut instance = WorkflowInstance::new("order", 1, json!("x".repeat(5000)));
    instance.id = provider.create_new_workflow(&instance).await.unwrap();
    let small = one_attempt(&common::target())
        .max_message_bytes(4000)
        .connect()
        .await
        .unwrap();
    let error = small.get_workflow_instance(&instance.id).await.unwrap_err();
    assert!(error.to_string().contains("ANSWER_TOO_LARGE"), "{error}");

    // Far beyond what the server takes to say in detail what is wrong.
    instance.data = json!("x".repeat(100_000_000));
    let error = provider.commit(Step::new(&instance).unwrap()).await;
    let error = error.unwrap_err();
    assert_eq!(
        (error.reason(), error.maybe_written()),
        (Some(ErrorReason::MessageTooLarge), false),
        "{error}"
    );
    assert!(error.metadata()["limit_bytes"].parse::<u64>().is_ok());
    assert!(provider.get_subscription("still there").await.is_err());
}
