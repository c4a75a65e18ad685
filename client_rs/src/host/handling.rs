//! What a host is doing: the items it handles, the locks it holds, and who of it does so.
//!
//! The engine's traits have no acknowledgements, no leases, and nothing that connects a call with
//! the one before. What they have is an order: one task of the host takes an item, handles it, and
//! takes the next. So everything here is known by its [`Task`].

mod steps;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use wfe_core::models::{QueueType, WorkflowInstance};

pub(super) use super::held::{lock_keys, Held};
use super::held::{waits_for_event, End};
use super::queue::Ahead;
pub(super) use steps::Outcome;

/// Who calls: the Tokio task, `None` outside of one (in `block_on`).
pub(super) type Task = Option<tokio::task::Id>;

pub(super) fn this_task() -> Task {
    tokio::task::try_id()
}

/// How long after a write that enqueued something a `queue_work` of the same is none. The engine
/// makes it at once.
const ENQUEUED_FOR: Duration = Duration::from_secs(30);

/// A smaller difference of the clocks may be the time that an answer took.
const CLOCKS_AGREE: TimeDelta = TimeDelta::milliseconds(250);

/// A lock that a task holds on the server.
struct HeldLock {
    token: String,
    owner: Task,
    /// The revision of the workflow that was loaded under it.
    revision: Option<i64>,
    /// It has expired. Its holder still sends the token, so that what it writes is refused.
    is_lost: bool,
}

/// What to do about a lock.
pub(super) enum Acquire {
    /// The lease of the item stands for it.
    Granted,
    Refused,
    AskServer,
}

/// What to do about `queue_work`.
pub(super) enum Requeue {
    /// Nothing: a write has enqueued it already, or the item comes back by itself.
    Nothing,
    /// Enqueue it.
    Enqueue,
    /// Enqueue it so that it comes when this lock is released, if that is where this item is.
    EnqueueBehind { resource: String, receipt: String },
}

/// What to renew.
#[derive(Default)]
pub(super) struct Leases {
    pub(super) receipts: Vec<String>,
    pub(super) tokens: Vec<String>,
}

#[derive(Default)]
pub(super) struct Handling {
    held: HashMap<(QueueType, Task), Held>,
    locks: HashMap<String, HeldLock>,
    /// What writes have enqueued whose `queue_work` has yet to come.
    enqueued: HashMap<(Task, QueueType, String), Instant>,
    /// The resource of the lock that a task was refused last.
    refused: HashMap<Task, String>,
    /// By how much the database's clock is ahead of this machine's, as far as is known.
    clock_offset: TimeDelta,
    /// What tasks take before they are done with the item before.
    pub(super) ahead: Ahead,
    pub(super) is_stopped: bool,
}

impl Handling {
    /// The task has taken an item.
    pub(super) fn take(&mut self, queue: QueueType, task: Task, held: Held) {
        self.held.insert((queue, task), held);
    }

    /// What the clocks show at the same time, or almost.
    pub(super) fn compare_clocks(&mut self, database: DateTime<Utc>, own: DateTime<Utc>) {
        let offset = database - own;
        self.clock_offset = match offset.abs() < CLOCKS_AGREE {
            true => TimeDelta::zero(),
            // Rather too late than a little too early, which would be for nothing.
            false => offset + TimeDelta::milliseconds(50),
        };
    }

    /// By how much the database's clock is ahead of this machine's; 0 if they agree.
    pub(super) fn clock_offset(&self) -> TimeDelta {
        self.clock_offset
    }

    /// The task is done with the item that it took before.
    pub(super) fn finish(&mut self, queue: QueueType, task: Task) -> Option<Held> {
        self.refused.remove(&task);
        self.held.remove(&(queue, task))
    }

    /// Items whose tasks will not take another one, because the host was stopped. An item that
    /// was not locked yet may be about to be. With the tokens of locks that withhold what their
    /// steps have started.
    pub(super) fn left_over(&mut self, lease: Duration) -> (Vec<Held>, Vec<String>) {
        let over = |held: &Held| !held.is_open() || held.released || held.since.elapsed() > lease;
        let Self { held, locks, .. } = self;
        let keys: Vec<_> = held
            .iter()
            .filter(|(_, held)| {
                let locked = !held.locked.is_empty()
                    || lock_keys(&held.id)
                        .iter()
                        .any(|key| locks.contains_key(key));
                !locked && over(held)
            })
            .map(|(key, _)| *key)
            .collect();
        let over: Vec<_> = keys.iter().filter_map(|key| held.remove(key)).collect();
        let tokens = over
            .iter()
            .flat_map(|held| children_locks(locks, held, None))
            .collect();
        (over, tokens)
    }

