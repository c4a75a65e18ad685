//! Hosts and servers that are killed with SIGKILL during the work, and restarted.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::Utc;
use serde_json::{json, Value};
use wfe::builder::WorkflowBuilder;
use wfe::models::{Event, ExecutionResult, PointerStatus, QueueType, WorkflowStatus};
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::traits::{PersistenceProvider, QueueProvider};
use wfe::{WorkflowHost, WorkflowHostBuilder};
use wfe_core::test_support::{InMemoryLockProvider, InMemoryQueueProvider};

use crate::common;

const WORKFLOWS: usize = 12;
const STEPS: usize = 8;
/// The step that waits for an event.
const GATE: usize = 4;
/// How long a test may take on a machine that is busy; it takes about 10 s on one that is not.
const PATIENCE: Duration = Duration::from_secs(400);

/// Has a side effect, a line in a file, and counts in the workflow's data.
struct Work {
    log: PathBuf,
}

#[async_trait]
impl StepBody for Work {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let line = format!("{} {}\n", context.workflow.id, context.step.id);
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        log.write_all(line.as_bytes()).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let count = context.workflow.data["count"].as_u64().unwrap();
        let mut result = ExecutionResult::next();
        result.output_data = Some(json!({ "count": count + 1 }));
        Ok(result)
    }
}

/// Waits for the event that is published for its workflow.
#[derive(Default)]
struct Gate;

#[async_trait]
impl StepBody for Gate {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.execution_pointer.event_published {
            return Ok(ExecutionResult::next());
        }
        let id = context.workflow.id.as_str();
        Ok(ExecutionResult::wait_for_event("gate", id, Utc::now()))
    }
}

/// Only names the step: the factory creates it, with the path of the log.
#[derive(Default)]
struct WorkName;

#[async_trait]
impl StepBody for WorkName {
    async fn run(&mut self, _: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        unreachable!("the factory makes another one")
    }
}

async fn host(
    target: &str,
    definition: &str,
    log: &Path,
) -> (WorkflowHost, Arc<InMemoryQueueProvider>) {
    let queue = Arc::new(InMemoryQueueProvider::new());
    let host = WorkflowHostBuilder::new()
        .use_persistence(Arc::new(common::connect(target).await))
        .use_lock_provider(Arc::new(InMemoryLockProvider::new()))
        .use_queue_provider(queue.clone())
        .build()
        .unwrap();
    let log = log.to_owned();
    host.register_step_factory(std::any::type_name::<WorkName>(), move || {
        Box::new(Work { log: log.clone() })
    })
    .await;
    host.register_step::<Gate>().await;
    let mut steps = WorkflowBuilder::<Value>::new().start_with::<WorkName>();
    for step in 1..STEPS {
        steps = if step == GATE {
            steps.then::<Gate>()
        } else {
            steps.then::<WorkName>()
        };
    }
    host.register_workflow_definition(steps.build(definition, 1))
        .await;
    host.persistence().ensure_store_exists().await.unwrap();
    (host, queue)
}

/// Starts the workflows, for any host to run.
async fn start_workflows(host: &WorkflowHost, definition: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..WORKFLOWS {
        let id = host.start_workflow(definition, 1, json!({ "count": 0 }));
        ids.push(id.await.unwrap());
    }
    ids
}

/// Publishes the events that workflows are waiting for; returns whether all workflows have
/// ended.
async fn tend(store: &dyn PersistenceProvider, ids: &[String]) -> bool {
    let instances = store.get_workflow_instances(ids).await.unwrap();
    assert_eq!(instances.len(), ids.len());
    for instance in &instances {
        let waiting = instance
            .execution_pointers
            .iter()
            .any(|pointer| pointer.status == PointerStatus::WaitingForEvent);
        let mut event = Event::new("gate", &instance.id, json!("open"));
        event.id = format!("gate of {}", instance.id);
        if waiting && store.get_event(&event.id).await.is_err() {
            store.create_event(&event).await.unwrap();
        }
    }
    instances
        .iter()
        .all(|instance| instance.status == WorkflowStatus::Complete)
}

/// Checks that each workflow is complete and that no step began after its successor did;
/// returns how many steps were run more than once.
async fn check(store: &dyn PersistenceProvider, ids: &[String], log: &Path) -> usize {
    let mut runs: HashMap<String, Vec<usize>> = HashMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let (id, step) = line.split_once(' ').unwrap();
        runs.entry(id.into())
            .or_default()
            .push(step.parse().unwrap());
    }
    let mut again = 0;
    for instance in store.get_workflow_instances(ids).await.unwrap() {
        let steps: Vec<_> = instance
            .execution_pointers
            .iter()
            .map(|pointer| pointer.step_id)
            .collect();
        assert_eq!(steps, (0..STEPS).collect::<Vec<_>>(), "{instance:#?}");
        for pointer in &instance.execution_pointers {
            assert_eq!(pointer.status, PointerStatus::Complete);
        }
        // However often a step was run, it was stored once.
        assert_eq!(instance.data, json!({ "count": STEPS - 1 }));
        let mut runs = runs.remove(&instance.id).unwrap();
        assert!(runs.is_sorted(), "{runs:?}");
        let all = runs.len();
        runs.dedup();
        again += all - runs.len();
        let worked: Vec<_> = (0..STEPS).filter(|step| *step != GATE).collect();
        assert_eq!(runs, worked);
    }
    assert!(runs.is_empty());
    again
}

