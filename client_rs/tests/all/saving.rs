//! What a provider caches, and what it sends: patches, full states, steps.

use serde_json::json;
use uuid::Uuid;
use wfe_core::models::{
    CommandName, Event, EventSubscription, ExecutionError, ExecutionPointer, PointerStatus,
    ScheduledCommand, WorkflowInstance,
};
use wfe_core::traits::{EventRepository, SubscriptionRepository, WorkflowRepository};
use wfe_persistence_client::v1::workflow_service_client::WorkflowServiceClient;
use wfe_persistence_client::v1::{self, ErrorReason};
use wfe_persistence_client::{GrpcPersistenceProvider, Step};

use crate::common;

async fn provider(target: &str, remember: usize, strict: bool) -> GrpcPersistenceProvider {
    GrpcPersistenceProvider::builder(target)
        .remember(remember)
        .strict(strict)
        .connect()
        .await
        .unwrap()
}

/// A stored workflow with this number of pointers.
async fn stored(by: &GrpcPersistenceProvider, pointers: usize) -> WorkflowInstance {
    let mut instance = WorkflowInstance::new("order", 1, json!({"total": 12.5, "n": 1}));
    for step in 0..pointers {
        let mut pointer = ExecutionPointer::new(step);
        pointer.outcome = Some(json!({"step": step}));
        instance.execution_pointers.push(pointer);
    }
    instance.id = by.create_new_workflow(&instance).await.unwrap();
    by.get_workflow_instance(&instance.id).await.unwrap()
}

async fn load(id: &str, by: &GrpcPersistenceProvider) -> WorkflowInstance {
    by.get_workflow_instance(id).await.unwrap()
}

fn same(a: &WorkflowInstance, b: &WorkflowInstance) {
    assert_eq!(
        serde_json::to_value(a).unwrap(),
        serde_json::to_value(b).unwrap()
    );
}

/// Changes a pointer directly in the database, without a new revision. A patch of another
/// pointer leaves it unchanged; a full state would overwrite it.
async fn change_behind(url: &str, id: &str, pointer: &str) {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let sql =
        "UPDATE wfc.execution_pointers SET retry_count = 77 WHERE workflow_id = $1 AND id = $2";
    let done = sqlx::query(sql).bind(id).bind(pointer).execute(&pool).await;
    assert_eq!(done.unwrap().rows_affected(), 1);
}

#[tokio::test]
async fn only_what_has_changed_is_sent() {
    let url = common::new_database().await;
    let target = common::start_server(&["--db-url", &url]);
    for (remember, expected) in [(1000, 77), (0, 0)] {
        let ours = provider(&target, remember, false).await;
        let mut instance = stored(&ours, 3).await;
        let behind = instance.execution_pointers[1].id.clone();
        change_behind(&url, &instance.id, &behind).await;
        instance.execution_pointers[0].status = PointerStatus::Complete;
        instance.execution_pointers.push(ExecutionPointer::new(9));
        ours.persist_workflow(&instance).await.unwrap();
        let found = load(&instance.id, &ours).await;
        assert_eq!(found.execution_pointers[1].retry_count, expected);
        assert_eq!(found.execution_pointers[0].status, PointerStatus::Complete);
        assert_eq!(found.execution_pointers.len(), 4);
    }
}

/// The stored workflow, with its revision.
async fn message(id: &str) -> v1::WorkflowInstance {
    let id = id.to_string();
    let request = v1::GetWorkflowInstanceRequest {
        id,
        ..Default::default()
    };
    let response = stub().await.get_workflow_instance(request).await.unwrap();
    response.into_inner().instance.unwrap()
}

async fn stub() -> WorkflowServiceClient<tonic::transport::Channel> {
    let address = format!("http://{}", common::target());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    WorkflowServiceClient::new(endpoint.connect().await.unwrap())
}

