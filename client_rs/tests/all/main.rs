//! All integration tests, in one binary: five of them would be linked five times, and
//! start five servers. `cargo test --test all kill::` runs those of one module.

mod codegen;
mod common;
mod host;
mod kill;
mod mixed_fleet;
mod persistence;
mod saving;
mod stub;
#[cfg(feature = "tls")]
mod tls;
mod token;
