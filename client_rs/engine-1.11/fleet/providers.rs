//! What a host stands on.

use std::sync::Arc;
use std::time::Duration;

use wfe::{WorkflowHost, WorkflowHostBuilder};
use wfe_core::test_support::{InMemoryLockProvider, InMemoryQueueProvider};
use wfe_core::traits::{
    DistributedLockProvider, LifecyclePublisher, PersistenceProvider, QueueProvider,
};
use wfe_persistence_client::{GrpcHost, GrpcPersistenceProvider};

use crate::options::Options;
use crate::{definitions, Failure};

/// `--providers`, connected.
///
/// | kind | state | queue and locks | options |
/// |---|---|---|---|
/// | `grpc` | our server | our server | `--target`, `--lease-ms` |
/// | `grpc-memory` | our server | of this process | `--target` |
/// | `memory` | `wfe-postgres` | of this process | `--db` |
/// | `valkey` | `wfe-postgres` | `wfe-valkey` | `--db`, `--redis` |
#[derive(Clone)]
pub struct Providers {
    pub persistence: Arc<dyn PersistenceProvider>,
    pub queue: Arc<dyn QueueProvider>,
    pub locks: Arc<dyn DistributedLockProvider>,
    /// Only where the state is kept with it: the others are measured without.
    lifecycle: Option<Arc<dyn LifecyclePublisher>>,
}

impl Providers {
    pub async fn connect(options: &Options) -> Result<Self, Failure> {
        let kind = options.text("providers")?;
        match kind {
            "grpc" => {
                let lease = options.number("lease-ms", 30_000)?;
                let server = GrpcHost::builder(options.text("target")?)
                    .timeout(Duration::from_secs(120))
                    .lease(Duration::from_millis(lease as u64))
                    .connect_host()
                    .await?;
                let server = Arc::new(server);
                let lifecycle: Arc<dyn LifecyclePublisher> = server.clone();
                Ok(Self {
                    persistence: server.clone(),
                    queue: server.clone(),
                    locks: server,
                    lifecycle: (options.number("lifecycle", 0)? > 0).then_some(lifecycle),
                })
            }
            "grpc-memory" => {
                let target = options.text("target")?;
                let store = GrpcPersistenceProvider::builder(target)
                    .timeout(Duration::from_secs(120))
                    .connect()
                    .await?;
                Ok(Self::in_memory(Arc::new(store)))
            }
            #[cfg(feature = "peers")]
            "memory" => Ok(Self::in_memory(postgres(options).await?)),
            #[cfg(feature = "peers")]
            "valkey" => {
                let redis = options.text("redis")?;
                Ok(Self {
                    persistence: postgres(options).await?,
                    queue: Arc::new(wfe_valkey::ValkeyQueueProvider::new(redis, "fleet").await?),
                    locks: Arc::new(wfe_valkey::ValkeyLockProvider::new(redis, "fleet").await?),
                    lifecycle: None,
                })
            }
            _ => Err(format!("--providers {kind}: not in this build").into()),
        }
    }

    fn in_memory(persistence: Arc<dyn PersistenceProvider>) -> Self {
        Self {
            persistence,
            queue: Arc::new(InMemoryQueueProvider::new()),
            locks: Arc::new(InMemoryLockProvider::new()),
            lifecycle: None,
        }
    }

    /// The providers of one more host beside the one that has these: another connection, but the
    /// same queue and locks.
    pub async fn for_another_host(&self, options: &Options) -> Result<Self, Failure> {
        match options.text("providers")? {
            "memory" => Ok(self.clone()),
            "grpc-memory" => Ok(Self {
                persistence: Self::connect(options).await?.persistence,
                ..self.clone()
            }),
            _ => Self::connect(options).await,
        }
    }
}

#[cfg(feature = "peers")]
async fn postgres(options: &Options) -> Result<Arc<dyn PersistenceProvider>, Failure> {
    let store = wfe_postgres::PostgresPersistenceProvider::new(options.text("db")?).await?;
    // Only the driver adds tables: two that do it at the same time fail.
    store.ensure_store_exists().await?;
    Ok(Arc::new(store))
}

/// A host with the definitions of the fleet, whose steps take up to `--ms`.
pub async fn host(providers: &Providers, options: &Options) -> Result<WorkflowHost, Failure> {
    let mut builder = WorkflowHostBuilder::new()
        .use_persistence(providers.persistence.clone())
        .use_queue_provider(providers.queue.clone())
        .use_lock_provider(providers.locks.clone());
    if let Some(lifecycle) = &providers.lifecycle {
        builder = builder.use_lifecycle(lifecycle.clone());
    }
    let engine = builder.build()?;
    definitions::register(&engine, definitions::all(options.number("ms", 20)?)).await;
    Ok(engine)
}
