//! The queue. The engine's has no acknowledgement: whoever takes an item has it alone, and if
//! that host dies, or drops the item because a load, a lock or a definition failed, nobody does
//! its work. Here an item stays on the server, under a lease, until its work is done.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use async_trait::async_trait;
use chrono::Utc;
use tokio::sync::oneshot;
use wfe_core::models::QueueType;
use wfe_core::traits::QueueProvider;

use super::handling::{this_task, Held, Requeue, Task};
use super::waits::BRIEF;
use super::{to_duration, GrpcHost, Inner};
use crate::convert::from_time;
use crate::error::{Error, Result};
use crate::v1::{self, ErrorReason};

#[async_trait]
impl QueueProvider for GrpcHost {
    /// Enqueues a workflow or an event to be handled now. No call if the write before has done so
    /// already, in its own transaction. Of an item that this task is handling, it says that it is
    /// to come back: that is told with the next `dequeue_work`.
    async fn queue_work(&self, id: &str, queue: QueueType) -> wfe_core::Result<()> {
        let requeue = self.0.handling().requeue(this_task(), queue, id);
        let place = &self.0.place;
        let mut item = self.0.item(queue, id);
        let index = match requeue {
            Requeue::Nothing => return Ok(()),
            Requeue::Enqueue => place.of_item(queue, id).await?,
            Requeue::EnqueueBehind { resource, receipt } => {
                let (index, _) = place.untag(&receipt);
                if place.of_lock(&resource) != index {
                    // A lock in another member withholds nothing here.
                    self.0.handling().put_off(this_task(), queue);
                    return Ok(());
                }
                item.blocked_by = vec![resource];
                index
            }
        };
        let items = vec![item];
        let member = &place.members()[index];
        member.call(&v1::EnqueueRequest { items }).await?;
        Ok(())
    }

    /// Takes the next item, under a lease that is renewed in the background. It waits for one if
    /// there is none ([`Builder::dequeue_wait`](crate::Builder::dequeue_wait)). The item that the
    /// same task has taken from this queue before counts as handled: it is acknowledged in the
    /// same call if the store confirms that its work is done, else it comes back. So take items
    /// one after the other, each queue in one task, as the engine does.
    ///
    /// If the call is cancelled, an item that it took is given back.
    async fn dequeue_work(&self, queue: QueueType) -> wfe_core::Result<Option<String>> {
        let task = this_task();
        let inner = Arc::clone(&self.0);
        let ahead = match queue {
            QueueType::Workflow => {
                let mut handling = inner.handling();
                if let Some(id) = handling.take_again(task) {
                    return Ok(Some(id));
                }
                handling.ahead.take(task)
            }
            QueueType::Event | QueueType::Index => None,
        };
        let answer = match ahead {
            Some(answer) => {
                let before = inner.finish(queue, task);
                let handled = before.as_ref().map(|before| before.id.clone());
                inner.settle_soon(before.into_iter().collect());
                (answer, handled)
            }
            None => {
                let (send, answer) = oneshot::channel();
                // Not cancelled with the caller: the item would be lost until its lease expires.
                tokio::spawn(async move {
                    let _ = send.send(inner.dequeue(queue, task).await);
                });
                (answer, None)
            }
        };
        let (answer, handled) = answer;
        let taken = answer
            .await
            .map_err(|_| Error::invalid("the runtime is shutting down"))??;
        let id = taken.map(|taken| taken.accept(queue, task));
        if handled.is_some() && (id.is_none() || id == handled) {
            self.0.handling().ahead.was_useless(task);
        }
        Ok(id)
    }

    /// True: it may wait for an item.
    fn is_dequeue_blocking(&self) -> bool {
        true
    }

    /// Need not be called.
    async fn start(&self) -> wfe_core::Result<()> {
        self.0.handling().is_stopped = false;
        Ok(())
    }

