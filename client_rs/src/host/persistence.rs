//! The persistence of a host: as the provider's, and in the same transactions the queue.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, QueueType, ScheduledCommand, WorkflowInstance,
};
use wfe_core::traits::{
    EventRepository, PersistenceProvider, ScheduledCommandRepository, SubscriptionRepository,
    WorkflowRepository,
};

use super::due::{due, Due};
use super::handling::{this_task, Outcome};
use super::place::{on_store, Place};
use super::{GrpcHost, Inner};
use crate::convert::{to_event, to_time};
use crate::error::Result;
use crate::provider::{id_or_new, new_effects, to_new_subscriptions};
use crate::v1::{self, ErrorReason};

impl Inner {
    /// The item for the next run of a workflow.
    fn next_run(&self, id: &str, due: Due) -> Option<v1::QueueItem> {
        let mut item = self.item(QueueType::Workflow, id);
        item.visible_time = match due {
            Due::Now => None,
            Due::At(time) => Some(to_time(self.by_the_database(time))),
            Due::Never => return None,
        };
        Some(item)
    }

    /// Withholds a workflow that a step starts until the step's result is stored.
    async fn withhold_child(&self, child: &mut v1::QueueItem) -> Result<()> {
        let task = this_task();
        let placed = |key| self.place.children_key(key, &child.id);
        let Some((key, is_free)) = self.handling().start_child(task, &child.id, placed) else {
            return Ok(());
        };
        if is_free {
            // If an earlier holder of the parent still has it, it ends soon.
            self.acquire_on_server(task, &key).await?;
        }
        child.blocked_by.push(key);
        Ok(())
    }

    fn new_subscriptions(
        &self,
        workflow_id: &str,
        subscriptions: &[EventSubscription],
    ) -> Result<Vec<v1::EventSubscription>> {
        match &self.place {
            Place::Namespace(_) => to_new_subscriptions(subscriptions),
            Place::Set { set, .. } => set.new_subscriptions(workflow_id, subscriptions),
        }
    }

    /// A time of this machine's clock, by the database's.
    fn by_the_database(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        time.checked_add_signed(self.handling().clock_offset())
            .unwrap_or(time)
    }

