//! The engine's other providers beside its persistence, on the same server: queue, locks,
//! lifecycle events, search. Each trait has a file of its own below; this one holds what they
//! share.

mod due;
mod handling;
mod held;
mod keep;
mod lifecycle;
mod lock;
mod persistence;
mod place;
mod queue;
mod search;
mod settings;
mod settling;
mod waits;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use wfe_core::models::QueueType;

use self::handling::Handling;
use self::lifecycle::Outbox;
use self::place::Place;
pub use self::watch::Lag;
use self::watch::Watcher;
use crate::connect::Builder;
use crate::error::Result;
use crate::namespace_set::GrpcNamespaceSet;
use crate::provider::GrpcPersistenceProvider;
use crate::v1;

/// Everything that a host of the engine needs, on one WFE persistence server: persistence, queue,
/// locks, lifecycle events and search. One object implements all of these traits:
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use wfe_persistence_client::GrpcHost;
///
/// let server = Arc::new(GrpcHost::new("http://localhost:50052").await?);
/// # let store: Arc<dyn wfe_core::traits::PersistenceProvider> = server.clone();
/// # let queue: Arc<dyn wfe_core::traits::QueueProvider> = server.clone();
/// // WorkflowHostBuilder::new()
/// //     .use_persistence(server.clone())
/// //     .use_queue_provider(server.clone())
/// //     .use_lock_provider(server.clone())
/// //     .use_lifecycle(server.clone())
/// //     .use_search(server)
/// # Ok(()) }
/// ```
///
/// Use all of them together: that is what makes a step two calls, and what keeps a workflow from
/// getting stuck when a host dies (see the [crate's documentation](crate#hosts)). Clones share
/// everything.
///
/// [`Builder::connect_host_set`] connects a host that works over a namespace set.
#[derive(Clone)]
pub struct GrpcHost(Arc<Inner>);

pub(crate) struct Inner {
    place: Place,
    settings: HostSettings,
    /// What the host is doing at the moment.
    handling: Mutex<Handling>,
    /// Whether the queues of each member are known to be of their kinds.
    configured: Vec<OnceCell<()>>,
    outbox: Outbox,
    watcher: Watcher,
}

/// What the builder says about hosts.
#[derive(Debug, Clone)]
pub(crate) struct HostSettings {
    pub(crate) queue_prefix: String,
    pub(crate) lease: Duration,
    pub(crate) longest_step: Duration,
    pub(crate) dequeue_wait: Duration,
    pub(crate) turn: Duration,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            queue_prefix: "wfe.".into(),
            lease: Duration::from_secs(30),
            longest_step: Duration::from_secs(24 * 3600),
            dequeue_wait: Duration::from_secs(20),
            turn: Duration::from_millis(100),
        }
    }
}

impl GrpcHost {
    /// Connects with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// The address is invalid, no server can be reached, or it has no queues and locks.
    pub async fn new(endpoint: impl Into<String>) -> Result<Self> {
        Self::builder(endpoint).connect_host().await
    }

    /// Configures a host for the server at this address; see [`Builder::new`]. Finish with
    /// [`Builder::connect_host`].
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder::new(endpoint)
    }

    /// The persistence alone, which shares the connection and the cache. Over a namespace set, that
    /// of the first member only: see [`namespace_set`](Self::namespace_set).
    pub fn persistence(&self) -> &GrpcPersistenceProvider {
        self.0.place.any()
    }

    /// The namespace set over which the host works, if it does.
    pub fn namespace_set(&self) -> Option<&GrpcNamespaceSet> {
        match &self.0.place {
            Place::Namespace(_) => None,
            Place::Set { set, .. } => Some(set),
        }
    }

    /// Must be called in a Tokio runtime, in which what runs in the background will run.
    fn from_parts(place: Place, settings: HostSettings) -> Self {
        let configured = place.members().iter().map(|_| OnceCell::new()).collect();
        let inner = Arc::new(Inner {
            place,
            settings,
            handling: Mutex::default(),
            configured,
            outbox: Outbox::default(),
            watcher: Watcher::default(),
        });
        keep::start(&inner);
        lifecycle::start(&inner);
        Self(inner)
    }
}

/// The longest id of a workflow whose lock keys the server takes, which have at most 512 bytes.
const LONGEST_LOCKED: usize = 480;

impl Inner {
    fn handling(&self) -> MutexGuard<'_, Handling> {
        // Nothing panics while it is locked.
        self.handling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_name(&self, queue: QueueType) -> String {
        let name = match queue {
            QueueType::Workflow => "workflows",
            QueueType::Event => "events",
            QueueType::Index => "index",
        };
        format!("{}{name}", self.settings.queue_prefix)
    }

    /// The item that stands for a workflow or an event.
    fn item(&self, queue: QueueType, id: &str) -> v1::QueueItem {
        v1::QueueItem {
            queue: self.queue_name(queue),
            id: id.into(),
            blocked_by: match queue {
                // One that is too long for the engine's locks cannot be locked either.
                QueueType::Workflow if id.len() <= LONGEST_LOCKED => handling::lock_keys(id).into(),
                QueueType::Workflow => Vec::new(),
                QueueType::Event | QueueType::Index => Vec::new(),
            },
            ..Default::default()
        }
    }

    fn lease(&self) -> Option<prost_types::Duration> {
        to_duration(self.settings.lease)
    }
}

fn to_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

impl fmt::Debug for GrpcHost {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcHost")
            .field("persistence", self.persistence())
            .field("namespace_set", &self.namespace_set())
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}