    /// Publishes what has been buffered. Leases and locks are renewed, and given back in the
    /// end, for as long as a step still runs.
    async fn stop(&self) -> wfe_core::Result<()> {
        self.0.stop().await;
        Ok(())
    }
}

/// The answer of a `Dequeue` that is on its way.
type Answer = oneshot::Receiver<Result<Option<Taken>>>;

/// Items that are taken ahead: while the result of a step is being stored, so that the next step
/// need not wait for two calls one after the other.
#[derive(Default)]
pub(super) struct Ahead(HashMap<Task, (Option<Answer>, u32)>);

/// If no other item waits, to take one ahead is to wait for the very item that is being stored,
/// which costs more than to ask for it afterwards. So many steps go by until it is tried again.
const PAUSE: u32 = 16;

impl Ahead {
    fn take(&mut self, task: Task) -> Option<Answer> {
        self.0.get_mut(&task)?.0.take()
    }

    fn was_useless(&mut self, task: Task) {
        self.0.entry(task).or_default().1 = PAUSE;
    }

    /// Whether to take one now.
    fn begins(&mut self, task: Task) -> bool {
        let (answer, pause) = self.0.entry(task).or_default();
        let begins = answer.is_none() && *pause == 0;
        *pause = pause.saturating_sub(1);
        begins
    }
}

/// An item that was taken; given back if nobody accepts it.
pub(super) struct Taken {
    pub(super) item: Option<v1::DequeuedItem>,
    /// When it was asked for, before which its lease cannot have begun.
    asked: Instant,
    inner: Weak<Inner>,
}

impl Taken {
    /// Its lease was renewed, when that was asked for.
    pub(super) fn renewed(&mut self, asked: Instant, expiry: Option<prost_types::Timestamp>) {
        self.asked = asked;
        if let Some(item) = &mut self.item {
            item.lease_expiry = expiry.or(item.lease_expiry);
        }
    }

    fn accept(mut self, queue: QueueType, task: Task) -> String {
        let mut item = self.item.take().unwrap_or_default();
        let inner = self.inner.upgrade();
        let brought = item.workflow.take().zip(inner.as_ref());
        let brought = brought.and_then(|(workflow, inner)| {
            let revision = workflow.revision;
            // One that cannot be read is left to the host's load, which says why.
            let workflow = inner.place.any().loaded(workflow).ok()?;
            Some((workflow, revision))
        });
        let (brought, revision) = brought.unzip();
        let lease = inner.as_ref().map(|inner| inner.settings.lease);
        let leased_until = self.asked + lease.unwrap_or_default();
        let held = Held::new(&item, brought, revision, leased_until);
        let id = held.id.clone();
        if let Some(inner) = inner {
            let mut handling = inner.handling();
            if let Ok(Some(expiry)) = from_time(item.lease_expiry) {
                handling.compare_clocks(expiry - inner.settings.lease, Utc::now());
            }
            handling.take(queue, task, held);
        }
        id
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some((item, inner)) = self.item.take().zip(self.inner.upgrade()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let (index, receipt) = inner.place.untag(&item.receipt);
                let return_items = vec![v1::ReturnedItem {
                    receipt,
                    delay: None,
                }];
                let member = &inner.place.members()[index];
                // If it fails, the lease expires.
                let _ = member.call(&v1::ReturnItemsRequest { return_items }).await;
            });
        }
    }
}

