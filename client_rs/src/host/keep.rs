//! Keeps leases and locks while they are needed, by renewing them in the background.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::Inner;
use crate::error::Result;
use crate::v1::{self, ErrorReason};

/// At most that many leases are renewed by one call.
const MOST: usize = 1000;

/// Renews until the last clone of the host is dropped; a host that handles nothing makes no calls.
pub(super) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let interval = inner.settings.lease / 3;
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(inner) = weak.upgrade() else {
                return;
            };
            inner.settle_if_stopped();
            // Not one after the other: a renewal that is tried again must not delay the next.
            tokio::spawn(async move { inner.renew().await });
        }
    });
}

impl Inner {
    pub(super) async fn renew(self: &Arc<Self>) {
        let leases = self.handling().leases(self.settings.longest_step);
        let receipts = self.place.by_member(&leases.receipts);
        let tokens = self.place.by_member(&leases.tokens);
        // At the same time: one member that is away must not cost the leases in others.
        let mut renewals = JoinSet::new();
        for (index, receipts) in receipts {
            let inner = Arc::clone(self);
            renewals.spawn(async move { inner.renew_items(index, receipts).await });
        }
        for (index, tokens) in tokens {
            let inner = Arc::clone(self);
            renewals.spawn(async move { inner.renew_locks(index, tokens).await });
        }
        renewals.join_all().await;
    }

    async fn renew_items(&self, index: usize, receipts: Vec<String>) {
        let member = &self.place.members()[index];
        let lost = renew(receipts, |receipts| async move {
            let request = v1::RenewItemsRequest {
                receipts,
                lease_duration: self.lease(),
            };
            let asked = Instant::now();
            member.call(&request).await?;
            let until = asked + self.settings.lease;
            let receipts = request.receipts.into_iter();
            let renewed: Vec<_> = receipts.map(|one| self.place.tag(one, index)).collect();
            self.handling().renewed(&renewed, until);
            Ok(())
        });
        for receipt in lost.await {
            let receipt = self.place.tag(receipt, index);
            self.handling().lost_item(&receipt);
        }
    }

    async fn renew_locks(&self, index: usize, tokens: Vec<String>) {
        let member = &self.place.members()[index];
        let lost = renew(tokens, |tokens| async move {
            let request = v1::RenewLocksRequest {
                tokens,
                ttl: self.lease(),
            };
            member.call(&request).await.map(|_| ())
        });
        for token in lost.await {
            let token = self.place.tag(token, index);
            self.handling().lost_lock(&token);
        }
    }
}

/// Renews leases; returns those that are lost. Others that failed are renewed the next time.
async fn renew<F>(leases: Vec<String>, call: impl Fn(Vec<String>) -> F) -> Vec<String>
where
    F: Future<Output = Result<()>>,
{
    let is_lost = |outcome: Result<()>| {
        outcome.is_err_and(|error| error.reason() == Some(ErrorReason::LeaseLost))
    };
    let mut lost = Vec::new();
    for some in leases.chunks(MOST) {
        if !is_lost(call(some.to_vec()).await) {
            continue;
        }
        // None was renewed, because at least one is lost.
        for lease in some {
            if is_lost(call(vec![lease.clone()]).await) {
                lost.push(lease.clone());
            }
        }
    }
    lost
}
