//! Loads and writes of workflows in a namespace set: in the member of their ids, under their names.

use uuid::Uuid;
use wfe_core::models::{EventSubscription, WorkflowInstance};

use super::names::Taking;
use super::routing::{member_of, tag};
use super::GrpcNamespaceSet;
use crate::error::Result;
use crate::provider::{id_or_new, new_effects, to_new_subscriptions};
use crate::v1;

impl GrpcNamespaceSet {
    /// The workflow to write: without its name, which then stays, if it is known to have that. So it
    /// need not be taken, nor is one written that has been taken from it meanwhile.
    fn without_known_name(&self, instance: &WorkflowInstance) -> WorkflowInstance {
        let mut given = instance.clone();
        if self.known_name(&given.id).as_ref() == Some(&given.name) {
            given.name.clear();
        }
        given
    }

    pub(super) async fn save(
        &self,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> Result<()> {
        let effects = v1::CommitWorkflowRequest {
            create_subscriptions: self.new_subscriptions(&instance.id, subscriptions)?,
            ..new_effects()
        };
        self.save_with(instance, effects).await?;
        Ok(())
    }

    /// Subscriptions to create with a workflow.
    pub(crate) fn new_subscriptions(
        &self,
        workflow_id: &str,
        subscriptions: &[EventSubscription],
    ) -> Result<Vec<v1::EventSubscription>> {
        let index = member_of(workflow_id, self.members.len());
        to_new_subscriptions(&tagged(subscriptions, index))
    }

    /// Persists a workflow with effects, all of which are in its member, under its name.
    pub(crate) async fn save_with(
        &self,
        instance: &WorkflowInstance,
        mut effects: v1::CommitWorkflowRequest,
    ) -> Result<i64> {
        let given = self.without_known_name(instance);
        let taking = self.take_name(&given.id, &given.name).await?;
        effects.held_lock_tokens.extend(tokens(taking.as_ref()));
        let outcome = self.member_of(&given.id).save(&given, effects).await;
        self.after(taking, &outcome, &given.id, &given.name).await;
        outcome
    }

    /// Creates a workflow under its name, and enqueues items with it.
    pub(crate) async fn create(
        &self,
        instance: &WorkflowInstance,
        enqueue: Vec<v1::QueueItem>,
    ) -> Result<String> {
        let mut given = instance.clone();
        given.id = id_or_new(&given.id);
        let taking = self.take_name(&given.id, &given.name).await?;
        let locks = tokens(taking.as_ref()).into_iter().collect();
        let member = self.member_of(&given.id);
        let outcome = member.create_under(&given, enqueue, locks).await;
        self.after(taking, &outcome, &given.id, &given.name).await;
        outcome
    }

    /// Loads a workflow; returns it with its revision.
    pub(crate) async fn load(&self, id: &str) -> Result<(WorkflowInstance, i64)> {
        let loaded = self.member_of(id).load(id).await?;
        self.remember_name(&loaded.0.id, &loaded.0.name);
        Ok(loaded)
    }

    /// The index of the member that has an event; of one that does not exist, that of its id.
    pub(crate) async fn member_of_event(&self, id: &str) -> Result<usize> {
        let home = self.home(id);
        let others = (0..self.members.len()).filter(|index| *index != home);
        for index in std::iter::once(home).chain(others) {
            match self.members[index]
                .call(&v1::GetEventRequest { id: id.into() })
                .await
            {
                Ok(_) => return Ok(index),
                Err(error) if error.reason() == Some(v1::ErrorReason::EventNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(home)
    }

    /// What follows a write for which a name was taken.
    async fn after<T>(&self, taking: Option<Taking>, outcome: &Result<T>, id: &str, name: &str) {
        if let Some(taking) = taking {
            self.released(taking).await;
            if outcome.is_ok() {
                self.remember_name(id, name);
            }
        }
    }
}

fn tokens(taking: Option<&Taking>) -> Option<String> {
    taking.map(|taking| taking.token.clone())
}

/// Subscriptions with ids that tell where they are, where they have none.
pub(super) fn tagged(subscriptions: &[EventSubscription], index: usize) -> Vec<EventSubscription> {
    let mut given = subscriptions.to_vec();
    for subscription in &mut given {
        if subscription.id.is_empty() {
            subscription.id = tag(&Uuid::new_v4().to_string(), index);
        }
    }
    given
}
