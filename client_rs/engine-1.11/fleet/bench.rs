//! Measures the engine on its providers: `--workflows` of `--steps` steps that do nothing are
//! started, then `--hosts` run them all; then `--alone` more, one after the other.
//!
//! Prints a JSON object for each part, and waits for a line of input before each next one, so that
//! the driver can read the counters of PostgreSQL, Redis and the server in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::sync::Semaphore;
use wfe::models::WorkflowStatus;
use wfe::WorkflowHost;

use crate::definitions::{self, ended};
use crate::options::Options;
use crate::providers::{self, Providers};
use crate::Failure;

const DEFINITION: &str = "bench";

pub async fn run(options: &Options) -> Result<(), Failure> {
    let (hosts, workflows) = (
        options.number("hosts", 1)?,
        options.number("workflows", 300)?,
    );
    let (steps, alone) = (options.number("steps", 5)?, options.number("alone", 30)?);
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let first = Providers::connect(options).await?;
    let mut fleet = Vec::new();
    for number in 0..hosts {
        let providers = match number {
            0 => first.clone(),
            _ => first.for_another_host(options).await?,
        };
        let host = providers::host(&providers, options).await?;
        let definition = definitions::linear(DEFINITION, steps, 0);
        host.register_workflow_definition(definition).await;
        fleet.push(Arc::new(host));
    }

    let begun = Instant::now();
    let ids = start(&fleet[0], workflows).await?;
    let seconds = begun.elapsed().as_secs_f64();
    say(
        "started",
        json!({"seconds": seconds, "workflows": workflows}),
        &mut input,
    )
    .await?;

    let begun = Instant::now();
    for host in &fleet {
        host.start().await?;
    }
    ended::wait_for(workflows).await;
    let seconds = begun.elapsed().as_secs_f64();
    wait_until_complete(&fleet[0], &ids).await?;
    let result = json!({"seconds": seconds, "workflows": workflows, "steps": workflows * steps});
    say("ran", result, &mut input).await?;

    let mut times = Vec::new();
    for number in 1..=alone {
        let begun = Instant::now();
        let id = fleet[0].start_workflow(DEFINITION, 1, json!({})).await?;
        ended::wait_for(workflows + number).await;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        wait_until_complete(&fleet[0], &[id]).await?;
        // Not always at the same moment of what polls.
        tokio::time::sleep(Duration::from_millis(number as u64 * 37 % 90)).await;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize);
    let result = json!({"median_ms": at(0.5), "p90_ms": at(0.9), "workflows": alone});
    say("alone", result, &mut input).await?;
    for host in &fleet {
        host.stop().await;
    }
    Ok(())
}

async fn start(host: &Arc<WorkflowHost>, workflows: usize) -> Result<Vec<String>, Failure> {
    let limit = Arc::new(Semaphore::new(16));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workflows {
        let permit = limit.clone().acquire_owned().await?;
        let host = host.clone();
        tasks.spawn(async move {
            let id = host.start_workflow(DEFINITION, 1, json!({})).await;
            drop(permit);
            id
        });
    }
    let mut ids = Vec::new();
    while let Some(id) = tasks.join_next().await {
        ids.push(id??);
    }
    Ok(ids)
}

/// That the last step has ended does not say that this has been stored.
async fn wait_until_complete(host: &WorkflowHost, ids: &[String]) -> Result<(), Failure> {
    for batch in ids.chunks(100) {
        loop {
            let found = host.persistence().get_workflow_instances(batch).await?;
            let complete = |workflow: &wfe::models::WorkflowInstance| {
                workflow.status == WorkflowStatus::Complete
            };
            if found.len() == batch.len() && found.iter().all(complete) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

async fn say(
    part: &str,
    mut result: serde_json::Value,
    input: &mut Lines<BufReader<Stdin>>,
) -> Result<(), Failure> {
    result["part"] = part.into();
    println!("{result}");
    input
        .next_line()
        .await?
        .ok_or("nobody reads this any more")?;
    Ok(())
}
