//! An item of a queue that a host handles.

use std::time::{Duration, Instant};

use wfe_core::models::{PointerStatus, WorkflowInstance};

use super::HostSettings;
use crate::v1;

/// How often the host loads a workflow before each step: before it takes the lock, and after.
const LOADS: u8 = 2;

/// The resources of the locks that the engine takes on a workflow: since 1.11 the host takes one
/// of its own before the executor's.
pub(super) fn lock_keys(workflow_id: &str) -> [String; 2] {
    [
        workflow_id.into(),
        format!("workflow-execution.{workflow_id}"),
    ]
}

/// What the resources of locks begin with that withhold the children of a workflow.
pub(super) const CHILDREN: &str = "children.";

/// An item that a task handles, under a lease.
pub(super) struct Held {
    pub(super) id: String,
    pub(super) receipt: String,
    pub(super) attempt: u32,
    pub(super) since: Instant,
    /// When it was taken from the queue.
    taken: Instant,
    /// The lease does not expire before, by this machine's clock.
    leased_until: Instant,
    pub(super) end: End,
    /// What `Dequeue` brought, for the host's loads.
    pub(super) brought: Option<(WorkflowInstance, u8)>,
    /// The revision of the workflow that the executor works on.
    pub(super) revision: Option<i64>,
    /// Whether that is the one that it loaded under its lock.
    pub(super) loaded_under_lock: bool,
    /// Whether an event may come for the workflow in the meantime.
    pub(super) waits_for_event: bool,
    /// The locks that the lease stands for.
    pub(super) locked: Vec<String>,
    /// The workflows that the step has started; see [`Held::children_key`].
    pub(super) children: Vec<String>,
    /// The event that says that the workflow is complete, which is stored with that state.
    pub(super) completion: Option<v1::Event>,
    /// Whether the task has released a lock on the workflow: it is done with it then.
    pub(super) released: bool,
}

/// What becomes of an item when its task takes the next one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    /// It goes, if the store says that its work is done.
    Confirm,
    /// It comes back.
    Return(Duration),
    /// Nothing: it was acknowledged with the workflow's new state.
    Acknowledged,
    /// The task has the next step of the same workflow to do: it takes the same item again, without
    /// a call, if the lease still lasts. Else the item comes back.
    GoOn,
    /// Nothing: the lease is lost.
    Lost,
}

impl Held {
    pub(super) fn new(
        item: &v1::DequeuedItem,
        brought: Option<WorkflowInstance>,
        revision: Option<i64>,
        leased_until: Instant,
    ) -> Self {
        Self {
            id: item.item.as_ref().map(|i| i.id.clone()).unwrap_or_default(),
            receipt: item.receipt.clone(),
            attempt: u32::try_from(item.attempt).unwrap_or(1),
            since: Instant::now(),
            taken: Instant::now(),
            leased_until,
            end: End::Confirm,
            waits_for_event: brought.as_ref().is_some_and(waits_for_event),
            brought: brought.map(|workflow| (workflow, LOADS)),
            revision,
            loaded_under_lock: false,
            locked: Vec::new(),
            children: Vec::new(),
            completion: None,
            released: false,
        }
    }

    /// Whether the lease is to be kept.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.end, End::Confirm | End::Return(_) | End::GoOn)
    }

    /// The lease was renewed.
    pub(super) fn renewed(&mut self, until: Instant) {
        self.leased_until = self.leased_until.max(until);
    }

    /// Whether its task may go on with the workflow after the step that it does: nobody else does
    /// anything with it as long as the lease stands for the workflow's locks.
    pub(super) fn may_go_on(&self, workflow: &WorkflowInstance, settings: &HostSettings) -> bool {
        self.end == End::Confirm
            && self.locked.contains(&self.id)
            && self.children.is_empty()
            && self.revision.is_some()
            && !waits_for_event(workflow)
            && self.taken.elapsed() < settings.turn
            && self.is_leased(settings.lease / 3)
    }

    /// The step's result is stored, with this revision.
    pub(super) fn go_on(&mut self, workflow: WorkflowInstance, revision: i64) {
        self.end = End::GoOn;
        self.brought = Some((workflow, LOADS));
        self.revision = Some(revision);
    }

    /// Takes the item again for the next step; false if it has to go back.
    pub(super) fn take_again(&mut self) -> bool {
        let again = self.end == End::GoOn && self.is_leased(Duration::ZERO);
        if again {
            self.end = End::Confirm;
            self.since = Instant::now();
            self.loaded_under_lock = false;
            self.locked.clear();
            self.released = false;
        }
        again
    }

    /// Whether the lease lasts for at least so long.
    fn is_leased(&self, time: Duration) -> bool {
        Instant::now() + time < self.leased_until
    }

    pub(super) fn covers(&self, resource: &str) -> bool {
        self.is_open() && lock_keys(&self.id).iter().any(|key| key == resource)
    }

    /// The resource of a lock that withholds the workflows which a step starts until its result
    /// is stored: with it the subscription to their ends. Another host could run one to its end
    /// before that, and nobody would know.
    pub(super) fn children_key(&self) -> String {
        format!("{CHILDREN}{}", self.id)
    }

    /// Whether a resource is that of such a lock: over a namespace set there is one in each member
    /// that has a child, whose index is at its end.
    pub(super) fn is_children_key(&self, resource: &str) -> bool {
        resource
            .strip_prefix(&self.children_key())
            .is_some_and(|rest| {
                let index = rest.strip_prefix('@').unwrap_or_default();
                rest.is_empty() || (!index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()))
            })
    }

    /// What the server is told about the item, at last.
    pub(super) fn settle(
        &self,
        acknowledge: &mut Vec<v1::Acknowledgement>,
        return_items: &mut Vec<v1::ReturnedItem>,
    ) {
        let receipt = self.receipt.clone();
        match self.end {
            End::Confirm => acknowledge.push(v1::Acknowledgement {
                receipt,
                confirmed: true,
            }),
            End::Return(delay) => return_items.push(v1::ReturnedItem {
                receipt,
                delay: (!delay.is_zero())
                    .then(|| super::to_duration(delay))
                    .flatten(),
            }),
            End::GoOn => return_items.push(v1::ReturnedItem {
                receipt,
                delay: None,
            }),
            End::Acknowledged | End::Lost => {}
        }
    }
}

pub(super) fn waits_for_event(workflow: &WorkflowInstance) -> bool {
    workflow
        .execution_pointers
        .iter()
        .any(|p| p.status == PointerStatus::WaitingForEvent && !p.event_published)
}