    async fn persist(
        self: &Arc<Self>,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> Result<()> {
        let task = this_task();
        let mut persist = self.handling().persist(task, &instance.id);
        let is_step = persist.receipt.is_some();
        let base = self.place.any().cache.get(&instance.id);
        let base = base.filter(|base| Some(base.revision) == persist.expected_revision);
        let due = due(instance, Utc::now(), |pointer| {
            let base = base.as_ref().filter(|_| is_step);
            base.is_some_and(|base| base.has(pointer))
        });
        if due == Due::Now
            && subscriptions.is_empty()
            && self
                .handling()
                .goes_on(task, instance, &persist, &self.settings)
        {
            // Another host gets the item when the lease expires; nothing else is to be written.
            persist.goes_on = true;
            persist.receipt = None;
        }
        let enqueue = match persist.is_early || persist.goes_on {
            true => None,
            false => self.next_run(&instance.id, due),
        };
        let is_enqueued = enqueue.is_some() || is_step;
        // Those in other members go when the lock is released that withholds them.
        let own = self.place.of_workflow(&instance.id);
        let children = persist.children.iter();
        let children = children.filter(|id| self.place.of_workflow(id) == own);
        let children = children.map(|id| self.item(QueueType::Workflow, id));
        let completion = persist.completion.iter();
        let completion = completion.map(|event| self.item(QueueType::Event, &event.id));
        // While a stream is being opened, they would be committed before it is.
        let publish = match self.watcher.is_opening() {
            true => Vec::new(),
            false => self.outbox.take_of(&instance.id),
        };
        let acknowledge = persist.receipt.iter().map(|receipt| v1::Acknowledgement {
            receipt: self.place.untag(receipt).1,
            confirmed: false,
        });
        let effects = v1::CommitWorkflowRequest {
            create_events: persist.completion.iter().cloned().collect(),
            create_subscriptions: self.new_subscriptions(&instance.id, subscriptions)?,
            expected_revision: persist.expected_revision,
            held_lock_tokens: persist
                .held_lock_tokens
                .iter()
                .map(|token| self.place.untag(token).1)
                .collect(),
            enqueue: enqueue
                .into_iter()
                .chain(children)
                .chain(completion)
                .collect(),
            acknowledge: acknowledge.collect(),
            publish: publish.clone(),
            // To handle the event that says that a workflow is complete takes four more calls. (Who
            // awaits it may be in another member.)
            skip_unawaited_events: !self.place.is_set(),
            ..new_effects()
        };
        if is_step && !persist.goes_on {
            self.take_ahead(task);
        }
        let outcome = self.place.save(instance, effects).await;
        if outcome.is_err() {
            self.outbox.put_back(publish);
        }
        let what = match &outcome {
            Ok(revision) => Outcome::Stored(*revision),
            Err(error) => match error.reason() {
                Some(ErrorReason::RevisionMismatch) => Outcome::Raced,
                Some(ErrorReason::LeaseLost) => Outcome::LeaseLost,
                _ => Outcome::Failed,
            },
        };
        let mut handling = self.handling();
        handling.persisted(task, instance, &persist, what);
        if !persist.children.is_empty() && outcome.is_ok() {
            self.release_soon(handling.let_children_go(task));
        }
        if outcome.is_ok() && is_enqueued {
            handling.enqueued(task, QueueType::Workflow, &instance.id);
        }
        outcome.map(|_| ())
    }
}

#[async_trait]
impl WorkflowRepository for GrpcHost {
    /// As [`GrpcPersistenceProvider`](crate::GrpcPersistenceProvider) does; a workflow that can
    /// be run is enqueued in the same transaction.
    async fn create_new_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<String> {
        let inner = &self.0;
        let mut instance = instance.clone();
        instance.id = id_or_new(&instance.id);
        let due = due(&instance, Utc::now(), |_| false);
        let mut item = inner.next_run(&instance.id, due);
        if let Some(item) = &mut item {
            inner.withhold_child(item).await?;
        }
        let is_enqueued = item.is_some();
        let item = item.into_iter().collect();
        let id = inner.place.create(&instance, item).await?;
        if is_enqueued {
            let mut handling = inner.handling();
            handling.enqueued(this_task(), QueueType::Workflow, &id);
        }
        Ok(id)
    }

    /// Replaces the stored state. In the same transaction, a workflow that can be run is enqueued
    /// for its next time, now or when the first of its pointers wakes.
    ///
    /// If the caller handles the workflow's item, or holds the lock on it, that is the result of a
    /// step: it is refused if the item's lease or the lock is lost (`LEASE_LOST`), or if the
    /// workflow is no longer at the revision that was loaded (`REVISION_MISMATCH`); the item is
    /// acknowledged with it. Otherwise the last writer wins.
    async fn persist_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<()> {
        Ok(self.0.persist(instance, &[]).await?)
    }

    /// As `persist_workflow`, and creates the subscriptions, atomically.
    async fn persist_workflow_with_subscriptions(
        &self,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> wfe_core::Result<()> {
        Ok(self.0.persist(instance, subscriptions).await?)
    }

    async fn get_runnable_instances(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        on_store!(&self.0.place, store => store.get_runnable_instances(as_at).await)
    }

    /// Returns a workflow. To the task that handles its item, it returns what `dequeue_work` has
    /// brought with the item, as often as the engine loads it before a step.
    async fn get_workflow_instance(&self, id: &str) -> wfe_core::Result<WorkflowInstance> {
        let task = this_task();
        let brought = self.0.handling().brought(task, id);
        if let Some(workflow) = brought {
            return Ok(workflow);
        }
        let (workflow, revision) = self.0.place.load(id).await?;
        self.0.handling().loaded(task, &workflow, revision);
        Ok(workflow)
    }

    async fn get_workflow_instance_by_name(
        &self,
        name: &str,
    ) -> wfe_core::Result<WorkflowInstance> {
        on_store!(&self.0.place, store => store.get_workflow_instance_by_name(name).await)
    }

    async fn get_workflow_instances(
        &self,
        ids: &[String],
    ) -> wfe_core::Result<Vec<WorkflowInstance>> {
        on_store!(&self.0.place, store => store.get_workflow_instances(ids).await)
    }

    async fn next_definition_sequence(&self, definition_id: &str) -> wfe_core::Result<u64> {
        on_store!(&self.0.place, store => store.next_definition_sequence(definition_id).await)
    }
}

#[async_trait]
impl EventRepository for GrpcHost {
    /// Creates an event, and enqueues it in the same transaction. The event by which the engine
    /// says that a workflow is complete is created with the write of that state, which follows.
    async fn create_event(&self, event: &Event) -> wfe_core::Result<String> {
        let inner = &self.0;
        let mut event = event.clone();
        event.id = id_or_new(&event.id);
        let item = (!event.is_processed).then(|| inner.item(QueueType::Event, &event.id));
        let is_enqueued = item.is_some();
        let item = item.into_iter().collect();
        let task = this_task();
        if inner.handling().keep_completion(task, &to_event(&event)) {
            inner.handling().enqueued(task, QueueType::Event, &event.id);
            return Ok(event.id);
        }
        let id = inner.place.create_event(&event, item).await?;
        if is_enqueued {
            let mut handling = inner.handling();
            handling.enqueued(task, QueueType::Event, &id);
        }
        Ok(id)
    }

