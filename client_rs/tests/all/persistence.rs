//! The engine's own test suite for persistence providers, and what it does not cover.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration as StdDuration;

use chrono::{DateTime, Duration, TimeZone, Utc};
use serde_json::{json, Value};
use tokio::sync::OwnedMutexGuard;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ExecutionPointer, ScheduledCommand, WorkflowInstance,
};
use wfe_core::traits::{
    EventRepository, PersistenceProvider, ScheduledCommandRepository, SubscriptionRepository,
    WorkflowRepository,
};
use wfe_core::WfeError;
use wfe_persistence_client::v1::ErrorReason;
use wfe_persistence_client::{Builder, GrpcPersistenceProvider};

use crate::common;

/// The namespace of these tests. They empty it repeatedly; in the default one that would
/// remove the rows of the other modules' tests.
const NAMESPACE: &str = "rust_persistence";

fn builder() -> Builder {
    GrpcPersistenceProvider::builder(common::target()).namespace(NAMESPACE)
}

/// A provider with exclusive use of that namespace, emptied: otherwise the suite's tests would
/// see each other's rows.
struct Alone {
    provider: GrpcPersistenceProvider,
    _turn: OwnedMutexGuard<()>,
}

impl Deref for Alone {
    type Target = GrpcPersistenceProvider;

    fn deref(&self) -> &Self::Target {
        &self.provider
    }
}

async fn make_provider() -> Alone {
    static TURN: LazyLock<Arc<tokio::sync::Mutex<()>>> = LazyLock::new(Arc::default);
    let turn = TURN.clone().lock_owned().await;
    let default = common::provider().await;
    default.create_namespace(NAMESPACE).await.unwrap();
    let provider = builder().timeout(StdDuration::from_secs(60)).connect();
    let provider = provider.await.unwrap();
    provider.ensure_store_exists().await.unwrap();
    provider.truncate_all().await.unwrap();
    Alone {
        provider,
        _turn: turn,
    }
}

wfe_core::persistence_suite!(make_provider);

fn time(micros: i64) -> DateTime<Utc> {
    Utc.timestamp_micros(micros).unwrap()
}

/// A workflow with every field set, except that its second pointer has none.
fn full_workflow() -> WorkflowInstance {
    let mut pointer = ExecutionPointer::new(i32::MAX as usize);
    pointer.active = false;
    pointer.status = wfe_core::models::PointerStatus::PendingPredecessor;
    pointer.sleep_until = Some(time(1_700_000_000_123_456));
    pointer.persistence_data = Some(json!({"deep": [[[{"a": null}]]]}));
    pointer.start_time = Some(time(-1));
    pointer.end_time = Some(time(0));
    pointer.event_name = Some("e".into());
    pointer.event_key = Some(String::new());
    pointer.event_published = true;
    pointer.event_data = Some(Value::Null);
    pointer.step_name = Some("ü 😀".into());
    pointer.retry_count = 9;
    pointer.children = vec!["b".into(), "a".into()];
    pointer.context_item = Some(json!(18_446_744_073_709_551_615u64));
    pointer.predecessor_id = Some("p".into());
    pointer.outcome = Some(json!(-9_223_372_036_854_775_808i64));
    pointer.scope = vec!["z".into(), "y".into()];
    pointer.extension_attributes = HashMap::from([("x".to_string(), Value::Null)]);
    let mut instance = WorkflowInstance::new(
        "definition",
        3,
        json!({"floats": [0.1, 1e16, 1e300, 5e-324, -2.5], "int": 9_007_199_254_740_993i64}),
    );
    instance.name = format!("name-{}", instance.id);
    instance.root_workflow_id = Some("root".into());
    instance.description = Some("d".into());
    instance.reference = Some(String::new());
    instance.next_execution = Some(i64::MIN);
    instance.create_time = time(1_234_567_890_654_321);
    instance.complete_time = Some(time(1_234_567_890_654_322));
    instance.execution_pointers = vec![pointer, ExecutionPointer::new(0)];
    instance
}

