//! Lets the [WFE workflow engine](https://docs.rs/wfe) keep its state in a WFE
//! persistence server: workflows, events, subscriptions, scheduled commands and the
//! error log, over gRPC.
//!
//! [`GrpcPersistenceProvider`] implements the engine's whole persistence trait, so a
//! host that used `wfe-postgres` changes one line:
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
//! # What may be tried again
//!
//! Every call has a deadline, over all its attempts ([`Builder::timeout`]). Within it,
//! what failed with `UNAVAILABLE`, `TRANSACTION_CONFLICT`, `POOL_EXHAUSTED` or
//! `NAMESPACE_BUSY` is tried again after a random, growing wait, plus the wait that the
//! server asks for (but not if TLS failed, see [`Error::is_tls`]):
//!
//! | call | tried again |
//! |---|---|
//! | every read, `store_info`, `list_errors`, `list_namespaces` | yes |
//! | `create_new_workflow`, `create_event`, `create_event_subscription` | yes: the id is set before the first attempt, and the same create again answers the same |
//! | `persist_workflow`, `persist_workflow_with_subscriptions`, `commit` | yes: by its request id a write is made once, however often it arrives |
//! | `mark_event_processed`, `mark_event_unprocessed`, `schedule_command`, `ensure_store_exists`, `create_namespace` | yes |
//! | `set_subscription_token` | yes: the same token and worker again acquires again |
//! | `next_definition_sequence` | yes: a number may be skipped, never given twice |
//! | `terminate_subscription`, `clear_subscription_token`, completing and releasing commands | yes; if an attempt may have been made, the answer that it had been (not found, token mismatch, lease lost) counts as success |
//! | `persist_errors`, claiming commands, `truncate_all`, `delete_namespace` | only if no attempt can have been made: no connection, or the server says so |
//!
//! # What is sent
//!
//! The provider remembers what it loaded or stored last and sends a patch: the header
//! fields and execution pointers that have changed since, so that a step of a workflow of
//! thousands of pointers costs what one of a short workflow costs. Where somebody else has
//! written meanwhile, the whole state is sent, so that the last writer wins as the trait
//! has it; with [`Builder::strict`] that is an error instead. A [`Step`] stores a workflow
//! together with subscriptions, events, errors and commands in one transaction.
//!
//! # Values
//!
//! JSON travels as text and is stored as `jsonb`. Integers keep all their digits (all of
//! `i64` and `u64`), floats come back as the same floats (of `-0.0`, the sign is lost),
//! an absent `Option<Value>` is kept apart from `Some(Value::Null)`, and the order of
//! object members is not kept. Refused by the store, with an error: U+0000 in text,
//! and more than 100 levels. The feature `arbitrary_precision` of `serde_json` is
//! global to a program and so left to it: with it, numbers beyond `u64` and `f64` are
//! kept to the last digit too; without it, `serde_json` itself makes them floats.
//!
//! Times are kept to the microsecond, truncated; years 1 to 9999.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod call;
mod connect;
mod convert;
mod error;
mod provider;
mod saving;

/// The messages and clients of the API, generated from its protos; their comments are
/// the contract.
#[path = "gen/wfe.persistence.v1.rs"]
#[rustfmt::skip]
#[allow(missing_docs, clippy::all)]
pub mod v1;

pub use connect::Builder;
pub use error::{Error, FieldViolation};
pub use provider::GrpcPersistenceProvider;
pub use saving::{Committed, Step};