impl Inner {
    /// The result of a step is about to be stored.
    pub(super) fn take_ahead(self: &Arc<Self>, task: Task) {
        let mut handling = self.handling();
        if handling.is_stopped || !handling.ahead.begins(task) {
            return;
        }
        let (send, answer) = oneshot::channel();
        handling.ahead.0.entry(task).or_default().0 = Some(answer);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let queue = QueueType::Workflow;
            let taken = match inner.place.is_set() {
                true => inner.take_of_any(queue).await,
                false => inner.ask(0, queue, None, true).await,
            };
            let _ = send.send(taken);
        });
    }

    async fn dequeue(self: &Arc<Self>, queue: QueueType, task: Task) -> Result<Option<Taken>> {
        let before = self.finish(queue, task);
        if self.place.is_set() {
            // In a call of its own: the next item is from the member whose turn it is.
            self.settle_soon(before.into_iter().collect());
            return self.take_of_any(queue).await;
        }
        let outcome = self.ask(0, queue, before.as_ref(), true).await;
        if let (Err(_), Some(before)) = (&outcome, before) {
            self.handling().take(queue, task, before);
        }
        outcome
    }

    /// Takes an item from the first member of a set that has one, beginning with another one each
    /// time. If there is none, it waits in all.
    async fn take_of_any(self: &Arc<Self>, queue: QueueType) -> Result<Option<Taken>> {
        let mut failures = Vec::new();
        for index in self.place.turns() {
            match self.ask(index, queue, None, false).await {
                Ok(None) => {}
                Ok(taken) => return Ok(taken),
                Err(error) => failures.push(error),
            }
        }
        if failures.len() == self.place.members().len() {
            return Err(failures.swap_remove(0));
        }
        self.wait_in_all(queue).await
    }

    /// Asks a member for an item, and settles the one before.
    pub(super) async fn ask(
        self: &Arc<Self>,
        index: usize,
        queue: QueueType,
        before: Option<&Held>,
        waits: bool,
    ) -> Result<Option<Taken>> {
        let member = self.place.once(index);
        self.configured[index]
            .get_or_try_init(|| self.configure(member))
            .await?;
        let mut request = self.request(queue, waits);
        if let Some(before) = before {
            before.settle(&mut request.acknowledge, &mut request.return_items);
        }
        let mut asked = Instant::now();
        let mut answer = member.call(&request).await;
        if lost(&answer) {
            request.acknowledge.clear();
            request.return_items.clear();
            asked = Instant::now();
            answer = member.call(&request).await;
        }
        let Some(mut item) = answer?.items.into_iter().next() else {
            return Ok(None);
        };
        item.receipt = self.place.tag(item.receipt, index);
        if self.place.is_set() && queue == QueueType::Workflow {
            let id = item.item.as_ref().map_or("", |item| &item.id);
            if self.place.of_workflow(id) != index {
                self.put_right(item).await?;
                return Ok(None);
            }
        }
        Ok(Some(Taken {
            item: Some(item),
            asked,
            inner: Arc::downgrade(self),
        }))
    }

    fn request(&self, queue: QueueType, waits: bool) -> v1::DequeueRequest {
        let any = self.place.any();
        v1::DequeueRequest {
            queues: vec![self.queue_name(queue)],
            max_items: 1,
            lease_duration: match waits && self.place.is_set() {
                true => to_duration(self.settings.lease.min(BRIEF)),
                false => self.lease(),
            },
            worker_id: any.claims.worker_id.clone(),
            include_workflow: queue == QueueType::Workflow,
            view: v1::WorkflowView::Full.into(),
            // Within the call's deadline, with time left for an answer.
            wait: to_duration(self.settings.dequeue_wait.min(any.caller.timeout / 2))
                .filter(|_| waits),
            ..Default::default()
        }
    }
}

/// Whether an item that was to be settled is no longer held.
fn lost<T>(answer: &Result<T>) -> bool {
    answer
        .as_ref()
        .is_err_and(|error| error.reason() == Some(ErrorReason::LeaseLost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_taken_ahead_unless_that_was_useless_lately() {
        let mut ahead = Ahead::default();
        assert!(ahead.begins(None) && ahead.take(None).is_none());
        ahead.was_useless(None);
        let pauses = (0..100).take_while(|_| !ahead.begins(None)).count();
        assert_eq!(pauses, PAUSE as usize);
        let (_send, answer) = oneshot::channel();
        ahead.0.insert(None, (Some(answer), 0));
        // Not two at a time.
        assert!(!ahead.begins(None));
        assert!(ahead.take(None).is_some());
        assert!(ahead.begins(None));
    }
}