/// Deletes a workflow and creates another one with its id, of which only the content and the
/// revision tell that it is another; returns it as stored.
async fn replace(instance: &WorkflowInstance, by: &GrpcPersistenceProvider) -> WorkflowInstance {
    let before = message(&instance.id).await.revision;
    let request = v1::DeleteWorkflowRequest {
        id: instance.id.clone(),
        ..Default::default()
    };
    stub().await.delete_workflow(request).await.unwrap();
    let mut other = WorkflowInstance::new("another", 2, json!("another"));
    other.id.clone_from(&instance.id);
    other.create_time = instance.create_time;
    // A pointer that the deleted one has too, and one that it does not have.
    other.execution_pointers = vec![ExecutionPointer::new(70), ExecutionPointer::new(71)];
    if let Some(pointer) = instance.execution_pointers.last() {
        other.execution_pointers[1].id.clone_from(&pointer.id);
    }
    by.create_new_workflow(&other).await.unwrap();
    let first = message(&instance.id).await.revision;
    // Where revisions come again, the one that others remember comes again now.
    for _ in first..before {
        by.persist_workflow(&other).await.unwrap();
    }
    assert!(first > before, "{first} after {before}");
    load(&instance.id, by).await
}

fn mismatch(outcome: wfe_core::Result<()>) {
    let text = outcome.unwrap_err().to_string();
    assert!(text.contains("REVISION_MISMATCH"), "{text}");
}

#[tokio::test]
async fn a_workflow_and_another_one_with_its_id_are_never_mixed() {
    let witness = provider(&common::target(), 0, false).await;
    for strict in [false, true] {
        let ours = provider(&common::target(), 1000, strict).await;
        let mut instance = stored(&ours, 3).await;
        let revision = message(&instance.id).await.revision;
        let other = replace(&instance, &witness).await;
        instance.execution_pointers[2].status = PointerStatus::Complete;
        // Whoever names the revision is refused, however often.
        for _ in 0..2 {
            let mut step = Step::new(&instance).unwrap();
            step.expect_revision(revision);
            let error = ours.commit(step).await.unwrap_err();
            assert_eq!(error.reason(), Some(ErrorReason::RevisionMismatch));
        }
        if strict {
            mismatch(ours.persist_workflow(&instance).await);
            mismatch(ours.persist_workflow(&instance).await);
            same(&load(&instance.id, &witness).await, &other);
            let mut again = load(&instance.id, &ours).await;
            again.data = json!("ours");
            ours.persist_workflow(&again).await.unwrap();
            same(&load(&instance.id, &witness).await, &again);
        } else {
            ours.persist_workflow(&instance).await.unwrap();
            same(&load(&instance.id, &witness).await, &instance);
        }
    }
}

#[tokio::test]
async fn what_is_stored_is_what_was_given_after_any_edits() {
    any_edits(false).await;
}

#[tokio::test]
async fn strict_writes_store_what_was_given_or_nothing_after_any_edits() {
    any_edits(true).await;
}

async fn any_edits(strict: bool) {
    let ours = provider(&common::target(), 1000, strict).await;
    let witness = provider(&common::target(), 0, false).await;
    let mut instance = stored(&ours, 5).await;
    let mut seed = 7u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for round in 0..60 {
        for _ in 0..=random(3) {
            let pointers = &mut instance.execution_pointers;
            match (random(7), pointers.len()) {
                (0, _) => pointers.push(ExecutionPointer::new(round)),
                (1, 2..) => drop(pointers.remove(random(pointers.len()))),
                (2, 2..) => pointers.swap(0, 1),
                (3, n) => pointers.insert(random(n + 1), ExecutionPointer::new(round)),
                (4, n @ 1..) => pointers[random(n)].outcome = Some(json!({"round": round})),
                (5, n @ 1..) => {
                    let attributes = &mut pointers[random(n)].extension_attributes;
                    attributes.insert(format!("k{}", random(4)), json!(round));
                }
                _ => instance.data = json!({"round": round, "list": [1, null, 2.5]}),
            }
        }
        instance.next_execution = (round % 3 > 0).then_some(round as i64);
        instance.description = (round % 4 > 0).then(|| format!("round {round}"));
        let mut theirs = None;
        if round % 9 == 8 {
            // Another writer comes in between.
            let mut changed = load(&instance.id, &witness).await;
            changed.execution_pointers.push(ExecutionPointer::new(1000));
            changed.reference = Some("theirs".into());
            witness.persist_workflow(&changed).await.unwrap();
            theirs = Some(changed);
        } else if round % 5 == 3 {
            theirs = Some(replace(&instance, &witness).await);
        }
        match theirs {
            Some(theirs) if strict => {
                mismatch(ours.persist_workflow(&instance).await);
                same(&load(&instance.id, &witness).await, &theirs);
                instance = load(&instance.id, &ours).await;
            }
            // The last writer wins, with its full state.
            _ => {
                ours.persist_workflow(&instance).await.unwrap();
                same(&load(&instance.id, &witness).await, &instance);
            }
        }
    }
}

