//! Workflows.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use prost::Message;
use wfe_core::models::{EventSubscription, WorkflowInstance};
use wfe_core::traits::WorkflowRepository;

use super::write::new_effects;
use super::{all_pages, id_or_new, GrpcPersistenceProvider, PAGE_SIZE};
use crate::cache::LONG;
use crate::convert::{from_workflow, to_subscription, to_time, to_workflow};
use crate::error::{Error, Result};
use crate::patch::Snapshot;
use crate::v1;

/// The maximum number of ids in one `GetWorkflowInstances`.
const MOST_IDS: usize = 1000;

impl GrpcPersistenceProvider {
    /// Creates a workflow with a new UUID if its id is empty, and enqueues items in the same
    /// transaction, where an empty id stands for the workflow's; returns its id.
    pub(crate) async fn create(
        &self,
        instance: &WorkflowInstance,
        enqueue: Vec<v1::QueueItem>,
    ) -> Result<String> {
        self.create_under(instance, enqueue, Vec::new()).await
    }

    /// The same, only if each of these locks is still held.
    pub(crate) async fn create_under(
        &self,
        instance: &WorkflowInstance,
        enqueue: Vec<v1::QueueItem>,
        held_lock_tokens: Vec<String>,
    ) -> Result<String> {
        let mut message = to_workflow(instance)?;
        message.id = id_or_new(&instance.id);
        let request = v1::CreateNewWorkflowRequest {
            instance: Some(message),
            enqueue,
            held_lock_tokens,
        };
        let response = self.call(&request).await?;
        self.remember(|| {
            let mut snapshot = Snapshot::new(instance, response.revision);
            snapshot.rename(&response.id, &response.name);
            snapshot
        });
        Ok(response.id)
    }

    /// Loads a workflow; returns it with its revision.
    pub(crate) async fn load(&self, id: &str) -> Result<(WorkflowInstance, i64)> {
        if let Some(unchanged) = self.load_header(id).await? {
            return Ok(unchanged);
        }
        let message = self.get(id, v1::WorkflowView::Full).await?;
        let revision = message.revision;
        Ok((self.loaded(message)?, revision))
    }

    async fn get(&self, id: &str, view: v1::WorkflowView) -> Result<v1::WorkflowInstance> {
        let request = v1::GetWorkflowInstanceRequest {
            id: id.into(),
            view: view.into(),
        };
        let response = self.call(&request).await.map_err(|error| error.about(id))?;
        Ok(response.instance.unwrap_or_default())
    }

    /// Loads only the header of a workflow whose pointers are kept; returns it with these if it is
    /// at the same revision. Every writer makes a new one, also a host that accesses the database
    /// directly.
    async fn load_header(&self, id: &str) -> Result<Option<(WorkflowInstance, i64)>> {
        let Some((revision, pointers)) = self.cache.kept(id) else {
            return Ok(None);
        };
        let message = self.get(id, v1::WorkflowView::Header).await?;
        if message.revision != revision {
            return Ok(None);
        }
        let mut instance = from_workflow(message)?;
        // Of a store that was restored to an earlier state, it may be another revision of the same
        // number.
        let known = self.cache.get(id);
        if !known.is_some_and(|known| known.revision == revision && known.has_header(&instance)) {
            return Ok(None);
        }
        instance.execution_pointers = Vec::clone(&pointers);
        Ok(Some((instance, revision)))
    }

    /// Converts a workflow that was received, and caches it.
    pub(crate) fn loaded(&self, message: v1::WorkflowInstance) -> Result<WorkflowInstance> {
        if message.view() == v1::WorkflowView::Header {
            return Err(Error::left_out(&format!("workflow {:?}", message.id)));
        }
        let revision = message.revision;
        let bytes = match message.execution_pointers.len() {
            LONG.. => message.encoded_len(),
            _ => 0,
        };
        let instance = from_workflow(message)?;
        // As it would be sent, so that an unchanged workflow makes an empty patch.
        self.remember(|| Snapshot::new(&instance, revision));
        self.cache.keep(&instance, revision, bytes);
        Ok(instance)
    }
}

