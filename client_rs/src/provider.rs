//! The provider: the engine's persistence traits, on the API. Each trait has a file of its
//! own below; this one holds what they share.

mod administration;
mod event;
mod persistence;
mod scheduled_command;
mod subscription;
mod workflow;
mod write;

pub(crate) use self::workflow::to_new_subscriptions;
pub(crate) use self::write::new_effects;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use uuid::Uuid;

use crate::cache::Cache;
use crate::call::Caller;
use crate::clients::Call;
use crate::error::Result;
use crate::pool::Pool;
use crate::positions::{Positions, Reads};
use crate::v1;

/// The maximum page size of the server.
pub(crate) const PAGE_SIZE: i32 = 1000;

/// The engine's persistence provider on a WFE persistence server.
///
/// Clones share one HTTP/2 connection (or several, see
/// [`Builder::channels`](crate::Builder::channels)), which is re-established when it breaks;
/// concurrent calls are multiplexed over it.
///
/// Differences from `wfe-postgres`: persisting a workflow that does not exist is
/// `WorkflowNotFound`, not a silent success; a token holds a subscription only until its
/// expiry; clearing a subscription with a wrong token is a `Persistence` error
/// (`TOKEN_MISMATCH`); lists are ordered; a command handler that fails does not hold up the
/// other commands.
#[derive(Clone)]
pub struct GrpcPersistenceProvider {
    pub(crate) pool: Pool,
    pub(crate) caller: Caller,
    pub(crate) claims: Claims,
    pub(crate) cache: Cache,
    strict: bool,
    scheduled_commands: bool,
}

/// What the provider does on the client's side, beyond making calls.
pub(crate) struct Options {
    pub(crate) claims: Claims,
    pub(crate) cache: Cache,
    /// Whether a write fails if the workflow was changed by another writer.
    pub(crate) strict: bool,
}

/// How `process_commands` claims commands.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) lease: Duration,
    pub(crate) batch: u32,
    pub(crate) worker_id: String,
}

impl GrpcPersistenceProvider {
    pub(crate) fn from_parts(pool: Pool, caller: Caller, options: Options) -> Self {
        Self {
            pool,
            caller,
            claims: options.claims,
            cache: options.cache,
            strict: options.strict,
            scheduled_commands: true,
        }
    }

    /// The same, for a namespace in which it has written nothing yet.
    pub(crate) fn in_namespace(mut self, namespace: MetadataValue<Ascii>) -> Self {
        self.caller.namespace = Some(namespace);
        self.caller.positions = Positions::new(self.caller.positions.reads);
        self
    }

    /// A provider on the same connections, whose reads go elsewhere (see
    /// [`Builder::reads`](crate::Builder::reads)), for a single call or several. Its reads contain
    /// what this one has written too, and the other way round.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     store: wfe_persistence_client::GrpcPersistenceProvider,
    /// # ) -> Result<(), wfe_persistence_client::Error> {
    /// use wfe_persistence_client::Reads;
    ///
    /// let errors = store.with_reads(Reads::Primary).list_errors(None).await?;
    /// # Ok(()) }
    /// ```
    pub fn with_reads(&self, reads: impl Into<Option<Reads>>) -> Self {
        let mut other = self.clone();
        other.caller.positions.reads = reads.into();
        other
    }

    /// What the server said it supports.
    pub(crate) fn with_capabilities(mut self, capabilities: v1::Capabilities) -> Self {
        self.scheduled_commands = capabilities.scheduled_commands;
        self
    }

    /// Calls the RPC that the request belongs to.
    pub(crate) async fn call<C: Call>(&self, request: &C) -> Result<C::Response> {
        self.caller
            .call(C::RPC, request, |attempt| self.pool.send(attempt))
            .await
    }
}

impl fmt::Debug for GrpcPersistenceProvider {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcPersistenceProvider")
            .field("namespace", &self.caller.namespace)
            .finish_non_exhaustive()
    }
}

/// Reads all pages: `page` returns the items of one and the token of the next.
pub(crate) async fn all_pages<T, F>(mut page: impl FnMut(String) -> F) -> Result<Vec<T>>
where
    F: Future<Output = Result<(Vec<T>, String)>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// The id, or a new one if it is empty: chosen before the first attempt, so that a create can
/// be retried.
pub(crate) fn id_or_new(id: &str) -> String {
    if id.is_empty() {
        Uuid::new_v4().to_string()
    } else {
        id.to_string()
    }
}