fn plain(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[tokio::test]
async fn every_field_of_a_workflow_comes_back() {
    let provider = make_provider().await;
    let mut instance = full_workflow();
    provider.create_new_workflow(&instance).await.unwrap();
    let back = provider.get_workflow_instance(&instance.id).await.unwrap();
    assert_eq!(plain(&back), plain(&instance));
    assert_eq!(back.execution_pointers[0].event_data, Some(Value::Null));
    assert_eq!(back.execution_pointers[1].event_data, None);
    assert!(back.data["floats"][1].is_f64());

    instance.execution_pointers.reverse();
    instance.execution_pointers[1].event_data = None;
    instance.execution_pointers[0].event_data = Some(Value::Null);
    instance.complete_time = None;
    instance.data = Value::Null;
    provider.persist_workflow(&instance).await.unwrap();
    let back = provider
        .get_workflow_instance_by_name(&instance.name)
        .await
        .unwrap();
    assert_eq!(plain(&back), plain(&instance));
    assert_eq!(back.execution_pointers[0].event_data, Some(Value::Null));
    assert_eq!(back.execution_pointers[1].event_data, None);
}

#[tokio::test]
async fn times_are_truncated_to_microseconds() {
    let provider = make_provider().await;
    let mut event = Event::new("n", "k", json!(1));
    event.event_time = Utc.timestamp_opt(1_700_000_000, 123_456_789).unwrap();
    provider.create_event(&event).await.unwrap();
    let back = provider.get_event(&event.id).await.unwrap();
    assert_eq!(back.event_time, time(1_700_000_000_123_456));
    let found = provider
        .get_events("n", "k", event.event_time)
        .await
        .unwrap();
    assert_eq!(found, [event.id]);
}

#[tokio::test]
async fn creates_can_be_repeated_and_empty_ids_are_filled() {
    let provider = make_provider().await;
    let mut instance = full_workflow();
    for _ in 0..2 {
        let id = provider.create_new_workflow(&instance).await.unwrap();
        assert_eq!(id, instance.id);
    }
    instance.data = json!("other");
    let error = provider.create_new_workflow(&instance).await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("Persistence error: WORKFLOW_ALREADY_EXISTS"),
        "{error}"
    );

    let mut nameless = WorkflowInstance::new("d", 1, json!({}));
    nameless.id = String::new();
    let id = provider.create_new_workflow(&nameless).await.unwrap();
    let back = provider.get_workflow_instance(&id).await.unwrap();
    assert_eq!((back.id.len(), back.name), (36, id));

    let mut event = Event::new("n", "k", json!(1));
    event.id = String::new();
    assert_eq!(provider.create_event(&event).await.unwrap().len(), 36);

    let mut subscription = EventSubscription::new("w", 0, "p", "n", "k", Utc::now());
    subscription.id = String::new();
    let id = provider
        .create_event_subscription(&subscription)
        .await
        .unwrap();
    assert_eq!(id.len(), 36);
    provider
        .persist_workflow_with_subscriptions(&back_of(&nameless, back.id), &[subscription])
        .await
        .unwrap();
    let found = provider
        .get_subscriptions("n", "k", Utc::now())
        .await
        .unwrap();
    assert_eq!(found.len(), 2);
}

fn back_of(instance: &WorkflowInstance, id: String) -> WorkflowInstance {
    WorkflowInstance {
        id,
        ..instance.clone()
    }
}

#[tokio::test]
async fn what_is_absent_is_the_engines_not_found() {
    let provider = make_provider().await;
    let instance = full_workflow();
    let id = instance.id.as_str();
    for error in [
        provider.get_workflow_instance(id).await.unwrap_err(),
        provider
            .get_workflow_instance_by_name(id)
            .await
            .unwrap_err(),
        provider.persist_workflow(&instance).await.unwrap_err(),
        provider
            .persist_workflow_with_subscriptions(&instance, &[])
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(&error, WfeError::WorkflowNotFound(what) if what == id));
    }
    for error in [
        provider.get_event(id).await.unwrap_err(),
        provider.mark_event_processed(id).await.unwrap_err(),
        provider.mark_event_unprocessed(id).await.unwrap_err(),
    ] {
        assert!(matches!(&error, WfeError::EventNotFound(what) if what == id));
    }
    let soon = Utc::now() + Duration::seconds(9);
    for error in [
        provider.get_subscription(id).await.unwrap_err(),
        provider.terminate_subscription(id).await.unwrap_err(),
        provider
            .set_subscription_token(id, "t", "w", soon)
            .await
            .unwrap_err(),
        provider
            .clear_subscription_token(id, "t")
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(&error, WfeError::SubscriptionNotFound(what) if what == id));
    }
    assert!(provider
        .get_first_open_subscription("n", "k", soon)
        .await
        .unwrap()
        .is_none());
}

