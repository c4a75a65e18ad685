//! A namespace set: the engine's own test suite on it, and what only a set has.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::Utc;
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use wfe_core::models::{Event, EventSubscription, WorkflowInstance};
use wfe_core::traits::{EventRepository, SubscriptionRepository, WorkflowRepository};
use wfe_persistence_client::{GrpcNamespaceSet, GrpcPersistenceProvider};

use crate::common;

const NAME: &str = "rust_set";
const MEMBERS: u32 = 3;

/// A set with exclusive use, emptied.
struct Alone {
    set: GrpcNamespaceSet,
    _turn: OwnedMutexGuard<()>,
}

impl Deref for Alone {
    type Target = GrpcNamespaceSet;

    fn deref(&self) -> &Self::Target {
        &self.set
    }
}

async fn set() -> Alone {
    static TURN: LazyLock<Arc<tokio::sync::Mutex<()>>> = LazyLock::new(Arc::default);
    let turn = TURN.clone().lock_owned().await;
    let default = common::provider().await;
    default.create_namespace_set(NAME, MEMBERS).await.unwrap();
    let set = connect().await;
    for member in set.members() {
        member.truncate_all().await.unwrap();
    }
    Alone { set, _turn: turn }
}

async fn connect() -> GrpcNamespaceSet {
    GrpcPersistenceProvider::builder(common::target())
        .timeout(Duration::from_secs(60))
        .connect_set(NAME)
        .await
        .unwrap()
}

wfe_core::persistence_suite!(|| async { set().await });

fn workflow(name: &str) -> WorkflowInstance {
    let mut workflow = WorkflowInstance::new("d", 1, json!({}));
    workflow.name = name.into();
    workflow
}

/// How many members have a workflow with this name.
async fn having(set: &GrpcNamespaceSet, name: &str) -> usize {
    let mut count = 0;
    for member in set.members() {
        count += usize::from(member.get_workflow_instance_by_name(name).await.is_ok());
    }
    count
}

#[tokio::test]
async fn workflows_are_in_the_members_of_their_ids() {
    let set = set().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(set.create_new_workflow(&workflow("")).await.unwrap());
    }
    for id in &ids {
        let own = set.member_of(id).get_workflow_instance(id).await.unwrap();
        assert_eq!(&own.id, id);
    }
    let found = set.get_workflow_instances(&ids).await.unwrap();
    let found: Vec<String> = found.into_iter().map(|one| one.id).collect();
    assert_eq!(found, ids);
    let mut used = 0;
    for member in set.members() {
        used += usize::from(
            !member
                .get_workflow_instances(&ids)
                .await
                .unwrap()
                .is_empty(),
        );
    }
    assert_eq!(used, MEMBERS as usize);
}

#[tokio::test]
async fn a_name_is_had_by_one_workflow() {
    let set = set().await;
    let other = connect().await;
    for number in 0..5 {
        let name = format!("invoice-{number}");
        let first = workflow(&name);
        set.create_new_workflow(&first).await.unwrap();
        // The same again changes nothing.
        other.create_new_workflow(&first).await.unwrap();
        for _ in 0..3 {
            let error = other
                .create_new_workflow(&workflow(&name))
                .await
                .unwrap_err();
            assert!(error.to_string().contains("NAME_TAKEN"), "{error}");
        }
        assert_eq!(having(&set, &name).await, 1);
        let found = other.get_workflow_instance_by_name(&name).await.unwrap();
        assert_eq!(found.id, first.id);
        // Its steps do not take it again, and a new name is taken.
        let mut mine = set.get_workflow_instance(&first.id).await.unwrap();
        mine.data = json!({"a": 1});
        set.persist_workflow(&mine).await.unwrap();
        mine.name = format!("renamed-{number}");
        set.persist_workflow(&mine).await.unwrap();
        other.create_new_workflow(&workflow(&name)).await.unwrap();
        mine.name = name.clone();
        let error = set.persist_workflow(&mine).await.unwrap_err();
        assert!(error.to_string().contains("NAME_TAKEN"), "{error}");
        assert_eq!(having(&set, &name).await, 1);
    }
}

#[tokio::test]
async fn of_many_at_the_same_time_one_has_the_name() {
    let set = set().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let set = set.clone();
        calls.spawn(async move { set.create_new_workflow(&workflow("only-one")).await.is_ok() });
    }
    let mut done = 0;
    while let Some(created) = calls.join_next().await {
        done += usize::from(created.unwrap());
    }
    assert_eq!(done, 1);
    assert_eq!(having(&set, "only-one").await, 1);
}

#[tokio::test]
async fn events_and_subscriptions_are_found_wherever_they_are() {
    let set = set().await;
    let now = Utc::now();
    let mut made = Vec::new();
    for _ in 0..9 {
        let mut waiting = workflow("");
        let mut subscription = EventSubscription::new(&waiting.id, 1, "p", "paid", "k", now);
        subscription.id.clear();
        set.create_new_workflow(&waiting).await.unwrap();
        waiting.data = json!(1);
        set.persist_workflow_with_subscriptions(&waiting, &[subscription])
            .await
            .unwrap();
        made.push(waiting.id);
    }
    let event = Event::new("paid", "k", json!(1));
    set.create_event(&event).await.unwrap();
    let later = Utc::now() + chrono::Duration::seconds(60);
    assert_eq!(
        set.get_events("paid", "k", later).await.unwrap(),
        std::slice::from_ref(&event.id)
    );
    let waiting = set.get_subscriptions("paid", "k", later).await.unwrap();
    let mut workflows: Vec<_> = waiting.iter().map(|s| s.workflow_id.clone()).collect();
    workflows.sort();
    made.sort();
    assert_eq!(workflows, made);
    for subscription in &waiting {
        // The id that was made up tells where it is.
        assert!(subscription.id.contains('@'), "{}", subscription.id);
        set.terminate_subscription(&subscription.id).await.unwrap();
        assert!(set.terminate_subscription(&subscription.id).await.is_err());
    }
    set.mark_event_processed(&event.id).await.unwrap();
    assert!(set.get_event(&event.id).await.unwrap().is_processed);
    assert!(set.get_runnable_events(later).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_set_that_does_not_exist() {
    let outcome = GrpcPersistenceProvider::builder(common::target())
        .connect_set("rust_absent")
        .await;
    let error = outcome.err().unwrap();
    assert!(
        error.to_string().contains("NAMESPACE_SET_NOT_FOUND"),
        "{error}"
    );
}
