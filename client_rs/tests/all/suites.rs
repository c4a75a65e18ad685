//! The engine's own test suites, unchanged, for every provider that a host is.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use wfe_persistence_client::{Builder, GrpcHost};

use crate::common;

/// A namespace of their own, which they empty.
const NAMESPACE: &str = "rust_suites";

fn builder() -> Builder {
    GrpcHost::builder(common::target())
        .namespace(NAMESPACE)
        .timeout(Duration::from_secs(60))
        // The suites ask empty queues.
        .dequeue_wait(Duration::from_millis(50))
}

/// A host with exclusive use of that namespace, emptied.
struct Alone {
    host: GrpcHost,
    _turn: OwnedMutexGuard<()>,
}

impl Deref for Alone {
    type Target = GrpcHost;

    fn deref(&self) -> &Self::Target {
        &self.host
    }
}

async fn host() -> Alone {
    static TURN: LazyLock<Arc<tokio::sync::Mutex<()>>> = LazyLock::new(Arc::default);
    let turn = TURN.clone().lock_owned().await;
    let default = common::provider().await;
    default.create_namespace(NAMESPACE).await.unwrap();
    let host = builder().connect_host().await.unwrap();
    let store: &dyn wfe_core::traits::PersistenceProvider = &host;
    store.ensure_store_exists().await.unwrap();
    host.persistence().truncate_all().await.unwrap();
    Alone { host, _turn: turn }
}

wfe_core::queue_suite!(|| async { host().await });
wfe_core::lock_suite!(|| async { host().await });
wfe_core::persistence_suite!(|| async { host().await });