#[tokio::test]
async fn other_errors_name_their_reason() {
    let provider = make_provider().await;
    let first = full_workflow();
    provider.create_new_workflow(&first).await.unwrap();
    let mut second = full_workflow();
    second.name.clone_from(&first.name);
    let error = provider.create_new_workflow(&second).await.unwrap_err();
    assert!(
        matches!(&error, WfeError::Persistence(text) if text.starts_with("NAME_TAKEN")),
        "{error}"
    );

    second.name = String::new();
    second.data = json!("\u{0}");
    let error = provider.create_new_workflow(&second).await.unwrap_err();
    assert!(
        matches!(&error, WfeError::Persistence(text)
            if text.starts_with("INVALID_FIELD") && text.contains("instance.data_json")),
        "{error}"
    );

    let subscription = EventSubscription::new("w", 0, "p", "n", "k", Utc::now());
    let id = provider
        .create_event_subscription(&subscription)
        .await
        .unwrap();
    let error = provider
        .clear_subscription_token(&id, "t")
        .await
        .unwrap_err();
    assert!(
        matches!(&error, WfeError::Persistence(text) if text.starts_with("TOKEN_MISMATCH")),
        "{error}"
    );
}

#[tokio::test]
async fn a_namespace_that_does_not_exist_is_an_error_when_connecting() {
    let error = GrpcPersistenceProvider::builder(common::target())
        .namespace("no_such_namespace")
        .connect()
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::NamespaceNotFound));
}

#[tokio::test]
async fn a_namespace_is_a_store_of_its_own() {
    let default = common::provider().await;
    let name = format!("rs_{}", &uuid::Uuid::new_v4().simple().to_string()[..20]);
    for _ in 0..2 {
        default.create_namespace(&name).await.unwrap();
    }
    let other = GrpcPersistenceProvider::builder(common::target())
        .namespace(&name)
        .connect()
        .await
        .unwrap();
    let instance = full_workflow();
    other.create_new_workflow(&instance).await.unwrap();
    let error = default.get_workflow_instance(&instance.id).await;
    assert!(matches!(error, Err(WfeError::WorkflowNotFound(_))));
    default.create_new_workflow(&instance).await.unwrap();
    assert_eq!(other.store_info().await.unwrap().namespace, name);
    let all = default.list_namespaces().await.unwrap();
    assert!(all.iter().any(|namespace| namespace.name == name));
    other.truncate_all().await.unwrap();
    match default.delete_namespace(&name, true).await {
        Ok(()) => assert!(other.get_workflow_instance("x").await.is_err()),
        Err(error) => assert_eq!(error.reason(), Some(ErrorReason::DeleteNamespaceNotAllowed)),
    }
}

#[tokio::test]
async fn the_deadline_is_kept() {
    let provider = GrpcPersistenceProvider::builder(common::target())
        .timeout(StdDuration::from_nanos(1))
        .connect_lazy()
        .unwrap();
    let error = provider.store_info().await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::DeadlineExceeded));
}

