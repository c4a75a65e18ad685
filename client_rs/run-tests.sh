#!/bin/sh
# All checks of this crate: format, lints, documentation, tests (against a server that
# the tests start, or the one at $WFE_PERSISTENCE_TARGET).
# Arguments are passed to `cargo test`, for example: ./run-tests.sh --test all kill::
set -eu
cd "$(dirname "$0")"
[ -n "${WFE_PERSISTENCE_TARGET:-}${WFE_TEST_COMMAND:-}" ] ||
    [ -x ../.venv/bin/wfe-persistence ] || ../run wfe version
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
cargo clippy --locked --workspace --all-targets --features tls -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet --features tls
cargo test --locked --quiet --lib # without TLS
cargo test --locked --quiet --features tls "$@"
[ $# -eq 0 ] || exit 0
# The engine's suites and hosts on its newest version: with a lock file of its own.
cd engine-1.11
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked --quiet --test all
