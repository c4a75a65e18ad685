//! Writes of workflows: as a patch of the cached state where possible, else as the whole
//! state.

use tonic::Code;
use uuid::Uuid;

use super::GrpcPersistenceProvider;
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
        let expected = effects.expected_revision;
        let base = self
            .cache
            .get(&workflow.id)
            .filter(|snapshot| expected.is_none_or(|revision| revision == snapshot.revision));
        if let Some(outcome) = self.try_patch(&workflow, base.as_deref(), &effects).await {
            return outcome;
        }
        let request = v1::CommitWorkflowRequest {
            state: Some(State::Instance(workflow.clone())),
            expected_revision: expected.or(self.strict_revision(base.as_deref())),
            // Not the request that was refused: another idempotency key.
            request_id: Uuid::new_v4().to_string(),
            ..effects
        };
        self.commit_once(&workflow, &request).await
    }

    /// Persists a workflow, with those of a step's effects that both persists have, and events;
    /// returns its revision. (Not always as a commit: older servers have no `CommitWorkflow`.)
    pub(crate) async fn save(
        &self,
        workflow: v1::WorkflowInstance,
        effects: v1::CommitWorkflowRequest,
    ) -> Result<i64> {
        let expected = effects.expected_revision;
        let base = self
            .cache
            .get(&workflow.id)
            .filter(|snapshot| expected.is_none_or(|revision| revision == snapshot.revision));
        if let Some(outcome) = self.try_patch(&workflow, base.as_deref(), &effects).await {
            return outcome.map(|committed| committed.revision);
        }
        let expected_revision = expected.or(self.strict_revision(base.as_deref()));
        if !effects.create_events.is_empty() {
            let request = v1::CommitWorkflowRequest {
                state: Some(State::Instance(workflow.clone())),
                expected_revision,
                request_id: Uuid::new_v4().to_string(),
                ..effects
            };
            let committed = self.commit_once(&workflow, &request).await?;
            return Ok(committed.revision);
        }
        let instance = Some(workflow);
        // Not the request that was refused: another idempotency key.
        let request_id = Uuid::new_v4().to_string();
        let (instance, outcome) = if effects.create_subscriptions.is_empty() {
            let request = v1::PersistWorkflowRequest {
                instance,
                expected_revision,
                request_id,
                held_lock_tokens: effects.held_lock_tokens,
                enqueue: effects.enqueue,
                acknowledge: effects.acknowledge,
                publish: effects.publish,
            };
            let outcome = self.call(&request).await.map(|response| response.revision);
            (request.instance, outcome)
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
            let outcome = self.call(&request).await.map(|response| response.revision);
            (request.instance, outcome)
        };
        self.written(&instance.unwrap_or_default(), outcome, |revision| *revision)
    }

    /// Commits the workflow as a patch of the stored state. `None` if there is no such patch,
    /// or if it was refused in favour of the full state.
    async fn try_patch(
        &self,
        workflow: &v1::WorkflowInstance,
        base: Option<&Snapshot>,
        effects: &v1::CommitWorkflowRequest,
    ) -> Option<Result<Committed>> {
        let base = base?;
        let request = v1::CommitWorkflowRequest {
            state: Some(State::Patch(base.patch(workflow)?)),
            expected_revision: Some(base.revision),
            ..effects.clone()
        };
        match self.commit_once(workflow, &request).await {
            Err(error) if self.falls_back(&error, effects.expected_revision.is_some()) => None,
            outcome => Some(outcome),
        }
    }

    async fn commit_once(
        &self,
        workflow: &v1::WorkflowInstance,
        request: &v1::CommitWorkflowRequest,
    ) -> Result<Committed> {
        let outcome = self.call(request).await;
        let response = self.written(workflow, outcome, |response| response.revision)?;
        Ok(Committed {
            revision: response.revision,
            subscription_ids: response.subscription_ids,
            event_ids: response.event_ids,
        })
    }

    /// Updates the cache after a write, for which the response has the new revision.
    fn written<T>(
        &self,
        workflow: &v1::WorkflowInstance,
        outcome: Result<T>,
        revision: fn(&T) -> i64,
    ) -> Result<T> {
        match &outcome {
            Ok(response) => self.cache.put(workflow, revision(response)),
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
