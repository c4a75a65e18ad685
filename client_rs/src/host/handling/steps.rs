//! What the writes of workflows are to their items: the result of a step, or something else.

use std::time::Duration;

use wfe_core::models::{QueueType, WorkflowInstance};

use super::{children_locks, lock_keys, End, Handling, Held, Task};
use crate::host::HostSettings;
use crate::v1;

/// A step that starts more workflows does not withhold the others: so many fit in its write.
const MOST_CHILDREN: usize = 900;

/// The event has the workflow's data; with larger ones, both might not fit in one request.
const LARGEST_COMPLETION: usize = 256 * 1024;

/// What a persist of a workflow is.
#[derive(Debug, Default, PartialEq)]
pub(in crate::host) struct Persist {
    /// Only if the workflow is at this revision.
    pub(in crate::host) expected_revision: Option<i64>,
    pub(in crate::host) held_lock_tokens: Vec<String>,
    /// The result of a step: acknowledges this item.
    pub(in crate::host) receipt: Option<String>,
    /// The workflows that the step has started.
    pub(in crate::host) children: Vec<String>,
    /// An event to create.
    pub(in crate::host) completion: Option<v1::Event>,
    /// Between taking an item and running its step: the item's lease stands for its next run.
    pub(in crate::host) is_early: bool,
    /// The result of a step after which the task goes on with the workflow: the item stays.
    pub(in crate::host) goes_on: bool,
}

/// See [`Persist`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::host) enum Outcome {
    Stored(i64),
    /// Another writer was faster.
    Raced,
    LeaseLost,
    Failed,
}

impl Handling {
    /// What a persist of this workflow by this task is.
    pub(in crate::host) fn persist(&mut self, task: Task, id: &str) -> Persist {
        let mut persist = Persist::default();
        let mut locked = false;
        if let Some(lock) = self.own_lock(task, id) {
            locked = true;
            persist.expected_revision = lock.revision;
            persist.held_lock_tokens.push(lock.token.clone());
        }
        let [_, claim] = lock_keys(id);
        if let Some(lock) = self.own_lock(task, &claim) {
            persist.held_lock_tokens.push(lock.token.clone());
        }
        let Some(held) = self.held_any_workflow(task, id) else {
            return persist;
        };
        if held.end == End::Acknowledged {
            return persist;
        }
        persist.expected_revision = held.revision;
        if locked || held.locked.iter().any(|resource| resource == id) {
            persist.receipt = Some(held.receipt.clone());
            persist.children.clone_from(&held.children);
            persist.completion.clone_from(&held.completion);
        } else {
            persist.is_early = true;
        }
        persist
    }

    /// Whether the task goes on with this workflow, which has something to do now, after the step
    /// whose result is `persist`; see [`Held::may_go_on`].
    pub(in crate::host) fn goes_on(
        &mut self,
        task: Task,
        workflow: &WorkflowInstance,
        persist: &Persist,
        settings: &HostSettings,
    ) -> bool {
        let may =
            persist.receipt.is_some() && persist.held_lock_tokens.is_empty() && !self.is_stopped;
        let held = self.held_workflow(task, &workflow.id);
        may && held.is_some_and(|held| held.may_go_on(workflow, settings))
    }

    /// The item of the workflow that the task goes on with; its id.
    pub(in crate::host) fn take_again(&mut self, task: Task) -> Option<String> {
        if self.is_stopped {
            return None;
        }
        let held = self.held.get_mut(&(QueueType::Workflow, task))?;
        held.take_again().then(|| held.id.clone())
    }

    pub(in crate::host) fn persisted(
        &mut self,
        task: Task,
        workflow: &WorkflowInstance,
        persist: &Persist,
        outcome: Outcome,
    ) {
        let id = workflow.id.as_str();
        if let (Some(lock), Outcome::Stored(revision)) = (self.own_lock(task, id), outcome) {
            lock.revision = Some(revision);
        }
        let Some(held) = self.held_any_workflow(task, id) else {
            return;
        };
        match outcome {
            Outcome::Stored(revision) if persist.goes_on && held.is_open() => {
                held.go_on(workflow.clone(), revision);
            }
            Outcome::Stored(_) if persist.receipt.is_some() => held.end = End::Acknowledged,
            Outcome::Stored(revision) => {
                held.revision = Some(revision);
                held.brought = None;
            }
            Outcome::Raced if held.is_open() => held.end = End::Return(Duration::ZERO),
            Outcome::LeaseLost if persist.receipt.is_some() => held.end = End::Lost,
            Outcome::Raced | Outcome::LeaseLost | Outcome::Failed => {}
        }
    }

    /// A workflow is created. If it is a step of this task that starts it, returns the resource of
    /// the lock that withholds it, and whether the lock is yet to be acquired.
    /// `placed`: the resource where the child is.
    pub(in crate::host) fn start_child(
        &mut self,
        task: Task,
        id: &str,
        placed: impl Fn(String) -> String,
    ) -> Option<(String, bool)> {
        let held = self.in_step(task)?;
        if held.children.len() >= MOST_CHILDREN {
            return None;
        }
        held.children.push(id.into());
        let key = placed(held.children_key());
        let is_free = !self.locks.contains_key(&key);
        Some((key, is_free))
    }

    /// An event is created. If it is the one that says that the workflow is complete whose step this
    /// task runs, it is kept for the write of that state: the engine ignores it if the creation
    /// fails, and whoever waits for the workflow would wait for ever.
    pub(in crate::host) fn keep_completion(&mut self, task: Task, event: &v1::Event) -> bool {
        let held = self.in_step(task);
        let completes = |held: &&mut Held| {
            event.event_name == "wfe.workflow.completed"
                && event.event_key == held.id
                && event.event_data_json.len() <= LARGEST_COMPLETION
        };
        match held.filter(completes) {
            Some(held) => {
                held.completion = Some(event.clone());
                true
            }
            None => false,
        }
    }

    /// The tokens of the locks that withhold what the task has started, as far as it holds them: to
    /// be released.
    pub(in crate::host) fn let_children_go(&mut self, task: Task) -> Vec<String> {
        let Self { held, locks, .. } = self;
        let held = held.get(&(QueueType::Workflow, task));
        held.map_or_else(Vec::new, |held| children_locks(locks, held, Some(task)))
    }
}
