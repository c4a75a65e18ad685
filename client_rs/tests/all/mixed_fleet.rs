//! One database, two kinds of hosts, with the original `wfe-postgres` and with this crate; and
//! a database of the original that a server adopts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration as StdDuration;

use chrono::{DateTime, Duration, TimeZone, Utc};
use serde_json::{json, Value};
use sqlx::Row;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ExecutionPointer, PointerStatus, ScheduledCommand,
    WorkflowInstance, WorkflowStatus,
};
use wfe_core::traits::{PersistenceProvider, SubscriptionRepository, WorkflowRepository};
use wfe_core::WfeError;
use wfe_persistence_client::GrpcPersistenceProvider;
use wfe_postgres::PostgresPersistenceProvider;

use crate::common;

/// Both providers, on one database.
struct Fleet {
    url: String,
    original: PostgresPersistenceProvider,
    ours: GrpcPersistenceProvider,
}

impl Fleet {
    /// A database created by our server, and joined by the original.
    async fn ours_first() -> Self {
        let url = common::new_database().await;
        let ours = serve(&url).await;
        let original = original(&url).await;
        Self {
            url,
            original,
            ours,
        }
    }

    /// Both directions, the writer first.
    fn directions(&self) -> [(&dyn PersistenceProvider, &dyn PersistenceProvider); 2] {
        [(&self.original, &self.ours), (&self.ours, &self.original)]
    }

    /// The messages in the error log, in order; the original cannot read it.
    async fn error_log(&self) -> Vec<String> {
        let pool = sqlx::PgPool::connect(&self.url).await.unwrap();
        sqlx::query("SELECT message FROM wfc.execution_errors ORDER BY id")
            .fetch_all(&pool)
            .await
            .unwrap()
            .into_iter()
            .map(|row| row.get("message"))
            .collect()
    }
}

/// A server on this database, and a provider for it.
async fn serve(url: &str) -> GrpcPersistenceProvider {
    let ours = common::connect(&common::start_server(&["--db-url", url])).await;
    ours.ensure_store_exists().await.unwrap();
    ours
}

async fn original(url: &str) -> PostgresPersistenceProvider {
    let original = PostgresPersistenceProvider::new(url).await.unwrap();
    original.ensure_store_exists().await.unwrap();
    original
}