/// Queues what is due, as a poller beside the engine does.
#[derive(Default)]
struct Poller {
    queued: HashSet<String>,
    last: Option<Instant>,
}

impl Poller {
    /// Queues events once they are due, and each second everything that is due. The engine
    /// loses workflows: it queues one before it has terminated the subscription and released
    /// the lock, and one that is taken from the queue in between is skipped. The slower the
    /// server responds, the more often that happens.
    async fn queue_due(
        &mut self,
        store: &dyn PersistenceProvider,
        queue: &InMemoryQueueProvider,
        ids: &[String],
    ) {
        let second = Duration::from_secs(1);
        if self.last.is_none_or(|last| last.elapsed() >= second) {
            self.last = Some(Instant::now());
            self.queued.clear();
            for id in store.get_runnable_instances(Utc::now()).await.unwrap() {
                // The store may contain rows of other tests.
                if ids.contains(&id) {
                    queue.queue_work(&id, QueueType::Workflow).await.unwrap();
                }
            }
        }
        for id in store.get_runnable_events(Utc::now()).await.unwrap() {
            let of = id.strip_prefix("gate of ");
            let ours = of.is_some_and(|of| ids.iter().any(|id| id == of));
            if ours && self.queued.insert(id.clone()) {
                queue.queue_work(&id, QueueType::Event).await.unwrap();
            }
        }
    }
}

fn lines(log: &Path) -> usize {
    std::fs::read_to_string(log).map_or(0, |text| text.lines().count())
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_host_killed_in_the_middle() {
    if std::env::var_os("KILL_TEST_DEFINITION").is_some() {
        return host_process().await; // this is the process that is killed
    }
    let target = common::target();
    let definition = format!("kill-{}", uuid::Uuid::new_v4().simple());
    let log = common::temporary_directory().join("log");
    let (host, _) = host(&target, &definition, &log).await;
    let ids = start_workflows(&host, &definition).await;
    let store = host.persistence().as_ref();

    let spawn = || {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kill::a_host_killed_in_the_middle",
                "--nocapture",
            ])
            .env("WFE_PERSISTENCE_TARGET", &target)
            .env("KILL_TEST_DEFINITION", &definition)
            .env("KILL_TEST_LOG", &log)
            .env("KILL_TEST_IDS", ids.join(","))
            .stdout(Stdio::null())
            .spawn();
        Killed(child.unwrap())
    };
    let kills = 7;
    let end = Instant::now() + PATIENCE;
    for round in 1..=kills {
        let _child = spawn();
        // Killed after this much work, at an arbitrary point.
        while lines(&log) < round * 11 && !tend(store, &ids).await {
            assert!(Instant::now() < end, "{} lines", lines(&log));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    assert!(!tend(store, &ids).await, "killed too late to matter");
    let _child = spawn();
    while !tend(store, &ids).await {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A host runs one step at a time, so a kill loses at most one.
    assert!(check(store, &ids, &log).await <= kills);
}

/// The host that is killed: resumes what is stored as runnable.
async fn host_process() {
    let definition = std::env::var("KILL_TEST_DEFINITION").unwrap();
    let log = std::env::var("KILL_TEST_LOG").unwrap();
    let (host, queue) = host(&common::target(), &definition, Path::new(&log)).await;
    host.start().await.unwrap();
    let ids = std::env::var("KILL_TEST_IDS").unwrap();
    let ids: Vec<String> = ids.split(',').map(str::to_string).collect();
    let mut poller = Poller::default();
    loop {
        let store = host.persistence().as_ref();
        poller.queue_due(store, &queue, &ids).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The engine does not notice: its calls are retried until the new server responds.
#[tokio::test]
async fn a_server_killed_in_the_middle() {
    let directory = common::temporary_directory();
    let directory = directory.to_str().unwrap();
    let (target, mut pid) = common::start_server_process(&["--data-dir", directory]);
    let log = common::temporary_directory().join("log");
    let (host, queue) = host(&target, "kill", &log).await;
    host.start().await.unwrap();
    let ids = start_workflows(&host, "kill").await;
    let store = host.persistence().as_ref();

    let watch = tokio::spawn({
        let (target, directory, log) = (target.clone(), directory.to_string(), log.clone());
        async move {
            for round in 1..=3 {
                while lines(&log) < round * 20 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // SAFETY: the process is the server, which is running; nothing else ends it.
                unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                let (target, directory) = (target.clone(), directory.clone());
                pid = tokio::task::spawn_blocking(move || {
                    let again = ["--listen", &target, "--data-dir", &directory];
                    common::start_server_process(&again).1
                })
                .await
                .unwrap();
            }
        }
    });
    let end = Instant::now() + PATIENCE;
    let mut poller = Poller::default();
    while !tend(store, &ids).await {
        poller.queue_due(store, &queue, &ids).await;
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    watch.await.unwrap();
    assert_eq!(check(store, &ids, &log).await, 0);
    host.stop().await;
}
