//! Event subscriptions.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use wfe_core::models::EventSubscription;
use wfe_core::traits::SubscriptionRepository;

use super::{all_pages, id_or_new, GrpcPersistenceProvider, PAGE_SIZE};
use crate::convert::{from_subscription, to_subscription, to_time};
use crate::v1;

#[async_trait]
impl SubscriptionRepository for GrpcPersistenceProvider {
    /// Creates a subscription; returns its id, a new UUID if it was empty.
    ///
    /// # Errors
    ///
    /// `Persistence` with `SUBSCRIPTION_ALREADY_EXISTS`, `INVALID_FIELD`, …
    async fn create_event_subscription(
        &self,
        subscription: &EventSubscription,
    ) -> wfe_core::Result<String> {
        let mut message = to_subscription(subscription)?;
        message.id = id_or_new(&subscription.id);
        let request = v1::CreateEventSubscriptionRequest {
            subscription: Some(message),
        };
        Ok(self.call(&request).await?.id)
    }

    /// Returns all open subscriptions to this event name and key that take effect at this
    /// time or earlier, oldest first.
    async fn get_subscriptions(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<EventSubscription>> {
        let messages = all_pages(|page_token| async move {
            let request = v1::GetSubscriptionsRequest {
                event_name: event_name.into(),
                event_key: event_key.into(),
                as_of: Some(to_time(as_of)),
                page_size: PAGE_SIZE,
                page_token,
            };
            let response = self.call(&request).await?;
            Ok((response.subscriptions, response.next_page_token))
        })
        .await?;
        messages
            .into_iter()
            .map(|message| Ok(from_subscription(message)?))
            .collect()
    }

    /// Removes a subscription, open or held.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`.
    async fn terminate_subscription(&self, subscription_id: &str) -> wfe_core::Result<()> {
        let request = v1::TerminateSubscriptionRequest {
            id: subscription_id.into(),
            ..Default::default()
        };
        self.call(&request)
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(())
    }

    /// Returns a subscription, open or held.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`.
    async fn get_subscription(&self, subscription_id: &str) -> wfe_core::Result<EventSubscription> {
        let request = v1::GetSubscriptionRequest {
            id: subscription_id.into(),
        };
        let response = self
            .call(&request)
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(from_subscription(
            response.subscription.unwrap_or_default(),
        )?)
    }

    /// Returns the oldest open subscription to this event name and key, if there is one.
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
        let response = self.call(&request).await?;
        Ok(response.subscription.map(from_subscription).transpose()?)
    }

    /// Claims a subscription until `expiry`, by the database's clock (compare-and-set).
    /// Returns true if it was open, or already held with the same token and worker.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`; `Persistence` with `INVALID_FIELD` if the expiry has passed.
    async fn set_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
        worker_id: &str,
        expiry: DateTime<Utc>,
    ) -> wfe_core::Result<bool> {
        let request = v1::SetSubscriptionTokenRequest {
            id: subscription_id.into(),
            token: token.into(),
            worker_id: worker_id.into(),
            expiry: Some(to_time(expiry)),
            ..Default::default()
        };
        let response = self
            .call(&request)
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(response.acquired)
    }

    /// Releases a subscription.
    ///
    /// # Errors
    ///
    /// `SubscriptionNotFound`; `Persistence` with `TOKEN_MISMATCH` if it is not held with
    /// this token.
    async fn clear_subscription_token(
        &self,
        subscription_id: &str,
        token: &str,
    ) -> wfe_core::Result<()> {
        let request = v1::ClearSubscriptionTokenRequest {
            id: subscription_id.into(),
            token: token.into(),
            ..Default::default()
        };
        self.call(&request)
            .await
            .map_err(|error| error.about(subscription_id))?;
        Ok(())
    }
}
