//! All integration tests, in one binary: separate ones would each be linked, and would each
//! start a server. `cargo test --test all kill::` runs those of one module.

mod channels;
mod codegen;
mod common;
mod ended;
mod host;
mod hosts;
mod kill;
mod long;
mod mixed_fleet;
mod newer;
mod persistence;
mod replicas;
mod saving;
mod set_hosts;
mod sets;
mod stub;
mod suites;
#[cfg(feature = "tls")]
mod tls;
mod token;
