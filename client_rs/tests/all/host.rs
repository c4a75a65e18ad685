//! The real engine, end to end, with its state in the server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{json, Value};
use wfe::builder::WorkflowBuilder;
use wfe::models::{
    ErrorBehavior, ExecutionResult, PointerStatus, StepOutcome, WorkflowDefinition,
    WorkflowInstance, WorkflowStatus, WorkflowStep,
};
use wfe::primitives::saga_container::SagaContainerStep;
use wfe::primitives::sub_workflow::SubWorkflowStep;
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::traits::DistributedLockProvider;
use wfe::{WfeError, WorkflowHost, WorkflowHostBuilder};
use wfe_core::test_support::{InMemoryLockProvider, InMemoryQueueProvider};
use wfe_persistence_client::GrpcPersistenceProvider;

use crate::common;

/// Records its name and input in the workflow's data.
#[derive(Default)]
struct Work;

#[async_trait]
impl StepBody for Work {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let name = context.step.name.clone().unwrap_or_default();
        let mut result = ExecutionResult::next();
        result.output_data = Some(json!({ name: context.step.step_config }));
        Ok(result)
    }
}

/// Sleeps once.
#[derive(Default)]
struct Nap;

#[async_trait]
impl StepBody for Nap {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        Ok(match context.persistence_data {
            Some(_) => ExecutionResult::next(),
            None => ExecutionResult::sleep(Duration::from_millis(300), Some(json!("slept"))),
        })
    }
}

/// Fails twice, for the workflow whose data says so.
#[derive(Default)]
struct Stumble;

static STUMBLES: AtomicU32 = AtomicU32::new(0);

#[async_trait]
impl StepBody for Stumble {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        match STUMBLES.fetch_add(1, Ordering::SeqCst) {
            count @ 0..2 => Err(WfeError::StepExecution(format!("stumble {count}"))),
            _ => Ok(ExecutionResult::next()),
        }
    }
}

/// Always fails.
#[derive(Default)]
struct Fail;

#[async_trait]
impl StepBody for Fail {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        Err(WfeError::StepExecution("the card is refused".into()))
    }
}

/// Waits for a lock that is held. The engine queues a workflow before it releases the lock on it,
/// and drops one that it takes from the queue in between; `hosts` tests what prevents that.
struct PatientLocks(InMemoryLockProvider);

#[async_trait]
impl DistributedLockProvider for PatientLocks {
    async fn acquire_lock(&self, resource: &str) -> wfe::Result<bool> {
        while !self.0.acquire_lock(resource).await? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    async fn release_lock(&self, resource: &str) -> wfe::Result<()> {
        self.0.release_lock(resource).await
    }

    async fn start(&self) -> wfe::Result<()> {
        Ok(())
    }

    async fn stop(&self) -> wfe::Result<()> {
        Ok(())
    }
}

/// A running host of one definition, and the provider it uses.
async fn host(definitions: Vec<WorkflowDefinition>) -> (WorkflowHost, GrpcPersistenceProvider) {
    let provider = common::provider().await;
    let host = WorkflowHostBuilder::new()
        .use_persistence(Arc::new(provider.clone()))
        .use_lock_provider(Arc::new(PatientLocks(InMemoryLockProvider::new())))
        .use_queue_provider(Arc::new(InMemoryQueueProvider::new()))
        .build()
        .unwrap();
    host.register_step::<Work>().await;
    host.register_step::<Nap>().await;
    host.register_step::<Stumble>().await;
    host.register_step::<Fail>().await;
    for definition in definitions {
        host.register_workflow_definition(definition).await;
    }
    host.start().await.unwrap();
    (host, provider)
}

/// Waits until a workflow meets a condition.
async fn wait_for(
    host: &WorkflowHost,
    id: &str,
    wanted: impl Fn(&WorkflowInstance) -> bool,
) -> WorkflowInstance {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let instance = host.get_workflow(id).await.unwrap();
        if wanted(&instance) {
            return instance;
        }
        assert!(tokio::time::Instant::now() < end, "{instance:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run(host: &WorkflowHost, definition: &str, data: Value) -> WorkflowInstance {
    let id = host.start_workflow(definition, 1, data).await.unwrap();
    let done = wait_for(host, &id, |w| w.status == WorkflowStatus::Complete).await;
    assert!(done.complete_time.is_some());
    assert_eq!(done.next_execution, None);
    done
}

/// A name that no other test and no earlier run has used: sequences persist in the store.
fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::new_v4().simple())
}

type Builder = WorkflowBuilder<Value>;

