//! Long workflows: loads and persists, in rounds of all sides, and whose processor's time they take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::Executor;
use wfe_core::traits::PersistenceProvider;
use wfe_persistence_client::GrpcPersistenceProvider;
use wfe_postgres::PostgresPersistenceProvider;

use crate::fill::fill;
use crate::process::{process, with_children};
use crate::workflows::{median, Numbers};
use crate::{common, Caller, Work};

const LENGTHS: [usize; 5] = [1, 10, 50, 200, 1000];

/// One side, with a store of its own.
struct Side {
    name: &'static str,
    store: Arc<dyn PersistenceProvider>,
    url: String,
    server: Option<u32>,
}

impl Side {
    async fn direct() -> Self {
        let url = common::new_database().await;
        let store = PostgresPersistenceProvider::new(&url).await.unwrap();
        store.ensure_store_exists().await.unwrap();
        Self {
            name: "wfe-postgres",
            store: Arc::new(store),
            url,
            server: None,
        }
    }

    /// `keep`: whether the client keeps the pointers of long workflows, so that it need not load
    /// those again that nobody has changed.
    async fn served(keep: bool) -> Self {
        let url = common::new_database().await;
        let (target, pid) = common::start_server_process(&["--db-url", &url]);
        let builder = GrpcPersistenceProvider::builder(target);
        let (name, builder) = match keep {
            true => ("through the server", builder),
            false => ("through the server, nothing kept", builder.keep(0)),
        };
        let store = builder.connect().await.unwrap();
        store.ensure_store_exists().await.unwrap();
        Self {
            name,
            store: Arc::new(store),
            url,
            server: Some(pid),
        }
    }

    /// The processor's time so far, in seconds: of the client, the server, and PostgreSQL.
    fn cpu(&self, postmaster: u32) -> [f64; 3] {
        [
            process(std::process::id()).cpu,
            self.server.map_or(0.0, with_children),
            with_children(postmaster),
        ]
    }
}

/// Has all callers repeat the work for this time.
async fn run(
    side: &Side,
    callers: Vec<Caller>,
    work: Work,
    time: Duration,
    postmaster: u32,
) -> (Vec<Caller>, Numbers) {
    let before = side.cpu(postmaster);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut caller in callers {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while times.is_empty() || begun.elapsed() < time {
                let now = Instant::now();
                caller.once(work).await.unwrap();
                times.push(now.elapsed());
            }
            (caller, times)
        });
    }
    let (callers, times): (Vec<Caller>, Vec<Vec<Duration>>) =
        tasks.join_all().await.into_iter().unzip();
    let seconds = begun.elapsed().as_secs_f64();
    let after = side.cpu(postmaster);
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort_unstable();
    let calls = times.len() as f64;
    let cpu = |at: usize| 1e3 * (after[at] - before[at]) / calls;
    let numbers = BTreeMap::from([
        ("p50_ms", 1e3 * times[times.len() / 2].as_secs_f64()),
        ("calls_per_s", calls / seconds),
        ("client_cpu_ms", cpu(0)),
        ("server_cpu_ms", cpu(1)),
        ("postgres_cpu_ms", cpu(2)),
    ]);
    (callers, Numbers(numbers))
}

/// Measures all sides in turn, `rounds` times; returns the medians.
pub async fn compare(
    rows: u64,
    at_once: &[usize],
    rounds: usize,
    seconds: f64,
    only: &str,
) -> serde_json::Value {
    let sides = [
        Side::direct().await,
        Side::served(true).await,
        Side::served(false).await,
    ];
    for side in &sides {
        fill(&side.url, rows).await;
    }
    let postmaster = postmaster(&sides[0].url).await;
    let works = LENGTHS.map(Work::Load).into_iter();
    let works = works.chain(LENGTHS.map(Work::Persist));
    println!(
        "| operation | callers | on | p50, ms | per second | of wfe-postgres \
         | CPU: client, server, PostgreSQL, ms |"
    );
    println!("|---|--:|---|--:|--:|--:|--:|");
    let mut found_rows = Vec::new();
    for work in works.filter(|work| work.name().contains(only)) {
        for &count in at_once {
            let mut found: Vec<Vec<Numbers>> = sides.iter().map(|_| Vec::new()).collect();
            let mut callers = Vec::new();
            for side in &sides {
                let mut of_side = Vec::new();
                for _ in 0..count {
                    of_side.push(Caller::new(side.store.clone(), work).await.unwrap());
                }
                callers.push(of_side);
            }
            for round in 0..=rounds {
                for (at, side) in sides.iter().enumerate() {
                    let time = Duration::from_secs_f64(seconds);
                    let some = std::mem::take(&mut callers[at]);
                    let (some, numbers) = run(side, some, work, time, postmaster).await;
                    callers[at] = some;
                    // The first one warms up.
                    if round > 0 {
                        found[at].push(numbers);
                    }
                }
            }
            let first = median(&found[0], "calls_per_s");
            for (side, found) in sides.iter().zip(&found) {
                let at = |name: &str| median(found, name);
                println!(
                    "| {} | {count} | {} | {:.2} | {:.0} | {:.2}x | {:.2}, {:.2}, {:.2} |",
                    work.name(),
                    side.name,
                    at("p50_ms"),
                    at("calls_per_s"),
                    at("calls_per_s") / first,
                    at("client_cpu_ms"),
                    at("server_cpu_ms"),
                    at("postgres_cpu_ms"),
                );
                let mut row =
                    json!({"operation": work.name(), "callers": count, "side": side.name});
                for name in found[0].0.keys() {
                    row[name] = json!(at(name));
                }
                found_rows.push(row);
            }
            // What wfe-postgres takes depends on how many pointers there are in all.
            for side in &sides {
                clear(&side.url).await;
            }
        }
    }
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"machine": {"cpus": cpus}, "rounds": rounds, "stored": rows, "rows": found_rows})
}

/// Deletes what callers have stored.
async fn clear(url: &str) {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    for statement in [
        "DELETE FROM wfc.execution_pointers WHERE workflow_id NOT LIKE 'fill-%'",
        "DELETE FROM wfc.workflows WHERE id NOT LIKE 'fill-%'",
        "VACUUM ANALYZE wfc.execution_pointers",
        "VACUUM ANALYZE wfc.workflows",
    ] {
        pool.execute(statement).await.unwrap();
    }
    pool.close().await;
}

/// The process of the PostgreSQL that has this database.
async fn postmaster(url: &str) -> u32 {
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&pool)
        .await
        .unwrap();
    // While it is there.
    let postmaster = process(backend as u32).parent;
    pool.close().await;
    postmaster
}
