//! Benchmarks this crate and its server against the original `wfe-postgres`, side by side: the
//! same host code, the same work, one PostgreSQL, one run.
//!
//! `cargo bench --bench compare`; for the options: `cargo bench --bench compare -- --help`.

#[path = "../../tests/all/common.rs"]
mod common;
mod fill;
mod long;
mod process;
mod workflows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::json;
use wfe_core::models::{Event, EventSubscription, ExecutionPointer, WorkflowInstance};
use wfe_core::traits::PersistenceProvider;
use wfe_postgres::PostgresPersistenceProvider;

use self::fill::fill;

const HELP: &str = "\
cargo bench --bench compare -- [--rows N]… [--large] [--callers N]… [--seconds S] [--only TEXT]
cargo bench --bench compare -- --long [--rows N] [--callers N]… [--rounds N] [--seconds S] [--json FILE]
cargo bench --bench compare -- --workflows [--steps N] [--at-once N] [--rounds N] [--seconds S] [--quick]
                                           [--json FILE] [--only TEXT]
  --rows     initial number of workflows, events and subscriptions in each store [default: 10000]
  --large    same as --rows 1000000
  --callers  number of concurrent callers [default: 1 and 32]
  --seconds  duration of each measurement, per side [default: 2]
  --only     run only the workloads, or sides, whose names contain this text
  --long       loads and persists of up to 1000 pointers, and whose processor's time they take
  --workflows  whole workflows instead, on hosts of the engine, from empty stores
  --steps      of a workflow [default: 5 and 50]; --at-once: how many workflows [default: 1 and 32]
  --quick      same as --rounds 3 --seconds 1
  --rounds     of these two, in turn; the figures are medians [default: 5]
  --json       where to save them
WFE_TEST_POSTGRES: the URL of the PostgreSQL to use [default: an embedded one]";

struct Options {
    rows: Vec<u64>,
    callers: Vec<usize>,
    seconds: f64,
    only: String,
    workflows: bool,
    shape: workflows::Shape,
    long: bool,
    rounds: usize,
    json: Option<std::path::PathBuf>,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            rows: Vec::new(),
            callers: Vec::new(),
            seconds: 2.0,
            only: String::new(),
            workflows: false,
            shape: workflows::Shape::default(),
            long: false,
            rounds: 5,
            json: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().expect("this flag requires a value");
            match argument.as_str() {
                "--bench" => {} // cargo's own
                "--rows" => options.rows.push(value().parse().expect("a number")),
                "--large" => options.rows.push(1_000_000),
                "--callers" => options.callers.push(value().parse().expect("a number")),
                "--seconds" => options.seconds = value().parse().expect("a number"),
                "--only" => options.only = value(),
                "--long" => options.long = true,
                "--workflows" => options.workflows = true,
                "--steps" => options.shape.steps = vec![value().parse().expect("a number")],
                "--at-once" => options.shape.at_once = vec![value().parse().expect("a number")],
                "--quick" => (options.rounds, options.seconds) = (3, 1.0),
                "--rounds" => options.rounds = value().parse().expect("a number"),
                "--json" => options.json = Some(value().into()),
                _ => {
                    println!("{HELP}");
                    std::process::exit(if argument == "--help" { 0 } else { 2 });
                }
            }
        }
        if options.rows.is_empty() {
            options.rows.push(10_000);
        }
        if options.callers.is_empty() {
            options.callers = vec![1, 32];
        }
        options
    }
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Create,
    Load(usize),
    Persist(usize),
    CreateEvent,
    GetEvent,
    MarkEvent,
    CreateSubscription,
    FirstOpenSubscription,
    TakeAndLetGo,
    RunnableInstances,
    RunnableEvents,
}

const ALL: [Work; 19] = [
    Work::Create,
    Work::Load(1),
    Work::Load(10),
    Work::Load(50),
    Work::Load(200),
    Work::Load(1000),
    Work::Persist(1),
    Work::Persist(10),
    Work::Persist(50),
    Work::Persist(200),
    Work::Persist(1000),
    Work::CreateEvent,
    Work::GetEvent,
    Work::MarkEvent,
    Work::CreateSubscription,
    Work::FirstOpenSubscription,
    Work::TakeAndLetGo,
    Work::RunnableInstances,
    Work::RunnableEvents,
];