    /// A load that is answered by what `Dequeue` brought.
    pub(super) fn brought(&mut self, task: Task, id: &str) -> Option<WorkflowInstance> {
        let held = self.held_workflow(task, id)?;
        let (workflow, loads) = held.brought.take()?;
        if loads > 1 {
            held.brought = Some((workflow.clone(), loads - 1));
        }
        held.loaded_under_lock = !held.locked.is_empty();
        Some(workflow)
    }

    /// The task has loaded a workflow from the server.
    pub(super) fn loaded(&mut self, task: Task, workflow: &WorkflowInstance, revision: i64) {
        let lock = self.own_lock(task, &workflow.id);
        let is_locked = lock.is_some();
        if let Some(lock) = lock {
            lock.revision.get_or_insert(revision);
        }
        if let Some(held) = self.held_workflow(task, &workflow.id) {
            if !held.loaded_under_lock {
                held.revision = Some(revision);
                held.loaded_under_lock = is_locked || !held.locked.is_empty();
                held.waits_for_event = waits_for_event(workflow);
            }
        }
    }

    pub(super) fn acquire(&mut self, task: Task, resource: &str) -> Acquire {
        let decision = self.decide(task, resource);
        // Only a lock on the server can withhold an item.
        if self.locks.contains_key(resource) {
            self.refused(task, resource);
        }
        decision
    }

    fn refused(&mut self, task: Task, resource: &str) {
        if self.held.contains_key(&(QueueType::Event, task)) {
            self.refused.insert(task, resource.into());
        }
    }

    fn decide(&mut self, task: Task, resource: &str) -> Acquire {
        if self.locks.contains_key(resource) {
            return Acquire::Refused;
        }
        let covering = self
            .held
            .iter_mut()
            .find(|((queue, _), held)| *queue == QueueType::Workflow && held.covers(resource));
        match covering {
            None => Acquire::AskServer,
            Some(((_, owner), _)) if *owner != task => Acquire::Refused,
            Some((_, held)) if held.locked.iter().any(|locked| locked == resource) => {
                Acquire::Refused
            }
            // Those who process events hold no lease, so the lock keeps them away; and one may
            // have changed the workflow since it was brought.
            Some((_, held)) if held.waits_for_event && held.id == resource => {
                held.brought = None;
                Acquire::AskServer
            }
            Some((_, held)) => {
                held.locked.push(resource.into());
                Acquire::Granted
            }
        }
    }

    /// The server has answered.
    pub(super) fn acquired(&mut self, task: Task, resource: &str, token: Option<String>) {
        match token {
            None => self.refused(task, resource),
            Some(token) => {
                self.refused.remove(&task);
                let lock = HeldLock {
                    token,
                    owner: task,
                    revision: None,
                    is_lost: false,
                };
                self.locks.insert(resource.into(), lock);
            }
        }
    }

    /// Releases a lock; returns its token if the server holds it.
    pub(super) fn release(&mut self, task: Task, resource: &str) -> Option<String> {
        let held = self.held.iter_mut().find(|((queue, owner), held)| {
            *queue == QueueType::Workflow
                && *owner == task
                && lock_keys(&held.id).iter().any(|key| key == resource)
        });
        let lock = self.locks.remove(resource);
        if let Some((_, held)) = held {
            held.locked.retain(|locked| locked != resource);
            held.released = true;
        }
        lock.map(|lock| lock.token)
    }

    /// A write of this task has enqueued it, or found that it need not be.
    pub(super) fn enqueued(&mut self, task: Task, queue: QueueType, id: &str) {
        if self.enqueued.len() >= 1024 {
            self.enqueued.retain(|_, at| at.elapsed() < ENQUEUED_FOR);
        }
        let key = (task, queue, id.to_string());
        self.enqueued.insert(key, Instant::now());
    }

