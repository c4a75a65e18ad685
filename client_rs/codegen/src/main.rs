//! `cargo run -p codegen` regenerates `src/gen`.

fn main() {
    codegen::generate(&codegen::committed());
}