#[tokio::test]
async fn a_linear_workflow() {
    let name = unique("linear");
    let definition = Builder::new()
        .start_with::<Work>()
        .name("a")
        .config(json!(u64::MAX))
        .then::<Work>()
        .name("b")
        .config(json!({"deep": [null, 0.1]}))
        .then::<Work>()
        .name("c")
        .build(&name, 1);
    let (host, _) = host(vec![definition]).await;
    let first = run(&host, &name, json!({"in": "ü"})).await;
    assert_eq!(first.name, format!("{name}-1"));
    assert_eq!(
        first.data,
        json!({"in": "ü", "a": u64::MAX, "b": {"deep": [null, 0.1]}, "c": null})
    );
    let steps: Vec<_> = first.execution_pointers.iter().map(|p| p.step_id).collect();
    assert_eq!(steps, [0, 1, 2]);
    let second = run(&host, &name, json!({})).await;
    assert_eq!(second.name, format!("{name}-2"));
    let by_name = host.get_workflow(&second.name).await.unwrap();
    assert_eq!(by_name.id, second.id);
    host.stop().await;
}

#[tokio::test]
async fn parallel_branches() {
    let name = unique("parallel");
    let definition = Builder::new()
        .start_with::<Work>()
        .name("begin")
        .parallel(|all| {
            all.branch(|b| {
                b.add_step_typed::<Work>("left", Some(json!(1)));
            })
            .branch(|b| {
                b.add_step_typed::<Nap>("slow", None);
            })
            .branch(|b| {
                b.add_step_typed::<Work>("right", Some(json!(2)));
            })
        })
        .then::<Work>()
        .name("end")
        .build(&name, 1);
    let (host, _) = host(vec![definition]).await;
    let done = run(&host, &name, json!({})).await;
    assert_eq!(
        done.data,
        json!({"begin": null, "left": 1, "right": 2, "end": null})
    );
    let container = &done.execution_pointers[1];
    assert_eq!(container.children.len(), 3);
    for child in &container.children {
        let pointer = done.execution_pointers.iter().find(|p| p.id == *child);
        let pointer = pointer.expect("each child is stored");
        assert_eq!(pointer.scope, std::slice::from_ref(&container.id));
        assert_eq!(pointer.status, PointerStatus::Complete);
    }
    host.stop().await;
}

#[tokio::test]
async fn an_event_published_later() {
    let name = unique("event");
    let key = unique("order");
    let definition = Builder::new()
        .start_with::<Work>()
        .name("asked")
        .wait_for("approved", &key)
        .then::<Work>()
        .name("done")
        .build(&name, 1);
    let (host, provider) = host(vec![definition]).await;
    let id = host.start_workflow(&name, 1, json!({})).await.unwrap();
    let waiting = |w: &WorkflowInstance| {
        w.execution_pointers
            .iter()
            .any(|p| p.status == PointerStatus::WaitingForEvent)
    };
    wait_for(&host, &id, waiting).await;
    let store: &dyn wfe::traits::PersistenceProvider = &provider;
    let open = store
        .get_subscriptions("approved", &key, chrono::Utc::now())
        .await
        .unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].workflow_id, id);

    host.publish_event("approved", "another key", json!(null))
        .await
        .unwrap();
    host.publish_event("approved", &key, json!({"by": "me"}))
        .await
        .unwrap();
    let done = wait_for(&host, &id, |w| w.status == WorkflowStatus::Complete).await;
    assert_eq!(
        done.execution_pointers[1].event_data,
        Some(json!({"by": "me"}))
    );
    assert!(done.execution_pointers[1].event_published);
    let open = store
        .get_subscriptions("approved", &key, chrono::Utc::now())
        .await
        .unwrap();
    assert!(open.is_empty());
    let events = store
        .get_events("approved", &key, chrono::Utc::now())
        .await
        .unwrap();
    assert!(store.get_event(&events[0]).await.unwrap().is_processed);
    host.stop().await;
}

#[tokio::test]
async fn a_delay() {
    let name = unique("delay");
    let definition = Builder::new()
        .start_with::<Nap>()
        .then::<Work>()
        .name("awake")
        .build(&name, 1);
    let (host, _) = host(vec![definition]).await;
    let done = run(&host, &name, json!({})).await;
    let nap = &done.execution_pointers[0];
    assert_eq!(nap.persistence_data, Some(json!("slept")));
    assert!(nap.sleep_until.unwrap() <= done.execution_pointers[1].start_time.unwrap());
    host.stop().await;
}

#[tokio::test]
async fn an_error_with_retry() {
    let name = unique("retry");
    let definition = Builder::new()
        .start_with::<Stumble>()
        .on_error(ErrorBehavior::Retry {
            interval: Duration::from_millis(50),
            max_retries: 5,
        })
        .then::<Work>()
        .name("done")
        .build(&name, 1);
    let (host, provider) = host(vec![definition]).await;
    let done = run(&host, &name, json!({})).await;
    assert_eq!(done.execution_pointers[0].retry_count, 2);
    let mut errors = provider.list_errors(Some(&done.id)).await.unwrap();
    errors.reverse();
    let messages: Vec<_> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(
        messages,
        ["stumble 0", "stumble 1"].map(|text| format!("Step execution error: {text}"))
    );
    assert_eq!(
        errors[0].execution_pointer_id,
        done.execution_pointers[0].id
    );
    host.stop().await;
}