impl Work {
    fn name(self) -> String {
        match self {
            Self::Create => "create workflow".into(),
            Self::Load(pointers) => format!("load, {pointers} pointers"),
            Self::Persist(pointers) => format!("persist, 1 of {pointers} pointers changed"),
            Self::CreateEvent => "create event".into(),
            Self::GetEvent => "get event".into(),
            Self::MarkEvent => "mark event".into(),
            Self::CreateSubscription => "create subscription".into(),
            Self::FirstOpenSubscription => "first open subscription".into(),
            Self::TakeAndLetGo => "take subscription and let go".into(),
            Self::RunnableInstances => "runnable instances".into(),
            Self::RunnableEvents => "runnable events".into(),
        }
    }
}

fn pointer(step: usize) -> ExecutionPointer {
    let mut pointer = ExecutionPointer::new(step);
    pointer.step_name = Some(format!("step {step}"));
    pointer.persistence_data = Some(json!({"attempt": 1, "note": "the quick brown fox"}));
    pointer.start_time = Some(Utc::now());
    pointer
}

fn workflow(pointers: usize) -> WorkflowInstance {
    let data = json!({"order": 4711, "customer": "c-0815", "items": [1, 2, 3]});
    let mut instance = WorkflowInstance::new("compare", 1, data);
    instance.name.clone_from(&instance.id);
    instance.execution_pointers = (0..pointers).map(pointer).collect();
    // Not due, so that the results of the runnable queries do not change.
    instance.next_execution = None;
    instance
}

/// A caller and the entities it works on.
struct Caller {
    store: Arc<dyn PersistenceProvider>,
    instance: WorkflowInstance,
    event: Event,
    subscription: EventSubscription,
    count: u64,
}

impl Caller {
    async fn new(store: Arc<dyn PersistenceProvider>, work: Work) -> wfe_core::Result<Self> {
        let pointers = match work {
            Work::Load(pointers) | Work::Persist(pointers) => pointers,
            _ => 1,
        };
        let instance = workflow(pointers);
        store.create_new_workflow(&instance).await?;
        let mut event = Event::new("kind", instance.id.as_str(), json!({"x": 1}));
        event.is_processed = true;
        store.create_event(&event).await?;
        let subscription =
            EventSubscription::new(&instance.id, 0, "p", "kind", &instance.id, Utc::now());
        store.create_event_subscription(&subscription).await?;
        Ok(Self {
            store,
            instance,
            event,
            subscription,
            count: 0,
        })
    }

    async fn once(&mut self, work: Work) -> wfe_core::Result<()> {
        self.count += 1;
        let store = self.store.as_ref();
        let id = self.instance.id.as_str();
        match work {
            Work::Create => {
                store.create_new_workflow(&workflow(1)).await?;
            }
            Work::Load(pointers) => {
                let found = store.get_workflow_instance(id).await?;
                assert_eq!(found.execution_pointers.len(), pointers);
            }
            Work::Persist(pointers) => {
                let changed = self.count as usize % pointers;
                self.instance.execution_pointers[changed].outcome = Some(json!(self.count));
                store.persist_workflow(&self.instance).await?;
            }
            Work::CreateEvent => {
                let mut event = Event::new("kind", id, json!({"x": self.count}));
                event.is_processed = true;
                store.create_event(&event).await?;
            }
            Work::GetEvent => {
                store.get_event(&self.event.id).await?;
            }
            Work::MarkEvent if self.count.is_multiple_of(2) => {
                store.mark_event_processed(&self.event.id).await?;
            }
            Work::MarkEvent => store.mark_event_unprocessed(&self.event.id).await?,
            Work::CreateSubscription => {
                let new = EventSubscription::new(id, 0, "p", "kind", "made", Utc::now());
                store.create_event_subscription(&new).await?;
            }
            Work::FirstOpenSubscription => {
                let found = store.get_first_open_subscription("kind", id, Utc::now());
                assert!(found.await?.is_some());
            }
            Work::TakeAndLetGo => {
                let id = self.subscription.id.as_str();
                let expiry = Utc::now() + chrono::Duration::minutes(1);
                assert!(store.set_subscription_token(id, "t", "w", expiry).await?);
                store.clear_subscription_token(id, "t").await?;
            }
            Work::RunnableInstances => {
                store.get_runnable_instances(Utc::now()).await?;
            }
            Work::RunnableEvents => {
                store.get_runnable_events(Utc::now()).await?;
            }
        }
        Ok(())
    }
}

/// One side of the comparison.
struct Side {
    store: Arc<dyn PersistenceProvider>,
    times: Vec<Duration>,
    failed: usize,
    measured: Duration,
}

