#!/bin/sh
# All checks of this crate: format, lints, documentation, tests (against a server that
# the tests start themselves, or the one at $WFE_PERSISTENCE_TARGET).
# Arguments go to `cargo test`, for example: ./run-tests.sh --test persistence
set -eu
cd "$(dirname "$0")"
[ -n "${WFE_PERSISTENCE_TARGET:-}${WFE_PERSISTENCE_COMMAND:-}" ] ||
    [ -x ../.venv/bin/wfe-persistence ] || ../run wfe version
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
cargo clippy --features tls -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet
cargo test --quiet "$@"
