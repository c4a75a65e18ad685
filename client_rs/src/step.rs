//! A step of an engine: all that one transaction stores.

use uuid::Uuid;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance,
};

use crate::convert::{to_command, to_event, to_execution_error, to_step_id, to_subscription};
use crate::error::Error;
use crate::v1;

/// One step of an engine: a workflow's new state and everything that the step produced, to
/// be stored in one transaction by
/// [`GrpcPersistenceProvider::commit`](crate::GrpcPersistenceProvider::commit).
///
/// ```no_run
/// # async fn example(
/// #     store: wfe_persistence_client::GrpcPersistenceProvider,
/// #     workflow: wfe_core::models::WorkflowInstance,
/// #     event: wfe_core::models::Event,
/// # ) -> Result<(), wfe_persistence_client::Error> {
/// use wfe_persistence_client::Step;
///
/// let mut step = Step::new(&workflow)?;
/// step.hold_subscription("waiting", "my-token", None);
/// step.terminate_subscription("waiting");
/// step.create_event(&event);
/// let committed = store.commit(step).await?;
/// println!("revision {}", committed.revision);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Step {
    pub(crate) workflow: WorkflowInstance,
    pub(crate) effects: v1::CommitWorkflowRequest,
}

/// The result of a committed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The workflow's revision after the step.
    pub revision: i64,
    /// The ids of the created subscriptions, in the order they were given.
    pub subscription_ids: Vec<String>,
    /// The ids of the created events, in the order they were given.
    pub event_ids: Vec<String>,
}

impl Step {
    /// A step that leaves the workflow in this state.
    ///
    /// # Errors
    ///
    /// A value that cannot be sent, for example a step id beyond 2^63-1.
    pub fn new(workflow: &WorkflowInstance) -> Result<Self, Error> {
        for pointer in &workflow.execution_pointers {
            to_step_id(pointer.step_id)?;
        }
        Ok(Self {
            workflow: workflow.clone(),
            effects: v1::CommitWorkflowRequest {
                request_id: Uuid::new_v4().to_string(),
                ..Default::default()
            },
        })
    }

    /// Stores the step only if the workflow is at this revision.
    pub fn expect_revision(&mut self, revision: i64) -> &mut Self {
        self.effects.expected_revision = Some(revision);
        self
    }

    /// Stores the step only if this subscription is still held with this token (and, if
    /// given, under this fencing token, the claim's epoch) and the claim has not expired.
    pub fn hold_subscription(
        &mut self,
        id: impl Into<String>,
        token: impl Into<String>,
        epoch: Option<i64>,
    ) -> &mut Self {
        self.effects.held_subscriptions.push(v1::SubscriptionClaim {
            subscription_id: id.into(),
            token: token.into(),
            epoch,
        });
        self
    }

    /// Stores the step only if a command is still claimed under this lease and the lease has
    /// not expired.
    pub fn hold_lease(&mut self, lease_token: impl Into<String>) -> &mut Self {
        self.effects.held_lease_tokens.push(lease_token.into());
        self
    }

    /// Stores the step only if a lock is still held with this token and has not expired.
    pub fn hold_lock(&mut self, lock_token: impl Into<String>) -> &mut Self {
        self.effects.held_lock_tokens.push(lock_token.into());
        self
    }

    /// Creates a subscription, with a new UUID if its id is empty; returns the id.
    ///
    /// # Errors
    ///
    /// A value that cannot be sent.
    pub fn create_subscription(&mut self, given: &EventSubscription) -> Result<String, Error> {
        let mut message = to_subscription(given)?;
        if message.id.is_empty() {
            message.id = Uuid::new_v4().to_string();
        }
        let id = message.id.clone();
        self.effects.create_subscriptions.push(message);
        Ok(id)
    }

    /// Removes a subscription, open or held; it must exist.
    pub fn terminate_subscription(&mut self, id: impl Into<String>) -> &mut Self {
        self.effects.terminate_subscription_ids.push(id.into());
        self
    }

    /// Creates an event, with a new UUID if its id is empty; returns the id.
    pub fn create_event(&mut self, given: &Event) -> String {
        let mut message = to_event(given);
        if message.id.is_empty() {
            message.id = Uuid::new_v4().to_string();
        }
        let id = message.id.clone();
        self.effects.create_events.push(message);
        id
    }

    /// Marks an event as processed; it must exist.
    pub fn mark_event_processed(&mut self, id: impl Into<String>) -> &mut Self {
        self.effects.processed_event_ids.push(id.into());
        self
    }

    /// Adds an error to the log.
    pub fn log_error(&mut self, error: &ExecutionError) -> &mut Self {
        self.effects.errors.push(to_execution_error(error));
        self
    }

    /// Schedules a command; one with the same name and data is rescheduled.
    pub fn schedule_command(&mut self, command: &ScheduledCommand) -> &mut Self {
        self.effects.schedule_commands.push(to_command(command));
        self
    }

    /// Removes a claimed command that this step has handled, by its lease token. The step
    /// is stored only if the command is still claimed under that lease. If the command has
    /// been scheduled again in the meantime, also by this step, it is kept with its new time.
    pub fn complete_command(&mut self, lease_token: impl Into<String>) -> &mut Self {
        self.effects.complete_lease_tokens.push(lease_token.into());
        self
    }

    /// Enqueues an item, as by `Enqueue`; an empty id stands for the workflow's. One whose
    /// receipt is also acknowledged here comes again at its visible time.
    pub fn enqueue(&mut self, item: v1::QueueItem) -> &mut Self {
        self.effects.enqueue.push(item);
        self
    }

    /// Acknowledges an item of a queue, by its receipt. The step is stored only if the item is
    /// still held under it.
    pub fn acknowledge(&mut self, receipt: impl Into<String>) -> &mut Self {
        self.effects.acknowledge.push(v1::Acknowledgement {
            receipt: receipt.into(),
            confirmed: false,
        });
        self
    }

    /// Publishes a lifecycle event.
    pub fn publish(&mut self, event: v1::LifecycleEvent) -> &mut Self {
        self.effects.publish.push(event);
        self
    }
}