    async fn get_event(&self, id: &str) -> wfe_core::Result<Event> {
        on_store!(&self.0.place, store => store.get_event(id).await)
    }

    async fn get_runnable_events(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        on_store!(&self.0.place, store => store.get_runnable_events(as_at).await)
    }

    async fn get_events(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<String>> {
        on_store!(&self.0.place, store => store.get_events(event_name, event_key, as_of).await)
    }

    async fn mark_event_processed(&self, id: &str) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.mark_event_processed(id).await)
    }

    async fn mark_event_unprocessed(&self, id: &str) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.mark_event_unprocessed(id).await)
    }
}

#[async_trait]
impl SubscriptionRepository for GrpcHost {
    async fn create_event_subscription(
        &self,
        subscription: &EventSubscription,
    ) -> wfe_core::Result<String> {
        on_store!(&self.0.place, store => store.create_event_subscription(subscription).await)
    }

    async fn get_subscriptions(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<EventSubscription>> {
        on_store!(&self.0.place, store => {
            store.get_subscriptions(event_name, event_key, as_of).await
        })
    }

    async fn terminate_subscription(&self, id: &str) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.terminate_subscription(id).await)
    }

    async fn get_subscription(&self, id: &str) -> wfe_core::Result<EventSubscription> {
        on_store!(&self.0.place, store => store.get_subscription(id).await)
    }

    async fn get_first_open_subscription(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Option<EventSubscription>> {
        on_store!(&self.0.place, store => {
            store.get_first_open_subscription(event_name, event_key, as_of).await
        })
    }

    async fn set_subscription_token(
        &self,
        id: &str,
        token: &str,
        worker_id: &str,
        expiry: DateTime<Utc>,
    ) -> wfe_core::Result<bool> {
        on_store!(&self.0.place, store => {
            store.set_subscription_token(id, token, worker_id, expiry).await
        })
    }

    async fn clear_subscription_token(&self, id: &str, token: &str) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.clear_subscription_token(id, token).await)
    }
}

#[async_trait]
impl ScheduledCommandRepository for GrpcHost {
    fn supports_scheduled_commands(&self) -> bool {
        on_store!(&self.0.place, store => store.supports_scheduled_commands())
    }

    async fn schedule_command(&self, command: &ScheduledCommand) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.schedule_command(command).await)
    }

    async fn process_commands(
        &self,
        as_of: DateTime<Utc>,
        handler: &(dyn Fn(ScheduledCommand) -> Pin<Box<dyn Future<Output = wfe_core::Result<()>> + Send>>
              + Send
              + Sync),
    ) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.process_commands(as_of, handler).await)
    }
}

#[async_trait]
impl PersistenceProvider for GrpcHost {
    async fn persist_errors(&self, errors: &[ExecutionError]) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.persist_errors(errors).await)
    }

    async fn ensure_store_exists(&self) -> wfe_core::Result<()> {
        on_store!(&self.0.place, store => store.ensure_store_exists().await)
    }
}