fn time(micros: i64) -> DateTime<Utc> {
    Utc.timestamp_micros(micros).unwrap()
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A pointer with every field set.
fn full_pointer() -> ExecutionPointer {
    let mut pointer = ExecutionPointer::new(7);
    pointer.active = false;
    pointer.status = PointerStatus::WaitingForEvent;
    pointer.sleep_until = Some(time(1_700_000_000_123_456));
    pointer.persistence_data = Some(json!({"a": [1.5, null, "ü"]}));
    pointer.start_time = Some(time(-1));
    pointer.end_time = Some(time(0));
    pointer.event_name = Some("e".into());
    pointer.event_key = Some(String::new());
    pointer.event_published = true;
    pointer.event_data = Some(Value::Null);
    pointer.step_name = Some("s".into());
    pointer.retry_count = 9;
    pointer.children = vec!["b".into(), "a".into()];
    pointer.context_item = Some(json!(u64::MAX));
    pointer.predecessor_id = Some("p".into());
    pointer.outcome = Some(json!(i64::MIN));
    pointer.scope = vec!["z".into(), "y".into()];
    pointer
        .extension_attributes
        .insert("x".into(), json!({"y": null}));
    pointer
}

fn full_workflow() -> WorkflowInstance {
    let mut instance =
        WorkflowInstance::new("definition", 3, json!({"n": 9_007_199_254_740_993i64}));
    instance.name = format!("name of {}", instance.id);
    instance.root_workflow_id = Some("root".into());
    instance.description = Some("d".into());
    instance.reference = Some(String::new());
    instance.next_execution = Some(i64::MIN);
    instance.create_time = time(1_234_567_890_654_321);
    instance.complete_time = Some(time(1_234_567_890_654_322));
    instance.execution_pointers = vec![full_pointer(), ExecutionPointer::new(0)];
    instance
}

/// The original returns pointers in no defined order.
fn sorted(mut instance: WorkflowInstance) -> WorkflowInstance {
    instance.execution_pointers.sort_by(|a, b| a.id.cmp(&b.id));
    instance
}

/// For comparison; distinguishes `None` from `Some(Null)`, which serde does not.
fn plain(value: &impl std::fmt::Debug) -> String {
    format!("{value:#?}")
}

async fn same_workflow(reader: &dyn PersistenceProvider, expected: &WorkflowInstance) {
    let found = reader.get_workflow_instance(&expected.id).await.unwrap();
    assert_eq!(plain(&sorted(found)), plain(&sorted(expected.clone())));
}

async fn same_subscription(reader: &dyn PersistenceProvider, expected: &EventSubscription) {
    let found = reader.get_subscription(&expected.id).await.unwrap();
    assert_eq!(plain(&found), plain(expected));
}

async fn workflows(writer: &dyn PersistenceProvider, reader: &dyn PersistenceProvider) {
    let mut instance = full_workflow();
    writer.create_new_workflow(&instance).await.unwrap();
    same_workflow(reader, &instance).await;
    let found = reader.get_workflow_instance_by_name(&instance.name).await;
    assert_eq!(found.unwrap().id, instance.id);
    let due = reader.get_runnable_instances(Utc::now()).await.unwrap();
    assert!(due.contains(&instance.id));

    // Each persists what the other stored.
    for (round, (writer, reader)) in [(reader, writer), (writer, reader)].into_iter().enumerate() {
        instance.execution_pointers.remove(0);
        instance.execution_pointers.push(full_pointer());
        instance.execution_pointers.push(full_pointer());
        instance.data = json!({"round": round});
        instance.complete_time = None;
        instance.status = WorkflowStatus::Suspended;
        writer.persist_workflow(&instance).await.unwrap();
        same_workflow(reader, &instance).await;
        same_workflow(writer, &instance).await;
    }
    let due = reader.get_runnable_instances(Utc::now()).await.unwrap();
    assert!(!due.contains(&instance.id));

    let mut subscription = EventSubscription::new(&instance.id, 7, "p", "n", new_id(), time(5));
    subscription.subscription_data = Some(Value::Null);
    instance.execution_pointers.clear();
    writer
        .persist_workflow_with_subscriptions(&instance, std::slice::from_ref(&subscription))
        .await
        .unwrap();
    same_workflow(reader, &instance).await;
    same_subscription(reader, &subscription).await;

    let found = reader
        .get_workflow_instances(&[instance.id.clone(), "absent".into()])
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
}

async fn sequences(writer: &dyn PersistenceProvider, reader: &dyn PersistenceProvider) {
    let definition = new_id();
    for number in (1..9).step_by(2) {
        let first = writer.next_definition_sequence(&definition).await.unwrap();
        let second = reader.next_definition_sequence(&definition).await.unwrap();
        assert_eq!((first, second), (number, number + 1));
    }
}

async fn events(writer: &dyn PersistenceProvider, reader: &dyn PersistenceProvider) {
    let mut event = Event::new("n", new_id(), json!({"a": [null, u64::MAX]}));
    event.event_time = time(1_700_000_000_123_456);
    writer.create_event(&event).await.unwrap();
    let found = reader.get_event(&event.id).await.unwrap();
    assert_eq!(plain(&found), plain(&event));
    let now = Utc::now();
    let found = reader
        .get_events("n", &event.event_key, event.event_time)
        .await;
    assert_eq!(found.unwrap(), [event.id.clone()]);
    assert!(reader
        .get_runnable_events(now)
        .await
        .unwrap()
        .contains(&event.id));
    writer.mark_event_processed(&event.id).await.unwrap();
    assert!(reader.get_event(&event.id).await.unwrap().is_processed);
    assert!(!reader
        .get_runnable_events(now)
        .await
        .unwrap()
        .contains(&event.id));
    writer.mark_event_unprocessed(&event.id).await.unwrap();
    assert!(!reader.get_event(&event.id).await.unwrap().is_processed);
}

async fn subscriptions(writer: &dyn PersistenceProvider, reader: &dyn PersistenceProvider) {
    let key = new_id();
    let mut subscription = EventSubscription::new("w", 3, "p", "n", &key, time(1));
    subscription.subscription_data = Some(json!([1]));
    writer
        .create_event_subscription(&subscription)
        .await
        .unwrap();
    same_subscription(reader, &subscription).await;
    let id = subscription.id.as_str();
    let now = Utc::now();
    let open = reader.get_first_open_subscription("n", &key, now).await;
    assert_eq!(plain(&open.unwrap()), plain(&Some(subscription.clone())));

    let expiry = time((now + Duration::minutes(5)).timestamp_micros());
    assert!(writer
        .set_subscription_token(id, "t", "one", expiry)
        .await
        .unwrap());
    subscription.external_token = Some("t".into());
    subscription.external_worker_id = Some("one".into());
    subscription.external_token_expiry = Some(expiry);
    same_subscription(reader, &subscription).await;
    assert!(!reader
        .set_subscription_token(id, "u", "two", expiry)
        .await
        .unwrap());
    assert!(reader
        .get_subscriptions("n", &key, now)
        .await
        .unwrap()
        .is_empty());
    assert!(reader.clear_subscription_token(id, "u").await.is_err());
    reader.clear_subscription_token(id, "t").await.unwrap();
    assert_eq!(
        writer
            .get_subscriptions("n", &key, now)
            .await
            .unwrap()
            .len(),
        1
    );
    reader.terminate_subscription(id).await.unwrap();
    let error = writer.get_subscription(id).await.unwrap_err();
    assert!(matches!(error, WfeError::SubscriptionNotFound(_)));
}

async fn commands(writer: &dyn PersistenceProvider, reader: &dyn PersistenceProvider) {
    let data = new_id();
    let due = ScheduledCommand::process_event(&data, 5);
    let later = ScheduledCommand::process_workflow(&data, i64::MAX);
    for command in [&due, &later, &due] {
        writer.schedule_command(command).await.unwrap();
    }
    let handled = handle_all(reader).await;
    assert_eq!(plain(&handled), plain(&vec![due]));
    assert!(handle_all(writer).await.is_empty());
}

async fn handle_all(provider: &dyn PersistenceProvider) -> Vec<ScheduledCommand> {
    let handled = Arc::new(Mutex::new(Vec::new()));
    let record = handled.clone();
    provider
        .process_commands(Utc::now(), &move |command| {
            record.lock().unwrap().push(command);
            Box::pin(async { Ok(()) })
        })
        .await
        .unwrap();
    let handled = handled.lock().unwrap();
    handled.clone()
}

#[tokio::test]
async fn what_one_writes_the_other_reads() {
    let fleet = Fleet::ours_first().await;
    everything_in_both_directions(&fleet).await;
}

async fn everything_in_both_directions(fleet: &Fleet) {
    for (writer, reader) in fleet.directions() {
        workflows(writer, reader).await;
        sequences(writer, reader).await;
        events(writer, reader).await;
        subscriptions(writer, reader).await;
        commands(writer, reader).await;
    }
    let before = fleet.error_log().await;
    for (writer, message) in [
        (&fleet.original as &dyn PersistenceProvider, "theirs"),
        (&fleet.ours, "ours"),
    ] {
        let errors = [
            ExecutionError::new("w", "p", message),
            ExecutionError::new("w", "", ""),
        ];
        writer.persist_errors(&errors).await.unwrap();
    }
    let added = ["theirs", "", "ours", ""].map(String::from);
    let log = fleet.error_log().await;
    assert_eq!(log, [before.as_slice(), &added].concat());
    let mut listed: Vec<_> = fleet
        .ours
        .list_errors(None)
        .await
        .unwrap()
        .into_iter()
        .map(|error| error.message)
        .collect();
    listed.reverse();
    assert_eq!(listed, log);
}

/// Our server returns the pointers that the original wrote in the order of writing.
#[tokio::test]
async fn pointers_of_the_original_come_in_its_order() {
    let fleet = Fleet::ours_first().await;
    let mut instance = full_workflow();
    instance.execution_pointers = (0..30).map(ExecutionPointer::new).collect();
    fleet.original.create_new_workflow(&instance).await.unwrap();
    let order = |instance: &WorkflowInstance| -> Vec<usize> {
        instance
            .execution_pointers
            .iter()
            .map(|pointer| pointer.step_id)
            .collect()
    };
    let found = fleet.ours.get_workflow_instance(&instance.id).await;
    assert_eq!(order(&found.unwrap()), order(&instance));
    instance.execution_pointers.reverse();
    fleet.original.persist_workflow(&instance).await.unwrap();
    let found = fleet.ours.get_workflow_instance(&instance.id).await;
    assert_eq!(order(&found.unwrap()), order(&instance));
}

/// A claim of the original expires for our server, but never for the original.
#[tokio::test]
async fn a_dead_hosts_hold_ends() {
    let fleet = Fleet::ours_first().await;
    let subscription = EventSubscription::new("w", 0, "p", "n", "k", time(1));
    let id = fleet
        .original
        .create_event_subscription(&subscription)
        .await
        .unwrap();
    let soon = Utc::now() + Duration::milliseconds(300);
    assert!(fleet
        .original
        .set_subscription_token(&id, "t", "dead", soon)
        .await
        .unwrap());
    tokio::time::sleep(StdDuration::from_millis(600)).await;
    let later = Utc::now() + Duration::minutes(1);
    assert!(fleet
        .ours
        .set_subscription_token(&id, "u", "alive", later)
        .await
        .unwrap());
}

/// Both persist the same workflow at the same time: the last writer wins, with its full state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_written_at_the_same_time_never_mix() {
    let fleet = Arc::new(Fleet::ours_first().await);
    let mut instance = WorkflowInstance::new("d", 1, json!(null));
    instance.name.clone_from(&instance.id);
    fleet.ours.create_new_workflow(&instance).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let written: Arc<[AtomicU64; 4]> = Arc::default();

    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (fleet, stop, mut instance) = (fleet.clone(), stop.clone(), instance.clone());
        let written = written.clone();
        writers.spawn(async move {
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let mark = json!(format!("{writer}-{count}"));
                instance.data = mark.clone();
                // Some pointers stay, others come and go, with every write.
                instance.execution_pointers = (0..=(count % 7 + writer) as usize)
                    .map(|step| {
                        let mut pointer = ExecutionPointer::new(step);
                        if step % 2 == 0 {
                            pointer.id = format!("{}-{step}", instance.id);
                        }
                        pointer.outcome = Some(mark.clone());
                        pointer
                    })
                    .collect();
                let provider: &dyn PersistenceProvider = if writer % 2 == 0 {
                    &fleet.ours
                } else {
                    &fleet.original
                };
                provider.persist_workflow(&instance).await.unwrap();
                count += 1;
                written[writer as usize].store(count, Ordering::Relaxed);
            }
        });
    }
    let enough = |count: &AtomicU64| count.load(Ordering::Relaxed) >= 100;
    let mut reads = 0;
    while reads < 300 || !written.iter().all(enough) {
        if let Some(end) = writers.try_join_next() {
            panic!("a writer ended: {end:?}");
        }
        let found = fleet
            .ours
            .get_workflow_instance(&instance.id)
            .await
            .unwrap();
        let Some((writer, count)) = found.data.as_str().and_then(|mark| mark.split_once('-'))
        else {
            continue;
        };
        let expected = count.parse::<u64>().unwrap() % 7 + writer.parse::<u64>().unwrap() + 1;
        assert_eq!(
            found.execution_pointers.len() as u64,
            expected,
            "{found:#?}"
        );
        for pointer in &found.execution_pointers {
            assert_eq!(pointer.outcome.as_ref(), Some(&found.data));
        }
        reads += 1;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(end) = writers.join_next().await {
        end.unwrap();
    }
}

