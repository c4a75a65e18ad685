//! Generates `src/gen` from `../protos`, without protoc. A separate package, so that it runs
//! even if the client does not compile with what was generated last.

use std::path::{Path, PathBuf};

/// The directory in which the generated code is committed.
pub fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/gen")
}

/// Generates the code into a directory.
///
/// # Panics
///
/// The protos are not next to the client, or are not valid.
pub fn generate(out: &Path) {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protos");
    let mut files: Vec<PathBuf> = std::fs::read_dir(protos.join("wfe/persistence/v1"))
        .expect("the protos should be next to the client")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "proto"))
        .collect();
    files.sort();
    let descriptors = protox::Compiler::new([&protos])
        .unwrap()
        .include_source_info(true)
        .include_imports(true)
        .open_files(files)
        .unwrap_or_else(|error| panic!("{error}"))
        .file_descriptor_set();
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .unwrap();
}
