//! Whole workflows: a real host of the engine on `wfe-postgres`, and on the server; and the server's
//! own best way (`own_way.rs`).

#[path = "own_way.rs"]
mod own_way;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
use wfe_persistence_client::GrpcHost;
use wfe_postgres::PostgresPersistenceProvider;

use self::own_way::Python;
use crate::common;
use crate::process::{process, with_children};

/// How many steps a workflow has, and how many of them there are at a time: all combinations.
pub struct Shape {
    pub steps: Vec<usize>,
    pub at_once: Vec<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            steps: vec![5, 50],
            at_once: vec![1, 32],
        }
    }
}

const DEFINITION: &str = "compare";

/// Those that are compared, in the order of the table.
const SIDES: [&str; 7] = [
    "wfe-postgres",
    "wfe-postgres, index added",
    "through the server",
    "wfe-postgres, index added, 8 consumers",
    "through the server, 8 consumers",
    "the server's own way, Rust",
    "the server's own way, Python",
];

/// How often the host is started, if so: each time it has one task more that runs workflows.
const CONSUMERS: usize = 8;

/// Does nothing; the last one of a workflow is counted.
#[derive(Default)]
struct Nothing;

/// When each workflow's last step was run.
static LAST: Mutex<Option<HashMap<String, Instant>>> = Mutex::new(None);
static BETWEEN: Mutex<Vec<f64>> = Mutex::new(Vec::new());

static ENDED: AtomicUsize = AtomicUsize::new(0);
static END: Notify = Notify::const_new();

#[async_trait]
impl StepBody for Nothing {
    async fn run(&mut self, context: &StepExecutionContext<'_>) -> wfe::Result<ExecutionResult> {
        let (id, now) = (&context.workflow.id, Instant::now());
        let is_last = context.step.outcomes.is_empty();
        let before = {
            let mut last = LAST.lock().unwrap();
            let last = last.get_or_insert_default();
            match is_last {
                true => last.remove(id),
                false => last.insert(id.clone(), now),
            }
        };
        if let Some(before) = before {
            BETWEEN.lock().unwrap().push(ms(now - before));
        }
        if is_last {
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

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a run came to.
#[derive(Default)]
pub struct Ended {
    workflows: usize,
    /// From each step of a workflow to its next one.
    between_ms: Vec<f64>,
}

impl Ended {
    fn between(&mut self, before: Option<Instant>, now: Instant) {
        self.between_ms
            .extend(before.map(|before| ms(now - before)));
    }

    fn quantile(&mut self, share: f64) -> f64 {
        self.between_ms.sort_by(f64::total_cmp);
        let index = self.between_ms.len().saturating_sub(1) as f64 * share;
        self.between_ms
            .get(index as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

/// What runs workflows.
enum Runner {
    Host(Arc<WorkflowHost>),
    OwnWay(Channel),
    Python(Box<Python>),
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
    async fn new(name: &'static str, shape: &Shape) -> Self {
        let url = common::new_database().await;
        let consumers = match name.ends_with("consumers") {
            true => CONSUMERS,
            false => 1,
        };
        let (runner, server) = if name.starts_with("wfe-postgres") {
            let store = PostgresPersistenceProvider::new(&url).await.unwrap();
            store.ensure_store_exists().await.unwrap();
            if name.contains("index added") {
                let pool = sqlx::PgPool::connect(&url).await.unwrap();
                let index = "CREATE INDEX ON wfc.execution_pointers (workflow_id)";
                pool.execute(index).await.unwrap();
                pool.close().await;
            }
            let builder = WorkflowHostBuilder::new()
                .use_persistence(Arc::new(store))
                .use_queue_provider(Arc::new(InMemoryQueueProvider::new()))
                .use_lock_provider(Arc::new(InMemoryLockProvider::new()));
            (Runner::Host(start(builder, shape, consumers).await), None)
        } else {
            let admin = common::free_address();
            let arguments = ["--db-url", &url, "--admin-listen", &admin];
            let (target, pid) = common::start_server_process(&arguments);
            let host = GrpcHost::new(format!("http://{target}")).await.unwrap();
            host.ensure_store_exists().await.unwrap();
            let runner = if name.starts_with("through the server") {
                let host = Arc::new(host);
                let builder = WorkflowHostBuilder::new()
                    .use_persistence(host.clone())
                    .use_queue_provider(host.clone())
                    .use_lock_provider(host);
                Runner::Host(start(builder, shape, consumers).await)
            } else if name.ends_with("Python") {
                Runner::Python(Box::new(Python::start(&target)))
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
        let mut ended = match &self.runner {
            Runner::Host(host) => run_on_host(host, steps, at_once, time).await,
            Runner::OwnWay(channel) => own_way::run(channel, steps, at_once, time).await,
            Runner::Python(python) => python.run(steps, at_once, time).await,
        };
        let seconds = begun.elapsed().as_secs_f64();
        let after = self.counters().await;
        let made = (ended.workflows * steps) as f64;
        let per_step = |name: &str| (after[name] - before[name]) / made;
        Numbers(BTreeMap::from([
            ("workflows_per_s", ended.workflows as f64 / seconds),
            ("latency_p50_ms", ended.quantile(0.5)),
            ("latency_p99_ms", ended.quantile(0.99)),
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
        let host = match &self.runner {
            Runner::Python(python) => python.pid(),
            Runner::Host(_) | Runner::OwnWay(_) => std::process::id(),
        };
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
            ("host", process(host).cpu),
            ("server", server),
            ("postgres", with_children(postmaster)),
        ])
    }
}

async fn start(builder: WorkflowHostBuilder, shape: &Shape, consumers: usize) -> Arc<WorkflowHost> {
    let host = builder.build().unwrap();
    host.register_step::<Nothing>().await;
    for &steps in &shape.steps {
        host.register_workflow_definition(definition(steps)).await;
    }
    for _ in 0..consumers {
        host.start().await.unwrap();
    }
    Arc::new(host)
}

async fn run_on_host(
    host: &Arc<WorkflowHost>,
    steps: usize,
    at_once: usize,
    time: Duration,
) -> Ended {
    let name = format!("{DEFINITION}-{steps}");
    BETWEEN.lock().unwrap().clear();
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
            return Ended {
                workflows: ended,
                between_ms: std::mem::take(&mut *BETWEEN.lock().unwrap()),
            };
        }
        if ENDED.load(Ordering::SeqCst) - before == ended {
            END.notified().await;
        }
    }
}

pub struct Numbers(pub BTreeMap<&'static str, f64>);

pub fn median(rounds: &[Numbers], name: &str) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(|numbers| numbers.0[name]).collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Measures all sides in turn, `rounds` times; returns the medians.
pub async fn compare(shape: &Shape, rounds: usize, seconds: f64, only: &str) -> serde_json::Value {
    let mut sides = Vec::new();
    for name in SIDES.into_iter().filter(|name| name.contains(only)) {
        sides.push(Side::new(name, shape).await);
    }
    println!(
        "| steps | at once | on | workflows/s | of wfe-postgres | step to step: median, p99 \
         | calls per step | CPU per step: host, server, PostgreSQL |"
    );
    println!("|--:|--:|---|--:|--:|--:|--:|--:|");
    let mut rows = Vec::new();
    for &steps in &shape.steps {
        for &at_once in &shape.at_once {
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
                    "| {steps} | {at_once} | {} | {rate:.1} | {:.2}x | {:.1}, {:.1} ms | {:.2} \
                     | {:.2}, {:.2}, {:.2} ms |",
                    side.name,
                    rate / first,
                    at("latency_p50_ms"),
                    at("latency_p99_ms"),
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
