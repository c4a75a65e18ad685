//! Real hosts of the engine that have nothing but the server: queue, locks, lifecycle events and
//! persistence are one `GrpcHost`. This file holds what the tests share.

mod calls;
mod events;
mod leases;
mod order;
mod search;
mod work;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{json, Value};
use tonic::transport::{Channel, Endpoint};
use wfe::builder::WorkflowBuilder;
use wfe::models::{
    ExecutionResult, LifecycleEventType, PointerStatus, QueueType, WorkflowDefinition,
    WorkflowInstance, WorkflowStatus,
};
use wfe::primitives::sub_workflow::SubWorkflowStep;
use wfe::traits::search::{SearchFilter, SearchIndex};
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::traits::{
    DistributedLockProvider, LifecyclePublisher, PersistenceProvider, QueueProvider,
};
use wfe::{WorkflowHost, WorkflowHostBuilder};
use wfe_persistence_client::v1::queue_service_client::QueueServiceClient;
use wfe_persistence_client::{v1, Builder, GrpcHost};

use crate::common;

pub(crate) type Steps = WorkflowBuilder<Value>;

/// How often the steps of a workflow were run, by the workflow's data `key`.
pub(crate) static RUNS: LazyLock<Mutex<HashMap<String, usize>>> = LazyLock::new(Mutex::default);

pub(crate) fn runs(key: &str) -> usize {
    RUNS.lock().unwrap().get(key).copied().unwrap_or_default()
}

/// Counts, and takes as long as the workflow's data say, in milliseconds.
#[derive(Default)]
pub(crate) struct Work;

#[async_trait]
impl StepBody for Work {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let data = &context.workflow.data;
        let key = data["key"].as_str().unwrap_or_default().to_string();
        *RUNS.lock().unwrap().entry(key).or_default() += 1;
        let takes = data["takes"].as_u64().unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(takes)).await;
        Ok(ExecutionResult::next())
    }
}

/// Sleeps once, as long as the step's configuration says, in milliseconds.
#[derive(Default)]
pub(crate) struct Nap;

#[async_trait]
impl StepBody for Nap {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let config = context.step.step_config.as_ref();
        let millis = config.and_then(Value::as_u64).unwrap_or(200);
        Ok(match context.persistence_data {
            Some(_) => ExecutionResult::next(),
            None => ExecutionResult::sleep(Duration::from_millis(millis), Some(json!("slept"))),
        })
    }
}

/// Waits for the event `go` with the workflow's `key`.
#[derive(Default)]
pub(crate) struct Gate;

#[async_trait]
impl StepBody for Gate {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.execution_pointer.event_published {
            return Ok(ExecutionResult::next());
        }
        let key = context.workflow.data["key"].as_str().unwrap_or_default();
        Ok(ExecutionResult::wait_for_event(
            "go",
            key,
            chrono::Utc::now(),
        ))
    }
}

/// Only one of the hosts has it.
#[derive(Default)]
pub(crate) struct Rare;

#[async_trait]
impl StepBody for Rare {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        Ok(ExecutionResult::next())
    }
}

pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::new_v4().simple())
}

/// Queues of its own for a test.
pub(crate) fn builder(target: &str, fleet: &str) -> Builder {
    GrpcHost::builder(target)
        .queue_prefix(format!("{fleet}."))
        .timeout(Duration::from_secs(60))
}

pub(crate) async fn connect(fleet: &str) -> GrpcHost {
    let host = builder(&common::target(), fleet).connect_host().await;
    host.unwrap()
}

/// A running host of the engine.
pub(crate) async fn start(server: &GrpcHost, definitions: &[&WorkflowDefinition]) -> WorkflowHost {
    let host = prepare(server, definitions).await;
    host.start().await.unwrap();
    host
}

pub(crate) async fn prepare(
    server: &GrpcHost,
    definitions: &[&WorkflowDefinition],
) -> WorkflowHost {
    let server = Arc::new(server.clone());
    let host = WorkflowHostBuilder::new()
        .use_persistence(server.clone())
        .use_queue_provider(server.clone())
        .use_lock_provider(server.clone())
        .use_lifecycle(server.clone())
        .use_search(server)
        .build()
        .unwrap();
    host.register_step::<Work>().await;
    host.register_step::<Nap>().await;
    host.register_step::<Gate>().await;
    for definition in definitions {
        host.register_workflow_definition((*definition).clone())
            .await;
    }
    host
}

pub(crate) fn linear(name: &str, steps: usize) -> WorkflowDefinition {
    let mut all = Steps::new().start_with::<Work>();
    for _ in 1..steps {
        all = all.then::<Work>();
    }
    all.build(name, 1)
}

/// Waits until a workflow meets a condition.
pub(crate) async fn wait_for(
    host: &WorkflowHost,
    id: &str,
    wanted: impl Fn(&WorkflowInstance) -> bool,
) -> WorkflowInstance {
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let instance = host.get_workflow(id).await.unwrap();
        if wanted(&instance) {
            return instance;
        }
        assert!(tokio::time::Instant::now() < end, "{instance:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn is_complete(workflow: &WorkflowInstance) -> bool {
    workflow.status == WorkflowStatus::Complete
}

pub(crate) fn has_pointer(status: PointerStatus) -> impl Fn(&WorkflowInstance) -> bool {
    move |workflow| {
        workflow
            .execution_pointers
            .iter()
            .any(|p| p.status == status)
    }
}

/// For the generated clients: what the host does not call.
pub(crate) async fn channel() -> Channel {
    let address = format!("http://{}", common::target());
    let endpoint = Endpoint::from_shared(address).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) async fn queues() -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel().await)
}

/// Waits until the queues of a fleet are empty.
pub(crate) async fn wait_for_empty_queues(fleet: &str) {
    let mut client = queues().await;
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let request = v1::GetQueueStatsRequest {
            queues: ["workflows", "events"]
                .map(|name| format!("{fleet}.{name}"))
                .into(),
            ..Default::default()
        };
        let stats = client.get_queue_stats(request).await.unwrap().into_inner();
        let left = |q: &v1::QueueStats| q.waiting + q.delayed + q.leased + q.dead;
        if stats.queues.iter().all(|q| left(q) == 0) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{stats:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