    pub(super) fn requeue(&mut self, task: Task, queue: QueueType, id: &str) -> Requeue {
        let key = (task, queue, id.to_string());
        if let Some(at) = self.enqueued.remove(&key) {
            if at.elapsed() < ENQUEUED_FOR {
                return Requeue::Nothing;
            }
        }
        let refused = self.refused.get(&task).cloned();
        let own = self.held.get_mut(&(queue, task));
        let Some(held) = own.filter(|held| held.id == id && held.is_open()) else {
            return Requeue::Enqueue;
        };
        // The host cannot handle it now.
        match refused.filter(|_| queue == QueueType::Event) {
            Some(resource) => {
                held.end = End::Return(Duration::ZERO);
                Requeue::EnqueueBehind {
                    resource,
                    receipt: held.receipt.clone(),
                }
            }
            None => {
                held.end = End::Return(pause(held.attempt));
                Requeue::Nothing
            }
        }
    }

    /// The item that the task handles comes back later, rather than when a lock is released.
    pub(super) fn put_off(&mut self, task: Task, queue: QueueType) {
        if let Some(held) = self.held.get_mut(&(queue, task)) {
            held.end = End::Return(pause(held.attempt));
        }
    }

    pub(super) fn leases(&self, longest: Duration) -> Leases {
        let open = self.held.values();
        let open = open.filter(|held| held.is_open() && held.since.elapsed() < longest);
        let locks = self.locks.values().filter(|lock| !lock.is_lost);
        Leases {
            receipts: open.map(|held| held.receipt.clone()).collect(),
            tokens: locks.map(|lock| lock.token.clone()).collect(),
        }
    }

    /// The leases of items were renewed, so that they last until then at least.
    pub(super) fn renewed(&mut self, receipts: &[String], until: Instant) {
        for held in self.held.values_mut() {
            if receipts.contains(&held.receipt) {
                held.renewed(until);
            }
        }
    }

    /// The lease of an item is lost.
    pub(super) fn lost_item(&mut self, receipt: &str) {
        let held = self.held.values_mut().find(|held| held.receipt == receipt);
        if let Some(held) = held.filter(|held| held.is_open()) {
            held.end = End::Lost;
        }
    }

    /// A lock is lost.
    pub(super) fn lost_lock(&mut self, token: &str) {
        if let Some(lock) = self.locks.values_mut().find(|lock| lock.token == token) {
            lock.is_lost = true;
        }
    }

    /// The item whose workflow the task has locked.
    fn in_step(&mut self, task: Task) -> Option<&mut Held> {
        let held = self.held.get_mut(&(QueueType::Workflow, task))?;
        let lock = self.locks.get(&held.id);
        let is_locked =
            lock.is_some_and(|lock| lock.owner == task) || held.locked.contains(&held.id);
        (held.is_open() && is_locked).then_some(held)
    }

    fn own_lock(&mut self, task: Task, resource: &str) -> Option<&mut HeldLock> {
        let lock = self.locks.get_mut(resource)?;
        (lock.owner == task).then_some(lock)
    }

    fn held_any_workflow(&mut self, task: Task, id: &str) -> Option<&mut Held> {
        let held = self.held.get_mut(&(QueueType::Workflow, task))?;
        (held.id == id).then_some(held)
    }

    fn held_workflow(&mut self, task: Task, id: &str) -> Option<&mut Held> {
        self.held_any_workflow(task, id)
            .filter(|held| held.is_open())
    }
}

/// The tokens of the locks that withhold what the step of an item has started; they are forgotten.
/// `owner`: only those of this task.
fn children_locks(
    locks: &mut HashMap<String, HeldLock>,
    held: &Held,
    owner: Option<Task>,
) -> Vec<String> {
    let is_one = |resource: &String, lock: &HeldLock| {
        held.is_children_key(resource) && owner.is_none_or(|owner| owner == lock.owner)
    };
    let keys: Vec<String> = locks
        .iter()
        .filter(|(resource, lock)| is_one(resource, lock))
        .map(|(resource, _)| resource.clone())
        .collect();
    keys.iter()
        .filter_map(|key| locks.remove(key))
        .map(|lock| lock.token)
        .collect()
}

/// How long an item is withheld that a host cannot handle, so that another one gets it.
fn pause(attempt: u32) -> Duration {
    Duration::from_millis(50 << attempt.min(5))
}

#[cfg(test)]
mod tests;