#[tokio::test]
async fn a_saga_with_compensation() {
    let name = unique("saga");
    let step = |id, step_type, name: &str, next: Option<usize>| {
        let mut step = WorkflowStep::new(id, step_type);
        step.name = Some(name.into());
        step.outcomes.extend(next.map(|next_step| StepOutcome {
            next_step,
            label: None,
            value: None,
        }));
        step
    };
    let work = std::any::type_name::<Work>();
    let mut saga = step(
        1,
        std::any::type_name::<SagaContainerStep>(),
        "saga",
        Some(4),
    );
    saga.saga = true;
    saga.children = vec![2, 3];
    let mut charge = step(3, std::any::type_name::<Fail>(), "charge", None);
    charge.error_behavior = Some(ErrorBehavior::Compensate);
    charge.compensation_step_id = Some(5);
    let mut definition = WorkflowDefinition::new(&name, 1);
    definition.steps = vec![
        step(0, work, "begin", Some(1)),
        saga,
        step(2, work, "reserve", None),
        charge,
        step(4, work, "end", None),
        step(5, work, "refund", None),
    ];
    let (host, provider) = host(vec![definition]).await;
    let done = run(&host, &name, json!({})).await;
    assert_eq!(
        done.data,
        json!({"begin": null, "reserve": null, "refund": null, "end": null})
    );
    let status = |step| {
        let pointer = done
            .execution_pointers
            .iter()
            .find(|pointer| pointer.step_id == step);
        pointer.expect("the step ran").status
    };
    assert_eq!(status(3), PointerStatus::Failed);
    assert_eq!(status(5), PointerStatus::Complete);
    let errors = provider.list_errors(Some(&done.id)).await.unwrap();
    assert_eq!(errors.len(), 1);
    host.stop().await;
}

#[tokio::test]
async fn a_sub_workflow() {
    let parent = unique("parent");
    let child = unique("child");
    let child_definition = Builder::new()
        .start_with::<Work>()
        .name("found")
        .config(json!(42))
        .build(&child, 1);
    let parent_definition = Builder::new()
        .start_with::<Work>()
        .name("begin")
        .then::<SubWorkflowStep>()
        .config(json!({"workflow_id": child, "version": 1, "output_keys": ["found"]}))
        .then::<Work>()
        .name("end")
        .build(&parent, 1);
    let (host, _) = host(vec![parent_definition, child_definition]).await;
    let done = run(&host, &parent, json!({})).await;
    assert_eq!(done.data, json!({"begin": null, "found": 42, "end": null}));
    let child = host.get_workflow(&format!("{child}-1")).await.unwrap();
    assert_eq!(child.status, WorkflowStatus::Complete);
    assert_eq!(child.root_workflow_id.as_deref(), Some(done.id.as_str()));
    host.stop().await;
}

#[tokio::test]
async fn suspended_resumed_and_terminated() {
    let name = unique("control");
    let definition = Builder::new()
        .start_with::<Work>()
        .name("begin")
        .wait_for("never", &name)
        .build(&name, 1);
    let (host, _) = host(vec![definition]).await;
    let waiting = |w: &WorkflowInstance| {
        w.execution_pointers
            .iter()
            .any(|p| p.status == PointerStatus::WaitingForEvent)
    };
    // A separate workflow for each: after `resume` the engine is running it, and would undo
    // `terminate` when it persists the result.
    let id = host.start_workflow(&name, 1, json!({})).await.unwrap();
    wait_for(&host, &id, waiting).await;
    assert!(host.suspend_workflow(&id).await.unwrap());
    let status = host.get_workflow(&id).await.unwrap().status;
    assert_eq!(status, WorkflowStatus::Suspended);
    assert!(host.resume_workflow(&id).await.unwrap());
    let status = host.get_workflow(&id).await.unwrap().status;
    assert_eq!(status, WorkflowStatus::Runnable);

    let id = host.start_workflow(&name, 1, json!({})).await.unwrap();
    wait_for(&host, &id, waiting).await;
    assert!(host.terminate_workflow(&id).await.unwrap());
    let ended = host.get_workflow(&id).await.unwrap();
    assert_eq!(ended.status, WorkflowStatus::Terminated);
    assert!(ended.complete_time.is_some());
    assert!(matches!(
        host.get_workflow("no such workflow").await,
        Err(WfeError::WorkflowNotFound(_))
    ));
    host.stop().await;
}
