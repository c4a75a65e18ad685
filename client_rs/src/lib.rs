//! Providers for the [WFE workflow engine](https://docs.rs/wfe) that keep everything in a WFE
//! persistence server, over gRPC: workflows, events, subscriptions, scheduled commands, the error
//! log, and also queues, locks and lifecycle events.
//!
//! [`GrpcPersistenceProvider`] implements the engine's complete persistence trait, so a host
//! that used `wfe-postgres` changes one line:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use wfe_persistence_client::GrpcPersistenceProvider;
//!
//! // let store = wfe_postgres::PostgresPersistenceProvider::new("postgres://…").await?;
//! let store = GrpcPersistenceProvider::new("http://localhost:50052").await?;
//! # let store: Arc<dyn wfe_core::traits::PersistenceProvider> =
//! Arc::new(store);
//! // WorkflowHostBuilder::new().use_persistence(store)…
//! # Ok(()) }
//! ```
//!
//! # Hosts
//!
//! [`GrpcHost`] is the engine's other providers too: queue, locks, lifecycle events, search. So a
//! host needs nothing but the server, and nothing is lost between its parts:
//!
//! - An item of a queue stays on the server, under a lease, until its work is done. If the host
//!   dies, another one gets it when the lease expires ([`Builder::lease`]). If the host drops it
//!   (the engine does so when a load, a lock or an event fails, or if it does not know the
//!   definition), the server does not confirm that its work is done, and it comes back, after a
//!   second at first. The engine's queues have no acknowledgement: the next `dequeue_work` of the
//!   same task is one, in the same call.
//! - The result of a step, the acknowledgement of the item, the item for the next step and the
//!   lifecycle events are stored in one transaction. It is refused if the lease or the lock was
//!   lost, or if the workflow has been changed since it was loaded; the step is run again then.
//! - A workflow is enqueued for the time at which one of its pointers can be run, so one that
//!   sleeps costs nothing. (The engine itself runs it again and again until it wakes.)
//! - The item brings the workflow, and its lease stands for the locks on it. A host goes on with a
//!   workflow for [`Builder::turn`] (100 ms), under the same lease, so most steps are one call: the
//!   write. If it dies, the item comes back when the lease expires, for the step that was not
//!   stored. After its turn, a step is two calls: the write, and `Dequeue`; the next item is taken
//!   while the result is being stored, if there are others. Only while an event may come for the workflow (one of its
//!   pointers waits for one), it is locked on the server, and loaded under that lock.
//! - Leases and locks are renewed in the background, however long a step takes, also after
//!   `stop`. A step that blocks its thread keeps the runtime from doing so if that has no other
//!   thread. A step that panics ends the engine's consumer, unless it is [`guarded`].
//!
//! The engine runs one workflow at a time in a host. Each call of `WorkflowHost::start` starts one more
//! task that does, so call it several times for more; every task has items and a turn of its own.
//!
//! `start` and `stop` of the providers need not be called. The feature `wfe-1-11` adds what the
//! engine's traits have since 1.11: `LifecyclePublisher::subscribe`; with any version there is
//! [`GrpcHost::subscribe`].
//!
//! When a host connects to the queues for the first time, it tells the server what their items
//! stand for (`ConfigureQueue`), for which a token needs the role `operator`; if that is known
//! already, the role `host` is enough.
//!
//! # Retries
//!
//! Every call has a timeout, over all its attempts ([`Builder::timeout`]). Within it, calls
//! that fail with `UNAVAILABLE`, `TRANSACTION_CONFLICT`, `ROW_LOCKED`, `POOL_EXHAUSTED`,
//! `NAMESPACE_BUSY`, `TOO_MANY_CALLS`, `CALLER_LIMITED` or `ADMINISTRATION_BUSY` are retried with
//! exponential backoff and jitter, plus the delay that the server asks for (but not if TLS
//! failed, see [`Error::is_tls`]):
//!
//! | call | retried |
//! |---|---|
//! | every read, `store_info`, `list_errors`, `list_namespaces`, `list_databases` | yes |
//! | `create_new_workflow`, `create_event`, `create_event_subscription` | yes: the id is set before the first attempt, and an identical create returns the same |
//! | `persist_workflow`, `persist_workflow_with_subscriptions`, `commit` | yes: the request id is an idempotency key, so that the write is made once |
//! | `mark_event_processed`, `mark_event_unprocessed`, `schedule_command`, `ensure_store_exists`, `create_namespace` | yes: idempotent |
//! | `set_subscription_token` | yes: the same token and worker acquire again what they hold |
//! | `next_definition_sequence` | yes: a number may be skipped, but is never returned twice |
//! | `terminate_subscription`, `clear_subscription_token`, completing and releasing commands | yes: if an earlier attempt may have taken effect, the error that says so (not found, token mismatch, lease lost) counts as success |
//! | `queue_work`, locks, renewals, lifecycle events | yes: idempotent; an event may come twice |
//! | `dequeue_work`, `persist_errors`, claiming commands, `truncate_all`, `delete_namespace` | only if no attempt can have taken effect: there was no connection, or the server says so |
//!
//! A call that the server rejects with `UNAUTHENTICATED` is retried once, immediately, if there is
//! another token by then ([`Builder::token_file`], [`Builder::token_function`]).
//!
//! # Reads from replicas
//!
//! If the server's database has replicas, lists, counts and the search of hosts are read from them.
//! Whatever a provider (or a host) and its clones have written, their reads contain, wherever they
//! are read: the position of each write is kept, and sent with them. [`Builder::reads`] and
//! [`GrpcPersistenceProvider::with_reads`] have more be read from replicas, or nothing.
//!
//! # Patches
//!
//! The provider caches the workflows that it loaded or stored last and sends patches: the
//! header fields and execution pointers that have changed since, so that a step of a workflow
//! with thousands of pointers costs no more than one of a short workflow. If another writer
//! has changed the workflow in the meantime, the provider sends the full state, so that the
//! last writer wins, as the trait requires; with [`Builder::strict`] that is an error instead.
//! A workflow of 64 pointers or more that was loaded before is loaded by its header, if its
//! revision is still the same ([`Builder::keep`]).
//! A [`Step`] stores a workflow together with subscriptions, events, errors and commands in
//! one transaction.
//!
//! A revision of an id never comes again, even if the workflow is deleted and another one created
//! with the same id: a patch never mixes the two. There are two exceptions: a database that is
//! restored to an earlier state, and a namespace that is deleted and created again. Restart the
//! hosts then, or connect with [`Builder::remember`] 0.
//!
//! Newer software may store fields that this version does not know. They do not count as changes,
//! and a patch leaves them as they are, of the workflow and of every pointer that the host has not
//! changed. Pointers that it has changed are sent without them, and so is the full state (with
//! [`Builder::remember`] 0, of a workflow that is not cached, in another order of pointers, or
//! after another writer): upgrade the hosts before you use new fields.
//!
//! # Values
//!
//! JSON is sent as text and stored as `jsonb`. Integers keep all their digits (the whole range
//! of `i64` and `u64`), floats are returned as the same floats (except that `-0.0` loses its
//! sign), an absent `Option<Value>` is distinguished from `Some(Value::Null)`, and the order
//! of object members is not preserved. The server rejects U+0000 in text and more than 100
//! levels of nesting. The feature `arbitrary_precision` of `serde_json` applies to the whole
//! program, so this crate does not enable it: with it, numbers beyond `u64` and `f64` are also
//! kept to the last digit; without it, `serde_json` converts them to floats.
//!
//! Times are truncated to microseconds; years 1 to 9999.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod cache;
mod call;
mod clients;
mod connect;
mod convert;
mod error;
mod guard;
mod host;
mod namespace_set;
mod patch;
mod pool;
mod positions;
mod provider;
mod rpc;
mod step;
mod token;

/// The messages and clients of the API, generated from its protos, whose comments are the
/// contract.
#[path = "gen/wfe.persistence.v1.rs"]
#[rustfmt::skip]
#[allow(missing_docs, clippy::all)]
pub mod v1;

pub use connect::Builder;
pub use error::{Error, FieldViolation};
pub use guard::guarded;
pub use host::{GrpcHost, Lag};
pub use namespace_set::GrpcNamespaceSet;
pub use positions::Reads;
pub use provider::GrpcPersistenceProvider;
pub use step::{Committed, Step};