/// Subscriptions to create, each with an id.
pub(crate) fn to_new_subscriptions(
    subscriptions: &[EventSubscription],
) -> Result<Vec<v1::EventSubscription>> {
    subscriptions
        .iter()
        .map(|subscription| {
            let mut message = to_subscription(subscription)?;
            message.id = id_or_new(&subscription.id);
            Ok(message)
        })
        .collect()
}

#[async_trait]
impl WorkflowRepository for GrpcPersistenceProvider {
    /// Creates a workflow; returns its id, a new UUID if it was empty.
    ///
    /// # Errors
    ///
    /// `Persistence` with `WORKFLOW_ALREADY_EXISTS`, `NAME_TAKEN`, `INVALID_FIELD`, …
    async fn create_new_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<String> {
        Ok(self.create(instance, Vec::new()).await?)
    }

    /// Replaces the stored state; the last writer wins, unless the provider is strict (see
    /// [`Builder::strict`](crate::Builder::strict)).
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`; `Persistence` with `NAME_TAKEN`, `INVALID_FIELD`, …
    async fn persist_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<()> {
        self.save(instance, new_effects()).await?;
        Ok(())
    }

    /// Replaces the stored state and creates the subscriptions, atomically.
    ///
    /// # Errors
    ///
    /// Those of `persist_workflow`; `Persistence` with `SUBSCRIPTION_ALREADY_EXISTS`.
    async fn persist_workflow_with_subscriptions(
        &self,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> wfe_core::Result<()> {
        let effects = v1::CommitWorkflowRequest {
            create_subscriptions: to_new_subscriptions(subscriptions)?,
            ..new_effects()
        };
        self.save(instance, effects).await?;
        Ok(())
    }

    /// Returns the ids of all workflows that are due at this time, soonest first.
    async fn get_runnable_instances(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let request = v1::GetRunnableInstancesRequest {
                as_at: Some(to_time(as_at)),
                page_size: PAGE_SIZE,
                page_token,
                ..Default::default()
            };
            let response = self.call(&request).await?;
            Ok((response.instance_ids, response.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// Returns a workflow, read in one snapshot.
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`.
    async fn get_workflow_instance(&self, id: &str) -> wfe_core::Result<WorkflowInstance> {
        Ok(self.load(id).await?.0)
    }

    /// Returns the workflow with this name, read in one snapshot.
    ///
    /// # Errors
    ///
    /// `WorkflowNotFound`, with the name.
    async fn get_workflow_instance_by_name(
        &self,
        name: &str,
    ) -> wfe_core::Result<WorkflowInstance> {
        let request = v1::GetWorkflowInstanceByNameRequest {
            name: name.into(),
            ..Default::default()
        };
        let response = self
            .call(&request)
            .await
            .map_err(|error| error.about(name))?;
        Ok(self.loaded(response.instance.unwrap_or_default())?)
    }

    /// Returns those of the workflows that exist, in the order of the ids, and one twice whose
    /// id is given twice. More than 1000 different ids are read by several calls.
    ///
    /// # Errors
    ///
    /// `Persistence` with `ANSWER_TOO_LARGE` if one of them does not fit in one message.
    async fn get_workflow_instances(
        &self,
        ids: &[String],
    ) -> wfe_core::Result<Vec<WorkflowInstance>> {
        let mut seen = HashSet::new();
        let unique: Vec<String> = ids.iter().filter(|id| seen.insert(*id)).cloned().collect();
        let mut found = HashMap::with_capacity(unique.len());
        for some in unique.chunks(MOST_IDS) {
            let request = v1::GetWorkflowInstancesRequest {
                ids: some.to_vec(),
                ..Default::default()
            };
            for message in self.call(&request).await? {
                found.insert(message.id.clone(), message);
            }
        }
        let found = ids.iter().filter_map(|id| found.get(id));
        Ok(found
            .map(|message| self.loaded(message.clone()))
            .collect::<Result<_>>()?)
    }

    /// Returns the next number in a definition's sequence, from 1. After a lost response a
    /// number may be skipped, but none is ever returned twice.
    async fn next_definition_sequence(&self, definition_id: &str) -> wfe_core::Result<u64> {
        let request = v1::NextDefinitionSequenceRequest {
            definition_id: definition_id.into(),
        };
        let number = self.call(&request).await?.number;
        u64::try_from(number)
            .map_err(|_| Error::bad_response(&format!("the sequence number {number}")).into())
    }
}
