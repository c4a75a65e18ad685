//! Writes of workflows: as a patch of the cached state where possible, else as the whole
//! state.

use std::sync::Arc;

use tonic::Code;
use uuid::Uuid;
use wfe_core::models::WorkflowInstance;

use super::GrpcPersistenceProvider;
use crate::convert::to_workflow;
use crate::error::{Error, Result};
use crate::patch::Snapshot;
use crate::step::{Committed, Step};
use crate::v1;
use crate::v1::commit_workflow_request::State;
use crate::v1::ErrorReason;

/// A write without any effects besides the state.
pub(crate) fn new_effects() -> v1::CommitWorkflowRequest {
    v1::CommitWorkflowRequest {
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

/// What came of a patch.
enum Tried {
    Done(Result<Committed>),
    /// All is to be sent; with the snapshot of it, if it has been made.
    SendAll(Option<Box<Snapshot>>),
}

impl GrpcPersistenceProvider {
    /// Commits one step of an engine in one transaction: the workflow's new state, sent as a
    /// patch if its stored state is cached, and everything else in the [`Step`]. The step is
    /// stored once, however often the call is retried.
    ///
    /// # Errors
    ///
    /// Nothing is stored with `WORKFLOW_NOT_FOUND`, `SUBSCRIPTION_NOT_FOUND`,
    /// `EVENT_NOT_FOUND`; `REVISION_MISMATCH`; `TOKEN_MISMATCH`, `LEASE_LOST`: a claim is no
    /// longer held; `NAME_TAKEN`, `SUBSCRIPTION_ALREADY_EXISTS`, `EVENT_ALREADY_EXISTS`;
    /// `INVALID_FIELD`.
    pub async fn commit(&self, step: Step) -> Result<Committed, Error> {
        let Step { workflow, effects } = step;
        let workflow = &workflow;
        let expected = effects.expected_revision;
        let base = self.base(&workflow.id, expected);
        let new = match self.try_patch(workflow, base.as_deref(), &effects).await {
            Tried::Done(outcome) => return outcome,
            Tried::SendAll(new) => new.map(|new| *new),
        };
        let request = v1::CommitWorkflowRequest {
            state: Some(State::Instance(to_workflow(workflow)?)),
            expected_revision: expected.or(self.strict_revision(base.as_deref())),
            // Not the request that was refused: another idempotency key.
            request_id: Uuid::new_v4().to_string(),
            ..effects
        };
        self.commit_once(workflow, new, &request).await
    }

    /// Persists a workflow, with those of a step's effects that both persists have, and events;
    /// returns its revision. (Not always as a commit: older servers have no `CommitWorkflow`.)
    pub(crate) async fn save(
        &self,
        workflow: &WorkflowInstance,
        effects: v1::CommitWorkflowRequest,
    ) -> Result<i64> {
        let expected = effects.expected_revision;
        let base = self.base(&workflow.id, expected);
        let new = match self.try_patch(workflow, base.as_deref(), &effects).await {
            Tried::Done(outcome) => return outcome.map(|committed| committed.revision),
            Tried::SendAll(new) => new.map(|new| *new),
        };
        let expected_revision = expected.or(self.strict_revision(base.as_deref()));
        let instance = to_workflow(workflow)?;
        // Not the request that was refused: another idempotency key.
        let request_id = Uuid::new_v4().to_string();
        if !effects.create_events.is_empty() {
            let request = v1::CommitWorkflowRequest {
                state: Some(State::Instance(instance)),
                expected_revision,
                request_id,
                ..effects
            };
            let committed = self.commit_once(workflow, new, &request).await?;
            return Ok(committed.revision);
        }
        let instance = Some(instance);
        let outcome = if effects.create_subscriptions.is_empty() {
            let request = v1::PersistWorkflowRequest {
                instance,
                expected_revision,
                request_id,
                held_lock_tokens: effects.held_lock_tokens,
                enqueue: effects.enqueue,
                acknowledge: effects.acknowledge,
                publish: effects.publish,
            };
            self.call(&request).await.map(|response| response.revision)
        } else {
            let request = v1::PersistWorkflowWithSubscriptionsRequest {
                instance,
                subscriptions: effects.create_subscriptions,
                expected_revision,
                request_id,
                held_lock_tokens: effects.held_lock_tokens,
                enqueue: effects.enqueue,
                acknowledge: effects.acknowledge,
                publish: effects.publish,
            };
            self.call(&request).await.map(|response| response.revision)
        };
        self.written(workflow, new, outcome, |revision| *revision)
    }

    /// Remembers a workflow as it is stored, unless nothing is remembered.
    pub(crate) fn remember(&self, snapshot: impl FnOnce() -> Snapshot) {
        if self.cache.is_enabled() {
            self.cache.put(snapshot());
        }
    }

    /// What a workflow is known to be, if that is what the write expects.
    fn base(&self, id: &str, expected_revision: Option<i64>) -> Option<Arc<Snapshot>> {
        self.cache.get(id).filter(|snapshot| {
            expected_revision.is_none_or(|revision| revision == snapshot.revision)
        })
    }

    /// Commits the workflow as a patch of the stored state, unless there is no such patch, or it is
    /// refused in favour of the full state.
    async fn try_patch(
        &self,
        workflow: &WorkflowInstance,
        base: Option<&Snapshot>,
        effects: &v1::CommitWorkflowRequest,
    ) -> Tried {
        let Some(base) = base else {
            return Tried::SendAll(None);
        };
        let new = Snapshot::new(workflow, 0);
        let change = match base.patch(workflow, &new) {
            Ok(Some(change)) => change,
            Ok(None) => return Tried::SendAll(Some(Box::new(new))),
            Err(error) => return Tried::Done(Err(error)),
        };
        let request = v1::CommitWorkflowRequest {
            state: Some(State::Patch(change.patch.clone())),
            expected_revision: Some(base.revision),
            ..effects.clone()
        };
        match self.commit_once(workflow, Some(new), &request).await {
            Err(error) if self.falls_back(&error, effects.expected_revision.is_some()) => {
                Tried::SendAll(None)
            }
            Ok(committed) => {
                self.cache.advance(workflow, &change, committed.revision);
                Tried::Done(Ok(committed))
            }
            outcome => Tried::Done(outcome),
        }
    }

    async fn commit_once(
        &self,
        workflow: &WorkflowInstance,
        new: Option<Snapshot>,
        request: &v1::CommitWorkflowRequest,
    ) -> Result<Committed> {
        let outcome = self.call(request).await;
        let response = self.written(workflow, new, outcome, |response| response.revision)?;
        Ok(Committed {
            revision: response.revision,
            subscription_ids: response.subscription_ids,
            event_ids: response.event_ids,
        })
    }

    /// Updates the cache after a write, for which the response has the new revision. `new`: the
    /// snapshot of the workflow, if it has been made.
    fn written<T>(
        &self,
        workflow: &WorkflowInstance,
        new: Option<Snapshot>,
        outcome: Result<T>,
        revision: fn(&T) -> i64,
    ) -> Result<T> {
        match &outcome {
            Ok(response) => self.remember(|| {
                let mut new = new.unwrap_or_else(|| Snapshot::new(workflow, 0));
                new.revision = revision(response);
                new
            }),
            // Without the revision, the same write would succeed when it is made again.
            Err(error) if self.strict && error.reason() == Some(ErrorReason::RevisionMismatch) => {}
            Err(_) => self.cache.forget(&workflow.id),
        }
        outcome.map_err(|error| error.about(&workflow.id))
    }

    /// Whether the full state is to be sent after a patch was refused.
    fn falls_back(&self, error: &Error, revision_given: bool) -> bool {
        if error.code() == Code::Unimplemented {
            self.cache.disable();
            return true;
        }
        let raced = matches!(
            error.reason(),
            Some(ErrorReason::RevisionMismatch | ErrorReason::PointerNotFound)
        );
        raced && !self.strict && !revision_given
    }

    /// The revision that a strict provider requires of the workflow it overwrites.
    fn strict_revision(&self, base: Option<&Snapshot>) -> Option<i64> {
        base.filter(|_| self.strict)
            .map(|snapshot| snapshot.revision)
    }
}