#[tokio::test]
async fn writers_at_once_never_leave_a_mix() {
    let ours = [common::provider().await, common::provider().await];
    let instance = stored(&ours[0], 4).await;
    load(&instance.id, &ours[1]).await;
    for round in 0..10 {
        let mut writes = Vec::new();
        for (who, provider) in ours.iter().enumerate() {
            for task in 0..2 {
                let mut mine = instance.clone();
                mine.data = json!([round, who, task]);
                for pointer in &mut mine.execution_pointers {
                    pointer.outcome = Some(mine.data.clone());
                }
                let provider = provider.clone();
                writes.push(tokio::spawn(async move {
                    provider.persist_workflow(&mine).await.unwrap();
                }));
            }
        }
        for write in writes {
            write.await.unwrap();
        }
        let found = load(&instance.id, &ours[round % 2]).await;
        for pointer in &found.execution_pointers {
            assert_eq!(pointer.outcome.as_ref(), Some(&found.data), "round {round}");
        }
    }
}

#[tokio::test]
async fn strict_tells_of_what_somebody_else_has_written() {
    let strict = provider(&common::target(), 1000, true).await;
    let other = common::provider().await;
    let mut instance = stored(&strict, 2).await;
    let mut theirs = load(&instance.id, &other).await;
    theirs.data = json!("theirs");
    other.persist_workflow(&theirs).await.unwrap();
    instance.data = json!("ours");
    mismatch(strict.persist_workflow(&instance).await);
    // Also if the engine tries again.
    mismatch(strict.persist_workflow(&instance).await);
    assert_eq!(load(&instance.id, &other).await.data, json!("theirs"));
    // Reloaded, it can be persisted again.
    let mut again = load(&instance.id, &strict).await;
    again.data = json!("ours");
    strict.persist_workflow(&again).await.unwrap();
}

#[tokio::test]
async fn a_step_is_stored_whole_or_not_at_all() {
    for remember in [1000, 0] {
        let ours = provider(&common::target(), remember, false).await;
        let mut instance = stored(&ours, 2).await;
        let mut subscription =
            EventSubscription::new(&instance.id, 0, "p", "paid", "k", chrono::Utc::now());
        subscription.id = ours.create_event_subscription(&subscription).await.unwrap();
        let held = ours.set_subscription_token(
            &subscription.id,
            "mine",
            "w",
            chrono::Utc::now() + chrono::Duration::hours(1),
        );
        assert!(held.await.unwrap());
        instance.execution_pointers[0].status = PointerStatus::Complete;
        let event = Event::new("done", Uuid::new_v4().to_string(), json!(1));
        let step = || {
            let mut step = Step::new(&instance).unwrap();
            step.terminate_subscription(&subscription.id);
            let id = step.create_event(&event);
            step.log_error(&ExecutionError::new(&instance.id, "p", "tried"));
            step.schedule_command(&ScheduledCommand {
                command_name: CommandName::ProcessWorkflow,
                data: instance.id.clone(),
                execute_time: i64::MAX,
            });
            (step, id)
        };

        let (mut refused, event_id) = step();
        refused.hold_subscription(&subscription.id, "somebody else's", None);
        let error = ours.commit(refused).await.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::TokenMismatch));
        assert!(ours.get_event(&event_id).await.is_err());
        assert!(ours.get_subscription(&subscription.id).await.is_ok());
        assert!(ours
            .list_errors(Some(&instance.id))
            .await
            .unwrap()
            .is_empty());

        let (mut good, event_id) = step();
        good.hold_subscription(&subscription.id, "mine", None);
        let committed = ours.commit(good.clone()).await.unwrap();
        assert_eq!(committed.event_ids, std::slice::from_ref(&event_id));
        same(&load(&instance.id, &ours).await, &instance);
        assert!(ours.get_event(&event_id).await.is_ok());
        assert!(ours.get_subscription(&subscription.id).await.is_err());
        assert_eq!(ours.list_errors(Some(&instance.id)).await.unwrap().len(), 1);

        // With the previous revision, it is refused.
        let (mut late, _) = step();
        late.expect_revision(committed.revision - 1);
        let error = ours.commit(late).await.unwrap_err();
        assert!(matches!(
            error.reason(),
            Some(ErrorReason::RevisionMismatch | ErrorReason::SubscriptionNotFound)
        ));
    }
}
