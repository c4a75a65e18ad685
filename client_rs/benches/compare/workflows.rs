//! Whole workflows: a real host of the engine on `wfe-postgres`, and on the server; and the server's
//! own best way, without the engine: a call to get work, a call to commit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use sqlx::Executor;
use tokio::sync::Notify;
use tonic::transport::Channel;
use wfe::models::{ExecutionResult, StepOutcome, WorkflowDefinition, WorkflowStep};
use wfe::traits::step::{StepBody, StepExecutionContext};
use wfe::{WorkflowHost, WorkflowHostBuilder};
use wfe_core::test_support::{InMemoryLockProvider, InMemoryQueueProvider};
use wfe_core::traits::PersistenceProvider;
use wfe_persistence_client::v1;
use wfe_persistence_client::v1::commit_workflow_request::State;
use wfe_persistence_client::v1::queue_service_client::QueueServiceClient;
use wfe_persistence_client::v1::workflow_service_client::WorkflowServiceClient;
use wfe_persistence_client::GrpcHost;
use wfe_postgres::PostgresPersistenceProvider;

use crate::common;

const STEPS: [usize; 2] = [5, 50];
const AT_ONCE: [usize; 2] = [1, 32];
const DEFINITION: &str = "compare";

/// Those that are compared, in the order of the table.
const SIDES: [&str; 4] = [
    "wfe-postgres",
    "wfe-postgres, index added",
    "through the server",
    "the server's own way",
];

/// Does nothing; the last one of a workflow is counted.
#[derive(Default)]
struct Nothing;

static ENDED: AtomicUsize = AtomicUsize::new(0);
static END: Notify = Notify::const_new();

#[async_trait]
impl StepBody for Nothing {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        if context.step.outcomes.is_empty() {
            ENDED.fetch_add(1, Ordering::SeqCst);
            END.notify_one();
        }
        Ok(ExecutionResult::next())
    }
}

fn definition(steps: usize) -> WorkflowDefinition {
    let mut definition = WorkflowDefinition::new(format!("{DEFINITION}-{steps}"), 1);
    definition.steps = (0..steps)
        .map(|id| {
            let mut step = WorkflowStep::new(id, std::any::type_name::<Nothing>());
            step.name = Some(format!("step {id}"));
            step.outcomes
                .extend((id + 1 < steps).then_some(StepOutcome {
                    next_step: id + 1,
                    label: None,
                    value: None,
                }));
            step
        })
        .collect();
    definition
}

/// What runs workflows.
enum Runner {
    Host(Arc<WorkflowHost>),
    OwnWay(Channel),
}

/// One side, with an empty store of its own.
struct Side {
    name: &'static str,
    runner: Runner,
    url: String,
    /// The process of the server, and the address of its metrics.
    server: Option<(u32, String)>,
}

impl Side {
    async fn new(name: &'static str) -> Self {
        let url = common::new_database().await;
        let (runner, server) = if name.starts_with("wfe-postgres") {
            let store = PostgresPersistenceProvider::new(&url).await.unwrap();
            store.ensure_store_exists().await.unwrap();
            if name.ends_with("index added") {
                let pool = sqlx::PgPool::connect(&url).await.unwrap();
                let index = "CREATE INDEX ON wfc.execution_pointers (workflow_id)";
                pool.execute(index).await.unwrap();
                pool.close().await;
            }
            let builder = WorkflowHostBuilder::new()
                .use_persistence(Arc::new(store))
                .use_queue_provider(Arc::new(InMemoryQueueProvider::new()))
                .use_lock_provider(Arc::new(InMemoryLockProvider::new()));
            (Runner::Host(start(builder).await), None)
        } else {
            let admin = common::free_address();
            let arguments = ["--db-url", &url, "--admin-listen", &admin];
            let (target, pid) = common::start_server_process(&arguments);
            let host = GrpcHost::new(format!("http://{target}")).await.unwrap();
            host.ensure_store_exists().await.unwrap();
            let runner = if name == "through the server" {
                let host = Arc::new(host);
                let builder = WorkflowHostBuilder::new()
                    .use_persistence(host.clone())
                    .use_queue_provider(host.clone())
                    .use_lock_provider(host);
                Runner::Host(start(builder).await)
            } else {
                let endpoint = Channel::from_shared(format!("http://{target}")).unwrap();
                Runner::OwnWay(endpoint.connect().await.unwrap())
            };
            (runner, Some((pid, admin)))
        };
        Self {
            name,
            runner,
            url,
            server,
        }
    }

