//! The engine's traits on a namespace set.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance,
};
use wfe_core::traits::{
    EventRepository, PersistenceProvider, ScheduledCommandRepository, SubscriptionRepository,
    WorkflowRepository,
};
use wfe_core::WfeError;

use super::routing::member_of;
use super::writes::tagged;
use super::{keyed, merged, merged_ids, GrpcNamespaceSet};
use crate::convert::{from_subscription, to_time};
use crate::error::Result;
use crate::provider::{all_pages, id_or_new, GrpcPersistenceProvider, PAGE_SIZE};
use crate::v1;

#[async_trait]
impl WorkflowRepository for GrpcNamespaceSet {
    async fn create_new_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<String> {
        Ok(self.create(instance, Vec::new()).await?)
    }

    async fn persist_workflow(&self, instance: &WorkflowInstance) -> wfe_core::Result<()> {
        Ok(self.save(instance, &[]).await?)
    }

    async fn persist_workflow_with_subscriptions(
        &self,
        instance: &WorkflowInstance,
        subscriptions: &[EventSubscription],
    ) -> wfe_core::Result<()> {
        Ok(self.save(instance, subscriptions).await?)
    }

    async fn get_runnable_instances(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let lists = self
            .each(move |member| async move { Ok(runnable_instances(&member, as_at).await?) })
            .await?;
        Ok(merged_ids(lists))
    }

    async fn get_workflow_instance(&self, id: &str) -> wfe_core::Result<WorkflowInstance> {
        Ok(self.load(id).await?.0)
    }