impl Side {
    fn new(store: Arc<dyn PersistenceProvider>) -> Self {
        Self {
            store,
            times: Vec::new(),
            failed: 0,
            measured: Duration::ZERO,
        }
    }

    /// Runs the workload for this time, with this number of concurrent callers.
    async fn measure(&mut self, work: Work, callers: usize, time: Duration) {
        let mut beginning = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let store = self.store.clone();
            beginning.spawn(async move {
                let mut caller = Caller::new(store, work).await.unwrap();
                let _ = caller.once(work).await; // warms up connections and prepared statements
                caller
            });
        }
        let all = beginning.join_all().await;
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for mut caller in all {
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut failed = 0;
                while begun.elapsed() < time {
                    let now = Instant::now();
                    match caller.once(work).await {
                        Ok(()) => times.push(now.elapsed()),
                        Err(error) => {
                            eprintln!("{}: {error}", work.name());
                            failed += 1;
                        }
                    }
                }
                (times, failed)
            });
        }
        while let Some(end) = tasks.join_next().await {
            let (times, failed) = end.unwrap();
            self.times.extend(times);
            self.failed += failed;
        }
        self.measured += begun.elapsed();
    }

    /// The result of what was measured since the last call.
    fn result(&mut self) -> Numbers {
        self.times.sort_unstable();
        let at = |share: f64| {
            let index = self.times.len().saturating_sub(1) as f64 * share;
            self.times
                .get(index as usize)
                .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        let numbers = Numbers {
            median: at(0.5),
            p99: at(0.99),
            rate: self.times.len() as f64 / self.measured.as_secs_f64(),
            failed: self.failed,
        };
        self.times.clear();
        self.failed = 0;
        self.measured = Duration::ZERO;
        numbers
    }
}

struct Numbers {
    median: f64,
    p99: f64,
    rate: f64,
    failed: usize,
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.rate < 10.0 { 2 } else { 0 };
        write!(
            f,
            "{:.2} | {:.2} | {:.digits$}",
            self.median, self.p99, self.rate
        )?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    if options.workflows || options.long {
        let Options { shape, only, .. } = &options;
        let (rounds, seconds) = (options.rounds, options.seconds);
        let found = match options.workflows {
            true => workflows::compare(shape, rounds, seconds, only).await,
            false => long::compare(options.rows[0], &options.callers, rounds, seconds, only).await,
        };
        if let Some(path) = &options.json {
            std::fs::write(path, format!("{found:#}\n")).expect("the file can be written");
        }
        return;
    }
    println!(
        "wfe-postgres with its connection pool of 10, and the server with its pool of 10, on one \
         PostgreSQL; latency of one operation as its caller sees it, in milliseconds.\n"
    );
    for &rows in &options.rows {
        let direct_url = common::new_database().await;
        let direct = PostgresPersistenceProvider::new(&direct_url).await.unwrap();
        direct.ensure_store_exists().await.unwrap();
        let our_url = common::new_database().await;
        let ours = common::connect(&common::start_server(&["--db-url", &our_url])).await;
        ours.ensure_store_exists().await.unwrap();
        for url in [&direct_url, &our_url] {
            let begun = Instant::now();
            fill(url, rows).await;
            eprintln!("filled in {:.0} s", begun.elapsed().as_secs_f64());
        }
        let mut direct = Side::new(Arc::new(direct));
        let mut ours = Side::new(Arc::new(ours));

        println!("## {rows} workflows, events and subscriptions in the store\n");
        println!(
            "| operation | callers | wfe-postgres: median | p99 | per second \
             | through the server: median | p99 | per second | throughput, server / direct |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        for work in ALL {
            if !work.name().contains(&options.only) {
                continue;
            }
            for &callers in &options.callers {
                // Alternately, each side once first, so that other load on the machine affects
                // both.
                let turn = Duration::from_secs_f64(options.seconds / 2.0);
                direct.measure(work, callers, turn).await;
                ours.measure(work, callers, turn).await;
                // Once is enough if a single operation takes longer than the whole measurement.
                if direct.measured + ours.measured < 8 * turn {
                    ours.measure(work, callers, turn).await;
                    direct.measure(work, callers, turn).await;
                }
                let (direct, ours) = (direct.result(), ours.result());
                println!(
                    "| {} | {callers} | {direct} | {ours} | {:.2} |",
                    work.name(),
                    ours.rate / direct.rate,
                );
            }
        }
        println!();
    }
}