    /// Runs workflows of so many steps, so many at once, for this time.
    async fn run(&self, steps: usize, at_once: usize, time: Duration) -> Numbers {
        let before = self.counters().await;
        let begun = Instant::now();
        let workflows = match &self.runner {
            Runner::Host(host) => run_on_host(host, steps, at_once, time).await,
            Runner::OwnWay(channel) => run_own_way(channel, steps, at_once, time).await,
        };
        let seconds = begun.elapsed().as_secs_f64();
        let after = self.counters().await;
        let made = (workflows * steps) as f64;
        let per_step = |name: &str| (after[name] - before[name]) / made;
        Numbers(BTreeMap::from([
            ("workflows_per_s", workflows as f64 / seconds),
            ("ms_per_step", 1e3 * seconds / made),
            ("calls_per_step", per_step("calls")),
            ("host_cpu_ms_per_step", 1e3 * per_step("host")),
            ("server_cpu_ms_per_step", 1e3 * per_step("server")),
            ("postgres_cpu_ms_per_step", 1e3 * per_step("postgres")),
        ]))
    }

    async fn counters(&self) -> BTreeMap<&'static str, f64> {
        let pool = sqlx::PgPool::connect(&self.url).await.unwrap();
        let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&pool)
            .await
            .unwrap();
        let postmaster = process(backend as u32).parent;
        pool.close().await;
        let (mut calls, mut server) = (0.0, 0.0);
        if let Some((pid, admin)) = &self.server {
            calls = common::metrics(admin)
                .lines()
                .filter(|line| line.starts_with("grpc_server_handled_total{"))
                .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
                .sum();
            server = with_children(*pid);
        }
        BTreeMap::from([
            ("calls", calls),
            ("host", process(std::process::id()).cpu),
            ("server", server),
            ("postgres", with_children(postmaster)),
        ])
    }
}

async fn start(builder: WorkflowHostBuilder) -> Arc<WorkflowHost> {
    let host = builder.build().unwrap();
    host.register_step::<Nothing>().await;
    for steps in STEPS {
        host.register_workflow_definition(definition(steps)).await;
    }
    host.start().await.unwrap();
    Arc::new(host)
}

async fn run_on_host(
    host: &Arc<WorkflowHost>,
    steps: usize,
    at_once: usize,
    time: Duration,
) -> usize {
    let name = format!("{DEFINITION}-{steps}");
    let (before, begun) = (ENDED.load(Ordering::SeqCst), Instant::now());
    let mut started = 0;
    loop {
        let ended = ENDED.load(Ordering::SeqCst) - before;
        if begun.elapsed() < time {
            let mut starting = tokio::task::JoinSet::new();
            while started < ended + at_once {
                let (host, name) = (host.clone(), name.clone());
                starting.spawn(async move { host.start_workflow(&name, 1, json!({})).await });
                started += 1;
            }
            for id in starting.join_all().await {
                id.unwrap();
            }
        } else if ended == started {
            return ended;
        }
        if ENDED.load(Ordering::SeqCst) - before == ended {
            END.notified().await;
        }
    }
}

/// Workers that each get a workflow, commit a step, and are told with the next one; it stays theirs
/// until its last step.
async fn run_own_way(channel: &Channel, steps: usize, at_once: usize, time: Duration) -> usize {
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..at_once {
        let channel = channel.clone();
        let queue = format!("own-{steps}-{worker}");
        workers.spawn(async move {
            let mut workflows = WorkflowServiceClient::new(channel.clone());
            let mut queues = QueueServiceClient::new(channel);
            let mut done = 0;
            while begun.elapsed() < time {
                let id = uuid::Uuid::new_v4().to_string();
                create(&mut workflows, &queue, &id).await;
                for step in 0..steps {
                    let item = take(&mut queues, &queue).await;
                    let is_last = step + 1 == steps;
                    let request = commit(&queue, item, step, is_last);
                    workflows.commit_workflow(request).await.unwrap();
                }
                done += 1;
            }
            done
        });
    }
    workers.join_all().await.into_iter().sum()
}

async fn create(workflows: &mut WorkflowServiceClient<Channel>, queue: &str, id: &str) {
    let instance = v1::WorkflowInstance {
        id: id.into(),
        workflow_definition_id: DEFINITION.into(),
        version: 1,
        data_json: "{}".into(),
        status: v1::WorkflowStatus::Runnable.into(),
        execution_pointers: vec![pointer(0, true)],
        create_time: Some(std::time::SystemTime::now().into()),
        next_execution: Some(0),
        ..Default::default()
    };
    let request = v1::CreateNewWorkflowRequest {
        instance: Some(instance),
        enqueue: vec![item(queue)],
    };
    workflows.create_new_workflow(request).await.unwrap();
}

async fn take(queues: &mut QueueServiceClient<Channel>, queue: &str) -> v1::DequeuedItem {
    let request = v1::DequeueRequest {
        queues: vec![queue.into()],
        max_items: 1,
        worker_id: "compare".into(),
        lease_duration: Some(seconds(30)),
        wait: Some(seconds(10)),
        include_workflow: true,
        ..Default::default()
    };
    let answer = queues.dequeue(request).await.unwrap().into_inner();
    answer.items.into_iter().next().expect("it is there")
}

