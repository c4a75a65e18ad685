//! `cargo run -p codegen` writes `src/gen` anew.

fn main() {
    codegen::generate(&codegen::committed());
}
