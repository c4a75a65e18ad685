//! A namespace set: one store that is spread over several namespaces, its members.
//!
//! Each call goes to the members that it concerns. Where things are, and what is guaranteed of names,
//! is in the documentation of the server (docs/namespace-sets.md); it is the same in every language.

mod names;
mod repositories;
pub(crate) mod routing;
mod writes;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;
use wfe_core::WfeError;

use self::routing::{home_of, member_of};
use crate::error::{Error, Result};
use crate::provider::GrpcPersistenceProvider;

/// How many names of workflows are remembered, so that they need not be taken again.
const MOST_NAMES: usize = 10_000;

/// The engine's persistence provider on a namespace set;
/// [`Builder::connect_set`](crate::Builder::connect_set) connects one.
///
/// Clones share its connection, as those of [`GrpcPersistenceProvider`]. A workflow is in the member
/// that the hash of its id gives, with all that is written with it; an event, a command or a sequence
/// in that of its key. Lists are those of all members, in the order of a single namespace.
///
/// A name that is not the workflow's id is had by one workflow of the set. To take one costs three
/// calls more, at the creation and at a change of name.
#[derive(Clone)]
pub struct GrpcNamespaceSet {
    pub(crate) members: Arc<[GrpcPersistenceProvider]>,
    /// Which member is asked first for commands the next time.
    turn: Arc<AtomicUsize>,
    /// Of workflows that have a name other than their id, the names.
    names: Arc<Mutex<HashMap<String, String>>>,
}

impl GrpcNamespaceSet {
    pub(crate) fn new(members: Vec<GrpcPersistenceProvider>) -> Self {
        Self {
            members: members.into(),
            turn: Arc::default(),
            names: Arc::default(),
        }
    }

    /// The members, each as a provider of its own, in the order of their indexes.
    pub fn members(&self) -> &[GrpcPersistenceProvider] {
        &self.members
    }

    /// The member that has what has this key: the id of a workflow, a name, a definition.
    pub fn member_of(&self, key: &str) -> &GrpcPersistenceProvider {
        &self.members[member_of(key, self.members.len())]
    }

    /// The index of the member where an event or a subscription with this id is looked for first.
    fn home(&self, id: &str) -> usize {
        home_of(id, self.members.len())
    }

    /// The members in turn, beginning with another one each time.
    fn turns(&self) -> impl Iterator<Item = &GrpcPersistenceProvider> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.members.len();
        self.members[first..].iter().chain(&self.members[..first])
    }

    /// Makes a call in every member, at the same time; the results are in the order of the members.
    async fn each<T, F>(
        &self,
        call: impl Fn(GrpcPersistenceProvider) -> F,
    ) -> wfe_core::Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = wfe_core::Result<T>> + Send + 'static,
    {
        let mut calls = JoinSet::new();
        for (index, member) in self.members.iter().enumerate() {
            let call = call(member.clone());
            calls.spawn(async move { (index, call.await) });
        }
        let mut found = Vec::with_capacity(self.members.len());
        // (An error ends the others: they are aborted with the set.)
        while let Some(joined) = calls.join_next().await {
            let (index, result) = joined.map_err(|_| gave_up())?;
            found.push((index, result?));
        }
        found.sort_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, result)| result).collect())
    }

    /// Makes a call in the member that has something, which its id may not tell: what is written with
    /// a workflow is stored with it.
    async fn find<T, F>(
        &self,
        id: &str,
        call: impl Fn(GrpcPersistenceProvider) -> F,
    ) -> wfe_core::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = wfe_core::Result<T>> + Send + 'static,
    {
        let home = self.home(id);
        let missing = match call(self.members[home].clone()).await {
            Err(error) if is_missing(&error) => error,
            outcome => return outcome,
        };
        let mut calls = JoinSet::new();
        for (index, member) in self.members.iter().enumerate() {
            if index != home {
                calls.spawn(call(member.clone()));
            }
        }
        while let Some(joined) = calls.join_next().await {
            match joined.map_err(|_| gave_up())? {
                Err(error) if is_missing(&error) => {}
                outcome => return outcome,
            }
        }
        Err(missing)
    }

    fn known_name(&self, workflow_id: &str) -> Option<String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(workflow_id).cloned()
    }

    /// Notes the name of a workflow.
    fn remember_name(&self, workflow_id: &str, name: &str) {
        if name.is_empty() || name == workflow_id {
            return;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MOST_NAMES {
            names.clear();
        }
        names.insert(workflow_id.into(), name.into());
    }
}

impl fmt::Debug for GrpcNamespaceSet {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcNamespaceSet")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

fn is_missing(error: &WfeError) -> bool {
    matches!(
        error,
        WfeError::EventNotFound(_)
            | WfeError::SubscriptionNotFound(_)
            | WfeError::WorkflowNotFound(_)
    )
}

/// The error of a call whose task has ended without a result.
fn gave_up() -> WfeError {
    Error::bad_response("the call was given up").into()
}

/// Lists of members that are in the order of their keys, as one list.
fn merged<T, K: Ord>(lists: Vec<Vec<T>>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut all: Vec<T> = lists.into_iter().flatten().collect();
    // Stable, and fast for what is in order already, piece by piece.
    all.sort_by_key(key);
    all
}

/// The same of ids with the numbers that the servers order them by.
fn merged_ids(lists: Vec<Vec<(i64, String)>>) -> Vec<String> {
    let all = merged(lists, |(number, id)| (*number, id.clone()));
    all.into_iter().map(|(_, id)| id).collect()
}

/// The pages of a list of ids, with the numbers that the servers order them by.
fn keyed(ids: Vec<String>, keys: Vec<i64>) -> Result<Vec<(i64, String)>> {
    if ids.len() != keys.len() {
        return Err(Error::bad_response("a list without order_keys"));
    }
    Ok(keys.into_iter().zip(ids).collect())
}
