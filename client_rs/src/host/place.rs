//! Where a host works: in a namespace, or over the members of a namespace set.
//!
//! Over a set, receipts and tokens of locks end with `@` and the index of their member, as they do in
//! the other clients. Whatever belongs to a workflow is in that workflow's member: its items, its
//! locks, its lifecycle events. So a step is one transaction.

use std::collections::BTreeMap;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};

use wfe_core::models::{Event, QueueType, WorkflowInstance};

use super::held::CHILDREN;
use crate::error::Result;
use crate::namespace_set::routing::{home_of, lock_home, member_of, tag, tagged};
use crate::namespace_set::GrpcNamespaceSet;
use crate::provider::GrpcPersistenceProvider;
use crate::v1;

pub(super) enum Place {
    Namespace(Box<GrpcPersistenceProvider>),
    Set {
        set: GrpcNamespaceSet,
        /// The members, each of which is asked once: the others are not to wait for it.
        once: Vec<GrpcPersistenceProvider>,
        /// Which member is asked first for items the next time.
        turn: AtomicUsize,
    },
}

/// Evaluates an expression with the store of a place, which has the engine's traits, whichever it is.
macro_rules! on_store {
    ($place:expr, $store:ident => $call:expr) => {
        match $place {
            Place::Namespace($store) => $call,
            Place::Set { set: $store, .. } => $call,
        }
    };
}
pub(super) use on_store;

impl Place {
    pub(super) fn over(set: GrpcNamespaceSet) -> Self {
        let mut once = set.members().to_vec();
        for member in &mut once {
            member.caller.retry.max_attempts = 1;
        }
        Self::Set {
            set,
            once,
            turn: AtomicUsize::new(0),
        }
    }

    /// The providers of the namespaces; at least one.
    pub(super) fn members(&self) -> &[GrpcPersistenceProvider] {
        match self {
            Self::Namespace(provider) => slice::from_ref(&**provider),
            Self::Set { set, .. } => set.members(),
        }
    }

    /// A member that is not to hold the others up: over a set it is asked once.
    pub(super) fn once(&self, index: usize) -> &GrpcPersistenceProvider {
        match self {
            Self::Namespace(provider) => provider,
            Self::Set { once, .. } => &once[index],
        }
    }

    pub(super) fn is_set(&self) -> bool {
        matches!(self, Self::Set { .. })
    }

    /// What all members have in common: settings, the cache, the connection.
    pub(super) fn any(&self) -> &GrpcPersistenceProvider {
        &self.members()[0]
    }

    /// The indexes of the members, in the order in which they are asked for items this time:
    /// beginning with another one each time.
    pub(super) fn turns(&self) -> impl Iterator<Item = usize> {
        let members = self.members().len();
        let first = match self {
            Self::Namespace(_) => 0,
            Self::Set { turn, .. } => turn.fetch_add(1, Ordering::Relaxed) % members,
        };
        (first..members).chain(0..first)
    }

    /// The member of a workflow.
    pub(super) fn of_workflow(&self, id: &str) -> usize {
        member_of(id, self.members().len())
    }

    /// The member of an item that is enqueued alone.
    pub(super) async fn of_item(&self, queue: QueueType, id: &str) -> Result<usize> {
        match (self, queue) {
            (Self::Namespace(_), _) => Ok(0),
            // With the event, which the write of a workflow may have stored: only there can it be
            // confirmed that it has been processed.
            (Self::Set { set, .. }, QueueType::Event) => set.member_of_event(id).await,
            (Self::Set { .. }, QueueType::Workflow | QueueType::Index) => Ok(self.of_workflow(id)),
        }
    }

    /// The member of a lock.
    pub(super) fn of_lock(&self, resource: &str) -> usize {
        let members = self.members().len();
        let children = resource.starts_with(CHILDREN);
        match tagged(resource, members).filter(|_| children && self.is_set()) {
            Some(index) => index,
            None => lock_home(resource, members),
        }
    }

    /// The resource of the lock that withholds the children of a workflow, `key`, where one of them
    /// is.
    pub(super) fn children_key(&self, key: String, child: &str) -> String {
        match self {
            Self::Namespace(_) => key,
            Self::Set { .. } => tag(&key, self.of_workflow(child)),
        }
    }

    /// A receipt or a token that a member has given.
    pub(super) fn tag(&self, given: String, index: usize) -> String {
        match self {
            Self::Namespace(_) => given,
            Self::Set { .. } => tag(&given, index),
        }
    }

    /// The member of a receipt or a token, and what that calls it.
    pub(super) fn untag(&self, given: &str) -> (usize, String) {
        match self {
            Self::Namespace(_) => (0, given.into()),
            Self::Set { .. } => {
                let index = tagged(given, self.members().len()).unwrap_or_default();
                let bare = given.rsplit_once('@').map_or(given, |(bare, _)| bare);
                (index, bare.into())
            }
        }
    }

    /// Receipts or tokens by their members, as these call them.
    pub(super) fn by_member(&self, given: &[String]) -> BTreeMap<usize, Vec<String>> {
        let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for one in given {
            let (index, bare) = self.untag(one);
            found.entry(index).or_default().push(bare);
        }
        found
    }

    pub(super) async fn load(&self, id: &str) -> Result<(WorkflowInstance, i64)> {
        match self {
            Self::Namespace(provider) => provider.load(id).await,
            Self::Set { set, .. } => set.load(id).await,
        }
    }

    pub(super) async fn create(
        &self,
        instance: &WorkflowInstance,
        enqueue: Vec<v1::QueueItem>,
    ) -> Result<String> {
        match self {
            Self::Namespace(provider) => provider.create(instance, enqueue).await,
            Self::Set { set, .. } => set.create(instance, enqueue).await,
        }
    }

    pub(super) async fn save(
        &self,
        instance: &WorkflowInstance,
        effects: v1::CommitWorkflowRequest,
    ) -> Result<i64> {
        match self {
            Self::Namespace(provider) => provider.save(instance, effects).await,
            Self::Set { set, .. } => set.save_with(instance, effects).await,
        }
    }

    pub(super) async fn create_event(
        &self,
        event: &Event,
        enqueue: Vec<v1::QueueItem>,
    ) -> Result<String> {
        let index = home_of(&event.id, self.members().len());
        let member = &self.members()[index];
        member.create_event_and_enqueue(event, enqueue).await
    }
}

#[cfg(test)]
mod tests;
