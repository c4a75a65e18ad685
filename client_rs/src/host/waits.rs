//! Waiting for an item in all members of a namespace set.
//!
//! When one member has an item, the calls in the others are broken off, and the answer of one may be
//! on its way, with an item that nobody handles until its lease is over. So the lease of a call that
//! waits is short, and is renewed for what has arrived.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use wfe_core::models::QueueType;

use super::queue::Taken;
use super::Inner;
use crate::error::Result;
use crate::v1::{self, ErrorReason};

/// The lease of an item that is taken by a call which waits in one of several members.
pub(super) const BRIEF: Duration = Duration::from_secs(5);

impl Inner {
    /// Waits for an item in all members, for as long as hosts do. Those that are away are passed
    /// over.
    pub(super) async fn wait_in_all(self: &Arc<Self>, queue: QueueType) -> Result<Option<Taken>> {
        let mut waiting = JoinSet::new();
        for index in 0..self.place.members().len() {
            let inner = Arc::clone(self);
            waiting.spawn(async move { inner.ask(index, queue, None, true).await });
        }
        let mut failure = None;
        let mut waited = false;
        while let Some(joined) = waiting.join_next().await {
            match joined {
                // The other calls end here. What one of them has brought goes back as it is dropped.
                Ok(Ok(Some(taken))) => return self.kept(taken).await,
                Ok(Ok(None)) => waited = true,
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {}
            }
        }
        match failure {
            Some(error) if !waited => Err(error),
            _ => Ok(None),
        }
    }

    /// An item that has arrived, under its full lease; None if it came too late.
    async fn kept(&self, mut taken: Taken) -> Result<Option<Taken>> {
        if self.settings.lease <= BRIEF {
            return Ok(Some(taken));
        }
        let Some(item) = &taken.item else {
            return Ok(None);
        };
        let (index, receipt) = self.place.untag(&item.receipt);
        let request = v1::RenewItemsRequest {
            receipts: vec![receipt],
            lease_duration: self.lease(),
        };
        let asked = std::time::Instant::now();
        match self.place.once(index).call(&request).await {
            Ok(renewed) => {
                taken.renewed(asked, renewed.lease_expiry);
                Ok(Some(taken))
            }
            Err(error) if error.reason() == Some(ErrorReason::LeaseLost) => {
                taken.item = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
