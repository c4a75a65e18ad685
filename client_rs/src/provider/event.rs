//! Events.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use wfe_core::models::Event;
use wfe_core::traits::EventRepository;

use super::{all_pages, id_or_new, GrpcPersistenceProvider, PAGE_SIZE};
use crate::convert::{from_event, to_event, to_time};
use crate::error::Result;
use crate::v1;

impl GrpcPersistenceProvider {
    /// Creates an event with a new UUID if its id is empty, and enqueues items in the same
    /// transaction, where an empty id stands for the event's; returns its id.
    pub(crate) async fn create_event_and_enqueue(
        &self,
        event: &Event,
        enqueue: Vec<v1::QueueItem>,
    ) -> Result<String> {
        let mut message = to_event(event);
        message.id = id_or_new(&event.id);
        let request = v1::CreateEventRequest {
            event: Some(message),
            enqueue,
        };
        Ok(self.call(&request).await?.id)
    }
}

#[async_trait]
impl EventRepository for GrpcPersistenceProvider {
    /// Creates an event; returns its id, a new UUID if it was empty.
    ///
    /// # Errors
    ///
    /// `Persistence` with `EVENT_ALREADY_EXISTS`, `INVALID_FIELD`, …
    async fn create_event(&self, event: &Event) -> wfe_core::Result<String> {
        Ok(self.create_event_and_enqueue(event, Vec::new()).await?)
    }

    /// Returns an event.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn get_event(&self, id: &str) -> wfe_core::Result<Event> {
        let response = self
            .call(&v1::GetEventRequest { id: id.into() })
            .await
            .map_err(|error| error.about(id))?;
        Ok(from_event(response.event.unwrap_or_default())?)
    }

    /// Returns the ids of all unprocessed events up to this time, oldest first.
    async fn get_runnable_events(&self, as_at: DateTime<Utc>) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let request = v1::GetRunnableEventsRequest {
                as_at: Some(to_time(as_at)),
                page_size: PAGE_SIZE,
                page_token,
                ..Default::default()
            };
            let response = self.call(&request).await?;
            Ok((response.event_ids, response.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// Returns the ids of all events with this name and key up to this time, processed or
    /// not, oldest first.
    async fn get_events(
        &self,
        event_name: &str,
        event_key: &str,
        as_of: DateTime<Utc>,
    ) -> wfe_core::Result<Vec<String>> {
        let ids = all_pages(|page_token| async move {
            let request = v1::GetEventsRequest {
                event_name: event_name.into(),
                event_key: event_key.into(),
                as_of: Some(to_time(as_of)),
                page_size: PAGE_SIZE,
                page_token,
                ..Default::default()
            };
            let response = self.call(&request).await?;
            Ok((response.event_ids, response.next_page_token))
        })
        .await?;
        Ok(ids)
    }

    /// Marks an event as processed.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn mark_event_processed(&self, id: &str) -> wfe_core::Result<()> {
        self.call(&v1::MarkEventProcessedRequest { id: id.into() })
            .await
            .map_err(|error| error.about(id))?;
        Ok(())
    }

    /// Marks an event as unprocessed, so that it is runnable again.
    ///
    /// # Errors
    ///
    /// `EventNotFound`.
    async fn mark_event_unprocessed(&self, id: &str) -> wfe_core::Result<()> {
        self.call(&v1::MarkEventUnprocessedRequest { id: id.into() })
            .await
            .map_err(|error| error.about(id))?;
        Ok(())
    }
}