#[tokio::test]
async fn lists_are_read_to_the_last_page() {
    let provider = make_provider().await;
    let count = 2_003;
    let base = Utc::now() - Duration::hours(1);
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..8 {
        let provider = provider.provider.clone();
        tasks.spawn(async move {
            for i in (part..count).step_by(8) {
                let at = base + Duration::microseconds(i);
                let mut instance = WorkflowInstance::new("d", 1, json!({}));
                instance.id = format!("w-{i:05}");
                instance.next_execution = Some(i);
                provider.create_new_workflow(&instance).await.unwrap();
                let mut event = Event::new("n", "k", json!(i));
                event.id = format!("e-{i:05}");
                event.event_time = at;
                provider.create_event(&event).await.unwrap();
                let mut subscription = EventSubscription::new("w", 0, "p", "n", "k", at);
                subscription.id = format!("s-{i:05}");
                provider
                    .create_event_subscription(&subscription)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let now = Utc::now();
    let ids =
        |letter: &str| -> Vec<String> { (0..count).map(|i| format!("{letter}-{i:05}")).collect() };
    let workflows = provider.get_runnable_instances(now).await.unwrap();
    assert_eq!(workflows, ids("w"));
    assert_eq!(provider.get_runnable_events(now).await.unwrap(), ids("e"));
    assert_eq!(provider.get_events("n", "k", now).await.unwrap(), ids("e"));
    let found = provider.get_subscriptions("n", "k", now).await.unwrap();
    let found: Vec<String> = found.into_iter().map(|s| s.id).collect();
    assert_eq!(found, ids("s"));

    let mut asked = ids("w");
    asked.reverse();
    asked.insert(7, "absent".into());
    let found = provider.get_workflow_instances(&asked).await.unwrap();
    asked.remove(7);
    let found: Vec<String> = found.into_iter().map(|w| w.id).collect();
    assert_eq!(found, asked);

    let errors: Vec<_> = (0..count)
        .map(|i| ExecutionError::new("w", "p", i.to_string()))
        .collect();
    provider.persist_errors(&errors).await.unwrap();
    let listed = provider.list_errors(Some("w")).await.unwrap();
    let messages: Vec<_> = listed.into_iter().map(|e| e.message).collect();
    let expected: Vec<_> = (0..count).rev().map(|i| i.to_string()).collect();
    assert_eq!(messages, expected);
    assert!(provider.list_errors(Some("v")).await.unwrap().is_empty());
}

#[tokio::test]
async fn many_workflows_larger_than_a_message_come_as_a_stream() {
    let provider = make_provider().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let instance = WorkflowInstance::new("d", 1, json!("x".repeat(1_000_000)));
        ids.push(provider.create_new_workflow(&instance).await.unwrap());
    }
    let found = provider.get_workflow_instances(&ids).await.unwrap();
    assert_eq!(found.len(), 20);
}

// Commands.

type Handled = Arc<Mutex<Vec<String>>>;

/// Runs one round whose handler records what it gets and fails for these data.
async fn round(
    provider: &GrpcPersistenceProvider,
    as_of: DateTime<Utc>,
    failing: &'static [&'static str],
) -> (wfe_core::Result<()>, Vec<String>) {
    let handled = Handled::default();
    let record = handled.clone();
    let result = provider
        .process_commands(as_of, &move |command: ScheduledCommand| {
            let record = record.clone();
            Box::pin(async move {
                record.lock().unwrap().push(command.data.clone());
                if failing.contains(&command.data.as_str()) {
                    return Err(WfeError::StepExecution(format!("{} fails", command.data)));
                }
                Ok(())
            })
        })
        .await;
    let handled = handled.lock().unwrap().clone();
    (result, handled)
}

async fn schedule(provider: &GrpcPersistenceProvider, data: &str, execute_time: i64) {
    provider
        .schedule_command(&ScheduledCommand::process_workflow(data, execute_time))
        .await
        .unwrap();
}

#[tokio::test]
async fn commands_come_once_soonest_first() {
    let provider = make_provider().await;
    let now = Utc::now();
    for i in (0..250).rev() {
        schedule(&provider, &format!("{i:03}"), i).await;
    }
    schedule(&provider, "later", now.timestamp_millis() + 60_000).await;
    let (result, handled) = round(&provider, now, &[]).await;
    result.unwrap();
    let expected: Vec<_> = (0..250).map(|i| format!("{i:03}")).collect();
    assert_eq!(handled, expected);
    let (result, handled) = round(&provider, now, &[]).await;
    result.unwrap();
    assert!(handled.is_empty());
}

#[tokio::test]
async fn failing_handlers_hold_up_nobody_and_come_again() {
    let provider = make_provider().await;
    let now = Utc::now();
    for i in 0..50 {
        schedule(&provider, &format!("{i:02}"), i).await;
    }
    let (result, handled) = round(&provider, now, &["03", "01", "45"]).await;
    let error = result.unwrap_err();
    assert!(matches!(&error, WfeError::StepExecution(text) if text == "01 fails"));
    assert_eq!(handled.len(), 50);
    let (result, handled) = round(&provider, now, &[]).await;
    result.unwrap();
    assert_eq!(handled, ["01", "03", "45"]);
}

#[tokio::test]
async fn a_command_scheduled_again_while_it_is_handled_survives() {
    let provider = make_provider().await;
    let now = Utc::now();
    schedule(&provider, "w", 1).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let inner = provider.provider.clone();
    let count = calls.clone();
    provider
        .process_commands(now, &move |_| {
            let provider = inner.clone();
            let count = count.clone();
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                let later = Utc::now().timestamp_millis() + 60_000;
                schedule(&provider, "w", later).await;
                Ok(())
            })
        })
        .await
        .unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let (_, handled) = round(&provider, now, &[]).await;
    assert!(handled.is_empty());
    let (_, handled) = round(&provider, now + Duration::minutes(2), &[]).await;
    assert_eq!(handled, ["w"]);
}

