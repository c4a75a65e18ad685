//! Names of workflows in a namespace set, each had by one workflow at a time.
//!
//! A name that is not the workflow's id is taken in three steps: a lock in the workflow's member, on
//! the workflow and the name; the name, in its own member, under a new claim; the write of the
//! workflow, which the server refuses unless the lock is still held. Whoever finds a name whose lock
//! is free and whose workflow does not have it takes it over, if the claim is still the same.

use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::GrpcNamespaceSet;
use crate::error::{Error, Result};
use crate::positions::Reads;
use crate::v1;
use crate::v1::ErrorReason;

/// How long a host has from the lock to the write, and others wait for the name of one that died.
const TTL: Duration = Duration::from_secs(30);
/// The longest wait for the lock.
const WAIT: Duration = Duration::from_secs(30);

/// A lock in the workflow's member, while its name is taken and written.
pub(super) struct Taking {
    pub(super) token: String,
    member: usize,
}

impl GrpcNamespaceSet {
    /// Takes a name for a workflow; None if it need not be taken: there is none, or it is the id.
    /// The write that follows must hold the lock, which is to be released after it.
    pub(super) async fn take_name(&self, workflow_id: &str, name: &str) -> Result<Option<Taking>> {
        if name.is_empty() || name == workflow_id {
            return Ok(None);
        }
        let member = super::member_of(workflow_id, self.members.len());
        let request = v1::AcquireLockRequest {
            resource: name_lock(workflow_id, name),
            owner: "name".into(),
            ttl: Some(prost_duration(TTL)),
            wait: Some(prost_duration(WAIT)),
            request_id: Uuid::new_v4().to_string(),
        };
        let lock = self.members[member].call(&request).await?;
        if !lock.acquired {
            return Err(taken());
        }
        let taking = Taking {
            token: lock.token,
            member,
        };
        if let Err(error) = self.claim_name(workflow_id, name).await {
            self.released(taking).await;
            return Err(error);
        }
        Ok(Some(taking))
    }

    /// Releases the lock; if that fails, it expires.
    pub(super) async fn released(&self, taking: Taking) {
        let request = v1::ReleaseLockRequest {
            token: taking.token,
        };
        let _ = self.members[taking.member].call(&request).await;
    }

    async fn claim_name(&self, workflow_id: &str, name: &str) -> Result<()> {
        let claim_id = Uuid::new_v4().to_string();
        let mut expected_claim_id = String::new();
        loop {
            let request = v1::SetNameHolderRequest {
                name: name.into(),
                workflow_id: workflow_id.into(),
                claim_id: claim_id.clone(),
                expected_claim_id,
            };
            let holder = self.member_of(name).call(&request).await?;
            if holder.claim_id == claim_id {
                return Ok(());
            }
            // It may have been given up, or be that of an earlier attempt for the same workflow.
            let is_free = holder.workflow_id.is_empty() || holder.workflow_id == workflow_id;
            if !is_free && !self.is_abandoned(&holder, name).await? {
                return Err(taken());
            }
            expected_claim_id = holder.claim_id;
        }
    }

    /// Whether a name can be taken over: its holder neither has it nor can get it any more.
    async fn is_abandoned(&self, holder: &v1::SetNameHolderResponse, name: &str) -> Result<bool> {
        if holder.claim_id.is_empty() {
            return Ok(false);
        }
        // A replica might have neither yet.
        let member = self.member_of(&holder.workflow_id);
        let member = member.with_reads(Reads::Primary);
        // In this order: with the lock gone, what is not written will not be.
        let request = v1::ListLocksRequest {
            resource_prefix: name_lock(&holder.workflow_id, name),
            ..Default::default()
        };
        if !member.call(&request).await?.locks.is_empty() {
            return Ok(false);
        }
        let request = v1::GetWorkflowInstanceRequest {
            id: holder.workflow_id.clone(),
            view: v1::WorkflowView::Header.into(),
        };
        match member.call(&request).await {
            Ok(found) => Ok(found.instance.unwrap_or_default().name != name),
            Err(error) if error.reason() == Some(ErrorReason::WorkflowNotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The workflow that has taken a name, if there is one.
    pub(super) async fn name_holder(&self, name: &str) -> Result<Option<String>> {
        let request = v1::GetNameHolderRequest { name: name.into() };
        let holder = self.member_of(name).call(&request).await?;
        Ok((!holder.workflow_id.is_empty()).then_some(holder.workflow_id))
    }
}

/// The resource that is locked, in the workflow's member, while a name is taken for it.
fn name_lock(workflow_id: &str, name: &str) -> String {
    let hex = |text: &str| {
        let digest = Sha256::digest(text.as_bytes());
        let digits = digest[..16].iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    format!("wfe-set-name:{}:{}", hex(workflow_id), hex(name))
}

fn prost_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: 0,
    }
}

fn taken() -> Error {
    Error::refused(
        ErrorReason::NameTaken,
        "another workflow of the namespace set has this name, or is being given it",
    )
}

#[cfg(test)]
mod tests {
    /// The same as in Python, whose hosts use the same sets.
    #[test]
    fn the_lock_of_a_name() {
        assert_eq!(
            super::name_lock("order-1", "invoice-2026"),
            "wfe-set-name:0bafe22156d2698c143b86040446d366:6fdb2c6d1f3427ec32d347fa86785be8"
        );
    }
}
