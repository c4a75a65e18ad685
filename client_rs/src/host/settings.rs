//! Building a host: the builder's settings that only hosts have.

use std::time::Duration;

use super::place::Place;
use super::GrpcHost;
use crate::connect::Builder;
use crate::error::{Error, Result};

impl Builder {
    /// What the names of a host's queues begin with; default: `wfe.`, so the queues are
    /// `wfe.workflows`, `wfe.events` and `wfe.index`. Hosts of one fleet have the same prefix.
    /// Give fleets whose definitions differ another prefix or, better, another namespace.
    pub fn queue_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.host.queue_prefix = prefix.into();
        self
    }

    /// How long a host keeps items of queues and locks unless it renews them, which it does three
    /// times as often, however long a step takes; default: 30 s, 1 s to 24 h. So this is how long
    /// it takes until another host goes on with the work of one that died.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.host.lease = lease.clamp(Duration::from_secs(1), Duration::from_secs(24 * 3600));
        self
    }

    /// How long a host renews the lease of an item at most; default: 24 h. A step that takes
    /// longer may be run once more by another host, and its own result is refused. This is for
    /// steps that never return and for those that panic without being [`guarded`](crate::guarded),
    /// which ends the engine's consumer, but not the process.
    pub fn longest_step(mut self, longest: Duration) -> Self {
        self.host.longest_step = longest;
        self
    }

    /// How long `dequeue_work` waits on the server if there is no item; default: 20 s, 0 to 60 s.
    /// It wakes at once when there is one, so a shorter wait only means more calls.
    pub fn dequeue_wait(mut self, wait: Duration) -> Self {
        self.host.dequeue_wait = wait.min(Duration::from_secs(60));
        self
    }

    /// For how long a host goes on with a workflow that has more to do, before it takes another one
    /// from the queue; default: 100 ms. A step that is under way then is not interrupted. As long as
    /// it goes on, a step is one call; and others wait for their turns. 0: after each step it takes
    /// what has waited longest, which is one more call.
    pub fn turn(mut self, turn: Duration) -> Self {
        self.host.turn = turn;
        self
    }

    /// Connects a host, and calls `GetStoreInfo`, as [`connect`](Self::connect) does.
    ///
    /// # Errors
    ///
    /// A setting is invalid, no server can be reached, the server rejects the call, or it is too
    /// old to have queues, locks and lifecycle events.
    pub async fn connect_host(self) -> Result<GrpcHost> {
        let settings = self.host.clone();
        let provider = self.connect_lazy()?;
        let info = provider.store_info().await?;
        let can = info.capabilities.unwrap_or_default();
        if !(can.queues && can.locks && can.lifecycle) {
            return Err(Error::invalid(format!(
                "the server (version {}) has no queues, locks and lifecycle events",
                info.server_version
            )));
        }
        let provider = provider.with_capabilities(can);
        let place = Place::Namespace(Box::new(provider));
        Ok(GrpcHost::from_parts(place, settings))
    }

    /// Connects a host that works over a namespace set: its workflows, with their items, locks and
    /// lifecycle events, are in the members that the hash of their ids gives. As
    /// [`connect_set`](Self::connect_set) does, it asks the server for the members.
    ///
    /// A step is one transaction in one member, as in a single namespace. What differs:
    ///
    /// - A host that waits for work has a call in each member.
    /// - The event that says that a workflow is complete is stored even if nobody waits for it,
    ///   since those who do may be in other members.
    /// - Workflows that a step starts in other members are let go when its result has been stored,
    ///   rather than with it: at once, or when the lease is over, if the host dies in between.
    /// - A member whose database is away is passed over: the host works for the others.
    ///
    /// # Errors
    ///
    /// Those of [`connect_set`](Self::connect_set) and [`connect_host`](Self::connect_host).
    pub async fn connect_host_set(self, name: &str) -> Result<GrpcHost> {
        let settings = self.host.clone();
        let set = self.connect_set(name).await?;
        // A server that knows sets has queues and locks.
        Ok(GrpcHost::from_parts(Place::over(set), settings))
    }

    /// Checks the settings, but connects only with the first call.
    ///
    /// # Errors
    ///
    /// A setting is invalid.
    ///
    /// # Panics
    ///
    /// It is called outside a Tokio runtime.
    pub fn connect_host_lazy(self) -> Result<GrpcHost> {
        let settings = self.host.clone();
        let place = Place::Namespace(Box::new(self.connect_lazy()?));
        Ok(GrpcHost::from_parts(place, settings))
    }
}
