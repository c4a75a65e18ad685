//! `src/gen` is up to date with the protos. `cargo run -p codegen` regenerates it.

#[test]
fn the_committed_code_is_that_of_the_protos() {
    let fresh = tempfile::tempdir().unwrap();
    codegen::generate(fresh.path());
    let names = |directory: &std::path::Path| {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let committed = codegen::committed();
    assert_eq!(names(&committed), names(fresh.path()));
    for name in names(fresh.path()) {
        assert!(
            std::fs::read(committed.join(&name)).unwrap()
                == std::fs::read(fresh.path().join(&name)).unwrap(),
            "src/gen/{} differs from the protos: cargo run -p codegen",
            name.to_string_lossy()
        );
    }
}
