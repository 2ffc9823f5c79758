//! `hotset.h` is what cbindgen makes of the sources.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fresh() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).unwrap();
    let mut sources: Vec<_> = std::fs::read_dir(folder().join("src")).unwrap().map(|e| e.unwrap().path()).collect();
    sources.sort();
    let builder = cbindgen::Builder::new().with_config(config);
    let bindings = sources.iter().fold(builder, |builder, file: &PathBuf| builder.with_src(file)).generate().unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    String::from_utf8(header).unwrap()
}

fn committed(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("hotset.h")).unwrap()
}

#[test]
fn the_header_is_what_the_sources_say() {
    let (fresh, committed) = (fresh(), committed(&folder()));
    let line = fresh.lines().zip(committed.lines()).position(|(a, b)| a != b);
    let hint = "cargo test -p hotset-c --test header -- --ignored";
    assert!(fresh == committed, "hotset.h is old from line {:?} on; write it anew: {hint}", line.map(|n| n + 1));
    assert_eq!(fresh.matches("hotset_open(").count(), 1, "the sources were read");
}

#[test]
#[ignore = "writes the header"]
fn write_the_header() {
    std::fs::write(folder().join("hotset.h"), fresh()).unwrap();
}
