//! Lifecycle events that are published. The engine awaits each one, twice a step; so they are
//! only noted down, and go with the workflow's next write, or else soon after in batches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tonic::Code;
use wfe_core::models::LifecycleEvent;
use wfe_core::traits::LifecyclePublisher;

use super::{GrpcHost, Inner};
use crate::convert::to_lifecycle_event;
use crate::error::{Error, Result};
use crate::provider::GrpcPersistenceProvider;
use crate::v1;

/// How long an event waits for others, and for the write of its workflow.
const LINGER: Duration = Duration::from_millis(100);

/// How long to wait after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// The most events of one call.
const MOST: usize = 1000;

/// The most events that wait. More are refused, so that a server that is away does not fill the
/// memory.
const CAPACITY: usize = 100_000;

#[async_trait]
impl LifecyclePublisher for GrpcHost {
    /// Notes an event down. It is published with the next write of its workflow, in the same
    /// transaction, or within 100 ms with others. So it may be lost if the process dies
    /// meanwhile; `stop` waits for all. Events of a workflow come in their order.
    ///
    /// # Errors
    ///
    /// A value that cannot be sent; too many events wait, because the server is away.
    async fn publish(&self, event: LifecycleEvent) -> wfe_core::Result<()> {
        Ok(self.0.outbox.add(to_lifecycle_event(&event)?)?)
    }

    /// Receives all events of the namespace from now on, also those of other hosts; see
    /// [`GrpcHost::subscribe`].
    #[cfg(feature = "wfe-1-11")]
    fn subscribe(&self) -> wfe_core::Result<tokio::sync::broadcast::Receiver<LifecycleEvent>> {
        Ok(GrpcHost::subscribe(self)?)
    }
}

/// Events to be published.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<VecDeque<v1::LifecycleEvent>>,
    /// Held while events are on their way, so that later ones do not overtake them.
    sending: tokio::sync::Mutex<()>,
    added: Notify,
}

impl Outbox {
    fn add(&self, event: v1::LifecycleEvent) -> Result<()> {
        let mut waiting = self.waiting();
        if waiting.len() >= CAPACITY {
            return Err(Error::left_out("a lifecycle event: too many wait, and it"));
        }
        waiting.push_back(event);
        drop(waiting);
        self.added.notify_one();
        Ok(())
    }

    /// Takes the events of a workflow, to go with a write of it. (None while earlier ones may be
    /// on their way.)
    pub(super) fn take_of(&self, workflow_id: &str) -> Vec<v1::LifecycleEvent> {
        let Ok(_turn) = self.sending.try_lock() else {
            return Vec::new();
        };
        let mut waiting = self.waiting();
        if !waiting.iter().any(|event| event.workflow_id == workflow_id) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        waiting.retain(|event| {
            let takes = event.workflow_id == workflow_id && taken.len() < MOST;
            if takes {
                taken.push(event.clone());
            }
            !takes
        });
        taken
    }

    /// Puts events back that could not be published.
    pub(super) fn put_back(&self, events: Vec<v1::LifecycleEvent>) {
        if events.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        for event in events.into_iter().rev() {
            waiting.push_front(event);
        }
        drop(waiting);
        self.added.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<v1::LifecycleEvent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes what waits, until the last clone of the host is dropped.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    tokio::spawn(async move {
        loop {
            let Some(inner) = weak.upgrade() else {
                return;
            };
            let sent = inner.flush().await;
            let added = tokio::time::timeout(AGAIN, inner.outbox.added.notified()).await;
            drop(inner);
            tokio::time::sleep(if sent { LINGER } else { AGAIN }).await;
            drop(added);
        }
    });
}

impl Inner {
    /// Publishes all events that wait; false if the server did not take them.
    pub(super) async fn flush(&self) -> bool {
        while !self.outbox.is_empty() {
            self.watcher.is_ready().await;
            let _turn = self.outbox.sending.lock().await;
            let events: Vec<_> = { self.outbox.waiting().drain(..).collect() };
            if !self.publish(events).await {
                return false;
            }
        }
        true
    }

    /// Publishes events, each in the member of its workflow; false if one did not take its own.
    async fn publish(&self, events: Vec<v1::LifecycleEvent>) -> bool {
        let mut of_member: BTreeMap<usize, Vec<v1::LifecycleEvent>> = BTreeMap::new();
        for event in events {
            let index = self.place.of_workflow(&event.workflow_id);
            of_member.entry(index).or_default().push(event);
        }
        let mut all = true;
        for (index, events) in of_member {
            let mut failed = Vec::new();
            for some in events.chunks(MOST) {
                if !failed.is_empty() || !self.publish_in(self.place.once(index), some).await {
                    failed.extend_from_slice(some);
                }
            }
            all &= failed.is_empty();
            self.outbox.put_back(failed);
        }
        all
    }

    async fn publish_in(
        &self,
        member: &GrpcPersistenceProvider,
        events: &[v1::LifecycleEvent],
    ) -> bool {
        let request = v1::PublishRequest {
            events: events.to_vec(),
        };
        match member.call(&request).await {
            Ok(_) => true,
            // One of them can never be published: without it the others can.
            Err(error) if error.code() == Code::InvalidArgument => {
                for event in request.events {
                    let events = vec![event];
                    let _ = member.call(&v1::PublishRequest { events }).await;
                }
                true
            }
            Err(_) => false,
        }
    }
}