/// A database that the original created and filled is adopted without loss, and remains
/// usable for the original.
#[tokio::test]
async fn a_database_of_the_original_is_adopted() {
    let url = common::new_database().await;
    let original = original(&url).await;
    let store: &dyn PersistenceProvider = &original;

    let instances: Vec<_> = (0..20).map(|_| full_workflow()).collect();
    let mut all_events = Vec::new();
    let mut all_subscriptions = Vec::new();
    for (i, instance) in instances.iter().enumerate() {
        store.create_new_workflow(instance).await.unwrap();
        let mut event = Event::new("n", "k", json!({ "i": i }));
        event.event_time = time(i as i64);
        event.is_processed = i % 2 == 0;
        store.create_event(&event).await.unwrap();
        all_events.push(event);
        let mut subscription =
            EventSubscription::new(&instance.id, i, "p", "n", "k", time(i as i64));
        if i % 2 == 0 {
            subscription.external_token = Some("t".into());
            subscription.external_worker_id = Some("w".into());
            subscription.external_token_expiry = Some(time(4_000_000_000_000_000));
        }
        store
            .create_event_subscription(&subscription)
            .await
            .unwrap();
        all_subscriptions.push(subscription);
        let command = ScheduledCommand::process_workflow(&instance.id, i as i64);
        store.schedule_command(&command).await.unwrap();
        assert_eq!(
            store.next_definition_sequence("d").await.unwrap(),
            i as u64 + 1
        );
        let error = ExecutionError::new(&instance.id, "p", i.to_string());
        store.persist_errors(&[error]).await.unwrap();
    }

    let ours = serve(&url).await;
    for instance in &instances {
        same_workflow(&ours, instance).await;
    }
    for event in &all_events {
        let store: &dyn PersistenceProvider = &ours;
        let found = store.get_event(&event.id).await.unwrap();
        assert_eq!(plain(&found), plain(event));
    }
    for subscription in &all_subscriptions {
        same_subscription(&ours, subscription).await;
    }
    let store: &dyn PersistenceProvider = &ours;
    let now = Utc::now();
    assert_eq!(store.get_runnable_instances(now).await.unwrap().len(), 20);
    assert_eq!(store.get_runnable_events(now).await.unwrap().len(), 10);
    let open = store.get_subscriptions("n", "k", now).await.unwrap();
    assert_eq!(open.len(), 10);
    assert_eq!(store.next_definition_sequence("d").await.unwrap(), 21);
    assert_eq!(ours.list_errors(None).await.unwrap().len(), 20);
    let handled = handle_all(store).await;
    let handled: Vec<_> = handled.into_iter().map(|command| command.data).collect();
    let expected: Vec<_> = instances.iter().map(|w| w.id.clone()).collect();
    assert_eq!(handled, expected);

    // Both continue to use it, the original also after a restart.
    for original in [original, self::original(&url).await] {
        let fleet = Fleet {
            url: url.clone(),
            original,
            ours: ours.clone(),
        };
        for instance in &instances {
            same_workflow(&fleet.original, instance).await;
        }
        everything_in_both_directions(&fleet).await;
    }
}