fn commit(
    queue: &str,
    item_: v1::DequeuedItem,
    step: usize,
    is_last: bool,
) -> v1::CommitWorkflowRequest {
    let workflow = item_.workflow.expect("it fits");
    let mut pointers = vec![pointer(step, false)];
    if !is_last {
        pointers.push(pointer(step + 1, true));
    }
    let status = match is_last {
        true => v1::WorkflowStatus::Complete,
        false => v1::WorkflowStatus::Runnable,
    };
    let patch = v1::WorkflowPatch {
        id: workflow.id,
        header: Some(v1::WorkflowInstance {
            status: status.into(),
            ..Default::default()
        }),
        header_mask: Some(prost_types::FieldMask {
            paths: vec!["status".into()],
        }),
        execution_pointers: pointers,
        ..Default::default()
    };
    v1::CommitWorkflowRequest {
        state: Some(State::Patch(patch)),
        expected_revision: Some(workflow.revision),
        acknowledge: vec![v1::Acknowledgement {
            receipt: item_.receipt,
            confirmed: false,
        }],
        enqueue: (!is_last).then(|| item(queue)).into_iter().collect(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

fn pointer(step: usize, active: bool) -> v1::ExecutionPointer {
    let status = match active {
        true => v1::PointerStatus::Pending,
        false => v1::PointerStatus::Complete,
    };
    v1::ExecutionPointer {
        id: format!("pointer {step}"),
        step_id: step as i64,
        active,
        status: status.into(),
        step_name: Some(format!("step {step}")),
        ..Default::default()
    }
}

fn item(queue: &str) -> v1::QueueItem {
    v1::QueueItem {
        queue: queue.into(),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

struct Process {
    parent: u32,
    /// Seconds of the processor.
    cpu: f64,
    /// The same, of children that have ended.
    of_ended: f64,
}

fn process(pid: u32) -> Process {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let at = |field: usize| fields.get(field - 3).copied().unwrap_or_default();
    // SAFETY: it has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Process {
        parent: at(4) as u32,
        cpu: (at(14) + at(15)) / ticks,
        of_ended: (at(16) + at(17)) / ticks,
    }
}

fn with_children(pid: u32) -> f64 {
    let children = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(process)
        .filter(|child| child.parent == pid)
        .map(|child| child.cpu)
        .sum::<f64>();
    let own = process(pid);
    own.cpu + own.of_ended + children
}

struct Numbers(BTreeMap<&'static str, f64>);

fn median(rounds: &[Numbers], name: &str) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(|numbers| numbers.0[name]).collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Measures all sides in turn, `rounds` times; returns the medians.
pub async fn compare(rounds: usize, seconds: f64, only: &str) -> serde_json::Value {
    let mut sides = Vec::new();
    for name in SIDES.into_iter().filter(|name| name.contains(only)) {
        sides.push(Side::new(name).await);
    }
    println!(
        "| steps | at once | on | workflows/s | of wfe-postgres | ms per step | calls per step \
         | CPU per step: host, server, PostgreSQL |"
    );
    println!("|--:|--:|---|--:|--:|--:|--:|--:|");
    let mut rows = Vec::new();
    for steps in STEPS {
        for at_once in AT_ONCE {
            let mut found: Vec<Vec<Numbers>> = sides.iter().map(|_| Vec::new()).collect();
            for round in 0..=rounds {
                for (side, found) in sides.iter().zip(&mut found) {
                    let time = Duration::from_secs_f64(seconds);
                    let numbers = side.run(steps, at_once, time).await;
                    // The first one warms up.
                    if round > 0 {
                        found.push(numbers);
                    }
                }
            }
            let first = median(&found[0], "workflows_per_s");
            for (side, found) in sides.iter().zip(&found) {
                let at = |name: &str| median(found, name);
                let rate = at("workflows_per_s");
                println!(
                    "| {steps} | {at_once} | {} | {rate:.1} | {:.2}x | {:.2} | {:.2} \
                     | {:.2}, {:.2}, {:.2} ms |",
                    side.name,
                    rate / first,
                    at("ms_per_step"),
                    at("calls_per_step"),
                    at("host_cpu_ms_per_step"),
                    at("server_cpu_ms_per_step"),
                    at("postgres_cpu_ms_per_step"),
                );
                let mut row = json!({"steps": steps, "at_once": at_once, "side": side.name});
                for name in found[0].0.keys() {
                    row[name] = json!(at(name));
                }
                rows.push(row);
            }
        }
    }
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"machine": {"cpus": cpus}, "rounds": rounds, "rows": rows})
}