    async fn get_workflow_instance_by_name(
        &self,
        name: &str,
    ) -> wfe_core::Result<WorkflowInstance> {
        if let Some(id) = self.name_holder(name).await? {
            match self.get_workflow_instance(&id).await {
                Ok(instance) if instance.name == name => return Ok(instance),
                Ok(_) | Err(WfeError::WorkflowNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.member_of(name)
            .get_workflow_instance_by_name(name)
            .await
    }

    async fn get_workflow_instances(
        &self,
        ids: &[String],
    ) -> wfe_core::Result<Vec<WorkflowInstance>> {
        let mut of_member: HashMap<usize, Vec<String>> = HashMap::new();
        let mut seen = HashSet::new();
        for id in ids.iter().filter(|id| seen.insert(*id)) {
            let index = member_of(id, self.members.len());
            of_member.entry(index).or_default().push(id.clone());
        }
        let mut calls = tokio::task::JoinSet::new();
        for (index, ids) in of_member {
            let member = self.members[index].clone();
            calls.spawn(async move { member.get_workflow_instances(&ids).await });
        }
        let mut found = HashMap::with_capacity(seen.len());
        while let Some(joined) = calls.join_next().await {
            for instance in joined.map_err(|_| super::gave_up())?? {
                found.insert(instance.id.clone(), instance);
            }
        }
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    async fn next_definition_sequence(&self, definition_id: &str) -> wfe_core::Result<u64> {
        self.member_of(definition_id)
            .next_definition_sequence(definition_id)
            .await
    }
}

async fn runnable_instances(
    member: &GrpcPersistenceProvider,
    as_at: DateTime<Utc>,
) -> Result<Vec<(i64, String)>> {
    all_pages(|page_token| async move {
        let request = v1::GetRunnableInstancesRequest {
            as_at: Some(to_time(as_at)),
            page_size: PAGE_SIZE,
            page_token,
            with_order_keys: true,
            ..Default::default()
        };
        let page = member.call(&request).await?;
        Ok((
            keyed(page.instance_ids, page.order_keys)?,
            page.next_page_token,
        ))
    })
    .await
}

#[async_trait]
impl EventRepository for GrpcNamespaceSet {
    async fn create_event(&self, event: &Event) -> wfe_core::Result<String> {
        let mut given = event.clone();
        given.id = id_or_new(&given.id);
        self.members[self.home(&given.id)]
            .create_event(&given)
            .await
    }

    async fn get_event(&self, id: &str) -> wfe_core::Result<Event> {
        let wanted = id.to_string();
        self.find(id, move |member| {
            let id = wanted.clone();
            async move { member.get_event(&id).await }
        })
        .await
    }

    async fn get_runnable_events(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let lists = self
            .each(move |member| async move { Ok(runnable_events(&member, as_at).await?) })
            .await?;
        Ok(merged_ids(lists))
    }

    async fn get_events(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<String>> {
        let request = v1::GetEventsRequest {
            event_name: event_name.into(),
            event_key: event_key.into(),
            as_of: Some(to_time(as_of)),
            page_size: PAGE_SIZE,
            with_order_keys: true,
            ..Default::default()
        };
        let lists = self
            .each(move |member| {
                let request = request.clone();
                async move { Ok(events(&member, &request).await?) }
            })
            .await?;
        Ok(merged_ids(lists))
    }

    async fn mark_event_processed(&self, id: &str) -> wfe_core::Result<()> {
        let wanted = id.to_string();
        self.find(id, move |member| {
            let id = wanted.clone();
            async move { member.mark_event_processed(&id).await }
        })
        .await
    }

    async fn mark_event_unprocessed(&self, id: &str) -> wfe_core::Result<()> {
        let wanted = id.to_string();
        self.find(id, move |member| {
            let id = wanted.clone();
            async move { member.mark_event_unprocessed(&id).await }
        })
        .await
    }
}

async fn runnable_events(
    member: &GrpcPersistenceProvider,
    as_at: DateTime<Utc>,
) -> Result<Vec<(i64, String)>> {
    all_pages(|page_token| async move {
        let request = v1::GetRunnableEventsRequest {
            as_at: Some(to_time(as_at)),
            page_size: PAGE_SIZE,
            page_token,
            with_order_keys: true,
        };
        let page = member.call(&request).await?;
        Ok((
            keyed(page.event_ids, page.order_keys)?,
            page.next_page_token,
        ))
    })
    .await
}

async fn events(
    member: &GrpcPersistenceProvider,
    request: &v1::GetEventsRequest,
) -> Result<Vec<(i64, String)>> {
    all_pages(|page_token| async move {
        let request = v1::GetEventsRequest {
            page_token,
            ..request.clone()
        };
        let page = member.call(&request).await?;
        Ok((
            keyed(page.event_ids, page.order_keys)?,
            page.next_page_token,
        ))
    })
    .await
}

#[async_trait]
impl SubscriptionRepository for GrpcNamespaceSet {
    async fn create_event_subscription(
        &self,
        subscription: &EventSubscription,
    ) -> wfe_core::Result<String> {
        let index = member_of(&subscription.workflow_id, self.members.len());
        let given = tagged(std::slice::from_ref(subscription), index);
        self.members[index]
            .create_event_subscription(&given[0])
            .await
    }

    async fn get_subscriptions(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<EventSubscription>> {
        let (name, key) = (event_name.to_string(), event_key.to_string());
        let lists = self
            .each(move |member| {
                let (name, key) = (name.clone(), key.clone());
                async move { member.get_subscriptions(&name, &key, as_of).await }
            })
            .await?;
        Ok(merged(lists, |found| {
            (found.subscribe_as_of, found.id.clone())
        }))
    }

    async fn terminate_subscription(&self, subscription_id: &str) -> wfe_core::Result<()> {
        let wanted = subscription_id.to_string();
        self.find(subscription_id, move |member| {
            let id = wanted.clone();
            async move { member.terminate_subscription(&id).await }
        })
        .await
    }

    async fn get_subscription(&self, subscription_id: &str) -> wfe_core::Result<EventSubscription> {
        let wanted = subscription_id.to_string();
        self.find(subscription_id, move |member| {
            let id = wanted.clone();
            async move { member.get_subscription(&id).await }
        })
        .await
    }

    async fn get_first_open_subscription(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Option<EventSubscription>> {
        let request = v1::GetFirstOpenSubscriptionRequest {
            event_name: event_name.into(),
            event_key: event_key.into(),
            as_of: Some(to_time(as_of)),
        };
        let firsts = self
            .each(move |member| {
                let request = request.clone();
                async move {
                    let found = member.call(&request).await?.subscription;
                    Ok(found.map(from_subscription).transpose()?)
                }
            })
            .await?;
        let found = merged(
            vec![firsts.into_iter().flatten().collect()],
            |found: &EventSubscription| (found.subscribe_as_of, found.id.clone()),
        );
        Ok(found.into_iter().next())
    }

    async fn set_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
        worker_id: &str,
        expiry: DateTime<Utc>,
    ) -> wfe_core::Result<bool> {
        let given = [subscription_id, token, worker_id].map(str::to_string);
        self.find(subscription_id, move |member| {
            let [id, token, worker_id] = given.clone();
            async move {
                member
                    .set_subscription_token(&id, &token, &worker_id, expiry)
                    .await
            }
        })
        .await
    }

    async fn clear_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
    ) -> wfe_core::Result<()> {
        let given = [subscription_id, token].map(str::to_string);
        self.find(subscription_id, move |member| {
            let [id, token] = given.clone();
            async move { member.clear_subscription_token(&id, &token).await }
        })
        .await
    }
}

#[async_trait]
impl ScheduledCommandRepository for GrpcNamespaceSet {
    fn supports_scheduled_commands(&self) -> bool {
        self.members[0].supports_scheduled_commands()
    }

    async fn schedule_command(&self, command: &ScheduledCommand) -> wfe_core::Result<()> {
        let member = &self.members[self.home(&command.data)];
        member.schedule_command(command).await
    }

    /// Handles what is due in one member after the other, beginning with another one each time;
    /// soonest first in each of them.
    ///
    /// # Errors
    ///
    /// The first error of a handler or of a member; the other members are worked on all the same.
    async fn process_commands(
        &self,
        as_of: DateTime<Utc>,
        handler: &(dyn Fn(ScheduledCommand) -> Pin<Box<dyn Future<Output = wfe_core::Result<()>> + Send>>
              + Send
              + Sync),
    ) -> wfe_core::Result<()> {
        let mut first_error = None;
        for member in self.turns() {
            if let Err(error) = member.process_commands(as_of, handler).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl PersistenceProvider for GrpcNamespaceSet {
    /// Appends errors to the logs of the members of their workflows; all or none in each.
    async fn persist_errors(&self, errors: &[ExecutionError]) -> wfe_core::Result<()> {
        let mut of_member: HashMap<usize, Vec<ExecutionError>> = HashMap::new();
        for error in errors {
            let index = member_of(&error.workflow_id, self.members.len());
            of_member.entry(index).or_default().push(error.clone());
        }
        for (index, some) in of_member {
            self.members[index].persist_errors(&some).await?;
        }
        Ok(())
    }

    /// Migrates all members to the server's version.
    async fn ensure_store_exists(&self) -> wfe_core::Result<()> {
        self.each(|member| async move { member.ensure_store_exists().await })
            .await?;
        Ok(())
    }
}
