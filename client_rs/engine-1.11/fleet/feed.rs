//! Starts workflows and publishes events as lines of the standard input say:
//!
//! ```text
//! start DEFINITION N    a workflow with the data {"n": N}; answered by `started N ID`
//! event ID              the event that this workflow waits for; answered by `published ID`
//! ```
//!
//! Both are repeated until they succeed, as a client of a host would; what fails in between is
//! answered by `failed …`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Semaphore;
use wfe::WorkflowHost;

use crate::definitions::EVENT;
use crate::options::Options;
use crate::providers::{self, Providers};
use crate::Failure;

pub async fn run(options: &Options) -> Result<(), Failure> {
    // Never started: a host that only starts workflows and publishes events.
    let host = Arc::new(providers::host(&Providers::connect(options).await?, options).await?);
    let limit = Arc::new(Semaphore::new(options.number("concurrency", 8)?));
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        let permit = limit.clone().acquire_owned().await?;
        let host = host.clone();
        tasks.spawn(async move {
            loop {
                match once(&host, &line).await {
                    Ok(answer) => break println!("{answer}"),
                    Err(error) => println!("failed {line}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
    Ok(())
}

async fn once(host: &WorkflowHost, line: &str) -> Result<String, Failure> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["start", definition, n] => {
            let data = json!({"n": n.parse::<u64>()?});
            let id = host.start_workflow(definition, 1, data).await?;
            Ok(format!("started {n} {id}"))
        }
        ["event", id] => {
            host.publish_event(EVENT, id, json!({"for": id})).await?;
            Ok(format!("published {id}"))
        }
        _ => Err("start DEFINITION N, or event ID".into()),
    }
}
