//! A host of the real engine, as a process that may be killed, and the same engine measured.
//!
//! ```text
//! fleet host  --providers KIND --journal FILE …   runs workflows until SIGTERM
//! fleet feed  --providers KIND …                  starts workflows and publishes events, as told
//! fleet bench --providers KIND --hosts N …        measures
//! ```
//!
//! `./run fleet` starts these processes, kills them, and decides by the journals whether what
//! happened is what should have.

mod bench;
mod definitions;
mod feed;
mod journal;
mod options;
mod providers;

use std::time::Duration;

use options::Options;
use providers::Providers;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse(std::env::args().skip(1))?;
    match options.command.as_str() {
        "host" => host(&options).await,
        "feed" => feed::run(&options).await,
        "bench" => bench::run(&options).await,
        other => Err(format!("{other:?}: use host, feed or bench").into()),
    }
}

/// A host that runs until SIGTERM, and then until the step that it is in has ended.
async fn host(options: &Options) -> Result<(), Failure> {
    use tokio::signal::unix::{signal, SignalKind};

    journal::open(options.journal()?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let host = providers::host(&Providers::connect(options).await?, options).await?;
    host.start().await?;
    println!("running");
    terminate.recv().await;
    host.stop().await;
    while journal::running() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