/// A handler that makes its command due again immediately does not keep the round going, and
/// does not hold up other commands.
#[tokio::test]
async fn commands_that_are_always_due_come_once_a_round() {
    let provider = make_provider().await;
    for i in 0..50 {
        schedule(&provider, &format!("{i:02}"), i).await;
    }
    for _ in 0..2 {
        let handled = Handled::default();
        let record = handled.clone();
        let inner = provider.provider.clone();
        provider
            .process_commands(Utc::now(), &move |command: ScheduledCommand| {
                let (record, provider) = (record.clone(), inner.clone());
                Box::pin(async move {
                    record.lock().unwrap().push(command.data.clone());
                    schedule(&provider, &command.data, 0).await;
                    Ok(())
                })
            })
            .await
            .unwrap();
        let mut handled = handled.lock().unwrap().clone();
        handled.sort();
        let expected: Vec<_> = (0..50).map(|i| format!("{i:02}")).collect();
        assert_eq!(handled, expected);
    }
}

#[tokio::test]
async fn a_round_longer_than_its_lease_ends() {
    let alone = make_provider().await;
    let provider = builder()
        .command_lease(StdDuration::from_millis(40))
        .command_batch(5)
        .connect()
        .await
        .unwrap();
    for i in 0..8 {
        schedule(&alone, &i.to_string(), i).await;
    }
    let handled = Handled::default();
    let record = handled.clone();
    let result = provider
        .process_commands(Utc::now(), &move |command: ScheduledCommand| {
            let record = record.clone();
            Box::pin(async move {
                tokio::time::sleep(StdDuration::from_millis(25)).await;
                record.lock().unwrap().push(command.data.clone());
                if command.data == "0" {
                    return Err(WfeError::StepExecution("0 fails".into()));
                }
                Ok(())
            })
        })
        .await;
    assert!(result.is_err());
    let mut handled = handled.lock().unwrap().clone();
    assert_eq!(handled[0], "0");
    let mut once = handled.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), handled.len(), "{handled:?}");
    // Commands that the round did not reach, or did not complete within the lease, are not
    // lost: they are handled once the leases have expired.
    let expected: Vec<_> = (0..8).map(|i| i.to_string()).collect();
    let end = std::time::Instant::now() + StdDuration::from_secs(60);
    loop {
        assert!(std::time::Instant::now() < end, "{handled:?}");
        let (result, more) = round(&alone, Utc::now(), &[]).await;
        result.unwrap();
        handled.extend(more);
        handled.sort();
        handled.dedup();
        if handled == expected {
            break;
        }
        tokio::time::sleep(StdDuration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn each_command_is_handled_by_one_of_many_hosts() {
    let alone = make_provider().await;
    for i in 0..200 {
        schedule(&alone, &format!("{i:03}"), i).await;
    }
    let mut hosts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let provider = builder().connect().await.unwrap();
        hosts.spawn(async move { round(&provider, Utc::now(), &[]).await });
    }
    let mut all = Vec::new();
    while let Some(host) = hosts.join_next().await {
        let (result, handled) = host.unwrap();
        result.unwrap();
        all.extend(handled);
    }
    all.sort();
    let expected: Vec<_> = (0..200).map(|i| format!("{i:03}")).collect();
    assert_eq!(all, expected);
}
