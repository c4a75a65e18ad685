//! Locks. The lease of an item stands for the locks on its workflow: nobody else gets the item
//! meanwhile, so the locks that the engine takes before each step need no calls. Other locks, and
//! the one on a workflow for which an event may come, are the server's.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;
use wfe_core::traits::DistributedLockProvider;

use super::handling::{this_task, Acquire, Task};
use super::{GrpcHost, Inner};
use crate::error::Result;
use crate::v1;

#[async_trait]
impl DistributedLockProvider for GrpcHost {
    /// Tries to acquire a lock; false if somebody holds it, also this host. It is renewed in the
    /// background until it is released.
    async fn acquire_lock(&self, resource: &str) -> wfe_core::Result<bool> {
        let task = this_task();
        let decision = self.0.handling().acquire(task, resource);
        match decision {
            Acquire::Granted => return Ok(true),
            Acquire::Refused => return Ok(false),
            Acquire::AskServer => {}
        }
        Ok(self.0.acquire_on_server(task, resource).await?)
    }

    /// Releases a lock; no error if it is not held.
    async fn release_lock(&self, resource: &str) -> wfe_core::Result<()> {
        let token = self.0.handling().release(this_task(), resource);
        if let Some(token) = token {
            self.0.release_on_server(&token).await?;
        }
        self.0.settle_if_stopped();
        Ok(())
    }

    /// Need not be called.
    async fn start(&self) -> wfe_core::Result<()> {
        Ok(())
    }

    /// Changes nothing: locks are renewed until they are released.
    async fn stop(&self) -> wfe_core::Result<()> {
        Ok(())
    }
}

impl Inner {
    pub(super) async fn acquire_on_server(&self, task: Task, resource: &str) -> Result<bool> {
        let index = self.place.of_lock(resource);
        let member = &self.place.members()[index];
        let request = v1::AcquireLockRequest {
            resource: resource.into(),
            owner: member.claims.worker_id.clone(),
            ttl: self.lease(),
            wait: None,
            request_id: Uuid::new_v4().to_string(),
        };
        let answer = member.call(&request).await?;
        let token = answer.acquired.then_some(answer.token);
        let token = token.map(|token| self.place.tag(token, index));
        self.handling().acquired(task, resource, token);
        Ok(answer.acquired)
    }

    async fn release_on_server(&self, token: &str) -> Result<()> {
        let (index, token) = self.place.untag(token);
        let request = v1::ReleaseLockRequest { token };
        self.place.members()[index].call(&request).await?;
        Ok(())
    }

    /// Releases locks that nobody has to wait for.
    pub(super) fn release_soon(self: &Arc<Self>, tokens: Vec<String>) {
        for token in tokens {
            let inner = Arc::clone(self);
            tokio::spawn(async move {
                // If it fails, the lock expires.
                let _ = inner.release_on_server(&token).await;
            });
        }
    }
}
